"""The chains as distributions: explicit sums, all trajectories of a small chain, exact moments of an affine one."""

from functools import cache, partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import dpm_ppl as dpm
from dpm_ppl.schedules import constant_fraction

# An affine Gaussian chain: correlated, off centre, another map at every step

T, D = 4, 2
BETA = np.array([0.15, 0.3, 0.55, 0.8])
RNG = np.random.default_rng(0)
MATRIX = 0.5 * np.eye(D) + 0.4 * RNG.normal(size=(T + 1, D, D))  # of step t at [t]
SHIFT = RNG.normal(size=(T + 1, D))
SCALE = RNG.uniform(0.3, 0.9, size=(T + 1, D))
X0 = np.array([1.4, -0.6])


def affine_reverse(matrix=MATRIX, shift=SHIFT, scale=SCALE):
    def reverse(x, t):
        mean = jnp.einsum("...ij,...j->...i", jnp.asarray(matrix)[t], x) + jnp.asarray(shift)[t]
        return dist.Normal(mean, jnp.asarray(scale)[t]).to_event(1)

    return reverse


@cache
def affine():
    return dpm.Diffusion(dpm.GaussianKernel(BETA, (D,)), affine_reverse())


@jax.jit
def score(chain, trajectory):
    return chain.log_prob(trajectory)


@partial(jax.jit, static_argnums=2)
def draw(chain, key, sample_shape=()):
    return chain.sample(jax.random.key(key), sample_shape)


def log_normal(x, mean, scale):
    return -0.5 * np.sum(((x - mean) / scale) ** 2 + np.log(2 * np.pi * np.broadcast_to(scale, np.shape(x)) ** 2), -1)


def forward_log_prob(trajectory, x0):
    """sum_t log q(x^t | x^(t-1)), step by step; trajectory of shape (..., T, D)."""
    states = [x0, *np.moveaxis(np.asarray(trajectory), -2, 0)]
    return sum(
        log_normal(states[t], np.sqrt(1 - BETA[t - 1]) * states[t - 1], np.sqrt(BETA[t - 1])) for t in range(1, T + 1)
    )


def reverse_log_prob(trajectory):
    """log pi(x^T) + sum_{t >= 2} log p(x^(t-1) | x^t), step by step."""
    states = [None, *np.moveaxis(np.asarray(trajectory), -2, 0)]
    steps = (log_normal(states[t - 1], states[t] @ MATRIX[t].T + SHIFT[t], SCALE[t]) for t in range(2, T + 1))
    return log_normal(states[T], 0.0, 1.0) + sum(steps)


# A chain of bits small enough to write down: 3 sites, 4 steps, 4096 trajectories

RATE = 0.2
BIT_BETA = constant_fraction(4)
WEIGHT = RNG.normal(size=(5, 3, 3))  # of step t at [t]
BIAS = RNG.normal(size=(5, 3))
BITS = np.array(list(product([0, 1], repeat=3)))
PATHS = np.array(list(product(range(8), repeat=4)))  # indices into BITS of x^1..x^4
TRAJECTORIES = BITS[PATHS]  # (4096, T, 3)


@cache
def bits():
    kernel = dpm.BernoulliKernel(BIT_BETA, (3,), RATE)

    def reverse(x, t):
        logits = jnp.einsum("...ij,...j->...i", jnp.asarray(WEIGHT)[t], x) + jnp.asarray(BIAS)[t]
        return dist.Bernoulli(logits=logits).to_event(1)

    return dpm.Diffusion(kernel, reverse)


def bit_probability(rates):
    """P(to | from) over all pairs of the 8 states: [from, to], from the rates of the 3 sites at each `from`."""
    return np.prod(np.where(BITS[None] == 1, rates[:, None], 1 - rates[:, None]), -1)


FORWARD_MATRIX = [None, *(bit_probability((1 - b) * BITS + b * RATE) for b in BIT_BETA)]
REVERSE_MATRIX = [bit_probability(1 / (1 + np.exp(-(BITS @ WEIGHT[t].T + BIAS[t])))) for t in range(5)]
PI = bit_probability(np.full((1, 3), RATE))[0]
DATUM = 5  # x0 = 1 0 1


def forward_probabilities():
    at = np.concatenate([np.full((len(PATHS), 1), DATUM), PATHS], 1)
    return np.prod([FORWARD_MATRIX[t][at[:, t - 1], at[:, t]] for t in range(1, 5)], 0)


