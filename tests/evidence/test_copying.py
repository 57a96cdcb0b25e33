"""Copying: circuits whose scores are known, the small matrix against the large one, and the model's own direct path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytest import approx
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model, LlamaConfig, LlamaForCausalLM

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from headscope.errors import UnsupportedModel
from headscope.evidence.copying import TokenSpace
from headscope.heads import HeadId
from headscope.planted.handbuilt import handbuilt
from headscope.records.common import Estimate


def in_token_space(*maps, dtype=torch.float32):
    """A Llama of one layer in which tokens are the axes of the stream, so that C = W_V W_O = `maps[h]` for head h.

    No MLP, no gain; RMSNorm does not centre, and each token's embedding has one size.
    """
    n = len(maps[0])
    config = LlamaConfig(
        vocab_size=n,
        hidden_size=n,
        head_dim=n,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=len(maps),
        num_key_value_heads=len(maps),
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval().to(dtype)
    layer = model.model.layers[0]
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(n))
        model.lm_head.weight.copy_(torch.eye(n))
        layer.mlp.down_proj.weight.zero_()
        # nn.Linear multiplies by the transpose: rows of W_O belong to heads, one below the other.
        layer.self_attn.v_proj.weight.copy_(torch.eye(n).repeat(len(maps), 1))
        layer.self_attn.o_proj.weight.copy_(torch.cat([torch.as_tensor(one) for one in maps]).T)
    return hs.load(model)


def copying(model, *heads):
    return TokenSpace(model).copying([HeadId(0, head) for head in heads or (0,)])


# ---- circuits that we know


def test_a_perfect_copier_scores_one():
    # C = I: all eigenvalues are 1. Of 25 tokens each row, centred, is 24/25 for itself and -1/25 for the others: all
    # that is raised is itself, (24/25) / (24/25) = 1. The attended token is above all others in every row.
    found = copying(in_token_space(torch.eye(50)))
    assert found.heads == (HeadId(0, 0),)
    assert found.eigenvalue == approx(1, abs=1e-6)
    assert (found.direct.mean, found.direct.ci95) == (approx(1, abs=1e-6), approx((1, 1), abs=1e-5))
    assert found.top1 == 1.0


def test_its_opposite_scores_minus_one():
    # C = -I: each row is -24/25 for itself, and the 24 others, 1/25 each, make all that is raised: again 24/25.
    found = copying(in_token_space(-torch.eye(50)))
    assert found.eigenvalue == approx(-1, abs=1e-6)
    assert found.direct.mean == approx(-1, abs=1e-6)
    assert found.top1 == 0.0


def test_what_writes_nothing_has_no_eigenvalue_and_scores_zero():
    found = copying(in_token_space(torch.zeros(50, 50)))
    assert found.eigenvalue is None
    assert (found.direct.mean, found.direct.ci95, found.top1) == (0.0, (0.0, 0.0), 0.0)


def test_what_raises_all_tokens_alike_copies_nothing():
    # C = ones: one eigenvalue, 50, and it is positive. Centred, no token is raised: the direct reading is not fooled.
    found = copying(in_token_space(torch.ones(50, 50)))
    assert found.eigenvalue == approx(1, abs=1e-4)
    assert found.direct.mean == approx(0, abs=1e-6)


def test_a_set_of_more_heads_than_the_stream_is_wide_has_an_eigenvalue_score(generator):
    # Five heads of rank 20 on a stream of 20: of the 100 x 100 matrix 80 eigenvalues are zero but for rounding.
    parts = [torch.randn(20, 20, generator=generator) for _ in range(4)]
    found = copying(in_token_space(*parts, torch.eye(20) - sum(parts)), *range(5))
    assert found.eigenvalue == approx(1, abs=1e-4)


def test_what_raises_the_next_token_does_not_copy():
    # A cycle of 50: eigenvalues exp(2 pi i k / 50), whose sum is zero. A row, centred among 25 tokens that hold the
    # next one, is 24/25 for it and -1/25 for itself: -1/24 of the raise; 0 in a row without it. So from -1/24 to 0.
    found = copying(in_token_space(torch.eye(50).roll(1, dims=1)))
    assert found.eigenvalue == approx(0, abs=1e-6)
    assert -1 / 24 <= found.direct.mean < 0
    assert found.top1 == 0.0


def test_a_mixture_by_hand():
    # C = diag(1 x 30, -1 x 20): (30 - 20) / 50 = 0.2. The 50 tokens are two groups of 25, and each row scores 1 or -1,
    # so that the mean of both groups is 0.2 as well; 30 of 50 are raised to the top.
    found = copying(in_token_space(torch.diag(torch.cat([torch.ones(30), -torch.ones(20)]))))
    assert found.eigenvalue == approx(0.2, abs=1e-6)
    assert found.direct.mean == approx(0.2, abs=1e-6)
    assert found.top1 == approx(0.6)


def test_two_half_copiers_copy_only_together(generator):
    # (I + N) / 2 and (I - N) / 2 with N ten times a rotation: N drowns I in each; in the sum it is gone.
    n = 100
    noise = 10 * nn.init.orthogonal_(torch.empty(n, n), generator=generator)
    model = in_token_space((torch.eye(n) + noise) / 2, (torch.eye(n) - noise) / 2)
    halves = [copying(model, head) for head in (0, 1)]
    both = copying(model, 0, 1)
    assert both.heads == (HeadId(0, 0), HeadId(0, 1))
    assert (both.eigenvalue, both.direct.mean, both.top1) == (approx(1, abs=1e-5), approx(1, abs=1e-5), 1.0)
    for half in halves:
        # Eigenvalues (1 + 10 exp(i a)) / 2, of mean 1/2 and size 5. Of 100 numbers of deviation 1 the largest is about
        # 2.5; the token itself has 1 more than its draw, which is the largest in one row of 14.
        assert half.eigenvalue == approx(0.1, abs=0.05)
        assert half.direct.mean < 0.2
        assert half.top1 < 0.25


def test_a_copier_and_its_opposite_cancel():
    both = copying(in_token_space(torch.eye(50), -torch.eye(50)), 0, 1)
    assert (both.eigenvalue, both.direct.mean, both.top1) == (None, 0.0, 0.0)


def test_the_size_of_what_is_written_does_not_matter(generator):
    m = torch.randn(50, 50, generator=generator) + 5 * torch.eye(50)
    one, other = copying(in_token_space(m)), copying(in_token_space(1000 * m))
    assert other.eigenvalue == approx(one.eigenvalue, abs=1e-5)
    assert other.direct.mean == approx(one.direct.mean, abs=1e-5)
    assert other.top1 == one.top1


def test_random_heads_score_near_zero():
    # 64 heads of rank 8 on 512 tokens; the rule asks for 0.05.
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=600, n_embd=128, n_layer=4, n_head=16, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False
    )
    circuits = TokenSpace(hs.load(GPT2LMHeadModel(config).eval()))
    found = [circuits.copying([HeadId(layer, head)]) for layer in range(4) for head in range(16)]
    direct = np.array([one.direct.mean for one in found])
    assert np.abs(direct).max() < 0.05
    assert direct.mean() == approx(0, abs=0.01)
    assert np.mean([one.eigenvalue for one in found]) == approx(0, abs=0.15)
    assert max(one.top1 for one in found) < 0.03  # 1 / 512 by chance


@pytest.mark.parametrize("copies", ["one", "redundant", "halves"])
def test_the_handbuilt_copiers(copies):
    built = handbuilt(copying=copies, decoys=("attends_only", "anti_induction"))
    circuits = TokenSpace(hs.load(built.model))
    copiers = [head for role in ("induction", "redundant_induction", "half_copier") for head in built.heads(role)]
    together = circuits.copying(copiers)
    assert together.top1 == 1.0
    assert together.eigenvalue == approx(1, abs=1e-4)
    # 16 + 16 one-hot digits: of 25 tokens some share one digit with the attended one and are raised half as much.
    assert 0.3 < together.direct.mean < 0.7
    for head in copiers:
        assert (circuits.copying([head]).top1 == 1.0) == (copies != "halves")
    assert circuits.copying(built.heads("attends_only")).eigenvalue is None
    anti = circuits.copying(built.heads("anti_induction"))
    assert (anti.eigenvalue, anti.direct.mean) == (approx(-1, abs=1e-4), approx(-together.direct.mean, abs=1e-3))


# ---- against the matrix that is never formed


def norms(model):
    """Gains and biases away from 1 and 0, so that what is not folded shows."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "ln_" in name or "norm" in name:
                weight.add_(0.3 * torch.randn_like(weight))
    return model


