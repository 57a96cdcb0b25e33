"""What a live page begins with: three prompts that suit the model, each of which repeats and stops within a copy.

A model that reads English well is given English first. That is a matter of its tokenizer: where the sentence takes
about a token for each character, or does not come back as it was, words are not what the model was trained on. Random
tokens, twice, suit every model, and one without a tokenizer has nothing else: they are written as ids, `ids: 5 17 9`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from headscope.detectors.standard import earlier_copies
from headscope.errors import HeadscopeError, TokenError
from headscope.model.load import Model
from headscope.model.tokenizer import tokenizing
from headscope.probes import probe_text, repeated_tokens
from headscope.probes.repeated import fitting_period

SENTENCE = "The quick brown fox jumps over the lazy dog. The quick brown fox ju"
"""It repeats, and stops within a word."""
NAMES = "red: seven, blue: nine, green: four, red: seven, blue: nine, green:"
"""Keys and values, to look up again."""
MOST_TOKENS_A_CHARACTER = 0.8
"""Of a text that suits a tokenizer."""
PERIOD = 12
"""Length of the run of random tokens: short enough to read."""
ANY_IDS = re.compile(r"(?:(ids:)\s*)?(\d{1,9}(?:[\s,]+\d{1,9})*),?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A prompt to begin with."""

    title: str
    """What it shows, in a few words."""
    text: str
    """The prompt, or its ids."""


def starts(model: Model, *, seed: int = 0) -> tuple[Start, ...]:
    """Three prompts, the one that suits the model best first."""
    written = [
        Start(title="a sentence, twice", text=SENTENCE),
        Start(title="keys and values", text=NAMES),
    ]
    drawn = [Start(title="repeated random tokens", text=_drawn(model, seed))]
    if model.tokenizer is None:
        others = [Start(title=f"other random tokens, {n}", text=_drawn(model, seed + n)) for n in (1, 2)]
        return (*drawn, *others)
    return tuple(written + drawn if _suits(model, SENTENCE) else drawn + written)


def ids_of(model: Model, text: str) -> list[int] | None:
    """The ids that a text names, after `ids:` or, without a tokenizer, alone; None where it is words.

    Raises:
        TokenError: words, and the model has no tokenizer.
    """
    found = ANY_IDS.fullmatch(text.strip())
    if found is not None and (found[1] or model.tokenizer is None):
        return [int(one) for one in re.split(r"[\s,]+", found[2])]
    if model.tokenizer is None:
        raise TokenError(f"{model.id} has no tokenizer, so it cannot read text; give token ids, like: ids: 5 17 9 5.")
    return None


def _suits(model: Model, text: str) -> bool:
    """Whether a tokenizer keeps a text as it is, in words rather than in bytes."""
    assert model.tokenizer is not None, "asked of a model that reads text"
    try:
        (tokens,) = probe_text(model, text, bos=False).prompts
        with tokenizing(model.id):
            back = str(model.tokenizer.decode(tokens.tolist(), skip_special_tokens=True))
    except (HeadscopeError, TypeError):
        return False
    return back.strip() == text and len(tokens) <= MOST_TOKENS_A_CHARACTER * len(text)


def _drawn(model: Model, seed: int) -> str:
    """Random tokens twice over, as far as the middle of the second copy."""
    period = fitting_period(model, PERIOD)
    (tokens,) = repeated_tokens(model, n_prompts=1, period=period, seed=seed).prompts
    query, _ = earlier_copies(tokens)
    last = int(query[3 * len(query) // 4]) if len(query) else len(tokens) - 1
    return f"ids: {' '.join(map(str, tokens[: last + 1].tolist()))}"
