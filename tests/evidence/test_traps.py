"""Mistakes that published tools and lessons make when they scan heads: one test each, named for the mistake."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytest import approx
from transformers import GPT2Config, GPT2LMHeadModel

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from headscope.planted.handbuilt import handbuilt
from headscope.probes.probe import Probe

PERIOD = 20
N_TOKENS = 2 * PERIOD + 1


@pytest.fixture(scope="module")
def built():
    return handbuilt(vocab_size=128, n_positions=128, decoys=("positional", "duplicate_token"), offset=PERIOD - 1)


@pytest.fixture(scope="module")
def probe(built):
    """The classic [BOS, r, r], on which the mistakes show best."""
    return hs.repeated_tokens(hs.load(built.model), n_prompts=4, period=PERIOD, jitter=False)


@pytest.fixture(scope="module")
def scan(built, probe):
    return hs.scan(built.model, probe=probe)


def score(scan, head, role="induction"):
    (found,) = [one for one in scan.ranked(role) if one.head == head]
    return found


@torch.no_grad()
def pattern(hf, probe, head) -> np.ndarray:
    """[prompt query key] from the model's own eager attention."""
    before = hf.config._attn_implementation
    hf.set_attn_implementation("eager")
    attentions = hf(torch.from_numpy(np.stack(probe.prompts)), output_attentions=True).attentions
    hf.set_attn_implementation(before)
    return attentions[head.layer][:, head.head].double().numpy()


def lesson_formula(pattern: np.ndarray, seq_len: int) -> float:
    """As it stands in a popular lesson: from seq_len // 2 on, divided by seq_len // 2."""
    half = seq_len // 2
    induction_attn = 0.0
    for q in range(half, seq_len):
        k = q - half + 1
        if 0 <= k < seq_len:
            induction_attn += pattern[q, k]
    return induction_attn / half


def test_one_query_too_many(built, probe, scan):
    # 41 tokens: queries 21 .. 40 repeat, 20 of them. The lesson starts at 20, the end of the first copy, and divides
    # by 20. Who looks 19 back at all 21 gets 21/20 = 1.05: no probability. A perfect head has 1 with us, never more.
    (positional,) = built.heads("positional")
    assert lesson_formula(pattern(built.model, probe, positional)[0], N_TOKENS) == approx(1.05, abs=1e-4)
    assert score(scan, positional).mean == approx(1, abs=1e-4)
    assert all(one.mean <= 1 for one in scan.scores)
    (induction,) = built.heads("induction")
    assert score(scan, induction).mean == approx(1, abs=1e-3)


def test_one_query_too_many_moves_chance_as_well():
    # Period 3, uniform attention. The lesson: (1/4 + 1/5 + 1/6 + 1/7) / 3 = 319/1260. True repeats: 107/630.
    model = uniform_model()
    probe = hs.repeated_tokens(model, n_prompts=1, period=3, jitter=False)
    head = hs.HeadId(0, 0)
    assert lesson_formula(pattern(model.hf, probe, head)[0], 7) == approx(319 / 1260, abs=1e-6)
    assert score(hs.scan(model, probe=probe), head).mean == approx(107 / 630, abs=1e-6)


def test_dividing_by_all_rows(built, probe, scan):
    # 20 of 41 rows can hold induction: over all rows a perfect head tops out at 20/41 = 0.488 (0.495 at period 50).
    (head,) = built.heads("induction")
    repeats = np.arange(PERIOD + 1, N_TOKENS)
    stripe = pattern(built.model, probe, head)[:, repeats, repeats - PERIOD + 1]
    assert stripe.sum(axis=1).mean() / N_TOKENS == approx(20 / 41, abs=1e-3)
    assert score(scan, head).mean > 0.999


@pytest.mark.parametrize(("role", "offset"), [("duplicate_token", PERIOD), ("previous_token", 1)])
def test_the_wrong_diagonal(built, probe, scan, role, offset):
    # Scoring key = query - period, or key = query - 1, names these heads and misses the true one.
    (wrong,), (true,) = built.heads(role), built.heads("induction")

    def on_diagonal(head):
        repeats = np.arange(PERIOD + 1, N_TOKENS)
        return pattern(built.model, probe, head)[:, repeats, repeats - offset].mean()

    assert on_diagonal(wrong) > 0.99
    assert on_diagonal(true) < 0.01
    assert score(scan, wrong).mean < 0.01
    assert wrong not in {one.head for one in scan.heads("induction")}
    assert true in {one.head for one in scan.heads("induction")}