@pytest.fixture(scope="module")
def gpt2():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=40, n_positions=32, n_embd=24, n_layer=2, n_head=3, bos_token_id=None, eos_token_id=None,
            tie_word_embeddings=False, initializer_range=0.5,
        )  # fmt: skip
        return norms(GPT2LMHeadModel(config)).double().eval()


@pytest.fixture(scope="module")
def llama():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=40, max_position_embeddings=32, hidden_size=24, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=6, bos_token_id=None, eos_token_id=None,
            initializer_range=0.5,
        )  # fmt: skip
        return norms(LlamaForCausalLM(config)).double().eval()


def full_gpt2(model, head):
    """C [attended, raised] by the textbook: LayerNorm centres, then its gain; its row's size is left out."""
    block, d, width = model.transformer.h[head.layer], 24, 8
    centre = torch.eye(d, dtype=torch.float64) - 1 / d
    at = slice(head.head * width, (head.head + 1) * width)
    w_v, w_o = block.attn.c_attn.weight[:, 2 * d :][:, at], block.attn.c_proj.weight[at]
    read = model.transformer.wte.weight @ centre @ torch.diag(block.ln_1.weight) @ w_v
    return read @ w_o @ centre @ torch.diag(model.transformer.ln_f.weight) @ model.lm_head.weight.T


