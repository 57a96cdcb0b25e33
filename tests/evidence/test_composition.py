"""Composition scores: known answers, the definition in full, the baseline simulated, circuits built by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from pytest import approx

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from headscope.errors import ArgumentError, NonFiniteError, UnsupportedModel
from headscope.evidence.composition import measure as module
from headscope.evidence.composition.measure import composition, composition_scores
from headscope.evidence.composition.result import Composition, z_scores
from headscope.heads import HeadId
from headscope.model.weights import LayerWeights, Norm, layer_weights
from headscope.planted.handbuilt import handbuilt

D_MODEL = 48
SENDER, RECEIVER = HeadId(0, 0), HeadId(1, 0)


@pytest.fixture(autouse=True)
def _one_thread():
    """Matrices this small gain nothing from a second thread, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def layer(at, *, q, k, v, o, norm=None, out_norm=None):
    """One layer's weights in float64: q, k, v [head d_model d], o [head d d_model]."""
    n_heads, d_model, d_qk = q.shape
    zeros = torch.zeros(n_heads, d_qk, dtype=q.dtype)
    return LayerWeights(
        layer=at,
        w_q=q,
        w_k=k,
        w_v=v,
        w_o=o,
        b_q=zeros,
        b_k=torch.zeros(k.shape[0], d_qk, dtype=q.dtype),
        b_v=torch.zeros(v.shape[0], v.shape[2], dtype=q.dtype),
        b_o=torch.zeros(d_model, dtype=q.dtype),
        scale=1.0,
        norm=norm,
        out_norm=out_norm,
        qk_norm=False,
        rotary=False,
    )


def random_layer(at, generator, *, n_heads=3, n_kv=3, d_model=D_MODEL, d_qk=5, d_v=7, norm=None, out_norm=None):
    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return layer(
        at,
        q=draw(n_heads, d_model, d_qk),
        k=draw(n_kv, d_model, d_qk),
        v=draw(n_kv, d_model, d_v),
        o=draw(n_heads, d_v, d_model),
        norm=norm,
        out_norm=out_norm,
    )


def random_norm(generator, *, centred, d_model=D_MODEL):
    gain = 1 + 0.5 * torch.randn(d_model, generator=generator, dtype=torch.float64)
    return Norm(gain=gain, bias=torch.zeros(d_model, dtype=torch.float64), centred=centred)


def turned(matrix, generator):
    """Its last side, put through a random rotation."""
    size = matrix.shape[-1]
    return matrix @ torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q


def one_pair(writes, reads):
    """A sender that writes rows `writes` [r, d_model], a receiver whose keys read columns `reads` [d_model, r]."""
    rank = len(writes)
    eye = torch.eye(writes.shape[1], dtype=torch.float64)[None]
    sender = layer(0, q=eye[..., :rank], k=eye[..., :rank], v=eye[..., :rank], o=writes[None])
    receiver = layer(1, q=eye[..., :rank], k=reads[None], v=eye[..., :rank], o=writes[None])
    return composition_scores({0: sender, 1: receiver}, ["k"])


def in_full(layers, kind, *, fold, remove_top=0):
    """The definition, with every d_model x d_model matrix, in float64."""
    d_model = next(iter(layers.values())).w_q.shape[1]
    mean_off = torch.eye(d_model, dtype=torch.float64) - 1 / d_model
    identity = torch.eye(d_model, dtype=torch.float64)

    def less(matrix):
        u, s, v = torch.linalg.svd(matrix)
        s[:remove_top] = 0
        return u @ torch.diag(s) @ v

    def maps(weights, head):
        kv = weights.kv_head(head)
        q, k, v, o = (one.double() for one in (weights.w_q[head], weights.w_k[kv], weights.w_v[kv], weights.w_o[head]))
        enter, leave = identity, identity
        if fold and weights.norm is not None:
            # x -> (x - mean) * gain, as a matrix on the right of a row vector
            enter = (mean_off if weights.norm.centred else identity) @ torch.diag(weights.norm.gain.double())
            leave = mean_off if weights.norm.centred else identity
        if fold and weights.out_norm is not None:
            leave = torch.diag(weights.out_norm.gain.double()) @ leave
        q, k, v, o = enter @ q, enter @ k, enter @ v, o @ leave
        return less(v @ o), less({"q": q @ k.T, "k": k @ q.T, "v": v @ o}[kind])

    heads = [HeadId(at, head) for at in sorted(layers) for head in range(layers[at].w_q.shape[0])]
    scores = np.full((len(heads), len(heads)), np.nan)
    for row, sender in enumerate(heads):
        for column, receiver in enumerate(heads):
            if sender.layer < receiver.layer:
                a, _ = maps(layers[sender.layer], sender.head)
                _, b = maps(layers[receiver.layer], receiver.head)
                scores[row, column] = (a @ b).norm() / a.norm() / b.norm()
    return scores