def reverse_probabilities():
    steps = [REVERSE_MATRIX[t][PATHS[:, t - 1], PATHS[:, t - 2]] for t in (2, 3, 4)]
    return PI[PATHS[:, -1]] * np.prod(steps, 0)


# Densities


def test_log_prob_is_the_sum_over_steps():
    trajectory, x0 = RNG.normal(size=(6, T, D)), RNG.normal(size=(6, D))
    forward, reverse = dpm.ForwardChain(affine(), x0), dpm.ReverseChain(affine())
    np.testing.assert_allclose(score(forward, trajectory), forward_log_prob(trajectory, x0), rtol=1e-12)
    np.testing.assert_allclose(score(reverse, trajectory), reverse_log_prob(trajectory), rtol=1e-12)


def test_every_trajectory_of_bits_has_its_probability():
    forward = np.exp(score(dpm.ForwardChain(bits(), BITS[DATUM]), TRAJECTORIES))
    reverse = np.exp(score(dpm.ReverseChain(bits()), TRAJECTORIES))
    np.testing.assert_allclose([forward.sum(), reverse.sum()], 1.0, rtol=1e-12)
    np.testing.assert_allclose(forward, forward_probabilities(), atol=1e-15)
    np.testing.assert_allclose(reverse, reverse_probabilities(), atol=1e-15)


def test_marginals_of_the_forward_chain_are_the_kernels():
    chain = dpm.ForwardChain(bits(), BITS[DATUM])
    probability = np.exp(score(chain, TRAJECTORIES))
    t = np.arange(1, 5)
    expected = np.exp(chain.kernel.marginal(BITS[DATUM], t[:, None]).log_prob(BITS))
    marginals = [np.bincount(PATHS[:, i - 1], probability) for i in t]
    np.testing.assert_allclose(marginals, expected, atol=1e-14)


# Samples


def num_standard_errors(samples, mean, variance):
    return abs(np.mean(samples, 0) - mean) / np.sqrt(variance / len(samples))


@pytest.mark.parametrize(
    ("chain", "probabilities"),
    [
        (lambda: dpm.ForwardChain(bits(), BITS[DATUM]), forward_probabilities),
        (lambda: dpm.ReverseChain(bits()), reverse_probabilities),
    ],
    ids=["forward", "reverse"],
)
def test_samples_of_bits_have_their_probabilities(chain, probabilities):
    samples = draw(chain(), 1, (40_000,))
    at = samples @ np.array([4, 2, 1])
    expected = probabilities()
    for i in range(4):
        for j in range(i, 4):  # the joint frequencies of every two steps
            frequency = np.bincount(8 * at[:, i] + at[:, j], minlength=64) / len(at)
            exact = np.bincount(8 * PATHS[:, i] + PATHS[:, j], expected, minlength=64)
            error = abs(frequency - exact) / np.sqrt(exact * (1 - exact) / len(at) + 1e-8)
            assert error.max() < 4.5, (i + 1, j + 1)
    log_probs = score(chain(), samples)
    log_expected = np.log(expected, where=expected > 0, out=np.zeros(len(expected)))
    mean = np.sum(expected * log_expected)
    assert num_standard_errors(log_probs, mean, np.sum(expected * (log_expected - mean) ** 2)) < 3


def gaussian_moments(first_mean, first_covariance, steps):
    """Exact mean and covariance of the joint normal of x_1 ~ N(first), x_(i+1) = A x_i + b + scale * noise."""
    means, covariance = [first_mean], [[first_covariance]]
    for matrix, shift, scale in steps:
        means.append(matrix @ means[-1] + shift)
        variance = matrix @ covariance[-1][-1] @ matrix.T + np.diag(scale**2)
        across = [matrix @ block for block in covariance[-1]]
        for row, block in zip(covariance, across, strict=True):
            row.append(block.T)
        covariance.append([*across, variance])
    return np.concatenate(means), np.block(covariance)


def forward_moments():
    def step(t):
        return np.sqrt(1 - BETA[t - 1]) * np.eye(D), np.zeros(D), np.full(D, np.sqrt(BETA[t - 1]))

    matrix, _, scale = step(1)
    return gaussian_moments(matrix @ X0, np.diag(scale**2), [step(t) for t in range(2, T + 1)])


def reverse_moments():
    """In the order x^T, ..., x^1."""
    return gaussian_moments(np.zeros(D), np.eye(D), [(MATRIX[t], SHIFT[t], SCALE[t]) for t in range(T, 1, -1)])


