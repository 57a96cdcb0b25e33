"""The checks of signatures, on which every other test relies: they are there, in each test, and for a while only."""

from __future__ import annotations

import jaxtyping
import numpy as np
import pytest

from headscope.heads import HeadId
from headscope.stats import benjamini_hochberg
from tests import typed

WRONG = np.zeros((2, 3))
"""Two axes, where one is asked for."""


@pytest.mark.parametrize("again", [1, 2])
def test_a_wrong_shape_is_refused_in_the_first_calls_of_every_test(again):
    for _ in range(typed.CALLS_A_TEST):
        with pytest.raises(jaxtyping.TypeCheckError):
            benjamini_hochberg(WRONG)
    benjamini_hochberg(WRONG)  # passed by: checking every call takes longer than the tests
    typed.begin()
    with pytest.raises(jaxtyping.TypeCheckError):
        benjamini_hochberg(WRONG)


def test_records_are_checked_too():
    with pytest.raises(jaxtyping.TypeCheckError):
        HeadId("1", 0)  # pyright: ignore[reportArgumentType]
