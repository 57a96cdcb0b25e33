"""Prompts of indirect objects: the probe of movers and of the heads that steer them.

    When Mary and John went to the store, John gave a drink to        ->  Mary, not John

    corrupt   the other name repeated: Mary gave a drink to           ->  John
    control   three names: Tom gave a drink to; none repeats

Both orders of the names, and several places and things. Names, places and things are those that change exactly one
token of the text in the model's own tokenizer, so every prompt has one length and the names are where they differ.

Reference:
    Wang et al. 2022, arXiv:2211.00593.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from headscope.evidence.atlas.role import Scored
from headscope.evidence.atlas.runner import RoleRunner
from headscope.evidence.atlas.samples import NotAsked, Sample
from headscope.evidence.atlas.words import NAMES, all_known, token_ids
from headscope.heads import HeadId
from headscope.interventions.choices import Choices
from headscope.interventions.knockout import Places
from headscope.model.model import Model
from headscope.probes.probe import Probe, Tokens

TEXT = "When {first} and {second} went to the {place}, {giver} gave a {thing} to"
PLACES = ("store", "park", "school", "office", "garden", "market", "house", "station")
THINGS = ("drink", "book", "ring", "ball", "key", "letter", "flower", "map")
LEAST_NAMES = 5
DIRECT = 0.5
"""Share of the effect that reaches the logits by no other head: a mover's is above, that of a head behind it below."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Objects:
    """The prompts, and where their names are."""

    prompts: tuple[Tokens, ...]
    """One name repeated."""
    corrupt: tuple[Tokens, ...]
    """The other name repeated."""
    controls: tuple[Tokens, ...]
    """Three names."""
    corpus: Probe
    """Other prompts of the same form, for means."""
    named_once: tuple[Places, ...]
    """For each prompt its last query and the key of the name that is named once, [1, 2]."""
    repeated: tuple[Places, ...]
    """The same with the later of the repeated name's two keys."""
    first_of_repeated: tuple[Places, ...]
    """The same with the earlier."""
    choices: Choices
    """The name that is named once against the other."""
    n_names: int
    """Names that the tokenizer has."""


