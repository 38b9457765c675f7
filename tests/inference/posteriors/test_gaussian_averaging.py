"""r averaged over a normal, against products of normals and quadrature, where an expansion of r is right and wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from dpm_ppl.inference.posteriors.gaussian_averaging import MOST_TRUST, Averaging, average, averaged_product, points
from dpm_ppl.inference.posteriors.gaussian_guidance import Normal
from tests.inference.posteriors.test_gaussian_guidance import (
    FULL,
    LOC,
    NOISE,
    ROWS,
    SPREAD,
    Y,
    linear,
    log_normal,
    times,
)

ALL = Averaging(64, slopes=True, power=1.0)
KEYS = jax.random.split(jax.random.key(3), 20_000)
GRID = np.linspace(-9, 9, 40_001)


def weighed(move):
    """Draws of a move and their weights p / q."""
    x, log_ratio = jax.vmap(move.draw)(KEYS)
    return np.asarray(x), np.exp(np.asarray(log_ratio))


def test_points_are_standard_normal_and_spread_evenly():
    for size in (1, 3, 20):
        z = points(64, size)
        np.testing.assert_allclose(z.mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(z.var(0), 1, atol=0.2)
        assert np.abs(z[:32].mean(0)).max() < 0.12  # so is each half


def test_a_linear_gaussian_r_is_the_closed_form():
    log_mean, move = averaged_product(FULL, linear, None, ALL, full=True)
    expected, mean, _ = times(LOC, SPREAD, ROWS, NOISE, Y)
    np.testing.assert_allclose(log_mean, expected, atol=0.02)
    assert move.trust == pytest.approx(MOST_TRUST, abs=0.1)
    x, weight = weighed(move)
    r = np.exp(np.asarray(jax.vmap(linear)(x)))
    np.testing.assert_allclose(np.mean(weight * r), np.exp(expected), rtol=0.01)
    np.testing.assert_allclose(np.average(x, weights=weight * r, axis=0), mean, atol=0.02)
    assert (weight * r).std() < 0.5 * (weight * r).mean()


RS = {
    "two modes": lambda x: dist.Normal(jnp.abs(x[0]), 0.3).log_prob(1.2),
    "a root of 0": lambda x: dist.Normal(jnp.sqrt(x[0] ** 2), 0.5).log_prob(0.2),
    "far to one side": lambda x: dist.Normal(x[0], 0.2).log_prob(5.0),
    "a step": lambda x: jnp.where(x[0] > 0.7, 0.0, -jnp.inf),
    "its expansion has no top": lambda x: 0.8 * jnp.log1p(x[0] ** 2),
}


@pytest.mark.parametrize("name", RS)
@pytest.mark.parametrize("slopes", [True, False])
def test_any_r_of_one_coordinate_is_near_quadrature_and_weighed_exactly(name, slopes):
    if name == "far to one side" and not slopes:
        pytest.skip("what slopes are for")
    loc, scale = np.array([0.0 if name == "a root of 0" else 0.3]), np.array([1.1])
    p = dist.Normal(loc, scale).to_event(1)
    log_r = RS[name]
    log_mean, move = jax.jit(lambda p: averaged_product(p, log_r, None, Averaging(64, slopes=slopes, power=1.0)))(p)
    r = np.exp(np.asarray(jax.vmap(log_r)(jnp.asarray(GRID)[:, None])))
    density = np.exp(-0.5 * ((GRID - loc) / scale) ** 2) / scale / np.sqrt(2 * np.pi) * r * (GRID[1] - GRID[0])
    assert log_mean == pytest.approx(np.log(density.sum()), abs=0.15)
    x, weight = weighed(move)
    weight = weight * np.exp(np.asarray(jax.vmap(log_r)(x)))
    error = weight.std() / np.sqrt(len(weight))
    assert abs(weight.mean() - density.sum()) < 4 * error
    assert error < 0.02 * weight.mean()
    for moment in (1, 2):
        gained = weight * (x[:, 0] ** moment - np.average(GRID**moment, weights=density)) / weight.mean()
        assert abs(gained.mean()) < 4 * gained.std() / np.sqrt(len(gained))


def test_power_nought_is_the_step_itself():
    _, move = averaged_product(FULL, linear, None, Averaging(64, slopes=True, power=0.0), full=True)
    x, weight = weighed(move)
    np.testing.assert_allclose(weight, 1, rtol=1e-9)
    np.testing.assert_allclose(x.mean(0), LOC, atol=0.04)
    np.testing.assert_allclose(np.cov(x.T), SPREAD, atol=0.06)


def test_power_half_averages_the_root_of_r():
    log_mean, _ = averaged_product(FULL, linear, None, Averaging(64, slopes=True, power=0.5), full=True)
    level = 0.5 * log_normal(np.zeros(2), np.zeros(2), NOISE) - log_normal(np.zeros(2), np.zeros(2), 2 * NOISE)
    np.testing.assert_allclose(log_mean, times(LOC, SPREAD, ROWS, 2 * NOISE, Y)[0] + level, atol=0.02)


def test_known_coordinates_stay_what_they_are():
    known = (jnp.array([True, False, False]), jnp.array([1.3, 0.0, 0.0]))
    log_mean, move = averaged_product(FULL, lambda x: 0.0 * x[0], known, ALL, full=True)
    np.testing.assert_allclose(log_mean, log_normal(1.3, LOC[:1], SPREAD[:1, :1])[()], atol=1e-6)
    x, weight = weighed(move)
    np.testing.assert_allclose(x[:, 0], 1.3, rtol=1e-6)
    np.testing.assert_allclose(weight.mean(), np.exp(log_mean), rtol=1e-3)


def test_an_expansion_is_trusted_as_far_as_r_bears_it_out():
    normal = Normal(jnp.array([[0.3]]), jnp.array([[[1.1]]]))
    trust = {name: float(average(normal, log_r, None, (1,), ALL).trust) for name, log_r in RS.items()}
    assert trust["far to one side"] > 0.9
    assert trust["two modes"] < 0.7  # the other mode is not explained
    assert trust["a step"] < 0.6
