"""Verdicts where single numbers mislead, on models whose heads are known; and under other weights of one function."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from pytest import approx

import headscope as hs
from benchmarks.verdicts import CHECKED, verified
from headscope.errors import ArgumentError
from headscope.evidence import head_types
from headscope.evidence.head_types import HEAD_TYPES, HeadType
from headscope.planted.misleading import misleading
from headscope.planted.reparametrised import CHANGES, reparametrised
from headscope.records.common import Estimate


def check(case, n_heads, seed):
    built = misleading(case, seed=seed, n_heads=n_heads)
    found = verified(built.model, seed=seed)
    assert {head: found[head].verdict for head in built.verdicts} == built.verdicts
    rest = Counter(one.verdict for one in found.heads if one.head not in built.verdicts)
    assert set(rest) <= {"none", "first_token"}, "what fills the layers has no role"
    # Only what does induction makes the set, and without it the second copy is lost: log 64 = 4.159 nats.
    (head_set,) = found.sets
    assert set(head_set.heads) == {
        head for head, name in built.verdicts.items() if name in ("induction", "redundant_induction")
    }
    assert head_set.delta_loss_nats.mean > 4
    return built, found


@pytest.mark.parametrize("seed", range(2))  # `python -m benchmarks.verdicts --only planted,same` tries 20 and more
@pytest.mark.parametrize(("case", "n_heads"), CHECKED)
def test_no_single_number_misleads(case, n_heads, seed):
    check(case, n_heads, seed)


def test_a_direct_path_that_contradicts_the_effect_is_told():
    for case, verdict in (
        ("rewritten_copier", "induction"),
        ("rewritten_suppressor", "anti_induction"),
        ("mlp_copier", "induction"),
        ("mlp_suppressor", "anti_induction"),
    ):
        built, found = check(case, 4, 0)
        (head,) = [head for head, name in built.verdicts.items() if name == verdict]
        sign = 1 if verdict == "induction" else -1
        assert found[head].delta_loss_nats.mean * sign > 1
        assert found[head].copying.direct.mean * sign < -0.05
        assert any("its direct path says the opposite" in reason for reason in found[head].reasons)


@pytest.mark.parametrize(("case", "n"), [("two", 2), ("three", 3), ("part_of_a_stripe", 2)])
def test_heads_of_which_any_suffices_are_all_named_and_said_to_be_interchangeable(case, n):
    built, found = check(case, 4, 1)
    equal = [head for head, name in built.verdicts.items() if name == "redundant_induction"]
    assert len(equal) == n
    for head in equal:
        one = found[head]
        assert abs(one.delta_loss_nats.mean) < 0.01
        assert one.put_back.delta_loss_nats.mean == approx(found.sets[0].delta_loss_nats.mean, rel=0.01)
        assert set(one.interchangeable) == set(one.behind) == {*equal} - {head}
        assert any(reason.startswith("interchangeable with ") for reason in one.reasons)
    assert found.sets[0].relation == "redundant"


def test_a_stripe_below_the_threshold_is_tried_only_for_a_head_that_nothing_else_explains():
    # Beside a lone induction head that matters, nothing is put behind anything.
    _, found = check("busy_neighbour", 4, 0)
    assert [one.put_back for one in found.heads] == [None] * len(found.heads)
    # A part of a stripe is 0.37 of the attention: the match's share beside the start token, as it was planted.
    built, found = check("part_of_a_stripe", 4, 0)
    scores = sorted(found[head].attention["induction"] for head, name in built.verdicts.items() if "redundant" in name)
    assert scores == approx([0.37, 1.0], abs=0.01)


# ---- other weights, one function


@pytest.mark.parametrize("change", CHANGES)
def test_a_reparametrised_model_has_the_same_logits_and_other_weights(change):
    model = misleading("busy_neighbour", seed=2).model
    tokens = torch.randint(1, 64, (2, 40), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    other, where = reparametrised(model, change, seed=5)
    with torch.no_grad():
        # Logits up to 2 * COPY_GAIN = 24, scores up to 2 * 30 in front of the softmax: rounding of 1e-7 grows to 1e-4.
        assert torch.allclose(other(tokens).logits, model(tokens).logits, atol=1e-3)
    assert any((one - two).abs().max() > 0.1 for one, two in zip(other.parameters(), model.parameters(), strict=True))
    assert (any(old != new for old, new in where.items())) == (change == "heads")


@pytest.mark.parametrize("case", ["busy_neighbour", "rewritten_suppressor", "part_of_a_stripe"])
@pytest.mark.parametrize("change", CHANGES)
def test_verdicts_are_those_of_the_function_not_of_its_weights(case, change):
    built = misleading(case, seed=4)
    first = verified(built.model)
    other, where = reparametrised(built.model, change, seed=7)
    second = verified(other)
    for one in first.heads:
        two = second[where[one.head]]
        assert two.verdict == one.verdict
        assert two.delta_loss_nats.mean == approx(one.delta_loss_nats.mean, abs=1e-3)
        assert {where[head] for head in one.interchangeable} == set(two.interchangeable)
        assert (one.over_random is None) == (two.over_random is None)
        if one.over_random is not None:
            assert two.over_random.mean == approx(one.over_random.mean, abs=1e-3)


@pytest.mark.parametrize("case", ["busy_neighbour", "three"])
def test_no_seed_decides_a_verdict(case):
    built = misleading(case, seed=6, n_heads=6)
    for seed in range(3):
        found = verified(built.model, seed=seed)
        assert {head: found[head].verdict for head in built.verdicts} == built.verdicts


# ---- the table


def test_rows_have_names_letters_and_places_of_their_own_and_the_last_accepts_all():
    for of in ("name", "order"):
        assert len({getattr(one, of) for one in HEAD_TYPES}) == len(HEAD_TYPES)
    letters = [one.letter for one in HEAD_TYPES if one.letter]
    assert len(set(letters)) == len(letters) == len(HEAD_TYPES) - 1
    assert {one.name for one in HEAD_TYPES if one.is_induction} == {"induction", "redundant_induction"}
    assert {one.name for one in HEAD_TYPES if not one.has_role} == {"first_token", "none"}


def test_a_type_is_added_with_a_row(monkeypatch):
    # Made up: "odd" is a head of odd number that rests on nothing else; its measure is its number.
    row = HeadType(
        name="odd",
        measure=lambda model, probe: {
            hs.HeadId(layer, head): Estimate(mean=float(head), ci95=None)
            for layer, n in model.check.heads.items()
            for head in range(n)
        },
        judge=lambda evidence, rule: ("its number is odd",) if evidence.measured["odd"].mean % 2 == 1 else None,
        letter="Z",
        colour="#123456",
        order=99,
        sentence="has an odd number",
    )
    monkeypatch.setattr(head_types, "HEAD_TYPES", (row, *HEAD_TYPES))
    found = verified(misleading("busy_neighbour", seed=0).model)
    assert {one.head.head for one in found.of("odd")} == {1, 3}
    assert found.meaning("odd") == row.meaning
    assert found.meaning("odd").colour_dark == "#123456"
    document = found.to_dict()
    monkeypatch.undo()
    # Read by a version that does not know the type: it comes with the document.
    again = type(found).from_dict(document)
    assert again == found
    assert again.meaning("odd").sentence == "has an odd number"
    with pytest.raises(ArgumentError, match="there is no verdict 'odd'"):
        replace(again, head_types=head_types.meanings()).of("odd")


def test_a_document_from_before_the_table_reads_with_todays_meanings():
    found = verified(misleading("two", seed=0).model)
    document = found.to_dict()
    del document["head_types"]
    for one in document["heads"]:
        del one["behind"], one["interchangeable"]
    del document["rule"]["partial_stripe"], document["rule"]["suffices"]
    again = type(found).from_dict(document)
    assert again.head_types == head_types.meanings()
    assert [one.verdict for one in again.heads] == [one.verdict for one in found.heads]
