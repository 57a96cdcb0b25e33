"""Products in which probabilities mix values: their axes, what was seen of them, and an `Attention` made of it."""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from headscope.model import kernels
from headscope.model.attention import Attention, Scores
from headscope.model.kernels import AttentionSpec, Kernel
from headscope.model.precision import widened

SOFTMAXES: set[Any] = {F.softmax, torch.softmax, Tensor.softmax}
_MATMULS = {torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__}
TIMES: set[Any] = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply, Tensor.multiply}  # type: ignore[attr-defined]
ADDED: set[Any] = {torch.baddbmm, Tensor.baddbmm, torch.addmm, Tensor.addmm}
MASKED = -9e3
"""Logits below this are masked: families write -1e4, -1e9, the smallest number or minus infinity."""


class NotMixing(Exception):
    """The matrix that mixes the values is not one of probabilities; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One attention call of a forward pass, and how its axes lie."""

    layer: int
    call: int
    n_heads: int
    axis: int = 0
    """Which of the axes before query and key is the prompt's; the others are heads."""
    heads_first: bool = False
    """Whether, where prompts and heads share one axis, the prompts run fastest."""
    scale: float | None = None
    """Factor of q . k in the softmax's input; None where queries and keys cannot be seen."""
    part: int = 0
    """Where a layer's heads are computed one after another: which of its parts this is."""
    parts: int = 1
    """How many parts the layer's heads come in."""

    def by_head(self, given: Tensor, n_rows: int) -> Tensor:
        """[batch head ...] from [*axes before query and key, ...]; two axes follow."""
        n_leads = given.dim() - 2
        if n_leads == 1:
            if self.heads_first:
                return given.unflatten(0, (-1, n_rows)).transpose(0, 1)
            return given.unflatten(0, (n_rows, -1))
        return given.movedim(self.axis, 0).flatten(1, n_leads - 1)

    def back(self, given: Tensor, like: torch.Size) -> Tensor:
        """The same axes as `like`, from [batch head ...]."""
        n_leads = len(like) - 2
        if n_leads == 1:
            return (given.transpose(0, 1) if self.heads_first else given).flatten(0, 1)
        rest = [size for place, size in enumerate(like[:n_leads]) if place != self.axis]
        return given.unflatten(1, rest).movedim(0, self.axis)


@dataclass(slots=True)
class Product:
    """A product of two tensors, with a label for each axis."""

    left: Tensor
    right: Tensor
    labels: tuple[Sequence[Any], Sequence[Any], Sequence[Any]]
    """Axes of both, and of the result."""


@dataclass(slots=True)
class Seen:
    """One call as it was seen, in its own axes: [*axes before, query, key or d]."""

    owner: str
    result: Tensor
    """z, [*axes before, query, d]."""
    pattern: Tensor | None = None
    logits: Tensor | None = None
    """What went into the softmax; None where the pattern is not its result as it is."""
    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    sdpa: dict[str, Any] | None = None
    """Mask, scale and whether it is causal, of a call of scaled-dot-product attention."""


def axes_of(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Tensor], list[list[str]], list[str]] | None:
    """The tensors that a call multiplies, with a label for each of their axes and of the result's; None of others."""
    if func is not torch.einsum:
        product = product_of(func, args, kwargs)
        return None if product is None else ([product.left, product.right], *_listed(product))
    if not (args and isinstance(args[0], str)):
        return None
    operands = list(args[1]) if len(args) == 2 and isinstance(args[1], (list, tuple)) else list(args[1:])
    equation = args[0].replace(" ", "")
    if "->" not in equation:
        return None
    inputs, out = equation.split("->")
    sides = inputs.split(",")
    extra = max(one.dim() - len(side.replace("...", "")) for one, side in zip(operands, sides, strict=True))
    letters = [f"...{place}" for place in range(extra)]
    written: list[list[str]] = []
    for side, n_dim in (*zip(sides, [one.dim() for one in operands], strict=True), (out, None)):
        names: list[str] = list(side.replace("...", "."))
        if "." in names:
            place = names.index(".")
            count = extra if n_dim is None else n_dim - len(names) + 1
            names[place : place + 1] = letters[extra - count :]
        written.append(names)
    return operands, written[:-1], written[-1]


def _listed(product: Product) -> tuple[list[list[str]], list[str]]:
    left, right, out = (list(one) for one in product.labels)
    return [left, right], out


