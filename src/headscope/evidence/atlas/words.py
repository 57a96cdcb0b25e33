"""Words that roles about meaning ask with, cut by the model's own tokenizer.

Classes with an order, one without, and names: words that are one token each, all in one form, with a space before or
without. What is left of a class is its longest run without a gap. And rarer words, for those that are two tokens each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headscope.evidence.atlas.samples import NotAsked
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
LONGER: tuple[str, ...] = tuple(
    "alligator almanac artichoke asparagus barnacle bassoon buffalo candlestick cantaloupe cauliflower clarinet "
    "crocodile cucumber daffodil earthworm eggplant flamingo gazelle gooseberry grasshopper harmonica hedgehog "
    "hummingbird jackal jellyfish kangaroo ladybug lavender leopard lettuce magnolia mandolin marigold mongoose nutmeg "
    "octopus ostrich otter papaya parsley peacock pelican petunia platypus porcupine radish salamander saxophone "
    "scorpion spatula sparrow swordfish tadpole tangerine thimble toadstool trombone tulip turmeric turnip walnut "
    "waxwing woodpecker zucchini".split()
)
"""Words that many tokenizers cut in two: of these 64, GPT-2's cuts 44 in two and Llama's 23."""
LEAST_LONGER = 5
"""Words of two tokens that a tokenizer must have."""


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
    found: list[OrderedClass] = []
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
    forms: list[dict[str, int]] = []
    for read in _cut(model, words, 1):
        ids = [ids for (ids,) in read.values()]
        forms.append({word: one for word, (one,) in read.items() if ids.count(one) == 1})
    return max(forms, key=len)


def two_token_words(model: Model) -> tuple[tuple[int, int], ...]:
    """Those of `LONGER` that are two tokens each, in the form in which more are; no token is in two of them.

    Raises:
        NotAsked: the model has no tokenizer, or it cuts too few words in two.
    """
    forms: list[tuple[tuple[int, int], ...]] = []
    for read in _cut(model, LONGER, 2):
        found: list[tuple[int, int]] = []
        seen: set[int] = set()
        for first, second in read.values():
            if first != second and not seen & {first, second}:
                found.append((first, second))
                seen |= {first, second}
        forms.append(tuple(found))
    words = max(forms, key=len)
    if len(words) < LEAST_LONGER:
        cut = f"{len(words)} of {len(LONGER)} longer words into two tokens"
        raise NotAsked(f"its tokenizer cuts {cut}, and {LEAST_LONGER} are needed")
    return words


def _cut(model: Model, words: Sequence[str], size: int) -> list[dict[str, tuple[int, ...]]]:
    """For each form the words that are so many tokens, all known.

    Raises:
        NotAsked: the model has no tokenizer.
    """
    forms: list[dict[str, tuple[int, ...]]] = []
    for form in (" {}", "{}"):
        read = {word: token_ids(model, form.format(word)) for word in words}
        forms.append({word: ids for word, ids in read.items() if len(ids) == size and all_known(model, ids)})
    return forms


def token_ids(model: Model, text: str) -> tuple[int, ...]:
    """A text's tokens, special ones left out.

    Raises:
        NotAsked: the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise NotAsked(
            "the model has no tokenizer, so its words are not known; put one into its folder, or load it with "
            "tokenizer= in Python"
        )
    with tokenizing(model.id):
        return tuple(map(int, model.tokenizer(text, add_special_tokens=False)["input_ids"]))


def all_known(model: Model, ids: Sequence[int]) -> bool:
    """Whether the tokenizer has these tokens, and the model reads and predicts them: tokenizers may have more ids."""
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    return all(one != unknown and 0 <= one < model.n_predicted for one in ids)


def _longest_run(ids: Sequence[int | None]) -> tuple[int, ...]:
    best: list[int] = []
    now: list[int] = []
    for one in ids:
        now = [] if one is None else [*now, one]
        best = now if len(now) > len(best) else best
    return tuple(best)
