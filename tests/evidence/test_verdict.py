"""The rule, branch by branch: what each verdict takes, at its edges, and that its reasons say by which numbers."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from headscope.evidence.copying import Copying
from headscope.evidence.offsets import BestOffset
from headscope.evidence.scan.result import HeadScore
from headscope.evidence.verify.evidence import RULE, Evidence, Restored, VerdictRule, direct, has_stripe, q_text
from headscope.evidence.verify.verdict import VERDICTS, judge
from headscope.heads import HeadId
from headscope.records.common import Estimate

HEAD = HeadId(1, 2)


def around(mean, half=0.01):
    return Estimate(mean=mean, ci95=(mean - half, mean + half))


def score(role, mean, *, gone=None):
    """A role's attention; `gone` is what is lost on the control."""
    return HeadScore(
        head=HEAD,
        detector=role,
        mean=mean,
        ci95=(mean - 0.01, mean + 0.01),
        chance=0.03,
        control=None if gone is None else mean - gone,
        selectivity=None if gone is None else around(gone),
        n_prompts=8,
    )


def copies(mean, *, ci95="around", eigenvalue=0.5):
    interval = (mean - 0.01, mean + 0.01) if ci95 == "around" else ci95
    return Copying(heads=(HEAD,), eigenvalue=eigenvalue, direct=Estimate(mean=mean, ci95=interval), top1=0.5)


def change(mean, q=0.001, half=0.01):
    return Restored(delta_loss_nats=around(mean, half), q_value=q)


def head(stripe=0.05, gone=None, *, previous=0.05, duplicate=0.05, duplicate_gone=None, first=0.05, **known):
    """Everything about a head that has no role, but for what is named."""
    evidence = Evidence(
        head=HEAD,
        scores={
            "induction": score("induction", stripe, gone=stripe if gone is None else gone),
            "previous_token": score("previous_token", previous, gone=0.0),
            "duplicate_token": score(
                "duplicate_token", duplicate, gone=duplicate if duplicate_gone is None else duplicate_gone
            ),
            "first_token": score("first_token", first, gone=0.0),
        },
        offset=BestOffset(offset=7, mean=0.1),
        copying=copies(0.2),
        removed=None,
        first_copy=None,
        over_first_copy=None,
        over_random=None,
        put_back=None,
        behind=(HeadId(1, 3),),
    )
    return replace(evidence, **known)


def striped(delta=1.0, q=0.001, **known):
    """An induction head, but for what is named."""
    given = dict(
        removed=change(delta, q),
        first_copy=around(0.0),
        over_first_copy=around(delta),
        over_random=around(delta),
        put_back=None,
    )
    return head(0.9, **(given | known))


def verdict(evidence, rule=RULE):
    named, reasons = judge(evidence, rule)
    assert named in VERDICTS
    assert reasons, "every verdict has a reason"
    assert all(reason and "\n" not in reason and not reason.endswith(".") for reason in reasons)
    return named


def reasons(evidence, rule=RULE):
    return "; ".join(judge(evidence, rule)[1])


# ---- one branch after the other, in the rule's order


LOWERS = dict(removed=change(-0.5), over_first_copy=around(-0.5), over_random=around(-0.5))
"""The second copy is better off without the head."""
IDLE = dict(removed=change(0.0, q=1.0), over_first_copy=around(0.0), over_random=around(0.0))


def test_a_stripe_whose_removal_lowers_the_loss_is_anti_induction():
    anti = striped(**LOWERS, copying=copies(-0.3))
    assert verdict(anti) == "anti_induction"
    assert "lowers the token it attends to: direct copying -0.30" in reasons(anti)
    assert "lower than the first copy's change, by -0.500" in reasons(anti)
    # Each condition of `effect`, mirrored.
    assert verdict(replace(anti, removed=change(-0.0099))) == "attends_only"
    assert verdict(replace(anti, removed=change(-0.5, q=0.06))) == "attends_only"
    assert verdict(replace(anti, over_first_copy=around(0.0))) == "attends_only"
    assert verdict(replace(anti, over_random=around(0.0), copying=None)) == "attends_only"


def test_that_the_direct_path_suppresses_is_no_anti_induction():
    # A head that writes -0.002: its direct score is -1, whatever the size, and nothing depends on it.
    faint = striped(**IDLE, copying=copies(-1.0), put_back=change(-0.0002, q=0.001))
    assert verdict(faint) == "attends_only"
    assert "adds nothing behind others" in reasons(faint)


