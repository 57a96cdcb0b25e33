"""A model's fingerprint: the same for the same weights, whatever they are called and wherever they are.

    sha256 over the names, shapes, dtypes and numbers of all weights

Every number counts: a head that is taken out, scaled, or changes places with another gives another fingerprint.

Cost: all weights are read once, at 1 to 2 GB a second.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from headscope.model.model import Model, Opened

UNREAD = ("architectures", "transformers_version", "dtype", "torch_dtype")
"""What a config says that no forward pass reads; precision is that of the weights."""


def fingerprint(model: Opened) -> str:
    """Hexadecimal digits, 64 of them."""
    found = hashlib.sha256()
    for name, weight in sorted(model.module.state_dict().items()):
        if not isinstance(weight, torch.Tensor) or weight.is_meta:
            continue
        found.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        found.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def reading(model: Model) -> dict[str, Any]:
    """What a measurement depends on besides weights, JSON-ready: config, context, start token, path and tokenizer."""
    config: dict[str, Any] = getattr(model.backbone.config, "to_dict", dict)()
    text = repr(sorted((name, value) for name, value in config.items() if name not in UNREAD and name[0] != "_"))
    return {
        "config": hashlib.sha256(text.encode()).hexdigest(),
        "max_tokens": model.max_tokens,
        "bos_token_id": model.bos_token_id,
        "path": model.check.route.path,
        "tokenizer": _tokenizer_digits(model.tokenizer),
    }


def _tokenizer_digits(tokenizer: Any) -> str | None:
    """The same for tokenizers with the same rules, or the same vocabulary where the rules are hidden; None for none."""
    if tokenizer is None:
        return None
    rules: Any = getattr(tokenizer, "backend_tokenizer", None)
    if rules is not None:
        text = rules.to_str()
    else:
        vocabulary: dict[str, int] = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
        text = f"{type(tokenizer).__name__} {sorted(vocabulary.items())}"
    return hashlib.sha256(text.encode()).hexdigest()
