"""A Llama whose induction circuit was put there by hand: `handbuilt`'s sister with rotary positions.

The residual stream holds no positions. It is a sum of subspaces, each orthogonal to the others:

    token, embedded   two copies of the token's code (`digit_code`, two digits), written by the embedding
    before            empty until the previous-token head fills it
    start             one direction, set at the start token alone
    junk              written by noise and idle heads, read by none

Layer 0 holds the previous-token head, which moves `token` to `before`; layer 1 the induction head, whose query
reads `token` and whose key reads `before`, and which moves `token` to `token`. As in `handbuilt`, a query without a
match rests on `start`, the unembedding reads `token - embedded`, MLPs are zero, and RMSNorm's epsilon is so large,
and its gain so matched, that it does nothing.

Rotary embedding turns pair i (dimensions i and i + d_head / 2) of a query or key at position n by n theta_i, with
theta_i = rope_theta^(-2 i / d_head), so that a query bias and a key bias give a logit of the distance alone:

    logit(distance) = sum over pairs of a_i cos(theta_i (distance - back))      a_i proportional to theta_i

where the query bias lies `theta_i back` behind the key bias. The sum of the a_i, 63 for 256 positions, is such that
the logit at `back` is 12 above that at every other distance: attention 0.99998. These heads' W_Q and W_K are zero.

Content must match at any distance, so it is put into the slowest pairs: rope_theta is such that they turn by at most
0.02 over `n_positions`, which moves a logit by at most 0.02 |q| |k| = 1.4. Without it a match has 40, the rest on the
start token 30, a one-digit look-alike 20 and what the decoy sender wrote at most 28: attention 0.9999. For 256 tokens
and positions that is d_head 128, 17 slow pairs of 64, and rope_theta 3.9e5, near Llama 3's 5e5.

With `grouped`, query heads share a key-value head in pairs, named in `LAYOUT`. What can be shared is: both senders have
one key bias and read one value, and their query biases alone tell them one or two back; induction and anti-induction
have one pattern and one value and differ in what they write. Idle heads read their partner's keys at random.

In the end the residual basis is rotated at random, the slow subspace, each fast pair and the value space are for each
key-value head, and key-value heads and the query heads in them are shuffled. That a head uses fast or slow pairs shows
in its weights; rotary embedding would not let it be hidden.

Cost: 2 layers of 6 heads, 1.5 million parameters, 1.2 million grouped; built in 0.1 s. d_head is four times the code's
width, so that 10,000 tokens take 72 million and 7 s.

Misleading as: a picture of learned heads, which are not as sharp and mix distance with content. A zero W_Q or W_K is
also a hard case for composition scores with the *senders* as receivers: 0/0. And the K-composition score of the
decoy sender equals that of the true one: weights alone cannot distinguish them, only what their attention does.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from headscope.errors import ArgumentError
from headscope.heads import HeadId
from headscope.planted.basis import normal, random_orthogonal
from headscope.planted.handbuilt import (
    COPY_GAIN,
    MATCH_GAIN,
    NOISE_NORM,
    START_TOKEN_ID,
    WEAK_COPY_GAIN,
    WEAK_SENDER_GAIN,
    HandBuilt,
    digit_code,
)

RotaryRole = Literal[
    "previous_token",
    "induction",
    "wrong_position_sender",
    "attends_only",
    "anti_induction",
    "noise",
    "none",
]
"""What a head truly is; words as in `handbuilt`. The first two make the circuit, `none` fills the layers up."""

RotaryDecoy = Literal["wrong_position_sender", "attends_only", "anti_induction", "noise"]
"""A head that resembles a part of the circuit and is none; words as in `handbuilt`. `noise` is one head per layer."""

ROTARY_DECOYS: tuple[RotaryDecoy, ...] = get_args(RotaryDecoy)
"""Every decoy there is."""

LAYOUT: tuple[tuple[RotaryRole, ...], ...] = (
    ("previous_token", "wrong_position_sender", "noise", "none", "none", "none"),
    ("induction", "anti_induction", "attends_only", "none", "noise", "none"),
)
"""Heads of the two layers before they are shuffled; grouped, neighbours share a key-value head.
A decoy that is not asked for leaves its place to `none`."""

N_DIGITS = 2
"""In the code of a token."""
MAX_TURN = 0.02
"""Radians that a slow pair turns over `n_positions`, at most."""
PEAK_MARGIN = 12.0
"""Logits between the distance that a sender looks back and every other."""

RMS_NORM_EPSILON = 2.0**30
"""So large that a mean square below 2^6 is lost beside it in float32; its root is the gain, 2^15."""


def handbuilt_rotary(
    *,
    vocab_size: int = 256,
    n_positions: int = 256,
    grouped: bool = False,
    decoys: Sequence[RotaryDecoy] = ROTARY_DECOYS,
    seed: int = 0,
) -> HandBuilt:
    """Build a rotary model that predicts `[B]` at the second `[A]` of `[A][B] ... [A]`, by a circuit we know.

    Args:
        vocab_size: Tokens, the start token (id 0) included.
        n_positions: Longest prompt.
        grouped: Let query heads share key-value heads in pairs, as this module's text says.
        decoys: Which decoys to plant, each at most once; see `RotaryDecoy`.
        seed: Of the rotations, the order of heads and the width.

    Returns:
        The model, of 2 layers and 6 heads a layer, and the role of each head.

    Raises:
        ArgumentError: A number is out of range, or a decoy unknown or named twice.
    """
    _check(vocab_size, n_positions, decoys)
    random = torch.Generator().manual_seed(seed)
    # The start token has no code: resting on it writes nothing, and it is never predicted.
    token_code = torch.nn.functional.pad(digit_code(vocab_size - 1, N_DIGITS), (0, 0, 1, 0))
    width = token_code.shape[1]
    d_head = max(64, 4 * width)
    n_slow = math.ceil((width + 1) / 2)
    base = rotary_base(d_head, n_slow, n_positions)
    space = {
        name: slice(index * width, (index + 1) * width)
        for index, name in enumerate(("token", "embedded", "before", "junk"))
    } | {"start": slice(4 * width, 4 * width + 1)}
    plan = _Plan(
        space=space,
        width=width,
        d_head=d_head,
        angles=rotary_angles(base, d_head),
        n_slow=n_slow,
        n_positions=n_positions,
        random=random,
    )
    present = {"previous_token", "induction", "none", *decoys}
    layers = [
        _shuffled(plan.layer([role if role in present else "none" for role in roles], 2 if grouped else 1), random)
        for roles in LAYOUT
    ]

    n_directions = 4 * width + 1
    embedding = torch.zeros(vocab_size, n_directions, dtype=torch.float64)
    embedding[:, space["token"]] = token_code
    embedding[:, space["embedded"]] = token_code
    embedding[START_TOKEN_ID, space["start"]] = 1.0
    unembedding = torch.zeros_like(embedding)
    unembedding[:, space["token"]] = token_code
    unembedding[:, space["embedded"]] = -token_code
    # Half as wide again as it need be; Llama wants a multiple of the number of heads.
    d_model = 2 * len(LAYOUT[0]) * (math.ceil(n_directions / 8) + int(torch.randint(3, (), generator=random)))
    basis = random_orthogonal(d_model, random)[:n_directions]
    model = _empty_llama(layers, plan, vocab_size=vocab_size, d_model=d_model, base=base)
    _fill(model, layers, plan, basis, embedding, unembedding)
    return HandBuilt(
        model=model,
        bos_token_id=START_TOKEN_ID,
        roles={
            HeadId(layer, index): head.role
            for layer, groups in enumerate(layers)
            for index, head in enumerate(head for group in groups for head in group.heads)
        },
    )


def rotary_base(d_head: int, n_slow: int, n_positions: int) -> float:
    """The least `rope_theta` at which the slowest `n_slow` pairs turn by `MAX_TURN` or less over `n_positions`.

    rope_theta^(-2 (d_head / 2 - n_slow) / d_head) * n_positions = MAX_TURN
    """
    return (n_positions / MAX_TURN) ** (d_head / (d_head - 2 * n_slow))


def rotary_angles(base: float, d_head: int) -> Float[Tensor, " pair"]:
    """What each pair turns by per position, in radians, fastest first: base^(-2 i / d_head)."""
    return base ** -(torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)


def distance_weights(angles: Float[Tensor, " pair"], n_positions: int) -> Float[Tensor, " pair"]:
    """Weights a_i, proportional to the angles, of a logit that peaks at distance zero by `PEAK_MARGIN`.

    min over n = 1 .. n_positions - 1 of sum_i a_i (1 - cos(angle_i n)) = PEAK_MARGIN
    """
    distances = torch.arange(1, n_positions, dtype=torch.float64)
    drops = (1 - torch.cos(distances[:, None] * angles)) @ angles
    return angles * PEAK_MARGIN / drops.min()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Keys:
    """One key-value head in the unrotated bases."""

    k: Float[Tensor, "direction d_head"]
    k_bias: Float[Tensor, " d_head"]
    v: Float[Tensor, "direction d_head"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """One query head in the unrotated bases."""

    role: RotaryRole
    q: Float[Tensor, "direction d_head"]
    q_bias: Float[Tensor, " d_head"]
    o: Float[Tensor, "d_head direction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """A key-value head and the query heads that use it."""

    keys: _Keys
    heads: list[_Head]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Draws up heads: content in the slow pairs, distance in the fast ones."""

    space: dict[str, slice]
    """The residual stream's subspaces, before rotation."""
    width: int
    """Of a token's code."""
    d_head: int
    angles: Float[Tensor, " pair"]
    n_slow: int
    n_positions: int
    random: torch.Generator

    @property
    def n_fast(self) -> int:
        return self.d_head // 2 - self.n_slow

    @property
    def fast(self) -> Int[Tensor, " pair"]:
        """First dimension of each fast pair; the second lies d_head / 2 further."""
        return torch.arange(self.n_fast)

    @property
    def slow(self) -> Int[Tensor, " dimension"]:
        """Dimensions of the slow pairs: the code's, then the start token's."""
        first = torch.arange(self.n_fast, self.d_head // 2)
        return torch.cat([first, first + self.d_head // 2])

    def layer(self, roles: list[RotaryRole], n_sharing: int) -> list[_Group]:
        """Heads with these roles, each `n_sharing` neighbours with the first one's keys and values."""
        groups: list[_Group] = []
        for first in range(0, len(roles), n_sharing):
            keys = self._keys(roles[first])
            groups.append(_Group(keys=keys, heads=[self._head(r, keys) for r in roles[first : first + n_sharing]]))
        return groups

    def qk_turn(self) -> Float[Tensor, "d_head d_head"]:
        """A random rotation that commutes with the rotary embedding: exactly in fast pairs, nearly in slow ones."""
        turn = torch.zeros(self.d_head, self.d_head, dtype=torch.float64)
        phases = 2 * math.pi * torch.rand(self.n_fast, generator=self.random, dtype=torch.float64)
        first, second = self.fast, self.fast + self.d_head // 2
        turn[first, first] = turn[second, second] = torch.cos(phases)
        turn[first, second] = torch.sin(phases)
        turn[second, first] = -torch.sin(phases)
        turn[self.slow[:, None], self.slow] = random_orthogonal(len(self.slow), self.random)
        return turn

    def _keys(self, role: RotaryRole) -> _Keys:
        n_directions = self.space["start"].stop
        k = torch.zeros(n_directions, self.d_head, dtype=torch.float64)
        v = torch.zeros_like(k)
        k_bias = torch.zeros(self.d_head, dtype=torch.float64)
        v[self.space["token"], : self.width] = torch.eye(self.width, dtype=torch.float64)
        match role:
            case "previous_token" | "wrong_position_sender":
                k_bias[self.fast] = 1.0
            case "induction" | "anti_induction" | "attends_only":
                k[self.space["before"], self.slow[: self.width]] = torch.eye(self.width, dtype=torch.float64)
                k[self.space["start"], self.slow[self.width]] = 1.0
            case "noise" | "none":
                k, v = self._random_reader(), self._random_reader()
        return _Keys(k=k, k_bias=k_bias, v=v)

    def _head(self, role: RotaryRole, keys: _Keys) -> _Head:
        q = torch.zeros_like(keys.k)
        q_bias = torch.zeros_like(keys.k_bias)
        match role:
            case "previous_token":
                q_bias = self._back(1)
                o = self._write("before", 1.0)
            case "wrong_position_sender":
                q_bias = self._back(2)
                o = self._write("before", WEAK_SENDER_GAIN)
            case "induction" | "anti_induction" | "attends_only":
                code = torch.eye(self.width, dtype=torch.float64)
                q[self.space["token"], self.slow[: self.width]] = MATCH_GAIN * code
                q_bias[self.slow[self.width]] = MATCH_GAIN * (N_DIGITS - 0.5)
                gain = {"induction": COPY_GAIN, "anti_induction": -WEAK_COPY_GAIN, "attends_only": 0.0}[role]
                o = self._write("token", gain)
            case "noise" | "none":
                # Attention logits of about unit size beside keys of a random reader.
                q = self._random_reader() / math.sqrt(self.d_head) / 8
                o = torch.zeros_like(keys.v.T)
                o[:, self.space["junk"]] = normal((self.d_head, self.width), self.random)
                # |OV| of the induction head is COPY_GAIN * sqrt(width): a multiple of the identity.
                norm = NOISE_NORM * COPY_GAIN * math.sqrt(self.width) if role == "noise" else 1.0
                o *= norm / (keys.v @ o).norm()
        return _Head(role=role, q=q, q_bias=q_bias, o=o)

    def _back(self, distance: int) -> Float[Tensor, " d_head"]:
        """The query bias that finds the key bias `distance` back: turned by that much the other way."""
        angles = self.angles[: self.n_fast]
        weights = distance_weights(angles, self.n_positions)
        q_bias = torch.zeros(self.d_head, dtype=torch.float64)
        q_bias[self.fast] = weights * torch.cos(angles * distance)
        q_bias[self.fast + self.d_head // 2] = -weights * torch.sin(angles * distance)
        return q_bias

    def _write(self, target: str, gain: float) -> Float[Tensor, "d_head direction"]:
        o = torch.zeros(self.d_head, self.space["start"].stop, dtype=torch.float64)
        o[: self.width, self.space[target]] = gain * torch.eye(self.width, dtype=torch.float64)
        return o

    def _random_reader(self) -> Float[Tensor, "direction d_head"]:
        """Reads everything but `junk`, where noise is large."""
        reader = normal((self.space["start"].stop, self.d_head), self.random)
        reader[self.space["junk"]] = 0.0
        return reader


Item = TypeVar("Item")


def _shuffled(groups: list[_Group], random: torch.Generator) -> list[_Group]:
    def order(items: list[Item]) -> list[Item]:
        return [items[int(index)] for index in torch.randperm(len(items), generator=random)]

    return [_Group(keys=group.keys, heads=order(group.heads)) for group in order(groups)]


def _empty_llama(
    layers: list[list[_Group]], plan: _Plan, *, vocab_size: int, d_model: int, base: float
) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=d_model,
        intermediate_size=8,
        num_hidden_layers=len(layers),
        num_attention_heads=sum(len(group.heads) for group in layers[0]),
        num_key_value_heads=len(layers[0]),
        head_dim=plan.d_head,
        max_position_embeddings=plan.n_positions,
        rope_parameters={"rope_type": "default", "rope_theta": base},
        rms_norm_eps=RMS_NORM_EPSILON,
        attention_bias=True,
        tie_word_embeddings=False,
        bos_token_id=START_TOKEN_ID,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        return LlamaForCausalLM(config).eval()


def _fill(
    model: LlamaForCausalLM,
    layers: list[list[_Group]],
    plan: _Plan,
    basis: Float[Tensor, "direction d_model"],
    embedding: Float[Tensor, "token direction"],
    unembedding: Float[Tensor, "token direction"],
) -> None:
    """Rotate everything and put it into the model; every other weight becomes zero."""
    weights = {name: torch.zeros_like(weight) for name, weight in model.state_dict().items()}
    for name, weight in weights.items():
        if name.endswith("norm.weight"):
            weight.fill_(math.sqrt(RMS_NORM_EPSILON))
    weights["model.embed_tokens.weight"].copy_(embedding @ basis)
    weights["lm_head.weight"].copy_(unembedding @ basis)
    for layer, groups in enumerate(layers):
        at = f"model.layers.{layer}.self_attn."

        def by_head(name: str, at: str = at) -> Tensor:
            return weights[f"{at}{name}"].unflatten(0, (-1, plan.d_head))

        q, q_bias = by_head("q_proj.weight"), by_head("q_proj.bias")
        k, k_bias = by_head("k_proj.weight"), by_head("k_proj.bias")
        v, o = by_head("v_proj.weight"), weights[f"{at}o_proj.weight"].unflatten(1, (-1, plan.d_head))
        n_sharing = len(q) // len(k)
        for kv_head, group in enumerate(groups):
            # Llama divides attention logits by sqrt(d_head); query and key make up for it.
            qk_turn = plan.qk_turn() * plan.d_head**0.25
            ov_turn = random_orthogonal(plan.d_head, plan.random)
            k[kv_head] = (basis.T @ group.keys.k @ qk_turn).T
            k_bias[kv_head] = group.keys.k_bias @ qk_turn
            v[kv_head] = (basis.T @ group.keys.v @ ov_turn).T
            for index, head in enumerate(group.heads, start=kv_head * n_sharing):
                q[index] = (basis.T @ head.q @ qk_turn).T
                q_bias[index] = head.q_bias @ qk_turn
                o[:, index] = (ov_turn.T @ head.o @ basis).T
    model.load_state_dict(weights)


def _check(vocab_size: int, n_positions: int, decoys: Sequence[str]) -> None:
    problems: list[str] = []
    if vocab_size < 2:
        problems.append(f"vocab_size={vocab_size} must be at least 2")
    if n_positions < 3:
        problems.append(f"n_positions={n_positions} must be at least 3")
    if unknown := sorted(set(decoys) - set(ROTARY_DECOYS)):
        problems.append(f"decoys={unknown} must be among {', '.join(ROTARY_DECOYS)}")
    if len(set(decoys)) < len(decoys):
        problems.append("decoys must be named once each")
    if problems:
        raise ArgumentError("handbuilt_rotary: " + "; ".join(problems) + ". Change these arguments.")
