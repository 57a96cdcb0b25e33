"""The conclusion: every branch of the rule, from evidence made up for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headscope.evidence.behavior.conclusion import RULE, BehaviorEvidence, conclude
from headscope.evidence.behavior.findings import BehaviorControls, DrawnSet, HeadFinding, Induction, Score, SetFinding
from headscope.heads import HeadId
from headscope.records.common import Estimate

A, B = HeadId(1, 0), HeadId(0, 3)


def about(mean, half=0.1):
    return Estimate(mean=mean, ci95=(mean - half, mean + half))


def score(effect=4.0, flips=0.9, right=0.9):
    return Score(
        n_pairs=100,
        n_known=90,
        claimed_minus_true=about(1.0),
        claim_minus_neutral=about(effect),
        claim_minus_twin=about(effect),
        flips=None if flips is None else about(flips, 0.01),
        neutral_accuracy=about(right, 0.02),
    )


def finding(*, carries=True, head=A):
    return HeadFinding(
        head=head,
        triage={"twin": 3.0},
        removed=about(3.0),
        q_value=0.001,
        patched=about(3.0),
        patched_q_value=0.001,
        share=0.75,
        attention=about(0.5),
        direct=None,
        induction=None,
        carries=carries,
        named=carries,
    )


TEAM = SetFinding(
    heads=(A,),
    removed=about(3.0),
    q_value=0.001,
    patched=about(3.0),
    patched_q_value=0.001,
    share=0.75,
    neutral_share=0.7,
    paraphrase_removed=about(3.0),
    paraphrase_share=0.75,
    flips_before=about(0.9),
    flips_after=about(0.1),
    accuracy_before=about(0.9),
    accuracy_after=about(0.88),
    text_loss_nats=about(0.0),
    carries=True,
)
DRAW = DrawnSet(kind="random", heads=(B,), removed=about(0.2), flips=about(0.9))
INDUCTION = Induction(heads=(A, B), common=(A,), p_value=0.1, patched=about(3.0), share=0.9, others_share=0.1)
DRAWS = tuple(replace(DRAW, heads=(HeadId(0, one),)) for one in range(3))
CONTROLS = BehaviorControls(
    draws=(*DRAWS, DRAWS[0]),  # one set came up in two kinds
    set_removed=about(2.5),
    induction=None,
    others=(),
    search_pairs=32,
    held_out_pairs=48,
    tests=6,
)
LOCALISED = BehaviorEvidence(
    behavior="sycophancy",
    score=score(),
    verbatim=score(),
    paraphrase=score(),
    heads=(finding(),),
    head_set=TEAM,
    controls=CONTROLS,
    n_heads=16,
)
COPYING = replace(LOCALISED, paraphrase=score(effect=0.05), controls=replace(CONTROLS, induction=INDUCTION))

CASES = {
    "all holds": (
        LOCALISED,
        "localised",
        "the most that one of 3 random sets removes is +0.20 against +2.50 nats in the same",
    ),
    "no effect": (replace(LOCALISED, score=score(effect=0.05)), "no sycophancy measured", "not significantly"),
    "too few turned": (replace(LOCALISED, score=score(flips=0.05)), "no sycophancy measured", "it takes 10%"),
    "nothing known": (replace(LOCALISED, score=score(flips=None)), "no sycophancy measured", "no answer right"),
    "known by chance": (replace(LOCALISED, score=score(right=0.51)), "no sycophancy measured", "of its own"),
    "copies": (COPYING, "copying (induction heads)", "patching the 2 induction heads removes 90% of it"),
    "copies, knowing nothing": (replace(COPYING, score=score(right=0.5)), "copying (induction heads)", "by chance"),
    "a fifth is left": (replace(COPYING, paraphrase=score(effect=0.8)), "copying (induction heads)", "+0.80"),
    "a third is left": (replace(COPYING, paraphrase=score(effect=1.4)), "localised", "cannot be copied"),
    "others copy as much": (
        replace(COPYING, controls=replace(CONTROLS, induction=replace(INDUCTION, others_share=0.95))),
        "localised",
        "patching as many others 95%",
    ),
    "nowhere to look for induction heads": (replace(COPYING, controls=CONTROLS), "localised", "do not fit the model"),
    "no induction heads": (
        replace(COPYING, controls=replace(CONTROLS, induction=replace(INDUCTION, heads=(), common=(), patched=None))),
        "localised",
        "no head attends as an induction",
    ),
    "too few pairs to copy in": (
        replace(COPYING, controls=replace(CONTROLS, induction=replace(INDUCTION, patched=None, share=None))),
        "localised",
        "too few held-out pairs",
    ),
    "no paraphrase": (replace(LOCALISED, paraphrase=None), "localised", "copying is not ruled out"),
    "a small share": (replace(LOCALISED, head_set=replace(TEAM, share=0.3)), "diffuse", "L1H0 each carry some"),
    "a small share of paraphrases": (
        replace(LOCALISED, head_set=replace(TEAM, paraphrase_share=0.2)),
        "diffuse",
        "20%",
    ),
    "no head alone": (
        replace(LOCALISED, heads=(finding(carries=False),), head_set=replace(TEAM, share=0.3)),
        "no localised heads found",
        "should carry 50%",
    ),
    "a set that carries nothing": (
        replace(LOCALISED, heads=(finding(carries=False),), head_set=replace(TEAM, carries=False)),
        "no localised heads found",
        "not the set of at most 2 that was grown or shrunk from them head by head",
    ),
    "heads without a set": (replace(LOCALISED, head_set=None), "diffuse", "at most 2"),
    "random sets do as much": (
        replace(LOCALISED, controls=replace(CONTROLS, draws=(DRAW, replace(DRAW, removed=about(2.6))))),
        "no localised heads found",
        "a random set removes as much, +2.60 against +2.50 nats in the same pairs",
    ),
    "no neutral prompt tells what is known": (
        replace(LOCALISED, score=replace(score(), claim_minus_neutral=None)),
        "localised",
        "where the true one is claimed 90% are right",
    ),
    "no other heads": (
        replace(LOCALISED, controls=replace(CONTROLS, draws=())),
        "no localised heads found",
        "no other heads",
    ),
    "the model forgets": (
        replace(LOCALISED, head_set=replace(TEAM, accuracy_after=about(0.8))),
        "no localised heads found",
        "do more than this",
    ),
    "no neutral prompts": (
        replace(LOCALISED, head_set=replace(TEAM, accuracy_before=None, accuracy_after=None)),
        "localised",
        "no neutral prompts",
    ),
}


@pytest.mark.parametrize(("evidence", "conclusion", "says"), CASES.values(), ids=CASES)
def test_the_rule(evidence, conclusion, says):
    found, reasons = conclude(evidence)
    assert found == conclusion
    assert says in " / ".join(reasons)


def test_another_behaviour_is_named_in_the_conclusion():
    assert conclude(replace(LOCALISED, behavior="closing brackets", score=score(effect=0.0)))[0] == (
        "no closing brackets measured"
    )


def test_both_contrasts_must_show_it():
    # Some words of a claim, whatever they say, may unsettle an answer: the true claim must not do the same.
    only_over_neutral = replace(score(), claim_minus_twin=about(0.05))
    assert conclude(replace(LOCALISED, score=only_over_neutral))[0] == "no sycophancy measured"


@pytest.mark.parametrize(("n_heads", "largest"), [(8, 2), (16, 2), (144, 8), (1024, 52)])
def test_few_heads_are_a_twentieth_and_at_least_two(n_heads, largest):
    assert RULE.largest_set(n_heads) == largest
