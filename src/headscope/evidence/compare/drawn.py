"""The patterns of a few heads in both models, on one prompt that both read: what a page draws side by side.

    heads     those with a changed score, earliest layer first; then those whose patterns differ most; at most four
    prompt    a short run of whole words, twice; where the prompts were given, the first of them, at most 64 tokens

Kept as the page keeps patterns (`headscope.model.patterns.as_bytes`), in base64: at most 23 kB for a pair of models.

Cost: one pass over one prompt for each model; none where no head looks elsewhere.

One prompt shows what a pattern looks like and proves nothing: differences are means over the probe's prompts.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence

import torch

from headscope.evidence.compare.result import (
    HeadChange,
    HeadPatterns,
    PairPatterns,
    PromptToken,
    changed_heads,
    heads_elsewhere,
)
from headscope.heads import HeadId
from headscope.model.load import Model
from headscope.model.patterns import as_bytes, patterns
from headscope.model.tokenizer import token_text
from headscope.probes.probe import Tokens

HEADS = 4
"""Heads drawn, at most."""
TOKENS = 64
"""Of a prompt that was given."""


def drawn_patterns(
    a: Model, b: Model, prompt: Callable[[], Tokens], heads: Sequence[HeadChange]
) -> PairPatterns | None:
    """What both models' heads attend to on a prompt; None where no head looks elsewhere, and no prompt is made then."""
    chosen = [*changed_heads(heads), *heads_elsewhere(heads)][:HEADS]
    pairs = [(one.head, one.counterpart) for one in chosen if one.counterpart is not None]
    if not pairs:
        return None
    tokens = prompt()[:TOKENS]
    ours, theirs = _read(a, tokens, [one for one, _ in pairs]), _read(b, tokens, [other for _, other in pairs])
    return PairPatterns(
        tokens=tuple(PromptToken(id=int(one), text=token_text(a, int(one))) for one in tokens),
        heads=tuple(HeadPatterns(head=head, counterpart=other, a=ours[head], b=theirs[other]) for head, other in pairs),
    )


def _read(model: Model, tokens: Tokens, heads: Sequence[HeadId]) -> dict[HeadId, str]:
    """Each head's pattern, in base64."""
    found: dict[HeadId, str] = {}

    def see(head: HeadId, pattern: torch.Tensor) -> None:
        found[head] = base64.b64encode(as_bytes(pattern[0]).tobytes()).decode()

    patterns(model, torch.from_numpy(tokens)[None].to(model.device), see, heads)
    return found
