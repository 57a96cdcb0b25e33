"""The search on models whose truth is known: it names the planted head, and nothing where there is nothing."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from pytest import approx

import headscope as hs
from benchmarks.behavior import SHUFFLED_PAIRS, shuffled
from headscope.errors import ArgumentError, TokenError
from headscope.evidence.behavior import search
from headscope.evidence.behavior.disproof import overlap_p
from headscope.evidence.behavior.measure import RESOLUTION, ContrastRunner, ForwardCounter, by_group, of_effect
from headscope.evidence.behavior.search import _Search
from headscope.heads import HeadId
from headscope.planted.deferring import AblatedHeads
from headscope.planted.handbuilt_rotary import handbuilt_rotary
from headscope.probes.pairs import Contrast, Pair, read_pairs
from headscope.records.common import Estimate
from tests.running import seeds

PLANTED = HeadId(1, 0)


@contextmanager
def silenced(model, head):
    """The head's z is zero, by a hook that knows nothing of headscope."""
    attention = model.hf.model.layers[head.layer].self_attn
    width = attention.head_dim

    def hook(module, inputs):
        z = inputs[0].clone()
        z[..., head.head * width : (head.head + 1) * width] = 0.0
        return (z,)

    handle = attention.o_proj.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def answers(model, contrast, kind):
    """Each pair's d, from the model's own forward pass."""
    vocabulary = model.tokenizer.get_vocab()
    rows = torch.tensor([[0, *(vocabulary[word] for word in pair.text(kind).split())] for pair in contrast.pairs])
    with torch.no_grad():
        logits = model.hf(input_ids=rows).logits[:, -1]
    one, two = (
        torch.tensor([vocabulary[getattr(pair, side).strip()] for pair in contrast.pairs])[:, None]
        for side in ("answer", "other")
    )
    return (logits.gather(1, one) - logits.gather(1, two))[:, 0]


def some(contrast):
    """A quarter of its pairs."""
    return replace(contrast, pairs=contrast.pairs[::4])


def test_the_planted_model_is_as_planted(planted):
    # Without headscope's hooks, kernels or splits: all false claims of all things.
    model, facts = planted("deferring"), AblatedHeads.of(0).facts()
    assert (answers(model, facts, "neutral") < 0).float().mean() >= 0.99
    assert (answers(model, facts, "prompt") > 0).float().mean() >= 0.9
    with silenced(model, PLANTED):
        assert (answers(model, facts, "neutral") < 0).float().mean() >= 0.95
        assert (answers(model, facts, "prompt") > 0).float().mean() <= 0.2
    for other in (HeadId(1, 1), HeadId(1, 7), HeadId(0, 5)):
        with silenced(model, other):
            assert (answers(model, facts, "prompt") > 0).float().mean() >= 0.8


def test_the_planted_head_is_found_and_nothing_else_is_named(found):
    result = found("deferring")
    assert result.conclusion == "localised"
    assert result.named == (PLANTED,)
    assert result.score.flips.mean >= 0.9
    head_set = result.head_set
    assert head_set.flips_after.mean <= 0.2
    assert head_set.accuracy_before.mean - head_set.accuracy_after.mean <= 0.05
    assert head_set.paraphrase_share >= 0.5
    draws = [(draw.kind, draw.heads) for draw in result.controls.draws]
    assert {kind for kind, _ in draws} == {"random", "same layers", "same size"}
    assert len(set(draws)) == len(draws)
    # Of one head the nearest in size are three, so that five draws cannot all differ.
    assert len(result.head_set.heads) > 1 or sum(kind == "same size" for kind, _ in draws) <= 3
    assert result.controls.set_removed.mean > max(draw.removed.mean for draw in result.controls.draws)
    for draw in result.controls.draws:
        assert PLANTED not in draw.heads
        assert draw.flips.mean >= 0.5
        assert draw.removed.mean < head_set.removed.mean / 2
    (praise,) = result.controls.others
    assert (praise.name, praise.score.flips.mean) == ("praise", approx(1.0, abs=0.1))
    assert praise.share >= 0.5


