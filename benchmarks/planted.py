"""A model of GPT-2 small's size in which we know which heads matter, and by how much.

A search for the top 10 of 144 heads needs a known answer to compare with. Here 14 heads were put there by hand, each
clearly more or less important than the next; the other 130 and the MLPs are random, loud where nothing listens and
all but silent elsewhere. Shapes are GPT-2 small's: 12 layers of 12 heads of 64, width 768, MLPs of 3,072, vocabulary
50,257, context 1,024. Only the unembedding is a matrix of its own.

The residual stream is a sum of orthogonal subspaces, as in `headscope.planted.handbuilt`, but with random codes of
+-1/8 in the place of digits:

    token       the token's code in two slices of 64 numbers each, written by the embedding
    before      two slices, empty until a sender fills them
    out         two slices, all that the unembedding reads
    here, back_1    codes of the position and of the one before it
    start       set at the start token alone, which has no code
    junk        what is left; the random heads write here

In layer 0 two senders attend one token back, each moving one slice of `token` to `before`. In layers 2 to 11 twelve
induction heads each match one slice of `token` against `before`, rest on the start token without a match, and add
their gain times that slice of the attended token to `out`. On the second copy of `[BOS, r, r]` with G_s the summed gain
of slice s

    loss ~ log(1 + exp(log V + (G_0^2 + G_1^2) / 128 - G_0 - G_1))

which is 0.55 nats, far from saturated: removing a head of small gain g costs about 0.9 g * (1 - exp(-loss)), of large
gain more, and removing a sender costs all of its slice's G_s. The gains are a geometric ladder with a wide step below
the 10th head. Measured, from the best head down: 5.4, 4.0, 1.9, 1.4, .96, .70, .49, .37, .27, .20 nats, then .093,
.073, .054, .042, then the random heads at 1e-6 to 1e-3 with a median of 1e-4. LayerNorm only centres, by a huge epsilon
and a matching gain; everything is rotated at random and the heads of a layer are shuffled.

Cost: 163 million parameters, 650 MB in float32, about 7 s to build.

Misleading as: a picture of GPT-2. No head backs another up, and apart from the senders heads write independently.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from headscope.heads import HeadId

SLICE = 64
"""Numbers in one slice of a code, and in a head."""
MATCHED = SLICE - 1
"""Numbers of a slice that an induction head compares; the last place of the head holds the rest."""
N_INDUCTION = 12
TOP = 10
"""The wide step comes after so many of the graded heads."""

POSITION_GAIN = 80.0
"""Attention logit of a sender on the token before; random codes overlap by at most about 0.6."""
MATCH_GAIN = 40.0
REST = 0.6
"""Attention logit of an induction head on a match, and of the start token as a share of it."""

BEST_GAIN = 2.9
STEP = 1.3
WIDE_STEP = 2.0
"""What the best induction head writes, in units of a slice's code, and how gains fall from head to head."""

LAYER_NORM_EPSILON = 2.0**30
"""So large that the variance is lost beside it; its root is the gain, 2^15."""

RANDOM_QK = 0.4
"""Standard deviation of random query and key weights: attention logits of about unit size."""
JUNK_SHARE = 0.1
"""What a random head writes to `junk`, beside the residual stream that it reads."""
LEAK = (0.01, 0.04)
"""The same for its output into all directions; drawn log-uniformly between these for each head."""
MLP_SHARE = 0.01
"""The norm of an MLP's output, roughly."""

_WIDTHS = {"token": 2 * SLICE, "before": 2 * SLICE, "out": 2 * SLICE, "here": SLICE, "back_1": SLICE, "start": 1}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Planted:
    """A model and the heads that matter in it."""

    model: GPT2LMHeadModel
    """In evaluation mode, float32."""
    graded: tuple[HeadId, ...]
    """The two senders, then the induction heads: the costliest to remove first."""
    bos_token_id: int
    """The start token; every prompt must begin with it."""


def gains() -> list[float]:
    """What each induction head writes, largest first; the wide step makes the top ten with the two senders."""
    found = [BEST_GAIN]
    while len(found) < N_INDUCTION:
        found.append(found[-1] / (WIDE_STEP if len(found) == TOP - 2 else STEP))
    return found