def test_the_positional_shortcut(built, scan):
    # Without a control this head is the induction head's equal on the classic probe.
    (positional,), (true,) = built.heads("positional"), built.heads("induction")
    assert score(scan, positional).mean >= score(scan, true).mean - 1e-3
    assert score(scan, positional).selectivity.mean == approx(0, abs=1e-6)
    assert [one.head for one in scan.heads("induction")] == [true]
    wanted = {"layer": true.layer, "head": true.head, "score": score(scan, true).mean}
    assert scan.to_dict()["found"]["induction"] == [wanted]
    # The default probe jitters, so that there it does not even score.
    model = hs.load(built.model)
    default = hs.scan(model, probe=hs.repeated_tokens(model, period=PERIOD))
    assert default.probe["jitter"]
    assert score(default, positional).mean < 0.3


def test_random_ids_decoded_and_read_again():
    # Decoding random ids and tokenising the text gives other ids. A scan of random tokens needs no text at all.
    class NoText:
        all_special_ids = (127,)
        bos_token_id = 127

        def __len__(self):
            return 128

        def __getattr__(self, name):
            raise AssertionError(f"the tokenizer was asked for {name}")

        def __call__(self, *args, **kwargs):
            raise AssertionError("the tokenizer was called")

    hf = tiny_causal_lm("gpt2")
    model = hs.load(hf, tokenizer=NoText())
    probe = hs.repeated_tokens(model, n_prompts=3, period=10)
    read = []

    def note(module, args, kwargs):
        read.append(kwargs["input_ids"])

    handle = hf.register_forward_pre_hook(note, with_kwargs=True)
    model = hs.load(model)  # with the hook on it: its check reads prompts of its own
    read.clear()
    hs.scan(model, probe=probe)
    handle.remove()
    assert torch.cat(read).tolist() == np.stack(probe.prompts + probe.controls).tolist()


def test_options_dropped_when_a_list_of_detectors_is_given():
    # What holds for one detector holds for each of a list: probe, kernel, precision, progress.
    model = hs.load(tiny_causal_lm("llama"))
    calls = []
    options = {"kernel": "reference", "precision": 0.03, "progress": lambda *done: calls.append(done)}
    probe = hs.repeated_tokens(model, n_prompts=3, period=8, seed=4)
    one = hs.scan(model, probe=probe, detectors=["first_token"], **options)
    n_calls = len(calls)
    both = hs.scan(model, probe=probe, detectors=["first_token", "induction"], **options)
    assert len(calls) > n_calls > 0
    for scan in (one, both):
        assert scan.provenance.kernels == ("reference",)
        assert scan.probe["precision"] == 0.03
        assert scan.probe["seed"] == scan.provenance.seed == 4
        assert all(found.ci95[1] - found.mean <= 0.03 for found in scan.scores)


def test_input_edited_in_place(built, probe):
    before = [row.copy() for row in (*probe.prompts, *probe.controls)]
    for row in (*probe.prompts, *probe.controls):
        row.setflags(write=False)
    first, second = (hs.scan(built.model, probe=probe) for _ in range(2))
    assert first.scores == second.scores
    assert all(np.array_equal(*pair) for pair in zip(before, (*probe.prompts, *probe.controls), strict=True))
    # Tensors that a user keeps are neither edited nor shared.
    ids = torch.tensor([[5, 6, 7, 5, 6]])
    hs.scan(built.model, probe=hs.probe_tokens(ids))
    assert ids.tolist() == [[5, 6, 7, 5, 6]]


def test_activations_edited_in_place():
    # A detector that zeroes the diagonal of a cached pattern changes what the next one sees, and the logits.
    hf = tiny_causal_lm("llama")
    model = hs.load(hf)
    tokens = torch.tensor([[5, 6, 7, 5, 6, 7]])
    with torch.no_grad():
        before = hf(tokens).logits
        alone = hs.scan(model, probe=hs.probe_tokens(tokens), detectors=["current_token"])
        all_of_them = hs.scan(model, probe=hs.probe_tokens(tokens))
        assert torch.equal(hf(tokens).logits, before)
    for one in alone.scores:
        assert score(all_of_them, one.head, "current_token").mean == approx(one.mean, abs=1e-7)


def test_a_standard_error_of_zero_from_one_prompt():
    model = hs.load(tiny_causal_lm("gpt2"))
    scan = hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=1, period=8))
    for one in scan.scores:
        assert one.ci95 is None
        assert one.selectivity.ci95 is None
    assert "[" not in repr(scan.scores[0])
    assert scan.to_dict()["heads"][0]["scores"]["induction"]["ci95"] is None
    assert scan.to_frame()[["ci_low", "ci_high", "selectivity_low", "selectivity_high"]].isna().all(axis=None)


