"""Random tokens that repeat at a jittered distance, and where an induction head must look.

A prompt is `[BOS, gap, r, gap, r, gap, s, gap, s, ...]`. The segments `r`, `s` and the gaps have random
lengths and no token occurs but in the copies of its own segment, so that position tells nothing and, with
two copies, every target is one key. At a *fixed* distance a single layer can solve the task by position
alone; here it cannot.

Cost: a Python loop over segments, tens of microseconds a prompt.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headscope.errors import ArgumentError

MIN_PERIOD = 3
"""At 2 the key after the earlier copy of an unbroken repeat is the previous token."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Repeats:
    """A batch of prompts and the key that continues each repeated token."""

    tokens: Int[Tensor, "batch query"]
    """Token ids; position 0 is BOS."""

    induction_key: Int[Tensor, "batch query"]
    """Position after the earlier copy of the token at `query`; -1 where nothing is repeated.

    Where it is not -1, `tokens[b, induction_key[b, q]] == tokens[b, q + 1]`: the next token is known.
    """

    @property
    def predictable(self) -> Bool[Tensor, "batch query"]:
        """Queries whose next token an induction head knows."""
        return self.induction_key >= 0


def jittered_repeats(
    *,
    n_prompts: int,
    n_tokens: int,
    vocab_size: int,
    bos_token_id: int,
    generator: torch.Generator,
    period: tuple[int, int] = (8, 80),
    gap: tuple[int, int] = (0, 40),
    n_copies: int = 2,
) -> Repeats:
    """Draw prompts in which segments recur at distances that vary.

    A segment is as long as a draw from `period`; before each of its copies lie as many fresh tokens as a
    draw from `gap`. After `n_copies` of it another segment begins, until the prompt is full; the last
    copy is cut where the prompt ends. A segment is never longer than lets its second copy fit.
    The last token of a copy is not counted as predictable: what followed it before was a gap.

    Args:
        n_prompts: Prompts to draw.
        n_tokens: Tokens in each, BOS included.
        vocab_size: Ids are drawn from `0 .. vocab_size - 1` without `bos_token_id`, each at most once
            but for the copies.
        bos_token_id: The id at position 0.
        generator: The only source of randomness.
        period: Least and greatest length of a segment, in tokens.
        gap: Least and greatest number of fresh tokens before a copy.
        n_copies: Copies of each segment. At 2 every query has one target; beyond, its target is the most
            recent copy's.

    Raises:
        ArgumentError: A range is empty, a period below 3 or fewer than 2 copies asked for, the vocabulary
            is smaller than the prompt, or the prompt cannot hold the shortest segment twice.
    """
    _check_arguments(n_tokens, vocab_size, bos_token_id, period, gap, n_copies)
    tokens = torch.empty(n_prompts, n_tokens, dtype=torch.long)
    induction_key = torch.full((n_prompts, n_tokens), -1)
    for row in range(n_prompts):
        fresh = torch.randperm(vocab_size - 1, generator=generator)[: n_tokens - 1]
        tokens[row, 0] = bos_token_id
        tokens[row, 1:] = fresh + (fresh >= bos_token_id)
        end = 1
        while n_tokens - end >= 2 * (gap[0] + period[0]):
            begin = end + min(_draw(gap, generator), n_tokens - end - 2 * period[0] - gap[0])
            between = min(_draw(gap, generator), n_tokens - begin - 2 * period[0])
            length = min(_draw(period, generator), (n_tokens - begin - between) // 2)
            end = begin + length
            for _ in range(n_copies - 1):
                copy = end + between
                kept = min(length, n_tokens - copy)
                if kept <= 0:
                    break
                tokens[row, copy : copy + kept] = tokens[row, begin : begin + kept].clone()
                induction_key[row, copy : copy + kept - 1] = torch.arange(begin + 1, begin + kept)
                begin, end = copy, copy + kept
                between = _draw(gap, generator)
    return Repeats(tokens=tokens, induction_key=induction_key)


def _draw(bounds: tuple[int, int], generator: torch.Generator) -> int:
    return int(torch.randint(bounds[0], bounds[1] + 1, (), generator=generator))


def _check_arguments(
    n_tokens: int,
    vocab_size: int,
    bos_token_id: int,
    period: tuple[int, int],
    gap: tuple[int, int],
    n_copies: int,
) -> None:
    problems: list[str] = []
    if not MIN_PERIOD <= period[0] <= period[1]:
        problems.append(f"period={period} must be (least, greatest) with 3 <= least <= greatest")
    if not 0 <= gap[0] <= gap[1]:
        problems.append(f"gap={gap} must be (least, greatest) with 0 <= least <= greatest")
    if n_copies < 2:
        problems.append(f"n_copies={n_copies} must be at least 2")
    if n_tokens < 1 + 2 * gap[0] + 2 * period[0]:
        problems.append(
            f"n_tokens={n_tokens} must be at least {1 + 2 * gap[0] + 2 * period[0]} "
            f"to hold BOS, two gaps and the shortest segment twice"
        )
    if vocab_size < n_tokens:
        problems.append(
            f"vocab_size={vocab_size} must be at least n_tokens={n_tokens}, since no token recurs by chance"
        )
    if not 0 <= bos_token_id < vocab_size:
        problems.append(f"bos_token_id={bos_token_id} must lie in 0 .. {vocab_size - 1}")
    if problems:
        raise ArgumentError("jittered_repeats: " + "; ".join(problems) + ". Change these arguments.")