def test_a_suppressor_that_a_strong_copier_masks_is_anti_induction_behind_it():
    masked = striped(**IDLE, copying=copies(-0.3), put_back=change(-2.0))
    assert verdict(masked) == "anti_induction"
    assert "works against it behind others" in reasons(masked)


def test_the_effect_decides_and_a_direct_path_that_contradicts_it_is_told():
    says = "its direct path says the opposite; the effect decides"
    assert verdict(striped(copying=copies(-1.0))) == "induction"
    assert says in reasons(striped(copying=copies(-1.0)))
    assert verdict(striped(**LOWERS, copying=copies(1.0))) == "anti_induction"
    assert says in reasons(striped(**LOWERS, copying=copies(1.0)))
    behind = striped(**IDLE, copying=copies(-1.0), put_back=change(2.0))
    assert verdict(behind) == "redundant_induction"
    assert says in reasons(behind)
    for agreeing in (striped(), striped(copying=None), striped(**LOWERS, copying=copies(-0.3))):
        assert says not in reasons(agreeing)


def test_a_stripe_that_matters_is_induction():
    assert verdict(striped()) == "induction"
    # What others would do in its place is not asked then.
    assert verdict(striped(put_back=change(0.0, q=1.0))) == "induction"


def test_a_stripe_that_matters_is_induction_also_where_copying_is_weak_or_not_known():
    # Half of a pair that copies together may not copy alone, and layers in between may turn what is read.
    neither, unknown = striped(copying=copies(0.01)), striped(copying=None)
    assert verdict(neither) == verdict(unknown) == "induction"
    assert "neither raises nor lowers the token it attends to by much: direct copying +0.01" in reasons(neither)
    assert "copying is not known: its weights cannot be assigned to heads" in reasons(unknown)


def test_a_stripe_that_matters_behind_others_is_redundant_induction():
    behind = striped(0.0, q=0.8, over_first_copy=around(0.0), over_random=around(0.0), put_back=change(2.0, 1e-6))
    assert verdict(behind) == "redundant_induction"
    assert (
        "does its work behind others: while the other head with a stripe or a part of one stays ablated, restoring it "
        "lowers the second copy's loss by +2.000 [+1.990, +2.010] nats, q 1e-06" in reasons(behind)
    )
    assert verdict(replace(behind, copying=None)) == "redundant_induction"


def test_a_stripe_alone_attends_only():
    alone = striped(0.0, q=1.0, over_first_copy=around(0.0), over_random=around(0.0))
    assert verdict(alone) == "attends_only"
    nothing = replace(alone, put_back=change(0.0, q=1.0))
    assert verdict(nothing) == "attends_only"
    assert "adds nothing behind others" in reasons(nothing)
    assert "tried were its removal alone and behind all those others, not with some of them" in reasons(nothing)
    # Not tried, not known: no induction head is named on attention alone.
    untried = head(0.95)
    assert verdict(untried) == "attends_only"
    assert "its removal was not tried" in reasons(untried)


@pytest.mark.parametrize("role", ["previous_token", "duplicate_token", "first_token"])
def test_without_a_stripe_the_role_is_what_it_attends_to(role):
    attended = head(**{role.split("_")[0]: 0.6})
    assert verdict(attended) == role
    assert "0.60 [0.59, 0.61], by chance 0.03" in reasons(attended)


def test_a_head_that_looks_a_fixed_distance_back_is_positional():
    positional = head(offset=BestOffset(offset=7, mean=0.8))
    assert verdict(positional) == "positional"
    assert reasons(positional) == "looks 7 tokens back whatever they are: 0.80 where nothing repeats"
    assert verdict(replace(positional, offset=None)) == "none"


def test_roles_come_in_the_rules_order():
    evidence = head(0.9, previous=0.6, duplicate=0.6, first=0.6, offset=BestOffset(offset=7, mean=0.8))
    assert verdict(evidence) == "attends_only"  # its stripe comes first
    assert verdict(without(evidence, "induction")) == "previous_token"
    assert verdict(without(evidence, "induction", "previous_token")) == "duplicate_token"
    assert verdict(without(evidence, "induction", "previous_token", "duplicate_token")) == "positional"
    last = replace(without(evidence, "induction", "previous_token", "duplicate_token"), offset=None)
    assert verdict(last) == "first_token"
    assert verdict(without(last, "first_token")) == "none"


def without(evidence, *roles):
    return replace(evidence, scores={role: one for role, one in evidence.scores.items() if role not in roles})


