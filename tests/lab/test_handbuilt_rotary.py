"""The hand-built rotary model does what its arithmetic says, with and without shared key-value heads.

Weights are cut from the model's own tensors, and logits of single heads recomputed from them without rotary tables.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from pytest import approx
from torch import Tensor
from transformers import AutoModelForCausalLM

import headscope as hs
from headscope.detectors import Detector, Targets
from headscope.errors import ArgumentError
from headscope.heads import HeadId
from headscope.model.load import Model, load
from headscope.model.weights import layer_weights
from headscope.planted.handbuilt import COPY_GAIN, NOISE_NORM, HandBuilt
from headscope.planted.handbuilt_rotary import (
    LAYOUT,
    MAX_TURN,
    PEAK_MARGIN,
    ROTARY_DECOYS,
    distance_weights,
    handbuilt_rotary,
    rotary_angles,
    rotary_base,
)
from headscope.probes import Probe
from headscope.probes.copies import copies
from headscope.training.repeats import jittered_repeats
from tests.running import forward

SEEDS = (0, 1, 2)
both = pytest.mark.parametrize("grouped", [False, True], ids=["plain", "grouped"])
every = pytest.mark.parametrize(
    ("grouped", "seed"),
    [(grouped, seed) for grouped in (False, True) for seed in SEEDS],
    ids=lambda value: ("grouped" if value else "plain") if isinstance(value, bool) else str(value),
)


@cache
def built_with(grouped: bool, seed: int = 0) -> HandBuilt:
    return handbuilt_rotary(grouped=grouped, seed=seed)


@cache
def probe_of(built: HandBuilt) -> tuple[Model, Probe]:
    model = load(built.model)
    return model, hs.repeated_tokens(model, bos=True, n_prompts=6)


def only(built: HandBuilt, role: str) -> HeadId:
    (head,) = built.heads(role)
    return head


def accuracy(built: HandBuilt, *ablate: HeadId) -> float:
    """Share of predictable tokens that rank first, with the heads' z set to zero."""
    model, probe = probe_of(built)

    def silence(attention):
        z = attention.z.clone()
        for head in ablate:
            if head.layer == attention.layer:
                z[:, :, head.head] = 0.0
        return z

    tokens = torch.from_numpy(np.stack(probe.prompts))
    predicted = forward(model.hf, model.check.route, tokens, silence).logits.argmax(-1).numpy()
    hits = [
        predicted[row, query] == prompt[query + 1]
        for row, prompt in enumerate(probe.prompts)
        for query in copies(prompt).second
    ]
    assert len(hits) > 100
    return sum(hits) / len(hits)


def two_back(tokens):
    query = np.arange(2, len(tokens))
    return Targets(query=query, key=query - 2)


@cache
def scores(built: HandBuilt) -> dict[tuple[HeadId, str], float]:
    model, probe = probe_of(built)
    scan = hs.scan(model, probe=probe, detectors=[*hs.DETECTORS, Detector("two_back", two_back)])
    return {(score.head, score.detector): score.mean for score in scan.scores}