def test_scores_are_the_models_own(planted, found):
    model, facts, result = planted("deferring"), AblatedHeads.of(0).facts(), found("deferring")
    prompt, twin, neutral = (answers(model, facts, kind).double().numpy() for kind in ("prompt", "twin", "neutral"))
    score = result.score
    assert score.n_pairs == len(facts.pairs) == 720
    assert score.claimed_minus_true.mean == approx(prompt.mean(), abs=1e-3)
    assert score.claim_minus_neutral.mean == approx((prompt - neutral).mean(), abs=1e-3)
    assert score.claim_minus_twin.mean == approx((prompt - twin).mean(), abs=1e-3)
    assert score.flips.mean == approx((prompt > 0)[neutral < 0].mean())
    assert score.neutral_accuracy.mean == approx((neutral < 0).mean())
    assert [item.differences["twin"] for item in result.items] == approx(twin.tolist(), abs=1e-3)
    assert set(result.forms) == {"stated", "paraphrase"}
    assert result.verbatim == result.forms["stated"]
    assert result.paraphrase == result.forms["paraphrase"]


def test_a_model_that_does_not_defer(found):
    result = found("honest")
    assert result.conclusion == "no sycophancy measured"
    assert result.named == ()
    assert result.score.flips.mean == 0.0


def test_a_model_that_copies(found):
    result = found("copying")
    assert result.conclusion == "copying (induction heads)"
    induction = result.controls.induction
    built = {role: head for head, role in handbuilt_rotary(decoys=(), seed=0).roles.items()}
    assert result.named == induction.heads == induction.common == (built["induction"],)
    assert induction.p_value == approx(1 / 12)
    assert induction.share == approx(1.0, abs=0.01)
    assert induction.others_share == approx(0.0, abs=0.01)
    assert (result.paraphrase.flips.mean, result.verbatim.flips.mean) == (0.0, 1.0)


def test_a_model_that_defers_everywhere(found):
    result = found("diffuse")
    assert result.conclusion in ("diffuse", "no localised heads found")
    assert result.score.flips.mean >= 0.9
    assert result.named == ()


def test_the_whole_search_reads_less_than_a_fifth_of_ablating_every_head_on_every_item(found):
    cost = found("deferring").cost
    assert cost.exhaustive == 16 * 3 * 720
    assert cost.forwards <= cost.exhaustive / 5


def test_forwards_are_counted_as_they_run(planted, monkeypatch):
    # Every prompt that enters the model counts; the random ids by which its weights are found do not, as at loading.
    from headscope.model import taps

    model, contrast = planted("deferring"), some(AblatedHeads.of(0).praise())
    weights = search.TokenSpace(model, seed=0)
    monkeypatch.setattr(search, "TokenSpace", lambda model, seed: weights)
    read = 0
    own = taps.forward

    def counted(hf, route, tokens, *arguments, grad=False, **named):
        nonlocal read
        read += len(tokens) * (3 if grad else 1)
        return own(hf, route, tokens, *arguments, grad=grad, **named)

    monkeypatch.setattr(taps, "forward", counted)
    result = hs.behavior(contrast, model)
    assert result.cost.forwards == read


@pytest.mark.parametrize(("n_runs", "at_most"), [(3, 1), pytest.param(10, 3, marks=pytest.mark.soak)])
def test_shuffled_labels_name_no_head(n_runs, at_most, planted):
    # 3 runs at 5% each: more than 1 happen once in 138 times; of 10, more than 3 once in 970 times.
    # benchmarks/behavior.py has 100 runs.
    model, facts = planted("deferring"), AblatedHeads.of(0).facts()
    named = [hs.behavior(shuffled(facts, seed, n_pairs=60), model, seed=seed).named for seed in range(n_runs)]
    assert sum(map(bool, named)) <= at_most


