"""Comparing models: what was changed is found, what was not is not, and each head finds its counterpart."""

from __future__ import annotations

import base64
import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pytest import approx
from transformers import GPT2Config, GPT2LMHeadModel

import headscope as hs
from benchmarks.atlas import counted
from benchmarks.packed import quantised
from headscope.errors import ArgumentError, TokenError
from headscope.evidence.atlas.finding import Outcome, RoleFinding
from headscope.evidence.compare.changes import head_changes
from headscope.evidence.compare.finding import finding
from headscope.evidence.compare.later import later_changes, outcome_changes
from headscope.evidence.compare.matching import Agreement, Patterns, agreement, matches
from headscope.evidence.compare.result import Comparison, HeadChange, OutcomeChange, RoleChange, changed_heads
from headscope.evidence.compare.scans import compare_scans
from headscope.evidence.compare.terminal import print_comparison
from headscope.heads import HeadId
from headscope.planted.changed import keys_adapted, rotated, silenced, without_query
from headscope.planted.handbuilt import handbuilt
from headscope.planted.reparametrised import CHANGES, reparametrised
from headscope.probes.probe import probe_of
from headscope.records.common import Estimate
from headscope.stats import two_sample

SMALL = {"n_prompts": 8, "period": 12}


@pytest.fixture(scope="module")
def built():
    return handbuilt(vocab_size=64, n_positions=64, n_digits=1, decoys=("duplicate_token",), seed=1)


@pytest.fixture(scope="module")
def changed(built):
    """The same model, whose induction head looks where the duplicate-token head of another layer would: at itself."""
    head = built.heads("induction")[0]
    return without_query(built.model, head), head  # every key has the same score


def random_gpt2(n_positions=128):
    torch.manual_seed(0)
    shape = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(n_positions=n_positions, **shape)).eval()
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, :64] *= 12  # queries and keys, so that heads look somewhere
    return model


def test_a_head_without_a_role_that_looks_elsewhere_is_named():
    one = random_gpt2()
    two = copy.deepcopy(one)
    with torch.no_grad():
        two.transformer.h[0].attn.c_attn.weight[:, 8:16] *= -1  # L0H1's queries: it looks where it did not
    pair = hs.compare(one, two, n_prompts=8, period=20).pairs[0]
    assert pair["L0H1"].match.similarity < 0.9
    assert "Patterns differ" in pair.finding
    assert "L0H1 (similarity" in pair.finding
    assert "Patterns differ" not in hs.compare(one, copy.deepcopy(one), n_prompts=8, period=20).finding


def test_prompts_fit_every_model_that_reads_them():
    # [BOS, r, r, gaps] of period 50 take 149 tokens; the second model reads 48.
    found = hs.compare(random_gpt2(), random_gpt2(48), n_prompts=4)
    assert {one.probe["period"] for one in found.sides} == {hs.repeated_tokens(random_gpt2(48)).settings["period"]}


def test_of_few_prompts_the_bound_says_no_more_than_that_scores_are_shares():
    pair = hs.compare(random_gpt2(), random_gpt2(64), n_prompts=2, period=12).pairs[0]
    assert pair.bound <= 1
    assert "is shown to change" in pair.finding
    with pytest.raises(ArgumentError, match="at least 2 prompts"):
        hs.compare(random_gpt2(), random_gpt2(64), n_prompts=1, period=12)


def test_a_document_that_compares_nothing_is_refused():
    document = hs.compare(random_gpt2(), random_gpt2(64), n_prompts=2, period=12).to_dict()
    for damage in ({"pairs": []}, {"sides": document["sides"][:1]}):
        with pytest.raises(ArgumentError, match="the document is damaged"):
            Comparison.from_dict(document | damage)


def test_a_change_of_one_head_is_found_and_nothing_else(built, changed):
    model, head = changed
    found = hs.compare(built.model, model, **SMALL)
    assert [one.head for one in found.changed] == [head]
    roles = {one.role: one for one in found.changed[0].changed}
    assert roles["induction"].status == "lost"
    assert roles["induction"].difference.mean == approx(roles["induction"].b - roles["induction"].a)
    assert str(head) in found.finding
    assert "lost induction" in found.finding


