"""Attention in any module: seen at the product in which probabilities mix values.

While a module's own code runs, a function mode of this thread follows what a softmax over tokens gives to the product
with the values (matmul, bmm or einsum), whatever comes between, or sees a call of scaled-dot-product attention, which
then runs through our kernel. Axes are read from the product: which is the query's, the head's, the values'. The
product's result is z, read or replaced there, so it does not matter what the output projection is made of.

The pattern is the very matrix of that product. Where it is not a matrix of probabilities (heads mixed after the
softmax, one softmax minus another), `NotMixing` says so. Queries and keys are those of the last product that gave a
number for every query and key; they are believed where `scale * q . k` and a bias that does not depend on the tokens
give the softmax's input (`fitted_scale`).

Cost: the module's own pass, O(n^2) memory for one layer at a time.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from headscope.model.attention import Attention
from headscope.model.interface import Visit
from headscope.model.kernels import Kernel
from headscope.model.precision import widened
from headscope.model.product import (
    ADDED,
    SOFTMAXES,
    TIMES,
    NotMixing,
    Seen,
    Site,
    attention_of,
    joined,
    placed,
    product_of,
    queries_and_keys,
    tensors_in,
)
from headscope.model.scope import hooking
from headscope.model.unseen import Unseen

_LINEAR = {
    F.linear,
    torch.mm,
    Tensor.mm,
    F.conv1d,
    torch.conv1d,
    F.bilinear,
    torch.tensordot,
    torch.inner,
    Tensor.inner,
}
_SUMS = {torch.sum, Tensor.sum}
_SWAPS = {torch.transpose, Tensor.transpose, torch.swapaxes, Tensor.swapaxes, torch.swapdims, Tensor.swapdims}
_TURNS = {Tensor.mT.__get__}  # type: ignore[attr-defined]
# nn.MultiheadAttention calls one function for everything; a copy of it that does not hand itself over to the mode as a
# whole lets the mode see what it calls.
_MHA = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**F.__dict__, "has_torch_function": lambda given: False},
    "multi_head_attention_forward",
    F.multi_head_attention_forward.__defaults__,
)


@dataclass(slots=True)
class _Probabilities:
    tensor: Tensor
    logits: Tensor | None
    key_axis: int
    origins: frozenset[int]
    """Which softmaxes it comes from."""
    why: str | None = None
    q: Tensor | None = None
    k: Tensor | None = None


class Watch(TorchFunctionMode):
    """Calls `meet` with each attention of a pass; a tensor it returns, in the axes of `Seen.result`, replaces z.

    Args:
        n_tokens: Length of the input.
        meet: Sees each call.
        reads: With it, z is followed to the first linear map that reads it, whose input `reads(indices, input)` gets;
            these count the attention calls.
        unseen: With it, what mixes tokens and is not read is noted.
    """

    def __init__(
        self,
        n_tokens: int,
        meet: Callable[[Seen], Tensor | None],
        reads: Callable[[frozenset[int], Tensor], None] | None = None,
        unseen: Unseen | None = None,
    ) -> None:
        super().__init__()
        self.unseen: Unseen | None = unseen
        self.n_tokens: int = n_tokens
        self.meet: Callable[[Seen], Tensor | None] = meet
        self.reads: Callable[[frozenset[int], Tensor], None] | None = reads
        self.owners: list[str] = []
        self.begun: Counter[str] = Counter()
        """How often each module has begun."""
        self.paused: bool = False
        """While a visit runs, which may run another model."""
        self.not_mixing: str | None = None
        """Why a matrix over tokens that came from a softmax is not what mixes values; the first reason."""
        self._patterns: dict[int, _Probabilities] = {}
        self._dots: tuple[Tensor, Tensor] | None = None
        self.given: list[Tensor] = []
        """What the module got as z, of each call since `mixing` began with a layer's first part."""
        self._results: dict[int, tuple[Tensor, frozenset[int], bool]] = {}
        """What came of z: a tensor, of which calls, and whether it was multiplied out for a sum."""
        self._count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            with self:
                return _MHA(*args, **kwargs)
        if func is F.scaled_dot_product_attention and self._among_tokens(*args, **kwargs):
            return self._attend(*args, **kwargs)
        if self._patterns:
            mixed = self._mixed(func, args, kwargs)
            if mixed is not None:
                return mixed
        result = func(*args, **kwargs)
        if self.unseen is not None:
            self.unseen.note(func, args, kwargs, result)
        if isinstance(result, Tensor) and result.dim() >= 3 and result.shape[-1] == self.n_tokens:
            self._note(func, args, kwargs, result)
        if self._results:
            self._follow(func, args, kwargs, result)
        return result

    # --- probabilities on their way to the values

    def _note(self, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
        square = result.shape[-2] == self.n_tokens
        if func in SOFTMAXES:
            axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if square and isinstance(axis, int) and axis % result.dim() == result.dim() - 1:
                q, k = self._dots or (None, None)
                self._patterns[id(result)] = _Probabilities(
                    result, args[0] if args else None, -1, frozenset({id(result)}), q=q, k=k
                )
            return
        if not square:
            return
        found = [self._patterns[id(one)] for one in tensors_in((args, kwargs)) if id(one) in self._patterns]
        if found:
            if not result.is_floating_point():  # a question about them, like which are NaN
                return
            self._patterns[id(result)] = self._changed(func, args, found, result)
            return
        product = product_of(func, args, kwargs)
        if product is not None:
            self._dots = queries_and_keys(product) or self._dots

    def _changed(self, func: Any, args: Any, found: list[_Probabilities], result: Tensor) -> _Probabilities:
        alike = [one for one in found if one.tensor.shape == result.shape and _alike(result, one.tensor)]
        first, name = [*alike, *found][0], getattr(func, "__name__", str(func))
        origins = frozenset[int]().union(*(one.origins for one in found))
        key_axis, why = first.key_axis, first.why
        if func in _SWAPS and {axis % result.dim() for axis in args[1:3]} == {result.dim() - 1, result.dim() - 2}:
            key_axis = -3 - key_axis
        elif func in _TURNS or name == "__get__":
            key_axis = -3 - key_axis if _is_turned(first.tensor, result) else key_axis
        if len(origins) > 1:
            why = "two softmaxes are combined before they mix the values (differential attention)"
        elif product_of(func, args, {}) is not None or func in _LINEAR or name.startswith("conv"):
            why = "heads are mixed after the softmax (talking heads)"
        elif why is None:
            why = f"its probabilities are changed after the softmax ({name})"
        same = result.numel() == first.tensor.numel() and key_axis == first.key_axis
        logits = first.logits if same and _alike(result, first.tensor) else None
        return _Probabilities(result, logits, key_axis, origins, why, first.q, first.k)

    def _mixed(self, func: Any, args: Any, kwargs: Any) -> Tensor | None:
        product = product_of(func, args, kwargs)
        if product is None:
            return None
        for side in (0, 1):
            operand, other = (product.left, product.right) if side == 0 else (product.right, product.left)
            found = self._patterns.get(id(operand))
            if found is None:
                continue
            mine, theirs, out = product.labels[side], product.labels[1 - side], list(product.labels[2])
            key, query = mine[found.key_axis], mine[-3 - found.key_axis]
            leads = [one for one in mine if one not in (key, query)]
            own = [one for one in out if one in theirs and one not in mine]
            if not (key in theirs and key not in out and query in out and query not in theirs and len(own) == 1):
                continue
            if set(out) - {query, *own} != set(leads):
                continue
            order = [out.index(one) for one in (*leads, query, *own)]
            pattern = operand if found.key_axis == -1 else operand.mT
            self._refuse_if_not_probabilities(pattern, found)
            result = func(*args, **kwargs)
            z = result.permute(order)
            value = placed(other, theirs, [*leads, key, *own])
            seen = Seen(
                owner=self._owner(), result=z, pattern=pattern, logits=found.logits, q=found.q, k=found.k, v=value
            )
            self._patterns.clear()
            self._dots = None
            replaced = self._meet(seen)
            if replaced is not None:
                back = [order.index(place) for place in range(len(order))]
                result = replaced.to(result.dtype).permute(back).contiguous()
            self._track(result)
            return result
        return None

    def _refuse_if_not_probabilities(self, pattern: Tensor, found: _Probabilities) -> None:
        if found.why is None:
            return
        pattern = pattern.detach()
        rows = widened(pattern).sum(-1)
        if float((rows - 1).abs().max()) > 1e-2 or float(pattern.min()) < 0:
            raise NotMixing(found.why)

    # --- scaled-dot-product attention

    def _among_tokens(self, query: Tensor, key: Tensor, *_: Any, **__: Any) -> bool:
        return query.dim() >= 3 and query.shape[-2] == key.shape[-2] == self.n_tokens

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if self.reads is None:  # our kernel computes it
            own = query.new_empty(*query.shape[:-1], value.shape[-1])
        else:
            own = F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        how = {"mask": attn_mask, "scale": scale, "causal": is_causal}
        seen = Seen(owner=self._owner(), result=own, q=query, k=key, v=value, sdpa=how)
        replaced = self._meet(seen)
        result = own if replaced is None else replaced.to(own.dtype).contiguous()
        self._track(result)
        return result

    # --- common

    def _owner(self) -> str:
        return self.owners[-1] if self.owners else ""

    def _meet(self, seen: Seen) -> Tensor | None:
        self.paused = True
        try:
            return self.meet(seen)
        finally:
            self.paused = False

    def _track(self, result: Tensor) -> None:
        self.given.append(result)
        if self.reads is not None:
            self._results[id(result)] = (result, frozenset({self._count}), False)
        self._count += 1

    def _follow(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """From z to the linear map that reads it."""
        assert self.reads is not None
        found = [self._results[id(one)] for one in tensors_in((args, kwargs)) if id(one) in self._results]
        if not found:
            return
        operand, indices = found[0][0], frozenset[int]().union(*(of for _, of, _ in found))
        spread = any(one for _, _, one in found)
        sums = spread and func in _SUMS
        if sums or func in _LINEAR or func in ADDED or product_of(func, args, kwargs) is not None:
            self.paused = True
            try:
                self.reads(indices, operand)
            finally:
                self.paused = False
            for number in [number for number, (_, of, _) in self._results.items() if of & indices]:
                del self._results[number]
        elif result is None and args and isinstance(args[0], Tensor):  # written into another tensor
            self._results[id(args[0])] = (args[0], indices, spread)
        else:
            for one in tensors_in(result):
                if one.is_floating_point():
                    wider = func in TIMES and one.numel() > operand.numel()
                    self._results[id(one)] = (one, indices, spread or wider)


def _is_turned(before: Tensor, after: Tensor) -> bool:
    return after.stride()[-2:] == before.stride()[-2:][::-1]


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors hold the same numbers, but for rounding, in one order."""
    given, wanted = (one.detach().flatten().float() for one in (first, second))
    return bool((given - wanted).abs().max() <= 1e-2 * wanted.abs().max())


@contextmanager
def owning(module: nn.Module, watch: Watch, names: Sequence[str] | None = None) -> Generator[None, None, None]:
    """Within the block the watch knows which of these modules is running; by default of all."""
    wanted = None if names is None else set(names)
    owners = {part: name for name, part in module.named_modules() if name and (wanted is None or name in wanted)}

    def begin(part: nn.Module, *_: Any) -> None:
        watch.owners.append(owners[part])
        watch.begun[owners[part]] += 1

    def end(*_: Any) -> None:
        watch.owners.pop()

    with hooking(owners, before=begin, after=end, outermost=True):
        yield


@contextmanager
def mixing(
    module: nn.Module,
    sites: dict[str, tuple[Site, ...]],
    shape: tuple[int, int],
    visit: Visit,
    kernel: Kernel | None = None,
    unknown: Callable[[str], Exception] = RuntimeError,
    reads: Callable[[tuple[int, int], Tensor], None] | None = None,
) -> Generator[Watch, None, None]:
    """Within the block `visit` sees each attention of the module; what it returns replaces z.

    Args:
        module: What runs.
        sites: The attention calls of each module, by its name, as the self-check found them.
        shape: Prompts and tokens of the input.
        visit: Sees each call.
        kernel: Force a kernel where scaled-dot-product attention is called.
        unknown: Makes the error for a call that the self-check did not see.
        reads: Gets layer and call of each attention, and the input of the first linear map that reads its heads.

    Raises:
        NotMixing: this input is attended to in another way than the self-check's, such as a longer one in chunks.
    """
    n_rows, n_tokens = shape
    counts: dict[str, int] = {}
    places: list[tuple[int, int]] = []
    waiting: list[tuple[Site, Seen, Attention]] = []

    def meet(seen: Seen) -> Tensor | None:
        number = counts.get(seen.owner, 0)
        counts[seen.owner] = number + 1
        here = sites.get(seen.owner, ())
        if number >= len(here):
            raise unknown(seen.owner)
        site = here[number]
        places.append((site.layer, site.call))
        if site.part == 0:
            waiting.clear()
            watch.given.clear()
        waiting.append((site, seen, attention_of(seen, site, n_rows, kernel)))
        own = waiting[-1][2]
        replaced = None
        if site.part == site.parts - 1:
            replaced = visit(own if site.parts == 1 else joined([one for _, _, one in waiting]))
        if replaced is None:
            return site.back(own.z.transpose(1, 2), seen.result.shape) if seen.sdpa is not None else None
        new = replaced.split([one.n_heads for _, _, one in waiting], dim=2)
        for given, part, (other, before, _) in zip(watch.given, new, waiting, strict=False):
            given.copy_(other.back(part.transpose(1, 2), before.result.shape))
        return site.back(new[-1].transpose(1, 2), seen.result.shape)

    def read(indices: frozenset[int], given: Tensor) -> None:
        assert reads is not None
        reads(places[min(indices)], given)

    watch = Watch(n_tokens, meet, None if reads is None else read)
    with owning(module, watch, [name for name in sites if name]), watch:
        yield watch
    for name, own in sites.items():
        replaced = "forward" in module.get_submodule(name).__dict__  # then it may have been left out
        ran = watch.begun[name] > 0 and not replaced if name else True
        if ran and counts.get(name, 0) < (1 if name else len(own)):
            raise NotMixing(f"{name or 'it'} runs, and its attention is not seen")
