"""The functions of a common lesson on induction heads, under the lesson's own names, for any model or cache.

    tokens = make_repeated_tokens(model)                  [start, r, r]
    score  = compute_induction_score(pattern, seq_len)    attention to the token after the earlier copy
    heads  = detect_induction_heads(cache)                (layer, head, score), best first
    heads  = find_induction_heads(model)                  all of that, with a picture of the strongest head
    check  = verify_induction_behavior(model, 1, 0)       where it looks, and what breaks without it

On `[start, r, r]` with a run r of `period = seq_len // 2` tokens,

    score = mean over the queries of the second copy of pattern[query, query - period + 1]

A model is whatever `headscope.load` takes; a cache is TransformerLens's, transformers' `attentions`, or patterns by
layer. TransformerLens and nnsight need not be installed.

Cost: one forward pass of `seq_len` tokens, and one layer's pattern at a time. `verify_induction_behavior` runs 16
prompts, with and without the head.

Misleading as evidence: one prompt, a fixed offset and a threshold. A head that looks a fixed distance back scores 1
here. `headscope.scan` varies the offset and adds intervals and a control; `headscope.verify` gives a verdict.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportUnknownVariableType=false
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.errors import ArgumentError, NonFiniteError, ShapeError
from headscope.evidence.ablation.measure import ablate
from headscope.evidence.scan.measure import scan
from headscope.evidence.scan.result import THRESHOLD, HeadScore
from headscope.heads import HeadId
from headscope.interventions.ablation import Method
from headscope.model.load import Model, load
from headscope.model.patterns import patterns
from headscope.probes import repeated_tokens
from headscope.records.common import Estimate
from headscope.render.plain import markup as escape
from headscope.render.theme import GROUND, LIGHT, shade

LEAST_PERIOD = 3
"""At 2 the stripe is the previous-token diagonal, at 1 the main one."""

_PATTERN_NAME = re.compile(r"blocks\.(\d+)\.(?:\w+\.)*hook_pattern")


class InductionHead(NamedTuple):
    """A head and its induction score."""

    layer: int
    """From 0."""
    head: int
    """From 0."""
    score: float
    """Attention to the token after the earlier copy, in [0, 1]."""


def make_repeated_tokens(model: Any, seq_len: int = 50, *, seed: int = 0) -> Int[Tensor, "1 position"]:
    """Token ids `[start, r, r]`: the model's start token, where it has one, and a random run twice.

    Args:
        model: What `headscope.load` takes; or a TransformerLens model that holds no transformers model.
        seq_len: Tokens of both copies, at least 6; each has `seq_len // 2`.
        seed: Of the draw.

    Returns:
        Ids on the model's device. No special token is among the run's, and none comes twice. They are drawn from the
        whole vocabulary, not from a fixed range of ids, which small vocabularies do not have.

    Raises:
        ShapeError: seq_len too short, or longer than the model's context.
        ArgumentError: not a model.
    """
    period = _period_of(seq_len)
    opened = _opened(model)
    if isinstance(opened, Model):
        probe = repeated_tokens(opened, n_prompts=1, period=period, jitter=False, seed=seed)
        return torch.from_numpy(probe.prompts[0])[None].to(opened.device)
    tokenizer = getattr(opened, "tokenizer", None)
    special: set[int] = set(getattr(tokenizer, "all_special_ids", ()))
    pool = np.asarray([one for one in range(int(opened.cfg.d_vocab)) if one not in special])
    if len(pool) < period:
        raise ShapeError(f"seq_len={seq_len} needs {period} different tokens, and there are {len(pool)}; shorten it.")
    run = np.random.default_rng([seed, 0]).choice(pool, period, replace=False)
    start = getattr(tokenizer, "bos_token_id", None)
    ids = np.concatenate([[] if start is None else [start], run, run]).astype(np.int64)
    limit = getattr(opened.cfg, "n_ctx", None)
    if limit is not None and len(ids) > limit:
        raise ShapeError(f"seq_len={seq_len} makes {len(ids)} tokens, but the model reads at most {limit}; shorten it.")
    return torch.from_numpy(ids)[None].to(opened.cfg.device)


def compute_induction_score(pattern: Any, seq_len: int | None = None) -> float | Float[Tensor, " head"]:
    """Mean attention, over the second copy, to the token after the earlier copy of the query's token.

    score = mean over the last `period` queries of pattern[query, query - period + 1]

    This differs from the way it is usually first written down: a sum over `query = period .. 2 * period - 1`, divided
    by the period. After a start token that takes in the last query of the first copy, which repeats nothing, and leaves
    out the last of the second, so that a perfect head scores `(period - 1) / period`: 0.96 for `seq_len=50`. Here it
    scores 1.

    Args:
        pattern: Attention probabilities on `[start, r, r]` or `[r, r]`: [query key], [head query key] or
            [batch head query key]. Not modified.
        seq_len: Tokens of both copies, as given to `make_repeated_tokens`. By default read off the pattern's size: an
            odd size has a start token, an even one none.

    Returns:
        A probability in [0, 1]: a float for one [query key] pattern, else one score per head, averaged over the batch.
        Chance is the mean of `1 / (query + 1)` over the same queries, not 0.

    Raises:
        ShapeError: not a square pattern, a size that does not fit seq_len, or a period below 3.
        ArgumentError: numbers outside [0, 1], which are no probabilities.
        NonFiniteError: NaN or infinity.
    """
    given = _tensor(pattern)
    scores = _scores(given, seq_len)
    return float(scores[0]) if given.dim() == 2 else scores


def detect_induction_heads(
    cache: Any, threshold: float = THRESHOLD, *, seq_len: int | None = None
) -> list[InductionHead]:
    """Heads whose score exceeds the threshold, best first.

    Every head of every layer in the cache is scored by `compute_induction_score`; no model is asked how many there are.

    Args:
        cache: From a run on `make_repeated_tokens`: a TransformerLens cache; a mapping from `("pattern", layer)` to
            patterns; what a transformers model returned with `output_attentions=True`, or its `attentions`; a list of
            patterns by layer; or one pattern, which then counts as layer 0.
        threshold: In [0, 1].
        seq_len: As given to `make_repeated_tokens`; by default read off the patterns' size.

    Raises:
        ArgumentError: nothing that holds patterns, or a threshold outside [0, 1].
        ShapeError, NonFiniteError: see `compute_induction_score`.
    """
    _check_threshold(threshold)
    found: list[InductionHead] = []
    for layer, pattern in _patterns(cache):
        scores = _scores(_tensor(pattern), seq_len).tolist()
        found += [InductionHead(layer, head, score) for head, score in enumerate(scores)]
    return [one for one in _best_first(found) if one.score > threshold]


class InductionHeads(list[InductionHead]):
    """The heads found, best first, as a list; in a notebook, a picture of the strongest head's pattern."""

    def __init__(
        self, ranked: Sequence[InductionHead], threshold: float, pattern: Tensor, tokens: Tensor, words: Sequence[str]
    ) -> None:
        super().__init__(one for one in ranked if one.score > threshold)
        self.ranked: list[InductionHead] = list(ranked)
        """Every head of the model, best first."""
        self.threshold = threshold
        """What a head's score had to exceed."""
        self.pattern: Float[Tensor, "query key"] = pattern
        """The strongest head's attention."""
        self.tokens: Int[Tensor, "1 position"] = tokens
        """What the model read."""
        self._words = words

    @property
    def strongest(self) -> InductionHead:
        """The head with the highest score, whether it exceeds the threshold or not."""
        return self.ranked[0]

    def _repr_html_(self) -> str:
        best = self.strongest
        note = "" if self else f": no head exceeds {self.threshold:g}"
        title = f"{HeadId(best.layer, best.head)}, induction score {best.score:.3f}{note}"
        return _pattern_svg(self.pattern, self._words, title)


