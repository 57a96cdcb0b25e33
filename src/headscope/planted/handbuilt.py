"""A GPT-2 whose induction circuit was put there by hand, so that every head's true role is known.

The residual stream is a sum of named subspaces, each orthogonal to the others and to the all-ones vector:

    token, embedded   two copies of the token's code, written by the embedding
    before            empty until the previous-token head fills it
    here, back_1      the codes of the position i and of i - 1, written by the position table
    start             one direction, set at the start token alone
    junk              written by decoys, read by none that matters

The previous-token head reads `back_1` as query and `here` as key and moves `token` to `before`. In a later
layer the induction head reads `token` as query and `before` as key, so that the query at a repeated token
finds the key *after* its earlier copy, and moves `token` to `token`. A query without a match rests on
`start`. The unembedding reads `token - embedded`, so the direct path from embedding to logits is zero.
MLPs are zero. LayerNorm's epsilon is so large, and its gain so matched, that it subtracts the mean (which
is zero) and does nothing else.

A value `n` is coded by its digits, each a one-hot: `code(m) . code(n)` counts the digits they share. One
digit is the plain one-hot; two digits code 256 tokens in 32 dimensions, and everything stays exact. The start
token has no code, so that resting on it writes nothing; its position has one that shares no digit with others.

In the end the residual basis and every head's inner basis are rotated at random and the heads of a layer
are shuffled: nothing can be read off the weights' layout.

Scores: attention logit = GAIN * (digits shared), against GAIN * (digits - 1/2) for the start token. With
two digits and GAIN 20, a match has the logit 40, rest 30, and a one-digit look-alike 20: the match holds
1 / (1 + e^-10 + ...) = 0.99995 of the attention.

Cost: about `4 * n_layers * d_model^2` parameters, a million for the plain model, two or three with every decoy.

Misleading as: a picture of learned heads. These do one thing perfectly, which learned heads never do.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from headscope.errors import ArgumentError
from headscope.heads import HeadId
from headscope.planted.basis import Space, digit_code, integer, normal, position_code, random_basis, random_orthogonal

Role = Literal[
    "previous_token",
    "induction",
    "redundant_induction",
    "half_copier",
    "positional",
    "duplicate_token",
    "attends_only",
    "anti_induction",
    "noise",
    "wrong_position_sender",
    "none",
]
"""What a head truly is. The first four make the circuit, the rest are decoys, `none` fills the layers up."""
Decoy = Literal[
    "positional",
    "duplicate_token",
    "attends_only",
    "anti_induction",
    "noise",
    "wrong_position_sender",
]
"""A head that resembles a part of the circuit and is none.

    positional              attends `offset` back whatever the tokens are, and copies weakly
    duplicate_token         attends to the earlier copy itself, not to what follows it
    attends_only            the induction head's pattern; writes nothing
    anti_induction          the induction head's pattern; lowers the copied token, weakly
    noise                   a random pattern and a random output of ten times the induction head's norm
    wrong_position_sender   writes what the induction head's key reads, as the previous-token head does,
                            but of the token two back, and weakly
"""
DECOYS: tuple[Decoy, ...] = (
    "positional",
    "duplicate_token",
    "attends_only",
    "anti_induction",
    "noise",
    "wrong_position_sender",
)
"""Every decoy there is."""
Copying = Literal["one", "redundant", "halves"]
"""Who copies.

    one         one induction head
    redundant   two, each enough: without either nothing changes, without both all is lost
    halves      two with one pattern, whose outputs `(I + N)/2` and `(I - N)/2` each drown in a random `N` of three
                times the copy's size; only their sum copies
