"""Comparing scans that were kept: the same differences as between models, with wider intervals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pytest import approx

import headscope as hs
from headscope.errors import ArgumentError
from headscope.evidence.compare.changes import label_of
from headscope.evidence.compare.scans import compare_scans
from headscope.planted.changed import without_query
from headscope.planted.handbuilt import handbuilt
from headscope.stats import Summary, two_sample, two_summaries

SMALL = {"n_prompts": 8, "period": 12}


@pytest.fixture(scope="module")
def models():
    built = handbuilt(vocab_size=64, n_positions=64, n_digits=1, decoys=("duplicate_token",), seed=1)
    head = built.heads("induction")[0]
    return built.model, without_query(built.model, head), head


def test_kept_scans_find_the_changed_head_and_nothing_else(models):
    model, changed, head = models
    probe = hs.repeated_tokens(hs.load(model), **SMALL)
    found = compare_scans([hs.scan(one, probe=probe) for one in (model, changed, model)])
    paired = hs.compare(model, changed, **SMALL)
    assert [one.head for one in found.changed] == [head]
    assert found.pairs[1].changed == ()
    assert (found.nearest[0].a, found.nearest[0].b, found.nearest[0].by) == ("A", "C", "scores")
    assert found.nearest[0].similarity == 1
    for ours, theirs in zip(found.pairs[0].heads, paired.pairs[0].heads, strict=True):
        for one, other in zip(ours.roles, theirs.roles, strict=True):
            assert (one.role, one.a, one.b) == (other.role, other.a, other.b)
            assert one.difference.mean == approx(other.difference.mean, abs=1e-9)
    assert hs.Comparison.from_dict(json.loads(found.to_json())) == found


def test_scans_of_other_prompts_are_not_compared(models):
    scans = [hs.scan(models[0], probe=hs.repeated_tokens(hs.load(models[0]), n_prompts=4, period=n)) for n in (10, 12)]
    with pytest.raises(ArgumentError, match=r"differ in .*period \(10, 12\)"):
        compare_scans(scans)
    with pytest.raises(ArgumentError, match="at least two"):
        compare_scans(scans[:1])


def test_two_summaries_are_what_their_samples_say():
    random = np.random.default_rng(0)
    first, second = random.normal(size=12), random.normal(0.5, 2.0, size=20)
    known = [Summary(one.mean(), one.std(ddof=1) / len(one) ** 0.5, len(one) - 1) for one in (first, second)]
    mean, ends, p = two_sample(first, second)
    assert two_summaries(*known) == (approx(mean), approx(ends), approx(p))
    assert two_summaries(known[0], known[1]._replace(error=None))[1:] == (None, 1.0)


def test_labels_go_on_past_z():
    # 26 letters, then AA: 26 + 25 is AZ, 52 is BA
    assert [label_of(one) for one in (0, 25, 26, 51, 52)] == ["A", "Z", "AA", "AZ", "BA"]
