"""A user's own detector: what it may return, and what is said of one that is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pytest import approx

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from headscope import Detector, Targets
from headscope.errors import ArgumentError, ShapeError


def unchecked(query: Any, key: Any) -> Targets:
    """Targets as a user without shape checking can make them: our tests would refuse them at once."""
    targets = object.__new__(Targets)
    object.__setattr__(targets, "query", query)
    object.__setattr__(targets, "key", key)
    return targets


def returning(query: Any, key: Any) -> Detector:
    return Detector("mine", lambda tokens: unchecked(query, key))


TOKENS = np.array([7, 8, 9, 7])


def test_a_detector_of_a_few_lines_runs_beside_the_built_in_ones():
    def two_back(tokens):
        query = np.arange(2, len(tokens))
        return Targets(query=query, key=query - 2)

    model = hs.load(tiny_causal_lm("gpt2"))
    probe = hs.probe_tokens([5, 6, 7, 8, 9])
    scan = hs.scan(model, probe=probe, detectors=[*hs.DETECTORS, Detector("two_back", two_back)])
    pattern = model.hf(input_ids=torch.tensor([[5, 6, 7, 8, 9]]), output_attentions=True).attentions[1][0, 2]
    # Queries 2, 3, 4 look at keys 0, 1, 2; a uniform head has (1/3 + 1/4 + 1/5) / 3 = 47/180 there.
    wanted = (pattern[2, 0] + pattern[3, 1] + pattern[4, 2]) / 3
    (mine,) = [one for one in scan.scores if one.detector == "two_back" and str(one.head) == "L1H2"]
    assert mine.mean == approx(wanted.item(), abs=1e-6)
    assert mine.chance == approx(47 / 180)
    assert {"previous_token", "two_back"} <= {role.name for role in scan.roles}


def test_targets_come_ordered_by_query_then_key_and_once():
    found = returning([3, 1, 3, 3, 2], [2, 0, 0, 2, 2]).targets(TOKENS)
    assert found.query.tolist() == [1, 2, 3, 3]
    assert found.key.tolist() == [0, 2, 0, 2]


def test_a_detector_cannot_change_the_prompt():
    def greedy(tokens):
        tokens[:] = 0
        return Targets(query=np.array([1]), key=np.array([0]))

    tokens = TOKENS.copy()
    Detector("greedy", greedy).targets(tokens)
    assert tokens.tolist() == TOKENS.tolist()


def test_empty_lists_are_no_targets():
    found = returning([], []).targets(TOKENS)
    assert found.query.tolist() == found.key.tolist() == []
    assert found.query.dtype == np.int64


@pytest.mark.parametrize(
    ("query", "key"),
    [([0], [1]), ([4], [0]), ([2], [-1]), ([-1], [-2])],
    ids=["key-after-query", "query-past-the-end", "key-before-the-start", "query-before-the-start"],
)
def test_a_place_outside_the_prompt_is_refused(query, key):
    message = "detector mine: a target is outside the prompt of 4 tokens or after its query"
    with pytest.raises(ShapeError, match=message):
        returning(query, key).targets(TOKENS)


@pytest.mark.parametrize(
    ("query", "key"),
    [([1, 2], [0]), (np.ones((2, 2), int), np.zeros((2, 2), int)), (2, 1)],
    ids=["lengths", "2d", "0d"],
)
def test_queries_and_keys_must_pair_up(query, key):
    with pytest.raises(ShapeError, match=r"detector mine: query has shape .* and key .*; they must pair up"):
        returning(query, key).targets(TOKENS)


@pytest.mark.parametrize("places", [[1.7], ["1"], [True]], ids=["float", "text", "bool"])
def test_a_place_that_is_no_whole_number_is_refused_and_not_rounded(places):
    with pytest.raises(ShapeError, match="detector mine: places must be whole numbers"):
        returning(places, [0]).targets(TOKENS)
    with pytest.raises(ShapeError, match="detector mine: places must be whole numbers"):
        returning([2], places).targets(TOKENS)


@pytest.mark.parametrize("returned", [None, ([1], [0]), {"query": [1], "key": [0]}])
def test_a_detector_must_return_targets(returned):
    message = f"detector mine returned a {type(returned).__name__}; it must return Targets"
    with pytest.raises(ArgumentError, match=message):
        Detector("mine", lambda tokens: returned).targets(TOKENS)


@pytest.mark.parametrize("name", ["", "two back", "a-b", "1st", '"><script>'])
def test_a_name_that_cannot_be_a_column_is_refused(name):
    with pytest.raises(ArgumentError, match="is not a word of letters, digits and underscores"):
        Detector(name, lambda tokens: unchecked([1], [0])).targets(TOKENS)


def test_an_error_of_the_detector_itself_is_not_hidden():
    def broken(tokens):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        Detector("broken", broken).targets(TOKENS)
