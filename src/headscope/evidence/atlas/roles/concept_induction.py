"""Concept induction: at a token that came before a word of two tokens, attends to the word's end and so completes it.

    prompt      [start]  p q w1 w1'  r s w2 w2'  t u w3 w3'  v x w4 w4'   r s w2     ->  w2'
    score       attention from s, before the asked word, to that word's end w2' in the first copy
    chance      1 / 4: a head that looks at the end of every word alike, or at one place
    control     the same with the second tokens moved on by one word, so that w1 w2' and the others are no words
    zero, mean  drop of logit(w2') - logit(another word's second token), after w2
    specific    the same drop when the head no longer reads the end of the word from s
    transfer    rise of logit(w2') - logit(w4') after t u w2 when the head's z at u is that of s, and at w2 its own
    look_alike_verbatim    half of the mean drop, minus what the head's mean ablation changes on the control's prompts:
                what copies tokens, whatever they are, acts there alike

Token induction attends to w2 from s, the word's first token, and scores 0. A head that looks two tokens on scores the
same on the control. The outcome is read one token later than the head is patched, so that a head which raises the
word's end at its own place, where the first token must come, moves nothing.

Words of two tokens in the model's own tokenizer, and random tokens before them, all different.

Reference:
    Feucht et al. 2025, arXiv:2504.03022, where one word is among random tokens, and the control is random too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from headscope.errors import TokenError
from headscope.evidence.atlas.role import Role, Scored
from headscope.evidence.atlas.runner import RoleRunner
from headscope.evidence.atlas.samples import NotAsked, Sample
from headscope.evidence.atlas.words import two_token_words
from headscope.heads import HeadId
from headscope.interventions.choices import Choices
from headscope.interventions.knockout import Places
from headscope.probes.probe import Probe, Tokens
from headscope.probes.repeated import random_tokens

N_WORDS = 4
"""Words in a prompt."""
BEFORE = 2
"""Random tokens before each."""
STATED = BEFORE + 2
VERBATIM = 0.5
"""Share of a head's effect that must be gone where the tokens make no words."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Asked:
    """The prompts, and where their words are."""

    prompts: tuple[Tokens, ...]
    elsewhere: tuple[Tokens, ...]
    """The same, asking for the word's second token after the token that came before another word."""
    controls: tuple[Tokens, ...]
    """No words."""
    corpus: Probe
    """Other prompts of the same form, for means."""
    control_corpus: Probe
    """Other controls."""
    end: tuple[Places, ...]
    """For each prompt the query before the asked word and the key of that word's end, [1, 2]."""
    start: tuple[Places, ...]
    """The same with the key of its first token."""
    others: tuple[Places, ...]
    """The same with the ends of the other words, [n - 1, 2]."""
    choices: Choices
    """The word's second token against another's."""
    on_controls: Choices
    """The same for the controls."""


