"""Output parameterisations: what a zero output means, what a true prediction gives, and the formulas between."""

from functools import cache
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import kl_divergence

import dpm_ppl as dpm
from dpm_ppl.outputs import (
    data_bernoulli,
    data_from_velocity,
    data_normal,
    full_normal,
    mixture_moments,
    noise_normal,
    noise_weight,
    residual_bernoulli,
    residual_normal,
    shifted_normal,
)
from dpm_ppl.schedules import constant_fraction, linear

T = 4
RNG = np.random.default_rng(0)
STEPS = np.arange(2, T + 1)[:, None]  # against a batch of 5
SHAPES = [(), (3,), (2, 2, 3)]


def gaussian(shape, *, erases=False):
    """A Gaussian kernel; one that erases ends with beta_T = 1 and alpha_bar_T = 0."""
    return dpm.GaussianKernel(constant_fraction(T) if erases else linear(T, first=0.1, last=0.7), shape)


def batch(shape):
    return RNG.normal(size=(5, *shape))


def bits(shape):
    return RNG.binomial(1, 0.5, (5, *shape))


def parts(normal):
    """Mean and standard deviation, broadcast to the full shape."""
    base = getattr(normal, "base_dist", normal)
    return tuple(np.broadcast_to(array, normal.shape()) for array in (base.loc, base.scale))


def logits(bernoulli):
    return np.asarray(getattr(bernoulli, "base_dist", bernoulli).logits)


def per_event(values, shape):
    """Values of steps 2..T, to broadcast against (T - 1, 5, *event)."""
    return np.asarray(values)[STEPS - 1].reshape(T - 1, 1, *(1,) * len(shape))