def find_induction_heads(
    model: Any, threshold: float = THRESHOLD, *, seq_len: int = 50, seed: int = 0
) -> InductionHeads:
    """Make repeated tokens, run the model, score each head, keep those above the threshold, show the strongest.

    Args:
        model: What `headscope.load` takes; or a TransformerLens model that holds no transformers model, which then
            runs through its own `run_with_cache`.
        threshold: In [0, 1].
        seq_len: Tokens of both copies.
        seed: Of the tokens.

    Returns:
        A list of (layer, head, score), best first, with `.strongest`, `.ranked`, `.pattern` and `.tokens`.

    Raises:
        ArgumentError: not a model, or a threshold outside [0, 1].
        ShapeError: seq_len below 6, or longer than the model's context.
        NonFiniteError: the model's attention is not a number.
    """
    _check_threshold(threshold)
    _period_of(seq_len)
    opened = _opened(model)
    tokens = make_repeated_tokens(opened, seq_len, seed=seed)
    scores: dict[tuple[int, int], float] = {}
    best: tuple[float, Tensor] | None = None

    def see(head: HeadId, pattern: Tensor) -> None:
        """Keep the score, and of all patterns only the best head's."""
        nonlocal best
        (score,) = _scores(pattern[:, None], seq_len).tolist()
        if best is None or score > best[0]:
            best = score, pattern[0].detach().float().cpu().clone()
        # A looped model shows a head more than once.
        scores[head.layer, head.head] = max(score, scores.get((head.layer, head.head), 0.0))

    if isinstance(opened, Model):
        patterns(opened, tokens, see)
    else:
        _, cache = opened.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
        for layer, pattern in _patterns(cache):
            for head in range(pattern.shape[1]):
                see(HeadId(layer, head), pattern[:, head])
    ranked = _best_first([InductionHead(*head, score) for head, score in scores.items()])
    assert best is not None, "a model that can be loaded has heads"
    tokenizer = getattr(opened, "tokenizer", None)
    ids = tokens[0].tolist()
    words = list(map(str, ids)) if tokenizer is None else [str(one) for one in tokenizer.convert_ids_to_tokens(ids)]
    return InductionHeads(ranked, threshold, best[1], tokens, words)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class InductionBehavior:
    """Where one head looks on repeated tokens, and what the loss becomes without it."""

    head: HeadId
    """Which head."""
    attention: HeadScore
    """Its attention to the token after the earlier copy, with interval, chance and control."""
    loss_before: Estimate
    """Loss of the second copy with the head, in nats per token."""
    loss_after: Estimate
    """The same without it."""
    delta_loss_nats: Estimate
    """After minus before, paired by prompt; positive: the head helped."""
    first_copy: Estimate
    """The change where nothing repeats, which an induction head leaves alone."""
    method: Method
    """How the head was taken out."""
    n_prompts: int
    """Prompts measured."""

    @property
    def attends(self) -> bool:
        """Whether it attends there with at least 0.4, of which at least half is gone on the control."""
        return self.attention.reaches(content=True)

    @property
    def matters(self) -> bool:
        """Whether the loss rises without it: the whole interval is above 0."""
        interval = self.delta_loss_nats.ci95
        return (self.delta_loss_nats.mean if interval is None else interval[0]) > 0

    def __repr__(self) -> str:
        delta = self.delta_loss_nats
        interval = "" if delta.ci95 is None else f" [{delta.ci95[0]:+.3f}, {delta.ci95[1]:+.3f}]"
        attention = f"attention {self.attention.mean:.3f}, control {self.attention.control:.3f}"
        return (
            f"InductionBehavior({self.head}: {attention}; "
            f"loss {self.loss_before.mean:.3f} -> {self.loss_after.mean:.3f}, {delta.mean:+.3f}{interval} nats)"
        )


