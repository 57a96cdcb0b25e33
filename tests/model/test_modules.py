"""Models written by hand: right against their own softmax and their own W_O, or refused with the true reason."""

from __future__ import annotations

import random

import pytest

from headscope.errors import UnsupportedModel
from headscope.model.load import load
from tests.model.written import CHOICES, CONTEXT, REFUSED, VOCABULARY, Written, agree

RIGHT = {
    "separate": {},
    "fused": {"project": "fused"},
    "einsum, all weights parameters": {"project": "parameters", "attend": "einsum", "out": "einsum"},
    "F.linear": {"out": "F.linear"},
    "matmul with a parameter": {"out": "matmul"},
    "scaled-dot-product": {"attend": "sdpa"},
    "heads on the batch axis": {"attend": "batched"},
    "batch on the heads' axis": {"attend": "batched heads first"},
    "(d h)": {"order": "d h"},
    "(d h), fused, heads on the batch axis": {"order": "d h", "project": "fused", "attend": "batched"},
    "ALiBi": {"positions": "alibi"},
    "rotary": {"positions": "rotary", "project": "fused"},
    "grouped queries": {"n_kv": 2, "attend": "sdpa"},
    "one key-value head": {"n_kv": 1},
    "parallel block": {"block": "parallel"},
    "post-norm": {"block": "post"},
    "tied": {"tied": True},
    "logits behind a loss in a tuple": {"gives": "tuple"},
    "logits in a dict": {"gives": "dict"},
    "gated results": {"twist": "gate"},
    "heads mixed before the softmax": {"twist": "talking before"},
}


@pytest.mark.parametrize("name", RIGHT)
def test_modules_written_by_hand_are_right(name):
    written = Written(**RIGHT[name]).eval()
    model = load(written)
    assert model.check.heads == {0: 4, 1: 4}
    assert (model.n_embeddings, model.n_predicted) == (VOCABULARY, VOCABULARY)
    assert model.max_tokens == (CONTEXT if written.position is not None else None)
    if name == "heads mixed before the softmax":  # no single q and k make these logits
        assert model.check.support == "degraded"
        assert "queries and keys cannot be seen" in model.check.reason
    else:
        assert model.check.support == "exact", model.check.reason
    agree(written, model)


@pytest.mark.parametrize("twist", REFUSED)
def test_modules_whose_heads_have_no_part_of_their_own_are_refused_with_the_reason(twist):
    with pytest.raises(UnsupportedModel, match=REFUSED[twist]):
        load(Written(twist=twist).eval())


@pytest.mark.parametrize("seed", range(12))
def test_random_combinations_are_right_or_refused(seed):
    drawn = random.Random(seed)
    choices = {name: drawn.choice(values) for name, values in CHOICES.items() if name != "twist"}
    written = Written(**choices).eval()
    if choices["attend"] == "by hand":
        with pytest.raises(UnsupportedModel, match="cannot be used"):
            load(written)
    else:
        agree(written, load(written))
