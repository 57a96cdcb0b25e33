"""The atlas: outcomes on models whose heads are known, its document, and going on after a stop."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from pytest import approx
from safetensors.numpy import save
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

import headscope as hs
from headscope.cli.main import app
from headscope.errors import ArgumentError, ShapeError
from headscope.evidence.atlas import measure, summary
from headscope.evidence.atlas.finding import Effect, RoleFinding
from headscope.evidence.atlas.ioi import TEXT
from headscope.evidence.atlas.outcome import RULE, judge
from headscope.evidence.atlas.roles import roles
from headscope.evidence.atlas.runner import RoleRunner
from headscope.evidence.atlas.terminal import print_atlas
from headscope.evidence.atlas.words import NAMES, ORDERED, UNORDERED
from headscope.heads import HeadId
from headscope.interventions.ablation import losses
from headscope.interventions.knockout import Knockout
from headscope.model.fingerprint import fingerprint
from headscope.planted.handbuilt import DECOYS, handbuilt
from headscope.records.common import Estimate
from headscope.stats import equivalence_p

N = 8


@pytest.fixture(scope="module")
def built():
    return handbuilt(decoys=DECOYS, vocab_size=64, n_positions=96, offset=20, seed=1)


@pytest.fixture(scope="module")
def found(built, tmp_path_factory):
    return hs.atlas(built.model, ["induction", "previous_token"], n_prompts=N, keep=tmp_path_factory.mktemp("kept"))


def outcomes(atlas, role):
    return {one.head: one.outcome for one in atlas.findings if one.role == role and one.outcome != "null"}


def test_the_circuit_is_primary_and_each_decoy_is_what_it_is(built, found):
    (induction,), (previous,) = built.heads("induction"), built.heads("previous_token")
    (against,), (silent,) = built.heads("anti_induction"), built.heads("attends_only")
    assert outcomes(found, "induction") == {induction: "primary", against: "interferer", silent: "correlate"}
    assert outcomes(found, "previous_token") == {previous: "primary"}
    assert found.unexplained == []


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_backups_are_secondary_whatever_the_seed(seed):
    built = handbuilt(copying="redundant", vocab_size=64, n_positions=96, seed=seed)
    atlas = hs.atlas(built.model, ["induction", "previous_token"], n_prompts=N)
    (previous,) = built.heads("previous_token")
    assert outcomes(atlas, "induction") == dict.fromkeys(built.heads("redundant_induction"), "secondary")
    assert outcomes(atlas, "previous_token") == {previous: "primary"}


def test_a_head_that_matters_is_unexplained_where_its_role_is_not_asked(built, capsys):
    atlas = hs.atlas(built.model, "induction", n_prompts=N)
    (previous,) = built.heads("previous_token")
    assert [one.head for one in atlas.unexplained] == [previous]
    assert atlas.heads[0].status == "unexplained"
    print_atlas(atlas)
    assert "it holds not the one role that was asked." in capsys.readouterr().out


def test_roles_that_lack_the_same_are_said_in_one_line(found, capsys):
    print_atlas(dataclasses.replace(found, not_asked={"sink": "no room", "delimiter": "no comma", "local": "no room"}))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not asked")]
    assert lines == ["not asked: sink, local (no room)", "not asked: delimiter (no comma)"]


def test_a_head_whose_role_was_left_untested_is_not_unexplained(built, monkeypatch):
    """As the thirteenth of a role: it has the score, and that no role explains what it does is not shown."""
    (head,), (previous,) = built.heads("induction"), built.heads("previous_token")
    monkeypatch.setitem(roles(), "induction", dataclasses.replace(roles()["induction"], tested=0))
    atlas = hs.atlas(built.model, ["induction", "current_token"], n_prompts=N)
    assert [one.head for one in atlas.unexplained] == [previous]
    (left,) = (one for one in atlas.heads if one.head == head)
    assert left.status == "not_tested"
    assert left.removed.estimate.mean > 1


def test_the_share_of_an_effect_that_zero_ablation_does_not_have_is_not_given(found, built):
    """Zero lowers the loss by 0.2 where the mean raises it by 1: no share of the 1 is that of the 0.2."""
    (head,) = built.heads("induction")
    runner = RoleRunner(hs.load(built.model), n_prompts=N)
    mine = [one for one in found.findings if one.head == head and one.role == "induction"]
    mean = runner.removal(head, "mean second_copy")
    known = {head: Effect(estimate=Estimate.of(mean), p_value=0.0, q_value=0.0)}
    shares = []
    for zero in (None, -0.2 * mean, 0.0005 * mean):
        if zero is not None:
            runner.removals["zero second_copy"][:, runner.heads.index(head)] = zero
        shares.append(summary._unexplained(runner, {head: mine}, roles(), known, RULE))
    assert [list(one) for one in shares] == [[head], [], []]


def test_a_score_that_is_not_shown_says_so(found):
    one = next(one for one in found.findings if one.role == "previous_token" and one.outcome == "primary")
    (judged,) = summary.judged([dataclasses.replace(one, p_score=0.2)], roles())
    assert (judged.outcome, judged.has_score) == ("null", False)
    assert judged.reasons == ("the score is not shown to be above chance (q 0.2)",)


def test_all_of_a_perfect_heads_effect_is_explained_by_its_role(built, found):
    (induction,) = built.heads("induction")
    summary = next(one for one in found.heads if one.head == induction)
    assert summary.strongest == "induction"
    assert summary.unexplained == approx(0, abs=0.01)


def test_quick_makes_no_intervention_and_gives_no_outcome_but_null(built, monkeypatch):
    monkeypatch.setattr("headscope.evidence.atlas.runner.losses", lambda *_, **__: pytest.fail("an intervention"))
    atlas = hs.atlas(built.model, ["induction", "previous_token"], quick=True, n_prompts=N)
    assert {one.outcome for one in atlas.findings} == {None, "null"}
    assert all(one.outcome is None for one in atlas.findings if one.has_score)
    assert {one.status for one in atlas.heads} == {"not_tested"}


def test_the_document_makes_the_round_trip(found, tmp_path):
    found.save(tmp_path)
    assert hs.Atlas.load(tmp_path) == found
    assert len(found.to_frame()) == len(found.findings)
    with pytest.raises(ArgumentError, match=r"is not 'headscope.atlas/1'"):
        hs.Atlas.from_dict({"schema": "headscope.scan/1"})


@pytest.mark.parametrize("damage", ["a head is gone", "a finding is gone", "a finding is there twice", "a head twice"])
def test_a_document_that_lacks_or_repeats_a_head_is_refused(found, damage):
    document = found.to_dict()
    heads, findings = document["heads"], document["findings"]
    changed = {
        "a head is gone": {"heads": heads[1:]},
        "a finding is gone": {"findings": findings[1:]},
        "a finding is there twice": {"findings": [*findings, findings[0]]},
        "a head twice": {"heads": [*heads, heads[0]]},
    }[damage]
    with pytest.raises(ArgumentError, match=r"the document is damaged \((Atlas.findings does not hold )?L\d"):
        hs.Atlas.from_dict(document | changed)


def test_a_run_that_was_cut_off_goes_on(built, tmp_path, monkeypatch):
    settings = {"roles": ["induction", "previous_token"], "n_prompts": N, "keep": tmp_path}
    previous = roles()["previous_token"]

    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(roles(), "previous_token", dataclasses.replace(previous, score=dies))
        with pytest.raises(KeyboardInterrupt):
            hs.atlas(built.model, **settings)
    # What was finished is not measured again: neither the readings nor the role before the stop.
    plans = []
    with monkeypatch.context() as patch:
        patch.setattr(RoleRunner, "_repeats", lambda self: pytest.fail("read again"))
        patch.setattr(RoleRunner, "_removals", lambda self: pytest.fail("ablated again"))
        patch.setitem(roles(), "induction", dataclasses.replace(roles()["induction"], score=dies))
        again = hs.atlas(built.model, planned=plans.append, **settings)
    assert [one.roles for one in plans] == [1]
    whole = hs.atlas(built.model, settings["roles"], n_prompts=N)
    assert again.findings == whole.findings
    assert again.heads == whole.heads


def test_what_was_kept_for_another_seed_or_model_is_not_taken(built, tmp_path):
    first = hs.atlas(built.model, "previous_token", quick=True, n_prompts=N, keep=tmp_path)
    other = hs.atlas(built.model, "previous_token", quick=True, n_prompts=N, keep=tmp_path, seed=1)
    assert len({path.name.split("-")[0] for path in (tmp_path / "jobs").iterdir()}) == 2
    assert first.settings != other.settings


def test_a_damaged_part_is_measured_again(built, tmp_path):
    first = hs.atlas(built.model, "previous_token", quick=True, n_prompts=N, keep=tmp_path)
    for path in (tmp_path / "jobs").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    assert hs.atlas(built.model, "previous_token", quick=True, n_prompts=N, keep=tmp_path).findings == first.findings


@pytest.mark.parametrize("content", [b"{}", b"[]", b'{"role": 3}'])
def test_a_part_that_is_no_finding_is_measured_again(built, tmp_path, content):
    asked = {"roles": ["previous_token", "current_token"], "quick": True, "n_prompts": N, "keep": tmp_path}
    first = hs.atlas(built.model, **asked)
    (part,) = tmp_path.glob("jobs/*-role-previous_token-quick.json")
    part.write_bytes(content)
    assert hs.atlas(built.model, **asked).findings == first.findings
    # Another role's, and one that lacks a head.
    (other,) = tmp_path.glob("jobs/*-role-current_token-quick.json")
    part.write_bytes(other.read_bytes())
    document = json.loads(other.read_text())
    other.write_text(json.dumps(document | {"findings": document["findings"][1:]}))
    assert hs.atlas(built.model, **asked).findings == first.findings
    # Arrays of another reading.
    (shared,) = tmp_path.glob("jobs/*-repeats.safetensors")
    shared.write_bytes(save({"other": np.zeros(3)}))
    part.unlink()
    assert hs.atlas(built.model, **asked).findings == first.findings


def test_what_was_kept_for_another_tokenizer_or_config_is_not_taken(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=80, n_positions=128, n_embd=8, n_layer=1, n_head=2)).eval()
    asked = {"roles": ["previous_token", "delimiter"], "quick": True, "n_prompts": 4, "keep": tmp_path}
    assert "no tokenizer" in hs.atlas(model, **asked).not_asked["delimiter"]
    for ids in ({",": 5}, {",": 6}):  # the second cuts the same texts to another id
        loaded = hs.load(
            model, tokenizer=word_tokenizer({f"w{one}": one for one in range(80) if one not in ids.values()} | ids)
        )
        found = hs.atlas(loaded, **asked)
        assert found.not_asked == {}
        assert next(one for one in found.roles if one.name == "delimiter").probe["ids"] == list(ids.values())
    keys = {path.name.split("-")[0] for path in (tmp_path / "jobs").iterdir()}
    model.config.layer_norm_epsilon = 0.5
    hs.atlas(model, **asked)
    assert len({path.name.split("-")[0] for path in (tmp_path / "jobs").iterdir()}) == len(keys) + 1 == 4


def word_tokenizer(ids):
    cut = Tokenizer(models.WordLevel(ids, unk_token="w0"))
    cut.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=cut, unk_token="w0")


def test_tokens_that_the_model_lacks_are_words_that_it_lacks():
    """A tokenizer with more ids than the model has embeddings: 40 of its words are 80 to 119."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=80, n_positions=128, n_embd=8, n_layer=1, n_head=2)).eval()
    names = [
        *ORDERED["days"],
        *NAMES,
        *UNORDERED[:10],
        ",",
        *TEXT.format(first="", second="", place="", giver="", thing="").split(),
    ]
    ids = {f"w{one}": one for one in range(80)} | {name: 80 + at for at, name in enumerate(dict.fromkeys(names))}
    found = hs.atlas(
        hs.load(model, tokenizer=word_tokenizer(ids)),
        ["delimiter", "successor", "name_mover", "current_token"],
        quick=True,
        n_prompts=4,
    )
    assert set(found.not_asked) == {"delimiter", "successor", "name_mover"}