def test_a_head_that_takes_the_role_of_another_gains_it_and_loses_its_own(built):
    copier, sender = built.heads("duplicate_token")[0], built.heads("previous_token")[0]
    assert copier.layer == sender.layer, "their queries and keys read the same stream"
    found = hs.compare(built.model, rotated(built.model, copier, sender.head), **SMALL)
    assert [one.head for one in found.changed] == [copier]
    roles = {one.role: one.status for one in found.changed[0].changed}
    assert (roles["duplicate_token"], roles["previous_token"]) == ("lost", "gained")
    assert found.pairs[0].moved == ()  # two heads attend alike now, and each keeps its number


def test_an_adapter_on_the_keys_of_one_head_is_found_where_it_does_something(built):
    head = built.heads("induction")[0]
    # Random directions of the keys' own size: the match keeps its lead of 10 nats, so nothing is to be found.
    slight = hs.compare(built.model, keys_adapted(built.model, head, size=1.0, seed=1), **SMALL)
    assert slight.changed == ()
    strong = hs.compare(built.model, keys_adapted(built.model, head, size=16.0, seed=1), **SMALL)
    assert [one.head for one in strong.changed] == [head]
    induction = next(one for one in strong.changed[0].roles if one.role == "induction")
    assert induction.changed
    assert induction.b < 0.9 < 0.99 < induction.a
    assert strong.pairs[0].bound is not None
    assert strong.pairs[0].bound > abs(strong.changed[0].changed[0].difference.mean)


@pytest.mark.parametrize(("bits", "group", "most"), [(8, None, 0.01), (4, 32, 0.1)])
def test_weights_of_few_bits_are_bounded_and_named(bits, group, most):
    wide = hs.load("demo")
    narrow = hs.load(quantised(hs.load("demo").hf, bits=bits, group=group))
    pair = hs.compare(wide, narrow, n_prompts=16, period=16).pairs[0]
    assert any(one.startswith("weights ") and "Packed" in one for one in pair.differ)
    assert "weights" in pair.finding
    largest = max(abs(role.difference.mean) for head in pair.heads for role in head.roles)
    assert pair.bound is not None
    assert 0 < largest < pair.bound < most


def test_the_bound_is_student_s_for_all_scores_together(built, changed):
    from scipy.stats import t

    found = hs.compare(built.model, keys_adapted(built.model, changed[1], size=1.0, seed=1), **SMALL).pairs[0]
    roles = [role for head in found.heads for role in head.roles]
    # 8 prompts: the interval at 95% has the half-width t(0.975, 7) s, the bound t(1 - 0.025 / tests, 7) s
    wider = t.ppf(1 - 0.025 / len(roles), 7) / t.ppf(0.975, 7)
    halves = [(role.difference.ci95[1] - role.difference.ci95[0]) / 2 for role in roles]
    expected = max(abs(role.difference.mean) + wider * half for role, half in zip(roles, halves, strict=True))
    # Hall's interval may be wider than Student's, never narrower
    assert 0 < found.bound <= expected * (1 + 1e-6)
    assert found.bound >= 0.5 * expected


def head_change(head: str, difference: float) -> HeadChange:
    role = RoleChange(
        role="induction",
        a=0.5,
        b=0.5 + difference,
        difference=Estimate(mean=difference, ci95=None),
        q_value=0.001,
        changed=True,
        status="kept",
    )
    return HeadChange(head=HeadId.parse(head), counterpart=HeadId.parse(head), how="number", match=None, roles=(role,))


def test_the_earliest_layer_is_named_first_and_the_largest_change_is_named_too():
    heads = [
        head_change(*one) for one in (("L2H0", -0.4), ("L0H1", 0.05), ("L1H1", 0.1), ("L1H0", 0.2), ("L0H0", 0.03))
    ]
    assert [str(one.head) for one in changed_heads(heads)] == ["L0H1", "L0H0", "L1H0", "L1H1", "L2H0"]
    said = finding(("A", "B"), heads, [], [])
    assert "5 heads of 5 attend differently in B, earliest layer first: L0H1 induction (0.50 to 0.55); L0H0" in said
    assert "and 2 more, the largest change that of L2H0 induction (0.50 to 0.10)" in said
    assert "Those after layer 0 read what earlier layers write" in said
    alone = finding(("A", "B"), [head_change("L1H0", -0.4), head_change("L1H1", 0.1)], [], [])
    assert "earliest" not in alone
    assert "earlier" not in alone