def test_none_says_what_it_looks_at_most():
    evidence = head(0.12, first=0.31)
    assert verdict(evidence) == "none"
    assert reasons(evidence) == (
        "attends to the tokens after earlier copies only 0.12 (it takes 0.4); most to first token, 0.31"
    )
    assert reasons(replace(evidence, scores={})) == "no role was scored"


def test_none_with_a_stripe_on_the_control_too_says_so():
    evidence = head(0.6, gone=0.1)
    assert verdict(evidence) == "none"
    assert reasons(evidence) == (
        "attends to the tokens after earlier copies: 0.60 [0.59, 0.61], by chance 0.03, on the control 0.50, "
        "so not for what the tokens are"
    )


def test_a_head_without_a_stripe_that_matters_is_called_by_its_role_and_else_matters():
    given = dict(removed=change(3.0), over_first_copy=around(3.0), over_random=around(3.0), first_copy=around(0.2))
    told = "removing it changes the second copy's loss by +3.000 [+2.990, +3.010] nats, q 0.001"
    for evidence in (head(previous=0.6), head(duplicate=0.6), head(offset=BestOffset(offset=3, mean=0.9))):
        matters = replace(evidence, **given)
        assert verdict(matters) == verdict(evidence)
        assert reasons(matters).endswith(told)
    # Resting on the first token is no role that could explain an effect.
    for evidence in (head(), head(first=0.6), head(0.39)):
        matters = replace(evidence, **given)
        assert verdict(matters) == "matters"
        assert f"{told}; the first copy's loss by +0.200" in reasons(matters)
    # Up or down, by enough, and significantly.
    assert verdict(head(removed=change(-0.01))) == "matters"
    assert verdict(head(removed=change(0.0099))) == "none"
    assert verdict(head(removed=change(3.0, q=0.06))) == "none"


@pytest.mark.parametrize("stripe", [0.1, 0.39])
def test_a_part_of_a_stripe_that_does_its_work_behind_others_is_redundant_induction(stripe):
    behind = head(stripe, **IDLE, put_back=change(2.0), interchangeable=(HeadId(1, 3),))
    assert verdict(behind) == "redundant_induction"
    assert "interchangeable with L1H3: any one of them alone does at least 90%" in reasons(behind)
    assert verdict(replace(behind, put_back=change(0.0))) == "none"
    assert verdict(replace(behind, removed=change(1.0))) == "matters"  # by itself, so not behind others
    assert verdict(replace(behind, scores=head(0.0999).scores)) == "none"


# ---- each condition of `matters`


def test_removal_must_hurt_by_enough():
    # At 0.01 nats exactly it is enough.
    controls = dict(over_first_copy=around(1.0), over_random=around(1.0))
    assert verdict(striped(0.01, **controls)) == "induction"
    assert verdict(striped(0.0099, **controls)) == "attends_only"
    assert verdict(striped(-1.0, **controls)) == "attends_only"


def test_removal_must_hurt_significantly():
    assert verdict(striped(q=0.05)) == "induction"
    assert verdict(striped(q=0.0501)) == "attends_only"
    assert "less than 0.01 nats, or not significant" in reasons(striped(q=0.0501))


@pytest.mark.parametrize(
    ("field", "said"),
    [("over_first_copy", "the first copy's change"), ("over_random", "removing another head of its layer does")],
)
def test_removal_must_hurt_more_than_each_control(field, said):
    # Above zero is the whole interval, not the mean alone.
    for difference in (
        around(-1.0),
        around(0.0),
        Estimate(mean=0.5, ci95=(-0.1, 1.1)),
        Estimate(mean=0.5, ci95=(0.0, 1.0)),
    ):
        fails = striped(copying=copies(0.0), **{field: difference})
        assert verdict(fails) == "attends_only"
        assert f"not more than {said} (difference {difference.mean:+.3f}" in reasons(fails)
    passes = striped(**{field: Estimate(mean=0.5, ci95=(0.001, 0.999))})
    assert verdict(passes) == "induction"
    assert f"more than {said}, by +0.500 [+0.001, +0.999] nats" in reasons(passes)


def test_a_head_that_copies_is_not_dismissed_because_its_neighbours_matter_as_much():
    # Another head's importance is no null distribution; the first copy's change still is.
    beside = striped(over_random=around(-1.0), copying=copies(0.3))
    assert verdict(beside) == "induction"
    assert "but its direct path agrees with the effect" in reasons(beside)
    assert verdict(replace(beside, over_first_copy=around(0.0))) == "attends_only"
    for says_nothing in (copies(0.0), copies(-0.3), None):
        assert verdict(replace(beside, copying=says_nothing)) == "attends_only"


