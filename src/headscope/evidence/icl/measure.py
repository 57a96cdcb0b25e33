"""How much better a model predicts late in its context than early: loss by token, and the in-context-learning score.

    loss[i] = -log p(t_i | t_0 ... t_{i-1})          in nats, for token i = 1 ... window - 1
    score   = mean over windows of loss[late] - loss[early]

`Token i` is the token being predicted, counted from 0 in its window, so i tokens come before it. Where the model has a
start token, that is token 0. A negative score is good: the model uses what it read. By default late is 500 and early
50, as in Olsson et al. 2022 (arXiv:2209.11895), or a tenth of late in windows too short for that; some code flips the
sign. Windows are disjoint and of one length, and
the difference is taken within each: from one window to the next the loss of a token varies by 3 to 4 nats.

Cost: one forward pass with logits over n_windows * window tokens, by the model's own attention; the logits of one batch
are held at a time.

It misleads past the length that a model was trained on, where loss rises whatever its heads do: `demo`, trained on
windows of at most 192 tokens, scores above 0 at token 500. Windows of one text are no independent draws, though the
interval takes them for such. And it does not say which heads make the difference.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float

from headscope.errors import ArgumentError, ModelError, NonFiniteError, ShapeError, TokenError
from headscope.evidence.scan.result import Timing
from headscope.interventions.ablation import token_losses
from headscope.model.load import Model, Source, load
from headscope.model.memory import in_batches
from headscope.model.scope import evaluating
from headscope.model.tokenizer import tokenizing
from headscope.probes.corpus import stdlib_sources
from headscope.probes.probe import Probe, Tokens, check_fits, probe_tokens
from headscope.records.common import Estimate, ModelInfo, Provenance
from headscope.records.document import Document
from headscope.stats import mean_intervals

SCHEMA = "headscope.icl/1"

LATE = 500
EARLY = 50
"""The late token, where the caller names none and the window holds it."""

WINDOW = 512
"""Tokens in a window, where neither the caller nor the model's context sets another length."""

BATCH_LOGITS = {"cpu": 2**26, "cuda": 2**29}
"""Logits of one forward pass, before memory runs out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossCurve:
    """Mean loss at each token, with its 95% interval over windows. Entry k belongs to token k + 1."""

    token: tuple[int, ...]
    """The predicted token, from 1 on."""
    mean: tuple[float, ...]
    """Mean loss in nats over windows."""
    ci_low: tuple[float, ...]
    """Lower end of the interval, cut off at 0, since no loss is negative."""
    ci_high: tuple[float, ...]
    """Upper end of the interval."""

    def at(self, token: int) -> Estimate:
        """The loss at one token.

        Raises:
            ArgumentError: the windows have no such token, or it is token 0, which nothing predicts.
        """
        if not 1 <= token <= len(self.token):
            raise ArgumentError(f"token={token} has no loss here; tokens 1 to {len(self.token)} have one.")
        return Estimate(mean=self.mean[token - 1], ci95=(self.ci_low[token - 1], self.ci_high[token - 1]))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class InContext(Document):
    """A model's loss by token, and its in-context-learning score."""

    schema: ClassVar[str] = SCHEMA
    model: ModelInfo
    """Which model."""
    settings: dict[str, Any]
    """What was read and how it was cut: `source`, `n_windows`, `n_available`, `window`, `bos`, `early`,
    `late`, `seed`."""
    score: Estimate
    """Loss at token `late` minus loss at token `early` in nats, paired by window; negative is good."""
    loss: LossCurve
    """Loss at each token."""
    note: str | None
    """Why `late` is not token 500, where the caller named none and the windows are too short for it; else None."""
    provenance: Provenance
    """How to repeat it."""
    timing: Timing
    """What it cost."""

    def __repr__(self) -> str:
        low, high = self.score.ci95 or (self.score.mean, self.score.mean)
        return (
            f"InContext({self.model.id}: {self.score.mean:+.2f} [{low:+.2f}, {high:+.2f}] nats, "
            f"token {self.settings['late']} minus token {self.settings['early']})"
        )


