"""Each role's targets: written out by hand, and against the definition as a double loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest import approx

from headscope.detectors import (
    DETECTORS,
    current_token,
    duplicate_token,
    first_token,
    induction,
    induction_recent,
    previous_token,
    resolve,
)
from headscope.detectors.detector import Detector, Targets
from headscope.errors import ArgumentError

BUILT_IN = {detector.name: detector for detector in DETECTORS}


def pairs(targets: Targets) -> list[tuple[int, int]]:
    return list(zip(targets.query.tolist(), targets.key.tolist(), strict=True))


def by_definition(name: str, tokens: list[int]) -> list[tuple[int, int]]:
    """The definitions of `headscope.detectors.standard`, one pair of positions at a time."""
    found = []
    for i in range(len(tokens)):
        copies = [j for j in range(i) if tokens[j] == tokens[i]]
        found += {
            "induction": [(i, j + 1) for j in copies],
            "induction_recent": [(i, j + 1) for j in copies[-1:]],
            "duplicate_token": [(i, j) for j in copies],
            "previous_token": [(i, i - 1)] if i else [],
            "current_token": [(i, i)] if i else [],
            "first_token": [(i, 0)] if i else [],
        }[name]
    return found


def score(pattern: np.ndarray, detector: Detector, tokens: np.ndarray) -> float:
    """The formula of `headscope.detectors.detector`, by loops over one prompt."""
    mass: dict[int, float] = {}
    for query, key in pairs(detector.targets(tokens)):
        mass[query] = mass.get(query, 0.0) + pattern[query, key]
    return sum(mass.values()) / len(mass)


def attending_to(targets: list[tuple[int, int]], n_tokens: int) -> np.ndarray:
    """A pattern with all of each query's attention on its targets, equally; elsewhere on the first token."""
    pattern = np.zeros((n_tokens, n_tokens))
    for query in range(n_tokens):
        keys = [key for i, key in targets if i == query] or [0]
        pattern[query, keys] = 1 / len(keys)
    return pattern


def uniform_causal(n_tokens: int) -> np.ndarray:
    return np.tril(np.ones((n_tokens, n_tokens))) / np.arange(1, n_tokens + 1)[:, None]


# Token:      9 5 6 7 5 6 7
REPEATED = np.array([9, 5, 6, 7, 5, 6, 7])
# Three copies of 4, the last two side by side:
#             0 1 2 3 4 5
#             4 8 4 4 8 1
DOUBLED = np.array([4, 8, 4, 4, 8, 1])


@pytest.mark.parametrize(
    ("role", "tokens", "wanted"),
    [
        (induction, REPEATED, [(4, 2), (5, 3), (6, 4)]),
        (duplicate_token, REPEATED, [(4, 1), (5, 2), (6, 3)]),
        (previous_token, REPEATED[:4], [(1, 0), (2, 1), (3, 2)]),
        (current_token, REPEATED[:4], [(1, 1), (2, 2), (3, 3)]),
        (first_token, REPEATED[:4], [(1, 0), (2, 0), (3, 0)]),
        # Query 3 follows its own copy at 2: key 2 + 1 is the query itself.
        (induction, DOUBLED, [(2, 1), (3, 1), (3, 3), (4, 2)]),
        (induction_recent, DOUBLED, [(2, 1), (3, 3), (4, 2)]),
        (duplicate_token, DOUBLED, [(2, 0), (3, 0), (3, 2), (4, 1)]),
        # Nothing repeats.
        (induction, np.array([3, 1, 2]), []),
        (induction_recent, np.array([3, 1, 2]), []),
        (duplicate_token, np.array([3, 1, 2]), []),
        # The smallest prompts: one token, and one token doubled.
        (induction, np.array([3]), []),
        (previous_token, np.array([3]), []),
        (first_token, np.array([3]), []),
        (current_token, np.array([3]), []),
        (induction, np.array([3, 3]), [(1, 1)]),
        (induction_recent, np.array([3, 3]), [(1, 1)]),
        (duplicate_token, np.array([3, 3]), [(1, 0)]),
    ],
)
def test_targets_written_out_by_hand(role, tokens, wanted):
    assert pairs(role(tokens)) == wanted