def test_a_standard_error_of_zero_from_no_data():
    # No token repeats: no score, no zero, no NaN, but a reason.
    scan = hs.scan(tiny_causal_lm("gpt2"), probe=hs.probe_tokens([5, 6, 7, 8]))
    assert "induction" not in {one.detector for one in scan.scores}
    assert scan.unscored["induction"] == "no prompt has a target for it: no token repeats"
    assert scan.to_dict()["unscored"] == scan.unscored


def test_tokens_of_one_prompt_counted_as_independent():
    # Two prompts of 50 repeats are two draws, not 100: half = t(1) * |a - b| / sqrt(2) / sqrt(2) = 12.706 |a - b| / 2.
    model = hs.load(tiny_causal_lm("gpt2"))
    probe = hs.repeated_tokens(model, n_prompts=2, period=50, jitter=False)
    both = hs.scan(model, probe=probe)
    alone = [hs.scan(model, probe=hs.probe_tokens(prompt)) for prompt in probe.prompts]
    for one in both.ranked("induction"):
        a, b = (score(scan, one.head).mean for scan in alone)
        assert one.mean == approx((a + b) / 2, abs=1e-6)
        assert one.ci95[1] == approx(min(1, (a + b) / 2 + 12.706205 * abs(a - b) / 2), abs=1e-5)


def test_chance_taken_for_zero():
    # Uniform attention over 7 tokens already scores 0.17 for induction and 0.27 for the previous token.
    model = uniform_model()
    scan = hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=2, period=3, jitter=False))
    for one in scan.scores:
        assert one.chance == approx(one.mean, abs=1e-6)
        assert one.chance > 0.15


def test_attention_on_the_start_token_left_out(built, probe, scan):
    # Every head's rest on the first token is in every scan, unasked.
    assert len(scan.ranked("first_token")) == len(built.roles)
    for head in built.roles:
        on_start = pattern(built.model, probe, head)[:, 1:, 0].mean()
        assert score(scan, head, "first_token").mean == approx(on_start, abs=1e-5)
    (induction,) = built.heads("induction")
    # 40 queries: the 20 of the first copy have no match and rest; the 20 of the second do not.
    assert score(scan, induction, "first_token").mean == approx(0.5, abs=0.01)
    assert score(scan, induction, "first_token").control > 0.95


def test_several_earlier_copies_of_which_one_counts():
    # Three copies of r. Who attends to the token after the *first* copy matches a prefix just as well.
    tokens = np.array([9, 5, 6, 7, 5, 6, 7, 5, 6, 7])
    by_name = {detector.name: detector.targets(tokens) for detector in hs.DETECTORS}
    every, recent = by_name["induction"], by_name["induction_recent"]
    assert list(zip(every.query, every.key, strict=True))[3:] == [(7, 2), (7, 5), (8, 3), (8, 6), (9, 4), (9, 7)]
    assert list(zip(recent.query, recent.key, strict=True))[3:] == [(7, 5), (8, 6), (9, 7)]


def test_a_control_in_which_something_still_repeats(built):
    # Had the control repeats of its own, an induction head would keep a share of its score there. With 128 ids and 61
    # tokens there would be some, were prefix, gap, tail and control drawn without regard to each other.
    model = hs.load(built.model)
    scan = hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=16, period=PERIOD))
    (induction,), (duplicate,) = built.heads("induction"), built.heads("duplicate_token")
    assert score(scan, induction).control < 1e-3
    assert score(scan, duplicate, "duplicate_token").control < 1e-3


def test_a_control_read_at_its_own_targets():
    # The control is scored where the *prompt* repeats; it has no targets of its own.
    model = uniform_model()
    rows = [np.array([[5, 6, 7, 5, 6]]), np.array([[5, 6, 7, 8, 9]])]
    scan = hs.scan(model, probe=Probe(prompts=tuple(rows[0]), controls=tuple(rows[1]), settings={}))
    # Queries 3 and 4 see 4 and 5 keys: (1/4 + 1/5) / 2 = 0.225 on both.
    found = score(scan, hs.HeadId(0, 0))
    assert found.mean == approx(0.225, abs=1e-6)
    assert found.control == approx(0.225, abs=1e-6)


def uniform_model():
    """Queries and keys are zero: attention is uniform over what a query may see."""
    config = GPT2Config(vocab_size=64, n_positions=64, n_embd=8, n_layer=1, n_head=2, bos_token_id=0)
    gpt2 = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        gpt2.transformer.h[0].attn.c_attn.weight[:, :16] = 0
        gpt2.transformer.h[0].attn.c_attn.bias[:16] = 0
    return hs.load(gpt2)