@pytest.mark.parametrize("size", [{"n_positions": 28}, {"vocab_size": 20}], ids=["context", "vocabulary"])
def test_where_no_repeated_prompt_fits_other_roles_are_asked(size):
    model = GPT2LMHeadModel(
        GPT2Config(**{"vocab_size": 80, "n_positions": 64, "n_embd": 8, "n_layer": 1, "n_head": 2} | size)
    ).eval()
    found = hs.atlas(model, ["induction", "sink", "function_vector"], n_prompts=4)
    assert [one.name for one in found.roles] == ["function_vector"]
    assert {one.status for one in found.heads} == {"not_tested"}
    assert hs.Atlas.from_dict(found.to_dict()) == found
    # The reason is that of the shortest prompts that were tried, and is said once for all roles that share it.
    assert "period=12" in found.not_asked["sink"] or "period of 1" in found.not_asked["sink"]
    with pytest.raises(ArgumentError, match="induction, sink: no repeated prompt") as refused:
        hs.atlas(model, ["induction", "sink"], n_prompts=4)
    assert "shorter period" not in str(refused.value)


def test_progress_rises_to_the_end(built):
    seen = []
    hs.atlas(built.model, "previous_token", n_prompts=4, progress=lambda what, done, of: seen.append(done / of))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_bad_arguments_are_refused_in_one_line(built):
    with pytest.raises(ArgumentError, match="no role 'mover'"):
        hs.atlas(built.model, "mover")
    with pytest.raises(ArgumentError, match="n_prompts=1"):
        hs.atlas(built.model, n_prompts=1)
    small = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=2)).eval()
    with pytest.raises(ArgumentError, match="no role can be asked of"):
        hs.atlas(small, "previous_token", quick=True)