# --- Known answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_aligned_flat_spectra_of_rank_r_score_one_over_root_r(rank, generator):
    # A = P, B = P up to inner rotations, P a projection of rank r: |P P| / |P|^2 = sqrt(r) / r
    basis = turned(torch.eye(D_MODEL, dtype=torch.float64), generator)[:rank]
    found = one_pair(basis, turned(basis.T, generator))
    assert found.scores["k"][0, 1] == approx(1 / math.sqrt(rank))
    assert found.sender_rank[0] == approx(rank)
    assert found.receiver_rank["k"][1] == approx(rank)


def test_orthogonal_subspaces_score_zero(generator):
    basis = turned(torch.eye(D_MODEL, dtype=torch.float64), generator)
    assert one_pair(basis[:6], basis[6:12].T).scores["k"][0, 1] == approx(0, abs=1e-12)


def test_half_of_the_directions_in_common():
    # of 4 flat directions 2 are read: sqrt(2) / (2 * 2)
    eye = torch.eye(D_MODEL, dtype=torch.float64)
    assert one_pair(eye[:4], eye[2:6].T).scores["k"][0, 1] == approx(math.sqrt(2) / 4)


def test_random_weights_score_one_over_root_d(generator):
    layers = {at: random_layer(at, generator, n_heads=12, n_kv=12, d_model=256, d_qk=8, d_v=8) for at in range(2)}
    found = composition_scores(layers)
    for kind in ("q", "k", "v"):
        scores = found.scores[kind][:12, 12:]
        # 144 pairs; CS^2 has sd sqrt(2 / 8 / 8) / 256, so its mean over pairs is right to about 0.177 / 12
        assert (scores**2).mean() * 256 == approx(1, abs=0.05)


def test_d_model_of_one_dimension_has_scores_and_no_z():
    one = torch.ones(1, 1, dtype=torch.float64)
    found = one_pair(one, one)
    assert found.scores["k"][0, 1] == approx(1)
    assert np.isnan(z_scores(found.scores["k"], found.sender_rank[:, None], found.receiver_rank["k"], 1)).all()


# --- The definition in full ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize(("family", "n_kv"), [("llama", 2), ("gpt2", 4), ("gemma2", 2), ("gpt_neox", 4)])
def test_cores_give_what_the_full_matrices_give(family, n_kv, fold):
    # llama: RMSNorm and two KV heads; gpt2, gpt_neox: LayerNorm; gemma2: an output norm too
    model = hs.load(tiny_causal_lm(family))
    layers = layer_weights(model)
    assert layers[0].w_k.shape[0] == n_kv
    found = composition(model, fold=fold)
    for kind in ("q", "k", "v"):
        np.testing.assert_allclose(found.scores[kind], in_full(layers, kind, fold=fold), rtol=2e-5, atol=1e-7)
    assert found.numbers.n_dimensions == 64 - (fold and layers[0].norm.centred)
    assert found.numbers.kv_heads == tuple(layers[head.layer].kv_head(head.head) for head in found.heads)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("remove_top", [0, 1, 3])
def test_remove_top_takes_the_largest_directions_of_both_maps(centred, remove_top, generator):
    layers = {
        at: random_layer(
            at,
            generator,
            n_heads=4,
            n_kv=2,
            norm=random_norm(generator, centred=centred),
            out_norm=random_norm(generator, centred=False),
        )
        for at in (0, 2, 5)
    }
    found = composition_scores(layers, remove_top=remove_top)
    assert [str(head) for head in found.heads][3:5] == ["L0H3", "L2H0"]
    for kind in ("q", "k", "v"):
        wanted = in_full(layers, kind, fold=True, remove_top=remove_top)
        np.testing.assert_allclose(found.scores[kind], wanted, rtol=1e-8)


