"""A representative dozen of `benchmarks.families`: logits and scores against each family's own eager code."""

from __future__ import annotations

import pytest

from benchmarks import families
from benchmarks.tiny import causal_lm_families

DOZEN = {
    "gpt2": "learned positions",
    "gpt_neox": "partial rotary, parallel MLP",
    "llama": "grouped queries",
    "qwen3": "query-key norm",
    "mistral": "sliding window",
    "gemma2": "soft-cap and sliding windows in turn",
    "gpt_oss": "attention sinks",
    "deepseek_v3": "values narrower than keys",
    "deepseek_v32": "a sparse choice of keys",
    "inkling2_text": "position bias, and a sink for every row",
    "qwen3_next": "layers without attention between",
    "diffllama": "attention called twice in a layer",
    "hrm_text": "layers called in a loop",
    "falcon": "its own call of scaled-dot-product attention",
}


@pytest.mark.parametrize("family", DOZEN)
def test_family_is_exact(family):
    found = families.compare(family)
    assert (found.verdict, found.reason != "") == ("exact", True), found.reason
    assert found.n_heads_compared >= 4
    assert found.logits_diff is not None
    assert found.logits_diff <= families.LOGITS_TOLERANCE
    assert found.scores_diff is not None
    assert found.scores_diff <= families.SCORES_TOLERANCE


@pytest.mark.parametrize("family", ["mpt"])
def test_family_outside_the_interface_is_degraded_with_its_reason(family):
    found = families.compare(family)
    assert found.verdict == "degraded"
    assert "queries and keys cannot be seen" in found.reason
    assert found.scores_diff is not None
    assert found.scores_diff <= families.SCORES_TOLERANCE


def test_a_wrong_score_is_reported_as_a_disagreement(monkeypatch):
    # The recorded pattern is moved one key to the right: every comparison must notice.
    real = families.own_patterns

    def moved(*arguments):
        logits, patterns, oracle = real(*arguments)
        return logits, [pattern.roll(1, dims=-1) for pattern in patterns], oracle

    monkeypatch.setattr(families, "own_patterns", moved)
    assert families.compare("llama").verdict == "disagrees"


def test_no_family_is_left_out():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert sorted(causal_lm_families()) == sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@pytest.mark.parametrize(
    ("family", "refused"),
    [
        ("mllama", {}),  # reads tokens that it never predicts
        ("deepseek_v3", {"weights": "latent attention"}),
        ("gptj", {}),
        ("mpt", {"circuit": "hides its queries and keys", "weights": "hides queries, keys and values"}),
    ],
)
def test_what_else_works_on_a_family(family, refused):
    found = families.tried(families.Outcome(family=family, verdict="exact", reason=""))
    assert found.breaks == {}
    assert set(found.refused) == set(refused)
    for use, reason in refused.items():
        assert reason in found.refused[use]


def test_an_error_that_is_none_of_ours_is_a_defect(monkeypatch):
    def broken(model, **options):
        raise RuntimeError("shape '[8, 21, 64]' is invalid\nfor input of size 2688")

    monkeypatch.setattr(families.hs, "verify", broken)
    found = families.tried(families.Outcome(family="gpt2", verdict="exact", reason=""))
    assert found.breaks == {"verify": "RuntimeError: shape '[8, 21, 64]' is invalid"}


def test_the_page_names_families_that_mix_tokens_in_a_way_that_is_not_read():
    found = families.measure(["jamba", "gpt2"])
    assert set(found["unread"]) == {"jamba"}
    assert "mixed in layer 0 in a way" in found["unread"]["jamba"]
    assert "that is not read: jamba." in families.markdown(found)
