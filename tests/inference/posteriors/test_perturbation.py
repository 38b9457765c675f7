"""The paper's sampler: its bias is the known one."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference import constant, perturbed_chain, smc, tempered, widened
from tests.oracles import BernoulliOracle, worst


def standard(y):
    """p(x) = N(0, 1) in two coordinates, whose exact reverse is the forward process, and r = N(y; x, 1)."""
    log_snr = np.linspace(8, -8, 200)
    alpha_bar = 1 / (1 + np.exp(-log_snr))
    kernel = dpm.GaussianKernel(1 - alpha_bar / np.append(1, alpha_bar[:-1]), (2,))
    x = dpm.reverse_chain("x", dpm.Diffusion(kernel, kernel.step))
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


Y = np.array([1.0, -2.0])


def test_the_bias_of_the_papers_sampler_is_the_known_one():
    x = perturbed_chain(standard, "x", params={}, num_samples=20_000)(jax.random.key(0), Y)
    # In the limit of small steps; at T = 200 it is a little off, as it is for a step of any one size.
    np.testing.assert_allclose(x.mean(0), 2 / 3 * Y, atol=0.03)
    np.testing.assert_allclose(jnp.cov(x.T), np.eye(2) / 3, atol=0.015)


def test_smc_is_not_biased():
    run = smc(standard, "x", params={}, num_particles=500, twist=widened())
    p = jax.jit(jax.vmap(lambda key: run(key, Y)))(jax.random.split(jax.random.key(1), 20))
    got = jax.vmap(lambda p: (p.mean(), p.covariance()))(p)
    assert worst(got, (Y / 2, np.eye(2) / 2)) < 3


def exact_bias(power):
    """Mean over y and variance by the recursion of its steps, each a product of normals."""
    log_snr = np.linspace(8, -8, 200)
    alpha_bar = np.append(1, 1 / (1 + np.exp(-log_snr)))
    beta = 1 - alpha_bar[1:] / alpha_bar[:-1]
    r = power(200)
    mean, variance = r / (1 + r), 1 / (1 + r)
    for t in range(200, 0, -1):
        r = power(t - 1)
        shrink = 1 / (1 + r * beta[t - 1])
        mean = shrink * (np.sqrt(1 - beta[t - 1]) * mean + r * beta[t - 1])
        variance = shrink**2 * (1 - beta[t - 1]) * variance + shrink * beta[t - 1]
    return mean, variance


@pytest.mark.parametrize(("twist", "power"), [(None, lambda t: 1.0), (tempered, lambda t: 1 - t / 200)])
def test_the_samples_follow_the_recursion_of_their_steps(twist, power):
    x = perturbed_chain(standard, "x", params={}, num_samples=10_000, twist=twist)(jax.random.key(2), Y)
    mean, variance = exact_bias(power)
    off = np.asarray(x) - mean * Y
    assert worst((off, off[:, :, None] * off[:, None, :]), (np.zeros(2), variance * np.eye(2))) < 3


BITS = BernoulliOracle()
SLOPE = np.array([2.0, -1.0, 1.0])


def leaning(slope=SLOPE):
    x = dpm.reverse_chain("x", BITS.diffusion())
    numpyro.factor("r", jnp.sum(slope * x))


def test_perturbed_bits_follow_table_app_1_with_its_denominator_put_right():
    x = perturbed_chain(leaning, "x", params=BITS.params, num_samples=20_000)(jax.random.key(3))
    with numpyro.handlers.substitute(data=BITS.params), numpyro.handlers.seed(rng_seed=0):
        chain = BITS.diffusion()
    states = jnp.asarray([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)])
    d = jax.nn.sigmoid(SLOPE)

    def moved(step):
        c = step.base_dist.probs
        rate = c * d / (c * d + (1 - c) * (1 - d))
        return jnp.prod(jnp.where(states == 1, rate[..., None, :], 1 - rate[..., None, :]), -1)

    p = moved(chain.kernel.stationary())
    for t in range(4, 1, -1):
        p = p @ moved(chain.reverse(states, jnp.asarray(t)))
    p = p @ moved(chain.decode(states))
    # One in ten draws of a proposal over bits is the reverse step itself, unless it is told otherwise.
    assert worst(jax.nn.one_hot(x @ jnp.array([4, 2, 1]), 8), np.asarray(p)) < 3


def with_a_scale(y):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    x = dpm.reverse_chain("x", BITS.diffusion())
    numpyro.factor("r", scale * x[0] + y)


def with_known_bits():
    x = dpm.reverse_chain("x", BITS.diffusion())
    numpyro.sample("y", dist.Delta(x).mask(jnp.array([True, False, False])).to_event(1), obs=jnp.zeros(3, int))


LETTERS = dpm.CategoricalKernel(dpm.schedules.constant_fraction(3), (2,), (0.2, 0.5, 0.3))
LIKING = np.array([1.5, 0.0, -1.0])


def liked_letters():
    x = dpm.reverse_chain("x", dpm.Diffusion(LETTERS, LETTERS.step))
    numpyro.factor("r", jnp.sum(jnp.asarray(LIKING)[x]))


def test_perturbed_letters_follow_the_recursion_of_their_steps():
    x = perturbed_chain(liked_letters, "x", params={}, num_samples=10_000)(jax.random.key(4))
    p = LETTERS.probs * np.exp(LIKING)
    for t in range(3, 0, -1):
        step = (1 - LETTERS.beta[t - 1]) * np.eye(3) + LETTERS.beta[t - 1] * LETTERS.probs
        moved = step * np.exp(LIKING)
        p = p / p.sum() @ (moved / moved.sum(-1, keepdims=True))
    assert worst(jax.nn.one_hot(x, 3), np.broadcast_to(p, (2, 3))) < 3


class Counts:
    """A kernel over counts up to three, all redrawn at each step."""

    num_steps, event_shape = 3, (2,)

    def stationary(self):
        return dist.Binomial(3, 0.4 * jnp.ones(2)).to_event(1)

    def step(self, x, t):
        return dist.Binomial(3, 0.4 * jnp.ones(jnp.shape(x))).to_event(1)


def counts():
    kernel = Counts()
    numpyro.factor("r", 5.0 * jnp.sum(dpm.reverse_chain("x", dpm.Diffusion(kernel, kernel.step)) == 0))


def test_bad_input():
    options = {"params": BITS.params, "num_samples": 10}
    with pytest.raises(ValueError, match="Expected normal, Bernoulli or categorical steps.*got Independent.*Use smc"):
        perturbed_chain(counts, "x", params={}, num_samples=10)(jax.random.key(0))
    with pytest.raises(ValueError, match="only latent variable is the chain 'x'; got scale beside"):
        perturbed_chain(with_a_scale, "x", **options)(jax.random.key(0), 0.0)
    with pytest.raises(ValueError, match="known exactly.*Use smc"):
        perturbed_chain(with_known_bits, "x", **options)(jax.random.key(0))
    with pytest.raises(TypeError, match=r"Expected `twist` to be constant\(\) or tempered\(\); got widened"):
        perturbed_chain(leaning, "x", **options, twist=widened())
    with pytest.raises(ValueError, match="num_samples"):
        perturbed_chain(leaning, "x", params=BITS.params, num_samples=0)
    assert constant().power(3, 4) == 1