def product_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Product | None:
    """The product that a call computes, if it is one of two tensors."""
    if func is torch.einsum:
        axes = axes_of(func, args, kwargs)
        if axes is None or len(axes[0]) != 2:
            return None
        (left, right), inputs, out = axes
        return Product(left, right, (inputs[0], inputs[1], out))
    if func in _MATMULS and len(args) == 2:
        left, right = args
    elif func in ADDED:
        factors = [*args[1:3], *(kwargs[name] for name in ("batch1", "mat1", "batch2", "mat2") if name in kwargs)]
        if len(factors) != 2:
            return None
        left, right = factors
    else:
        return None
    if not (isinstance(left, Tensor) and isinstance(right, Tensor)) or min(left.dim(), right.dim()) < 2:
        return None
    n_leads = max(left.dim(), right.dim()) - 2
    leads = [f"lead{place}" for place in range(n_leads)]

    def labels(one: Tensor, last: list[str]) -> list[str]:
        own = one.dim() - 2
        return [*leads[n_leads - own :], *last]

    return Product(left, right, (labels(left, ["i", "c"]), labels(right, ["c", "j"]), [*leads, "i", "j"]))


def tensors_in(given: Any) -> Iterator[Tensor]:
    """Tensors among a call's arguments."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, (list, tuple)):
        for one in given:
            yield from tensors_in(one)
    elif isinstance(given, dict):
        for one in given.values():
            yield from tensors_in(one)


def placed(given: Tensor, labels: Sequence[Any], wanted: Sequence[Any]) -> Tensor:
    """Axes in the order wanted; those that are not there have size 1."""
    there = [one for one in wanted if one in labels]
    given = given.permute([labels.index(one) for one in there])
    for place, one in enumerate(wanted):
        if one not in there:
            given = given.unsqueeze(place)
    return given


def queries_and_keys(product: Product) -> tuple[Tensor, Tensor] | None:
    """[*axes before, query, d] and [*axes before, key, d] of a product that gives [*axes before, query, key]."""
    left, right, out = (list(one) for one in product.labels)
    query, key, leads = out[-2], out[-1], out[:-2]
    shared = [one for one in left if one in right and one not in out]
    if len(shared) != 1 or not leads:
        return None
    for (q, q_axes), (k, k_axes) in (
        ((product.left, left), (product.right, right)),
        ((product.right, right), (product.left, left)),
    ):
        if query in q_axes and key in k_axes and query not in k_axes and key not in q_axes:
            if set(q_axes) - set(leads) != {query, *shared} or set(k_axes) - set(leads) != {key, *shared}:
                return None
            return placed(q, q_axes, [*leads, query, *shared]), placed(k, k_axes, [*leads, key, *shared])
    return None


def attention_of(seen: Seen, site: Site, n_rows: int, kernel: Kernel | None = None) -> Attention:
    """What a visitor sees of one call."""
    if seen.sdpa is not None:
        assert seen.q is not None
        assert seen.k is not None
        assert seen.v is not None
        q, k, v = (site.by_head(part, n_rows) for part in (seen.q, seen.k, seen.v))
        rule = AttentionSpec(
            scale=float(seen.sdpa["scale"]), causal=bool(seen.sdpa["causal"]), bias=_mask(seen, site, n_rows, q.dtype)
        )
        z, lse, name = kernels.attend(q, k, v, rule, kernel)
        scores = Scores(q=q, k=k, v=v, rule=rule, lse=lse)
        return Attention(layer=site.layer, call=site.call, z=z.transpose(1, 2), kernel=name, scores=scores)
    assert seen.pattern is not None
    z = site.by_head(seen.result, n_rows).transpose(1, 2)
    pattern = site.by_head(seen.pattern, n_rows)
    scores = None if site.scale is None else _scores(seen, site, n_rows)
    if scores is None:
        v = _values(seen, site, n_rows)
        return Attention(layer=site.layer, call=site.call, z=z, kernel="own", own_pattern=pattern, own_values=v)
    return Attention(layer=site.layer, call=site.call, z=z, kernel="own", scores=scores)


def joined(parts: Sequence[Attention]) -> Attention:
    """One call, of heads that were computed one after another."""
    first, z = parts[0], torch.cat([one.z for one in parts], dim=2)
    scores = [one.scores for one in parts if one.scores is not None]
    masks = [None if s.rule.bias is None else s.rule.bias.dtype for s in scores]
    kinds = {
        (s.q.shape[1], s.k.shape[1], s.rule.scale, s.rule.causal, mask) for s, mask in zip(scores, masks, strict=True)
    }
    if len(scores) < len(parts) or len(kinds) > 1:
        values = [one.own_values if one.scores is None else one.scores.v for one in parts]
        known = [one for one in values if one is not None]
        return replace(
            first,
            z=z,
            kernel="own",
            scores=None,
            own_pattern=torch.cat([one.pattern() for one in parts], 1),
            own_values=torch.cat(known, 1) if len(known) == len(parts) else None,
        )
    rule = scores[0].rule
    if rule.bias is not None:
        rows = max(s.rule.bias.shape[0] for s in scores if s.rule.bias is not None)
        biases = [s.rule.bias.expand(rows, s.q.shape[1], -1, -1) for s in scores if s.rule.bias is not None]
        rule = replace(rule, bias=torch.cat(biases, 1))
    q, k, v, lse = (torch.cat([getattr(s, name) for s in scores], 1) for name in ("q", "k", "v", "lse"))
    return replace(first, z=z, scores=Scores(q=q, k=k, v=v, rule=rule, lse=lse))


def _mask(seen: Seen, site: Site, n_rows: int, dtype: torch.dtype) -> Tensor | None:
    assert seen.sdpa is not None
    mask = seen.sdpa["mask"]
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        shut = mask < MASKED
        shut &= ~shut.all(-1, keepdim=True)  # among keys that are all as low, the numbers still count
        mask = mask.to(dtype).masked_fill(shut, torch.finfo(dtype).min)
    if mask.dim() <= 2:
        return mask[(None,) * (4 - mask.dim())]
    n_leads = seen.result.dim() - 2
    whole = mask[(None,) * (n_leads + 2 - mask.dim())].expand(*seen.result.shape[:n_leads], *mask.shape[-2:])
    return site.by_head(whole, n_rows)


def by_token(seen: Seen, site: Site, n_rows: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """The softmax's input, q and k, by head; None where they were not all seen in the pattern's axes."""
    if seen.q is None or seen.k is None or seen.logits is None or seen.pattern is None:
        return None
    leads, logits = seen.pattern.shape[:-2], seen.logits
    if logits.numel() == seen.pattern.numel():  # of the same numbers in the same order
        logits = logits.reshape(seen.pattern.shape)
    q, k = (_with_leads(part, leads) for part in (seen.q, seen.k))
    if logits.shape != seen.pattern.shape or q.shape[:-2] != leads or k.dim() != q.dim():
        return None
    if any(own not in (1, whole) for own, whole in zip(k.shape[:-2], leads, strict=True)):
        return None
    if k.shape[site.axis] != leads[site.axis]:
        return None
    return tuple(site.by_head(part, n_rows) for part in (logits, q, k))  # type: ignore[return-value]


def _with_leads(part: Tensor, leads: torch.Size) -> Tensor:
    """Prompts and heads on two axes, where they were multiplied on one."""
    together = part.dim() == 3 and len(leads) == 2 and part.shape[0] == leads[0] * leads[1]
    return part.unflatten(0, leads) if together else part


def _scores(seen: Seen, site: Site, n_rows: int) -> Scores | None:
    parts, v = by_token(seen, site, n_rows), _values(seen, site, n_rows)
    if parts is None or v is None or site.scale is None:
        return None
    logits, q, k = parts
    masked = logits < MASKED
    # A mask made from the tokens is each prompt's own; of one for all, the first prompt's is kept.
    some = slice(1) if bool((masked == masked[:1]).all()) else slice(None)
    wide = torch.promote_types(logits.dtype, torch.float32)
    dots = q[some].to(wide) @ kernels.repeat_heads(k[some], q.shape[1]).to(wide).mT
    bias = (logits[some].to(wide) - site.scale * dots).masked_fill(masked[some], torch.finfo(wide).min)
    rule = AttentionSpec(scale=site.scale, causal=False, bias=bias)
    lse = torch.logsumexp(logits.to(wide), dim=-1)
    return Scores(q=q, k=k, v=v, rule=rule, lse=lse)


def _values(seen: Seen, site: Site, n_rows: int) -> Tensor | None:
    v = seen.v
    if v is None:
        return None
    v = v.expand(*(seen.result.shape[site.axis] if place == site.axis else -1 for place in range(v.dim())))
    return site.by_head(v, n_rows)


def fitted_scale(seen: Seen, site: Site, n_rows: int, tolerance: float) -> float | None:
    """The factor of q . k, if with a bias that does not depend on the tokens it gives the softmax's input.

    Between two prompts the bias cancels: logits[0] - logits[1] = scale * (dots[0] - dots[1]).
    """
    parts = by_token(seen, site, n_rows)
    if parts is None:
        return None
    logits, q, k = (widened(part[:2]) for part in parts)
    if q.shape[1] % k.shape[1]:
        return None
    dots = q @ kernels.repeat_heads(k, q.shape[1]).mT
    open_ = (logits > MASKED).all(0)
    moved, by = (logits[0] - logits[1])[open_], (dots[0] - dots[1])[open_]
    size = float(by.square().sum())
    if size == 0:
        return None
    scale = float((moved * by).sum()) / size
    off = float((moved - scale * by).abs().max())
    return scale if off <= tolerance * max(1.0, float(logits[:, open_].abs().max())) else None
