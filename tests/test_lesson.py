"""The lesson's functions: the right means, on every kind of model and cache, beside the formula as first written."""

from __future__ import annotations

import copy
import dataclasses
import sys
import types
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from pytest import approx
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module

import headscope as hs
from headscope.errors import ArgumentError, HeadscopeError, NonFiniteError, ShapeError, UnsupportedModel
from headscope.lesson import (
    InductionHead,
    compute_induction_score,
    detect_induction_heads,
    find_induction_heads,
    make_repeated_tokens,
    verify_induction_behavior,
)
from headscope.planted.handbuilt import handbuilt

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def demo():
    return hs.load("demo")


@pytest.fixture(scope="module")
def bridge(demo):
    hf = copy.deepcopy(demo.hf)
    return build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config, tokenizer=demo.tokenizer)


@pytest.fixture(scope="module")
def built():
    return handbuilt()


def looking(n_tokens, key_of):
    """A pattern in which each query attends to one key, or rests on the first token where there is none."""
    pattern = torch.zeros(n_tokens, n_tokens)
    for query in range(n_tokens):
        key = key_of(query)
        pattern[query, key if key is not None and 0 <= key <= query else 0] = 1
    return pattern


def perfect(period, *, start=True):
    """Induction on [start, r, r]: in the second copy the token after the earlier copy, else the first token."""
    first = start + period
    return looking(first + period, lambda query: query - period + 1 if query >= first else None)


def uniform(n_tokens):
    return torch.tril(torch.ones(n_tokens, n_tokens)) / torch.arange(1, n_tokens + 1)[:, None]


def as_first_written(pattern, seq_len):
    """A sum from the middle on, divided by half of the length: what the function is usually given as."""
    half = seq_len // 2
    return sum(float(pattern[query, query - half + 1]) for query in range(half, seq_len)) / half


# make_repeated_tokens


@pytest.mark.parametrize("seq_len", [6, 7, 20, 50])
def test_tokens_are_a_start_token_and_a_run_twice(seq_len, demo):
    tokens = make_repeated_tokens(demo, seq_len)
    period = seq_len // 2
    assert tokens.dtype == torch.long
    assert tokens.shape == (1, 1 + 2 * period)
    start, first, second = tokens[0].split([1, period, period])
    assert start.item() == demo.bos_token_id
    assert torch.equal(first, second)
    assert len(set(first.tolist())) == period
    assert not set(first.tolist()) & demo.special_token_ids


def test_tokens_without_a_start_token_where_the_model_has_none(demo):
    hf = copy.deepcopy(demo.hf)
    hf.config.bos_token_id = None
    assert make_repeated_tokens(hf, 20).shape == (1, 20)


def test_tokens_depend_on_the_seed_alone(demo, bridge):
    assert torch.equal(make_repeated_tokens(demo), make_repeated_tokens(demo))
    assert torch.equal(make_repeated_tokens(demo), make_repeated_tokens(bridge))
    assert torch.equal(make_repeated_tokens(demo), make_repeated_tokens("demo"))
    assert not torch.equal(make_repeated_tokens(demo), make_repeated_tokens(demo, seed=1))


def test_a_vocabulary_smaller_than_a_fixed_range_of_ids_will_do(built):
    # 256 ids; a range from 1,000 up has none of them
    assert int(make_repeated_tokens(built.model).max()) < 256


# compute_induction_score


def test_a_perfect_head_scores_one_where_the_formula_as_first_written_gives_less():
    # seq_len 50: two copies of 25 after a start token. The sum takes queries 25 .. 49; query 25 ends the first copy
    # and rests, query 50 repeats and is left out: 24 / 25.
    pattern = perfect(25)
    assert as_first_written(pattern, 50) == approx(24 / 25)
    assert compute_induction_score(pattern, 50) == 1.0
    # a fixed look back also fills the query that repeats nothing: both are 1
    back = looking(51, lambda query: query - 24)
    assert as_first_written(back, 50) == approx(1.0)
    assert compute_induction_score(back, 50) == 1.0