@pytest.mark.parametrize(
    ("chain", "moments", "order"),
    [
        (lambda: dpm.ForwardChain(affine(), X0), forward_moments, slice(None)),
        (lambda: dpm.ReverseChain(affine()), reverse_moments, slice(None, None, -1)),
    ],
    ids=["forward", "reverse"],
)
def test_samples_have_the_exact_moments(chain, moments, order):
    """All means, and all covariances within and between steps, each within 4.5 standard errors of 44."""
    samples = np.asarray(draw(chain(), 2, (40_000,)))[:, order].reshape(-1, T * D)
    mean, covariance = moments()
    variance = np.diag(covariance)
    assert num_standard_errors(samples, mean, variance).max() < 4.5
    products = np.einsum("ni,nj->nij", samples - mean, samples - mean)
    assert num_standard_errors(products, covariance, np.outer(variance, variance) + covariance**2).max() < 4.5


def test_samples_and_scores_agree_on_the_entropy():
    """E log q = -(sum of the steps' entropies), and log q has the variance D/2 of each step."""
    entropy = 0.5 * D * np.log(2 * np.pi * np.e * BETA).sum()
    chain = dpm.ForwardChain(affine(), X0)
    log_prob = score(chain, draw(chain, 3, (40_000,)))
    assert num_standard_errors(log_prob, -entropy, 0.5 * D * T) < 3
    chain = dpm.ReverseChain(affine())
    entropy = 0.5 * D * np.log(2 * np.pi * np.e) * T + np.log(SCALE[2:]).sum()
    log_prob = score(chain, draw(chain, 4, (40_000,)))
    assert num_standard_errors(log_prob, -entropy, 0.5 * D * T) < 3


# Batches


def test_sample_shapes_and_batches_keep_each_datum_apart():
    """Data a thousand apart: a trajectory that started from another's datum would have no density at all."""
    x0 = 1000.0 * np.arange(6).reshape(3, 2, 1) + np.array([0.0, 500.0])
    chain = dpm.ForwardChain(affine(), x0)
    assert (chain.batch_shape, chain.event_shape) == ((3, 2), (T, D))
    samples = draw(chain, 5, (5, 7))
    scores = score(chain, samples)
    assert scores.shape == (5, 7, 3, 2)
    np.testing.assert_allclose(scores, forward_log_prob(samples, x0), rtol=1e-9)
    assert (scores > -40).all()
    assert len(np.unique(samples)) == samples.size  # no two share their noise


def test_images_and_scalars():
    """Event shapes () and (2, 2, 3): the same density, coordinate by coordinate."""
    x0, trajectory = RNG.normal(size=(4, 12)), RNG.normal(size=(4, T, 12))

    def scores(shape, x0, trajectory):
        kernel = dpm.GaussianKernel(BETA, shape)
        diffusion = dpm.Diffusion(kernel, kernel.step)
        chains = dpm.ForwardChain(diffusion, x0), dpm.ReverseChain(diffusion)
        assert chains[0].batch_shape == x0.shape[: x0.ndim - len(shape)]
        return np.array([score(chain, trajectory) for chain in chains])

    vector = scores((12,), x0, trajectory)
    image = scores((2, 2, 3), x0.reshape(4, 2, 2, 3), trajectory.reshape(4, T, 2, 2, 3))
    np.testing.assert_allclose(image, vector, rtol=1e-12)
    scalar = scores((), x0, np.moveaxis(trajectory, 1, -1))
    np.testing.assert_allclose(scalar.sum(-1), vector, rtol=1e-12)
    np.testing.assert_allclose(vector[0], forward_log_prob(trajectory, x0), rtol=1e-12)


def test_a_plate_draws_and_scores_each_datum_by_itself():
    diffusion, x0 = affine(), RNG.normal(size=(3, D))

    def program():
        with numpyro.plate("data", 3):
            numpyro.sample("reverse", dpm.ReverseChain(diffusion))
            numpyro.sample("forward", dpm.ForwardChain(diffusion, x0))

    trace = handlers.trace(handlers.seed(program, 0)).get_trace()
    drawn = {name: trace[name]["value"] for name in ("reverse", "forward")}
    assert len(np.unique(drawn["reverse"])) == 3 * T * D
    expected_scores = {"reverse": reverse_log_prob(drawn["reverse"]), "forward": forward_log_prob(drawn["forward"], x0)}
    for name, expected in expected_scores.items():
        scores = score(trace[name]["fn"], drawn[name])
        assert scores.shape == (3,)
        np.testing.assert_allclose(scores, expected, rtol=1e-12)
    wider = dpm.ReverseChain(diffusion).expand([2, 3])
    np.testing.assert_allclose(score(wider, drawn["reverse"]), np.stack(2 * [reverse_log_prob(drawn["reverse"])]))


