"""Other ways to wire induction: each has a receiver whose senders are known, and is hard to see in its own way.

Built as `headscope.planted.handbuilt` builds, from the same parts, with one-hot codes (one digit): a match is worth
MATCH_GAIN, rest on the start token half of that.

    one, two, three   as many previous-token heads that write the same: any one of them is enough
    two_token         the receiver compares two tokens. Its key holds the token before (previous-token head) and the one
                      before that (a head that looks two back); its query holds its own token and, by the
                      previous-token head, the one before. One match alone stays below the rest.
    pointer           induction through the query: a duplicate-token head writes the position of the earlier copy, and
                      the receiver looks for the key one after it. No content is moved into its key.
    one_further       the receiver looks one key further than the stripe, where a head that looks two back wrote the
                      query's token, and copies the token before that key, which the previous-token head wrote there

Cost: about 2 M parameters. It misleads as a picture of learned heads, as `handbuilt` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from transformers import GPT2LMHeadModel

from headscope.heads import HeadId
from headscope.planted import handbuilt as parts
from headscope.planted.basis import Space, digit_code, position_code
from headscope.planted.handbuilt import COPY_GAIN, MATCH_GAIN, POSITION_GAIN, PlannedHead

Wiring = Literal["one", "two", "three", "two_token", "pointer", "one_further"]
WIRINGS: tuple[Wiring, ...] = get_args(Wiring)

REDUNDANT: Mapping[str, int] = {"one": 1, "two": 2, "three": 3}
"""Previous-token heads of the wirings that differ in their number."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wired:
    """A model, and who feeds its receiver."""

    model: GPT2LMHeadModel
    """In evaluation mode, float32; prompts begin with token 0."""
    receiver: HeadId
    """The head that copies."""
    previous_token: tuple[HeadId, ...]
    """Heads that write the token before."""
    two_back: tuple[HeadId, ...]
    """Heads that write the token two back."""
    duplicate_token: tuple[HeadId, ...]
    """Heads that write the position of the earlier copy."""


def wired(wiring: Wiring, *, seed: int = 0, n_heads: int = 4, vocab_size: int = 40, n_positions: int = 40) -> Wired:
    """Build one wiring.

    Args:
        wiring: See this module's text.
        seed: Of the rotations and of the order of heads.
        n_heads: Heads in each of the two layers, at least 3.
        vocab_size: Tokens, the start token (id 0) included.
        n_positions: Longest prompt.
    """
    random = torch.Generator().manual_seed(seed)
    code = torch.nn.functional.pad(digit_code(vocab_size - 1, 1), (0, 0, 1, 0))
    positions_of = {
        name: position_code(n_positions, 1, back) for name, back in (("here", 0), ("back_1", 1), ("back_2", 2))
    }
    width, places = code.shape[1], positions_of["here"].shape[1]
    space = Space.of(
        {
            **dict.fromkeys(["token", "embedded", "before", "before_2", "junk"], width),
            **dict.fromkeys(["pointer", *positions_of], places),
            "start": 1,
        }
    )
    inside = max(2 * width + 1, width + places + 1, math.ceil((space.n_directions + 1) / n_heads))
    plan = parts.Plan(space=space, d_head=8 * math.ceil(inside / 8), n_digits=1, random=random)
    look_two_back = plan.pattern(("back_2", "here", POSITION_GAIN), rest_gain=POSITION_GAIN)
    two_back = plan.head("none", look_two_back, plan.write("token", "before_2", 1.0))
    copy, pattern = plan.write("token", "token", COPY_GAIN), plan.induction_pattern()
    first = [("previous_token", plan.previous_token())]
    match wiring:
        case "one" | "two" | "three":
            first *= REDUNDANT[wiring]
        case "two_token":
            first += [("two_back", two_back)]
            # One match is worth MATCH_GAIN, two twice that; the rest is between them, at 1.5.
            both = (("token", "before", MATCH_GAIN), ("before", "before_2", MATCH_GAIN))
            pattern = plan.pattern(*both, rest_gain=3 * MATCH_GAIN)
        case "pointer":
            look = plan.duplicate_token()
            first = [
                (
                    "duplicate_token",
                    plan.head("none", (look.q, look.q_bias, look.k), plan.write("here", "pointer", 1.0)),
                )
            ]
            pattern = plan.pattern(("pointer", "back_1", MATCH_GAIN), rest_gain=MATCH_GAIN)
        case "one_further":
            first += [("two_back", two_back)]
            pattern = plan.pattern(("token", "before_2", MATCH_GAIN), rest_gain=MATCH_GAIN)
            copy = plan.write("before", "token", COPY_GAIN)
    second = [("receiver", plan.head("induction", pattern, copy))]
    layers, where = list[list[PlannedHead]](), dict[str, list[HeadId]]()
    for layer, heads in enumerate((first, second)):
        filled = [*heads, *(("none", plan.none()) for _ in range(n_heads - len(heads)))]
        filled = [filled[int(one)] for one in torch.randperm(n_heads, generator=random)]
        layers.append([head for _, head in filled])
        for index, (name, _) in enumerate(filled):
            where.setdefault(name, []).append(HeadId(layer, index))
    embedding = torch.zeros(vocab_size, space.n_directions, dtype=torch.float64)
    embedding[:, space["token"]] = embedding[:, space["embedded"]] = code
    embedding[parts.START_TOKEN_ID, space["start"]] = 1.0
    positions = torch.zeros(n_positions, space.n_directions, dtype=torch.float64)
    for name, position in positions_of.items():
        positions[:, space[name]] = position
    unembedding = torch.zeros(vocab_size, space.n_directions, dtype=torch.float64)
    unembedding[:, space["token"]], unembedding[:, space["embedded"]] = code, -code
    return Wired(
        model=parts.assemble(layers, embedding, positions, unembedding, random),
        receiver=where["receiver"][0],
        previous_token=tuple(where.get("previous_token", ())),
        two_back=tuple(where.get("two_back", ())),
        duplicate_token=tuple(where.get("duplicate_token", ())),
    )
