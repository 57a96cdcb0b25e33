"""Models of transformers."""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from headscope.model.backbone import Backbone, stated_context
from headscope.model.sources import Found, Options

PLACE = 50
"""Sources are asked in this order."""


def backbone(hf: PreTrainedModel) -> Backbone:
    """A transformers model, called without its cache.

    Raises:
        TypeError: its input embedding is not one table of tokens.
    """
    embedding: Any = hf.get_input_embeddings()
    config = hf.config.get_text_config()
    n_embeddings = int(embedding.weight.shape[0]) if hasattr(embedding, "weight") else 0
    unembedding = hf.get_output_embeddings()
    width = getattr(unembedding, "out_features", None)
    return Backbone(
        module=hf,
        call=lambda ids: hf(input_ids=ids, use_cache=False),
        family=str(config.model_type or hf.config.model_type),
        embedding=embedding,
        unembedding=unembedding,
        n_embeddings=n_embeddings,
        n_predicted=n_embeddings if width is None else min(n_embeddings, int(width)),
        max_tokens=stated_context(config),
        config=config,
    )


def found(given: Any, options: Options) -> Found | None:
    """A transformers model; with a `forward` of the user's it is a module like any other."""
    if not isinstance(given, PreTrainedModel) or options.forward is not None:
        return None
    seen = backbone(given)
    if options.max_tokens is not None:
        seen = replace(seen, max_tokens=options.max_tokens)
    return Found(backbone=seen, tokenizer=None, name=given.config.name_or_path or type(given).__name__)