def test_without_random_heads_to_match_the_other_conditions_decide_and_it_is_told():
    alone = striped(over_random=None)
    assert verdict(alone) == "induction"
    assert "too few other heads without a stripe in its layer to compare it with" in reasons(alone)
    assert verdict(replace(alone, over_first_copy=around(0.0))) == "attends_only"


def test_one_prompt_has_no_interval_and_its_mean_decides():
    one = striped(
        removed=Restored(delta_loss_nats=Estimate(mean=1.0, ci95=None), q_value=0.001),
        over_first_copy=Estimate(mean=0.9, ci95=None),
        over_random=Estimate(mean=0.9, ci95=None),
    )
    assert verdict(one) == "induction"
    assert "by +1.000 nats, q 0.001" in reasons(one)
    assert verdict(replace(one, over_first_copy=Estimate(mean=0.0, ci95=None))) == "attends_only"
    # But a test from one prompt has p = 1, which says nothing.
    assert verdict(replace(one, removed=replace(one.removed, q_value=1.0))) == "attends_only"


# ---- each condition of `matters behind`, `copies` and the roles


@pytest.mark.parametrize(
    ("back", "named"),
    [
        (change(0.01, q=0.05), "redundant_induction"),
        (change(0.0099, q=0.001), "attends_only"),
        (change(2.0, q=0.0501), "attends_only"),
        (change(-0.0099, q=0.001), "attends_only"),
        (change(-2.0, q=0.001), "anti_induction"),
    ],
)
def test_putting_back_must_help_by_enough_and_significantly(back, named):
    assert verdict(striped(0.0, q=1.0, put_back=back)) == named


@pytest.mark.parametrize(
    ("copying", "says", "lowers"),
    [
        (copies(0.05), "raises", False),
        (copies(0.049), "neither raises nor lowers", False),
        (copies(0.3, ci95=(-0.1, 0.7)), "neither raises nor lowers", False),
        (copies(0.3, ci95=(0.0, 0.6)), "neither raises nor lowers", False),
        (copies(-0.05), "lowers", True),
        (copies(-0.049), "neither raises nor lowers", False),
        (copies(-0.3, ci95=(-0.7, 0.1)), "neither raises nor lowers", False),
        (copies(0.3, ci95=None), "raises", False),
        (copies(-0.3, ci95=None), "lowers", True),
        (copies(0.0, eigenvalue=None), "neither raises nor lowers", False),
    ],
)
def test_copying_needs_its_size_and_its_interval(copying, says, lowers):
    assert (direct(copying) == "suppresses") == lowers
    evidence = striped(0.0, q=1.0, copying=copying)
    assert verdict(evidence) == "attends_only"
    shown = "none" if copying.eigenvalue is None else "+0.50"
    assert f"{says} the token it attends to" in reasons(evidence)
    assert f"direct copying {copying.direct.mean:+.2f}, eigenvalue score {shown}" in reasons(evidence)


def test_copying_that_is_not_known_does_not_suppress():
    assert direct(None) == "unknown"


@pytest.mark.parametrize(
    ("mean", "gone", "has"),
    [(0.4, 0.2, True), (0.3999, 0.3999, False), (0.9, 0.45, True), (0.9, 0.44, False), (0.9, -0.1, False)],
)
def test_a_stripe_needs_its_size_and_its_half_that_is_gone(mean, gone, has):
    assert has_stripe(head(mean, gone).scores) == has
    assert (verdict(head(mean, gone)) == "attends_only") == has
    # The same of a duplicate-token head, the other role about content.
    assert (verdict(head(duplicate=mean, duplicate_gone=gone)) == "duplicate_token") == has


def test_without_a_control_the_size_alone_decides():
    bare = head(scores={"induction": score("induction", 0.5)})
    assert has_stripe(bare.scores)
    assert verdict(bare) == "attends_only"
    assert "on the control" not in reasons(bare)
    assert not has_stripe({})


def test_roles_about_places_do_not_mind_the_control():
    # Of `previous` and `first` nothing is gone in these heads, and 0.4 is enough.
    assert verdict(head(previous=0.4)) == "previous_token"
    assert verdict(head(first=0.4)) == "first_token"
    assert verdict(head(previous=0.3999, first=0.3999)) == "none"
    assert verdict(head(offset=BestOffset(offset=2, mean=0.4))) == "positional"
    assert verdict(head(offset=BestOffset(offset=2, mean=0.3999))) == "none"


