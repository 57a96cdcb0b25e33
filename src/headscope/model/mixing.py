"""Attention in any module: seen at the product in which probabilities mix values.

While a module's own code runs, a function mode of this thread follows what a softmax over tokens gives to the product
with the values (matmul, bmm or einsum), whatever stands between, or sees a call of scaled-dot-product attention, which
then runs through our kernel. Axes are read from the product: which is the query's, the head's, the values'. The
product's result is z, read or replaced there, so it does not matter what the output projection is made of.

The pattern is the very matrix of that product. Where it is not a matrix of probabilities (heads mixed after the
softmax, one softmax minus another), `NotMixing` says so. Queries and keys are those of the last product that gave a
number for every query and key; they are believed where `scale * q . k` and a bias that does not depend on the tokens
give the softmax's input (`fitted_scale`).

Cost: the module's own pass, O(n^2) memory for one layer at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from headscope.model import kernels
from headscope.model.attention import Attention, Scores
from headscope.model.interface import Visit
from headscope.model.kernels import Kernel, Rule
from headscope.model.scope import hooking

_SOFTMAXES = {F.softmax, torch.softmax, Tensor.softmax}
_MATMULS = {torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__}
_ADDED = {torch.baddbmm, Tensor.baddbmm, torch.addmm, Tensor.addmm}
_LINEAR = {F.linear, torch.mm, Tensor.mm, F.conv1d, torch.conv1d, F.bilinear}
_SWAPS = {torch.transpose, Tensor.transpose, torch.swapaxes, Tensor.swapaxes, torch.swapdims, Tensor.swapdims}
_TURNS = {Tensor.mT.__get__}  # type: ignore[attr-defined]

MASKED = -9e3
"""Logits below this are masked: families write -1e4, -1e9, the smallest number or minus infinity."""

# nn.MultiheadAttention calls one function for everything; a copy of it that does not hand itself over to the mode as a
# whole lets the mode see what it calls.
_MHA = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**F.__dict__, "has_torch_function": lambda given: False},
    "multi_head_attention_forward",
    F.multi_head_attention_forward.__defaults__,
)


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


def product_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Product | None:
    """The product that a call computes, if it is one of two tensors."""
    if func is torch.einsum and args and isinstance(args[0], str):
        operands = list(args[1]) if len(args) == 2 and isinstance(args[1], (list, tuple)) else list(args[1:])
        equation = args[0].replace(" ", "")
        if len(operands) != 2 or "->" not in equation:
            return None
        inputs, out = equation.split("->")
        sides = inputs.split(",")
        extra = max(one.dim() - len(side.replace("...", "")) for one, side in zip(operands, sides, strict=True))
        letters = [f"...{place}" for place in range(extra)]
        written = []
        for side, n_dim in (*zip(sides, [one.dim() for one in operands], strict=True), (out, None)):
            names: list[str] = list(side.replace("...", "."))
            if "." in names:
                place = names.index(".")
                count = extra if n_dim is None else n_dim - len(names) + 1
                names[place : place + 1] = letters[extra - count :]
            written.append(names)
        return Product(operands[0], operands[1], (written[0], written[1], written[2]))
    if func in _MATMULS and len(args) == 2:
        left, right = args
    elif func in _ADDED and len(args) == 3:
        _, left, right = args
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


class Watch(TorchFunctionMode):
    """Calls `meet` with each attention of a pass; a tensor it returns, in the axes of `Seen.result`, replaces z.

    Args:
        n_tokens: Length of the input.
        meet: Sees each call.
        reads: With it, z is followed to the first linear map that reads it, whose input `reads(index, input)` gets;
            `index` counts the attention calls.
    """

    def __init__(
        self,
        n_tokens: int,
        meet: Callable[[Seen], Tensor | None],
        reads: Callable[[int, Tensor], None] | None = None,
    ) -> None:
        super().__init__()
        self.n_tokens, self.meet, self.reads = n_tokens, meet, reads
        self.owners: list[str] = []
        self.begun: Counter[str] = Counter()
        """How often each module has begun."""
        self.paused = False
        """While a visit runs, which may run another model."""
        self.not_mixing: str | None = None
        """Why a matrix over tokens that came from a softmax is not what mixes values; the first reason."""
        self._patterns: dict[int, _Probabilities] = {}
        self._dots: tuple[Tensor, Tensor] | None = None
        self._results: dict[int, tuple[Tensor, int]] = {}
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
        if isinstance(result, Tensor) and result.dim() >= 3 and result.shape[-1] == self.n_tokens:
            self._note(func, args, kwargs, result)
        if self._results:
            self._follow(func, args, kwargs, result)
        return result

    # --- probabilities on their way to the values

    def _note(self, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
        square = result.shape[-2] == self.n_tokens
        if func in _SOFTMAXES:
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
            self._dots = _queries_and_keys(product) or self._dots

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
            value = _placed(other, theirs, [*leads, key, *own])
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
        if self.reads is None or found.why is None:  # looked at in the check alone
            return
        rows = pattern.double().sum(-1)
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
        if self.reads is not None:
            self._results[id(result)] = (result, self._count)
        self._count += 1

    def _follow(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """From z to the linear map that reads it."""
        assert self.reads is not None
        found = [(one, self._results[id(one)][1]) for one in tensors_in((args, kwargs)) if id(one) in self._results]
        if not found:
            return
        operand, index = found[0]
        if func in _LINEAR or func in _ADDED or product_of(func, args, kwargs) is not None:
            self.paused = True
            try:
                self.reads(index, operand)
            finally:
                self.paused = False
            for number in [number for number, (_, at) in self._results.items() if at == index]:
                del self._results[number]
        elif result is None and args and isinstance(args[0], Tensor):  # written into another tensor
            self._results[id(args[0])] = (args[0], index)
        else:
            for one in tensors_in(result):
                if one.is_floating_point():
                    self._results[id(one)] = (one, index)


def _is_turned(before: Tensor, after: Tensor) -> bool:
    return after.stride()[-2:] == before.stride()[-2:][::-1]


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors hold the same numbers, but for rounding, in one order."""
    return bool((first.flatten().float() - second.flatten().float()).abs().max() <= 1e-2 * second.float().abs().max())