def test_chance_is_not_zero():
    # 7 tokens, period 3: queries 4, 5, 6 -> (1/5 + 1/6 + 1/7) / 3 = 107/630; first written (1/4 + 1/5 + 1/6) / 3
    assert compute_induction_score(uniform(7)) == approx(107 / 630)
    assert as_first_written(uniform(7), 6) == approx(37 / 180)


@pytest.mark.parametrize("back", [0, 1, 25, 23], ids=["current", "previous", "duplicate", "one too far on"])
def test_decoys_score_nothing(back):
    assert compute_induction_score(looking(51, lambda query: query - back if query > 25 else None)) == 0.0


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("period", [3, 4, 25])
def test_the_period_is_read_off_the_size(period, start):
    pattern = perfect(period, start=start)
    assert compute_induction_score(pattern) == 1.0
    assert compute_induction_score(pattern, 2 * period) == 1.0
    assert compute_induction_score(pattern, 2 * period + 1) == 1.0


def test_more_axes_give_one_score_per_head():
    heads = torch.stack([perfect(3), uniform(7)])
    assert compute_induction_score(heads).tolist() == approx([1.0, 107 / 630])
    half = torch.stack([heads, torch.stack([looking(7, lambda query: 0), uniform(7)])])
    assert compute_induction_score(half).tolist() == approx([0.5, 107 / 630])
    assert isinstance(compute_induction_score(perfect(3)), float)
    assert isinstance(compute_induction_score(perfect(3).numpy().astype(np.float16)), float)


def test_the_pattern_is_left_as_it_was():
    pattern = uniform(7).requires_grad_()
    before = pattern.detach().clone()
    compute_induction_score(pattern)
    assert torch.equal(pattern, before)


@pytest.mark.parametrize(
    ("kind", "pattern", "seq_len", "message"),
    [
        (ShapeError, torch.ones(5), None, r"a pattern of shape \[5\]; it needs \[query key\]"),
        (ShapeError, torch.ones(5, 7), None, "with as many keys as queries"),
        (ShapeError, torch.ones(0, 0), None, "with as many keys as queries"),
        (ShapeError, "pattern", None, "a str is no attention pattern"),
        (ShapeError, None, None, "a NoneType is no attention pattern"),
        (ShapeError, uniform(5), None, "seq_len=5 gives copies of 2 tokens; it needs at least 6"),
        (ShapeError, uniform(51), 4, "seq_len=4 gives copies of 2 tokens"),
        (ShapeError, uniform(51), 40, "seq_len=40 does not fit a pattern of 51 tokens: two copies of 20 make 40, or"),
        (ArgumentError, -10 * uniform(7), None, r"it needs probabilities, after the softmax \(`hook_pattern`"),
        (NonFiniteError, uniform(7) * float("nan"), None, "holds NaN or infinity"),
    ],
)
def test_what_is_no_pattern_is_refused(kind, pattern, seq_len, message):
    with pytest.raises(HeadscopeError, match=message) as caught:
        compute_induction_score(pattern, seq_len)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


# detect_induction_heads