def test_a_head_that_changes_what_a_later_one_reads_is_named_before_it(built):
    sender, later = built.heads("previous_token")[0], built.heads("induction")[0]
    found = hs.compare(built.model, without_query(built.model, sender), **SMALL)
    assert [one.head for one in found.changed] == [sender, later]
    assert found.finding.index(str(sender)) < found.finding.index(str(later))
    assert "may differ because of an earlier head" in found.finding


def test_a_role_that_one_model_has_is_undecided_where_the_scores_are_not_shown_to_differ(built, changed):
    head = changed[1]
    one, two = (
        hs.scan(model, probe=hs.repeated_tokens(hs.load(built.model), **SMALL)) for model in (built.model, changed[0])
    )
    assert [head in [score.head for score in scan.heads("induction")] for scan in (one, two)] == [True, False]
    names = {head: (head, "number")}
    for first, second, p, status in (
        (one, two, 1.0, "undecided"),
        (two, one, 1.0, "undecided"),
        (one, two, 0.0, "lost"),
    ):
        difference = {(head, "induction"): (Estimate(mean=-0.9, ci95=None), p)}
        (change,) = (one for one in head_changes(first, second, names, difference) if one.head == head)
        assert change.roles[0].status == status


def test_patterns_of_a_changed_head_are_those_of_both_models_on_one_prompt(built, changed):
    head = changed[1]
    found = hs.compare(built.model, changed[0], **SMALL)
    shown = found.pairs[0].patterns
    assert shown is not None
    assert [(one.head, one.counterpart) for one in shown.heads] == [(head, head)]
    ids = torch.tensor([[one.id for one in shown.tokens]])
    for model, kept in ((built.model, shown.heads[0].a), (changed[0], shown.heads[0].b)):
        with torch.no_grad():
            model.set_attn_implementation("eager")
            own = model(ids, output_attentions=True).attentions[head.layer][0, head.head].numpy()
        read = np.frombuffer(base64.b64decode(kept), np.uint8) / 255
        # a byte for each of n (n + 1) / 2 places, rounded to the nearest of 255
        assert read == approx(own[np.tril_indices(ids.shape[1])], abs=0.5 / 255 + 1e-5)
    document = found.to_dict()
    document["pairs"][0]["patterns"]["heads"][0]["b"] = "AAAA"
    with pytest.raises(ArgumentError, match="a pattern of .* tokens is not the base64 of"):
        Comparison.from_dict(document)
    assert hs.compare(built.model, built.model, **SMALL).pairs[0].patterns is None


def test_at_most_four_heads_are_drawn_on_at_most_64_tokens():
    one, two = random_gpt2(), random_gpt2()
    with torch.no_grad():
        for block in two.transformer.h:
            block.attn.c_attn.weight[:, :32] *= -1  # all queries
    prompts = hs.repeated_tokens(hs.load(one), n_prompts=4, period=30)
    assert min(map(len, prompts.prompts)) > 64
    shown = hs.compare(one, two, probe=prompts).pairs[0].patterns
    assert shown is not None
    assert len(shown.heads) == 4
    assert [one.id for one in shown.tokens] == prompts.prompts[0][:64].tolist()


def test_heads_beyond_the_first_are_counted_in_the_terminal(capsys):
    one, two = random_gpt2(), random_gpt2()
    with torch.no_grad():
        for block in two.transformer.h:
            block.attn.c_attn.weight[:, :32] *= -1  # all queries
    found = hs.compare(one, two, n_prompts=8, period=30)
    assert len(found.changed) > 1
    print_comparison(found, top=1)
    assert f"{len(found.changed) - 1} more heads changed; --top shows them." in capsys.readouterr().out


def test_tables_of_more_than_twelve_models_say_what_they_leave_out(capsys):
    model = hs.load(random_gpt2())
    scan = hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=2, period=12))
    print_comparison(compare_scans([scan] * 13), top=2)
    shown = capsys.readouterr().out
    assert "Both tables show 12 of 13 models" in shown
    print_comparison(compare_scans([scan] * 12), top=2)
    assert "Both tables" not in capsys.readouterr().out


