"""Repeated random tokens: the probe that shows induction, made so that position alone cannot pass for it.

    [BOS, prefix, r, gap, r, gap, ..., r, tail]

`r` is a run of random tokens. With jitter each prompt has its own prefix length, period and gaps, so a head that
always looks a fixed distance back finds the right key only by chance; all prompts share one length, filled up by the
tail. Without jitter the probe is the classic `[BOS, r, r]`. The matched control is the same prompt with every later
copy of `r` replaced by fresh tokens: what a head still scores there, it does not owe to the repetition. Prefix, gaps,
tail and fresh tokens are all different as long as the pool lasts, so that nothing but `r` repeats.

Prompt i depends on the seed and on i alone: 16 prompts and 4 more are the same as 20.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from headscope.errors import ArgumentError, ShapeError, TokenError, brief
from headscope.model.budget import free_memory, gigabytes
from headscope.model.load import Model, Source, load
from headscope.probes.probe import Probe, Tokens

N_PROMPTS, PERIOD = 32, 50
"""Of the default probe: with fewer prompts, or shorter ones, the intervals of heads near 0 and 1 are too narrow."""
JITTER = 0.25
"""Prefix and gaps are drawn from 0 to this share of the period, the period from 1 - JITTER to 1 + JITTER of it."""


def repeated_tokens(
    model: Source,
    *,
    n_prompts: int = N_PROMPTS,
    period: int | None = None,
    n_repeats: int = 2,
    jitter: bool = True,
    bos: bool | Literal["auto"] = "auto",
    token_ids: Sequence[int] | None = None,
    seed: int = 0,
) -> Probe:
    """Repeated random tokens and their control.

    Args:
        model: What `headscope.load` takes: whose vocabulary, special tokens, start token and context are used.
        n_prompts: Prompts to draw, at least 1; intervals need 2, and are about 95% ones from 32 up.
        period: Length of the repeated run in tokens, at least 3: at 2 the induction stripe is the previous-token
            diagonal. With jitter, its mean over prompts. By default 50, or in a model with a smaller context or
            vocabulary the longest that fits; `settings["usual_period"]` then says 50.
        n_repeats: Copies of the run, at least 2.
        jitter: Vary prefix, period and gaps from prompt to prompt. False gives `[BOS, r, r]`.
        bos: Start with the model's start token. `auto`: where it has one.
        token_ids: Draw from these ids only; by default from every id that is not a special token.
        seed: Of the draw, from 0 up. The same arguments give the same probe.

    Returns:
        A probe whose prompts all have the same length, and which can draw more.

    Raises:
        ArgumentError: n_prompts, n_repeats or seed too small; more tokens than there is memory for.
        ShapeError: period < 3, prompts longer than the context, or fewer different tokens than the period needs.
        TokenError: an id of `token_ids` that is no whole number or outside the vocabulary, or bos=True for a model
            without a start token.
    """
    model = load(model)
    if n_prompts < 1:
        raise ArgumentError(f"n_prompts={n_prompts}; it needs at least 1, and 2 for an interval.")
    if n_repeats < 2:
        raise ArgumentError(f"n_repeats={n_repeats}; a repeated probe needs at least 2 copies.")
    if seed < 0:
        raise ArgumentError(f"seed={seed}; it needs a whole number from 0 up.")
    usual = PERIOD if period is None else period
    if period is None:
        period = fitting_period(model, n_repeats=n_repeats, jitter=jitter, bos=bos, token_ids=token_ids)
    if period < 3:
        raise ShapeError(
            f"period={period}; it needs at least 3, since at 2 the induction stripe is the previous-token diagonal."
        )
    start = _start_token(model, bos)
    spread, longest, length = _sizes(period, n_repeats, jitter, start is not None)
    shortest = max(3, period - spread)  # with period 3 a jittered run may not fall below 3 tokens either
    if model.max_tokens is not None and length > model.max_tokens:
        raise ShapeError(
            f"period={period} and n_repeats={n_repeats} give prompts of {length} tokens, but {model.id} reads at most "
            f"{model.max_tokens}; use a shorter period or fewer repeats."
        )
    pool = _pool(model, token_ids)
    if len(pool) < 2 * longest:
        raise ShapeError(
            f"{len(pool)} different tokens are too few for a period of {longest}: the run and its control need "
            f"{2 * longest}; use a shorter period or a larger pool."
        )
    settings: dict[str, Any] = {
        "kind": "repeated_tokens",
        "n_prompts": n_prompts,
        "period": period,
        "n_repeats": n_repeats,
        "jitter": jitter,
        "bos": start is not None,
        "n_token_ids": len(pool),
        "seed": seed,
        "length": length,
    }
    if period < usual:
        settings["usual_period"] = usual

    def draw(first: int, count: int) -> Probe:
        refuse_too_many(count, length, copies=2)
        pairs: list[tuple[Tokens, Tokens]] = []
        for index in range(first, first + count):
            rng = np.random.default_rng([seed, index])
            run = int(rng.integers(shortest, longest + 1))
            prefix, *gaps = (int(n) for n in rng.integers(0, spread + 1, n_repeats))
            pairs.append(_prompt(pool, start, prefix, run, gaps, length, rng))
        return Probe(
            prompts=tuple(prompt for prompt, _ in pairs),
            controls=tuple(control for _, control in pairs),
            settings=settings,
            more=lambda further: draw(first + count, further),
        )

    return draw(0, n_prompts)


def fitting_period(
    model: Model,
    period: int = PERIOD,
    *,
    n_repeats: int = 2,
    jitter: bool = True,
    bos: bool | Literal["auto"] = "auto",
    token_ids: Sequence[int] | None = None,
) -> int:
    """The longest period up to `period` whose prompts fit the model's context and vocabulary; 3 where none does."""
    start = _start_token(model, bos) is not None
    n_pool = len(_pool(model, token_ids))

    def fits(tried: int) -> bool:
        _, longest, length = _sizes(tried, n_repeats, jitter, start)
        return 2 * longest <= n_pool and (model.max_tokens is None or length <= model.max_tokens)

    return next((tried for tried in range(period, 3, -1) if fits(tried)), 3)