@pytest.mark.parametrize("name", list(BUILT_IN))
@given(tokens=st.lists(st.integers(0, 4), min_size=1, max_size=14))
def test_targets_agree_with_the_definition(name, tokens):
    given_ids = np.asarray(tokens)
    assert pairs(BUILT_IN[name].targets(given_ids)) == sorted(by_definition(name, tokens))
    assert given_ids.tolist() == tokens


def test_no_tokens_have_no_targets():
    for detector in DETECTORS:
        assert pairs(detector.find(np.zeros(0, dtype=np.int64))) == []


@pytest.mark.parametrize("name", list(BUILT_IN))
@pytest.mark.parametrize("tokens", [REPEATED, DOUBLED], ids=["repeated", "doubled"])
def test_a_perfect_head_scores_one(name, tokens):
    detector = BUILT_IN[name]
    perfect = attending_to(by_definition(name, tokens.tolist()), len(tokens))
    assert score(perfect, detector, tokens) == approx(1)


def test_a_uniform_head_scores_chance():
    # 7 tokens, period 3. Queries 4, 5, 6 have one target each -> (1/5 + 1/6 + 1/7) / 3 = 107/630.
    uniform = uniform_causal(7)
    assert score(uniform, BUILT_IN["induction"], REPEATED) == approx(107 / 630)
    assert score(uniform, BUILT_IN["duplicate_token"], REPEATED) == approx(107 / 630)
    # Queries 1 .. 6 -> (1/2 + 1/3 + 1/4 + 1/5 + 1/6 + 1/7) / 6 = (669/420) / 6 = 223/840.
    for name in ("previous_token", "current_token", "first_token"):
        assert score(uniform, BUILT_IN[name], REPEATED) == approx(223 / 840)
    # Doubled: query 2 one target of 3 keys, query 3 two of 4, query 4 one of 5 -> (1/3 + 1/2 + 1/5) / 3 = 31/90.
    assert score(uniform_causal(6), BUILT_IN["induction"], DOUBLED) == approx(31 / 90)
    # Only the most recent copy: (1/3 + 1/4 + 1/5) / 3 = 47/180.
    assert score(uniform_causal(6), BUILT_IN["induction_recent"], DOUBLED) == approx(47 / 180)


@pytest.mark.parametrize("decoy", ["duplicate_token", "previous_token", "current_token", "first_token"])
def test_a_head_of_another_role_is_no_induction_head(decoy):
    # Period 3 is the shortest whose stripe (2 back) is none of these diagonals.
    attends = attending_to(by_definition(decoy, REPEATED.tolist()), len(REPEATED))
    assert score(attends, BUILT_IN[decoy], REPEATED) == approx(1)
    assert score(attends, BUILT_IN["induction"], REPEATED) == 0


def test_every_built_in_role_says_whether_it_is_about_content():
    about_content = {detector.name for detector in DETECTORS if detector.needs_control}
    assert about_content == {"induction", "induction_recent", "duplicate_token"}


def test_resolve_keeps_the_order_and_takes_names_and_objects():
    mine = Detector("mine", previous_token)
    assert resolve(None) == DETECTORS
    assert [one.name for one in resolve(["first_token", mine, "induction"])] == ["first_token", "mine", "induction"]
    assert resolve("induction") == resolve(["induction"]) == (BUILT_IN["induction"],)


def test_resolve_refuses_what_it_cannot_name():
    with pytest.raises(ArgumentError, match="no detector 'inductoin'; there are induction, induction_recent, prev"):
        resolve(["induction", "inductoin"])
    with pytest.raises(ArgumentError, match="name at least one"):
        resolve([])
    with pytest.raises(ArgumentError, match="two detectors share a name among induction, induction"):
        resolve(["induction", Detector("induction", previous_token)])