def tokens_cache(n_tokens=7):
    """Two layers of two heads: L1H0 perfect, the others uniform."""
    plain = torch.stack([uniform(n_tokens), uniform(n_tokens)])[None]
    return [plain, torch.stack([perfect(n_tokens // 2), uniform(n_tokens)])[None]]


def test_every_kind_of_cache_gives_the_same_heads():
    first, second = tokens_cache()
    caches = [
        [first, second],
        (first[0], second[0]),
        [first.numpy(), second.numpy()],
        {("pattern", 0): first, ("pattern", 1): second},
        {"blocks.0.attn.hook_pattern": first, "blocks.1.attn.hook_pattern": second, "hook_embed": None},
        types.SimpleNamespace(attentions=(first, second)),
    ]
    for cache in caches:
        assert detect_induction_heads(cache) == [(1, 0, 1.0)]
    assert detect_induction_heads([None, second]) == [InductionHead(layer=1, head=0, score=1.0)]
    assert detect_induction_heads(second) == [(0, 0, 1.0)]  # one pattern counts as layer 0


def test_heads_come_best_first_and_a_score_must_exceed_the_threshold():
    cache = tokens_cache()
    found = detect_induction_heads(cache, threshold=0.1)
    assert [one[:2] for one in found] == [(1, 0), (0, 0), (0, 1), (1, 1)]
    assert [one.score for one in found] == approx([1.0, *[107 / 630] * 3])
    assert detect_induction_heads(cache, threshold=1.0) == []


@pytest.mark.parametrize(
    ("cache", "options", "message"),
    [
        (3, {}, "detect_induction_heads got a int; it needs a cache that holds attention patterns"),
        ({}, {}, "the cache holds no attention pattern; keep `hook_pattern`"),
        ({"hook_embed": torch.ones(1)}, {}, "the cache holds no attention pattern"),
        (types.SimpleNamespace(attentions=None), {}, "output_attentions=True and eager attention"),
        (tokens_cache(), {"threshold": 40.0}, "threshold=40.0; a score is a share of attention, so it needs 0 to 1"),
        (tokens_cache(), {"threshold": float("nan")}, "threshold=nan"),
        (tokens_cache(), {"seq_len": 40}, "seq_len=40 does not fit a pattern of 7 tokens"),
    ],
)
def test_what_is_no_cache_is_refused(cache, options, message):
    unchecked = detect_induction_heads.__wrapped__
    with pytest.raises(ArgumentError, match=message) as caught:
        unchecked(cache, **options)
    assert "\n" not in str(caught.value)


def test_a_model_is_no_cache(demo):
    with pytest.raises(ArgumentError, match="got a Model; it needs a cache.*To start from a model, use find_induction"):
        detect_induction_heads(demo)


# find_induction_heads


def test_the_heads_of_the_hand_built_model_are_found(built):
    found = find_induction_heads(built.model)
    assert [hs.HeadId(layer, head) for layer, head, _ in found] == built.heads("induction")
    assert found[0].score == approx(1.0, abs=1e-3)


def test_find_agrees_with_the_scan_on_the_same_tokens(demo):
    found = find_induction_heads(demo, seq_len=40, seed=3)
    scan = hs.scan(demo, probe=hs.probe_tokens(make_repeated_tokens(demo, 40, seed=3)))
    wanted = {score.head: score.mean for score in scan.ranked("induction")}
    assert {hs.HeadId(layer, head): score for layer, head, score in found.ranked} == approx(wanted, abs=TOLERANCE)
    assert [one.head for one in scan.ranked("induction")] == [hs.HeadId(*one[:2]) for one in found.ranked]


def test_the_strongest_head_is_shown_even_when_none_exceeds_the_threshold(demo):
    found = find_induction_heads(demo, threshold=1.0)
    assert found == []
    assert found.strongest == find_induction_heads(demo)[0]
    assert "no head exceeds 1" in found._repr_html_()


def test_the_picture_is_the_pattern_of_the_strongest_head(demo):
    found = find_induction_heads(demo)
    assert isinstance(found, list)
    assert found.pattern.shape == (51, 51)
    assert compute_induction_score(found.pattern) == approx(found.strongest.score, abs=TOLERANCE)
    picture = ElementTree.fromstring(found._repr_html_())
    drawn = [one.text for one in picture.iter() if one.tag.endswith("title")]
    assert len(drawn) == int((found.pattern >= 0.02).sum())
    assert len(found._repr_html_()) < 200_000
    texts = [one.text for one in picture.iter() if one.tag.endswith("text")]
    assert texts[0] == f"L1H{found.strongest.head}, induction score {found.strongest.score:.3f}"


def test_tokens_are_escaped_in_the_picture(demo):
    tokenizer = copy.copy(demo.tokenizer)
    words = types.SimpleNamespace(
        **{name: getattr(tokenizer, name) for name in ("bos_token_id", "all_special_ids")},
        convert_ids_to_tokens=lambda ids: ["<script>"] * len(ids),
        __len__=lambda: 1024,
    )
    opened = dataclasses.replace(demo, tokenizer=_Sized(words, 1024))
    page = find_induction_heads(opened)._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


class _Sized:
    """A stand-in tokenizer with a length."""

    def __init__(self, words, size):
        self._words, self._size = words, size

    def __getattr__(self, name):
        return getattr(self._words, name)

    def __len__(self):
        return self._size


# verify_induction_behavior


def test_an_induction_head_attends_and_matters(built):
    (head,) = built.heads("induction")
    found = verify_induction_behavior(built.model, head.layer, head.head)
    assert found.attends
    assert found.matters
    assert found.attention.mean == approx(1.0, abs=1e-3)
    assert found.attention.control < 0.05
    assert found.loss_after.mean - found.loss_before.mean == approx(found.delta_loss_nats.mean)
    assert found.delta_loss_nats.mean > 1
    assert found.delta_loss_nats.ci95[0] > 1
    assert abs(found.first_copy.mean) < 0.05


def test_it_is_what_ablate_and_scan_say(demo):
    found = verify_induction_behavior(demo, 1, 0, n_prompts=4, method="zero", seed=2)
    probe = hs.repeated_tokens(demo, n_prompts=4, period=25, seed=2)
    gone = hs.ablate(demo, "L1H0", probe=probe, method="zero", seed=2)
    assert found.delta_loss_nats == gone.delta_loss_nats
    assert (found.method, found.n_prompts, found.head) == ("zero", 4, hs.HeadId(1, 0))
    (score,) = (one for one in hs.scan(demo, probe=probe).ranked() if one.head == found.head)
    assert found.attention == score
    assert repr(found).startswith("InductionBehavior(L1H0: attention 0.8")


def test_a_head_of_another_role_does_not_attend(built):
    (sender,) = built.heads("previous_token")
    found = verify_induction_behavior(built.model, sender.layer, sender.head, n_prompts=4)
    assert not found.attends
    assert found.matters  # the circuit needs it


def test_a_head_without_a_role_does_neither(built):
    idle = built.heads("none")[0]
    found = verify_induction_behavior(built.model, idle.layer, idle.head, n_prompts=4)
    assert not found.attends
    assert not found.matters


def test_a_positional_decoy_does_not_pass():
    # It looks 24 back whatever the tokens are: on a fixed offset of 25 it would score 1.
    decoy = handbuilt(decoys=["positional"], offset=24)
    (head,) = decoy.heads("positional")
    fixed = find_induction_heads(decoy.model)
    assert (head.layer, head.head) in {one[:2] for one in fixed}
    assert not verify_induction_behavior(decoy.model, head.layer, head.head, n_prompts=4).attends


@pytest.mark.parametrize(
    ("layer", "head", "message"),
    [
        (7, 0, "has no head L7H0; it has 2 layers of up to 6 heads"),
        (1, 6, "has no head L1H6"),
        (-1, 0, "has no head L-1H0; .* counted from 0"),
        (0, -1, "has no head L0H-1; .* counted from 0"),
    ],
)
def test_heads_that_are_not_there_are_refused(layer, head, message, demo):
    with pytest.raises(ArgumentError, match=message):
        verify_induction_behavior(demo, layer, head)


# Bad input to the others


@pytest.mark.parametrize("function", [make_repeated_tokens, find_induction_heads])
@pytest.mark.parametrize(
    ("kind", "seq_len", "message"),
    [
        (ShapeError, 5, "seq_len=5 gives copies of 2 tokens; it needs at least 6"),
        (ShapeError, 0, "seq_len=0 gives copies of 0 tokens"),
        (ShapeError, 4000, "reads at most"),
        (ArgumentError, 50.0, "seq_len=50.0; it needs a whole number"),
        (ArgumentError, True, "seq_len=True; it needs a whole number"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(function, kind, seq_len, message, demo):
    unchecked = function.__wrapped__
    with pytest.raises(HeadscopeError, match=message) as caught:
        unchecked(demo, seq_len=seq_len)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", [make_repeated_tokens, find_induction_heads])
@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        (torch.nn.Linear(2, 2), UnsupportedModel, r"Linear fails on token ids alone .* write load\(model, forward="),
        (torch.ones(7, 7), ArgumentError, "load got a Tensor; it needs a hub id"),
    ],
    ids=["a layer", "a tensor"],
)
def test_what_is_no_model_is_refused(function, source, kind, message):
    with pytest.raises(kind, match=message):
        function(source)


# Against TransformerLens, in the order of the lesson


def test_the_lesson_s_calls_in_their_order_on_transformer_lens(bridge):
    seq_len, half = 50, 25
    tokens = make_repeated_tokens(bridge, seq_len=seq_len)
    assert torch.equal(tokens[:, :1], bridge.to_tokens(""))
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(tokens)
    assert logits.shape == (1, 51, bridge.cfg.d_vocab)

    # A head's score, from the pattern that TransformerLens cached: rows 26 .. 50 are the second copy.
    scores = {}
    for layer in range(bridge.cfg.n_layers):
        pattern = cache["pattern", layer][0]
        for head in range(bridge.cfg.n_heads):
            stripe = [float(pattern[head, query, query - half + 1]) for query in range(half + 1, 2 * half + 1)]
            scores[layer, head] = sum(stripe) / half
            assert compute_induction_score(pattern[head], seq_len) == approx(scores[layer, head], abs=TOLERANCE)
            # As first written: the last query of the first copy in, the last of the second out.
            early = float(pattern[head, half, 1])
            assert as_first_written(pattern[head], seq_len) == approx(
                scores[layer, head] + (early - stripe[-1]) / half, abs=TOLERANCE
            )

    detected = detect_induction_heads(cache, threshold=0.4)
    above = sorted((score, place) for place, score in scores.items() if score > 0.4)[::-1]
    assert [(one.layer, one.head) for one in detected] == [place for _, place in above]
    assert [one.score for one in detected] == approx([score for score, _ in above], abs=TOLERANCE)

    found = find_induction_heads(bridge)
    assert [one[:2] for one in found] == [one[:2] for one in detected]
    assert [one.score for one in found] == approx([one.score for one in detected], abs=TOLERANCE)
    assert torch.equal(found.tokens, tokens)
    layer, head, _ = found.strongest
    torch.testing.assert_close(found.pattern, cache["pattern", layer][0, head], atol=TOLERANCE, rtol=0)

    checked = verify_induction_behavior(bridge, layer, head, method="zero", n_prompts=4)
    assert checked.attends
    assert checked.matters
    before, after = losses_by_hooks(bridge, layer, head)
    assert checked.loss_before.mean == approx(before, abs=TOLERANCE)
    assert checked.loss_after.mean == approx(after, abs=TOLERANCE)
    assert checked.delta_loss_nats.mean == approx(after - before, abs=TOLERANCE)


def losses_by_hooks(bridge, layer, head):
    """Loss of the second copy with the head and with its z at zero, by TransformerLens's hooks."""
    from headscope.probes.copies import copies

    def without(z, hook):
        z[:, :, head] = 0
        return z

    probe = hs.repeated_tokens(hs.load(bridge), n_prompts=4, period=25, seed=0)
    sums = np.zeros(2)
    for prompt in probe.prompts:
        tokens, rows = torch.from_numpy(prompt)[None], torch.from_numpy(copies(prompt).second)
        with torch.no_grad():
            runs = bridge(tokens), bridge.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", without)])
        for index, logits in enumerate(runs):
            chosen = logits[0].log_softmax(-1)[rows, tokens[0, rows + 1]]
            sums[index] -= float(chosen.mean()) / 4
    return tuple(sums)


def test_caches_of_one_prompt_without_batch_and_in_compatibility_mode(bridge, demo):
    tokens = make_repeated_tokens(bridge)
    wanted = find_induction_heads(demo)
    with torch.no_grad():
        _, squeezed = bridge.run_with_cache(tokens, remove_batch_dim=True)
    hf = copy.deepcopy(demo.hf)
    folded = build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config, tokenizer=demo.tokenizer)
    folded.enable_compatibility_mode(disable_warnings=True)
    with torch.no_grad():
        _, cache = folded.run_with_cache(tokens)
    for found in (detect_induction_heads(squeezed), detect_induction_heads(cache), find_induction_heads(folded)):
        assert [one[:2] for one in found] == [one[:2] for one in wanted]
        assert [one.score for one in found] == approx([one.score for one in wanted], abs=TOLERANCE)


def test_the_attentions_of_a_transformers_model(demo):
    hf = copy.deepcopy(demo.hf)
    hf.set_attn_implementation("eager")
    tokens = make_repeated_tokens(hf)
    with torch.no_grad():
        output = hf(input_ids=tokens, output_attentions=True)
    wanted = find_induction_heads(demo)
    for found in (detect_induction_heads(output), detect_induction_heads(output.attentions), find_induction_heads(hf)):
        assert [one.score for one in found] == approx([one.score for one in wanted], abs=TOLERANCE)


def test_an_nnsight_model(demo):
    from nnsight import TransformersModel

    lens = TransformersModel(copy.deepcopy(demo.hf), tokenizer=demo.tokenizer, task="text-generation")
    wanted = find_induction_heads(demo)
    assert find_induction_heads(lens) == wanted
    layer, head, _ = wanted.strongest
    assert verify_induction_behavior(lens, layer, head, n_prompts=2).attends


def test_a_transformer_lens_model_without_a_transformers_model_runs_by_itself():
    bridge = TransformerBridge.boot_native(
        {"n_layers": 2, "d_model": 32, "n_heads": 2, "d_head": 16, "n_ctx": 128, "d_vocab": 90, "act_fn": "gelu"}
    )
    tokens = make_repeated_tokens(bridge, 20)
    assert tokens.shape == (1, 20)
    found = find_induction_heads(bridge, threshold=0.0, seq_len=20)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(tokens)
    wanted = detect_induction_heads(cache, threshold=0.0)
    assert [one[:2] for one in found] == [one[:2] for one in wanted]
    assert [one.score for one in found] == approx([one.score for one in wanted], abs=1e-6)
    assert len(found.ranked) == 4
    assert not verify_induction_behavior(bridge, 0, 0, n_prompts=2).attends, "a random head has no stripe"


def test_a_hooked_transformer_of_before_runs_by_itself(bridge, demo):
    # A stand-in: the class is gone from TransformerLens 4.
    fields = {"cfg": bridge.cfg, "tokenizer": demo.tokenizer, "run_with_cache": staticmethod(bridge.run_with_cache)}
    older = type("HookedTransformer", (), {"__module__": "transformer_lens.HookedTransformer", **fields})()
    tokens = make_repeated_tokens(older)
    assert tokens.shape == (1, 51)
    assert tokens[0, 0] == demo.bos_token_id
    assert [one[:2] for one in find_induction_heads(older)[:1]] == [find_induction_heads(demo).strongest[:2]]
    with pytest.raises(ArgumentError, match="HookedTransformer, which holds no transformers model"):
        verify_induction_behavior(older, 1, 0)
    # A start token and two copies of n_ctx // 2 are one token too many.
    limit = bridge.cfg.n_ctx
    with pytest.raises(ShapeError, match=f"makes {limit + 1} tokens, but the model reads at most {limit}; shorten"):
        make_repeated_tokens(older, limit)


def test_neither_library_is_needed(demo, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] in ("transformer_lens", "nnsight")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformer_lens", None)
    monkeypatch.setitem(sys.modules, "nnsight", None)
    found = find_induction_heads(demo)
    assert detect_induction_heads([found.pattern[None]])
    assert verify_induction_behavior(demo, *found.strongest[:2], n_prompts=2).attends