def verify_induction_behavior(
    model: Any,
    layer: int,
    head: int,
    *,
    seq_len: int = 50,
    n_prompts: int = 16,
    method: Method = "mean",
    seed: int = 0,
) -> InductionBehavior:
    """Does this head look at the token after the first A, and does the loss rise without it?

    Repeated random tokens whose prefix, run and gap vary from prompt to prompt, each with a control in which nothing
    repeats; the head is taken out at every position.

    Args:
        model: What `headscope.load` takes.
        layer: From 0.
        head: From 0.
        seq_len: Tokens of both copies, on average.
        n_prompts: At least 2, for an interval.
        method: `mean`, `zero` or `resample`; see `headscope.ablate`.
        seed: Of the prompts.

    Returns:
        What was measured, and whether the head `attends` and `matters`. A head that attends and does not matter may
        have a backup: `headscope.verify` takes out sets too.

    Raises:
        ArgumentError: a head that the model does not have; see also `headscope.ablate`.
        ShapeError: prompts that do not fit the model.
        UnsupportedModel: the model has no LM head.
    """
    opened = load(model)
    (which,) = opened.named([HeadId(layer, head)])
    probe = repeated_tokens(opened, n_prompts=n_prompts, period=_period_of(seq_len), seed=seed)
    seen = scan(opened, probe=probe, detectors=["induction"])
    gone = ablate(opened, [which], probe=probe, method=method, seed=seed)
    second = gone.losses["second_copy"]
    return InductionBehavior(
        head=which,
        attention=next(score for score in seen.ranked("induction") if score.head == which),
        loss_before=second.clean,
        loss_after=second.ablated,
        delta_loss_nats=second.delta,
        first_copy=gone.losses["first_copy"].delta,
        method=method,
        n_prompts=n_prompts,
    )


