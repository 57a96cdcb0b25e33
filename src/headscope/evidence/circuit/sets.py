"""The smallest set without which something is lost, by a few tests of growing sets.

    smallest(fails, items)      S within items, fails(S), and no proper part of S fails

Tests of halves (QuickXplain): what is needed of the second half while all of the first is gone, then what is needed of
the first while that is gone. With k items found among n this takes about 2 k log2(n / k) + 2 k tests.

It misleads where losses are not monotone, so that a set fails and a larger one does not: the set found then may not
fail, which the caller must check, or another part may do as well. Of several smallest sets one is found, with items
that come early preferred.

Reference:
    Junker 2004, "QuickXplain: Preferred Explanations and Relaxations for Over-Constrained Problems", AAAI.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def smallest(fails: Callable[[frozenset[Item]], bool], items: Sequence[Item], *, most: int) -> frozenset[Item] | None:
    """A set that fails and no part of which does; None where one needs more than `most` items.

    Args:
        fails: Whether something is lost without these items. It must hold for all items together.
        items: Those to choose from, preferred ones first.
        most: Largest set that is looked for.
    """

    def needed(gone: frozenset[Item], grown: bool, rest: Sequence[Item], room: int) -> frozenset[Item] | None:
        """What of `rest` must go too, when `gone` is; `grown` where `gone` has not been tested yet."""
        if grown and fails(gone):
            return frozenset()
        if room <= 0:
            return None
        if len(rest) == 1:
            return frozenset(rest)
        first, second = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        late = needed(gone | set(first), True, second, room)
        if late is None:
            return None
        early = needed(gone | late, bool(late), first, room - len(late))
        return None if early is None else early | late

    return needed(frozenset(), False, items, most)
