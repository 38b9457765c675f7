"""Counts: what passes is an integer of Python, and what is refused is named."""

import numpy as np
import pytest

from dpm_ppl.arguments import require_count


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_counts_are_integers_of_python(value):
    count = require_count("num_samples", value, at_least=3)
    assert count == 3
    assert type(count) is int


@pytest.mark.parametrize("value", [True, np.True_, 3.0, np.float64(3), "3", None, np.array([3])])
def test_a_count_that_is_no_integer(value):
    with pytest.raises(TypeError, match="Expected `num_samples` to be an integer; got"):
        require_count("num_samples", value)


@pytest.mark.parametrize(("value", "at_least"), [(0, 1), (-2, 1), (np.int32(4), 5), (-1, 0)])
def test_a_count_too_small(value, at_least):
    with pytest.raises(ValueError, match=rf"Expected `num_samples` to be at least {at_least}; got {value}\."):
        require_count("num_samples", value, at_least=at_least)