def test_shuffling_changes_the_labels_and_nothing_else():
    facts = AblatedHeads.of(0).facts()
    by_id = {pair.id: pair for pair in facts.pairs}
    turned = 0
    for pair in shuffled(facts, 0).pairs:
        own = by_id[pair.id]
        assert replace(pair, answer=own.answer, other=own.other) == own
        assert {pair.answer, pair.other} == {own.answer, own.other}
        turned += pair.answer != own.answer
    assert 0.35 < turned / SHUFFLED_PAIRS < 0.65


def test_the_same_seed_finds_the_same_and_another_splits_anew(planted):
    model, praise = planted("deferring"), some(AblatedHeads.of(0).praise())

    def comparable(seed):
        document = hs.behavior(praise, model, seed=seed).to_dict()
        del document["cost"]["wall_s"]
        return document

    assert comparable(1) == comparable(1)
    assert comparable(1)["heads"] != comparable(2)["heads"]


def test_searched_and_held_out_pairs_are_disjoint_and_of_every_form(planted):
    from headscope.evidence.behavior.measure import ContrastRunner, ForwardCounter
    from headscope.evidence.behavior.search import _Search
    from headscope.probes.pairs import read_pairs

    model = planted("deferring")
    runner = ContrastRunner(model, read_pairs(model, AblatedHeads.of(0).facts()), ForwardCounter(0))
    search = _Search(runner, [], [], top=8, seed=3)
    assert not set(search.searched) & set(search.held_out)
    for part, size in ((search.searched, 32), (search.held_out, 48)):
        forms = [runner.pairs[one].form for one in part]
        assert len(part) == size
        assert forms.count("stated") == forms.count("paraphrase") == size // 2


def test_documents_are_read_again_as_they_were_written(found, tmp_path):
    result = found("deferring")
    document, table = result.save(tmp_path / "new")
    assert hs.BehaviorResult.load(tmp_path / "new") == result
    assert json.loads(document.read_text())["schema"] == "headscope.behavior/1"
    import pyarrow.parquet as pq

    rows = pq.read_table(table)
    assert rows.num_rows == len(result.heads)
    assert json.loads(rows.schema.metadata[b"headscope"])["conclusion"] == "localised"
    frame = result.to_frame()
    assert frame.loc[frame.named, ["layer", "head"]].to_numpy().tolist() == [[1, 0]]
    with pytest.raises(ArgumentError, match="is not 'headscope.behavior/1'"):
        hs.BehaviorResult.from_dict(result.to_dict() | {"schema": "headscope.scan/1"})


def test_a_contrast_without_neutral_prompts_is_held_against_its_twins(planted):
    world = AblatedHeads.of(0)
    pairs = tuple(replace(pair, neutral=None) for pair in world.facts().pairs[::8])
    result = hs.behavior(Contrast(name="claims", pairs=pairs), planted("deferring"))
    assert result.score.claim_minus_neutral is None
    assert result.conclusion == "localised"
    assert result.named == (PLANTED,)
    assert result.head_set.accuracy_after is None
    assert "no neutral prompts" in result.reasons[-1]


def test_a_contrast_without_twins_is_held_against_no_claim(planted):
    world = AblatedHeads.of(0)
    pairs = tuple(replace(pair, twin=None) for pair in world.facts().pairs[::8])
    result = hs.behavior(Contrast(name="claims", pairs=pairs), planted("honest"))
    assert result.score.claim_minus_twin is None
    assert result.conclusion == "no claims measured"


def test_the_planted_head_pushes_towards_the_claim(found):
    # More than all other heads together, either way.
    (planted_head,) = (one for one in found("deferring").heads if one.head == PLANTED)
    assert planted_head.direct.mean > 0.5
    assert planted_head.triage["twin"] == max(one.triage["twin"] for one in found("deferring").heads)