# ---- the numbers of the rule

BY_NUMBER = {
    # number: (evidence, its verdict, another value of the number, the verdict then)
    "attention": (striped(**IDLE), "attends_only", 0.95, "none"),
    "lost_on_control": (
        replace(striped(**IDLE), scores=head(0.9, gone=0.6).scores), "attends_only", 0.7, "none",
    ),
    "copying": (striped(copying=copies(0.1), over_random=around(0.0)), "induction", 0.2, "attends_only"),
    "partial_stripe": (head(0.2, put_back=change(1.0)), "redundant_induction", 0.3, "none"),
    "delta_loss_nats": (striped(0.5), "induction", 0.6, "attends_only"),
    "false_discovery": (striped(q=0.04), "induction", 0.03, "attends_only"),
}  # fmt: skip


def test_these_are_all_numbers_and_the_published_ones():
    assert {field.name: field.default for field in fields(VerdictRule)} == {
        "attention": 0.4,
        "lost_on_control": 0.5,
        "copying": 0.05,
        "delta_loss_nats": 0.01,
        "false_discovery": 0.05,
        "partial_stripe": 0.1,
        "suffices": 0.9,
    }
    # `suffices` changes no verdict, but who is said to be interchangeable.
    assert set(BY_NUMBER) | {"suffices"} == {field.name for field in fields(VerdictRule)}
    assert VerdictRule() == RULE


@pytest.mark.parametrize("number", BY_NUMBER)
def test_another_number_gives_another_verdict(number):
    evidence, first, value, then = BY_NUMBER[number]
    assert verdict(evidence) == first
    assert verdict(evidence, VerdictRule(**{number: value})) == then


@pytest.mark.parametrize("role", ["previous", "duplicate", "first"])
def test_the_number_for_attention_is_that_of_every_role(role):
    evidence = head(**{role: 0.5})
    assert verdict(evidence) == f"{role}_token"
    assert verdict(evidence, VerdictRule(attention=0.6)) == "none"
    positional = head(offset=BestOffset(offset=4, mean=0.5))
    assert verdict(positional, VerdictRule(attention=0.6)) == "none"


def test_the_numbers_for_change_are_those_of_putting_back_too():
    behind = striped(0.0, q=1.0, put_back=change(0.5, q=0.04))
    assert verdict(behind) == "redundant_induction"
    assert verdict(behind, VerdictRule(delta_loss_nats=0.6)) == "attends_only"
    assert verdict(behind, VerdictRule(false_discovery=0.03)) == "attends_only"


def test_reasons_quote_the_rules_own_numbers():
    rule = VerdictRule(attention=0.7, delta_loss_nats=0.25)
    assert "(it takes 0.7)" in reasons(head(0.6), rule)
    assert "less than 0.25 nats, or not significant" in reasons(striped(0.1), rule)


def test_the_reasons_of_an_induction_head_name_every_number_it_rests_on():
    told = striped(
        1.25,
        q=3e-7,
        removed=Restored(delta_loss_nats=Estimate(mean=1.25, ci95=(1.1, 1.4)), q_value=3e-7),
        over_first_copy=Estimate(mean=1.2, ci95=(1.0, 1.4)),
        over_random=Estimate(mean=1.15, ci95=(0.9, 1.4)),
        copying=copies(0.42, eigenvalue=0.87),
    )
    assert judge(told) == (
        "induction",
        (
            "attends to the tokens after earlier copies: 0.90 [0.89, 0.91], by chance 0.03, on the control 0.00",
            "raises the token it attends to: direct copying +0.42, eigenvalue score +0.87",
            "removing it changes the second copy's loss by +1.250 [+1.100, +1.400] nats, q 3e-07",
            "more than the first copy's change, by +1.200 [+1.000, +1.400] nats",
            "more than removing another head of its layer does, by +1.150 [+0.900, +1.400] nats",
        ),
    )


def test_q_in_words():
    assert [q_text(q) for q in (1.0, 0.05, 0.0123, 3e-7, 1e-15)] == ["q 1", "q 0.05", "q 0.01", "q 3e-07", "q 1e-15"]
    assert q_text(1e-16) == q_text(0.0) == "q < 1e-15"


def test_judging_changes_nothing_and_gives_the_same_again():
    evidence = striped()
    before = replace(evidence, scores=dict(evidence.scores))
    assert judge(evidence) == judge(evidence)
    assert evidence == before
