"""Names for heads."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headscope.errors import ArgumentError
from headscope.heads import HeadId, ranking


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("L5H1", HeadId(5, 1)),
        ("5.1", HeadId(5, 1)),
        (" 5.1\n", HeadId(5, 1)),
        ("L0H0", HeadId(0, 0)),
        ("L11H10", HeadId(11, 10)),
        ("5.10", HeadId(5, 10)),  # not 5.1: text, not a decimal number
        ("L5H1#2", HeadId(5, 1, 2)),
        ("5.1#2", HeadId(5, 1, 2)),
        ("L5H1#0", HeadId(5, 1)),
    ],
)
def test_both_forms_are_read(text, head):
    assert HeadId.parse(text) == head


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 99))
def test_what_is_printed_is_read_back(layer, head, call):
    one = HeadId(layer, head, call)
    assert HeadId.parse(str(one)) == one
    assert HeadId.parse(str(one).replace("L", "").replace("H", ".")) == one


@pytest.mark.parametrize(
    "text",
    ["", "5", "5.", ".1", "5,1", "H1L5", "L5", "L-1H0", "-1.0", "5.1.2", "l5h1", "L5H1#", "L5 H1", "1e1.0"],
)
def test_other_text_is_refused_and_shown(text):
    with pytest.raises(ArgumentError, match="is not a head; write layer and head from 0, like L5H1 or 5.1") as caught:
        HeadId.parse(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_text_with_line_breaks_is_refused_in_one_line():
    with pytest.raises(ArgumentError) as caught:
        HeadId.parse("L1H1\nL2H2")
    assert "\n" not in str(caught.value)


def test_a_head_prints_its_call_only_in_loops():
    assert str(HeadId(5, 1)) == repr(HeadId(5, 1)) == "L5H1"
    assert str(HeadId(5, 1, 2)) == "L5H1#2"


def test_heads_sort_by_layer_then_head_then_call():
    shuffled = [HeadId(10, 0), HeadId(2, 1), HeadId(2, 0, 1), HeadId(2, 0), HeadId(2, 10)]
    assert [str(head) for head in sorted(shuffled)] == ["L2H0", "L2H0#1", "L2H1", "L2H10", "L10H0"]


def test_heads_are_keys():
    assert {HeadId(1, 2): "a"}[HeadId.parse("1.2")] == "a"
    assert HeadId(1, 2) != HeadId(1, 2, 1)
    with pytest.raises(AttributeError):
        HeadId(1, 2).layer = 3


def test_parse_names_both_forms_in_its_docstring():
    assert all(form in inspect.getdoc(HeadId.parse) for form in ("L5H1", "5.1", "L5H1#1"))


def test_heads_whose_scores_differ_by_rounding_keep_the_models_order():
    # float32 has 24 bits: 1 - 2**-24 is the neighbour below 1, which another processor may give instead.
    below = 1 - 2**-24
    for values in ([below, 1.0, 0.5], [1.0, below, 0.5], [below, below, 0.5]):
        heads = [HeadId(0, 1), HeadId(1, 0), HeadId(0, 0)]
        pairs = zip(heads, values, strict=True)
        assert [head for head, value in sorted(pairs, key=lambda one: ranking(one[1], one[0]))] == heads
    assert ranking(float("inf"), HeadId(1, 1)) < ranking(0.2, HeadId(0, 1)) < ranking(float("-inf"), HeadId(0, 0))
    assert ranking(0.20001, HeadId(1, 1)) < ranking(0.2, HeadId(0, 1)), "a difference that a reader could see counts"