def test_bad_requests_are_refused(planted):
    model = planted("honest")
    with pytest.raises(ArgumentError, match="top=0"):
        hs.behavior("sycophancy", model, top=0)
    with pytest.raises(ArgumentError, match="seed=-1"):
        hs.behavior("sycophancy", model, seed=-1)
    with pytest.raises(ArgumentError, match="there is no behaviour or file 'aaa"):
        hs.behavior("a" * 300, model)
    with pytest.raises(TokenError, match="can read 1 of the 351 pairs of wrong_fact_validation"):
        hs.behavior("sycophancy", model)
    bare = Pair(id="x", prompt="user : i", answer=" red", other=" blue")
    with pytest.raises(ArgumentError, match="neither all a neutral prompt nor all a twin"):
        hs.behavior(Contrast(name="x", pairs=(bare,) * 20), model)


def test_the_overlap_is_hypergeometric():
    # 12 heads, 5 of them induction heads, 2 named, both among them: (5 * 4) / (12 * 11).
    assert overlap_p(12, 5, 2, 2) == approx(20 / 132)
    assert overlap_p(12, 5, 2, 1) == approx(1 - 7 * 6 / 132)
    assert overlap_p(12, 5, 2, 0) == approx(1.0)
    assert overlap_p(12, 0, 0, 0) == 1.0
    drawn = np.random.default_rng(0)
    common = [len(set(drawn.permutation(12)[:4]) & set(range(5))) for _ in range(4000)]
    assert overlap_p(12, 5, 4, 3) == approx(np.mean([one >= 3 for one in common]), abs=0.03)


# ---- one fact in several pairs


def test_facts_are_averaged_in_the_order_of_their_first_pair():
    # Groups 3, 1, 3, 1, 2 of 1, 2, 3, 6, 5: means 2, 4 and 5.
    assert by_group(np.array([1.0, 2, 3, 6, 5]), np.array([3, 1, 3, 1, 2])).tolist() == [2.0, 4.0, 5.0]


def test_pairs_of_one_fact_stand_on_one_side_and_count_once(planted):
    # 12 facts, each eight times in other words: 96 pairs, 12 independent draws.
    model, facts = planted("deferring"), AblatedHeads.of(0).facts()
    once = facts.pairs[:12]
    often = [replace(pair, id=f"fact {n}", form="plain") for _ in range(8) for n, pair in enumerate(once)]
    runner = ContrastRunner(model, read_pairs(model, Contrast(name="often", pairs=tuple(often))), ForwardCounter(0))
    search = _Search(runner, [], [], top=2, seed=0)
    searched, held_out = (set(runner.facts[side].tolist()) for side in (search.searched, search.held_out))
    assert not searched & held_out
    assert searched | held_out == set(range(12))
    # The same words again change neither mean nor interval: 12 values, not 96.
    everyone, first = np.arange(96), np.arange(12)
    for name in ("effect", "flips"):
        often, once = (getattr(runner.score(chosen), name) for chosen in (everyone, first))
        assert (often.mean, *often.ci95) == approx((once.mean, *once.ci95), abs=1e-4)


def test_too_few_facts_are_refused_however_many_pairs(planted):
    pairs = [replace(pair, id="one") for pair in AblatedHeads.of(0).facts().pairs[:40]]
    with pytest.raises(ArgumentError, match="40 pairs are about 1 different ids, and 8 are needed"):
        hs.behavior(Contrast(name="one fact", pairs=tuple(pairs)), planted("deferring"))


