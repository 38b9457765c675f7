"""Windows around samples against the formula in double precision, a closed form, and a scan over the width."""

import math

import jax
import numpy as np
import pytest
from scipy.special import logsumexp

from dpm_ppl.inference import parzen
from dpm_ppl.inference.units import mean_and_error
from tests.compiling import optimised

RNG = np.random.default_rng(0)


def skewed(num):
    """Draws of an asymmetric law in three dimensions, two of them dependent, far from 0."""
    x = RNG.exponential(size=(num, 3))
    return np.stack([50 + x[:, 0], x[:, 0] * x[:, 1], -3 * x[:, 2]], -1)


def by_formula(samples, x, h):
    """Log density of each datum, datum by datum, of differences in double precision."""
    samples, x = (np.asarray(a, float).reshape(len(a), -1) for a in (samples, x))
    exponent = [-np.sum((samples - datum) ** 2, 1) / (2 * h**2) for datum in x]
    return logsumexp(exponent, axis=1) - np.log(len(samples)) - x.shape[1] / 2 * np.log(2 * np.pi * h**2)


@pytest.mark.parametrize("h", [0.03, 0.4, 7.0])
def test_agrees_with_the_formula(h):
    samples, x, validation = skewed(50), skewed(31), skewed(8)
    found = parzen(samples.reshape(50, 3, 1), x.reshape(31, 3, 1), validation.reshape(8, 3, 1), bandwidths=h)
    assert (found.bandwidth, found.num_samples) == (h, 50)
    np.testing.assert_allclose(found.log_prob, by_formula(samples, x, h), rtol=1e-10)
    np.testing.assert_allclose(found.validation_log_prob, by_formula(samples, validation, h).mean(), rtol=1e-10)


def test_is_a_density():
    """Its integral over a line is 1."""
    samples, grid = RNG.exponential(size=20), np.linspace(-4, 12, 4001)
    found = parzen(samples, grid, samples[:9] + 0.1)
    assert np.trapezoid(np.exp(found.log_prob), grid) == pytest.approx(1, abs=1e-6)


@optimised()
def test_many_samples_of_a_normal_give_the_density_with_the_window_added():
    """E log N(x; 0, S + h^2) under N(m, S'), and the width that validation data of another spread choose: S' - S."""
    scale, mean, spread, num = 0.6, 0.3, 1.1, 5000
    samples, x, validation = (RNG.normal(at, by, (num, 1)) for at, by in ((0.0, scale), (mean, spread), (mean, spread)))
    found = parzen(samples, x, validation, bandwidths=np.linspace(0.5, 1.5, 21))
    best = math.sqrt(spread**2 + mean**2 - scale**2)
    assert (
        abs(found.bandwidth - best) < 0.025 + 4 * 0.014
    )  # half a step of the grid, and the spread of 5,000 second moments
    variance = scale**2 + found.bandwidth**2
    expected = -0.5 * (math.log(2 * math.pi * variance) + (spread**2 + mean**2) / variance)
    assert abs(found.mean - expected) < 4 * found.mean_error
    assert found.mean_error == pytest.approx(0.70 / math.sqrt(num), rel=0.1)
    assert (found.mean, found.mean_error) == mean_and_error(found.log_prob)


@pytest.mark.parametrize(
    ("factor", "bandwidths"),
    [(0.2, None), (1e-4, None), (300.0, None), (1.0, [0.9, 0.8]), (1.0, [0.01, 0.02, 0.04])],
    ids=["within", "below", "above", "below one's own", "above one's own"],
)
def test_the_width_is_the_one_that_a_scan_of_validation_data_finds(factor, bandwidths):
    samples, validation = factor * skewed(60), factor * skewed(40)
    x = factor * (skewed(40) + 3.0)  # of which another width is the best
    found = parzen(samples, x, validation, bandwidths=bandwidths)
    scan = [by_formula(samples, validation, h).mean() for h in found.bandwidths]
    np.testing.assert_allclose(found.validation_log_prob, scan, rtol=1e-9)
    best = int(np.argmax(scan))
    assert found.bandwidth == found.bandwidths[best]
    assert 0 < best < len(scan) - 1
    step = 10 ** (1 / 9) if bandwidths is None else 2.001
    assert np.all(np.diff(np.log(found.bandwidths)) < math.log(step) + 1e-9)
    of_x = [by_formula(samples, x, h).mean() for h in found.bandwidths]
    assert np.argmax(of_x) != best
    assert found.mean == pytest.approx(of_x[best])


def test_the_first_grid_is_the_customary_one():
    found = parzen(0.2 * skewed(60), 0.2 * skewed(9), 0.2 * skewed(40))
    np.testing.assert_allclose(found.bandwidths, np.logspace(-1, 0, 10))