def planted(seed: int = 0) -> Planted:
    """Build the model; the seed decides codes, rotations, layers, places of heads and everything random."""
    random = torch.Generator().manual_seed(seed)
    config = GPT2Config(
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        layer_norm_epsilon=LAYER_NORM_EPSILON,
        tie_word_embeddings=False,
    )
    n_layers, n_heads, d_model = config.n_layer, config.n_head, config.n_embd
    bos = config.vocab_size - 1
    assert config.bos_token_id == bos
    assert d_model // n_heads == SLICE
    space = _basis(d_model, random)

    heads: list[list[tuple[int | None, _Head]]] = [[] for _ in range(n_layers)]
    for which in range(2):
        heads[0].append((which, _sender(space, which)))
    later = torch.randint(2, n_layers, (N_INDUCTION,), generator=random).tolist()
    for rung, (layer, gain) in enumerate(zip(later, gains(), strict=True)):
        heads[layer].append((2 + rung, _induction(space, rung % 2, gain)))
    graded: dict[int, HeadId] = {}
    for layer, filled in enumerate(heads):
        filled += [(None, _random_head(space, random)) for _ in range(n_heads - len(filled))]
        heads[layer] = [filled[index] for index in torch.randperm(n_heads, generator=random).tolist()]
        graded |= {rank: HeadId(layer, index) for index, (rank, _) in enumerate(heads[layer]) if rank is not None}

    with torch.device("meta"):  # no weights are drawn that are not kept
        model = GPT2LMHeadModel(config).eval()
    weights = {name: torch.zeros(weight.shape) for name, weight in model.state_dict().items()}
    for name, weight in weights.items():
        if ".ln_" in name and name.endswith(".weight"):
            weight.fill_(math.sqrt(LAYER_NORM_EPSILON))
    code = _code(config.vocab_size, 2 * SLICE, random)
    code[bos] = 0.0
    places = _code(config.n_positions + 1, SLICE, random)
    weights["transformer.wte.weight"].copy_(code @ space["token"])
    weights["transformer.wte.weight"][bos] = space["start"][0]
    weights["transformer.wpe.weight"].copy_(places[1:] @ space["here"] + places[:-1] @ space["back_1"])
    weights["lm_head.weight"].copy_(code @ space["out"])
    for layer, filled in enumerate(heads):
        at = f"transformer.h.{layer}."
        q, k, v = weights[at + "attn.c_attn.weight"].view(d_model, 3, n_heads, SLICE).unbind(1)
        q_bias = weights[at + "attn.c_attn.bias"].view(3, n_heads, SLICE)[0]
        o = weights[at + "attn.c_proj.weight"].view(n_heads, SLICE, d_model)
        for index, (_, head) in enumerate(filled):
            qk_turn, ov_turn = _orthogonal(SLICE, random), _orthogonal(SLICE, random)
            # GPT-2 divides attention logits by sqrt(64); the query makes up for it.
            q[:, index] = math.sqrt(SLICE) * head.q @ qk_turn
            q_bias[index] = math.sqrt(SLICE) * head.q_bias @ qk_turn
            k[:, index] = head.k @ qk_turn
            v[:, index] = head.v @ ov_turn
            o[index] = ov_turn.T @ head.o
        inner = weights[at + "mlp.c_fc.weight"].shape[1]
        weights[at + "mlp.c_fc.weight"].copy_(0.5 * _normal(d_model, inner, random))
        weights[at + "mlp.c_proj.weight"].copy_(
            MLP_SHARE / math.sqrt(inner * d_model) * _normal(inner, d_model, random)
        )
    model.load_state_dict(weights, assign=True)
    return Planted(model=model, graded=tuple(graded[rank] for rank in sorted(graded)), bos_token_id=bos)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """One head: attention logits are `(x q + q_bias) . (y k)`, what it writes is `y v o`."""

    q: Float[Tensor, "d_model d_head"]
    q_bias: Float[Tensor, " d_head"]
    k: Float[Tensor, "d_model d_head"]
    v: Float[Tensor, "d_model d_head"]
    o: Float[Tensor, "d_head d_model"]


def _sender(space: dict[str, Tensor], which: int) -> _Head:
    """Attends one token back and moves one slice of its code to `before`."""
    return _Head(
        q=POSITION_GAIN * space["back_1"].T,
        q_bias=torch.zeros(SLICE),
        k=space["here"].T,
        v=_slice(space["token"], which).T,
        o=_slice(space["before"], which),
    )


def _induction(space: dict[str, Tensor], which: int, gain: float) -> _Head:
    """Attends to the token after the earlier copy, by one slice, and writes `gain` times that slice to `out`."""
    q, k = MATCH_GAIN * _slice(space["token"], which).T, _slice(space["before"], which).T
    q[:, MATCHED], k[:, MATCHED] = 0.0, space["start"][0]
    q_bias = torch.zeros(SLICE)
    q_bias[MATCHED] = REST * MATCH_GAIN
    return _Head(q=q, q_bias=q_bias, k=k, v=_slice(space["token"], which).T, o=gain * _slice(space["out"], which))


def _random_head(space: dict[str, Tensor], random: torch.Generator) -> _Head:
    """Reads everything, writes to `junk` and a little to everything."""
    junk = space["junk"]
    d_model = junk.shape[1]
    low, high = (math.log(share) for share in LEAK)
    leak = math.exp(low + (high - low) * float(torch.rand((), generator=random)))
    q, k, v = (_normal(d_model, SLICE, random) for _ in range(3))
    return _Head(
        q=RANDOM_QK / math.sqrt(SLICE) * q,
        q_bias=torch.zeros(SLICE),
        k=RANDOM_QK * k,
        v=v / math.sqrt(SLICE),
        o=JUNK_SHARE / math.sqrt(len(junk)) * _normal(SLICE, len(junk), random) @ junk
        + leak / math.sqrt(d_model) * _normal(SLICE, d_model, random),
    )


def _basis(d_model: int, random: torch.Generator) -> dict[str, Float[Tensor, "direction d_model"]]:
    """Orthonormal rows for each subspace, all orthogonal to the all-ones vector, which LayerNorm's centring removes."""
    columns = _normal(d_model, d_model, random).double()
    columns[:, 0] = 1.0
    rows = torch.linalg.qr(columns).Q[:, 1:].T.float()
    widths = _WIDTHS | {"junk": len(rows) - sum(_WIDTHS.values())}
    return dict(zip(widths, rows.split(list(widths.values())), strict=True))


def _slice(rows: Float[Tensor, "direction d_model"], which: int) -> Float[Tensor, "d_head d_model"]:
    return rows[which * SLICE : (which + 1) * SLICE].clone()


def _code(n_values: int, width: int, random: torch.Generator) -> Float[Tensor, "value direction"]:
    """Rows of +-1/8: each slice of 64 has norm 1, and two of them overlap by 0 +- 1/8."""
    return (2.0 * torch.randint(2, (n_values, width), generator=random) - 1.0) / math.sqrt(SLICE)


def _orthogonal(size: int, random: torch.Generator) -> Float[Tensor, "size size"]:
    return torch.linalg.qr(_normal(size, size, random)).Q


def _normal(n_rows: int, n_columns: int, random: torch.Generator) -> Float[Tensor, "row column"]:
    return torch.randn(n_rows, n_columns, generator=random)
