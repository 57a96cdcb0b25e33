"""Whether models can read the same prompts, and the token ids that all of them have."""

from __future__ import annotations

from collections.abc import Sequence

from headscope.model.load import Model


def shared_vocabulary(first: Model, other: Model) -> str | None:
    """Why two models can read the same prompts; None where they cannot."""
    if first is other:
        return "one vocabulary"
    one, two = first.tokenizer, other.tokenizer
    if one is None or two is None:
        same = first.n_embeddings == other.n_embeddings and first.bos_token_id == other.bos_token_id
        return "vocabularies of one size, without a tokenizer that could show whether they differ" if same else None
    if first.bos_token_id != other.bos_token_id:
        return None
    ours, theirs = one.get_vocab(), two.get_vocab()
    if ours == theirs:
        return "one vocabulary"
    few, many = sorted((ours, theirs), key=len)
    return (
        "one vocabulary contains the other" if all(many.get(text) == number for text, number in few.items()) else None
    )


def common_ids(models: Sequence[Model]) -> list[int] | None:
    """The ids to draw from that all models have and none takes for special; None where the first's own are these."""
    pools: list[set[int]] = []
    for model in models:
        known = model.n_predicted if model.tokenizer is None else min(model.n_predicted, len(model.tokenizer))
        pools.append(set(range(known)) - set(model.special_token_ids))
    common = pools[0].intersection(*pools)
    return None if common == pools[0] else sorted(common)