"""
START_TOKEN_ID = 0
POSITION_GAIN = 30.0
MATCH_GAIN = 20.0
DUPLICATE_GAIN = 80.0
"""Attention logits per digit shared."""
COPY_GAIN = 12.0
"""What a copying head writes, in units of a token's code."""
WEAK_COPY_GAIN = 3.0
"""The positional and anti-induction heads': too little to change which token is ranked first."""
WEAK_SENDER_GAIN = 0.2
"""The wrong-position sender's: a match of its content stays below the rest on the start token."""
HALF_NOISE = 3.0
"""Size of `N` beside the half-copiers' `I`."""
NOISE_NORM = 10.0
"""Frobenius norm of the noise head's OV over the induction head's."""
LINEAR = 16.0
"""Where GELU of a neuron is its input, up to rounding."""
LAYER_NORM_EPSILON = 2.0**30
"""So large that a variance below 2^6 is lost beside it in float32; its root is the gain, 2^15."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HandBuilt:
    """A model and the truth about its heads."""

    model: GPT2LMHeadModel | LlamaForCausalLM
    """In evaluation mode, float32."""
    bos_token_id: int
    """The start token; every prompt must begin with it."""
    roles: Mapping[HeadId, Role]
    """Every head's role."""

    def heads(self, role: Role) -> list[HeadId]:
        """The heads that have a role, in order; empty when none does."""
        return sorted(head for head, its_role in self.roles.items() if its_role == role)


