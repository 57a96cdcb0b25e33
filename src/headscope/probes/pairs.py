"""Contrastive pairs: prompts that differ in what should decide between two answers.

    prompt    what it says should bring out `answer`: a user claims the false answer
    twin      what it says should bring out `other`: the user claims the true one
    neutral   it says nothing of the kind

The preference of a model is read at the last token of each:

    d = log p(answer | prompt) - log p(other | prompt)

An answer may be several tokens. Both are then read up to the first token in which they differ, and d is the difference
of the logits there: one row for both answers, and for answers of one token exactly the above. It misleads where many
words share that token.

A prompt is plain text, read as it is, or what a user says, followed by `lead`, the beginning of the assistant's
reply. A model with a chat template hears the user through it; to another the text is

    User: {prompt}
    Assistant: {lead}

Earlier turns are in the prompt in this form too, each on a line that begins with `Assistant: ` or `User: `.

Pairs whose answers the tokenizer cannot distinguish, or whose prompts do not fit, are left out, each with its reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from headscope.errors import TokenError
from headscope.model.confined import confined
from headscope.model.load import Model
from headscope.probes.probe import Tokens, text_ids

PromptKind = Literal["prompt", "twin", "neutral"]
KINDS: tuple[PromptKind, ...] = get_args(PromptKind)

MIN_PAIRS = 16
"""Pairs that a search needs: half to search, half held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two answers, and the prompts that should decide between them."""

    id: str
    """What it is about, in words. Pairs of one id are forms of one fact: they count once, by their mean."""
    prompt: str
    """What should bring out `answer`."""
    answer: str
    """What the behaviour says."""
    other: str
    """What it should have said."""
    twin: str | None = None
    """What should bring out `other`."""
    neutral: str | None = None
    """What brings out neither."""
    lead: str | None = None
    """How the reply begins; None where the prompts are plain text and the answers follow as they are."""
    topic: str = ""
    """What it is about."""
    form: str = "plain"
    """How it is put."""

    @property
    def verbatim(self) -> bool:
        """Whether the answer is in the prompt, where it could be copied from."""
        return _occurs(self.answer, self.prompt)

    def text(self, kind: PromptKind) -> str | None:
        """The prompt of this kind; None where there is none."""
        return {"prompt": self.prompt, "twin": self.twin, "neutral": self.neutral}[kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Pairs of one behaviour."""

    name: str
    """Which behaviour."""
    pairs: tuple[Pair, ...]
    """The pairs; either all have a neutral prompt or none has, and likewise a twin."""
    problems: tuple[str, ...] = ()
    """Lines of the file that could not be used, each with its number."""

    @property
    def kinds(self) -> tuple[PromptKind, ...]:
        """Which prompts every pair has."""
        return tuple(kind for kind in KINDS if all(pair.text(kind) is not None for pair in self.pairs))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """Pairs as a model's tokenizer reads them."""

    pairs: tuple[Pair, ...]
    """Those that it can read."""
    tokens: dict[str, tuple[Tokens, ...]]
    """For each kind of prompt its ids, up to where the answers part."""
    answer: dict[str, np.ndarray]
    """[pair]: the answer's token there."""
    other: dict[str, np.ndarray]
    """[pair]: the other's."""
    left_out: dict[str, str]
    """Pairs that it cannot read, by their id, and why."""