@pytest.mark.parametrize("block_size", [1, 7, 10, 1000])
def test_blocks_do_not_change_numbers(block_size):
    samples, x, validation = skewed(50), skewed(21), skewed(20)
    whole = parzen(samples, x, validation, block_size=50)
    parts = parzen(samples, x, validation, block_size=block_size)
    np.testing.assert_allclose(parts.log_prob, whole.log_prob, rtol=1e-12)
    np.testing.assert_allclose(parts.validation_log_prob, whole.validation_log_prob, rtol=1e-12)
    assert parts.bandwidth == whole.bandwidth


def images(num):
    """Images of 784 pixels in 0 to 1, in single precision: mixtures of a few, with noise."""
    faces = np.random.default_rng(1).random((10, 784))
    return np.clip(RNG.random((num, 10)) ** 3 @ faces / 3 + 0.1 * RNG.random((num, 784)), 0, 1).astype(np.float32)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_single_precision_is_enough_for_images(offset):
    samples, x, validation = (images(num) + np.float32(offset) for num in (300, 40, 30))
    with jax.enable_x64(False):
        found = parzen(samples, x, validation, bandwidths=0.1)
    assert np.abs(found.log_prob - by_formula(samples, x, 0.1)).max() < 0.003  # of about 600 nats
    double = parzen(samples, x, validation, bandwidths=0.1)
    np.testing.assert_allclose(double.log_prob, by_formula(samples, x, 0.1), rtol=1e-10)


def test_a_width_that_rounding_decides_is_refused():
    samples, x, validation = images(300), images(40), images(30)
    narrow = {"bandwidths": 0.004}
    parzen(samples, x, validation, **narrow)
    with jax.enable_x64(False):
        with pytest.raises(ValueError, match=r"bandwidth above 0\.0\d+, below which rounding decides; got 0\.004"):
            parzen(samples, x, validation, **narrow)
        just = {"bandwidths": 0.02}
        assert np.abs(parzen(samples, x, validation, **just).log_prob - by_formula(samples, x, 0.02)).max() < 0.05


@pytest.mark.parametrize("double", [False, True])
def test_validation_data_that_all_are_samples_are_refused(double):
    """The narrower the windows, the better: of bits that repeat there is no density."""
    bits = RNG.integers(0, 2, (200, 4))
    with jax.enable_x64(double), pytest.raises(ValueError, match="Where all validation data are samples, as bits"):
        parzen(bits, bits[:50], bits[50:100])


def test_the_summary_is_in_both_units():
    found = parzen(skewed(60), skewed(20), skewed(10))
    mean, error = mean_and_error(found.log_prob)
    assert found.summary() == {
        "parzen_nats": mean,
        "parzen_bits": mean / math.log(2),
        "parzen_nats_se": error,
        "parzen_bits_se": error / math.log(2),
        "parzen_bandwidth": found.bandwidth,
        "parzen_num_samples": 60,
    }
    assert math.isnan(parzen(skewed(60), skewed(1), skewed(10)).mean_error)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"samples": skewed(1)}, ValueError, r"`samples` of shape .* at least 2 of them; got shape \(1, 3\)"),
        ({"x": skewed(0)}, ValueError, r"`x` of shape .* at least 1 of them; got shape \(0, 3\)"),
        ({"validation": 1.0}, ValueError, r"`validation` of shape .*; got shape \(\)"),
        (
            {"x": skewed(9)[:, :2]},
            ValueError,
            r"`samples`, `x` and `validation` of one event shape; got \(3,\), \(2,\) and \(3,\)",
        ),
        ({"validation": skewed(9)[..., None]}, ValueError, r"got \(3,\), \(3,\) and \(3, 1\)"),
        ({"samples": np.full((9, 3), np.nan)}, ValueError, "`samples` to be finite; got NaN or infinity in 9 of 9"),
        ({"x": np.array([[0.0, np.inf, 1.0]])}, ValueError, "`x` to be finite; got NaN or infinity in 1 of 1"),
        ({"validation": np.array(["a", "b"])}, TypeError, "`validation` to be a numeric array"),
        ({"bandwidths": 0.0}, ValueError, r"`bandwidths` to be positive, .*; got 0\."),
        ({"bandwidths": [0.3, -0.1]}, ValueError, r"`bandwidths` to be positive, .*; got -0\.1\."),
        ({"bandwidths": []}, ValueError, r"`bandwidths` of shape .*; got shape \(0,\)"),
        ({"bandwidths": [[0.3]]}, ValueError, r"`bandwidths` to be positive, of shape \(num_bandwidths,\); got shape"),
        ({"bandwidths": [0.3, np.nan]}, ValueError, "`bandwidths` to be finite"),
        ({"bandwidths": "wide"}, TypeError, "`bandwidths` to be a numeric array"),
        ({"block_size": 0}, ValueError, "`block_size` to be at least 1; got 0"),
        ({"block_size": 10.0}, TypeError, "`block_size` to be an integer"),
    ],
)
def test_bad_input_is_told(change, error, message):
    with pytest.raises(error, match=message):
        parzen(**{"samples": skewed(9), "x": skewed(9), "validation": skewed(9), **change})