def test_support_is_the_kernels_states():
    assert dpm.ReverseChain(affine()).support(jnp.ones((T, D)))
    assert not dpm.ReverseChain(affine()).support(jnp.ones((T, D)).at[2, 1].set(jnp.nan))
    inside = dpm.ReverseChain(bits()).support(jnp.asarray(TRAJECTORIES[:2]).at[1, 0, 0].set(2))
    np.testing.assert_array_equal(inside, [True, False])


# Gradients through samples


def test_gradient_through_a_forward_sample_is_the_chain_rule():
    """x^t = sqrt(1 - beta_t) x^(t-1) + sqrt(beta_t) noise, the noise read off the sample itself."""

    def sample(beta, x0):
        kernel = dpm.GaussianKernel(beta, (D,))
        return dpm.ForwardChain(dpm.Diffusion(kernel, affine_reverse()), x0).sample(jax.random.key(6))

    beta = jnp.asarray(BETA)
    states = np.concatenate([[X0], sample(beta, X0)])
    in_beta, in_x0 = np.zeros((T, D, T)), np.zeros((T, D, D))
    d_beta, d_x0 = np.zeros((D, T)), np.eye(D)
    for t in range(1, T + 1):
        keep, b = np.sqrt(1 - BETA[t - 1]), BETA[t - 1]
        noise = (states[t] - keep * states[t - 1]) / np.sqrt(b)
        d_beta, d_x0 = keep * d_beta, keep * d_x0
        d_beta[:, t - 1] += -states[t - 1] / (2 * keep) + noise / (2 * np.sqrt(b))
        in_beta[t - 1], in_x0[t - 1] = d_beta, d_x0
    jacobian = jax.jit(jax.jacobian(sample, (0, 1)))(beta, jnp.asarray(X0))
    np.testing.assert_allclose(jacobian[0], in_beta, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(jacobian[1], in_x0, rtol=1e-10, atol=1e-12)
    assert dpm.ForwardChain(affine(), X0).has_rsample
    assert dpm.ReverseChain(affine()).has_rsample
    assert not dpm.ForwardChain(bits(), BITS[0]).has_rsample
    assert not dpm.ReverseChain(bits()).has_rsample


def test_gradient_through_a_reverse_sample_is_the_chain_rule():
    """x^(t-1) = A_t x^t + b_t + noise: dx^(s)/db_t = A_(s+1) ... A_(t-1) for s < t, and nothing of later steps."""

    def sample(shift):
        diffusion = dpm.Diffusion(affine().kernel, affine_reverse(shift=shift))
        return dpm.ReverseChain(diffusion).sample(jax.random.key(7))

    jacobian = jax.jit(jax.jacobian(sample))(jnp.asarray(SHIFT))  # (T, D, T + 1, D)
    expected = np.zeros((T, D, T + 1, D))
    for t in range(2, T + 1):
        product_of_later = np.eye(D)
        for s in range(t - 1, 0, -1):
            expected[s - 1, :, t] = product_of_later
            product_of_later = MATRIX[s] @ product_of_later
    np.testing.assert_allclose(jacobian, expected, atol=1e-12)


# Some steps in place of all


@pytest.mark.parametrize("size", [1, 2, 3])
def test_scoring_some_steps_is_unbiased(size):
    """Every datum has steps of its own; over all shifts each step is scored equally often."""
    trajectory, x0 = RNG.normal(size=(5, T, D)), RNG.normal(size=(5, D))
    stride = np.array([0, 1, 2, 0, 1])

    @jax.jit
    def scores(shift):
        steps = 2 + (shift + stride + np.arange(size)[:, None]) % (T - 1)
        chains = dpm.ForwardChain(affine(), x0, steps=steps), dpm.ReverseChain(affine(), steps=steps)
        return jnp.stack([chain.log_prob(trajectory) for chain in chains])

    each = np.array([scores(shift) for shift in range(T - 1)])
    expected = [forward_log_prob(trajectory, x0), reverse_log_prob(trajectory)]
    np.testing.assert_allclose(each.mean(0), expected, rtol=1e-10)
    if size < T - 1:
        assert (each.std(0) > 0.1).all()
        first = log_normal(trajectory[:, 0], np.sqrt(1 - BETA[0]) * x0, np.sqrt(BETA[0]))
        steps = 2 + (stride + np.arange(size)[:, None]) % (T - 1)
        for n in range(5):  # and one choice of steps, written out
            picked = [
                log_normal(trajectory[n, t - 1], np.sqrt(1 - BETA[t - 1]) * trajectory[n, t - 2], np.sqrt(BETA[t - 1]))
                for t in steps[:, n]
            ]
            np.testing.assert_allclose(each[0, 0, n], first[n] + (T - 1) / size * np.sum(picked), rtol=1e-10)


# Transformations and errors


def test_jit_vmap_and_grad():
    chain, trajectory = dpm.ForwardChain(affine(), X0), RNG.normal(size=(3, T, D))
    expected = forward_log_prob(trajectory, X0)
    np.testing.assert_allclose(chain.log_prob(trajectory), expected, rtol=1e-12)  # eager
    np.testing.assert_allclose(jax.jit(jax.vmap(chain.log_prob))(trajectory), expected, rtol=1e-12)
    keys = jax.random.split(jax.random.key(8), 3)
    together = jax.jit(jax.vmap(chain.sample))(keys)
    np.testing.assert_allclose(together, [jax.jit(chain.sample)(key) for key in keys], rtol=1e-12)

    in_x0 = jax.jit(jax.grad(lambda x0: dpm.ForwardChain(affine(), x0).log_prob(trajectory[0])))(X0)
    keep, b = np.sqrt(1 - BETA[0]), BETA[0]
    np.testing.assert_allclose(in_x0, keep * (trajectory[0, 0] - keep * X0) / b, rtol=1e-10)

    in_states = jax.jit(jax.grad(dpm.ReverseChain(affine()).log_prob))(trajectory[0])
    pulled = (trajectory[0, -2] - MATRIX[T] @ trajectory[0, -1] - SHIFT[T]) / SCALE[T] ** 2
    np.testing.assert_allclose(in_states[-1], -trajectory[0, -1] + MATRIX[T].T @ pulled, rtol=1e-10)


def test_a_chain_is_a_pytree():
    trajectory, steps = RNG.normal(size=(T, D)), np.array([3, 2])
    for chain in (dpm.ForwardChain(affine(), X0, steps=steps), dpm.ReverseChain(affine(), steps=steps)):
        leaves, tree = jax.tree.flatten(chain)
        again = jax.tree.unflatten(tree, leaves)
        assert again.shape() == chain.shape()
        expected = jax.jit(chain.log_prob)(trajectory)  # the chain closed over, not passed
        for same in (chain, again):
            np.testing.assert_allclose(score(same, trajectory), expected, rtol=1e-12)
        np.testing.assert_array_equal(draw(again, 0), draw(chain, 0))
    gradient = jax.jit(jax.grad(score))(dpm.ForwardChain(affine(), X0), trajectory)
    keep = np.sqrt(1 - BETA[0])
    np.testing.assert_allclose(gradient.x0, keep * (trajectory[0] - keep * X0) / BETA[0])


def test_a_chain_of_one_step():
    """No reverse step at all: q(x^1 | x^0) and pi(x^1)."""
    kernel = dpm.GaussianKernel(np.array([0.7]), (D,))
    diffusion = dpm.Diffusion(kernel, kernel.step)
    forward, reverse = dpm.ForwardChain(diffusion, X0), dpm.ReverseChain(diffusion)
    assert reverse.has_rsample
    for chain, mean, scale in ((forward, np.sqrt(0.3) * X0, np.sqrt(0.7)), (reverse, np.zeros(D), 1.0)):
        samples = draw(chain, 9, (10_000,))
        assert samples.shape == (10_000, 1, D)
        assert num_standard_errors(samples[:, 0], mean, scale**2).max() < 4
        np.testing.assert_allclose(score(chain, samples[:5]), log_normal(samples[:5, 0], mean, scale), rtol=1e-10)


@pytest.mark.parametrize("shape", [(T + 1, D), (T - 1, D), (T, D + 1), (T,), (D,), (3, T + 1, D)])
def test_a_trajectory_of_another_chain(shape):
    message = rf"event shape \({T}, {D}\), \(T, \*event\); got shape .*same Diffusion\?"
    for chain in (dpm.ForwardChain(affine(), X0), dpm.ReverseChain(affine())):
        with pytest.raises(ValueError, match=message):
            chain.log_prob(np.zeros(shape))