def test_the_command_prints_and_its_document_is_the_apis(tmp_path):
    arguments = ["atlas", "demo", "--quick", "--roles", "previous_token", "--n-prompts", "4", "--out", str(tmp_path)]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0
    document = hs.Atlas.load(tmp_path)
    with_score = [str(one.head) for one in document.findings if one.has_score]
    assert with_score
    assert all(name in shown.stdout for name in with_score)
    again = hs.atlas("demo", "previous_token", quick=True, n_prompts=4)
    assert document.findings == again.findings


# ---- the rule


def finding(has_score=True, **tests):
    made = {
        name: Effect(estimate=Estimate(mean=mean, ci95=None), p_value=q, q_value=q) for name, (mean, q) in tests.items()
    }
    return RoleFinding(
        head=HeadId(0, 0),
        role="toy",
        score=Estimate(mean=0.9, ci95=None),
        chance=0.1,
        control=None,
        selectivity=None,
        p_score=0.0,
        measures={},
        has_score=has_score,
        tests=made,
    )


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        (finding(has_score=False, zero=(1.0, 0.0)), "null"),
        (finding(), None),
        (finding(zero=(1.0, 0.01), mean=(1.0, 0.01)), "primary"),
        (finding(zero=(1.0, 0.01), mean=(1.0, 0.01), transfer=(0.5, 0.01)), "primary"),
        (finding(zero=(1.0, 0.01), mean=(1.0, 0.01), transfer=(0.0, 0.9)), "secondary"),
        (finding(zero=(0.0, 0.9), mean=(0.0, 0.9), transfer=(0.5, 0.01)), "secondary"),
        (finding(zero=(1.0, 0.01), mean=(0.005, 0.01)), "correlate"),  # below 0.01 nats
        (finding(zero=(1.0, 0.01), mean=(1.0, 0.06)), "correlate"),  # not significant
        (finding(zero=(1.0, 0.01), mean=(1.0, 0.01), specific=(0.0, 0.9)), "correlate"),
        (finding(zero=(-1.0, 0.01), mean=(-1.0, 0.01), specific=(-1.0, 0.01)), "interferer"),
        (finding(zero=(1.0, 0.01), mean=(1.0, 0.01), look_alike=(-0.1, 0.01)), "correlate"),
        (finding(zero=(1.0, 0.01), mean=(1.0, 0.01), look_alike=(0.5, 0.01)), "primary"),
    ],
)
def test_the_rule(given, outcome):
    assert judge(given, RULE).outcome == outcome