def _opened(model: Any) -> Any:
    """A headscope model; or, where that cannot be had, a TransformerLens model as it is."""
    try:
        return load(model)
    except ArgumentError:
        if not (hasattr(model, "run_with_cache") and hasattr(model, "cfg")):
            raise
        return model


def _patterns(cache: Any) -> Iterator[tuple[int, Any]]:
    """(layer, pattern) for every layer that the cache holds."""
    if isinstance(cache, (Tensor, np.ndarray)):
        yield 0, cache
        return
    if hasattr(cache, "attentions"):
        cache = cache.attentions
    if isinstance(cache, (list, tuple)):
        by_layer = {layer: pattern for layer, pattern in enumerate(cache) if pattern is not None}
    elif isinstance(cache, Mapping) or hasattr(cache, "keys"):
        by_layer = {layer: cache[key] for key in cache.keys() if (layer := _layer_of(key)) is not None}  # noqa: SIM118
    elif cache is None:
        by_layer = {}
    else:
        raise ArgumentError(
            f"detect_induction_heads got a {type(cache).__name__}; it needs a cache that holds attention patterns. "
            "To start from a model, use find_induction_heads."
        )
    if not by_layer:
        raise ArgumentError(
            "the cache holds no attention pattern; keep `hook_pattern` in run_with_cache, or run transformers with "
            "output_attentions=True and eager attention."
        )
    yield from sorted(by_layer.items())


def _layer_of(key: Any) -> int | None:
    """The layer whose pattern a cache keeps under this key."""
    if isinstance(key, tuple) and len(key) == 2 and key[0] == "pattern":
        return int(key[1])
    match = _PATTERN_NAME.fullmatch(key) if isinstance(key, str) else None
    return int(match[1]) if match else None


