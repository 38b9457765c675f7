"""The ArviZ adapter, on known tails and degenerate weights; it holds with ArviZ 0.23 and 1.x."""

import jax.numpy as jnp
import numpy as np
import pytest

from dpm_ppl.inference.psis import psis

RNG = np.random.default_rng


def pareto(k: float, num_particles: int, num_data: int, *, seed: int = 0) -> np.ndarray:
    """Log weights of which the weights are generalised Pareto of shape k, by inverting its distribution function."""
    u = RNG(seed).random((num_particles, num_data))
    return np.log(np.expm1(-k * np.log1p(-u)) / k)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8])
def test_khat_is_the_shape_of_a_known_tail(k):
    _, khat = psis(pareto(k, 20_000, 60))
    # ArviZ's prior, worth 10 of 425 weights, pulls k towards 0.5; beyond that the mean is within 4 standard errors.
    expected = (425 * k + 10 * 0.5) / 435
    assert abs(khat.mean() - expected) < 4 * khat.std(ddof=1) / 60**0.5


def test_tail_is_that_of_the_weights_and_not_of_their_inverses():
    # The inverses of these weights are bounded, so their k-hat is negative; a wrong sign would go unnoticed elsewhere.
    log_weight = np.log1p(np.exp(pareto(0.6, 5000, 8)))
    assert (psis(log_weight)[1] > 0.4).all()
    assert (psis(-log_weight)[1] < 0.1).all()


def test_smoothing_keeps_the_scale_and_lowers_the_error():
    # Weights of mean 1 / (1 - k): where the tail is heavy, the mean of the smoothed ones has the smaller squared error.
    k, num_particles = 0.7, 1000
    log_weight = pareto(k, num_particles, 400, seed=1) - 1234.5
    smoothed, _ = psis(log_weight)
    exact = -np.log(1 - k) - 1234.5
    off = {
        name: np.logaddexp.reduce(lw) - np.log(num_particles) - exact
        for name, lw in (("raw", log_weight), ("psis", smoothed))
    }
    assert abs(np.median(off["psis"])) < 0.2
    assert np.square(np.expm1(off["psis"])).mean() < 0.8 * np.square(np.expm1(off["raw"])).mean()


def test_smoothing_changes_the_tail_only_and_keeps_the_order():
    log_weight = pareto(0.7, 1000, 5, seed=2)
    smoothed, _ = psis(log_weight)
    body = np.argsort(log_weight, 0)[:-96]
    np.testing.assert_allclose(
        np.take_along_axis(smoothed, body, 0), np.take_along_axis(log_weight, body, 0), atol=1e-12
    )
    assert (np.argsort(smoothed, 0, kind="stable")[:-96] == body).all()
    assert (smoothed.max(0) <= log_weight.max(0) + 1e-12).all()


def test_data_are_separate():
    tails = np.concatenate([pareto(k, 5000, 1) for k in (0.1, 0.9)], 1)
    together, apart = psis(tails)[1], [float(psis(tails[:, [i]])[1][0]) for i in (0, 1)]
    np.testing.assert_allclose(together, apart)
    assert together[0] < 0.4 < 0.7 < together[1]


@pytest.mark.parametrize("num_particles", [2, 29, 30, 1000])
@pytest.mark.parametrize("value", [0.0, -1234.5])
def test_constant_weights_are_a_perfect_fit(num_particles, value):
    log_weight = np.full((num_particles, 3), value)
    smoothed, khat = psis(log_weight)
    np.testing.assert_array_equal(khat, 0.0)
    np.testing.assert_array_equal(smoothed, log_weight)


def test_constant_weights_up_to_rounding_are_a_perfect_fit():
    rounding = np.round(3 * RNG(0).normal(size=(1000, 4))) * np.spacing(np.float32(50))
    np.testing.assert_array_equal(psis((50 + rounding).astype(np.float32))[1], 0.0)


def test_a_few_dominating_weights_are_as_bad_as_can_be():
    dominated = np.zeros((1000, 1))
    dominated[[3, 500, 700], 0] = [13.0, 14.0, 12.0]
    degenerate = RNG(0).normal(size=(1000, 1)) * 1000
    smoothed, khat = psis(np.concatenate([dominated, degenerate], 1))
    assert (khat == np.inf).all()
    np.testing.assert_array_equal(smoothed, np.concatenate([dominated, degenerate], 1))


@pytest.mark.parametrize("scale", [5.0, 30.0, 100.0])
def test_wildly_spread_weights_have_a_high_khat(scale):
    assert (psis(RNG(0).normal(size=(1000, 5)) * scale)[1] > 0.7).all()


@pytest.mark.parametrize("num_particles", [1, 2, 29])
def test_khat_is_not_known_from_few_particles(num_particles):
    log_weight = RNG(0).normal(size=(num_particles, 3))
    smoothed, khat = psis(log_weight)
    assert np.isnan(khat).all()
    np.testing.assert_array_equal(smoothed, log_weight)


def test_khat_is_not_known_from_few_distinct_weights():
    values, shares = np.log([1.0, 2.0, 3.0, 4.0]), [0.5, 0.3, 0.15, 0.05]
    log_weight = RNG(0).choice(values, p=shares, size=(1000, 2))
    smoothed, khat = psis(log_weight)
    assert np.isnan(khat).all()
    np.testing.assert_array_equal(smoothed, log_weight)


def test_weights_of_zero():
    log_weight = pareto(0.5, 2000, 4)
    log_weight[RNG(1).random(log_weight.shape) < 0.5] = -np.inf
    log_weight[:, 3] = -np.inf
    smoothed, khat = psis(log_weight)
    assert ((khat[:3] > 0.2) & (khat[:3] < 0.8)).all()
    assert khat[3] == np.inf
    np.testing.assert_array_equal(smoothed == -np.inf, log_weight == -np.inf)
    assert not np.isnan(smoothed).any()


def test_takes_read_only_single_precision():
    log_weight = jnp.asarray(pareto(0.5, 500, 3), jnp.float32)
    smoothed, khat = psis(log_weight)
    assert smoothed.dtype == khat.dtype == np.float64
    read_only = np.asarray(log_weight)
    assert not read_only.flags.writeable
    before = read_only.copy()
    np.testing.assert_array_equal(psis(read_only)[1], khat)
    np.testing.assert_array_equal(read_only, before)


@pytest.mark.parametrize("shape", [(), (5,), (5, 2, 2), (0, 3), (3, 0)])
def test_wrong_shapes_are_told(shape):
    with pytest.raises(ValueError, match=r"Expected `log_weight` of shape \(num_particles, num_data\)"):
        psis(np.zeros(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_weights_are_told(value):
    log_weight = np.zeros((50, 3))
    log_weight[7, 2] = value
    with pytest.raises(ValueError, match=f"the first {value} for particle 7 of datum 2"):
        psis(log_weight)


K = np.arange(6) / 7