def test_the_two_directions_are_each_others_negative(built, changed):
    there, back = (hs.compare(*pair, **SMALL) for pair in ((built.model, changed[0]), (changed[0], built.model)))
    first, second = (one.changed[0].changed[0] for one in (there, back))
    assert first.difference.mean == approx(-second.difference.mean)
    assert (first.status, second.status) == ("lost", "gained")


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_function_has_not_changed(built, change):
    other, where = reparametrised(built.model, change, seed=2)
    pair = hs.compare(built.model, other, **SMALL).pairs[0]
    assert pair.changed == ()
    assert {one.head: one.counterpart for one in pair.heads if one.counterpart is not None and one.match} == where


def test_a_model_beside_itself_has_not_changed(built):
    found = hs.compare(built.model, built.model, **SMALL)
    assert found.changed == ()
    assert found.pairs[0].moved == ()
    assert all(role.difference.mean == 0 and role.q_value == 1 for one in found.pairs[0].heads for role in one.roles)
    assert found.pairs[0].similarity == approx(1.0, abs=1e-5)


def test_scores_are_those_of_a_scan(built, changed):
    found, probe = hs.compare(built.model, changed[0], **SMALL), hs.repeated_tokens(hs.load(built.model), **SMALL)
    scan = hs.scan(changed[0], probe=probe)
    expected = {(one.head, one.detector): one.mean for one in scan.scores}
    for one in found.pairs[0].heads:
        for role in one.roles:
            assert role.b == approx(expected[one.counterpart, role.role], abs=1e-6)


def test_the_document_reads_back_and_the_frame_names_the_model(built, changed, tmp_path):
    found = hs.compare(built.model, changed[0], **SMALL)
    again = hs.Comparison.load(found.save(tmp_path)[0].parent)
    assert again == found
    assert again.to_dict() == json.loads(found.to_json())
    frame = found.to_frame()
    assert len(frame) == sum(len(one.roles) for one in found.pairs[0].heads)
    assert frame.columns[-1] == "model"
    assert set(frame["model"]) == {found.model.id}


def test_three_models_name_the_nearest_pair(built, changed):
    found = hs.compare(built.model, changed[0], built.model, **SMALL)
    assert [(pair.a, pair.b) for pair in found.pairs] == [("A", "B"), ("A", "C")]
    assert (found.nearest[0].a, found.nearest[0].b) == ("A", "C")
    assert len(found.nearest) == 3


def test_models_of_other_vocabularies_read_their_own_prompts(built):
    other = handbuilt(vocab_size=80, n_positions=64, n_digits=1, decoys=("duplicate_token",), seed=1)
    found = hs.compare(built.model, other.model, **SMALL)
    pair = found.pairs[0]
    assert not pair.paired
    assert pair.similarity is None
    assert found.nearest == ()
    assert "prompts of its own" in pair.why


def test_too_many_models_are_refused(built):
    with pytest.raises(ArgumentError, match="takes 2 to 26"):
        hs.compare(*[built.model] * 27)


# ---- verdicts, paths, the swap test


def test_the_swap_test_tells_the_source_from_the_head_that_passes_it_on(built):
    source, later = built.heads("previous_token")[0], built.heads("induction")[0]
    found = hs.compare(built.model, silenced(built.model, source), swap=True, **SMALL)
    # Without the sender the induction head loses its stripe: that is the one change of attention, and it follows.
    assert [one.head for one in found.changed] == [later]
    swap = found.pairs[0].swap
    assert swap is not None
    assert swap.asked
    assert swap.sources is not None
    assert swap.everything is not None
    assert swap.difference.mean == approx(swap.loss_b.mean - swap.loss_a.mean)
    assert {one.head for one in swap.heads if one.carries} == {source, later}
    assert [one.head for one in swap.heads if one.source] == [source] == list(swap.sources.heads)
    for share in (swap.sources.restores, swap.sources.transfers, swap.everything.restores, swap.everything.transfers):
        assert share.mean == approx(1.0, abs=0.01)
    assert swap.random
    for draw in swap.random:
        assert abs(draw.restores.mean) < 0.05
        assert abs(draw.transfers.mean) < 0.05


def printed(shown, start):
    """The words of each line from the first that begins so, up to an empty one."""
    lines = shown.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith(start))
    rows = [line.split() for line in lines[first:]]
    return rows[: rows.index([])] if [] in rows else rows


