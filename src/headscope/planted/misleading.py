"""Models whose heads are known and whose numbers mislead: each case is one way to a wrong verdict.

Built as `headscope.planted.handbuilt` builds, from the same parts: a previous-token head in the first layer, heads with
an induction head's pattern in the second, everything rotated at random. Each case adds one thing:

    busy_neighbour        beside the induction head a head that keeps the model from repeating the current token: to
                          remove it costs more nats, in both copies
    rewritten_copier      a head of the first layer writes each token's identity once more, elsewhere; the induction
                          head copies that, and lowers the token itself a little: its direct path says it suppresses
    rewritten_suppressor  its mirror image, beside a stronger induction head: it lowers what it attends to, while its
                          direct path says that it copies
    mlp_copier            as rewritten_copier, but the first layer's MLP writes the identity: a token's effective
                          embedding is copied, while the direct path reads the raw one
    mlp_suppressor        as rewritten_suppressor, by the same MLP
    faint                 beside the induction head one of the same pattern that lowers what it attends to by 0.002
    two, three            as many equal induction heads, any one of which is enough
    part_of_a_stripe      two induction heads, either of which is enough; one rests on the start token in part, so that
                          its stripe is 0.37
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from transformers import GPT2LMHeadModel

from headscope.heads import HeadId
from headscope.planted.basis import Space, digit_code, position_code
from headscope.planted.handbuilt import (
    COPY_GAIN,
    MATCH_GAIN,
    POSITION_GAIN,
    START_TOKEN_ID,
    Plan,
    PlannedHead,
    assemble,
)

Case = Literal[
    "busy_neighbour",
    "rewritten_copier",
    "rewritten_suppressor",
    "mlp_copier",
    "mlp_suppressor",
    "faint",
    "two",
    "three",
    "part_of_a_stripe",
]
CASES: tuple[Case, ...] = get_args(Case)

REPEAT_GAIN = 20.0
"""How much the direct path raises the current token, and the busy neighbour lowers it, in units of a token's code."""
OPPOSITE = 0.05
"""What the direct path of a rewritten head does, beside 1 through the rewritten identity, with the other sign."""
SUPPRESSED = 0.875
"""Of what the induction head writes, what the rewritten suppressor takes off."""
FAINT = 0.002
"""What the faint head lowers a token's code by."""
PARTIAL_STRIPE = 0.37
"""Attention of the head whose stripe stays below the threshold of 0.4."""
DIGITS = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Misleading:
    """A model, and what its heads must be called."""

    model: GPT2LMHeadModel
    """In evaluation mode, float32; prompts begin with token 0."""
    verdicts: Mapping[HeadId, str]
    """Of every head that is not there to fill its layer."""


def misleading(
    case: Case, *, seed: int = 0, n_heads: int = 4, vocab_size: int = 64, n_positions: int = 96
) -> Misleading:
    """Build one case.

    Args:
        case: See this module's text.
        seed: Of the rotations and of the order of heads.
        n_heads: Heads in a layer, at least 3.
        vocab_size: Tokens, the start token (id 0) included.
        n_positions: Longest prompt.
    """
    random = torch.Generator().manual_seed(seed)
    code = torch.nn.functional.pad(digit_code(vocab_size - 1, DIGITS), (0, 0, 1, 0))
    here, back = (position_code(n_positions, DIGITS, offset) for offset in (0, 1))
    width = code.shape[1]
    tokens = dict.fromkeys(["token", "embedded", "before", "renamed", "junk"], width)
    space = Space.of({**tokens, "start": 1, "here": here.shape[1], "back_1": back.shape[1]})
    inside = max(width + here.shape[1] + 1, math.ceil((space.n_directions + 1) / n_heads))
    plan = Plan(space=space, d_head=8 * math.ceil(inside / 8), n_digits=DIGITS, random=random)
    copy = plan.head("induction", plan.induction_pattern(), plan.write("token", "token", COPY_GAIN))
    itself = plan.pattern(("here", "here", POSITION_GAIN))
    direct = 0.0  # of the current token, by the direct path
    first = [("previous_token", plan.previous_token())]
    match case:
        case "busy_neighbour":
            direct = REPEAT_GAIN
            second = [
                ("induction", copy),
                ("matters", plan.head("none", itself, plan.write("token", "token", -REPEAT_GAIN))),
            ]
        case "rewritten_copier":
            first += [("matters", plan.head("none", itself, plan.write("token", "renamed", 1.0)))]
            second = [("induction", _rewritten(plan, COPY_GAIN))]
        case "rewritten_suppressor":
            first += [("matters", plan.head("none", itself, plan.write("token", "renamed", 1.0)))]
            second = [("induction", copy), ("anti_induction", _rewritten(plan, -SUPPRESSED * COPY_GAIN))]
        case "mlp_copier":
            second = [("induction", _rewritten(plan, COPY_GAIN))]
        case "mlp_suppressor":
            second = [("induction", copy), ("anti_induction", _rewritten(plan, -SUPPRESSED * COPY_GAIN))]
        case "faint":
            write = plan.write("token", "token", -FAINT)
            second = [("induction", copy), ("attends_only", plan.head("none", plan.induction_pattern(), write))]
        case "two" | "three":
            second = [("redundant_induction", copy)] * (2 if case == "two" else 3)
        case "part_of_a_stripe":
            # The match is worth DIGITS * MATCH_GAIN. On the start token so much more that the match gets its share.
            rest = DIGITS * MATCH_GAIN + math.log((1 - PARTIAL_STRIPE) / PARTIAL_STRIPE)
            pattern = plan.pattern(("token", "before", MATCH_GAIN), rest_gain=rest / (DIGITS - 0.5))
            write = plan.write("token", "token", COPY_GAIN / PARTIAL_STRIPE)
            second = [("redundant_induction", copy), ("redundant_induction", plan.head("induction", pattern, write))]
    layers, verdicts = [], {}
    for layer, heads in enumerate((first, second)):
        filled = [*heads, *((None, plan.none()) for _ in range(n_heads - len(heads)))]
        filled = [filled[int(one)] for one in torch.randperm(n_heads, generator=random)]
        layers.append([head for _, head in filled])
        verdicts |= {HeadId(layer, one): name for one, (name, _) in enumerate(filled) if name is not None}
    embedding = torch.zeros(vocab_size, space.n_directions, dtype=torch.float64)
    embedding[:, space["token"]] = embedding[:, space["embedded"]] = code
    embedding[START_TOKEN_ID, space["start"]] = 1.0
    positions = torch.zeros(n_positions, space.n_directions, dtype=torch.float64)
    positions[:, space["here"]], positions[:, space["back_1"]] = here, back
    unembedding = torch.zeros(vocab_size, space.n_directions, dtype=torch.float64)
    unembedding[:, space["token"]] = code
    unembedding[:, space["embedded"]] = (direct - 1.0) * code
    mlp = plan.write("token", "renamed", 1.0) if case in ("mlp_copier", "mlp_suppressor") else None
    return Misleading(model=assemble(layers, embedding, positions, unembedding, random, mlp=mlp), verdicts=verdicts)


def _rewritten(plan: Plan, gain: float) -> PlannedHead:
    """An induction head that copies `renamed`, and the token itself a little with the other sign."""
    v, o = plan.write("token", "token", gain)
    space, inner = plan.space, torch.arange(plan.space.width("token"))
    v[inner + space["token"].start, inner] = -OPPOSITE
    v[inner + space["renamed"].start, inner] = 1.0
    return plan.head("induction", plan.induction_pattern(), (v, o))
