"""Function vector: what it writes after examples of a task makes a prompt without examples do that task.

    examples        [start]  a b c : a   d e f : d   g h i : g   j k l :      the task is "the first of three", or
                    [start]  a b c : c   d e f : f   g h i : i   j k l :      "the last of three"
    no example      [start]  q r s :
    m(task)         mean of the head's z at the last token over prompts with examples of the task
    score           P(q | m(first)) - P(q | m(last)) where no example is, with the head's z at the last token replaced;
                    P(q) = 1 / (1 + exp(logit(s) - logit(q)))
    chance          0
    control         the same with two means, each over examples of both tasks
    zero, mean      drop of logit(answer) - logit(the other task's answer) after examples
    specific        the same drop when the head no longer reads the examples
    transfer        half of logit(q) - logit(s) under m(first), minus the same under m(last), where no example is
    look_alike_mover    half the transfer, minus how far z of one prompt of the other task, but with the same answer,
                    raises that answer: what carries the answer raises it, what carries the task lowers it

Random tokens, and a colon where the tokenizer has one (any token otherwise). Both tasks are asked with the same lists,
and with each list reversed: every place and every answer has the same tokens in both, so that a head which carries
tokens, like a mover or an induction head, has two means alike.

The score takes interventions, so a quick atlas does not ask for it.

Cost: two passes of single heads for the means and two for the control, on prompts of five tokens.

Reference:
    Todd et al. 2024, arXiv:2310.15213, whose score is taken where examples have shuffled answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from headscope.errors import TokenError
from headscope.evidence.atlas.role import Role, Scored
from headscope.evidence.atlas.runner import RoleRunner
from headscope.evidence.atlas.samples import NotAsked, Sample
from headscope.evidence.atlas.words import all_known, token_ids
from headscope.heads import HeadId
from headscope.interventions.ablation import AblatedHeads, losses
from headscope.interventions.choices import Choices
from headscope.interventions.patch import LastPatch
from headscope.model.attention import Attention
from headscope.probes.probe import Probe, Tokens
from headscope.probes.repeated import random_tokens

SIZE = 3
"""Tokens in a list."""
EXAMPLES = 3
"""Examples before the list that is asked."""
ARROWS = (":", "=", "\n")
TASKS = (0, SIZE - 1)
"""Which of the list is the answer: the first, or the last."""
LEAST = 0.1
"""Least score; single heads of function vectors move little."""


class _Prompts:
    """Prompts with examples of both tasks, and prompts without."""

    def __init__(self, runner: RoleRunner) -> None:
        start = 0 if runner.model.bos_token_id is None else 1
        length = start + EXAMPLES * (SIZE + 2) + SIZE + 1
        if runner.model.max_tokens is not None and length > runner.model.max_tokens:
            raise NotAsked(f"its prompts have {length} tokens and the model reads at most {runner.model.max_tokens}")
        n_lists = 2 * math.ceil(runner.n_prompts / 4)
        needed = SIZE * (EXAMPLES + 1)
        try:
            drawn = random_tokens(
                runner.model, n_prompts=2 * n_lists + runner.n_prompts, length=start + needed + 2, seed=runner.seed
            ).prompts
        except TokenError as error:
            raise NotAsked(str(error).rstrip(".")) from error
        self._head = drawn[0][:start]
        arrow = _arrow(runner)
        self.arrow: int = int(drawn[0][-1]) if arrow is None else arrow
        bodies = [one[start:][one[start:] != self.arrow][:needed] for one in drawn]
        if any(len(np.unique(one)) < needed for one in bodies):
            raise NotAsked(f"its prompts need {needed + 1} different tokens")
        lists = [one.reshape(EXAMPLES + 1, SIZE) for one in bodies]
        asked, others, unseen = lists[:n_lists], lists[n_lists : 2 * n_lists], lists[2 * n_lists :]
        both = [(one, turned) for one in asked for turned in (one, one[:, ::-1])]
        self.of_task = {task: tuple(self._shown(each, task) for _, each in both) for task in TASKS}
        # The same prompts in two parts that hold both tasks alike: lists by turns of one task and the other.
        self.mixed = tuple(
            tuple(self.of_task[TASKS[(at // 2 + part) % 2]][at] for at in range(len(both))) for part in (0, 1)
        )
        own = [(one, task) for one in asked for task in TASKS][: runner.n_prompts]
        self.shown = tuple(self._shown(*one) for one in own)
        self.answers = _choices([(one[-1], task) for one, task in own])
        self.corpus = Probe(
            prompts=tuple(self._shown(one, task) for one in others for task in TASKS),
            controls=None,
            settings={"kind": "examples, other prompts"},
        )
        last = length - 1
        self.examples = np.asarray([[last, key] for key in range(start, start + EXAMPLES * (SIZE + 2))])
        self.bare = tuple(np.concatenate([self._head, one[-1], [self.arrow]]) for one in unseen)
        self.ends = _choices([(one[-1], TASKS[0]) for one in unseen])
        # By turns: the list that is asked, turned round, after examples of the task whose answer is then the same.
        turns = [TASKS[at % 2] for at in range(len(unseen))]
        self.same_answer = tuple(
            self._shown(np.concatenate([asked[at % n_lists][:-1], one[-1:, ::-1]]), TASKS[1 - at % 2])
            for at, one in enumerate(unseen)
        )
        self.by_turns = _choices([(one[-1], task) for one, task in zip(unseen, turns, strict=True)])

    def _shown(self, lists: np.ndarray, task: int) -> Tokens:
        told = [np.asarray([*one, self.arrow, one[task]]) for one in lists[:-1]]
        return np.concatenate([self._head, *told, np.asarray([*lists[-1], self.arrow])])


def _choices(asked: Sequence[tuple[np.ndarray, int]]) -> Choices:
    """The task's answer against the other task's, for each list."""
    return Choices(
        first=np.asarray([one[task] for one, task in asked]),
        second=np.asarray([one[SIZE - 1 - task] for one, task in asked]),
    )


def _arrow(runner: RoleRunner) -> int | None:
    """The token between a list and its answer."""
    if runner.model.tokenizer is None:
        return None
    read = [token_ids(runner.model, text) for text in ARROWS]
    return next((ids[0] for ids in read if len(ids) == 1 and all_known(runner.model, ids)), None)


def _mean_z(runner: RoleRunner, prompts: Sequence[Tokens]) -> dict[tuple[int, int], Tensor]:
    """Mean of every head's z at the last token [head, d_head], by layer and call."""
    found: dict[tuple[int, int], Tensor] = {}

    def visit(attention: Attention) -> None:
        wide = torch.promote_types(attention.z.dtype, torch.float32)
        found[attention.layer, attention.call] = attention.z[:, -1].to(wide).mean(0)

    rows = torch.as_tensor(np.stack(prompts)).to(runner.model.device)
    runner.model.run(rows, visit, stop_at_last=True)
    return found