def test_remove_top_finds_what_a_loud_shared_direction_hides(generator):
    # Both maps have one common direction ten times as loud as the rest, and orthogonal rests.
    eye = torch.eye(D_MODEL, dtype=torch.float64)
    loud = torch.diag(torch.tensor([10.0, 1, 1, 1], dtype=torch.float64))
    sender = layer(0, q=eye[None, :, :4], k=eye[None, :, :4], v=eye[None, :, :4], o=(loud @ eye[:4])[None])
    reads = eye[:, [0, 10, 11, 12]] @ loud
    receiver = layer(1, q=eye[None, :, :4], k=reads[None], v=eye[None, :, :4], o=eye[None, :4])
    layers = {0: sender, 1: receiver}
    # 100 / (100 + 3) with the common direction, nothing without
    assert composition_scores(layers, ["k"]).scores["k"][0, 1] == approx(100 / 103)
    assert composition_scores(layers, ["k"], remove_top=1).scores["k"][0, 1] == approx(0, abs=1e-7)


def test_a_map_that_remove_top_empties_has_no_score(generator):
    eye = torch.eye(D_MODEL, dtype=torch.float64)
    first = torch.zeros(2, D_MODEL, dtype=torch.float64)
    first[0] = torch.randn(D_MODEL, generator=generator, dtype=torch.float64)
    layers = {
        0: layer(0, q=eye[None, :, :2], k=eye[None, :, :2], v=eye[None, :, :2], o=first[None]),
        1: random_layer(1, generator, d_qk=2, d_v=2),
    }
    assert np.isfinite(composition_scores(layers).scores["k"][0, 1:]).all()
    assert np.isnan(composition_scores(layers, remove_top=1).scores["k"][0, 1:]).all()


def test_layers_may_differ_in_heads_and_widths(generator):
    shapes = [(4, 2, 5, 7), (2, 1, 6, 3), (3, 3, 4, 4)]
    layers = {
        at: random_layer(at, generator, n_heads=n_heads, n_kv=n_kv, d_qk=d_qk, d_v=d_v)
        for at, (n_heads, n_kv, d_qk, d_v) in enumerate(shapes)
    }
    found = composition_scores(layers)
    for kind in ("q", "k", "v"):
        np.testing.assert_allclose(found.scores[kind], in_full(layers, kind, fold=True), rtol=1e-9)


def test_blocks_of_any_size_give_the_same_scores(generator, monkeypatch):
    layers = {at: random_layer(at, generator, n_heads=5, n_kv=5) for at in range(3)}
    whole = composition_scores(layers)
    monkeypatch.setattr(module, "BLOCK", 1)
    for kind, scores in composition_scores(layers).scores.items():
        np.testing.assert_allclose(scores, whole.scores[kind], rtol=1e-12)


def test_huge_and_tiny_weights_overflow_nothing(generator):
    layers = {at: random_layer(at, generator) for at in range(2)}
    scaled = {
        at: replace(
            one,
            **{
                f"w_{name}": (getattr(one, f"w_{name}") * size).float()
                for name, size in zip("qkvo", (1e12, 1e12, 1e-12, 1e-12), strict=True)
            },
        )
        for at, one in layers.items()
    }
    for kind, scores in composition_scores(scaled).scores.items():
        np.testing.assert_allclose(scores, composition_scores(layers).scores[kind], rtol=1e-5)


# --- Invariance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centred", [False, True])
def test_rotations_within_a_head_change_nothing(centred, generator):
    layers = {at: random_layer(at, generator, norm=random_norm(generator, centred=centred)) for at in range(3)}
    moved = {}
    for at, one in layers.items():
        inner = turned(torch.eye(5, dtype=torch.float64), generator)
        turn = turned(torch.eye(7, dtype=torch.float64), generator)
        moved[at] = replace(one, w_q=one.w_q @ inner, w_k=one.w_k @ inner, w_v=one.w_v @ turn, w_o=turn.T @ one.w_o)
    wanted = composition_scores(layers)
    for kind, scores in composition_scores(moved).scores.items():
        np.testing.assert_allclose(scores, wanted.scores[kind], rtol=1e-9)