def _placed(given: Tensor, labels: Sequence[Any], wanted: Sequence[Any]) -> Tensor:
    """Axes in the order wanted; those that are not there have size 1."""
    there = [one for one in wanted if one in labels]
    given = given.permute([labels.index(one) for one in there])
    for place, one in enumerate(wanted):
        if one not in there:
            given = given.unsqueeze(place)
    return given


def _queries_and_keys(product: Product) -> tuple[Tensor, Tensor] | None:
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
            return _placed(q, q_axes, [*leads, query, *shared]), _placed(k, k_axes, [*leads, key, *shared])
    return None


def attention_of(seen: Seen, site: Site, n_rows: int, kernel: Kernel | None = None) -> Attention:
    """What a visitor sees of one call."""
    if seen.sdpa is not None:
        assert seen.q is not None
        assert seen.k is not None
        assert seen.v is not None
        q, k, v = (site.by_head(part, n_rows) for part in (seen.q, seen.k, seen.v))
        rule = Rule(
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
        return Attention(layer=site.layer, call=site.call, z=z, kernel="own", own_pattern=pattern)
    return Attention(layer=site.layer, call=site.call, z=z, kernel="own", scores=scores)


def _mask(seen: Seen, site: Site, n_rows: int, dtype: torch.dtype) -> Tensor | None:
    assert seen.sdpa is not None
    mask = seen.sdpa["mask"]
    if mask is None:
        return None
    mask = kernels.additive(mask, dtype)
    if mask.dim() <= 2:
        return mask[(None,) * (4 - mask.dim())]
    n_leads = seen.result.dim() - 2
    whole = mask[(None,) * (n_leads + 2 - mask.dim())].expand(*seen.result.shape[:n_leads], *mask.shape[-2:])
    return site.by_head(whole, n_rows)


def by_token(seen: Seen, site: Site, n_rows: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """The softmax's input, q and k, by head; None where they were not all seen in the pattern's axes."""
    if seen.q is None or seen.k is None or seen.logits is None or seen.pattern is None:
        return None
    leads = seen.pattern.shape[:-2]
    if seen.logits.shape != seen.pattern.shape or seen.q.shape[:-2] != leads or seen.k.dim() != seen.q.dim():
        return None
    if any(own not in (1, whole) for own, whole in zip(seen.k.shape[:-2], leads, strict=True)):
        return None
    k = seen.k
    if k.shape[site.axis] != leads[site.axis]:
        return None
    return tuple(site.by_head(part, n_rows) for part in (seen.logits, seen.q, k))  # type: ignore[return-value]


def _scores(seen: Seen, site: Site, n_rows: int) -> Scores | None:
    parts = by_token(seen, site, n_rows)
    if parts is None or seen.v is None or site.scale is None:
        return None
    logits, q, k = parts
    wide = torch.promote_types(logits.dtype, torch.float32)
    dots = q[:1].to(wide) @ kernels.repeat_heads(k[:1], q.shape[1]).to(wide).mT
    first = logits[:1].to(wide)
    bias = (first - site.scale * dots).masked_fill(first < MASKED, torch.finfo(wide).min)
    v = seen.v
    v = v.expand(*(seen.result.shape[site.axis] if place == site.axis else -1 for place in range(v.dim())))
    rule = Rule(scale=site.scale, causal=False, bias=bias)
    lse = torch.logsumexp(logits.to(wide), dim=-1)
    return Scores(q=q, k=k, v=site.by_head(v, n_rows), rule=rule, lse=lse)


def fitted_scale(seen: Seen, site: Site, n_rows: int, tolerance: float) -> float | None:
    """The factor of q . k, if with a bias that does not depend on the tokens it gives the softmax's input.

    Between two prompts the bias cancels: logits[0] - logits[1] = scale * (dots[0] - dots[1]).
    """
    parts = by_token(seen, site, n_rows)
    if parts is None:
        return None
    logits, q, k = (part[:2].double() for part in parts)
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


@contextmanager
def owning(module: nn.Module, watch: Watch, names: Sequence[str] | None = None) -> Iterator[None]:
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
    reads: Callable[[int, Tensor], None] | None = None,
) -> Iterator[Watch]:
    """Within the block `visit` sees each attention of the module; what it returns replaces z.

    Args:
        module: What runs.
        sites: The attention calls of each module, by its name, as the self-check found them.
        shape: Prompts and tokens of the input.
        visit: Sees each call.
        kernel: Force a kernel where scaled-dot-product attention is called.
        unknown: Makes the error for a call that the self-check did not see.
        reads: As `Watch`.
    """
    n_rows, n_tokens = shape
    counts: dict[str, int] = {}

    def meet(seen: Seen) -> Tensor | None:
        number = counts.get(seen.owner, 0)
        counts[seen.owner] = number + 1
        here = sites.get(seen.owner, ())
        if number >= len(here):
            raise unknown(seen.owner)
        site = here[number]
        attention = attention_of(seen, site, n_rows, kernel)
        replaced = visit(attention)
        if replaced is None:
            return site.back(attention.z.transpose(1, 2), seen.result.shape) if seen.sdpa is not None else None
        return site.back(replaced.transpose(1, 2), seen.result.shape)

    watch = Watch(n_tokens, meet, reads)
    with owning(module, watch, [name for name in sites if name]), watch:
        yield watch