def _share(difference: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return (1 + np.tanh(difference / 2)) / 2


def _under_means(runner: RoleRunner, prompts: _Prompts) -> dict[str, np.ndarray]:
    """Logit(q) - logit(s) [prompt, head] where no example is, under each of the four means of each head alone."""
    worlds: list[AblatedHeads] = [frozenset([head]) for head in runner.heads]
    named = {"first": prompts.of_task[TASKS[0]], "last": prompts.of_task[TASKS[1]]}
    named |= {"one part": prompts.mixed[0], "other part": prompts.mixed[1]}
    found: dict[str, np.ndarray] = {}
    for name, shown in named.items():
        patch = LastPatch(model=runner.model, z=_mean_z(runner, shown))
        found[name] = losses(patch, prompts.bare, prompts.ends, worlds)["difference"].T
    return found


def _score(runner: RoleRunner) -> Scored:
    prompts = _Prompts(runner)
    found = runner.kept("function_vector", lambda: _under_means(runner, prompts))
    return Scored(
        heads=runner.heads,
        score=_share(found["first"]) - _share(found["last"]),
        chance=np.zeros(len(runner.heads)),
        control=_share(found["one part"]) - _share(found["other part"]),
        probe={
            "kind": "function_vector",
            "n_prompts": runner.n_prompts,
            "examples": EXAMPLES,
            "arrow": prompts.arrow,
            "seed": runner.seed,
        },
    )


def _test(runner: RoleRunner, scored: Scored, heads: Sequence[HeadId]) -> Mapping[HeadId, Mapping[str, Sample]]:
    prompts = _Prompts(runner)
    under = runner.kept("function_vector", lambda: _under_means(runner, prompts))
    drops = runner.outcome_drops(heads, prompts.shown, prompts.answers, corpus=prompts.corpus)
    places = [prompts.examples] * len(prompts.shown)
    specific = runner.outcome_without(heads, prompts.shown, prompts.answers, places)
    lowered = runner.moved(heads, prompts.bare, prompts.same_answer, prompts.by_turns)
    found: dict[HeadId, dict[str, Sample]] = {}
    for head in heads:
        at = scored.heads.index(head)
        transfer = (under["first"][:, at] - under["last"][:, at]) / 2
        values = drops[head] | ({"specific": specific[head]} if head in specific else {})
        values |= {"transfer": transfer, "look_alike_mover": transfer / 2 + lowered[head]}
        found[head] = {name: Sample(values=one) for name, one in values.items()}
    return found


ROLE = Role(
    name="function_vector",
    order=125,
    letter="A",
    colour="#661100",
    sentence="after examples of a task writes what makes a prompt without examples do that task",
    look_alike="a mover or an induction head, which carry tokens: both tasks have the same tokens in every place, and "
    "what a prompt of the other task with the same answer writes must not raise that answer",
    least=LEAST,
    score=_score,
    test=_test,
    score_intervenes=True,
    score_passes=12.8,
    test_passes=0.5,
)