def handbuilt(
    *,
    vocab_size: int = 256,
    n_positions: int = 256,
    n_layers: int = 2,
    n_digits: int = 2,
    copying: Copying = "one",
    decoys: Sequence[Decoy] = (),
    offset: int = 49,
    seed: int = 0,
) -> HandBuilt:
    """Build a model that predicts `[B]` at the second `[A]` of `[A][B] ... [A]`, by a circuit we know.

    Args:
        vocab_size: Tokens, the start token (id 0) included.
        n_positions: Longest prompt.
        n_layers: At least 2. The two layers that hold the circuit are drawn from the seed.
        n_digits: Digits in the code of a token or position; 1 is the one-hot.
        copying: How many heads share the copying; see `Copying`.
        decoys: Which decoys to plant, each at most once; see `Decoy`.
        offset: How far back the positional decoy attends. At `period - 1` it passes for an induction
            head on repeats of that fixed period without a gap.
        seed: Of the rotations, the order of heads, the layers and the width.

    Returns:
        The model and the role of each of its heads. Attention, per role, as in this module's text.

    Raises:
        ArgumentError: A number is out of range, or a decoy unknown or named twice.
    """
    _check(vocab_size, n_positions, n_layers, n_digits, copying, decoys, offset)
    random = torch.Generator().manual_seed(seed)
    # The start token has no code: resting on it writes nothing, and it is never predicted.
    token_code = torch.nn.functional.pad(digit_code(vocab_size - 1, n_digits), (0, 0, 1, 0))
    offsets = _offsets(decoys, offset)
    position_codes = {name: position_code(n_positions, n_digits, back) for name, back in offsets.items()}
    space = Space.of(
        {
            "token": token_code.shape[1],
            "embedded": token_code.shape[1],
            "before": token_code.shape[1],
            "start": 1,
            "junk": token_code.shape[1],
            **{name: code.shape[1] for name, code in position_codes.items()},
        }
    )
    # The duplicate-token head needs most: token and position codes and the rest.
    d_head = 8 * math.ceil((space.width("token") + space.width("here") + 1) / 8)
    d_head += 8 * integer(3, random)
    plan = Plan(space=space, d_head=d_head, n_digits=n_digits, random=random)
    senders = [plan.previous_token()]
    receivers = plan.copiers(copying)
    for decoy in decoys:
        in_first = decoy in ("duplicate_token", "wrong_position_sender")
        (senders if in_first else receivers).append(getattr(plan, decoy)())
    n_heads = max(len(senders), len(receivers), math.ceil((space.n_directions + 1) / d_head))
    first = integer(n_layers - 1, random)
    second = first + 1 + integer(n_layers - 1 - first, random)
    layers: list[list[PlannedHead]] = [[] for _ in range(n_layers)]
    layers[first], layers[second] = senders, receivers
    for layer in range(n_layers):
        filled = layers[layer] + [plan.none() for _ in range(n_heads - len(layers[layer]))]
        layers[layer] = [filled[int(index)] for index in torch.randperm(n_heads, generator=random)]

    embedding = torch.zeros(vocab_size, space.n_directions, dtype=torch.float64)
    embedding[:, space["token"]] = token_code
    embedding[:, space["embedded"]] = token_code
    embedding[START_TOKEN_ID, space["start"]] = 1.0
    positions = torch.zeros(n_positions, space.n_directions, dtype=torch.float64)
    for name, code in position_codes.items():
        positions[:, space[name]] = code
    unembedding = torch.zeros(vocab_size, space.n_directions, dtype=torch.float64)
    unembedding[:, space["token"]] = token_code
    unembedding[:, space["embedded"]] = -token_code
    model = assemble(layers, embedding, positions, unembedding, random)
    return HandBuilt(
        model=model,
        bos_token_id=START_TOKEN_ID,
        roles={
            HeadId(layer, index): head.role for layer, heads in enumerate(layers) for index, head in enumerate(heads)
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedHead:
    """One head in the unrotated basis: attention logits are `(x q + q_bias) . (y k)`."""

    role: Role
    q: Float[Tensor, "direction d_head"]
    q_bias: Float[Tensor, " d_head"]
    k: Float[Tensor, "direction d_head"]
    v: Float[Tensor, "direction d_head"]
    o: Float[Tensor, "d_head direction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Draws up heads for one residual space, one method per role."""

    space: Space
    d_head: int
    n_digits: int
    random: torch.Generator

    def previous_token(self) -> PlannedHead:
        """Attends one back and writes the token there to `before`."""
        return self.head(
            "previous_token",
            self.pattern(("back_1", "here", POSITION_GAIN)),
            self.write("token", "before", 1.0),
        )

    def copiers(self, copying: Copying) -> list[PlannedHead]:
        """The heads that copy; see `Copying`."""
        copy = self.write("token", "token", COPY_GAIN)
        match copying:
            case "one":
                return [self.head("induction", self.induction_pattern(), copy)]
            case "redundant":
                return [self.head("redundant_induction", self.induction_pattern(), copy) for _ in range(2)]
            case "halves":
                width = self.space.width("token")
                noise = HALF_NOISE * random_orthogonal(width, self.random)
                identity = torch.eye(width, dtype=torch.float64)
                return [
                    self.head(
                        "half_copier",
                        self.induction_pattern(),
                        self.write("token", "token", COPY_GAIN * (identity + sign * noise) / 2),
                    )
                    for sign in (1, -1)
                ]

    def positional(self) -> PlannedHead:
        """Attends `offset` back and copies weakly."""
        return self.head(
            "positional",
            self.pattern(("back_offset", "here", POSITION_GAIN), rest_gain=POSITION_GAIN),
            self.write("token", "token", WEAK_COPY_GAIN),
        )

    def duplicate_token(self) -> PlannedHead:
        """Attends to earlier copies of the token."""
        # A penalty per shared position digit keeps the head off its own position. Its whole must cost
        # more than the half digit between a match and the rest, one digit less than it must cost less:
        # 1/2 < n * penalty and (n - 1) * penalty < 1/2.
        upper = 1.0 if self.n_digits == 1 else 0.5 / (self.n_digits - 1)
        penalty = (0.5 / self.n_digits + upper) / 2
        return self.head(
            "duplicate_token",
            self.pattern(
                ("token", "token", DUPLICATE_GAIN),
                ("here", "here", -penalty * DUPLICATE_GAIN),
                rest_gain=DUPLICATE_GAIN,
            ),
            self.write("token", "junk", 1.0),
        )

    def attends_only(self) -> PlannedHead:
        """The induction head's pattern; writes nothing."""
        return self.head("attends_only", self.induction_pattern(), self.write("token", "token", 0.0))

    def anti_induction(self) -> PlannedHead:
        """The induction head's pattern; lowers the copied token."""
        return self.head(
            "anti_induction",
            self.induction_pattern(),
            self.write("token", "token", -WEAK_COPY_GAIN),
        )

    def noise(self) -> PlannedHead:
        """A loud random head."""
        # |OV| of the induction head is COPY_GAIN * sqrt(width): a multiple of the identity.
        norm = NOISE_NORM * COPY_GAIN * math.sqrt(self.space.width("token"))
        return self.random_head("noise", ov_norm=norm)

    def wrong_position_sender(self) -> PlannedHead:
        """Attends two back and writes to `before`."""
        return self.head(
            "wrong_position_sender",
            self.pattern(("back_2", "here", POSITION_GAIN), rest_gain=POSITION_GAIN),
            self.write("token", "before", WEAK_SENDER_GAIN),
        )

    def none(self) -> PlannedHead:
        """A random head of unit norm."""
        return self.random_head("none", ov_norm=1.0)

    def induction_pattern(self) -> tuple[Tensor, Tensor, Tensor]:
        """Attends to the token whose predecessor is the current token, else to the start token."""
        return self.pattern(("token", "before", MATCH_GAIN), rest_gain=MATCH_GAIN)

    def pattern(self, *matches: tuple[str, str, float], rest_gain: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """q, q_bias, k that compare subspaces, at a gain each, and rest on the start token otherwise.

        The rest is half a digit below the full match of the first pair.
        """
        q = torch.zeros(self.space.n_directions, self.d_head, dtype=torch.float64)
        k = torch.zeros_like(q)
        q_bias = torch.zeros(self.d_head, dtype=torch.float64)
        column = 0
        for query_space, key_space, gain in matches:
            width = self.space.width(query_space)
            inner = torch.arange(column, column + width)
            q[torch.arange(width) + self.space[query_space].start, inner] = gain
            k[torch.arange(width) + self.space[key_space].start, inner] = 1.0
            column += width
        k[self.space["start"], column] = 1.0
        q_bias[column] = rest_gain * (self.n_digits - 0.5)
        return q, q_bias, k

    def write(self, source: str, target: str, matrix: Float[Tensor, "read written"] | float) -> tuple[Tensor, Tensor]:
        """v, o that read one subspace and write `matrix` times it to another."""
        width = self.space.width(source)
        v = torch.zeros(self.space.n_directions, self.d_head, dtype=torch.float64)
        v[torch.arange(width) + self.space[source].start, torch.arange(width)] = 1.0
        o = torch.zeros(self.d_head, self.space.n_directions, dtype=torch.float64)
        gain = matrix * torch.eye(width, dtype=torch.float64) if isinstance(matrix, float) else matrix
        o[:width, self.space[target]] = gain
        return v, o

    def head(self, role: Role, pattern: tuple[Tensor, Tensor, Tensor], write: tuple[Tensor, Tensor]) -> PlannedHead:
        """A head of these parts."""
        q, q_bias, k = pattern
        v, o = write
        return PlannedHead(role=role, q=q, q_bias=q_bias, k=k, v=v, o=o)

    def random_head(self, role: Role, *, ov_norm: float) -> PlannedHead:
        """Reads everything and writes to `junk`, all at random; attention logits of about unit size."""
        shape = (self.space.n_directions, self.d_head)
        q, k, v = (normal(shape, self.random) for _ in range(3))
        o = torch.zeros(self.d_head, self.space.n_directions, dtype=torch.float64)
        o[:, self.space["junk"]] = normal((self.d_head, self.space.width("junk")), self.random)
        o *= ov_norm / (v @ o).norm()
        q_bias = torch.zeros(self.d_head, dtype=torch.float64)
        return PlannedHead(role=role, q=q / math.sqrt(self.d_head) / 8, q_bias=q_bias, k=k, v=v, o=o)


def assemble(
    layers: list[list[PlannedHead]],
    embedding: Float[Tensor, "token direction"],
    positions: Float[Tensor, "position direction"],
    unembedding: Float[Tensor, "token direction"],
    random: torch.Generator,
    *,
    mlp: tuple[Float[Tensor, "direction neuron"], Float[Tensor, "neuron direction"]] | None = None,
) -> GPT2LMHeadModel:
    """Rotate everything and put it into a stock GPT-2; `mlp` is what the first layer's reads and writes."""
    d_head, n_directions = layers[0][0].o.shape
    n_heads = len(layers[0])
    d_model = n_heads * d_head
    config = GPT2Config(
        vocab_size=len(embedding),
        n_positions=len(positions),
        n_embd=d_model,
        n_layer=len(layers),
        n_head=n_heads,
        n_inner=8 if mlp is None else mlp[0].shape[1],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        layer_norm_epsilon=LAYER_NORM_EPSILON,
        tie_word_embeddings=False,
        bos_token_id=START_TOKEN_ID,
        eos_token_id=None,
    )
    with torch.device("meta"):  # no weights are drawn that are not kept
        model = GPT2LMHeadModel(config).eval()
    basis = random_basis(n_directions, d_model, random)
    weights = {name: torch.zeros(weight.shape) for name, weight in model.state_dict().items()}
    for name, weight in weights.items():
        if ".ln_" in name and name.endswith(".weight"):
            weight.fill_(math.sqrt(LAYER_NORM_EPSILON))
    weights["transformer.wte.weight"].copy_(embedding @ basis)
    weights["transformer.wpe.weight"].copy_(positions @ basis)
    weights["lm_head.weight"].copy_(unembedding @ basis)
    for layer, heads in enumerate(layers):
        at = f"transformer.h.{layer}.attn."
        q, k, v = weights[at + "c_attn.weight"].view(d_model, 3, n_heads, d_head).unbind(1)
        q_bias = weights[at + "c_attn.bias"].view(3, n_heads, d_head)[0]
        o = weights[at + "c_proj.weight"].view(n_heads, d_head, d_model)
        for index, head in enumerate(heads):
            # GPT-2 divides attention logits by sqrt(d_head); query and key make up for it.
            qk_turn = random_orthogonal(d_head, random) * d_head**0.25
            ov_turn = random_orthogonal(d_head, random)
            q[:, index] = basis.T @ head.q @ qk_turn
            q_bias[index] = head.q_bias @ qk_turn
            k[:, index] = basis.T @ head.k @ qk_turn
            v[:, index] = basis.T @ head.v @ ov_turn
            o[index] = ov_turn.T @ head.o @ basis
    if mlp is not None:
        # With a bias so large GELU is the identity: what is written is linear, and the bias is taken off again.
        at, (read, write) = "transformer.h.0.mlp.", mlp
        weights[at + "c_fc.weight"].copy_(basis.T @ read)
        weights[at + "c_fc.bias"].fill_(LINEAR)
        weights[at + "c_proj.weight"].copy_(write @ basis)
        weights[at + "c_proj.bias"].copy_(-LINEAR * write.sum(0) @ basis)
    model.load_state_dict(weights, assign=True)
    return model


def _offsets(decoys: Sequence[Decoy], offset: int) -> dict[str, int]:
    """The position codes that the planned heads read: name and how far back."""
    offsets = {"here": 0, "back_1": 1}
    if "wrong_position_sender" in decoys:
        offsets["back_2"] = 2
    if "positional" in decoys:
        offsets["back_offset"] = offset
    return offsets


def _check(
    vocab_size: int,
    n_positions: int,
    n_layers: int,
    n_digits: int,
    copying: str,
    decoys: Sequence[str],
    offset: int,
) -> None:
    problems: list[str] = []
    if vocab_size < 2:
        problems.append(f"vocab_size={vocab_size} must be at least 2")
    if n_positions < 3:
        problems.append(f"n_positions={n_positions} must be at least 3")
    if n_layers < 2:
        problems.append(f"n_layers={n_layers} must be at least 2: one layer cannot do induction")
    if n_digits < 1:
        problems.append(f"n_digits={n_digits} must be at least 1")
    if copying not in ("one", "redundant", "halves"):
        problems.append(f"copying={copying!r} must be 'one', 'redundant' or 'halves'")
    if unknown := sorted(set(decoys) - set(DECOYS)):
        problems.append(f"decoys={unknown} must be among {', '.join(DECOYS)}")
    if len(set(decoys)) < len(decoys):
        problems.append("decoys must be named once each")
    if "positional" in decoys and not 1 <= offset < n_positions:
        problems.append(f"offset={offset} must lie in 1 .. {n_positions - 1}")
    if problems:
        raise ArgumentError("handbuilt: " + "; ".join(problems) + ". Change these arguments.")
