"""One prompt that a person can read: a short run of whole words, twice.

It shows what a pattern looks like and proves nothing: scores are means over the prompts of a probe.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from headscope.model.model import Model
from headscope.probes.probe import Probe
from headscope.probes.repeated import fitting_period, repeated_tokens

PERIOD = 16
"""Mean length of the repeated run: short enough to read."""
LOOKED_AT = 4096
"""Ids whose spelling is looked at for whole words."""
WORD = re.compile("[Ġ▁ ][a-z]{3,12}")
"""A whole word as tokenizers spell it: with a mark for the space before it."""


def readable(model: Model, *, token_ids: Sequence[int] | None = None, period: int = PERIOD, seed: int = 0) -> Probe:
    """One prompt of repeated tokens, of whole words where the tokenizer marks enough of them.

    Args:
        model: A loaded model.
        token_ids: Ids that may be drawn; by default all of the model's.
        period: Longest mean length of the run; shorter where the model's context or vocabulary needs it.
        seed: Of the prompt.
    """
    words = _words(model, seed)
    if words is not None and token_ids is not None:
        words = sorted(set(words) & set(token_ids))
    # The run and its control, both at their longest.
    ids = words if words is not None and len(words) >= 4 * PERIOD else token_ids
    period = fitting_period(model, period, token_ids=ids)
    return repeated_tokens(model, n_prompts=1, period=period, token_ids=ids, seed=seed)


def _words(model: Model, seed: int) -> list[int] | None:
    """Ids of whole words among some of the vocabulary; None without a tokenizer."""
    if model.tokenizer is None:
        return None
    known = min(model.n_embeddings, len(model.tokenizer))
    looked_at = np.random.default_rng(seed).permutation(known)[:LOOKED_AT].tolist()
    pieces = model.tokenizer.convert_ids_to_tokens(looked_at)
    return [one for one, piece in zip(looked_at, pieces, strict=True) if WORD.fullmatch(str(piece))]
