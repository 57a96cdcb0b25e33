"""TokenSpace in token space: against slow formulas of our own, on heads whose tables we know, and of bad input."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from pytest import approx
from torch.nn.functional import layer_norm, rms_norm

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from headscope.errors import ArgumentError, TokenError, UnsupportedModel
from headscope.evidence import token_space
from headscope.evidence.copying import TokenSpace
from headscope.evidence.token_space import ov_table, qk_table, virtual_circuit
from headscope.planted.handbuilt import DECOYS, MATCH_GAIN, handbuilt
from headscope.planted.handbuilt_rotary import handbuilt_rotary


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tensors this small gain nothing from a second thread, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def loaded(family):
    return hs.load(tiny_causal_lm(family))


@functools.cache
def built(kind):
    if kind == "gpt2":
        return handbuilt(vocab_size=128, n_positions=128, decoys=DECOYS, seed=2)
    return handbuilt_rotary(vocab_size=128, n_positions=128, grouped=kind == "grouped", seed=2)


def head_of(kind, role):
    (head,) = built(kind).heads(role)
    return head


# ---- a tiny llama, from its named weights: RMSNorm, rotary, 4 query heads on 2 KV heads


class Llama:
    """One layer's heads in float64, row-vector convention."""

    def __init__(self):
        self.hf = loaded("llama").hf
        self.embedding = self.hf.model.embed_tokens.weight.detach().double()
        self.unembedding = self.hf.lm_head.weight.detach().double()
        self.config = self.hf.config

    def weights(self, layer, head):
        """W_Q, W_K, W_V [d_model d_head] and W_O [d_head d_model]."""
        attention, d = self.hf.model.layers[layer].self_attn, self.config.head_dim
        own, shared = slice(head * d, (head + 1) * d), slice(head // 2 * d, (head // 2 + 1) * d)
        return tuple(
            weight.detach().double()
            for weight in (
                attention.q_proj.weight[own].T,
                attention.k_proj.weight[shared].T,
                attention.v_proj.weight[shared].T,
                attention.o_proj.weight[:, own].T,
            )
        )

    def normed(self, layer, streams):
        gain = self.hf.model.layers[layer].input_layernorm.weight.detach().double()
        return rms_norm(streams, streams.shape[-1:], gain, self.config.rms_norm_eps)

    def turned(self, vectors, position):
        half = vectors.shape[-1] // 2
        base = self.config.rope_parameters["rope_theta"]
        angle = position * base ** -(torch.arange(half).double() / half)
        first, second = vectors[:, :half], vectors[:, half:]
        return torch.cat(
            [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1
        )

    def dots(self, layer, head, queries, keys, offset):
        """q . k with the query `offset` after the key: the distance is all that rotary embedding leaves."""
        w_q, w_k, *_ = self.weights(layer, head)
        q = self.turned(self.normed(layer, queries) @ w_q, offset)
        return q @ (self.normed(layer, keys) @ w_k).T


def test_qk_table_equals_the_formula():
    llama, tokens, offset = Llama(), [5, 77, 30], 9
    rows = qk_table(loaded("llama"), "1.3", tokens, offset=offset, top=7)
    # fewer tokens than the sample: all but the special ones, 1 and 2
    pool = [token for token in range(128) if token not in (1, 2)]
    wanted = llama.dots(1, 3, llama.embedding[tokens], llama.embedding[pool], offset)
    assert [row.token for row in rows] == tokens
    for row, dots in zip(rows, wanted, strict=True):
        order = dots.argsort(descending=True)
        assert [token for token, _, _ in row.best] == [pool[place] for place in order[:7]]
        assert [value for _, _, value in row.best] == approx(dots[order[:7]].tolist(), abs=1e-3, rel=1e-4)
        assert row.own_rank == int((dots > dots[pool.index(row.token)]).sum()) + 1
    # at another distance it is another table
    assert qk_table(loaded("llama"), "1.3", tokens, offset=1, top=7) != rows


def test_qk_table_through_a_sender_reads_what_that_one_writes():
    llama, tokens, offset = Llama(), [5, 77, 30], 9
    _, _, w_v, w_o = llama.weights(0, 2)
    pool = [token for token in range(128) if token not in (1, 2)]
    embedded = llama.embedding[pool]
    written = llama.normed(0, embedded) @ w_v @ w_o
    written *= embedded.norm(dim=1, keepdim=True) / written.norm(dim=1, keepdim=True)
    wanted = llama.dots(1, 3, llama.embedding[tokens], written, offset)
    for row, dots in zip(qk_table(loaded("llama"), "1.3", tokens, sender="L0H2", offset=offset), wanted, strict=True):
        order = dots.argsort(descending=True)
        assert [token for token, _, _ in row.best] == [pool[place] for place in order[:5]]
        assert [value for _, _, value in row.best] == approx(dots[order[:5]].tolist(), abs=1e-3, rel=1e-4)


def test_ov_table_equals_the_formula():
    llama, tokens = Llama(), [5, 77, 30, 5]
    _, _, w_v, w_o = llama.weights(1, 3)
    # Both norms' sizes are left out: their gains alone are folded in.
    read = llama.embedding[tokens] * llama.hf.model.layers[1].input_layernorm.weight.detach().double()
    wanted = read @ w_v @ w_o * llama.hf.model.norm.weight.detach().double() @ llama.unembedding.T
    factor = None
    for row, raised in zip(ov_table(loaded("llama"), "1.3", tokens, top=6), wanted, strict=True):
        order = raised.argsort(descending=True)
        assert [token for token, _, _ in row.best] == order[:6].tolist()
        assert row.own_rank == int((raised > raised[row.token]).sum()) + 1
        # gains are read up to one common factor
        factor = row.best[0][2] / float(raised[order[0]]) if factor is None else factor
        assert [value for _, _, value in row.best] == approx((factor * raised[order[:6]]).tolist(), rel=1e-3)


def test_virtual_circuit_equals_the_formula():
    llama, offset = Llama(), 5
    pool = [token for token in range(128) if token not in (1, 2)]
    embedded = llama.embedding[pool]
    shares = []
    for head in range(4):
        _, _, w_v, w_o = llama.weights(0, head)
        dots = llama.dots(1, 0, embedded, llama.normed(0, embedded) @ w_v @ w_o, offset)
        shares.append(float((dots.argmax(1) == torch.arange(len(pool))).double().mean()))
    found = virtual_circuit(loaded("llama"), "0.1", "1.0", offset=offset)
    assert found.n_tokens == 126
    assert found.chance == 1 / 126
    assert found.diagonal_share == approx(shares[1], abs=1.5 / 126)
    assert found.control_share == approx(max(shares[:1] + shares[2:]), abs=1.5 / 126)
    assert (found.sender, found.receiver, found.offset) == (hs.HeadId(0, 1), hs.HeadId(1, 0), offset)


def test_where_a_norm_centres_the_tables_are_centred_too():
    # GPT-2: LayerNorm. Its positions are added before the first layer, so injected streams hold none.
    hf = loaded("gpt2").hf
    block, d = hf.transformer.h[1], 16
    ln = block.ln_1

    def projected(streams, part):
        normed = layer_norm(streams, streams.shape[-1:], ln.weight, ln.bias, ln.eps)
        return (normed @ block.attn.c_attn.weight + block.attn.c_attn.bias)[:, part * 64 + 2 * d : part * 64 + 3 * d]

    tokens, pool = [5, 77], [token for token in range(128) if token not in (126, 127)]
    with torch.no_grad():
        table = hf.transformer.wte.weight
        wanted = projected(table[tokens], 0) @ projected(table[pool], 1).T
    for row, dots in zip(qk_table(loaded("gpt2"), "1.2", tokens, offset=4), wanted, strict=True):
        assert row.best[0][0] == pool[int(dots.argmax())]
        assert row.best[0][2] == approx(float(dots.max()), abs=1e-3)


# ---- heads that we know


@pytest.mark.parametrize("kind", ["gpt2", "rotary", "grouped"])
def test_the_true_pair_is_an_identity_and_no_other_head_of_the_layer_is(kind):
    pair = head_of(kind, "previous_token"), head_of(kind, "induction")
    found = virtual_circuit(built(kind).model, *pair)
    # a code shares two digits with itself and at most one with another: every token finds itself
    assert found.diagonal_share == 1.0
    assert (found.n_tokens, found.chance) == (127, 1 / 127)  # all but the start token
    # The decoy sender writes the same, of another position: weights cannot tell, and the control says so.
    assert found.control_head == head_of(kind, "wrong_position_sender")
    assert found.control_share == 1.0
    layer = [head for head in built(kind).heads("none") if head.layer == pair[0].layer]
    for idle in layer[:2]:
        assert virtual_circuit(built(kind).model, idle, pair[1]).diagonal_share < 0.1


def test_without_the_decoy_the_control_is_at_chance():
    plain = handbuilt(vocab_size=128, n_positions=128, seed=2)
    (sender,), (receiver,) = plain.heads("previous_token"), plain.heads("induction")
    found = virtual_circuit(plain.model, sender, receiver)
    assert found.diagonal_share == 1.0
    assert found.control_head.layer == sender.layer
    assert found.control_head != sender
    assert found.control_share < 0.1
    # and it is the largest over the sender's layer
    layer = [hs.HeadId(sender.layer, head) for head in range(plain.model.config.n_head)]
    others = [virtual_circuit(plain.model, head, receiver).diagonal_share for head in layer if head != sender]
    assert found.control_share == max(others)


@pytest.mark.parametrize("kind", ["gpt2", "rotary", "grouped"])
def test_ov_table_of_the_induction_head_raises_the_attended_token(kind):
    table = ov_table(built(kind).model, head_of(kind, "induction"), [3, 40, 127], top=2)
    for row in table:
        assert row.own_rank == 1
        assert row.best[0][0] == row.token
    # a token shares two digits with itself and one with the next best
    ratios = [row.best[1][2] / row.best[0][2] for row in table]
    assert ratios == approx([0.5] * 3, rel=1e-3)
    worst = ov_table(built(kind).model, head_of(kind, "anti_induction"), [3, 40, 127])
    assert [row.own_rank for row in worst] == [128] * 3  # it lowers that one most


@pytest.mark.parametrize("offset", [1, 24, 100])
def test_qk_table_of_the_induction_head_looks_for_its_own_token(offset):
    model, head = built("gpt2").model, head_of("gpt2", "induction")
    sender = head_of("gpt2", "previous_token")
    for row in qk_table(model, head, [3, 40, 127], sender=sender, offset=offset):
        assert row.own_rank == 1
        # Two digits shared, MATCH_GAIN each. What was written is made as long as the embedding, which is two copies of
        # the code: sqrt(2) times as long as one. sqrt(d_head) makes up for the model's own factor.
        d_head = model.config.n_embd // model.config.n_head
        assert row.best[0][2] == approx(2 * MATCH_GAIN * math.sqrt(2) * math.sqrt(d_head), rel=1e-3)
    # An embedding holds nothing where its key reads: no token is looked for.
    for row in qk_table(model, head, [3, 40, 127], offset=offset):
        assert abs(row.best[0][2]) < 0.1


def test_the_demo_s_circuit_shows():
    found = virtual_circuit("demo", "L0H4", "L1H1")
    assert found.n_tokens == 512
    assert found.chance == 1 / 512
    assert found.offset == 24
    assert found.diagonal_share > 0.3  # 0.58; through the best other head 0.12
    assert found.diagonal_share > 2 * found.control_share
    assert found.control_head.layer == 0


def test_texts_are_the_tokenizer_s():
    model = hs.load("demo")
    ids = model.tokenizer("return x")["input_ids"][:3]
    for row, token in zip(ov_table(model, "1.1", ids, top=2), ids, strict=True):
        assert row.text == model.tokenizer.decode([token])
        assert [text for _, text, _ in row.best] == [model.tokenizer.decode([one]) for one, _, _ in row.best]
    assert all(row.text is None and row.best[0][1] is None for row in ov_table(loaded("llama"), "1.1", [5]))


# ---- the sample


def test_the_sample_is_seeded_and_weights_may_be_read_once(monkeypatch):
    monkeypatch.setattr(token_space, "SAMPLE", 40)
    model = loaded("llama")
    first = virtual_circuit(model, "0.1", "1.0")
    assert first.n_tokens == 40
    assert virtual_circuit(model, "0.1", "1.0", circuits=TokenSpace(model)) == first
    by_seed = [qk_table(model, "1.0", [5], seed=seed, top=41)[0] for seed in (0, 0, 1)]
    keys = [{token for token, _, _ in row.best} for row in by_seed]
    assert by_seed[0] == by_seed[1]
    assert keys[0] != keys[2]
    # the query's own token is always among the keys, special tokens never are
    assert all(5 in one and len(one) in (40, 41) and not one & {1, 2} for one in keys)


def test_more_is_not_given_than_there_is():
    (row,) = ov_table(loaded("llama"), "1.0", [5], top=1000)
    assert len(row.best) == 128
    assert len({token for token, _, _ in row.best}) == 128


def test_families_that_are_hard_give_finite_tables():
    # gemma2 normalises what heads write; qwen3 normalises q and k; gemma2 scales its embedding
    for family in ("gemma2", "qwen3", "gpt_neox"):
        model = loaded(family)
        assert 0 <= virtual_circuit(model, "0.1", "1.0").diagonal_share <= 1
        for row in (*qk_table(model, "1.0", [5], sender="0.1"), *ov_table(model, "1.0", [5])):
            assert all(math.isfinite(value) for _, _, value in row.best)


# ---- bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: ov_table(m, "9.9", [5]), ArgumentError, "has no head L9H9"),
        (lambda m: ov_table(m, "1.0", [5], top=0), ArgumentError, "top=0; it needs at least 1"),
        (lambda m: ov_table(m, "1.0", []), TokenError, "give at least one from 0 to 127"),
        (lambda m: ov_table(m, "1.0", [5, 128, -1]), TokenError, r"token ids \[128, -1\] do not fit"),
        (lambda m: qk_table(m, "9.9", [5]), ArgumentError, "has no head L9H9"),
        (lambda m: qk_table(m, "1.0", [128]), TokenError, r"token ids \[128\] do not fit"),
        (lambda m: qk_table(m, "1.0", [5], top=0), ArgumentError, "top=0; it needs at least 1"),
        (lambda m: qk_table(m, "1.0", [5], offset=0), ArgumentError, "offset=0; a key is at least 1 token before"),
        (lambda m: qk_table(m, "1.0", [5], sender="1.1"), ArgumentError, "L1H1 does not come before L1H0"),
        (lambda m: qk_table(m, "1.0", [5], sender="0.7"), ArgumentError, "has no head L0H7"),
        (lambda m: virtual_circuit(m, "1.0", "0.1"), ArgumentError, "L1H0 does not come before L0H1.*earlier layer"),
        (lambda m: virtual_circuit(m, "0.1", "5.0"), ArgumentError, "has no head L5H0"),
        (lambda m: virtual_circuit(m, "0.1", "1.0", offset=0), ArgumentError, "offset=0"),
        (
            lambda m: virtual_circuit(m, "0.1", "1.0", offset=127),
            ArgumentError,
            "at most 128 tokens, so use at most 126",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call(loaded("llama"))
    assert "\n" not in str(caught.value)


def test_the_farthest_offset_works():
    assert virtual_circuit(loaded("gpt2"), "0.1", "1.0", offset=126).offset == 126


@pytest.mark.parametrize("call", [lambda m: ov_table(m, "1.0", [5]), lambda m: virtual_circuit(m, "0.1", "1.0")])
def test_weights_that_cannot_be_told_apart_are_refused(call):
    with pytest.raises(UnsupportedModel):
        call(loaded("mpt"))