def test_a_rotation_of_the_stream_changes_nothing_where_gains_are_one(generator):
    unit = Norm(gain=torch.ones(D_MODEL).double(), bias=torch.zeros(D_MODEL).double(), centred=False)
    layers = {at: random_layer(at, generator, norm=unit) for at in range(3)}
    turn = turned(torch.eye(D_MODEL, dtype=torch.float64), generator)
    moved = {
        at: replace(one, w_q=turn.T @ one.w_q, w_k=turn.T @ one.w_k, w_v=turn.T @ one.w_v, w_o=one.w_o @ turn)
        for at, one in layers.items()
    }
    wanted = composition_scores(layers)
    for kind, scores in composition_scores(moved).scores.items():
        np.testing.assert_allclose(scores, wanted.scores[kind], rtol=1e-9)


def test_factors_and_what_layernorm_takes_away_change_nothing(generator):
    layers = {at: random_layer(at, generator, norm=random_norm(generator, centred=True)) for at in range(2)}
    # the mean of what is written is read by no one; a factor is one of the norm's
    moved = {
        at: replace(one, w_o=3 * one.w_o + 5.0, norm=replace(one.norm, gain=7 * one.norm.gain))
        for at, one in layers.items()
    }
    wanted = composition_scores(layers)
    for kind, scores in composition_scores(moved).scores.items():
        np.testing.assert_allclose(scores, wanted.scores[kind], rtol=1e-9)


# --- The random baseline ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [([1, 1, 1, 1], [1, 1]), ([5, 2, 1, 0.5, 0.1], [3, 1, 1]), ([1], [1])],
    ids=["flat", "falling", "rank one"],
)
def test_random_rotations_have_the_stated_mean_and_variance(a, b, rng):
    # A = diag(a), B = H diag(b) with H Haar: rows and columns from QR of Gaussians, signs set right
    d, n = 12, 40_000
    gaussian = rng.standard_normal((n, d, d))
    q, r = np.linalg.qr(gaussian)
    h = q * np.sign(np.einsum("nii->ni", r))[:, None, :]
    a, b = np.asarray(a, float), np.asarray(b, float)
    product = a[:, None] * h[:, : len(a), : len(b)] * b
    squared = (product**2).sum((1, 2)) / (a**2).sum() / (b**2).sum()
    ranks = [(s**2).sum() ** 2 / (s**4).sum() for s in (a, b)]
    sd = math.sqrt(2 * (1 / ranks[0] - 1 / d) * (1 / ranks[1] - 1 / d) / ((d - 1) * (d + 2)))
    assert squared.mean() == approx(1 / d, abs=5 * sd / math.sqrt(n))
    assert squared.std() == approx(sd, rel=0.04)
    z = z_scores(np.sqrt(squared), np.full(n, ranks[0]), np.full(n, ranks[1]), d)
    assert z.mean() == approx(0, abs=5 / math.sqrt(n))
    assert z.std() == approx(1, rel=0.04)


@pytest.mark.parametrize("centred", [True, False])
def test_random_gaussian_heads_have_unit_z(centred, generator):
    unit = Norm(gain=torch.ones(D_MODEL).double(), bias=torch.zeros(D_MODEL).double(), centred=centred)
    layers = {at: random_layer(at, generator, n_heads=60, n_kv=60, d_qk=4, d_v=4, norm=unit) for at in range(2)}
    found = composition_scores(layers)
    assert found.n_dimensions == (D_MODEL - 1 if centred else D_MODEL)
    for kind in ("q", "k", "v"):
        z = z_scores(found.scores[kind], found.sender_rank[:, None], found.receiver_rank[kind], found.n_dimensions)[
            :60, 60:
        ]
        # 3,600 pairs share 120 maps, given which they are uncorrelated
        assert z.mean() == approx(0, abs=0.08)
        assert z.std() == approx(1, abs=0.06)


def test_a_map_that_fills_the_stream_evenly_has_no_z(generator):
    eye = torch.eye(4, dtype=torch.float64)
    layers = {0: layer(0, q=eye[None], k=eye[None], v=eye[None], o=turned(eye, generator)[None])}
    layers[1] = random_layer(1, generator, d_model=4, d_qk=2, d_v=2, n_heads=1, n_kv=1)
    found = composition_scores(layers, ["k"])
    # |Q B| = |B| and |Q| = sqrt(4), whatever Q is
    assert found.scores["k"][0, 1] == approx(0.5)
    assert np.isnan(z_scores(found.scores["k"], found.sender_rank[:, None], found.receiver_rank["k"], 4)).all()