def icl(
    model: Source,
    *,
    text: str | Sequence[str] | None = None,
    tokens: Any | None = None,
    n_windows: int = 32,
    window: int | None = None,
    early: int | None = None,
    late: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> InContext:
    """Measure loss by token, and the loss late in the context minus the loss early.

    score = mean over windows of loss[late] - loss[early], where loss[i] = -log p(t_i | t_0 ... t_{i-1})

    Args:
        model: What `headscope.load` takes, or gives.
        text: One text, or several; no window crosses from one to the next. By default the modules of Python's standard
            library that headscope's own models are not trained on.
        tokens: Your own token ids in place of text, as `probe_tokens` takes them: one text, or one per row.
        n_windows: Most windows to read; where the text holds more, they are drawn with the seed.
        window: Tokens in a window, the start token included; by default 512, or more where `late` needs it, or the
            model's context if that is shorter.
        early: The early token, counted from 0; by default 50, or a tenth of `late` where that is 50 or less, and `note`
            then says so.
        late: The late token; by default 500, or the window's last where it is shorter, and `note` then says so.
        seed: Of the draw, from 0 up.
        progress: Called with (tokens read, tokens in all) after each batch.

    Returns:
        An `InContext`: `.score`, `.loss`, `.to_dict()`.

    Raises:
        ArgumentError: n_windows or seed too small, both text and tokens given, or early not before late.
        ShapeError: a window or a late token that does not fit.
        MemoryRanOut: memory runs out with a single window.
        TokenError: text without a tokenizer, fewer than two windows of it, or an id outside the vocabulary.
        ModelError: the model gives no logits over its vocabulary.
        NonFiniteError: a loss is not a number.
    """
    model = load(model)
    _check_counts(n_windows, seed)
    window, early, late, note = _lengths(model, window, early, late)
    source, texts = _texts(model, text, tokens)
    available = _windows(model, texts, window)
    if len(available) < 2:
        raise TokenError(
            f"{sum(map(len, texts))} tokens of {source}, in {len(texts)} piece(s), fill {len(available)} windows of "
            f"{window} tokens, but an interval needs at least 2; give longer text, or a smaller window."
        )
    chosen = range(len(available))
    if len(available) > n_windows:
        chosen = sorted(np.random.default_rng(seed).choice(len(available), n_windows, replace=False).tolist())
    drawn = [available[index] for index in chosen]
    check_fits(Probe(prompts=tuple(drawn), controls=None, settings={}), model)

    started = time.perf_counter()
    losses = _losses(model, drawn, progress or (lambda done, total: None))
    mean, ends = mean_intervals(losses)
    assert ends is not None, "there are at least two windows"
    return InContext(
        model=ModelInfo.of(model),
        settings={
            "source": source,
            "n_windows": len(drawn),
            "n_available": len(available),
            "window": window,
            "bos": model.bos_token_id is not None,
            "early": early,
            "late": late,
            "seed": seed,
        },
        score=Estimate.of(losses[:, late - 1] - losses[:, early - 1]),
        loss=LossCurve(
            token=tuple(range(1, window)),
            mean=tuple(mean.tolist()),
            ci_low=tuple(ends[0].clip(min=0.0).tolist()),
            ci_high=tuple(ends[1].tolist()),
        ),
        note=note,
        provenance=Provenance.of(model, kernels=("own",), seed=seed),
        timing=Timing(wall_s=time.perf_counter() - started, tokens=window * len(drawn)),
    )


def _check_counts(n_windows: int, seed: int) -> None:
    if n_windows < 2:
        raise ArgumentError(f"n_windows={n_windows}; an interval needs at least 2.")
    if seed < 0:
        raise ArgumentError(f"seed={seed}; it needs a whole number from 0 up.")


def _lengths(model: Model, window: int | None, early: int | None, late: int | None) -> tuple[int, int, int, str | None]:
    """The window, the early and the late token, each checked against the others and the context; and what to note."""
    longest = model.max_tokens
    if window is None:
        window = WINDOW if late is None else max(WINDOW, late + 1)
        window = window if longest is None else min(window, longest)
    elif longest is not None and window > longest:
        raise ShapeError(f"window={window}, but {model.id} reads at most {longest} tokens; use a shorter window.")
    note = None
    if late is None:
        late = min(LATE, window - 1)
        if late < LATE:
            note = f"windows of {window} tokens end before token {LATE}; late is their last token, {late}"
    elif late >= window:
        limit = f"{model.id} reads at most {longest}" if window == longest else f"a window has {window}"
        raise ShapeError(
            f"late={late} needs windows of at least {late + 1} tokens, but {limit}; "
            f"use late={window - 1} or less, or leave it out."
        )
    if early is None:
        early = EARLY if late > EARLY else max(1, late // 10)
        if early < EARLY:
            told = f"early is token {early}, since late is {EARLY} or less"
            note = told if note is None else f"{note}; {told}"
    if not 1 <= early < late:
        raise ArgumentError(
            f"early={early} and late={late} in windows of {window} tokens; it needs 1 <= early < late: "
            "move one of them, or use a longer window."
        )
    return window, early, late, note


def _texts(model: Model, text: str | Sequence[str] | None, tokens: Any | None) -> tuple[str, list[Tokens]]:
    """What is read, by name, and the token ids of each text, without special tokens."""
    if text is not None and tokens is not None:
        raise ArgumentError("icl got both text and tokens; give one of them.")
    if tokens is not None:
        return "tokens", list(probe_tokens(tokens).prompts)
    if model.tokenizer is None:
        raise TokenError(
            f"{model.id} has no tokenizer, so it cannot read text; give token ids as tokens=, "
            "or load it with tokenizer=."
        )
    if text is None:
        source, pieces = "stdlib", stdlib_sources(held_out=True)
    else:
        source, pieces = "text", [text] if isinstance(text, str) else list(text)
    # verbose=False: that a text is longer than the context is no news here.
    with tokenizing(model.id):
        rows = [model.tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"] for piece in pieces]
    return source, [np.asarray(row, dtype=np.int64) for row in rows]


def _windows(model: Model, texts: list[Tokens], window: int) -> list[Tokens]:
    """Every disjoint window of every text, the start token in front; what fills no window is left out."""
    start = model.bos_token_id
    front = np.asarray([] if start is None else [start], dtype=np.int64)
    body = window - len(front)
    found: list[Tokens] = []
    for row in texts:
        if start is not None and len(row) and row[0] == start:
            row = row[1:]
        pieces = row[: len(row) // body * body].reshape(-1, body)
        found += [np.concatenate([front, piece]) for piece in pieces]
    return found


def _losses(
    model: Model, windows: list[Tokens], progress: Callable[[int, int], None]
) -> Float[np.ndarray, "window token"]:
    """Loss of tokens 1, 2, ... of each window; the logits of a batch are let go before the next."""
    length = len(windows[0])
    limit = BATCH_LOGITS.get(model.device.type, BATCH_LOGITS["cpu"])
    size = max(1, limit // (length * model.n_embeddings))
    rows: list[np.ndarray] = []
    for _, losses in in_batches(windows, size, lambda batch: _batch_losses(model, batch)):
        rows.extend(losses)
        progress(len(rows) * length, len(windows) * length)
    stacked = np.stack(rows)
    if not np.isfinite(stacked).all():
        raise NonFiniteError(f"the loss of {model.id} holds NaN or infinity; load the model in a wider dtype.")
    return stacked


def _batch_losses(model: Model, windows: Sequence[Tokens]) -> Float[np.ndarray, "window token"]:
    tokens = torch.from_numpy(np.stack(windows)).to(model.device)
    with evaluating(model.module), torch.no_grad():
        logits = model.backbone.logits(model.backbone.call(tokens))
        if not (logits is not None and logits.shape[:-1] == tokens.shape and logits.shape[-1] > int(tokens.max())):
            raise ModelError(
                f"{model.id} ({type(model.module).__name__}) gives no logits over its vocabulary, so its loss is not "
                "defined; use the model with its language-model head."
            )
        # One window at a time: the log-softmax takes as much room as the logits that it reads.
        rows = [token_losses(row[:-1], targets[1:]) for row, targets in zip(logits, tokens, strict=True)]
    return torch.stack(rows).cpu().double().numpy()
