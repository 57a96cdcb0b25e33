"""Successor: what it reads of a member of an ordered class raises the next member: Monday, Tuesday.

    score       share of class members whose value, as the head reads it where the member is alone, raises the
                successor above all other members of the class, through W_O and the unembedding; chance 1 / class
    control     the same for as many words without an order, mean over 8 random arrangements
    zero, mean  drop of logit(successor) - logit(last member) at the end of lists like `Monday Tuesday Wednesday`
    specific    the same drop when the head no longer reads the list
    transfer    the same drop, for the successor against the corrupt prompt's, when the head's z at the end is that of a
                corrupt prompt with another part of the class
    look_alike_suppression    half the drop, minus what the head's mean ablation changes on copied lists `x y z x y`, of
                logit(z) - logit(y): a head that lowers the last token, or copies, acts there alike

The value is read from the model's own forward pass on [start, member], so whatever the first layers make of the token
is in it, the first MLP among it. A head that raises the member itself or the one before scores 0; one that copies what
a successor of an earlier layer wrote there scores 1, and comes out by its tests.

Reference:
    Gould et al. 2023, arXiv:2312.09230, whose score goes through the first MLP alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from headscope.errors import TokenError, UnsupportedModel
from headscope.evidence.atlas.role import Role, Scored
from headscope.evidence.atlas.runner import RoleRunner
from headscope.evidence.atlas.samples import NotAsked, Sample
from headscope.evidence.atlas.words import UNORDERED, OrderedClass, one_token_ids, ordered_classes
from headscope.evidence.copying import TokenSpace
from headscope.heads import HeadId
from headscope.interventions.choices import Choices
from headscope.interventions.knockout import reads_values
from headscope.model.attention import Attention
from headscope.probes.probe import Probe, Tokens
from headscope.probes.repeated import random_tokens

LISTED = 3
"""Members in a list."""
FILLER = 6
"""Random tokens before it."""
ARRANGED = 8
"""Arrangements of words without an order, over which the control is a mean."""
_Group = tuple[tuple[int, ...], list[int], list[int]]
"""Ids; which of them are asked, by number; and the number that each of those is to raise."""


def _values(runner: RoleRunner, ids: Sequence[int]) -> dict[int, torch.Tensor]:
    """By layer, what its heads read of each token alone after the start token [token, kv_head, d_v]."""
    start = runner.model.bos_token_id
    rows = torch.tensor([[*([] if start is None else [start]), one] for one in ids], device=runner.model.device)
    found: dict[int, torch.Tensor] = {}

    def visit(attention: Attention) -> None:
        if not attention.call and attention.scores is not None:
            found[attention.layer] = attention.scores.v[:, :, -1].detach().clone()

    runner.model.run(rows, visit, stop_at_last=True)
    return found


def _score(runner: RoleRunner) -> Scored:
    classes = ordered_classes(runner.model)
    if not reads_values(runner.model):
        raise NotAsked("the model hides what its heads read")
    try:
        circuits = TokenSpace(runner.model, seed=runner.seed)
    except UnsupportedModel as error:
        raise NotAsked(f"its weights cannot be read head by head ({str(error).rstrip('.')})") from error
    words = tuple(one_token_ids(runner.model, UNORDERED).values())
    if len(words) < 3:
        raise NotAsked("its tokenizer has fewer than 3 words without an order of one token each")
    random = np.random.default_rng(runner.seed)
    groups: list[_Group] = []
    wanted: list[float] = []
    controls: list[list[_Group]] = [[] for _ in range(ARRANGED)]
    for one in classes:
        size = min(len(one.ids), len(words))
        asked = [at for at in range(len(one.ids)) if one.after(at) is not None]
        groups.append((one.ids, asked, [(at + 1) % len(one.ids) for at in asked]))
        drawn = [at % size for at in range(len(asked))]
        for one_of in controls:
            order: list[int] = random.permutation(len(words)).tolist()
            mixed = tuple(int(words[at]) for at in order[:size])
            one_of.append((mixed, drawn, [(at + 1) % size for at in drawn]))
        wanted += [1 / len(one.ids)] * len(asked)
    score, itself, before = _shares(runner, circuits, groups)
    arranged, _, _ = _shares(runner, circuits, [group for one_of in controls for group in one_of])
    control = arranged.reshape(ARRANGED, *score.shape).mean(0)
    return Scored(
        heads=runner.heads,
        score=score,
        chance=np.full(len(runner.heads), np.mean(wanted)),
        control=control,
        measures={"itself": itself, "the one before": before},
        probe={
            "kind": "successor",
            "classes": {one.name: len(one.ids) for one in classes},
            "listed": LISTED,
            "filler": FILLER,
            "seed": runner.seed,
        },
    )


def _shares(
    runner: RoleRunner, circuits: TokenSpace, groups: Sequence[_Group]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether a member raises the one after, itself, or the one before, above the rest of its group [member, head]."""
    ids = list(dict.fromkeys(one for group, _, _ in groups for one in group))
    number = {one: at for at, one in enumerate(ids)}
    values = _values(runner, ids)
    total = sum(len(asked) for _, asked, _ in groups)
    found = np.zeros((3, total, len(runner.heads)))
    for column, head in enumerate(runner.heads):
        layer = circuits.layers[head.layer]
        read = values[head.layer][:, layer.kv_head(head.head)].to(circuits.embedding)
        written = read @ circuits.ov([head])[1]
        row = 0
        for group, asked, after in groups:
            raised = written[[number[one] for one in group]] @ circuits.unembedding[list(group)].T
            if bool((raised != 0).any()):
                best = raised.argmax(1).cpu().numpy()[asked]
                back = np.asarray(asked) - 1
                for at, expected in enumerate((after, asked, back)):
                    found[at, row : row + len(asked), column] = best == expected
            row += len(asked)
    return found[0], found[1], found[2]