def full_llama(model, head):
    """The same: RMSNorm has a gain alone, and query heads 0, 1 and 2, 3 share a value head."""
    layer, width = model.model.layers[head.layer], 6
    shared = slice(head.head // 2 * width, (head.head // 2 + 1) * width)
    w_v = layer.self_attn.v_proj.weight[shared].T
    w_o = layer.self_attn.o_proj.weight[:, head.head * width : (head.head + 1) * width].T
    read = model.model.embed_tokens.weight @ torch.diag(layer.input_layernorm.weight) @ w_v
    return read @ w_o @ torch.diag(model.model.norm.weight) @ model.lm_head.weight.T


def slow_direct(c, groups):
    """Mean share of the attended token in what is raised, one row at a time."""
    means = []
    for group in groups:
        shares = []
        for s in group:
            row = [float(c[s, t]) for t in group]
            mean = sum(row) / len(row)
            raised = sum(max(0.0, one - mean) for one in row)
            shares.append((float(c[s, s]) - mean) / raised)
        means.append(sum(shares) / len(shares))
    return means


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("heads", [["0.0"], ["0.1"], ["1.2"], ["0.0", "0.2"], ["0.1", "1.0", "1.2"]], ids=", ".join)
def test_the_small_matrix_has_the_large_ones_eigenvalues_and_its_rows(family, heads, request):
    hf = request.getfixturevalue(family)
    full = {"gpt2": full_gpt2, "llama": full_llama}[family]
    chosen = [HeadId.parse(head) for head in heads]
    with torch.no_grad():
        c = sum(full(hf, head) for head in chosen).numpy()
    circuits = TokenSpace(hs.load(hf))
    found = circuits.copying(chosen)
    values = np.linalg.eigvals(c)
    # A non-zero eigenvalue of 40 x 40 and rank 8 is exact to 1e-13; the 32 zeros are found as 1e-8 at most.
    assert found.eigenvalue == approx(values.real.sum() / np.abs(values).sum(), abs=1e-6)
    assert found.eigenvalue == approx(np.trace(c) / np.abs(values).sum(), abs=1e-6)
    assert found.top1 == approx((c.argmax(1) == np.arange(40)).mean())
    # 40 tokens, none special: the first 25 drawn are the only whole group.
    group = np.random.default_rng(0).permutation(40)[:25]
    (mean,) = slow_direct(c, [group])
    # In a set of several layers each norm's gain is known but for its epsilon beside the stream's size: 1e-6.
    assert found.direct.mean == approx(mean, abs=1e-5 if len({head.layer for head in chosen}) > 1 else 1e-9)
    assert found.direct.ci95 is None, "one group has no interval"


def test_the_interval_is_over_groups(generator):
    # 76 tokens are three groups, and one token that is in none; t(2) = 4.302653 times the error of their means, and
    # more on the side to which they are skewed.
    c = torch.randn(76, 76, generator=generator) + torch.eye(76)
    found = copying(in_token_space(c))
    means = slow_direct(c, np.random.default_rng(0).permutation(76)[:75].reshape(3, 25))
    assert found.direct.mean == approx(np.mean(means), abs=1e-5)
    half = 4.302653 * np.std(means, ddof=1) / np.sqrt(3)
    assert found.direct.ci95 == approx(Estimate.of(np.asarray(means)).ci95, abs=1e-4)
    assert found.direct.ci95[0] <= np.mean(means) - half + 1e-5
    assert found.direct.ci95[1] >= np.mean(means) + half - 1e-5


def test_another_seed_draws_other_groups_and_the_same_one_the_same(generator):
    model = in_token_space(torch.randn(60, 60, generator=generator) + torch.eye(60))
    one, again, other = (TokenSpace(model, seed=seed).copying([HeadId(0, 0)]) for seed in (3, 3, 4))
    assert one == again
    assert other.direct.mean != one.direct.mean
    assert other.eigenvalue == approx(one.eigenvalue), "which is of the whole vocabulary"


def test_special_tokens_are_not_compared():
    # Token 7 alone does not copy; as a start token it is left out.
    c = torch.eye(26)
    c[7, 7] = -5
    model = in_token_space(c)
    assert copying(model).top1 == approx(25 / 26)
    model.hf.config.bos_token_id = 7
    assert copying(model).top1 == 1.0
    assert copying(model).direct.mean == approx(1, abs=1e-6)


# ---- against the model's own direct path


def attention_only(family):
    """One layer without MLP, whose embeddings are signs with as many plus as minus: each norm sees one size."""
    torch.manual_seed(0)
    rows = torch.stack([torch.randperm(32) for _ in range(25)]) % 2 * 2.0 - 1
    if family == "gpt2":
        config = GPT2Config(
            vocab_size=25, n_positions=16, n_embd=32, n_layer=1, n_head=4, bos_token_id=None, eos_token_id=None,
            tie_word_embeddings=False, initializer_range=0.4,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
        embedding, positions = model.transformer.wte, model.transformer.wpe.weight
        silent = [positions, model.transformer.h[0].mlp.c_proj.weight]
    else:
        config = LlamaConfig(
            vocab_size=25, max_position_embeddings=16, hidden_size=32, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2, bos_token_id=None, eos_token_id=None, initializer_range=0.4,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        embedding, silent = model.model.embed_tokens, [model.model.layers[0].mlp.down_proj.weight]
    model = norms(model).double().eval()
    with torch.no_grad():
        embedding.weight.copy_(rows)
        for weight in silent:
            weight.zero_()
    return model


@torch.no_grad()
def measured(model, family, head):
    """C [attended, raised], by running the model: z of the head is set to the value of token s, read from a run on s.

    What that adds to the stream, against z = 0, goes through the final gain and the unembedding.
    """
    if family == "gpt2":
        values, out = model.transformer.h[0].attn.c_attn, model.transformer.h[0].attn.c_proj
        final, width, value_at = model.transformer.ln_f, 8, 64 + 8 * head
    else:
        values, out = model.model.layers[0].self_attn.v_proj, model.model.layers[0].self_attn.o_proj
        final, width, value_at = model.model.norm, 8, 8 * (head // 2)
    seen = {}

    def run(token, z=None):
        def replace(module, inputs):
            edited = inputs[0].clone()
            edited[..., head * width : (head + 1) * width] = 0 if z is None else z
            return (edited,)

        handles = [
            values.register_forward_hook(lambda module, inputs, output: seen.update(v=output)),
            out.register_forward_pre_hook(replace),
            final.register_forward_pre_hook(lambda module, inputs: seen.update(stream=inputs[0])),
        ]
        model(torch.tensor([[3, 1, token]]))
        for handle in handles:
            handle.remove()
        return seen["v"][0, -1, value_at : value_at + width], seen["stream"][0, -1]

    rows = []
    bias = getattr(values, "bias", None)
    for token in range(25):
        value, _ = run(token)
        value = value - (0 if bias is None else bias[value_at : value_at + width])
        added = run(0, z=value)[1] - run(0)[1]
        if family == "gpt2":
            added = added - added.mean()
        rows.append(model.lm_head.weight @ (final.weight * added))
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("head", range(4))
def test_it_is_what_the_model_does_along_its_direct_path(family, head):
    model = attention_only(family)
    c = measured(model, family, head)
    if family == "gpt2":  # the norm's bias adds one row to all: what a head writes whatever it attends to
        layer, at = model.transformer.h[0], slice(64 + 8 * head, 72 + 8 * head)
        constant = layer.ln_1.bias @ layer.attn.c_attn.weight[:, at] @ layer.attn.c_proj.weight[8 * head : 8 * head + 8]
        constant = constant - constant.mean()
        c = c - (model.lm_head.weight @ (model.transformer.ln_f.weight * constant)).detach().numpy()
    found = copying(hs.load(model), head)
    values = np.linalg.eigvals(c)
    # LayerNorm's epsilon makes every value smaller by 5e-6 of itself, and every score the same.
    assert found.direct.mean == approx(slow_direct(c, [range(25)])[0], abs=1e-4)
    assert found.eigenvalue == approx(values.real.sum() / np.abs(values).sum(), abs=1e-4)
    assert found.top1 == (c.argmax(1) == np.arange(25)).mean()


# ---- cost


class Largest(TorchDispatchMode):
    """The most numbers that one operation gave."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, torch.Tensor):
                self.numel = max(self.numel, one.numel())
        return result


def test_the_vocabulary_squared_is_never_formed():
    # 100,000 tokens of 16 numbers: 1.6 million in a table, ten thousand millions in C.
    config = GPT2Config(
        vocab_size=100_000, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = hs.load(GPT2LMHeadModel(config).eval())
    with Largest() as seen:
        found = TokenSpace(model).copying([HeadId(0, 0), HeadId(0, 1)])
    # A table has 1.6 million; the logits of the few tokens on which weights are checked, 25.6 million, are the most.
    assert 1_600_000 <= seen.numel < 100_000 * 500
    assert -1 <= found.direct.mean <= 1


def test_asking_again_reads_no_weights_again():
    circuits = TokenSpace(in_token_space(torch.eye(60)))
    circuits.copying([HeadId(0, 0)])
    with Largest() as seen:
        circuits.copying([HeadId(0, 0)])
    assert seen.numel <= 60 * 60


# ---- what is refused


def test_a_model_without_an_unembedding_is_refused():
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=40, n_positions=32, bos_token_id=0, eos_token_id=0)
    with pytest.raises(UnsupportedModel, match="it has no language-model head"):
        TokenSpace(hs.load(GPT2Model(config).eval()))


def test_weights_that_cannot_be_told_apart_are_refused():
    with pytest.raises(UnsupportedModel, match=r"\S"):
        TokenSpace(hs.load(tiny_causal_lm("deepseek_v3")))


def test_a_vocabulary_of_special_tokens_alone_is_refused():
    model = in_token_space(torch.eye(4))
    model.hf.config.bos_token_id, model.hf.config.eos_token_id = 0, [1, 2, 3]
    with pytest.raises(UnsupportedModel, match="fewer than two tokens that are not special"):
        TokenSpace(model)


def test_two_tokens_are_the_fewest():
    # [[1, 0], [0, 1]], centred: a half for itself, minus a half for the other. One group of two.
    found = copying(in_token_space(torch.eye(2)))
    assert (found.direct.mean, found.direct.ci95, found.top1) == (approx(1), None, 1.0)


def test_the_model_is_left_as_it_was(gpt2):
    before = {name: weight.clone() for name, weight in gpt2.state_dict().items()}
    copying(hs.load(gpt2), 0, 1)
    assert all(torch.equal(weight, before[name]) for name, weight in gpt2.state_dict().items())
