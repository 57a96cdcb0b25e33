"""The circuit's section: sets of senders, paths through the query, and what could not be asked."""

from __future__ import annotations

import csv
import io

import pytest

from benchmarks.page import synthetic

SENDERS = [{"layer": 0, "head": 1, "call": 0}, {"layer": 0, "head": 3, "call": 0}]


@pytest.fixture
def traced():
    """A made-up report of three receivers: a set and a path through the query, no sender, not asked."""
    document = synthetic(3, 6, 48)
    circuit = document["circuit"]
    edge = circuit["edges"][0]
    receivers = [{"layer": 2, "head": head, "call": 0} for head in (0, 2, 4)]
    about = {"mean": 0.8, "ci95": [0.7, 0.9]}
    shared = {"receiver": receivers[0], "share": 0.92, "share_ci95": [0.81, 0.97], "any_of": SENDERS}
    query = {"receiver": receivers[0], "sender": {"layer": 1, "head": 2, "call": 0}, "input": "q", "share": 0.31}
    circuit["edges"] = [*({**edge, **shared, "sender": one} for one in SENDERS), {**edge, **query}]
    circuit["sets"] = [
        {
            "receiver": receivers[0], "input": "k", "senders": SENDERS, "effect": about, "share": 0.92, "singles": 0.04,
            "alone": [{"mean": 0.88, "ci95": None}, {"mean": 0.95, "ci95": None}], "any_one_is_enough": True,
        }
    ]  # fmt: skip
    circuit["context"] = [{**edge, "receiver": receivers[0], "changed": "two_before_key", "share": 0.66}]
    first = circuit["receivers"][0]
    none = {"restored": None, "unexplained": None, "strongest_other": None, "strongest_query": None}
    circuit["receivers"] = [
        {**first, **receivers[0], "offset": 1, "context": {"two_before_key": about}},
        {**first, **receivers[1], "restored": None, "unexplained": 1.0},
        {**first, **receivers[2], **none, "asked": False, "context": None},
    ]
    return document


def test_sets_query_paths_and_what_was_not_asked_are_said(show, traced):
    opened = show(traced)
    page = opened.page
    rows = page.locator("#circuit .receivers tbody tr").all_inner_texts()
    assert [one.split()[0] for one in rows] == ["L2H0", "L2H2", "L2H4"]
    for said in (
        "L1H2 through its query: 31%",
        "any of L0H1 or L0H3 is enough, through its key: without all of them 92% is lost, without each alone 4% in all",
        "each alone restores L0H1 0.88, L0H3 0.95",
        "where the token two before the key differs, ",
        "traced to the key 1 after its stripe's",
    ):
        assert said in rows[0]
    assert "L0H1 through its key" not in rows[0], "one of a set does not carry the set's share by itself"
    assert "no sender was found" in rows[1]
    assert "not asked: another token before the key takes less than a tenth" in rows[2]
    assert "no sender was found" not in rows[2]
    edges = page.locator("#circuit .edge")
    assert [one.get_attribute("aria-label") for one in edges.all()] == [
        "L1H2 to the query of L2H0: 31%",
        "L0H1 to the key of L2H0: 92%, lost only without all of L0H1 and L0H3",
        "L0H3 to the key of L2H0: 92%, lost only without all of L0H1 and L0H3",
    ]
    dashed = [one.get_attribute("stroke-dasharray") is not None for one in edges.locator("path:first-child").all()]
    assert dashed == [False, True, True]
    page.select_option(".choose select", "L2H0")
    card = page.locator(".card").inner_text()
    assert "L1H2 carries 31% of its stripe, through its query" in card
    assert "any of L0H1 or L0H3 is enough" in card
    page.select_option(".choose select", "L2H4")
    assert "not asked: another token" in page.locator(".card").inner_text()
    page.select_option(".choose select", "L0H3")
    assert "It feeds L2H0 (its key, 92%, lost only without all of L0H1 and L0H3)" in page.locator(".card").inner_text()
    opened.assert_quiet()


def test_the_saved_paths_say_through_what_and_with_whom(show, traced):
    opened = show(traced)
    with opened.page.expect_download() as waiting:
        opened.page.get_by_role("button", name="Who tells them where to look: save as CSV").click()
    rows = list(csv.DictReader(io.StringIO(waiting.value.path().read_text())))
    assert [(one["input"], one["any_of"], one["changed"]) for one in rows] == [
        ("k", "L0H1 L0H3", "before_key"),
        ("k", "L0H1 L0H3", "before_key"),
        ("q", "", "before_key"),
        ("k", "", "two_before_key"),
    ]
    assert [float(one["share_low"]) for one in rows[:2]] == [0.81, 0.81]
