"""How much longer a tokenizer can make a text, by its pipeline alone.

    growth = product over the steps of the normalizer of (longest replacement / shortest match), at least 1 each

Forty replacements of `a` by `aa` make a terabyte of one letter, inside a library that nothing can stop. So a tokenizer
whose normalizer or decoder can grow a text more than `MOST_GROWTH` times, or whose template adds more than `MOST_ADDED`
tokens, is refused when it is opened.

Misleading when: a step is slow without growing its text, such as a pattern that backtracks; and for tokenizers without
a `tokenizers` backend, which are not read.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from headscope.errors import ModelError

MOST_GROWTH = 10_000
"""Bytes out for one byte in. Those of T5 and XLNet, with compatibility forms and a map of characters, stay below it."""
MOST_ADDED = 64
_UNICODE = 12.0
"""Bytes for one byte in a compatibility form: U+FDFA has 3 bytes and becomes 33."""

_GROWS = {"NFC": 3.0, "NFD": 3.0, "Lowercase": 1.5, "ByteLevel": 2.0} | dict.fromkeys(
    ("NFKC", "NFKD", "BertNormalizer"), _UNICODE
)


def refuse_growing(source: str, tokenizer: Any) -> None:
    """Raise if a tokenizer can grow a text without bound.

    Args:
        source: The model, for the error.
        tokenizer: Of transformers.

    Raises:
        ModelError: with how much.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    for part in ("normalizer", "decoder"):
        grows = _growth(_state(getattr(backend, part, None)))
        if grows > MOST_GROWTH:
            raise ModelError(
                f"the {part} of {source!r} can make a text more than {MOST_GROWTH:,} times as long; fix its "
                "tokenizer.json, or remove the tokenizer's files to go on with token ids alone."
            )
    added = _added(_state(getattr(backend, "post_processor", None)))
    if added > MOST_ADDED:
        raise ModelError(
            f"the tokenizer of {source!r} adds {added:,} tokens to each text, and at most {MOST_ADDED} are taken; fix "
            "its tokenizer.json, or remove the tokenizer's files to go on with token ids alone."
        )


def _state(part: Any) -> dict[str, Any]:
    return {} if part is None else json.loads(part.__getstate__())


def _growth(step: dict[str, Any]) -> float:
    kind = step.get("type")
    if kind == "Sequence":
        product = 1.0
        for inner in step.get("normalizers", step.get("decoders", [])):
            product = min(product * _growth(inner), 1e100)
        return product
    if kind == "Replace":
        written = len(step["content"].encode())
        matched = step["pattern"].get("String")
        # A regular expression may match nothing, between any two characters.
        return max(1.0, written / len(matched.encode())) if matched else 1.0 + written
    if kind == "Prepend":
        return 1.0 + len(step["prepend"].encode())
    if kind == "Precompiled":
        return max(1.0, float(_longest(step.get("precompiled_charsmap") or "")))
    return _GROWS.get(str(kind), 1.0)


def _longest(charsmap: str) -> int:
    """Bytes of the longest text in a SentencePiece map of characters: the length of a trie, the trie, then texts."""
    data = base64.b64decode(charsmap)
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return max((len(text) for text in texts.split(b"\0")), default=0)


def _added(step: dict[str, Any]) -> int:
    """Tokens that a template adds to a single text."""
    if step.get("type") == "Sequence":
        return sum(_added(inner) for inner in step["processors"])
    special: dict[str, Any] = step.get("special_tokens", {}) if step.get("type") == "TemplateProcessing" else {}
    pieces: list[dict[str, Any]] = step.get("single", []) if special else []
    names = [piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece]
    return sum(len(special[name]["ids"]) for name in names)
