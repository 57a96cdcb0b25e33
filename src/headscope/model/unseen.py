"""Softmaxes that mix tokens in a way that is not read, so that a layer, or a part of one, would go unseen.

While the self-check watches a module, every softmax is followed to the product that uses it. It mixes tokens where the
other factor depends on the tokens, is summed over the softmax's axis and is the same for several queries: a router of
experts, whose results differ from query to query, and learned slots, which no token changes, are left alone. A call of
`flex_attention`, which hides its softmax, counts as one. Mixing without a softmax: `headscope.model.beside`.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from headscope.model.product import SOFTMAXES, TIMES, axes_of, tensors_in

_AS = {Tensor.type_as, Tensor.to, Tensor.view_as, Tensor.reshape_as, Tensor.expand_as}
"""Of a second tensor they read the type or the shape alone."""
_FLEX = "flex_attention"
_UNSEEN = "so part of its attention would go unseen"


class Unseen:
    """Told of each call that was not read, in a pass over prompts of which the first two differ.

    Args:
        n_rows: Prompts of the pass.
        n_tokens: Their length.
    """

    def __init__(self, n_rows: int, n_tokens: int) -> None:
        self.n_rows: int = n_rows
        self.n_tokens: int = n_tokens
        self.reason: str | None = None
        """Why part of the attention would go unseen, of the first such product; None where there is none."""
        self._softmaxes: dict[int, tuple[Tensor, Tensor]] = {}
        """What came of each softmax, and the softmax."""

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Look at one call."""
        if getattr(func, "__name__", None) == _FLEX:
            self.reason = self.reason or f"it attends by {_FLEX}, which is not read, {_UNSEEN}"
        if func is F.scaled_dot_product_attention:
            query, _, value = args[:3] if len(args) > 2 else (kwargs["query"], None, kwargs["value"])
            if query.shape[-2] > 1 and self._depends_on_tokens(value):
                self._say([*query.shape[:-1], value.shape[-2]])
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return
        if func in SOFTMAXES:
            if result.dim() > 1:
                self._softmaxes[id(result)] = result, result
            return
        given = list(tensors_in((args, kwargs)))
        for one in given:
            if id(one) in self._softmaxes:
                _, softmax = self._softmaxes[id(one)]
                if self._mixes(func, args, kwargs, one, result):
                    self._say(list(softmax.shape))
                elif result.numel() <= one.numel() and (
                    func in _AS
                    or not any(
                        other is not one and other.is_floating_point() and other.numel() >= one.numel()
                        for other in given
                    )
                ):
                    self._softmaxes[id(result)] = result, softmax
                return

    def _mixes(self, func: Any, args: Any, kwargs: Any, softmax: Tensor, result: Tensor) -> bool:
        if func in TIMES and len(args) == 2 and all(isinstance(one, Tensor) for one in args):
            other = args[1] if args[0] is softmax else args[0]
            pairs = list(zip(softmax.shape[::-1], other.shape[::-1], strict=False))
            alike = sum(a == b > 1 for a, b in pairs[:-1])
            return (
                result.numel() > softmax.numel()
                and any(a > 1 == b for a, b in pairs)
                and alike > 0
                and self._depends_on_tokens(other)
            )
        axes = axes_of(func, args, kwargs)
        if axes is None:
            return False
        operands, inputs, out = axes
        mine = next(labels for one, labels in zip(operands, inputs, strict=True) if one is softmax)
        sizes = dict(zip(mine, softmax.shape, strict=True))
        for other, labels in zip(operands, inputs, strict=True):
            summed = [one for one in mine if one in labels and one not in out]
            shared = [one for one in mine if one in out and one not in labels and sizes[one] > 1]
            if other is not softmax and summed and shared and self._depends_on_tokens(other):
                return True
        return False

    def _depends_on_tokens(self, given: Tensor) -> bool:
        """Whether it differs between the first two prompts, which lie on any axis, alone or with the heads.

        The third prompt is the first once more. A matrix is one prompt's, as in a loop over them or in `torch.vmap`.
        """
        if given.dim() == 2 and given.shape[0] == self.n_tokens:
            return True
        for axis, size in enumerate(given.shape):
            if size % self.n_rows == 0 and (axis == 0 or size == self.n_rows):
                for split in ((self.n_rows, -1), (-1, self.n_rows)):
                    by_prompt = given.unflatten(axis, split).movedim(axis + (split[0] == -1), 0)
                    apart = ((by_prompt[one].double() - by_prompt[0].double()).abs() for one in (1, 2))
                    second, third = (one.nan_to_num().max() for one in apart)  # infinite in both is equal
                    if 10 * third < second:  # a batch's rows may be rounded in ways of their own
                        return True
        return False

    def _say(self, shape: list[int]) -> None:
        what = f"a softmax of shape {shape} mixes tokens"
        if shape[-2:] == [self.n_tokens, self.n_tokens]:
            why = "over another axis than the last, or by another product than matmul, bmm or einsum of two tensors"
        else:
            other = "a sink, other keys, chunks, patches or another order of axes"
            why = f"and is not one from each of its {self.n_tokens} tokens to each ({other})"
        self.reason = self.reason or f"{what} {why}, {_UNSEEN}"


class Noting(TorchFunctionMode):
    """Within the block, what is computed outside of our attention function is noted."""

    def __init__(self, n_rows: int, n_tokens: int) -> None:
        super().__init__()
        self._unseen = Unseen(n_rows, n_tokens)

    @property
    def reason(self) -> str | None:
        """As `Unseen.reason`."""
        return self._unseen.reason

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._unseen.note(func, args, kwargs or {}, result)
        return result