def _sizes(period: int, n_repeats: int, jitter: bool, start: bool) -> tuple[int, int, int]:
    """Spread of prefix, gaps and period; the longest run; tokens of a prompt."""
    spread = max(1, round(period * JITTER)) if jitter else 0
    longest = period + spread
    return spread, longest, int(start) + spread + n_repeats * longest + (n_repeats - 1) * spread


def random_tokens(model: Model, *, n_prompts: int, length: int, seed: int = 0) -> Probe:
    """Prompts of this length in which nothing repeats as long as the vocabulary lasts: a corpus for means.

    They start with the model's start token, where it has one, and have no control.

    Raises:
        ArgumentError: more tokens than there is memory for.
        TokenError: all of the model's tokens are special.
    """
    refuse_too_many(n_prompts, length)
    start = _start_token(model, "auto")
    head = np.asarray([] if start is None else [start], dtype=np.int64)
    pool = _pool(model, None)
    if len(pool) == 0:
        raise TokenError(f"{model.id} has only special tokens, of which no prompt is made; use another vocabulary.")
    prompts = (
        np.concatenate([head, _different(pool, length - len(head), np.random.default_rng([seed, index]))])
        for index in range(n_prompts)
    )
    settings = {"kind": "random_tokens", "n_prompts": n_prompts, "length": length, "seed": seed}
    return Probe(prompts=tuple(prompts), controls=None, settings=settings)


def refuse_too_many(n_prompts: int, length: int, *, copies: int = 1) -> None:
    """Raise an ArgumentError if prompts of this length, `copies` times, need more memory than is free."""
    needed, free = n_prompts * length * copies * np.dtype(np.int64).itemsize, free_memory()
    if free is not None and needed > free:
        raise ArgumentError(
            f"n_prompts={brief(n_prompts)} of {length} tokens need {gigabytes(needed)}, but {gigabytes(free)} are "
            "free; use fewer."
        )


def _prompt(
    pool: Tokens, start: int | None, prefix: int, run: int, gaps: list[int], length: int, rng: np.random.Generator
) -> tuple[Tokens, Tokens]:
    """One prompt and its control: equal but for the later copies of the run."""
    repeated = rng.choice(pool, run, replace=False)
    copies = len(gaps)
    n_filler = length - (start is not None) - (copies + 1) * run
    fresh = _different(np.setdiff1d(pool, repeated), n_filler + copies * run, rng)
    first, *between, tail = np.split(fresh[:n_filler], np.cumsum([prefix, *gaps]))
    head = [np.asarray([] if start is None else [start], dtype=np.int64), first, repeated]
    prompt, control = list(head), list(head)
    for gap, instead in zip(between, np.split(fresh[n_filler:], copies), strict=True):
        prompt += [gap, repeated]
        control += [gap, instead]
    return np.concatenate([*prompt, tail]), np.concatenate([*control, tail])


def _different(pool: Tokens, n: int, rng: np.random.Generator) -> Tokens:
    """Random tokens, all different as long as the pool lasts; then it starts again in another order."""
    rounds = -(-n // len(pool))
    return np.concatenate([rng.permutation(pool) for _ in range(rounds)])[:n]


def _start_token(model: Model, bos: bool | Literal["auto"]) -> int | None:
    if bos is True and model.bos_token_id is None:
        raise TokenError(f"bos=True, but {model.id} has no start token; use bos='auto' or bos=False.")
    return model.bos_token_id if bos else None


def _pool(model: Model, token_ids: Sequence[int] | None) -> Tokens:
    """The ids to draw from, ascending: those that the tokenizer knows and that the model predicts."""
    special = model.special_token_ids
    if token_ids is None:
        known = model.n_predicted
        if model.tokenizer is not None:
            known = min(known, len(model.tokenizer))
        return np.asarray([one for one in range(known) if one not in special], dtype=np.int64)
    pool = np.unique(np.asarray(token_ids))
    if pool.size and pool.dtype.kind not in "iu":
        raise TokenError("token_ids holds something else than whole numbers; give ids of the model's own vocabulary.")
    pool = pool.astype(np.int64)
    outside = pool[(pool < 0) | (pool >= model.n_embeddings)]
    if len(outside):
        raise TokenError(
            f"token id {outside[0]} of token_ids is outside the vocabulary of {model.id}, whose ids run from 0 to "
            f"{model.n_embeddings - 1}."
        )
    return np.asarray([one for one in pool if one not in special], dtype=np.int64)