def weights_of(built: HandBuilt, head: HeadId) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W_Q, W_K, W_V [d_model d_head] and W_O [d_head d_model] of a query head, in float64."""
    attention = built.model.model.layers[head.layer].self_attn
    config = built.model.config
    d_head = config.head_dim
    shared = head.head * config.num_key_value_heads // config.num_attention_heads

    def rows(linear, index: int) -> Tensor:
        return linear.weight.detach().double()[index * d_head : (index + 1) * d_head].T

    w_o = attention.o_proj.weight.detach().double().T[head.head * d_head : (head.head + 1) * d_head]
    return rows(attention.q_proj, head.head), rows(attention.k_proj, shared), rows(attention.v_proj, shared), w_o


def ov(built: HandBuilt, head: HeadId) -> Tensor:
    *_, w_v, w_o = weights_of(built, head)
    return w_v @ w_o


def composition(a: Tensor, b: Tensor) -> float:
    return ((a @ b).norm() / (a.norm() * b.norm())).item()


# The circuit


@every
def test_the_self_check_says_exact(grouped, seed):
    model, probe = probe_of(built_with(grouped, seed))
    assert model.check.support == "exact"
    assert (model.n_heads, model.n_kv_heads) == (6, 3 if grouped else 6)
    assert probe.settings["jitter"]
    assert probe.settings["bos"]


@every
def test_the_circuit_foretells_every_token_and_each_half_is_needed(grouped, seed):
    built = built_with(grouped, seed)
    assert accuracy(built) == 1.0
    # Without the sender nothing is copied; without the induction head the anti-induction head lowers the token.
    assert accuracy(built, only(built, "previous_token")) < 0.02
    assert accuracy(built, only(built, "induction")) < 0.02


@every
def test_no_decoy_is_needed(grouped, seed):
    built = built_with(grouped, seed)
    decoys = [head for role in (*ROTARY_DECOYS, "none") for head in built.heads(role)]
    for head in decoys:
        assert accuracy(built, head) == 1.0
    assert accuracy(built, *decoys) == 1.0


@every
def test_each_head_attends_as_its_role_says(grouped, seed):
    built = built_with(grouped, seed)
    found = scores(built)
    expected = {
        # 12 above all: 1 / (1 + 149 e^-12) = 0.9991 if every other distance were as near as the nearest.
        "previous_token": ("previous_token", 0.999),
        "wrong_position_sender": ("two_back", 0.999),
        # 10 above the rest, less 1.4 that the turn may take from either: 1 / (1 + e^-7.2) = 0.9992.
        "induction": ("induction", 0.999),
        "anti_induction": ("induction", 0.999),
        "attends_only": ("induction", 0.999),
    }
    for head, role in built.roles.items():
        for detector in ("previous_token", "two_back", "induction"):
            score = found[head, detector]
            if role in expected and expected[role][0] == detector:
                assert score > expected[role][1]
            else:
                assert score < 0.2


@both
def test_content_matches_at_any_distance(grouped):
    # Periods up to 120 and gaps up to 30, in prompts as long as the context.
    built = built_with(grouped)
    prompts = jittered_repeats(
        n_prompts=8,
        n_tokens=256,
        vocab_size=256,
        bos_token_id=0,
        generator=torch.Generator().manual_seed(0),
        period=(3, 120),
        gap=(0, 30),
    )
    head = only(built, "induction")
    rows, queries = prompts.predictable.nonzero(as_tuple=True)
    keys = prompts.induction_key[rows, queries]
    assert (queries - keys).max() > 100
    assert (queries - keys).min() < 4

    def look(attention):
        if attention.layer == head.layer:
            assert attention.probabilities(rows, queries, keys)[:, head.head].min() > 0.999

    model, _ = probe_of(built)
    logits = forward(model.hf, model.check.route, prompts.tokens, look).logits
    assert torch.equal(logits.argmax(-1)[rows, queries], prompts.tokens[rows, queries + 1])


@both
def test_a_sender_attends_as_its_two_biases_say(grouped):
    # logit(distance) = sum of a_i cos(theta_i (distance - back)): no weight but these, no token.
    built = built_with(grouped)
    config = built.model.config
    angles = rotary_angles(config.rope_parameters["rope_theta"], config.head_dim)[:47]
    a = distance_weights(angles, config.max_position_embeddings)
    distances = torch.arange(100, -1, -1, dtype=torch.float64)
    tokens = torch.randint(1, 256, (1, 101), generator=torch.Generator().manual_seed(0))
    model, _ = probe_of(built)
    for role, back in (("previous_token", 1), ("wrong_position_sender", 2)):
        head = only(built, role)
        expected = (torch.cos((distances[:, None] - back) * angles) @ a).softmax(0)

        def look(attention, head=head, expected=expected):
            if attention.layer == head.layer:
                last = attention.pattern()[0, head.head, -1].double()
                torch.testing.assert_close(last, expected, atol=1e-6, rtol=1e-3)

        forward(model.hf, model.check.route, tokens, look)
        assert not weights_of(built, head)[0].any()
        assert not weights_of(built, head)[1].any()


@every
def test_both_senders_compose_with_the_key_and_neither_with_query_or_value(grouped, seed):
    built = built_with(grouped, seed)
    w_q, w_k, w_v, w_o = weights_of(built, only(built, "induction"))
    chance = 1 / math.sqrt(built.model.config.hidden_size)
    assert chance < 0.071
    for role in ("previous_token", "wrong_position_sender"):
        sender = ov(built, only(built, role))
        # Multiples of one rank-32 projection: sqrt(32) / (sqrt(32) sqrt(32)) = 0.177, 2.5 times chance.
        assert composition(sender, w_k @ w_q.T) == approx(1 / math.sqrt(32), rel=1e-4)
        assert composition(sender, w_k @ w_q.T) > 2.4 * chance
        # W_K alone also reads the start token: rank 33.
        assert composition(sender, w_k) == approx(1 / math.sqrt(33), rel=1e-4)
        assert composition(sender, w_q @ w_k.T) < 1e-5
        assert composition(sender, w_v @ w_o) < 1e-5


@both
def test_idle_heads_compose_at_chance_or_below(grouped):
    built = built_with(grouped)
    w_q, w_k, *_ = weights_of(built, only(built, "induction"))
    for head in [*built.heads("none"), *built.heads("noise")]:
        if head.layer == 0:  # they write to `junk`, which the key does not read
            assert composition(ov(built, head), w_k @ w_q.T) < 1e-5


# The decoys


@every
def test_what_each_head_writes(grouped, seed):
    built = built_with(grouped, seed)
    model = built.model
    embed, unembed = model.model.embed_tokens.weight.double(), model.lm_head.weight.double()

    def in_tokens(head: HeadId) -> Tensor:
        return (embed @ ov(built, head) @ unembed.T).detach()

    # Times the two digits that a token shares with itself.
    for role, diagonal in (("induction", 24.0), ("anti_induction", -6.0), ("attends_only", 0.0)):
        found = in_tokens(only(built, role)).diagonal()[1:]
        assert found == approx(torch.full((255,), diagonal, dtype=torch.float64), abs=1e-3)
    assert not ov(built, only(built, "attends_only")).any()
    for head in built.heads("noise"):
        assert ov(built, head).norm().item() == approx(NOISE_NORM * COPY_GAIN * math.sqrt(32), rel=1e-4)
        assert in_tokens(head).abs().max() < 1e-3
    assert {head.layer for head in built.heads("noise")} == {0, 1}
    assert (embed @ unembed.T).abs().max() < 1e-5


@every
def test_the_two_senders_write_alike(grouped, seed):
    built = built_with(grouped, seed)
    one, other = (ov(built, only(built, role)).flatten() for role in ("previous_token", "wrong_position_sender"))
    assert torch.nn.functional.cosine_similarity(one, other, dim=0).item() == approx(1.0, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_grouped_heads_share_as_the_layout_says(seed):
    built = built_with(True, seed)
    for layer, roles in enumerate(LAYOUT):
        wanted = sorted(tuple(sorted(pair)) for pair in zip(roles[::2], roles[1::2], strict=True))
        found = [tuple(sorted(built.roles[HeadId(layer, head + i)] for i in (0, 1))) for head in (0, 2, 4)]
        assert sorted(found) == wanted


def test_without_decoys_their_places_are_idle():
    built = handbuilt_rotary(decoys=(), grouped=True, seed=4)
    assert accuracy(built) == 1.0
    assert len(built.heads("none")) == 10
    assert accuracy(built, *built.heads("none")) == 1.0


# The arithmetic


@pytest.mark.parametrize("n_positions", [3, 60, 256, 4096])
@pytest.mark.parametrize("d_head", [64, 128])
def test_a_distance_stands_clear_of_every_other_by_the_margin(n_positions, d_head):
    angles = rotary_angles(rotary_base(d_head, 17 if d_head == 128 else 7, n_positions), d_head)
    fast = angles[:47] if d_head == 128 else angles[:25]
    a = distance_weights(fast, n_positions)
    logits = [
        sum(w * math.cos(t * n) for w, t in zip(a.tolist(), fast.tolist(), strict=True)) for n in range(n_positions)
    ]
    assert logits[0] - max(logits[1:]) == approx(PEAK_MARGIN)
    # Logits stay small enough that float32 keeps them to 1e-5.
    assert a.sum() < 110
    # The fastest of the slow pairs.
    assert angles[len(fast)] * n_positions == approx(MAX_TURN)


def test_the_frequencies_are_those_of_the_model():
    model = built_with(False).model
    angles = rotary_angles(model.config.rope_parameters["rope_theta"], model.config.head_dim)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq.double(), angles, rtol=1e-5, atol=0.0)


def test_rms_norm_does_nothing():
    built = built_with(True)
    _, probe = probe_of(built)  # loads the model, which runs it
    seen = []
    handles = [
        module.register_forward_hook(lambda module, given, result: seen.append((given[0], result)))
        for name, module in built.model.named_modules()
        if name.endswith("norm")
    ]
    with torch.no_grad():
        built.model(input_ids=torch.from_numpy(np.stack(probe.prompts)))
    for handle in handles:
        handle.remove()
    assert len(seen) == 5
    for given, result in seen:
        # Float32 keeps 2^-24 of the largest entry.
        assert (given - result).abs().max() < 1e-6 * given.abs().max()


@both
def test_tracing_finds_the_weights_that_were_put_in(grouped):
    built = built_with(grouped)
    found = layer_weights(load(built.model))
    head = only(built, "induction")
    layer = found[head.layer]
    assert layer.rotary
    shared = layer.kv_head(head.head)
    for given, wanted in zip(
        (layer.w_q[head.head], layer.w_k[shared], layer.w_v[shared], layer.w_o[head.head]),
        weights_of(built, head),
        strict=True,
    ):
        scale = wanted.abs().max()
        assert (given.double() / scale - wanted / scale).abs().max() < 1e-4


# The disguise


def test_place_and_width_depend_on_the_seed():
    models = [handbuilt_rotary(vocab_size=17, n_positions=16, grouped=True, seed=seed) for seed in range(12)]
    for role in ("previous_token", "induction"):
        assert len({only(built, role).head for built in models}) > 3
    assert len({built.model.config.hidden_size for built in models}) > 1


def test_the_same_seed_gives_the_same_model_and_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = handbuilt_rotary(seed=4)
    assert torch.equal(torch.rand(1), expected)
    second = handbuilt_rotary(seed=4)
    assert first.roles == second.roles
    for mine, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_no_weight_shows_the_one_hots():
    built = built_with(False)
    assert (built.model.model.embed_tokens.weight == 0).float().mean() < 0.01
    w_q, w_k, w_v, w_o = weights_of(built, only(built, "induction"))
    # 34 of 128 dimensions are slow: queries and keys fill these and no others.
    for weight in (w_q, w_k):
        filled = (weight != 0).any(0)
        assert filled.sum() == 34
        assert (weight[:, filled] == 0).double().mean() < 0.01
    assert (w_v == 0).double().mean() < 0.01
    assert (w_o == 0).double().mean() < 0.01


def test_saving_and_loading_gives_the_same_logits(tmp_path):
    built = built_with(True)
    _, probe = probe_of(built)
    built.model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.from_numpy(np.stack(probe.prompts[:2]))
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=tokens).logits, built.model(input_ids=tokens).logits)


@pytest.mark.parametrize(
    "options",
    [{"vocab_size": 128, "n_positions": 80}, {"vocab_size": 600, "n_positions": 1024, "grouped": True}],
    ids=str,
)
def test_other_sizes_work_too(options):
    built = handbuilt_rotary(**options)
    model = load(built.model)
    probe = hs.repeated_tokens(model, bos=True, n_prompts=2, period=20)
    with torch.no_grad():
        logits = built.model(input_ids=torch.from_numpy(np.stack(probe.prompts))).logits
    for row, prompt in enumerate(probe.prompts):
        second = copies(prompt).second
        assert logits[row, second].argmax(-1).tolist() == prompt[second + 1].tolist()


def test_the_smallest_legal_sizes_can_be_built_and_run():
    built = handbuilt_rotary(vocab_size=2, n_positions=3)
    with torch.no_grad():
        assert built.model(input_ids=torch.tensor([[0, 1, 1]])).logits.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 1}, "vocab_size=1 must be at least 2"),
        ({"n_positions": 2}, "n_positions=2 must be at least 3"),
        ({"decoys": ["noise", "noise"]}, "decoys must be named once each"),
    ],
)
def test_impossible_requests_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        handbuilt_rotary(**options)
