"""The kernel that a user wrote, against Fourier series, and the exact reverse of wrapped-normal data."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference import log_likelihood
from dpm_ppl.models import torus

TURN = 2 * np.pi
GRID = np.linspace(-np.pi, np.pi, 1024, endpoint=False)
SPREAD = np.append(0, np.cumsum(np.geomspace(0.03, 2.0, 30) ** 2))  # variance after t steps, before wrapping
WEIGHT, CENTRE = np.array([0.5, 0.3, 0.2]), np.array([[-1.0, 0.5], [1.5, -2.0], [3.0, 2.6]])
WIDTH = np.array([[0.5, 0.3], [0.3, 0.7], [0.4, 0.4]])


def series(angle, variance):
    """Density of a wrapped normal around 0 by its Fourier series."""
    n = np.arange(1, 400)
    return (1 + 2 * np.cos(np.asarray(angle)[..., None] * n) @ np.exp(-0.5 * np.asarray(variance) * n**2)) / TURN


@pytest.mark.parametrize("t", [1, 7, 30])
def test_step_is_a_wrapped_normal(t):
    x = np.array([3.0, -0.4])
    log_prob = jax.jit(lambda y: torus._Kernel().step(x, t).log_prob(y))(np.stack([GRID, np.roll(GRID, 100)], -1))
    variance = SPREAD[t] - SPREAD[t - 1]
    expected = np.log(np.maximum(series(GRID - x[0], variance) * series(np.roll(GRID, 100) - x[1], variance), 1e-9))
    np.testing.assert_allclose(np.maximum(log_prob, np.log(1e-9)), expected, atol=1e-4)


def test_a_step_of_the_widest_scale_is_exact():
    """Where the sum over turns counts most; also around a centre that was not wrapped."""
    for loc in (2.5, 2.5 + 5 * TURN):
        density = np.exp(torus._WrappedNormal(loc, 4.0).log_prob(GRID))
        np.testing.assert_allclose(density, series(GRID - loc, 16.0), rtol=1e-9)


def test_steps_compose_to_added_variances_and_keep_the_uniform_distribution():
    kernel, width = torus._Kernel(), TURN / len(GRID)
    grid, t = np.stack([GRID, GRID], -1), np.arange(1, 31)[:, None]
    # Of a step by the angle turned through, shape (T, angles): the coordinates are alike and independent.
    steps = np.exp(np.asarray(kernel.step(jnp.zeros(2), t).log_prob(grid)) / 2)
    np.testing.assert_allclose(steps.sum(-1) * width, 1, rtol=1e-10)  # over where it came from, too: uniform stays
    composed = np.cumprod(np.fft.fft(np.fft.ifftshift(steps, -1)) * width, 0)
    densities = np.fft.fftshift(np.fft.ifft(composed).real, -1) / width
    expected = np.stack([series(GRID, variance) for variance in SPREAD[1:]])
    np.testing.assert_allclose(densities, expected, atol=1e-9)
    np.testing.assert_allclose(kernel.stationary().log_prob(grid), -2 * np.log(TURN), rtol=1e-12)


def test_draws_are_of_the_wrapped_normal():
    x, num = np.array([3.0, -0.4]), 20_000
    drawn = np.asarray(torus._Kernel().step(x, 25).sample(jax.random.key(0), (num,)))
    assert np.abs(drawn).max() <= np.pi
    variance = SPREAD[25] - SPREAD[24]
    for n in (1, 2):
        turned = np.stack([np.cos(n * (drawn - x)), np.sin(n * (drawn - x))])
        expected = np.array([np.exp(-0.5 * n**2 * variance), 0])[:, None]
        assert (np.abs(turned.mean(1) - expected) < 3.5 * turned.std(1) / np.sqrt(num)).all()


def reversal():
    """q(x^(t-1) | x^t) of the page's data: a mixture over spots and over turns of normal bridges."""
    turns, log_weight = TURN * np.arange(-8, 9), np.log(WEIGHT)

    def reverse(x, t):
        before, after = (WIDTH**2 + jnp.asarray(SPREAD)[t - shift][..., None, None] for shift in (1, 0))
        share, after = (before / after)[..., None], after[..., None]
        way = ((x[..., None, :] - CENTRE + np.pi) % TURN - np.pi)[..., None] + turns  # (*batch, spot, angle, turn)
        of_turns = dist.Normal(0.0, jnp.sqrt(after)).log_prob(way)
        scale = jnp.sqrt(share * (after - before[..., None]))
        bridges = torus._WrappedNormal(CENTRE[..., None] + share * way, scale)
        of_spot = dist.MixtureSameFamily(dist.Categorical(logits=of_turns), bridges).to_event(1)
        of_spots = log_weight + jax.nn.logsumexp(of_turns, -1).sum(-1)
        return dist.MixtureSameFamily(dist.Categorical(logits=of_spots), of_spot)

    return dpm.Diffusion(torus._Kernel(), reverse, decode=lambda x1: reverse(x1, jnp.asarray(1)))


def density(x, variance):
    """Of the data after noise of a variance, by Fourier series."""
    of_angles = [[series(x[..., d] - CENTRE[j, d], WIDTH[j, d] ** 2 + variance) for d in (0, 1)] for j in range(3)]
    return np.einsum("j,j...->...", WEIGHT, np.prod(of_angles, 1))


def test_data_are_the_three_spots():
    x = np.array([[3.1, 2.5], [-3.1, 2.7], [0.2, 0.5], [1.5, -2.0]])
    np.testing.assert_allclose(np.exp(jax.jit(torus.data().log_prob)(x)), density(x, 0.0), rtol=1e-9)


def test_exact_reverse_has_weights_of_no_variance():
    """Each is log p(x^0) of the data, but for what is left between q(x^T) and pi, which is known as well."""
    built = reversal()
    x0 = np.asarray(torus.data().sample(jax.random.key(1), (6,)))
    options = {"params": {}, "key": jax.random.key(2), "num_particles": 5, "num_trajectories": 5, "progress": False}
    result = log_likelihood(lambda: built, x0, **options)
    left = -2 * np.log(TURN) - np.log(density(result.trajectories[:, :, -1], SPREAD[-1]))
    np.testing.assert_allclose(result.log_weight, np.log(density(x0, 0.0)) + left, atol=1e-9)
    assert np.abs(left).max() < 1e-3
    assert np.ptp(result.log_weight, 0).max() < 2e-3
    assert np.ptp(np.log(density(x0, 0.0))) > 0.5