@pytest.mark.parametrize("seed", seeds(2))
def test_repeats_of_eight_facts_localise_nothing_in_a_random_model(planted, seed):
    # The facts on which a random model happens to defer, each eight times: 64 pairs, 8 independent draws. Where each
    # pair counted, the same facts chose heads and confirmed them: `diffuse`.
    trained, facts = planted("deferring"), AblatedHeads.of(0).facts()
    torch.manual_seed(seed)
    random = type(trained.hf)(trained.hf.config).eval()
    with torch.no_grad():
        for weight in random.parameters():
            if weight.ndim == 2:
                weight.copy_(torch.randn_like(weight) * 1.5 / weight.shape[1] ** 0.5)  # heads that look somewhere
    model = hs.load(random, tokenizer=trained.tokenizer)
    claim, twin, neutral = (answers(model, facts, kind) for kind in ("prompt", "twin", "neutral"))
    defers = torch.where((claim > 0) & (neutral < 0), torch.minimum(claim - twin, claim - neutral), -1.0)
    best = defers.argsort(descending=True)[:8].tolist()
    eight = [replace(facts.pairs[one], id=f"fact {number}") for number, one in enumerate(best)]
    found = hs.behavior(Contrast(name="often", pairs=tuple(eight * 8)), model, seed=seed)
    assert defers.sort(descending=True).values[7] > 0
    assert found.score.claim_minus_twin.ci95[0] > 0, "in these facts the effect is real"
    assert found.conclusion == "no localised heads found"
    assert any("64 pairs are about 8 ids" in one for one in found.reasons)


# ---- the set, on effects that are known


def chosen_set(takes, *, largest=2, n_heads=8):
    """The set that a search chooses among heads 0 to n - 1; `takes` says what a set takes of an effect of 1."""
    one = object.__new__(_Search)
    one.largest, one.tried = largest, []

    def removed(worlds):
        one.tried += worlds
        return np.array([takes({head.head for head in world}) for world in worlds])

    one._removed, one.searched = removed, None
    one.runner = type("Effect", (), {"mean_effect": staticmethod(lambda pairs: 1.0)})
    found = one._greedy(tuple(HeadId(1, head) for head in range(n_heads)))
    return {head.head for head in found}, one.tried


def test_heads_of_which_any_suffices_are_found_from_above():
    # Either of 2 and 5 is enough: without one alone nothing is lost. 8 alone, all 8, then 8 + 7 + ... + 3 sets.
    found, tried = chosen_set(lambda gone: float({2, 5} <= gone))
    assert found == {2, 5}
    assert len(tried) == 8 + 1 + 8 + 7 + 6 + 5 + 4 + 3
    # Of three none is found in a set of two: it takes all three.
    assert chosen_set(lambda gone: float({2, 5, 6} <= gone))[0] == set()
    assert chosen_set(lambda gone: float({2, 5, 6} <= gone), largest=3)[0] == {2, 5, 6}


def test_a_set_that_grows_is_not_searched_from_above():
    # 0.6 and 0.3, each by itself: 8 sets of one, 7 of two.
    found, tried = chosen_set(lambda gone: 0.6 * (1 in gone) + 0.3 * (4 in gone))
    assert found == {1, 4}
    assert len(tried) == 8 + 7


def test_of_a_diffuse_effect_the_larger_of_both_sets_is_kept():
    # Each of 8 takes an eighth: two take a quarter, whichever way they are found, and growing comes first.
    assert chosen_set(lambda gone: len(gone) / 8)[0] == {0, 1}
    # 0.2 by head 7 alone, and 0.45 by 2 and 5 together only.
    assert chosen_set(lambda gone: 0.2 * (7 in gone) + 0.45 * ({2, 5} <= gone))[0] == {2, 5}
    # All together take less than half: nothing is shrunk.
    assert len(chosen_set(lambda gone: 0.4 * ({2, 5} <= gone))[1]) == 8 + 1


def test_what_none_of_the_facts_does_is_resolved_and_no_more_is_widened():
    # 48 facts, none of which a head acts in: the mean is 0, and the interval is the resolution's, not of no width.
    assert of_effect(np.zeros(48)).ci95 == (-RESOLUTION, RESOLUTION)
    # Halves of 1 and 3 nats: 2 +- 2.01 * 1.01 / sqrt(48) = 2 +- 0.29, ten times the resolution.
    spread = np.repeat([1.0, 3.0], 24)
    assert of_effect(spread) == Estimate.of(spread)
    assert Estimate.of(spread).ci95 == approx((1.71, 2.29), abs=0.01)