# --- Circuits built by hand ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_induction_head_s_keys_read_the_previous_token_head(seed):
    built = handbuilt(seed=seed, decoys=("noise", "wrong_position_sender", "duplicate_token", "attends_only"))
    found = composition(built.model)
    (sender,), (receiver,) = built.heads("previous_token"), built.heads("induction")
    (twin,) = built.heads("wrong_position_sender")
    ranked = found.ranked(receiver, "k")
    # The decoy writes the same directions, of another token: composition cannot tell them apart.
    assert {one.sender for one in ranked[:2]} == {sender, twin}
    best, rest = ranked[:2], ranked[2:]
    assert best[0].score == approx(best[1].score, rel=1e-3)
    assert all(one.score < 0.75 * best[1].score for one in rest)
    pair = found.pair(sender, receiver, "k")
    # 32 directions of one-hot digits, written flat and read flat. The rest on the start token is a bias, and not in it.
    assert pair.score == approx(1 / math.sqrt(32), rel=1e-4)
    assert pair.ratio > 1.9
    assert pair.z > 20
    for kind in ("q", "v"):
        assert found.pair(sender, receiver, kind).score == approx(0, abs=1e-5)
        assert found.pair(sender, receiver, kind).z < -3


def test_loudness_is_no_composition():
    # The noise head's OV, ten times the induction head's and a hundred times the sender's, put beside the sender.
    built = handbuilt(decoys=("noise",), n_layers=3)
    layers = dict(layer_weights(hs.load(built.model)))
    (sender,), (receiver,), (noise,) = (built.heads(role) for role in ("previous_token", "induction", "noise"))
    loud = layers[noise.layer]
    decoy = HeadId(sender.layer, next(head for head in range(loud.w_q.shape[0]) if head != sender.head))
    first = layers[sender.layer]
    w_v, w_o = first.w_v.clone(), first.w_o.clone()
    w_v[decoy.head], w_o[decoy.head] = loud.w_v[noise.head], loud.w_o[noise.head]
    layers[sender.layer] = replace(first, w_v=w_v, w_o=w_o)
    sizes = [float((w_v[head] @ w_o[head]).norm()) for head in (decoy.head, sender.head)]
    assert sizes[0] > 50 * sizes[1]
    found = composition_scores(layers, ["k"])
    column = found.scores["k"][:, found.heads.index(receiver)]
    assert found.heads[int(np.nanargmax(column))] == sender
    assert column[found.heads.index(decoy)] < column[found.heads.index(sender)] / 2


def test_a_head_that_writes_nothing_has_no_score_and_a_note():
    built = handbuilt(decoys=("attends_only",), n_layers=3, seed=1)
    (silent,) = built.heads("attends_only")
    found = composition(built.model)
    row = found.heads.index(silent)
    assert np.isnan(found.scores["k"][row]).all()
    assert any(str(silent) in note and "they write nothing" in note for note in found.notes)
    assert any(str(silent) in note and "no v-score as receivers" in note for note in found.notes)
    with pytest.raises(ArgumentError, match=f"{silent} reads nothing, so .* has no v-score"):
        found.pair(HeadId(0, 0), silent, "v")


# --- The result ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama() -> Composition:
    return composition(tiny_causal_lm("llama"))


def test_pairs_rankings_frame_and_document_hold_the_same_numbers(llama):
    frame = llama.to_frame()
    document = json.loads(json.dumps(llama.to_dict(), allow_nan=False))
    assert document["schema"] == "headscope.composition/1"
    n_layers, n_heads = llama.model.n_layers, 4
    n_pairs = n_heads**2 * n_layers * (n_layers - 1) // 2
    assert len(frame) == 3 * n_pairs
    assert not frame.isna().any().any()
    for kind, columns in document["pairs"].items():
        assert {len(column) for column in columns.values()} == {n_pairs}
        rows = frame[frame.kind == kind]
        for name in ("score", "ratio", "z"):
            assert columns[name] == approx(rows[name].tolist())
        first = {name: column[0] for name, column in columns.items()}
        sender, receiver = (
            HeadId(*(llama.to_dict()["heads"][first[one]][name] for name in ("layer", "head")))
            for one in ("sender", "receiver")
        )
        pair = llama.pair(sender, str(receiver), kind)
        assert (pair.score, pair.ratio, pair.z) == approx((first["score"], first["ratio"], first["z"]))
        assert pair.ratio == approx(pair.score * math.sqrt(64))
    ranked = llama.ranked("L1H2", "k")
    assert sorted(one.sender for one in ranked) == [HeadId(0, head) for head in range(4)]
    assert all(a.score >= b.score for a, b in pairwise(ranked))
    assert llama.ranked("0.1", "q") == []
    assert "L1H" in repr(llama)
    assert "x chance" in repr(ranked[0])


