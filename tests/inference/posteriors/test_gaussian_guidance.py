"""What r says of a Gaussian step, against products and conditionals of normals, and Laplace's formula."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference.posteriors import gaussian_guidance
from dpm_ppl.inference.posteriors.conditioning import Target
from dpm_ppl.programs import instantiate
from tests.oracles import COV, MEAN, GaussianOracle

ORACLE = GaussianOracle.exact(25, beta_1=0.01, alpha_bar_T=0.002)
LOC = np.array([0.4, -1.2, 2.0])
SPREAD = np.array([[1.3, 0.4, -0.2], [0.4, 0.8, 0.1], [-0.2, 0.1, 0.5]])
ROWS = np.array([[1.0, 0.6, -0.5], [-0.3, 0.8, 0.2]])
NOISE = np.array([[0.3, 0.1], [0.1, 0.2]])
Y = np.array([2.5, -1.0])
FULL = dist.MultivariateNormal(LOC, SPREAD)


def log_normal(y, mean, cov):
    off = y - mean
    return -0.5 * (off @ np.linalg.solve(cov, off) + np.linalg.slogdet(2 * np.pi * cov)[1])


def times(mean, cov, rows, noise, y):
    """Log E r, and mean and covariance of N(mean, cov) times N(y; rows x, noise)."""
    spread = rows @ cov @ rows.T + noise
    gain = np.linalg.solve(spread, rows @ cov).T
    return log_normal(y, rows @ mean, spread), mean + gain @ (y - rows @ mean), cov - gain @ rows @ cov


def linear(x):
    return dist.MultivariateNormal(jnp.asarray(ROWS) @ x, NOISE, validate_args=False).log_prob(Y)


def proposal(move):
    """Mean and covariance of a normal move."""
    tril = np.asarray(move.scale_tril[0])
    factor = tril @ np.asarray(move.factor[0])
    return np.asarray(move.loc[0]) + tril @ np.asarray(move.shift[0]), factor @ factor.T


def test_the_product_with_a_linear_gaussian_r_is_the_closed_form():
    log_mean, move = gaussian_guidance.product(FULL, linear, None, full=True)
    for got, expected in zip((log_mean, *proposal(move)), times(LOC, SPREAD, ROWS, NOISE, Y), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_coordinates_taken_one_by_one_are_a_factorised_product():
    scale = np.sqrt(np.diag(SPREAD))

    def log_r(x):
        return jnp.sum(dist.Normal(jnp.asarray([2.0, -1.0, 0.5]) * x, 0.3).log_prob(jnp.arange(3.0)))

    log_mean, move = gaussian_guidance.product(dist.Normal(LOC, scale).to_event(1), log_r, None, full=False)
    expected, mean, cov = times(LOC, np.diag(scale**2), np.diag([2.0, -1.0, 0.5]), 0.09 * np.eye(3), np.arange(3.0))
    np.testing.assert_allclose(log_mean, expected, rtol=1e-9)
    drawn = np.asarray(move.loc + (move.scale_tril[..., 0] * move.shift))[:, 0]
    np.testing.assert_allclose(drawn, mean, rtol=1e-9)
    np.testing.assert_allclose((move.scale_tril * move.factor).ravel() ** 2, np.diag(cov), rtol=1e-9)


def test_any_smooth_r_is_expanded_to_second_order():
    def log_r(x):
        return jnp.sin(x[0]) - 0.3 * x[1] ** 2 * x[2] - 0.1 * jnp.exp(x[2])

    slope, curvature = np.asarray(jax.grad(log_r)(LOC)), np.asarray(jax.hessian(log_r)(LOC))
    log_mean, _ = gaussian_guidance.product(FULL, log_r, None, full=True)
    inner = np.eye(3) - SPREAD @ curvature
    assert np.linalg.eigvals(inner).min() > 1
    expected = log_r(LOC) + 0.5 * slope @ np.linalg.solve(inner, SPREAD @ slope) - 0.5 * np.linalg.slogdet(inner)[1]
    np.testing.assert_allclose(log_mean, expected, rtol=1e-9)


def test_where_log_r_is_not_concave_the_guidance_is_bounded():
    """A saddle, whose factor with raised pivots would send u to hundreds of standard deviations."""

    def log_r(x):
        return -0.5 * ((3.0 - x[0] * x[1] * 4.0) / 0.1) ** 2 - x[2] ** 2

    log_mean, move = gaussian_guidance.product(FULL, log_r, None, full=True)
    assert np.sqrt(np.mean(move.shift**2)) < 2 + 1e-9
    assert np.isfinite(log_mean)
    assert log_mean < log_r(LOC) + 0.5 * 3 * 2.0**2


@pytest.mark.parametrize("mask", [[False, True, False], [True, False, True], [True] * 3, [False] * 3])
def test_known_coordinates_are_conditioned_on(mask):
    mask, value = np.array(mask), np.array([1.0, -2.0, 0.5])
    rows, y = np.concatenate([np.eye(3)[mask], ROWS]), np.concatenate([value[mask], Y])
    noise = np.zeros((len(rows), len(rows)))
    noise[mask.sum() :, mask.sum() :] = NOISE
    expected = times(LOC, SPREAD, rows, noise, y)
    with jax.debug_nans(True):
        known = jnp.asarray(mask), jnp.asarray(value)
        log_mean, move = gaussian_guidance.product(FULL, linear, known, full=True)
    for got, exactly in zip((log_mean, *proposal(move)), expected, strict=True):
        np.testing.assert_allclose(got, exactly, rtol=1e-9, atol=1e-12)
    x, _ = move.draw(jax.random.key(0))
    assert (np.asarray(x) == value)[mask].all()


@pytest.mark.parametrize("t", [2, 9, 16])  # later ones have little signal
def test_a_step_of_an_exact_diffusion_is_guided_exactly(t):
    r"""r_t = E[r(x^0)|x^t] and q = p(x^(t-1)|x^t, y): jointly normal, all of it, under q(x^0) q(x^(t-1), x^t|x^0)."""
    diffusion = instantiate(ORACLE.diffusion, ORACLE.params)
    beta, signal = (np.asarray(a) for a in ORACLE.schedule())
    rows, y, x = ROWS[:, :2], Y, np.array([1.3, -0.8])
    a, b, keep = np.sqrt(signal[t - 1]), np.sqrt(signal[t]), np.sqrt(1 - beta[t - 1])
    before = a**2 * COV + (1 - a**2) * np.eye(2)
    after = b**2 * COV + (1 - b**2) * np.eye(2)
    # Of (x^0, x^(t-1), x^t).
    joint = np.block([[COV, a * COV, b * COV], [a * COV, before, keep * before], [b * COV, keep * before, after]])
    mean = np.concatenate([MEAN, a * MEAN, b * MEAN])
    gain = np.linalg.solve(after, joint[4:, :4]).T
    given, cov = mean[:4] + gain @ (x - mean[4:]), joint[:4, :4] - gain @ joint[4:, :4]
    log_mean, mean, cov = times(given, cov, np.pad(rows, ((0, 0), (0, 2))), NOISE, y)

    def log_r(x0):
        return dist.MultivariateNormal(jnp.asarray(rows) @ x0, NOISE, validate_args=False).log_prob(y)

    target = Target(diffusion, log_r, None)
    got, move = gaussian_guidance.posterior_step(target, jnp.asarray(x), jnp.asarray(t), full=True)
    np.testing.assert_allclose(got, log_mean, rtol=1e-6)
    for a, b in zip(proposal(move), (mean[2:], cov[2:, 2:]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("slope", [[0.3, -0.2], [300.0, 10.0]])
def test_a_shift_is_sigma_times_the_gradient_at_most_two_deviations(slope):
    cov = SPREAD[:2, :2]
    p = dist.MultivariateNormal(LOC[:2], cov)
    mean, spread = proposal(gaussian_guidance.shifted(p, jnp.asarray(slope)))
    np.testing.assert_allclose(spread, cov, rtol=1e-9)
    shift = np.linalg.solve(np.linalg.cholesky(cov), mean - LOC[:2])
    whole = np.linalg.cholesky(cov).T @ slope
    long = np.sqrt(np.mean(whole**2))
    np.testing.assert_allclose(shift, whole * min(1, 2 / long), rtol=1e-9)


def test_a_wiggle_of_the_network_makes_no_data_certain_where_little_signal_is_left():
    spread = np.array([1.3, 1.05])  # of normal data
    kernel = dpm.GaussianKernel(dpm.schedules.log_snr(30, first=5.0, last=-8.0), (2,))

    def reverse(x, t):
        signal, noise = (a[t][..., None] for a in (kernel.alpha_bar, kernel.one_minus_alpha_bar))
        x0 = jnp.sqrt(signal) * spread / (signal * spread + noise) * x + 0.03 * jnp.sin(3 * x)
        return dpm.outputs.data_normal(kernel, x, t, x0)

    target = Target(dpm.Diffusion(kernel, reverse), lambda x: jnp.zeros(()), None)
    t = jnp.asarray(30)
    forms = gaussian_guidance.affine(kernel, t, full=True)
    x = 1.5 * jax.random.normal(jax.random.key(0), (200, 2))
    _, x0 = jax.vmap(lambda x: gaussian_guidance.uncertain(target, x, forms, t))(x)
    tril = np.asarray(x0.scale_tril[:, 0])
    variances = np.linalg.eigvalsh(tril @ tril.swapaxes(-1, -2))
    assert variances.min() > 0.98
    assert variances.max() > 2  # by the wiggle: it is not R everywhere


def test_where_no_signal_is_left_the_step_stays_finite():
    kernel = dpm.GaussianKernel(dpm.schedules.constant_fraction(4), (2,))  # beta_T = 1
    with jax.debug_nans(True):
        target = Target(
            dpm.Diffusion(kernel, lambda x, t: dist.Normal(0.2 * x, 0.5).to_event(1)),
            lambda x: -jnp.sum((x - 3) ** 2),
            None,
        )
        log_mean, move = gaussian_guidance.posterior_step(target, jnp.array([0.5, -2.0]), jnp.asarray(4), full=True)
    # x^0 is predicted by (mean - 0 x^t) / c0, c0 = 1/2, with variance 1.
    expected = times(np.array([0.2, -0.8]), np.eye(2), np.eye(2), 0.5 * np.eye(2), np.full(2, 3.0))[0]
    np.testing.assert_allclose(log_mean, expected + np.log(np.pi), rtol=1e-9)
    assert np.isfinite(proposal(move)[1]).all()


@pytest.mark.parametrize("full", [False, True])
def test_expanded_laws_are_those_written_out(full):
    """Where several coordinates have one mean or scale, as numbers without a shape or under `expand`."""
    written = dist.Normal(jnp.full(3, 0.4), 0.7 * jnp.ones(3)).to_event(1)
    for law in (dist.Normal(0.4, 0.7).expand((3,)), dist.Normal(jnp.full((1,), 0.4), 0.7).expand((3,))):
        found, is_normal = gaussian_guidance.moments(law.to_event(1), full=full)
        expected, _ = gaussian_guidance.moments(written, full=full)
        assert is_normal
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
