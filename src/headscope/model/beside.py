"""What mixes tokens beside the attention that is read: found by experiment, and by which module.

One prompt runs twice in a batch. In the second copy some tokens are others; at the places whose tokens are the same,
every head's result z is replaced by that of the first copy. So the heads carry nothing from the changed places to the
kept ones, and what still differs there came another way: by a convolution, a recurrence, linear attention, attention
that is not seen, or a shift of what queries, keys or values are made of.

    queries, keys, values and logits at kept places    `difference`, in a pass of the self-check
    which module                                       `found`: what goes into a module or comes out is made to agree
                                                       there; where it did not, tokens were mixed just before

Cost: one prompt more in a pass of the self-check; where that differs, or queries and keys are hidden, one pass over two
prompts.

Misleading when: it mixes by less than the self-check's tolerance, or only in other input than these 17 tokens.
"""

# pyright: reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from headscope.heads import Unread
from headscope.model.attention import Attention
from headscope.model.backbone import Backbone
from headscope.model.names import layer_of, stack_of
from headscope.model.product import tensors_in
from headscope.model.scope import hooking
from headscope.model.taps import Route, forward

CHANGED = (0, 2, 3, 7, 8, 12)
"""Places of the changed tokens: from one of them to a kept place is every distance from 1 to 16, and kept places are on
both sides of each boundary of two."""


def kept_places(n_tokens: int) -> list[int]:
    """Places whose tokens stay, of a prompt of this length."""
    return [place for place in range(n_tokens) if place not in CHANGED]


def with_other_tokens(prompt: Int[Tensor, " position"], never: frozenset[int], n_ids: int) -> Int[Tensor, " position"]:
    """The prompt with other tokens at the changed places: those of later kept places, so that tokens repeat.

    Args:
        prompt: Token ids.
        never: Ids that are neither replaced nor put in, like padding, on which positions may depend.
        n_ids: Ids are below this.
    """
    other, kept = prompt.clone(), kept_places(len(prompt))
    for turn, place in enumerate(one for one in CHANGED if one < len(prompt)):
        old = int(prompt[place])
        later = [int(prompt[one]) for one in kept if one > place]
        choices = chain(later[turn:], later, ((old + step) % n_ids for step in range(1, n_ids)))
        if old not in never:
            other[place] = next((one for one in choices if one != old and one not in never), old)
    return other


def difference(first: Tensor, second: Tensor, axis: int) -> float:
    """Largest difference at the kept places, which lie on `axis`, as a share of the largest number there."""
    kept = torch.tensor(kept_places(first.shape[axis]), device=first.device)
    if len(kept) == 0:
        return 0.0
    first, second = (torch.nan_to_num(one.detach().index_select(axis, kept).float()) for one in (first, second))
    largest = float(torch.maximum(first.abs().max(), second.abs().max())) if first.numel() else 0.0
    return float((first - second).abs().max()) / largest if largest > 0 else 0.0


def hold(z: Float[Tensor, "batch query head d_head"], row: int, like: int) -> None:
    """Write the z of one row, at the kept places, into another."""
    kept = kept_places(z.shape[1])
    z[row, kept] = z[like, kept]


def read_elsewhere(attention: Attention, row: int, like: int) -> float:
    """By how much queries, keys or values of the kept places differ: they were made of other tokens too."""
    scores, n_tokens = attention.scores, attention.z.shape[1]
    parts = [attention.own_values] if scores is None else [scores.q, scores.k, scores.v]
    return max(
        (
            difference(part[row], part[like], axis=1)
            for part in parts
            if part is not None and part.shape[2] == n_tokens and len(part) > max(row, like)
        ),
        default=0.0,
    )


def found(backbone: Backbone, route: Route, prompts: Int[Tensor, "prompt position"], tolerance: float) -> Unread | None:
    """Where tokens are mixed, of two prompts that differ at the changed places; None where all modules agree."""
    module, n_tokens = backbone.module, prompts.shape[1]
    names: dict[nn.Module, str] = {part: name for name, part in module.named_modules()}
    replaced_inside = set(route.layers) if route.path == "hooks" else set[str]()
    running: list[str] = []
    leaking: dict[str, None] = {}
    layers: set[int] = set()

    def agree(given: Any, where: str) -> Any:
        """The same with equal numbers at the kept places; None where they are. What differs was mixed in `where`."""
        apart = max((difference(one[0], one[1], axis=0) for one in _placed(given, n_tokens)), default=0.0)
        if apart > tolerance:
            leaking[where] = None
        return None if apart == 0 else tree_map(partial(_agreeing, n_tokens=n_tokens), given)

    def before(part: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        parent, name = running[-1] if running else "", names[part]
        running.append(name)
        return None if name in replaced_inside else agree((arguments, named), parent)

    def after(part: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        return agree(output, running.pop())

    def visit(attention: Attention) -> Tensor:
        if read_elsewhere(attention, 1, 0) > tolerance:
            layers.add(attention.layer)
        z = attention.z.clone()
        hold(z, 1, 0)
        return z

    with hooking(list(names), before=before, after=after, outermost=True):
        logits = backbone.output(forward(backbone, route, prompts, visit))
    if difference(logits[0], logits[1], axis=0) > tolerance:
        leaking[""] = None
    if not (leaking or layers):  # rounding, which a router of experts made large
        return None
    numbers = {name: layer_of(name, route.layers) for name in leaking}
    return Unread(
        layers=tuple(sorted(layers | {number for number in numbers.values() if number is not None})),
        outside=tuple(name for name, number in numbers.items() if number is None),
    )


def _by_place(given: Tensor, n_tokens: int) -> Tensor | None:
    """A view [prompt position ...] of two prompts' numbers; None of a tensor of other axes, or of pairs of tokens.

    Whole numbers on two axes are ids; on more they are places that were chosen.
    """
    if given.dim() < 2 or not (given.is_floating_point() or given.dim() == 2):
        return None
    view: Tensor | None = None
    if given.shape[:2] == (2, n_tokens):
        view = given
    elif given.shape[:2] == (n_tokens, 2):
        view = given.transpose(0, 1)
    elif given.shape[0] == 2 * n_tokens:
        view = given.unflatten(0, (2, n_tokens))
    return None if view is None or n_tokens in view.shape[2:] else view


def _placed(given: Any, n_tokens: int) -> Iterator[Tensor]:
    for one in tensors_in(given):
        placed = _by_place(one, n_tokens)
        if placed is not None:
            yield placed


def _agreeing(given: Any, n_tokens: int) -> Any:
    """The same tensor with the first prompt's numbers at the second's kept places."""
    placed = _by_place(given, n_tokens) if isinstance(given, Tensor) else None
    if placed is None:
        return given
    same = given.clone()
    placed = _by_place(same, n_tokens)
    assert placed is not None
    kept = kept_places(n_tokens)
    placed[1, kept] = placed[0, kept]
    return same


def counted_as_seen(route: Route) -> bool:
    """Whether some layers have no number of their own, and are counted as their attention is seen."""
    return any(stack_of(name) is None for name in route.layers)