def test_equivalence_is_shown_only_by_a_small_interval_inside_the_bound():
    tight, wide = np.asarray([0.001, -0.001, 0.002, 0.0]), np.asarray([0.5, -0.5, 0.6, -0.4])
    assert equivalence_p(tight, 0.01) < 0.01
    assert equivalence_p(wide, 0.01) > 0.4  # far from significant, and far from no effect
    assert equivalence_p(tight + 1.0, 0.01) > 0.99
    assert equivalence_p(np.zeros(4), 0.01) == 0.0
    assert equivalence_p(np.zeros(1), 0.01) == 1.0
    with pytest.raises(ShapeError, match="positive bound"):
        equivalence_p(tight, 0.0)


# ---- its parts


def test_dropping_every_key_is_zero_ablation_and_no_key_is_none(built):
    model = hs.load(built.model)
    runner = RoleRunner(model, n_prompts=4)
    (head,) = built.heads("induction")
    everything = [np.stack(np.tril_indices(len(prompt)), axis=1) for prompt in runner.held_out.prompts]
    nothing = [np.zeros((0, 2), dtype=np.int64)] * 4
    for how in ("drop", "mask"):
        knockout = Knockout(model=model, places=everything, how=how)
        rows = losses(knockout, runner.held_out.prompts, runner.copy_queries, [frozenset([head])])["second_copy"][0]
        zero = losses(runner.copy_ablators["zero"], runner.held_out.prompts, runner.copy_queries, [frozenset([head])])[
            "second_copy"
        ][0]
        assert rows == approx(zero, abs=1e-3)
        knockout = Knockout(model=model, places=nothing, how=how)
        same = losses(knockout, runner.held_out.prompts, runner.copy_queries, [frozenset(), frozenset([head])])
        assert same["second_copy"][1] == approx(same["second_copy"][0], abs=1e-4)