def objects(runner: RoleRunner) -> Objects:
    """Prompts of the runner's number and seed.

    Raises:
        NotAsked: no tokenizer, too few names of one token, or a context that is too short.
    """
    cut = _Cut(runner.model)
    if len(cut.names) < LEAST_NAMES:
        raise NotAsked(f"its tokenizer has {len(cut.names)} of {len(NAMES)} names as one token each, and 5 are needed")
    length = len(cut.template)
    if runner.model.max_tokens is not None and length > runner.model.max_tokens:
        raise NotAsked(f"its prompts have {length} tokens and the model reads at most {runner.model.max_tokens}")
    made: list[tuple[Tokens, Tokens, Tokens, int, int, int, int]] = []
    n_names = len(cut.names)
    for index in range(2 * runner.n_prompts):
        random = np.random.default_rng([runner.seed, index])
        # Every name in each place equally often, so that a mean over prompts says none of them.
        order = np.random.default_rng([runner.seed, index // n_names, 1]).permutation(n_names)
        one, two, three = (cut.names[int(order[(index + step) % n_names])] for step in (0, 2, 1))
        place, thing = (words[int(random.integers(len(words)))] for words in (cut.places, cut.things))
        giver, other = (two, one) if index % 2 else (one, two)
        prompt, corrupt, control = (cut.prompt(one, two, place, each, thing) for each in (giver, other, three))
        once, again = (0, 1) if index % 2 else (1, 0)
        made.append((prompt, corrupt, control, cut.at[once], cut.at[again], other, giver))
    mine, rest = made[: runner.n_prompts], made[runner.n_prompts :]
    last = length - 1
    return Objects(
        prompts=tuple(one[0] for one in mine),
        corrupt=tuple(one[1] for one in mine),
        controls=tuple(one[2] for one in mine),
        corpus=Probe(prompts=tuple(one[0] for one in rest), controls=None, settings={"kind": "objects, other prompts"}),
        named_once=tuple(np.asarray([[last, one[3]]]) for one in mine),
        repeated=tuple(np.asarray([[last, cut.at[2]]]) for _ in mine),
        first_of_repeated=tuple(np.asarray([[last, one[4]]]) for one in mine),
        choices=Choices(first=np.asarray([one[5] for one in mine]), second=np.asarray([one[6] for one in mine])),
        n_names=n_names,
    )


def reading(runner: RoleRunner) -> tuple[Objects, dict[str, np.ndarray]]:
    """The prompts, and every head's attention from the last token: `once`, `again`, `before`, and `... control`."""
    asked = objects(runner)
    places = {"once": asked.named_once, "again": asked.repeated, "before": asked.first_of_repeated}

    def read() -> dict[str, np.ndarray]:
        found = runner.attention(asked.prompts, places)
        controls = runner.attention(asked.controls, places)
        return found | {f"{name} control": values for name, values in controls.items()}

    return asked, runner.kept("objects", read)


def attention_to(place: str, runner: RoleRunner, measures: Mapping[str, Sequence[str]]) -> Scored:
    """The score of a head that looks at one of the names, with sums of what it gives to others as further measures.

    Chance is a third of what the head gives to all three.
    """
    asked, found = reading(runner)
    return Scored(
        heads=runner.heads,
        score=found[place],
        chance=(found["once"] + found["again"] + found["before"]).mean(0) / 3,
        control=found[f"{place} control"],
        measures={name: np.sum([found[one] for one in places], axis=0) for name, places in measures.items()},
        probe={"kind": "objects", "n_prompts": runner.n_prompts, "n_names": asked.n_names, "seed": runner.seed},
    )


def tested(
    runner: RoleRunner, asked: Objects, heads: Sequence[HeadId], targets: Sequence[Places]
) -> dict[HeadId, _Tests]:
    """`zero`, `mean`, `specific` and `transfer` of logit(named once) - logit(repeated), and what moves directly."""
    moved = runner.by_head(
        "objects moved",
        heads,
        lambda missing: runner.moved(missing, asked.prompts, asked.corrupt, asked.choices),
    )
    specific = runner.outcome_without(heads, asked.prompts, asked.choices, targets)
    drops, directly = intact_drops(runner, asked, heads), moved_directly(runner, asked, heads)
    found: dict[HeadId, _Tests] = {}
    for head in heads:
        own = {"specific": specific[head]} if head in specific else {}
        values = drops[head] | own | {"transfer": moved[head], "direct": directly[head]}
        found[head] = _Tests(
            samples={name: Sample(values=one) for name, one in values.items()},
            moved=moved[head],
            directly=directly[head],
        )
    return found


def intact_drops(runner: RoleRunner, asked: Objects, heads: Sequence[HeadId]) -> dict[HeadId, dict[str, np.ndarray]]:
    """`zero` and `mean` of the outcome with every other head in its place; measured once for all roles of names."""

    def compute(missing: Sequence[HeadId]) -> dict[HeadId, dict[str, np.ndarray]]:
        return runner.outcome_drops(missing, asked.prompts, asked.choices, corpus=asked.corpus)

    return runner.by_head("objects drops", heads, compute)


def moved_directly(runner: RoleRunner, asked: Objects, heads: Sequence[HeadId]) -> dict[HeadId, np.ndarray]:
    """What the corrupt prompt's z moves while heads above keep their output; measured once for all roles of names."""

    def compute(missing: Sequence[HeadId]) -> dict[HeadId, np.ndarray]:
        return runner.moved_directly(missing, asked.prompts, asked.corrupt, asked.choices)

    return runner.by_head("objects directly", heads, compute)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Tests:
    samples: Mapping[str, Sample]
    moved: np.ndarray
    directly: np.ndarray


class _Cut:
    """The template in the model's tokens, and the words that change exactly one of them."""

    def __init__(self, model: Model) -> None:
        self._model = model
        start = model.bos_token_id
        self._start = [] if start is None else [start]
        self._slots = {"first": "Mary", "second": "John", "place": "store", "giver": "Tom", "thing": "drink"}
        self.template = self._ids({})
        slots = {name: self._slot(name) for name in self._slots}
        if any(at is None for at in slots.values()) or max(self.template) >= model.n_predicted:
            raise NotAsked("its tokenizer does not cut the names of its prompts into one token each")
        self._at = {name: int(at) for name, at in slots.items() if at is not None}
        self.at = (self._at["first"], self._at["second"], self._at["giver"])
        self.names = [
            ids[0] for word in NAMES if len(ids := self._same_everywhere(word)) == 1 and all_known(model, ids)
        ]
        self.names = list(dict.fromkeys(self.names))
        self.places = self._words("place", PLACES)
        self.things = self._words("thing", THINGS)

    def prompt(self, first: int, second: int, place: int, giver: int, thing: int) -> Tokens:
        """One prompt of these tokens."""
        made = np.asarray(self.template)
        for name, token in zip(self._at, (first, second, place, giver, thing), strict=True):
            made[self._at[name]] = token
        return made

    def _ids(self, words: Mapping[str, str]) -> list[int]:
        return [*self._start, *token_ids(self._model, TEXT.format(**self._slots | dict(words)))]

    def _slot(self, name: str) -> int | None:
        """Where a word is: the one token that differs with another word of its kind."""
        for word in (*NAMES, *PLACES, *THINGS):
            ids = self._ids({name: word})
            differs = [at for at, (one, two) in enumerate(zip(ids, self.template, strict=False)) if one != two]
            if len(ids) == len(self.template) and len(differs) == 1:
                return differs[0]
        return None

    def _token(self, name: str, word: str) -> int | None:
        """The token of a word in a slot; None where it is not one, or changes others."""
        ids = self._ids({name: word})
        differs = [at for at, (one, two) in enumerate(zip(ids, self.template, strict=False)) if one != two]
        fits = (
            len(ids) == len(self.template) and set(differs) <= {self._at[name]} and max(ids) < self._model.n_predicted
        )
        return ids[self._at[name]] if fits else None

    def _same_everywhere(self, word: str) -> list[int]:
        """The one token that a name has in all three slots; empty where there is none."""
        found = {self._token(name, word) for name in ("first", "second", "giver")}
        return [one for one in found if one is not None] if len(found) == 1 else []

    def _words(self, name: str, words: Sequence[str]) -> list[int]:
        found = [one for word in words if (one := self._token(name, word)) is not None]
        return list(dict.fromkeys(found)) or [self.template[self._at[name]]]
