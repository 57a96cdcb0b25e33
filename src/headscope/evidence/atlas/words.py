"""Words that roles about meaning ask with, cut by the model's own tokenizer.

Classes with an order, one without, and names. Only words that are one token each are used, all in one form: with a
space before, or without. What is left of a class is its longest run without a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headscope.evidence.atlas.role import NotAsked
from headscope.model.model import Model
from headscope.model.tokenizer import tokenizing

LEAST_RUN = 5
"""Members that a class must have."""
ORDERED: dict[str, tuple[str, ...]] = {
    "number words": tuple("one two three four five six seven eight nine ten eleven twelve".split()),
    "numbers": tuple(map(str, range(1, 31))),
    "days": tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()),
    "months": tuple("January February March April May June July August September October November December".split()),
    "letters": tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
}
CYCLIC = ("days", "months")
"""Whose last member is followed by the first, if none is missing."""
UNORDERED: tuple[str, ...] = tuple(
    "apple horse green table river bread stone window garden paper silver yellow mountain chicken cotton bridge summer "
    "guitar orange forest butter kitchen purple island coffee dragon winter market pencil basket".split()
)
NAMES: tuple[str, ...] = tuple(
    "Mary John Tom James Dan Martin Amy Sarah Paul Mark Anna Peter Laura Alice Robert Michael David Emma Kate Jack "
    "Simon Lisa Adam Jane Steven Kevin".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedClass:
    """The members of a class that are one token each, in order and without a gap."""

    name: str
    """Of `ORDERED`."""
    ids: tuple[int, ...]
    """Token ids."""
    cyclic: bool
    """Whether the first follows the last."""

    def after(self, member: int, steps: int = 1) -> int | None:
        """The id so many steps after a member, counted from 0; None behind the end."""
        at = member + steps
        return self.ids[at % len(self.ids)] if self.cyclic or at < len(self.ids) else None


def ordered_classes(model: Model) -> tuple[OrderedClass, ...]:
    """Every class of which enough is left.

    Raises:
        NotAsked: the model has no tokenizer, or it cuts every class into pieces.
    """
    found = []
    for name, words in ORDERED.items():
        ids = one_token_ids(model, words)
        run = _longest_run([ids.get(word) for word in words])
        if len(run) >= LEAST_RUN:
            found.append(OrderedClass(name=name, ids=run, cyclic=name in CYCLIC and len(run) == len(words)))
    if not found:
        raise NotAsked(
            f"its tokenizer has no class of {LEAST_RUN} ordered words, like days or numbers, of one token each"
        )
    return tuple(found)


def one_token_ids(model: Model, words: Sequence[str]) -> dict[str, int]:
    """The words that are one token each, in the form in which more of them are, with a space before or without.

    Raises:
        NotAsked: the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise NotAsked("the model has no tokenizer, so its words are not known; load it with tokenizer=")
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    forms = []
    for form in (" {}", "{}"):
        with tokenizing(model.id):
            read = {word: model.tokenizer(form.format(word), add_special_tokens=False)["input_ids"] for word in words}
        single = {word: int(ids[0]) for word, ids in read.items() if len(ids) == 1 and ids[0] != unknown}
        ids = list(single.values())
        forms.append({word: one for word, one in single.items() if ids.count(one) == 1})
    return max(forms, key=len)


def _longest_run(ids: Sequence[int | None]) -> tuple[int, ...]:
    best: list[int] = []
    now: list[int] = []
    for one in ids:
        now = [] if one is None else [*now, one]
        best = now if len(now) > len(best) else best
    return tuple(best)
