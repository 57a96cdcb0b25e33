"""Names for a head, what a user may give as one, and how well a model is supported: words that all modules share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, Protocol, cast, runtime_checkable

from headscope.errors import ArgumentError, brief

Support = Literal["exact", "degraded", "unsupported"]
"""What the self-check concluded about a model; see `headscope.model.selfcheck`."""

_HEAD = re.compile(r"(?:L(D)H(D)|(D)\.(D))(?:#(D))?".replace("D", "[0-9]{1,9}"))  # \d takes the digits of all scripts


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """Where a model mixes tokens in a way that is not read, beside the heads that are."""

    layers: tuple[int, ...]
    """Decoder layers, with or without heads."""
    outside: tuple[str, ...]
    """Modules in no layer whose number is known, by name; the model's own forward is empty."""

    def __str__(self) -> str:
        where = [f"in layer{'s' * (len(self.layers) > 1)} {_ranges(self.layers)}"] if self.layers else []
        if self.outside:
            named = ", ".join(name for name in self.outside if name)
            where.append("outside of its numbered layers" + (f" ({named})" if named else ""))
        return (
            f"tokens are also mixed {' and '.join(where)} in a way that is not read (convolution, recurrence, linear "
            "attention or the like)"
        )


def _ranges(numbers: Iterable[int]) -> str:
    """Like `0-2, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


@dataclass(frozen=True, slots=True, order=True)
class HeadId:
    """One attention head. Prints `L5H1`; parses `L5H1` and `5.1`.

    `layer` counts every decoder layer from 0, also those without attention in hybrid models.
    `call` counts from 0 how often the layer's attention has run before in one forward pass; it is 0 in all but
    looped models, where the second pass of layer 5 prints `L5H1#1`.
    """

    layer: int
    head: int
    call: int = 0

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}" + (f"#{self.call}" if self.call else "")

    __repr__ = __str__

    @classmethod
    def parse(cls, text: str) -> HeadId:
        """Read `L5H1`, `5.1` or `L5H1#1`.

        Raises:
            ArgumentError: the text has another form.
        """
        match = _HEAD.fullmatch(text.strip())
        if match is None:
            raise ArgumentError(f"{brief(repr(text))} is not a head; write layer and head from 0, like L5H1 or 5.1.")
        layer, head = match[1] or match[3], match[2] or match[4]
        return cls(int(layer), int(head), int(match[5] or 0))


def ranking(value: float, head: HeadId) -> tuple[float, HeadId]:
    """Sort key: largest value first; values equal to 6 decimals by layer, head and call.

    The last bits of a float32 sum depend on the processor and the number of threads. Two heads that differ in them
    alone would change places from machine to machine.
    """
    return -round(value, 6), head


@runtime_checkable
class OfHead(Protocol):
    """A result of one head: a `HeadScore`, a verdict, an entry of `find_induction_heads`."""

    @property
    def head(self) -> HeadId | int:
        """The head, or its number beside a `layer`."""
        ...


OneHead = HeadId | str | tuple[int, int] | OfHead
Heads = OneHead | Iterable[OneHead]
"""A head, or several: `HeadId`, `"L5H1"`, (layer, head), or a result of one head."""


def heads_in(given: Any) -> list[HeadId]:
    """Every head that a user's value names, in its order.

    Raises:
        ArgumentError: something in it names no head.
    """
    one = _head(given)
    if one is not None:
        return [one]
    each = list(cast("Iterable[Any]", given)) if isinstance(given, Iterable) else [given]
    heads = {index: head for index, one in enumerate(each) if (head := _head(one)) is not None}
    wrong = [one for index, one in enumerate(each) if index not in heads]
    if wrong:
        raise ArgumentError(
            f"{brief(repr(wrong[0]))} is not a head; give names like 'L5H1', (layer, head), or results of a head."
        )
    return list(heads.values())


def _head(given: Any) -> HeadId | None:
    """What one value names; None where it is not of a kind that names a head."""
    if isinstance(given, str):
        return HeadId.parse(given)
    if isinstance(given, HeadId):
        return given
    if isinstance(inner := getattr(given, "head", None), HeadId):
        return inner
    place: Any = (getattr(given, "layer", None), inner) if isinstance(given, OfHead) else given
    numbers = cast("tuple[Any, ...]", place) if isinstance(place, tuple) else ()
    if len(numbers) != 2 or not all(isinstance(one, Integral) and not isinstance(one, bool) for one in numbers):
        return None
    return HeadId(int(numbers[0]), int(numbers[1]))
