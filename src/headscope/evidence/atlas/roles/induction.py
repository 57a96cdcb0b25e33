"""Induction: attends to what followed earlier copies of the current token, and the loss on repetition depends on it.

Beside the tests of every detector (`looking`):

    transfer          where other heads have a stripe too: the loss that restoring this head alone recovers while all of
                      them stay ablated
    over_first_copy   the change of the second copy's loss minus that of the first's; shown, and decides nothing
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headscope.evidence.atlas.looking import on_repeats, places_of, scored_by, targets_of
from headscope.evidence.atlas.role import Role, Scored
from headscope.evidence.atlas.runner import RoleRunner
from headscope.evidence.atlas.samples import Sample
from headscope.heads import HeadId
from headscope.interventions.ablation import losses

_PLACES = places_of("induction")


def _test(runner: RoleRunner, scored: Scored, heads: Sequence[HeadId]) -> Mapping[HeadId, Mapping[str, Sample]]:
    stripe = frozenset(runner.induction_heads)
    found = on_repeats(runner, dict.fromkeys(heads, _PLACES), name="induction")
    restored = {}
    if len(stripe) > 1:
        worlds = [stripe, *(stripe - {head} for head in heads)]
        ablator, prompts = runner.copy_ablators["mean"], runner.held_out.prompts
        rows = losses(ablator, prompts, runner.copy_queries, worlds, base=stripe)["second_copy"]
        restored = {head: {"transfer": Sample(values=rows[0] - row)} for head, row in zip(heads, rows[1:], strict=True)}
    for head in heads:
        found[head] |= restored.get(head, {})
        extra = runner.removal(head, "mean second_copy") - runner.removal(head, "mean first_copy")
        found[head]["over_first_copy"] = Sample(values=extra)
    return found


ROLE = Role(
    name="induction",
    order=10,
    letter="I",
    colour="#0072b2",
    sentence="attends to what followed earlier copies of the token, and repetition is predicted by it",
    look_alike="a fixed offset passes for it on one period: period, prefix and gaps vary, and on the control nothing "
    "repeats; suppression looks alike: it comes out as interferer",
    score=scored_by("induction"),
    test=_test,
    targets=targets_of("induction"),
    score_passes=2.5,
)
