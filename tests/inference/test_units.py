"""Means with their errors, against numbers by hand."""

import math

import numpy as np
import pytest

from dpm_ppl.inference.units import error_text, in_both_units, mean_and_error


def test_mean_and_error_of_skewed_values():
    """Deviations -2, -1 and 3, of squares 14: a variance of 14 / 2, and of the mean 7 / 3."""
    np.testing.assert_allclose(mean_and_error([1, 2, 6]), [3, math.sqrt(7 / 3)], rtol=1e-14)


def test_a_single_value_has_no_error():
    mean, error = mean_and_error(np.array([-2.5]))
    assert mean == -2.5
    assert math.isnan(error)


def test_values_in_single_precision_are_summed_in_double():
    mean, error = mean_and_error(np.array([16777216, 1, 1, 1], np.float32))  # of which 2^24 + 1 is none
    assert mean == 16777219 / 4
    assert error == pytest.approx(16777215 / 4, rel=1e-14)


def test_an_infinite_value_leaves_the_error_unknown():
    """Data that pi lacks have log pi(x0) = -inf."""
    mean, error = mean_and_error([-1.0, -math.inf, 0.5])
    assert mean == -math.inf
    assert math.isnan(error)


@pytest.mark.parametrize(
    ("suffix", "names"), [("", ("elbo_nats", "elbo_bits")), ("_se", ("elbo_nats_se", "elbo_bits_se"))]
)
def test_nats_and_bits(suffix, names):
    found = in_both_units("elbo", -3 * math.log(2), suffix=suffix)
    assert tuple(found) == names
    np.testing.assert_allclose([found[name] for name in names], [-3 * math.log(2), -3], rtol=1e-14)


def test_an_error_that_is_not_known_is_said():
    assert error_text(np.nan, 3) == error_text(None, 3) == "± unknown"
    assert error_text(0.1234, 3) == "± 0.123"
