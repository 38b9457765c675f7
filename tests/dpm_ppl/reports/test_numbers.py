"""Numbers as reports show them, against numbers by hand."""

import math

import numpy as np
import pytest

from dpm_ppl.datasets import Dequantised, Scale
from dpm_ppl.reports.numbers import counted, data_counted, in_bits, known_or_none, of_pixels, with_error


def test_mean_in_bits_and_its_error():
    """Of 1, 2 and 6 bits: a mean of 3, and a variance of it of (4 + 1 + 9) / 2 / 3."""
    found = in_bits("elbo", math.log(2) * np.array([1, 2, 6]))
    assert list(found) == ["elbo", "elbo_se"]
    np.testing.assert_allclose(list(found.values()), [3, math.sqrt(7 / 3)], rtol=1e-14)


def test_what_json_lacks_is_none():
    for value in (math.nan, math.inf, -math.inf, np.float64("nan")):
        assert known_or_none(value) is None
    for value in (0.0, -1.5, 7, "nan", True, None):
        assert known_or_none(value) is value


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ({"elbo": -1.23456, "elbo_se": 0.98765, "K": 2.0}, "   -1.2346 ± 0.9877"),
        ({"elbo": 123.0, "K_se": 0.1}, "  123.0000"),
        ({"elbo": 123.0, "elbo_se": 0.0}, "  123.0000 ± 0.0000"),
        ({"elbo": 0.5, "elbo_se": None}, "    0.5000"),  # of a single datum
        ({"elbo": None, "elbo_se": None}, "      none"),
        ({"K": 2.0, "K_se": 0.1}, "      none"),
    ],
)
def test_a_number_with_its_error(figures, text):
    assert with_error(figures, "elbo") == text


def test_one_datum_is_no_data():
    assert counted(1, "particle", "particles") == "1 particle"
    assert counted(2000, "particle", "particles") == "2,000 particles"
    assert data_counted(1, "held-out data") == "1 held-out datum"
    assert data_counted(0, "fresh data") == "0 fresh data"


def test_bits_of_an_image_are_told_by_pixel_and_dimension():
    """2 x 3 pixels of two channels, levels 4 wide: -36 bits are -6 a pixel, and 3 a dimension and two bits more."""
    data = Dequantised(np.zeros((1, 2, 3, 2), np.uint8), Scale(0.0, 4.0))
    found = of_pixels({"elbo_bits": -36.0, "elbo_bits_se": 0.6, "K_bits": -12.0, "K_bits_se": None}, data)
    expected = {"elbo_bits_per_pixel": -6.0, "elbo_bits_per_pixel_se": 0.1, "K_bits_per_pixel": -2.0}
    assert found == pytest.approx(expected | {"bits_per_dimension": 3.0 + 2.0, "bits_per_dimension_se": 0.05})
    assert "bits_per_dimension_se" not in of_pixels({"elbo_bits": -36.0, "elbo_bits_se": None}, data)  # of one image
    assert of_pixels({"elbo_bits": -36.0, "elbo_bits_se": 0.6}, np.zeros((5, 2, 3))) == {}