def test_attention_read_at_places_is_the_scans(built):
    model = hs.load(built.model)
    runner = RoleRunner(model, n_prompts=4)
    scan = hs.scan(model, probe=runner.probe, detectors=["induction"])
    ours = dict(zip(runner.heads, runner.repeats["induction"].mean(0), strict=True))
    assert {one.head: one.mean for one in scan.scores} == approx(ours, abs=1e-5)
    assert runner.repeats["induction chance"][0] == approx(scan.scores[0].chance, abs=1e-6)


def test_a_fingerprint_is_of_the_weights_alone(built):
    model = hs.load(built.model)
    same = fingerprint(model)
    assert fingerprint(hs.load(built.model)) == same
    weight = built.model.transformer.h[0].attn.c_proj.weight
    with torch.no_grad():
        before = weight[0, 0].item()
        weight[0, 0] += 1
        changed = fingerprint(model)
        weight[0, 0] = before
    assert changed != same
    assert fingerprint(model) == same


def test_every_number_of_a_weight_counts():
    """Of 64 x 64 numbers, 64 evenly spread ones are the first column: what stands in others would go unseen."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=64, n_layer=1, n_head=4)).eval()
    loaded = hs.load(model)
    before = fingerprint(loaded)
    with torch.no_grad():
        model.transformer.h[0].attn.c_proj.weight[:, 16:32] = 0
    assert fingerprint(loaded) != before


@pytest.mark.parametrize(
    ("wall_s", "told"), [(2.4, "about 2 s: 1 role, 3 forward"), (150.0, "about 2 min: 1 role, 3 ")]
)
def test_a_short_estimate_is_in_seconds(built, tmp_path, monkeypatch, wall_s, told):
    built.model.save_pretrained(tmp_path)
    plan = measure.Plan(passes=3.0, wall_s=wall_s, roles=1)
    monkeypatch.setattr(measure, "_plan", lambda *_, **__: plan)
    asked = ["atlas", str(tmp_path), "--quick", "--roles", "previous_token", "--n-prompts", "4"]
    assert told in CliRunner().invoke(app, asked).stderr


def test_the_estimate_counts_only_what_is_missing(built):
    plan = measure._plan(hs.load(built.model), [], quick=False, n_prompts=N)
    assert (plan.passes, plan.wall_s, plan.roles) == (0, 0, 0)