class _Lists:
    """Lists, their corrupt, and copied lists; all lists have one length."""

    def __init__(self, runner: RoleRunner) -> None:
        classes = ordered_classes(runner.model)
        start = 0 if runner.model.bos_token_id is None else 1
        needed = FILLER + 2 * LISTED
        length = start + needed
        if runner.model.max_tokens is not None and length > runner.model.max_tokens:
            raise NotAsked(f"its prompts have {length} tokens and the model reads at most {runner.model.max_tokens}")
        members = {one for each in classes for one in each.ids}
        try:
            drawn = random_tokens(
                runner.model, n_prompts=2 * runner.n_prompts, length=length + len(members), seed=runner.seed
            ).prompts
        except TokenError as error:
            raise NotAsked(str(error).rstrip(".")) from error
        fillers = [
            np.concatenate([one[:start], one[start:][~np.isin(one[start:], list(members))][:FILLER]]) for one in drawn
        ]
        places = [(each, at) for each in classes for at in range(len(each.ids)) if each.after(at, LISTED) is not None]
        random = np.random.default_rng(runner.seed)
        random.shuffle(places)  # type: ignore[arg-type]
        made = [_made(filler, places[at % len(places)], random) for at, filler in enumerate(fillers)]
        mine, rest = made[: runner.n_prompts], made[runner.n_prompts :]
        self.prompts, self.corrupt, self.copied = (
            tuple(getattr(one, name) for one in mine) for name in ("prompt", "corrupt", "copied")
        )
        self.choices, self.between, self.copies = (
            Choices(first=np.asarray([one[0] for one in pairs]), second=np.asarray([one[1] for one in pairs]))
            for pairs in ([one.over_last for one in mine], [one.over_twin for one in mine], [one.copy for one in mine])
        )
        self.corpus, self.copied_corpus = (
            Probe(prompts=prompts, controls=None, settings={"kind": "lists, other prompts"})
            for prompts in (tuple(one.prompt for one in rest), tuple(one.copied for one in rest))
        )
        last = len(self.prompts[0]) - 1
        self.listed = np.asarray([[last, last - back] for back in range(LISTED)])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _List:
    """One list, a corrupt one, and a copied list."""

    prompt: Tokens
    corrupt: Tokens
    copied: Tokens
    over_last: tuple[int, int]
    """The successor and the last member."""
    over_twin: tuple[int, int]
    """The successor, and that of the corrupt list."""
    copy: tuple[int, int]
    """z and y of the copied list."""


def _made(filler: Tokens, place: tuple[OrderedClass, int], random: np.random.Generator) -> _List:
    ordered, at = place
    starts = [one for one in range(len(ordered.ids)) if one != at and ordered.after(one, LISTED) is not None]
    other = int(random.choice(starts)) if starts else at
    one, two = ([_member(ordered, first, step) for step in range(LISTED + 1)] for first in (at, other))
    while True:
        x, y, z = (int(each) for each in random.choice(len(ordered.ids), 3, replace=False))
        if ordered.after(y) != ordered.ids[z]:
            break
    x, y, z = (ordered.ids[each] for each in (x, y, z))
    tokens = [np.asarray([*filler, *part]) for part in (one[:-1], two[:-1], [x, y, z, x, y])]
    return _List(
        prompt=tokens[0],
        corrupt=tokens[1],
        copied=tokens[2],
        over_last=(one[-1], one[-2]),
        over_twin=(one[-1], two[-1]),
        copy=(z, y),
    )


def _member(ordered: OrderedClass, first: int, step: int) -> int:
    found = ordered.after(first, step)
    assert found is not None
    return found


def _test(runner: RoleRunner, scored: Scored, heads: Sequence[HeadId]) -> Mapping[HeadId, Mapping[str, Sample]]:
    lists = _Lists(runner)
    found = runner.tests(
        heads,
        lists.prompts,
        lists.choices,
        corpus=lists.corpus,
        places=[lists.listed] * len(lists.prompts),
        sources=lists.corrupt,
        between=lists.between,
    )
    copies = runner.outcome_drops(heads, lists.copied, lists.copies, corpus=lists.copied_corpus)
    for head in heads:
        alike = found[head]["mean"].values / 2 - np.abs(copies[head]["mean"])
        found[head]["look_alike_suppression"] = Sample(values=alike)
    return found


ROLE = Role(
    name="successor",
    order=140,
    letter="+",
    colour="#44aa99",
    sentence="raises the next member of an ordered class, like Tuesday after Monday",
    look_alike="a head that lowers the last token or copies, which acts on copied lists alike; a head that raises the "
    "member itself or the one before",
    score=_score,
    test=_test,
    score_passes=0.1,
    test_passes=0.6,
)