def test_under_grouped_queries_the_kv_head_is_named(llama):
    pair = llama.pair("L0H1", "L1H3", "k")
    assert (pair.sender_kv_head, pair.receiver_kv_head) == (0, 1)
    assert [head["kv_head"] for head in llama.to_dict()["heads"][:4]] == [0, 0, 1, 1]
    assert any("share key-value heads in every layer" in note for note in llama.notes)


@pytest.mark.parametrize(
    ("family", "words", "absent"),
    [
        ("llama", ["rotary embedding turns", "W_Q R_d W_K^T"], ["normalised after their projection", "biases"]),
        ("qwen3", ["rotary embedding turns", "normalised after their projection"], ["before it is added"]),
        ("gemma2", ["normalised before it is added", "the gain folded in"], ["normalised after their projection"]),
        ("gpt2", ["biases of q, k and v are left out"], ["rotary", "share key-value heads"]),
    ],
)
def test_notes_say_what_the_architecture_does_to_the_claim(family, words, absent):
    notes = " ".join(composition(tiny_causal_lm(family), "k").notes)
    assert all(word in notes for word in words)
    assert not any(word in notes for word in absent)


def test_kinds_are_those_asked_for_in_one_order():
    found = composition(tiny_causal_lm("gpt2"), ["v", "q"], fold=False, remove_top=2)
    assert found.kinds == ("q", "v")
    assert (found.fold, found.remove_top) == (False, 2)
    assert set(found.to_dict()["pairs"]) == {"q", "v"}
    assert any("not folded in" in note for note in found.notes)


def test_the_result_cannot_be_changed_and_the_model_is_left_as_it_was(llama):
    with pytest.raises(ValueError, match="read-only"):
        llama.scores["k"][0, 4] = 1.0
    model = tiny_causal_lm("gpt2")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    composition(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_half_precision_is_scored_in_single():
    found = composition(tiny_causal_lm("gpt2").bfloat16())
    assert found.provenance.dtype == "bfloat16"
    layers = layer_weights(hs.load(tiny_causal_lm("gpt2").bfloat16()))
    np.testing.assert_allclose(found.scores["k"], in_full(layers, "k", fold=True), rtol=2e-5)


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kinds": ["k", "o"]}, "kind 'o' is not known; use some of q, k, v."),
        ({"kinds": []}, "no kind is given; use some of q, k, v."),
        ({"remove_top": -1}, "remove_top=-1; it needs 0 to 15: heads have 16 directions."),
        ({"remove_top": 16}, "remove_top=16; it needs 0 to 15: heads have 16 directions."),
    ],
)
def test_arguments_that_mean_nothing_are_refused_in_one_line(options, match):
    with pytest.raises(ArgumentError, match=match) as caught:
        composition(tiny_causal_lm("gpt2"), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("L0H0", "L1H0", "x"), "kind='x' was not scored; this result has q, k, v."),
        (("L0H9", "L1H0", "k"), "has no head L0H9; it has .* layers of up to 4 heads, counted from 0."),
        (("L0H0", "first", "k"), "'first' is not a head"),
        (("L1H0", "L0H0", "k"), "L1H0 is in no earlier layer than L0H0, so it sends nothing to it"),
        (("L1H0", "L1H1", "k"), "L1H0 is in no earlier layer than L1H1"),
    ],
)
def test_pairs_that_are_none_are_refused_in_one_line(llama, arguments, match):
    with pytest.raises(ArgumentError, match=match) as caught:
        llama.pair(*arguments)
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_are_refused(generator):
    one = random_layer(1, generator)
    one.w_o[1, 0, 0] = math.inf
    with pytest.raises(NonFiniteError, match="layer 1 has weights that are not numbers"):
        composition_scores({0: random_layer(0, generator), 1: one})


def test_weights_that_cannot_be_told_apart_by_head_are_refused():
    with pytest.raises(UnsupportedModel, match="cannot be assigned to heads"):
        composition(tiny_causal_lm("deepseek_v3"))