def assert_same_normal(a, b, rtol=1e-10):
    assert (a.batch_shape, a.event_shape) == (b.batch_shape, b.event_shape)
    for x, y in zip(parts(a), parts(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-12)


# The weights of the simple loss


@pytest.mark.parametrize("shape", SHAPES)
def test_weighted_kl_is_the_squared_error_of_the_noise(shape):
    """Exactly, at fixed points: with the posterior's variance without a constant, with another less its own."""
    kernel, x0, noise, predicted = gaussian(shape), batch(shape), batch(shape), batch(shape)
    signal = per_event(np.cumprod(1 - np.asarray(kernel.beta)), shape)
    xt = np.sqrt(signal) * x0 + np.sqrt(1 - signal) * noise
    posterior = kernel.posterior(x0, xt, STEPS)
    squared = np.sum((noise - predicted) ** 2, tuple(range(1, x0.ndim)))
    kl = kl_divergence(posterior, noise_normal(kernel, xt, STEPS, predicted))
    np.testing.assert_allclose(noise_weight(kernel, STEPS) * kl, np.broadcast_to(squared, kl.shape), rtol=1e-9)

    wide = 0.4 + 0.1 * STEPS  # sigma_t^2 of one's own
    variance = wide.reshape(T - 1, 1, *(1,) * len(shape))
    kl = kl_divergence(posterior, noise_normal(kernel, xt, STEPS, predicted, variance=variance))
    ratio = parts(posterior)[1] ** 2 / variance
    constant = 0.5 * np.sum(ratio - 1 - np.log(ratio), tuple(range(2, ratio.ndim)))
    weighted = noise_weight(kernel, STEPS, variance=wide) * (kl - constant)
    np.testing.assert_allclose(weighted, np.broadcast_to(squared, kl.shape), rtol=1e-9)


def test_noise_weight_is_the_papers():
    """Ho et al. 2020, eq. 12, at its own schedule and both of its variances."""
    beta, t = linear(1000), np.array([2, 3, 500, 1000])
    b, signal, before = beta[t - 1], np.cumprod(1 - beta)[t - 1], np.cumprod(1 - beta)[t - 2]
    kernel = dpm.GaussianKernel(beta, ())
    for variance in (b, b * (1 - before) / (1 - signal)):
        factor = b**2 / (2 * variance * (1 - b) * (1 - signal))
        np.testing.assert_allclose(noise_weight(kernel, t, variance=variance), 1 / factor, rtol=1e-9)
    np.testing.assert_allclose(noise_weight(kernel, t), 1 / factor, rtol=1e-9)


def test_noise_normal_knows_its_schedule_while_a_step_is_traced():
    """As `Diffusion` traces each reverse step it is given."""
    fine, erasing = gaussian((3,)), gaussian((3,), erases=True)
    loc = jax.eval_shape(lambda x: noise_normal(fine, x, jnp.asarray(2), x).base_dist.loc, np.ones(3))
    assert loc.shape == (3,)
    with pytest.raises(ValueError, match="every beta_t < 1"):
        jax.eval_shape(lambda x: noise_normal(erasing, x, jnp.asarray(2), x).base_dist.loc, np.ones(3))


# The paper's mean and variance


@pytest.mark.parametrize("erases", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_residual_normal_of_zero_is_the_kernel(shape, erases):
    kernel, x = gaussian(shape, erases=erases), batch(shape)
    assert_same_normal(residual_normal(kernel, x, STEPS, 0 * x, 0 * x), kernel.step(x, STEPS))


def test_residual_normal_is_the_papers():
    """Sigma = sigmoid(z_Sigma + logit beta), mu = (x - z) sqrt(1 - Sigma) + z."""
    kernel, x, z, z_sigma = gaussian((3,)), batch((3,)), batch((3,)), batch((3,))
    beta = per_event(kernel.beta, (3,))
    sigma = 1 / (1 + np.exp(-(z_sigma + np.log(beta / (1 - beta)))))
    mean, scale = parts(residual_normal(kernel, x, STEPS, z, z_sigma))
    np.testing.assert_allclose(mean, (x - z) * np.sqrt(1 - sigma) + z, rtol=1e-10)
    np.testing.assert_allclose(scale**2, sigma, rtol=1e-10)


@pytest.mark.parametrize("t", [2, T])
def test_residual_normal_has_finite_gradients_also_at_the_end(t):
    """Where beta_T = 1 the mean is z itself, the variance 1, and its logit infinite."""
    kernel, x, z, z_sigma = gaussian((3,), erases=True), batch((3,)), batch((3,)), batch((3,))

    @jax.jit
    def log_prob(x, z, z_sigma):
        return residual_normal(kernel, x, t, z, z_sigma).log_prob(jnp.ones(3)).sum()

    gradients = jax.grad(log_prob, (0, 1, 2))(x, z, z_sigma)
    assert all(np.isfinite(g).all() for g in gradients)
    if t == T:
        np.testing.assert_allclose(gradients[0], 0.0, atol=1e-14)
        np.testing.assert_allclose(gradients[1], 1 - z, rtol=1e-10)
        np.testing.assert_allclose(gradients[2], 0.0, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_shifted_normal_of_zero_is_the_kernel(shape):
    kernel, x = gaussian(shape), batch(shape)
    assert_same_normal(shifted_normal(kernel, x, STEPS, 0 * x, 0 * x), kernel.step(x, STEPS))


def test_shifted_normal_is_the_reference_codes():
    """Sigma = sigmoid(z_Sigma + logit beta), mu = x sqrt(1 - beta) + z sqrt(beta)."""
    kernel, x, z, z_sigma = gaussian((3,)), batch((3,)), batch((3,)), batch((3,))
    beta = per_event(kernel.beta, (3,))
    mean, scale = parts(shifted_normal(kernel, x, STEPS, z, z_sigma))
    np.testing.assert_allclose(mean, x * np.sqrt(1 - beta) + z * np.sqrt(beta), rtol=1e-10)
    np.testing.assert_allclose(scale**2, 1 / (1 + np.exp(-(z_sigma + np.log(beta / (1 - beta))))), rtol=1e-10)


def test_a_shift_that_finds_the_datum_is_small_at_every_step():
    """Of a state at its marginal's deviation: what each mean lacks at z = 0, over what a unit of z moves it."""
    kernel, t = dpm.GaussianKernel(linear(1000), ()), np.arange(2, 1001)
    x0, signal = 1.3, np.asarray(kernel.alpha_bar)[t]
    x = np.sqrt(signal) * x0 + np.sqrt(1 - signal)
    one = np.ones_like(x)
    lacking = kernel.posterior(x0 * one, x, t).mean - kernel.step(x, t).mean
    needed = {}
    for law in (shifted_normal, residual_normal):
        at_zero, at_one = (law(kernel, x, t, z * one, 0 * one).mean for z in (0, 1))
        needed[law] = np.abs(lacking / (at_one - at_zero))
    assert needed[shifted_normal].max() < 1.5
    assert needed[residual_normal].max() > 100
    np.testing.assert_allclose(needed[residual_normal][0], 2 / np.sqrt(1 - signal[0]), rtol=0.05)


# Predictions of the noise and of the data


MIXTURES = [
    ((0.8, -0.4, 0.0), (0.2, 1.6, 0.7)),
    ((0.5, 0.3, 0.1), (0.3, 2.0, 0.0), (0.2, -1.0, 1.2)),
    ((1.0, 0.0, 1.0),),
]


@pytest.mark.parametrize("mixture", MIXTURES, ids=len)
def test_mixture_moments_are_bayes_rule(mixture):
    """Against sums over the nodes of a quadrature of each normal."""
    kernel, x = gaussian((3,)), batch((3,))
    nodes, shares = np.polynomial.hermite_e.hermegauss(80)
    values = np.concatenate([m + s * nodes for _, m, s in mixture])
    prior = np.concatenate([w * shares / shares.sum() for w, _, _ in mixture])
    found = mixture_moments(kernel, x, STEPS, mixture)
    for i, t in enumerate(STEPS[:, 0]):
        signal = np.asarray(kernel.alpha_bar)[t]
        likelihood = np.exp(-0.5 * (x[..., None] - np.sqrt(signal) * values) ** 2 / (1 - signal))
        posterior = prior * likelihood / (prior * likelihood).sum(-1, keepdims=True)
        mean = posterior @ values
        np.testing.assert_allclose(found[0][i], mean, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(found[1][i], posterior @ values**2 - mean**2, rtol=1e-6)
        if len(mixture) == 1:
            np.testing.assert_allclose(found[0][i], np.sqrt(signal) * x, rtol=1e-12)
            np.testing.assert_allclose(found[1][i], np.full_like(x, 1 - signal), rtol=1e-12)


def test_mixture_moments_are_finite_and_sure_at_fine_steps_in_single_precision():
    """Of noise of a 150th, states at a single value are known to be there, and others to be where they are."""
    with jax.enable_x64(False):
        kernel = dpm.GaussianKernel(jnp.asarray([4.5e-5, 1e-5]), ())

        @jax.jit
        def at(x):
            return mixture_moments(kernel, x, jnp.asarray(1), ((0.8, -0.42, 0.0), (0.2, 1.7, 1.1)))

        x = jnp.asarray([-0.42, -0.3, 2.8, -40.0, 40.0])
        mean, variance = at(x)
        gradients = jax.vmap(jax.grad(lambda x: at(x)[0] + at(x)[1]))(x)
    np.testing.assert_allclose(mean[:3], x[:3], atol=1e-3)
    assert variance[0] < 1e-6
    np.testing.assert_allclose(variance[1:], 4.5e-5, rtol=2e-3)
    assert np.isfinite(gradients).all()


@pytest.mark.parametrize(
    "mixture", [((1.0, 0.0, -0.1),), ((0.5, 0.0, 1.0), (0.4, 0.0, 1.0)), ((0.0, 1.0, 1.0), (1.0, 0.0, 1.0))]
)
def test_what_is_no_mixture_is_refused(mixture):
    with pytest.raises(ValueError, match=r"positive weights that add up to 1.*got \(\("):
        mixture_moments(gaussian(()), batch(()), 2, mixture)


@pytest.mark.parametrize("shape", SHAPES)
def test_true_predictions_give_the_posterior(shape):
    """With the true noise, the true data or the true velocity, each is q(x^(t-1) | x^t, x^0)."""
    kernel, x0, noise = gaussian(shape), batch(shape), batch(shape)
    signal = per_event(kernel.alpha_bar[1:], shape)
    xt = np.sqrt(signal) * x0 + np.sqrt(1 - signal) * noise
    velocity = np.sqrt(signal) * noise - np.sqrt(1 - signal) * x0
    posterior = kernel.posterior(x0, xt, STEPS)
    assert_same_normal(noise_normal(kernel, xt, STEPS, noise), posterior)
    assert_same_normal(data_normal(kernel, xt, STEPS, x0), posterior)
    from_velocity = data_from_velocity(kernel, xt, STEPS, velocity)
    np.testing.assert_allclose(from_velocity, np.broadcast_to(x0, xt.shape), rtol=1e-9)


def test_velocity_zero_is_the_best_linear_guess():
    """For data of unit variance E[x0 x^t] / E[x^t x^t] = sqrt(alpha_bar_t)."""
    kernel, x = gaussian((3,)), batch((3,))
    expected = np.sqrt(np.cumprod(1 - np.asarray(kernel.beta)))[STEPS - 1][..., None] * x
    np.testing.assert_allclose(data_from_velocity(kernel, x, STEPS, 0 * x), expected, rtol=1e-12)


def test_a_variance_of_ones_own_leaves_the_mean():
    kernel, x, prediction = gaussian((3,)), batch((3,)), batch((3,))
    variance = np.exp(batch((3,)))
    for output in (noise_normal, data_normal):
        mean, scale = parts(output(kernel, x, STEPS, prediction, variance=variance))
        np.testing.assert_allclose(mean, parts(output(kernel, x, STEPS, prediction))[0], rtol=1e-12)
        np.testing.assert_allclose(scale**2, np.broadcast_to(variance, scale.shape), rtol=1e-12)


def test_data_normal_where_no_signal_is_left():
    kernel, x, x0 = gaussian((3,), erases=True), batch((3,)), batch((3,))
    assert_same_normal(data_normal(kernel, x, T, x0), kernel.marginal(x0, T - 1))  # x^T says nothing of x^(T-1)
    gradient = jax.grad(lambda x0: data_normal(kernel, x, T, x0).log_prob(x).sum())(x0)
    assert np.isfinite(gradient).all()
    assert (gradient != 0).all()


def test_noise_says_nothing_where_no_signal_is_left():
    x = batch((3,))
    with pytest.raises(ValueError, match="Expected every beta_t < 1 .* of the noise; got beta_t = 1.*data_normal"):
        noise_normal(gaussian((3,), erases=True), x, 2, x)


# Full covariance


def test_full_normal_of_zero_scale():
    kernel, x, x0 = gaussian((3,)), batch((3,)), batch((3,))
    normal = full_normal(kernel, x, STEPS, x0, np.zeros((5, 6)))
    assert (normal.batch_shape, normal.event_shape) == ((T - 1, 5), (3,))
    covariance = per_event(kernel.beta, (3,))[..., None] * np.eye(3)
    np.testing.assert_allclose(normal.covariance_matrix, np.broadcast_to(covariance, (T - 1, 5, 3, 3)), atol=1e-14)
    np.testing.assert_allclose(normal.mean, parts(kernel.posterior(x0, x, STEPS))[0], rtol=1e-12)


def test_full_normal_has_the_documented_cholesky_factor():
    """Logs of the diagonal, then the strict lower triangle row by row, in units of sqrt(beta_t)."""
    kernel, x, x0, scale = gaussian((3,)), batch((3,)), batch((3,)), RNG.normal(size=(5, 6))
    normal = full_normal(kernel, x, STEPS, x0, scale)
    for i, t in enumerate(STEPS[:, 0]):
        for n in range(5):
            a, b, c, ab, ac, bc = scale[n]
            factor = np.array([[np.exp(a), 0, 0], [ab, np.exp(b), 0], [ac, bc, np.exp(c)]])
            factor *= np.sqrt(kernel.beta[t - 1])
            np.testing.assert_allclose(normal.covariance_matrix[i, n], factor @ factor.T, rtol=1e-10)


# Bits


@pytest.mark.parametrize("erases", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_residual_bernoulli_of_zero_is_the_kernel(shape, erases):
    beta = constant_fraction(T) if erases else linear(T, first=0.1, last=0.7)
    kernel, x = dpm.BernoulliKernel(beta, shape, 0.2), bits(shape)
    output = residual_bernoulli(kernel, x, STEPS, np.zeros(x.shape))
    assert (output.batch_shape, output.event_shape) == ((T - 1, 5), shape)
    rate = (1 - per_event(beta, shape)) * x + per_event(beta, shape) * 0.2
    np.testing.assert_allclose(logits(output), np.log(rate / (1 - rate)), rtol=1e-10)
    raised = logits(residual_bernoulli(kernel, x, STEPS, np.full(x.shape, 0.7)))
    np.testing.assert_allclose(raised, np.log(rate / (1 - rate)) + 0.7, rtol=1e-10)


@pytest.mark.parametrize("output", [residual_bernoulli, data_bernoulli])
@pytest.mark.parametrize("t", [1, 2, T])
def test_gradients_of_bits_are_finite(output, t):
    """At t = 1 the posterior is certain; at t = T, beta_T = 1, x^T says nothing."""
    kernel, x = dpm.BernoulliKernel(constant_fraction(T), (3,), 0.2), bits((3,))
    score = jax.jit(jax.value_and_grad(lambda z: output(kernel, x, t, z).log_prob(1 - x).sum()))
    for z in (np.zeros(x.shape), 30 * RNG.normal(size=x.shape), np.full(x.shape, 800.0)):
        value, gradient = score(z)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
    assert (score(RNG.normal(size=x.shape))[1] != 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_data_bernoulli_averages_the_posterior(shape):
    """P(x^(t-1) = 1 | x^t) = sum over x0 of P(x0) q(x^(t-1) = 1 | x^t, x0), Bayes' rule written out; t = 1 too."""
    kernel, x, z = dpm.BernoulliKernel(constant_fraction(T), shape, 0.2), bits(shape), RNG.normal(size=(5, *shape))
    beta, p1 = constant_fraction(T), 1 / (1 + np.exp(-z))

    def transition(to, came, keep):  # kept with probability keep, redrawn from B(0.2) otherwise
        return keep * (to == came) + (1 - keep) * np.where(np.equal(to, 1), 0.2, 0.8)

    for t in range(1, T + 1):
        signal = np.prod(1 - beta[: t - 1])
        expected = np.zeros(x.shape)
        for x0, probability in ((0, 1 - p1), (1, p1)):
            one, zero = (transition(b, x0, signal) * transition(x, b, 1 - beta[t - 1]) for b in (1, 0))
            expected += probability * one / (one + zero)
        rate = 1 / (1 + np.exp(-logits(data_bernoulli(kernel, x, t, z))))
        np.testing.assert_allclose(rate, expected, rtol=1e-10, err_msg=f"t = {t}")


# 3 sites, an asymmetric data set, all of q(x^0, x^(t-1), x^t)

BITS = np.array(list(product([0, 1], repeat=3)))
DATA = np.array([0.02, 0.31, 0.0, 0.12, 0.25, 0.03, 0.09, 0.18])


@cache
def joint(t):
    """q(x^0) q(x^(t-1) | x^0) q(x^t | x^(t-1)) over the 8 x 8 x 8 states, by products of one step's matrix."""

    def matrix(s):
        rate = (1 - constant_fraction(T)[s - 1]) * BITS + constant_fraction(T)[s - 1] * 0.2
        return np.prod(np.where(BITS[None] == 1, rate[:, None], 1 - rate[:, None]), -1)

    before = np.linalg.multi_dot([np.eye(8), *map(matrix, range(1, t)), np.eye(8)])
    return DATA[:, None, None] * before[:, :, None] * matrix(t)[None]


def true_data_logits(t):
    """The logits of P(x^0_i = 1 | x^t), from the joint: (8 states of x^t, 3)."""
    given = joint(t).sum(1) / joint(t).sum((0, 1))
    rate = given.T @ BITS
    return np.log(rate / (1 - rate))


@pytest.mark.parametrize("t", [2, 3, 4])
def test_data_bernoulli_with_the_true_data_is_the_best_factorised_step(t):
    """The sites interact, yet given x^0 they do not, so site i of x^(t-1) depends on x^0_i and x^t_i alone.

    Averaging over the true P(x^0_i | x^t) then gives the exact marginals of q(x^(t-1) | x^t), and no other factorised
    step has a smaller expected divergence.
    """
    kernel = dpm.BernoulliKernel(constant_fraction(T), (3,), 0.2)
    best = true_data_logits(t)
    reverse = joint(t).sum(0) / joint(t).sum((0, 1))  # q(x^(t-1) | x^t): (8, 8)
    rate = 1 / (1 + np.exp(-logits(data_bernoulli(kernel, BITS, t, best))))
    np.testing.assert_allclose(rate, reverse.T @ BITS, rtol=1e-10)
    factorised = np.prod(np.where(BITS[:, None] == 1, rate, 1 - rate), -1)
    if t < T:
        assert abs(factorised - reverse).max() > 0.01  # the best there is, not the truth

    @jax.jit
    def cross_entropy(z):
        return -jnp.sum(joint(t).sum(0) * data_bernoulli(kernel, BITS, t, z).log_prob(BITS[:, None]))

    np.testing.assert_allclose(jax.grad(cross_entropy)(best), 0.0, atol=1e-12)
    for direction in RNG.normal(size=(4, 8, 3)):
        assert cross_entropy(best + 0.3 * direction) > cross_entropy(best) + 1e-5


# Single precision


def test_rates_next_to_zero_and_one_survive_single_precision():
    """Logits carry rates of e^-40 that probabilities in float32 would round to 0 or 1, over a long chain."""
    beta, t = constant_fraction(10_000), np.array([1, 2, 3, 100, 5000, 9999, 10_000])[:, None]
    x = np.repeat([[0], [1]], 5, 0).reshape(-1, 1)
    z = np.tile([-40.0, -15.0, 0.3, 15.0, 40.0], 2).reshape(-1, 1)

    def evaluate():
        @jax.jit
        def outputs(x, z):
            kernel = dpm.BernoulliKernel(beta, (1,), 0.2)
            return [output(kernel, x, t, z).base_dist.logits for output in (residual_bernoulli, data_bernoulli)]

        return [np.asarray(array, np.float64) for array in outputs(x, z)]

    exact = evaluate()
    with jax.enable_x64(False):
        single = evaluate()
    for a, b in zip(exact, single, strict=True):
        assert abs(a).max() > 30
        np.testing.assert_allclose(b, a, rtol=2e-6, atol=2e-6)


def test_normal_outputs_keep_single_precision_where_little_noise_is_added():
    """1 - alpha_bar_2 = 2e-4 by subtraction would have 4 digits left of 7."""
    beta, t = linear(1000, first=1e-5, last=0.02), np.arange(1, 1001)
    x, z = RNG.normal(size=(1000, 1)), RNG.normal(size=(1000, 1))

    def evaluate():
        @jax.jit
        def outputs(x, z):
            kernel = dpm.GaussianKernel(beta, (1,))
            pulled = noise_normal(kernel, jnp.zeros_like(x), t[1:, None], z, variance=1.0).base_dist.loc[:, 0]
            step = residual_normal(kernel, x, t, z, z).base_dist
            return pulled, data_from_velocity(kernel, jnp.zeros_like(x), t, z), step.loc, step.scale

        return [np.asarray(array, np.float64) for array in outputs(x, z)]

    exact = evaluate()
    with jax.enable_x64(False):
        single = evaluate()
    for a, b in zip(exact, single, strict=True):
        np.testing.assert_allclose(b, a, rtol=3e-6, atol=5e-7)  # terms of up to 4 cancel, each known to 2e-7