def test_the_terminal_says_what_changed_and_which_head_is_its_source(built, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    source, later = built.heads("previous_token")[0], built.heads("induction")[0]
    found = hs.compare(built.model, silenced(built.model, source), swap=True, **SMALL)
    print_comparison(found, top=10)
    shown = capsys.readouterr().out
    row = next(one for one in printed(shown, "head") if one[0] == str(later))
    role = found.changed[0].changed[0]
    assert row[1:6] == [role.role, "lost", f"{role.a:.3f}", f"{role.b:.3f}", f"{role.b - role.a:+.3f}"]
    swap = found.pairs[0].swap
    swapped = {one[0]: one for one in printed(shown, "swapped")}
    # All of the loss comes back with the source, or with what passes it on; a head of neither sort gives none.
    assert swapped[str(source)][1:3] == ["1.00", "1.00"]
    assert swapped[str(source)][-1] == "source"
    assert swapped[str(later)][-3:] == ["passes", "it", "on"]
    assert {"all", "sources", "random"} <= swapped.keys()
    assert sum(one[0] == "random" for one in printed(shown, "swapped")) == len(swap.random)
    print_comparison(replace(found, pairs=(replace(found.pairs[0], swap=replace(swap, sources=None)),)), top=10)
    assert "sources" not in {one[0] for one in printed(capsys.readouterr().out, "swapped")}


def test_the_terminal_names_a_head_that_changed_places_and_what_it_holds_in_the_atlas(built, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    other, where = reparametrised(built.model, "heads", seed=2)
    found = hs.compare(built.model, other, **SMALL)
    pair = found.pairs[0]
    head = built.heads("induction")[0]
    held = OutcomeChange(
        head=head, counterpart=where[head], role="induction", a="primary", b=None, status="lost", apart=False,
        score_a=Estimate(mean=0.9, ci95=None), score_b=Estimate(mean=0.25, ci95=None),
    )  # fmt: skip
    kept = replace(held, role="sink", status="kept")
    print_comparison(replace(found, pairs=(replace(pair, outcomes=(held, kept)),)), top=10)
    shown = capsys.readouterr().out
    assert "sink in the atlas" not in shown
    assert f"{head} lost induction in the atlas: primary (0.90), now not tried (0.25); the intervals" in shown
    assert pair.moved
    for one in pair.moved:
        assert one.match.similarity == approx(1.0, abs=1e-3)
        said = f"{one.head} of {pair.a} is {where[one.head]} of {pair.b}: agreement {one.match.agreement:.2f}"
        assert said in shown


def test_verifying_adds_what_verify_reads_beyond_the_scan_that_it_begins_with(built):
    first = hs.load(built.model)
    second = hs.load(silenced(built.model, built.heads("induction")[0]))
    probe = hs.repeated_tokens(first, **SMALL)
    with counted(first) as ours, counted(second) as theirs:

        def read(run):
            ours[0] = theirs[0] = 0
            run()
            return ours[0] + theirs[0]

        for one in (first, second):
            hs.verify(one, probe=probe)  # what is tried once per model is tried here
        with_verdicts = read(lambda: hs.compare(first, second, probe=probe, verify=True))
        without = read(lambda: hs.compare(first, second, probe=probe))
        verified = sum(read(lambda one=one: hs.verify(one, probe=probe)) for one in (first, second))
        scanned = sum(read(lambda one=one: hs.scan(one, probe=probe)) for one in (first, second))
    assert 0 < scanned < verified
    assert with_verdicts - without == verified - scanned


def test_a_head_that_writes_nothing_attends_as_before_and_its_verdict_changes(built, capsys):
    head = built.heads("induction")[0]
    found = hs.compare(built.model, silenced(built.model, head), verify=True, circuit=True, **SMALL)
    assert found.changed == ()
    pair = found.pairs[0]
    assert pair.verdicts is not None
    assert pair.edges is not None
    changed = [one for one in pair.verdicts if one.changed]
    assert [(one.head, one.a, one.b, one.apart) for one in changed] == [(head, "induction", "attends_only", True)]
    assert changed[0].reasons_a
    assert changed[0].reasons_b
    sender = built.heads("previous_token")[0]
    assert [(one.sender, one.receiver, one.input, one.status) for one in pair.edges] == [(sender, head, "k", "lost")]
    print_comparison(found, top=5)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{head} induction, now attends only" in shown
    assert f"{sender} -> k of {head}: lost" in shown
    kept = tuple(replace(one, status="kept") for one in pair.edges)
    print_comparison(replace(found, pairs=(replace(pair, edges=kept),)), top=5)
    assert "->" not in capsys.readouterr().out
    assert " ".join("; ".join(changed[0].reasons_b).split()) in shown
    assert hs.Comparison.from_dict(json.loads(found.to_json())) == found


def finding_of(head: HeadId, role: str, outcome: Outcome, score: float) -> RoleFinding:
    estimate = Estimate(mean=score, ci95=(score - 0.01, score + 0.01))
    return RoleFinding(
        head=head,
        role=role,
        score=estimate,
        chance=0.0,
        control=None,
        selectivity=None,
        p_score=0.0,
        measures={},
        has_score=True,
        tests={},
        outcome=outcome,
    )


def test_roles_of_the_atlas_are_gained_lost_and_kept_by_the_first_models_names(built):
    first, second = HeadId(0, 0), HeadId(0, 1)
    atlas = hs.atlas(built.model, ["previous_token"], quick=True, n_prompts=4)
    before = replace(
        atlas,
        findings=(
            finding_of(second, "sink", "primary", 0.5),
            finding_of(first, "local", "primary", 0.9),
            finding_of(first, "sink", "correlate", 0.3),
            finding_of(first, "induction", "null", 0.0),
            finding_of(first, "only_here", "primary", 1.0),
        ),
    )
    after = replace(
        atlas,
        findings=(
            finding_of(second, "local", "correlate", 0.9),
            finding_of(second, "sink", "interferer", 0.4),
            finding_of(second, "induction", "correlate", 0.0),
            finding_of(first, "sink", "secondary", 0.505),
        ),
    )
    found = outcome_changes(before, after, {first: second, second: first})  # they changed places
    assert [(one.head, one.counterpart, one.role, one.status, one.apart) for one in found] == [
        (first, second, "local", "lost", False),
        (first, second, "sink", "gained", True),
        (second, first, "sink", "kept", False),
    ]
    assert "2 roles of the atlas gained or lost: L0H0 lost local; L0H0 gained sink" in later_changes(None, None, found)


@pytest.mark.soak
def test_a_head_that_writes_nothing_loses_its_role_in_the_atlas(built):
    head, sender = built.heads("induction")[0], built.heads("previous_token")[0]
    found = hs.compare(built.model, silenced(built.model, head), atlas=True, **SMALL)
    outcomes = found.pairs[0].outcomes
    assert outcomes is not None
    lost = {(one.head, one.role) for one in outcomes if one.status == "lost"}
    # Nobody reads what the sender moves any more, so that removing it does nothing either.
    assert {(head, "induction"), (sender, "previous_token")} <= lost
    assert f"{head} lost induction" in found.finding or "roles of the atlas" in found.finding
    assert hs.Comparison.from_dict(json.loads(found.to_json())) == found


def test_models_of_one_loss_leave_the_swap_test_nothing_to_ask(built):
    other, _ = reparametrised(built.model, "v_o", seed=2)
    swap = hs.compare(built.model, other, swap=True, **SMALL).pairs[0].swap
    assert swap is not None
    assert not swap.asked
    assert swap.heads == ()


def test_heads_that_changed_places_are_compared_and_not_swapped(built):
    other, _ = reparametrised(built.model, "heads", seed=2)
    found = hs.compare(built.model, other, swap=True, **SMALL)
    swap = found.pairs[0].swap
    assert swap is not None
    assert not swap.asked
    assert "heads are matched with other numbers" in swap.reason
    assert "heads are matched with other numbers" in found.finding
    assert found.pairs[0].moved


def never(what: str, done: int, total: int) -> None:
    raise AssertionError(f"{what} began, though the question cannot be answered")


def test_what_cannot_be_asked_is_refused_before_the_scans(built):
    config = GPT2Config(n_positions=64, vocab_size=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    narrow = GPT2LMHeadModel(config).eval()
    with pytest.raises(ArgumentError, match="differ in number or size"):
        hs.compare(built.model, narrow, swap=True, progress=never, **SMALL)
    with pytest.raises(ArgumentError, match="do not read the same prompts"):
        hs.compare(built.model, random_gpt2(), swap=True, progress=never, **SMALL)
    plain = [np.arange(1, 13), np.arange(2, 14)]
    with pytest.raises(TokenError, match="repeats no pair"):
        hs.compare(built.model, built.model, probe=probe_of(hs.load(built.model), plain), swap=True, progress=never)
    with pytest.raises(ArgumentError, match="draw held-out prompts"):
        hs.compare(built.model, built.model, probe=probe_of(hs.load(built.model), plain), verify=True, progress=never)


# ---- matching


class Rows(Patterns):
    """Patterns that were given."""

    def __init__(self, patterns: np.ndarray) -> None:
        self._given = np.sqrt(patterns).astype(np.float32)

    def prompts(self):
        return [self._given]


def rows_of(random: np.random.Generator, n_heads: int, length: int = 9) -> np.ndarray:
    """[head, query, key] for queries 1 .. length - 1: sharp and random."""
    drawn = random.exponential(size=(n_heads, length - 1, length)) ** 3
    drawn *= np.tril(np.ones((length, length)))[1:]
    return drawn / drawn.sum(2, keepdims=True)


def test_chance_and_its_spread_are_those_of_shuffled_keys():
    random = np.random.default_rng(0)
    x, y = rows_of(random, 2), rows_of(random, 3)
    found = agreement(Rows(x), Rows(y))
    similarity = np.einsum("aqk,bqk->ab", np.sqrt(x), np.sqrt(y)) / 8
    assert found.similarity == approx(similarity, abs=1e-5)
    draws = []
    for _ in range(4000):
        shuffled = y.copy()
        for query in range(8):  # query + 1 keys after the first
            order = 1 + random.permutation(query + 1)
            shuffled[:, query, 1 : query + 2] = y[:, query, order]
        draws.append(np.einsum("aqk,bqk->ab", np.sqrt(x), np.sqrt(shuffled)) / 8)
    mean, spread = np.mean(draws, 0), np.std(draws, 0)
    # 4,000 draws: the mean to 5 / sqrt(4000) = 8% of the spread, the spread to 5 / sqrt(8000) = 6%
    assert np.abs((similarity - found.z * spread) - mean) == approx(
        0.0, abs=0.08 * spread.max() + 0.06 * spread.max() * np.abs(found.z).max()
    )
    assert found.agreement == approx((similarity - mean) / (1 - mean + 0.02), abs=0.02)


def test_a_head_that_rests_or_spreads_agrees_with_nothing():
    rest = np.zeros((1, 8, 9))
    rest[:, :, 0] = 1.0
    even = np.tril(np.ones((9, 9)))[1:][None]
    even = even / even.sum(2, keepdims=True)
    for rows in (rest, even):
        found = agreement(Rows(rows), Rows(rows))
        assert found.similarity[0, 0] == approx(1.0, abs=1e-5)
        assert found.agreement[0, 0] == approx(0.0, abs=1e-3)
        assert found.z[0, 0] == 0.0


def test_a_head_keeps_its_number_unless_another_agrees_more():
    heads = [HeadId(0, 0), HeadId(0, 1)]
    worth = np.asarray([[0.90, 0.92], [0.92, 0.90]])  # changing places gains 0.02 a head, less than 0.05
    same = Agreement(similarity=worth, agreement=worth, z=worth)
    assert matches(same, heads, heads) == {one: one for one in heads}
    worth = np.asarray([[0.1, 0.9], [0.9, 0.1]])
    other = Agreement(similarity=worth, agreement=worth, z=worth)
    assert matches(other, heads, heads) == {heads[0]: heads[1], heads[1]: heads[0]}


def test_two_samples_are_compared_by_welch():
    from scipy.stats import ttest_ind

    random = np.random.default_rng(0)
    first, second = random.normal(size=12), random.normal(0.5, 2.0, size=20)
    expected = ttest_ind(second, first, equal_var=False)
    mean, ends, p = two_sample(first, second)
    assert (mean, p) == (approx(second.mean() - first.mean()), approx(expected.pvalue))
    assert ends == approx(tuple(expected.confidence_interval(0.95)))
    assert two_sample(first[:1], second)[1:] == (None, 1.0)
    assert two_sample(np.zeros(3), np.zeros(4)) == (0.0, (0.0, 0.0), 1.0)
    assert two_sample(np.zeros(3), np.ones(4))[2] == 0.0
