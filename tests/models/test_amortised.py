"""The two moons: the simulator's density, and exact draws of the posterior, by quadrature of Bayes' rule."""

import jax
import numpy as np

from dpm_ppl.models import amortised as program

OBSERVED = np.array([-0.45, 0.3])
AXIS = np.linspace(-1, 1, 2001)


def log_likelihood(x, theta):
    """log p(x | theta): the crescent's density in the plane, that of the radius over half its circle."""
    fold = np.stack([-np.abs(theta[..., 0] + theta[..., 1]), theta[..., 1] - theta[..., 0]], -1) / np.sqrt(2)
    u, v = np.moveaxis(x - fold - [0.25, 0.0], -1, 0)
    radius = np.hypot(u, v)
    log_prob = -0.5 * ((radius - 0.1) / 0.01) ** 2 - np.log(0.01 * np.sqrt(2 * np.pi)) - np.log(np.pi * radius)
    return np.where(u > 0, log_prob, -np.inf)


def test_posterior_draws_have_the_moments_of_bayes_rule():
    """Over a grid of theta, whose spacing is a tenth of the crescent's width."""
    first, second = np.meshgrid(AXIS, AXIS, indexing="ij")
    weight = np.exp(log_likelihood(OBSERVED, np.stack([first, second], -1)))
    weight /= weight.sum()
    drawn = np.asarray(program.posterior(OBSERVED, jax.random.key(0), 40_000))
    assert len(drawn) > 30_000
    for moment in (
        lambda a, b: a,
        lambda a, b: b,
        lambda a, b: a * b,
        lambda a, b: a**2,
        lambda a, b: b**3,
        lambda a, b: np.abs(a + b) * (b - a),
        lambda a, b: (a + b > 0) * 1.0,
    ):
        values = moment(*drawn.T)
        expected = (weight * moment(first, second)).sum()
        assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(len(values))
    assert np.abs(drawn).max() <= 1


def test_near_an_edge_of_the_prior_draws_are_cut():
    """An observation that parameters outside of the prior explain as well."""
    x = np.array([0.15, 1.35])
    first, second = np.meshgrid(AXIS, AXIS, indexing="ij")
    weight = np.exp(log_likelihood(x, np.stack([first, second], -1)))
    drawn = np.asarray(program.posterior(x, jax.random.key(1), 40_000))
    assert 1000 < len(drawn) < 30_000
    assert np.abs(drawn).max() <= 1
    for axis, grid in enumerate((first, second)):
        expected = (weight * grid).sum() / weight.sum()
        assert abs(drawn[:, axis].mean() - expected) < 4 * drawn[:, axis].std() / np.sqrt(len(drawn))


def test_simulations_are_of_the_likelihood():
    """The noise of each, radius and angle, is that of its parameters, whatever they are."""
    drawn = program.data()
    theta, x = np.asarray(drawn["theta"]), np.asarray(drawn["x"])
    assert np.abs(theta).max() <= 1
    assert np.abs(theta.mean(0)).max() < 4 / np.sqrt(3 * len(theta))
    fold = np.stack([-np.abs(theta.sum(1)), theta[:, 1] - theta[:, 0]], -1) / np.sqrt(2)
    noise = x - fold - [0.25, 0.0]
    radius, angle = np.hypot(*noise.T), np.arctan2(noise[:, 1], noise[:, 0])
    assert abs(radius.mean() - 0.1) < 4 * 0.01 / np.sqrt(len(x))
    assert abs(radius.std() / 0.01 - 1) < 4 / np.sqrt(2 * len(x))
    assert np.abs(angle).max() < np.pi / 2
    assert abs(angle.std() / (np.pi / np.sqrt(12)) - 1) < 4 / np.sqrt(5 * len(x))
    assert abs(np.corrcoef(angle, theta[:, 0])[0, 1]) < 4 / np.sqrt(len(x))