def _tensor(pattern: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(pattern).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShapeError(f"a {type(pattern).__name__} is no attention pattern; give a tensor [query key].") from error
    if tensor.dim() not in (2, 3, 4) or tensor.shape[-1] != tensor.shape[-2] or 0 in tensor.shape:
        raise ShapeError(
            f"a pattern of shape {list(tensor.shape)}; it needs [query key], [head query key] or "
            "[batch head query key], with as many keys as queries."
        )
    return tensor


def _scores(pattern: Tensor, seq_len: int | None) -> Float[Tensor, " head"]:
    n_tokens = pattern.shape[-1]
    period = _period_of(n_tokens if seq_len is None else seq_len)
    if n_tokens not in (2 * period, 2 * period + 1):
        raise ShapeError(
            f"seq_len={seq_len} does not fit a pattern of {n_tokens} tokens: two copies of {period} make {2 * period}, "
            f"or {2 * period + 1} with a start token; give the seq_len that the tokens were made with."
        )
    query = torch.arange(n_tokens - period, n_tokens, device=pattern.device)
    stripe = pattern[..., query, query - period + 1].cpu().double()
    if not torch.isfinite(stripe).all():
        raise NonFiniteError("the pattern holds NaN or infinity; load the model in a wider dtype.")
    if stripe.min() < -1e-3 or stripe.max() > 1 + 1e-3:
        raise ArgumentError(
            f"the pattern holds {float(stripe.min()):.3g} to {float(stripe.max()):.3g}; it needs probabilities, after "
            "the softmax (`hook_pattern`, not `hook_attn_scores`)."
        )
    scores = stripe.mean(-1).clamp(0.0, 1.0)
    return scores.reshape(-1, scores.shape[-1]).mean(0) if scores.dim() else scores[None]


def _period_of(seq_len: Any) -> int:
    if isinstance(seq_len, bool) or not isinstance(seq_len, (int, np.integer)):
        raise ArgumentError(f"seq_len={seq_len!r}; it needs a whole number.")
    if seq_len // 2 < LEAST_PERIOD:
        raise ShapeError(
            f"seq_len={seq_len} gives copies of {seq_len // 2} tokens; it needs at least {2 * LEAST_PERIOD}, since in "
            "shorter ones the stripe is the previous token."
        )
    return int(seq_len) // 2


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ArgumentError(f"threshold={threshold}; a score is a share of attention, so it needs 0 to 1.")


def _best_first(heads: Sequence[InductionHead]) -> list[InductionHead]:
    return sorted(heads, key=lambda one: (-one.score, one.layer, one.head))


_LEFT, _TOP, _BELOW, _FAINT = 40, 34, 34, 0.02


def _pattern_svg(pattern: Float[Tensor, "query key"], words: Sequence[str], title: str) -> str:
    """One head's attention as an SVG: queries downward, keys to the right, the induction stripe framed.

    Cells below 0.02 are left out, so that a row has at most 50 of them.
    """
    n_tokens = pattern.shape[-1]
    period = n_tokens // 2
    cell = max(3, min(14, 560 // n_tokens))
    side = n_tokens * cell
    width, height = max(_LEFT + side + 12, 440), _TOP + side + _BELOW
    cells: list[str] = []
    for query, key in torch.nonzero(pattern >= _FAINT).tolist():
        value = float(pattern[query, key])
        note = f"query {query} {words[query]} to key {key} {words[key]}: {value:.3f}"
        cells.append(
            f'<rect x="{_LEFT + key * cell}" y="{_TOP + query * cell}" width="{cell}" height="{cell}" '
            f'fill="{shade(value)}"><title>{escape(note)}</title></rect>'
        )
    frames = [
        f'<rect x="{_LEFT + (query - period + 1) * cell}" y="{_TOP + query * cell}" width="{cell}" height="{cell}"/>'
        for query in range(n_tokens - period, n_tokens)
    ]
    every = 5 if n_tokens <= 60 else 10 * max(1, n_tokens // 100)
    ticks = [
        f'<text x="{_LEFT - 6}" y="{_TOP + at * cell + cell}" text-anchor="end">{at}</text>'
        f'<text x="{_LEFT + at * cell}" y="{_TOP + side + 14}">{at}</text>'
        for at in range(0, n_tokens, every)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'style="{GROUND}" font-family="system-ui,sans-serif" font-size="10">'
        f'<text x="{_LEFT}" y="18" font-size="13" font-weight="600" fill="{LIGHT.ink}">{escape(title)}</text>'
        f'<rect x="{_LEFT}" y="{_TOP}" width="{side}" height="{side}" fill="{LIGHT.empty}"/>'
        f'{"".join(cells)}<g fill="none" stroke="{LIGHT.mark}" stroke-width="0.6">{"".join(frames)}</g>'
        f'<g fill="{LIGHT.soft}">{"".join(ticks)}<text x="{_LEFT}" y="{_TOP + side + 28}">key; queries go down, and '
        f"the frames are where an induction head looks</text></g></svg>"
    )