def _asked(runner: RoleRunner) -> _Asked:
    """Prompts of the runner's number and seed.

    Raises:
        NotAsked: no tokenizer, too few words of two tokens, or context or vocabulary too small.
    """
    words = two_token_words(runner.model)
    start = 0 if runner.model.bos_token_id is None else 1
    length = start + N_WORDS * STATED + BEFORE + 1
    if runner.model.max_tokens is not None and length > runner.model.max_tokens:
        raise NotAsked(f"its prompts have {length} tokens and the model reads at most {runner.model.max_tokens}")
    pieces = [token for word in words for token in word]
    needed = N_WORDS * BEFORE
    try:
        drawn = random_tokens(
            runner.model, n_prompts=2 * runner.n_prompts, length=start + needed + len(pieces), seed=runner.seed
        ).prompts
    except TokenError as error:
        raise NotAsked(str(error).rstrip(".")) from error
    made = [_made(runner.seed, index, words, start, tokens) for index, tokens in enumerate(drawn)]
    if any(len(np.unique(one.filler)) < needed for one in made):
        raise NotAsked(f"its prompts need {needed + len(pieces)} different tokens")
    mine, rest = made[: runner.n_prompts], made[runner.n_prompts :]
    query = length - 2
    ends = [start + at * STATED + STATED - 1 for at in range(N_WORDS)]
    return _Asked(
        prompts=tuple(one.prompt(one.place) for one in mine),
        elsewhere=tuple(one.prompt(one.elsewhere) for one in mine),
        controls=tuple(one.prompt(one.place, moved=1) for one in mine),
        corpus=_corpus([one.prompt(one.place) for one in rest]),
        control_corpus=_corpus([one.prompt(one.place, moved=1) for one in rest]),
        end=tuple(np.asarray([[query, ends[one.place]]]) for one in mine),
        start=tuple(np.asarray([[query, ends[one.place] - 1]]) for one in mine),
        others=tuple(np.asarray([[query, key] for at, key in enumerate(ends) if at != one.place]) for one in mine),
        choices=_choices(mine, moved=0),
        on_controls=_choices(mine, moved=1),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Made:
    head: Tokens
    """The start token, where there is one."""
    filler: Tokens
    """Random tokens, `BEFORE` for each word."""
    words: tuple[tuple[int, int], ...]
    """In their order in the prompt."""
    place: int
    """Of the word that is asked."""
    other: int
    """Of another, whose second token counts against the asked one's."""
    elsewhere: int
    """Of a third, after whose context the asked word's first token is shown."""

    def prompt(self, before: int, *, moved: int = 0) -> Tokens:
        """The token that came before one of the words, and then the asked word's first token.

        Args:
            before: Place of the word whose context it is.
            moved: By how many words the second tokens move on.
        """
        context = self.filler.reshape(N_WORDS, BEFORE)
        stated = [
            np.asarray([*context[at], self.words[at][0], self.words[(at + moved) % N_WORDS][1]])
            for at in range(N_WORDS)
        ]
        return np.concatenate([self.head, *stated, context[before], [self.words[self.place][0]]])


def _made(seed: int, index: int, words: Sequence[tuple[int, int]], start: int, tokens: Tokens) -> _Made:
    n = len(words)
    # Every word is asked for equally often, so that a mean over prompts says none of them.
    order: list[int] = np.random.default_rng([seed, index // n, 2]).permutation(n).tolist()
    shown = [words[order[(index + step) % n]] for step in range(N_WORDS)]
    place = index % N_WORDS
    steps = 1 + np.random.default_rng([seed, index]).permutation(N_WORDS - 1)
    body = tokens[start:]
    filler = body[~np.isin(body, np.asarray(words).ravel())]
    return _Made(
        head=tokens[:start],
        filler=filler[: N_WORDS * BEFORE],
        words=tuple(shown[(at - place) % N_WORDS] for at in range(N_WORDS)),
        place=place,
        other=(place + int(steps[0])) % N_WORDS,
        elsewhere=(place + int(steps[1])) % N_WORDS,
    )


def _corpus(prompts: Sequence[Tokens]) -> Probe:
    return Probe(prompts=tuple(prompts), controls=None, settings={"kind": "words, other prompts"})


def _choices(made: Sequence[_Made], *, moved: int) -> Choices:
    """What follows the asked word's first token, against what follows the other's."""
    return Choices(
        first=np.asarray([one.words[(one.place + moved) % N_WORDS][1] for one in made]),
        second=np.asarray([one.words[(one.other + moved) % N_WORDS][1] for one in made]),
    )


def _score(runner: RoleRunner) -> Scored:
    asked = _asked(runner)

    def read() -> dict[str, np.ndarray]:
        places = {"end": asked.end, "start": asked.start, "others": asked.others}
        return runner.attention(asked.prompts, places) | {
            "control": runner.attention(asked.controls, {"control": asked.end})["control"]
        }

    found = runner.kept("concept_induction", read)
    return Scored(
        heads=runner.heads,
        score=found["end"],
        chance=np.full(len(runner.heads), 1 / N_WORDS),
        control=found["control"],
        measures={"first token of the word": found["start"], "ends of other words": found["others"]},
        probe={
            "kind": "words",
            "n_prompts": runner.n_prompts,
            "n_words": len(two_token_words(runner.model)),
            "in_a_prompt": N_WORDS,
            "seed": runner.seed,
        },
    )


def _test(runner: RoleRunner, scored: Scored, heads: Sequence[HeadId]) -> Mapping[HeadId, Mapping[str, Sample]]:
    asked = _asked(runner)
    drops = runner.outcome_drops(heads, asked.prompts, asked.choices, corpus=asked.corpus)
    specific = runner.outcome_without(heads, asked.prompts, asked.choices, asked.end)
    swapped = Choices(first=asked.choices.second, second=asked.choices.first)
    moved = runner.moved(heads, asked.elsewhere, asked.prompts, swapped, n_last=2, own_last=1)
    verbatim = runner.outcome_drops(
        heads, asked.controls, asked.on_controls, corpus=asked.control_corpus, methods=("mean",)
    )
    found: dict[HeadId, dict[str, Sample]] = {}
    for head in heads:
        values = drops[head] | ({"specific": specific[head]} if head in specific else {})
        values |= {
            "transfer": moved[head],
            "look_alike_verbatim": VERBATIM * drops[head]["mean"] - np.abs(verbatim[head]["mean"]),
        }
        found[head] = {name: Sample(values=one) for name, one in values.items()}
    return found


ROLE = Role(
    name="concept_induction",
    order=115,
    letter="W",
    colour="#6699cc",
    sentence="at a token that came before a word of two tokens, attends to the word's end and so completes it",
    look_alike="token induction, which attends to the word's first token; a head that looks two tokens on, and what "
    "copies tokens whatever they are, by pairs of tokens that are no words",
    score=_score,
    test=_test,
    score_passes=0.4,
    test_passes=0.6,
)