def read_pairs(model: Model, contrast: Contrast) -> Reading:
    """Tokenise every prompt with both of its answers.

    Raises:
        TokenError: the model has no tokenizer, or fewer than 16 pairs can be read.
    """
    if model.tokenizer is None:
        raise TokenError(f"{model.id} has no tokenizer, so it cannot read {contrast.name}; load it with tokenizer=.")
    kinds = contrast.kinds
    kept: list[Pair] = []
    rows: dict[str, list[tuple[Tokens, int, int]]] = {kind: [] for kind in kinds}
    left_out: dict[str, str] = {}
    for pair in contrast.pairs:
        read = [_read(model, pair, kind) for kind in kinds]
        wrong = next((one for one in read if isinstance(one, str)), None)
        if wrong is not None:
            left_out[pair.id if pair.id not in left_out else f"{pair.id} ({pair.form})"] = wrong
            continue
        kept.append(pair)
        for kind, one in zip(kinds, read, strict=True):
            assert not isinstance(one, str)
            rows[kind].append(one)
    if len(kept) < MIN_PAIRS:
        why = f"; one is left out because {next(iter(left_out.values()))}" if left_out else ""
        raise TokenError(
            f"{model.id} can read {len(kept)} of the {len(contrast.pairs)} pairs of {contrast.name}, and {MIN_PAIRS} "
            f"are needed{why}; give more pairs, or pairs in the model's own language."
        )
    return Reading(
        pairs=tuple(kept),
        tokens={kind: tuple(row[0] for row in rows[kind]) for kind in kinds},
        answer={kind: np.asarray([row[1] for row in rows[kind]]) for kind in kinds},
        other={kind: np.asarray([row[2] for row in rows[kind]]) for kind in kinds},
        left_out=left_out,
    )


def claim_places(prompt: Tokens, twin: Tokens) -> np.ndarray:
    """Positions of the prompt in which it differs from its twin: from the first to the last token that is another."""
    before, after = shared_start(prompt, twin), shared_end(prompt, twin)
    return np.arange(before, max(before, len(prompt) - after))


def shared_start(one: Tokens, two: Tokens) -> int:
    """Tokens that both begin with."""
    n = min(len(one), len(two))
    differs = np.flatnonzero(one[:n] != two[:n])
    return int(differs[0]) if len(differs) else n


def shared_end(one: Tokens, two: Tokens) -> int:
    """Tokens that both end with."""
    return shared_start(one[::-1], two[::-1])


def _read(model: Model, pair: Pair, kind: PromptKind) -> tuple[Tokens, int, int] | str:
    """Ids up to where the two answers part, and the two tokens there; or why not."""
    text = pair.text(kind)
    assert text is not None
    start, special = _opening(model, pair, text)
    gap = "" if pair.lead is None or start.endswith((" ", "\n")) else " "
    one, two = (text_ids(model, start + gap + answer, special=special) for answer in (pair.answer, pair.other))
    parts = shared_start(one, two)
    if parts == min(len(one), len(two)):
        return f"the answers {pair.answer!r} and {pair.other!r} are the same to its tokenizer"
    if parts == 0:
        return "its tokenizer gives no token before the answers"
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    if unknown is not None and unknown in (one[parts], two[parts]):
        return f"its tokenizer does not know the answers {pair.answer!r} and {pair.other!r}"
    if model.max_tokens is not None and parts > model.max_tokens:
        return f"a prompt has {parts} tokens, and it reads at most {model.max_tokens}"
    return one[:parts], int(one[parts]), int(two[parts])


def _opening(model: Model, pair: Pair, text: str) -> tuple[str, bool]:
    """The text before the answers, and whether the tokenizer may add its special tokens."""
    if pair.lead is None:
        return text, True
    tokenizer: Any = model.tokenizer
    if getattr(tokenizer, "chat_template", None):
        said = re.split(r"\n(?:Assistant|User): ", text)
        turns = [{"role": ("user", "assistant")[turn % 2], "content": words} for turn, words in enumerate(said)]
        opened = confined(
            f"the chat template of {model.id}",
            lambda: tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False),
        )
        return opened + pair.lead, False
    return f"User: {text}\nAssistant:{' ' + pair.lead if pair.lead else ''}", True


def _occurs(words: str, text: str) -> bool:
    """Whether these words occur in a text as whole words, in capitals or not."""
    bare = words.strip()
    return re.search(rf"(?<!\w){re.escape(bare)}(?!\w)", text, flags=re.IGNORECASE) is not None
