"""Chains in NumPyro's scan: a linear-Gaussian state-space model whose emissions are chains, with exact reverse steps.

With exact guides too, minus the loss is the log density of what is observed, whatever is drawn.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.infer import Predictive, Trace_ELBO

import dpm_ppl as dpm
from dpm_ppl.chains import ForwardChain, ReverseChain

S, KEEP, DRIVE = 4, 0.8, 0.6  # z_s = KEEP z_{s-1} + N(0, DRIVE^2), from z_0 = 0
LOADING, OFFSET, SPREAD = np.array([1.3, -0.4]), np.array([0.5, -0.2]), np.array([0.7, 1.1])
NOISE = 0.9  # of y_s = x_s + N(0, NOISE^2)
RNG = np.random.default_rng(1)


class Exact(eqx.Module):
    """The reverse of a Gaussian kernel from data N(OFFSET + LOADING z, SPREAD^2), at any step, and x^0 from x^1."""

    kernel: dpm.GaussianKernel
    loading: jax.Array

    def __call__(self, x, t, z):
        t = jnp.asarray(t)[..., None]
        beta, before = self.kernel.beta[t - 1], self.kernel.alpha_bar[t - 1]
        mean = jnp.sqrt(before) * (OFFSET + self.loading * z[..., None])
        variance, keep = before * SPREAD**2 + 1 - before, jnp.sqrt(1 - beta)
        gain = keep * variance / (keep**2 * variance + beta)
        return dist.Normal(mean + gain * (x - keep * mean), jnp.sqrt(variance * (1 - keep * gain))).to_event(1)


class Last(eqx.Module):
    """The last step."""

    reverse: Exact

    def __call__(self, x1, z):
        return self.reverse(x1, jnp.asarray(1), z)


def emission(z, loading=LOADING):
    """A chain of the state z, its rates too; they end without a signal, so that the reverse steps are exact."""
    rates = jnp.stack([0.2 + 0.1 * jnp.tanh(z.mean()), 0.5, 1.0])
    kernel = dpm.GaussianKernel(rates, (2,))
    reverse = Exact(kernel, jnp.asarray(loading))
    return dpm.Diffusion(kernel, reverse, decode=Last(reverse), context=z)


def states():
    """Mean (of all, 0) and covariance of z, from the transitions."""
    chain = np.linalg.inv(np.eye(S) - KEEP * np.eye(S, k=-1))
    return DRIVE**2 * chain @ chain.T


def seen(noise, loading=LOADING):
    """Mean and covariance of what is seen of z, shape (S, 2), flat; and its covariance with z."""
    kron = np.kron if isinstance(loading, np.ndarray) else jnp.kron
    loading = kron(np.eye(S), loading[:, None])
    covariance = loading @ states() @ loading.T + np.kron(np.eye(S), np.diag(SPREAD**2 + noise**2))
    return np.tile(OFFSET, S), covariance, states() @ loading.T


def log_density(y, noise, loading=LOADING):
    mean, covariance, _ = seen(noise, loading)
    return dist.MultivariateNormal(mean, covariance).log_prob(y.ravel())


def smoother(y, noise):
    """p(z_s | z_{s-1}, y) of each s as slope, intercept and scale, shape (S, 3): z is a Markov chain given y too."""
    mean, covariance, with_z = seen(noise)
    gain = with_z @ np.linalg.inv(covariance)
    centre, left = gain @ (y.ravel() - mean), states() - gain @ with_z.T
    steps = [(0.0, centre[0], left[0, 0] ** 0.5)]
    for s in range(1, S):
        slope = left[s, s - 1] / left[s - 1, s - 1]
        steps.append((slope, centre[s] - slope * centre[s - 1], (left[s, s] - slope * left[s, s - 1]) ** 0.5))
    return jnp.array(steps)


def model(y, *, emission=emission):
    """The states, and the chains that they emit, observed."""

    def body(z, x):
        z = numpyro.sample("z", dist.Normal(KEEP * z, DRIVE))
        return z, dpm.reverse_chain("x", emission(z), obs=x)

    return scan(body, jnp.zeros(()), y, length=S)[1]


def guide(y, *, emission=emission):
    def body(z, at):
        x, (slope, intercept, scale) = at
        z = numpyro.sample("z", dist.Normal(slope * z + intercept, scale))
        dpm.forward_chain("x", emission(z), x)
        return z, None

    scan(body, jnp.zeros(()), (y, smoother(y, 0.0)))


def given(z, y):
    """p(x | z, y), of noisy y."""
    share = SPREAD**2 / (SPREAD**2 + NOISE**2)
    mean = OFFSET + LOADING * z[..., None]
    return dist.Normal(mean + share * (y - mean), NOISE * jnp.sqrt(share)).to_event(1)


def noisy_model(y):
    """The same, of which noisy values are observed."""

    def body(z, y):
        z = numpyro.sample("z", dist.Normal(KEEP * z, DRIVE))
        x = dpm.reverse_chain("x", emission(z))
        numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=y)
        return z, None

    scan(body, jnp.zeros(()), y)


def noisy_guide(y):
    def body(z, at):
        y, (slope, intercept, scale) = at
        z = numpyro.sample("z", dist.Normal(slope * z + intercept, scale))
        dpm.forward_chain("x", emission(z), numpyro.sample("x", given(z, y)))
        return z, None

    scan(body, jnp.zeros(()), (y, smoother(y, NOISE)))


Y = RNG.normal(size=(S, 2)) @ np.array([[1.5, 0.3], [0.0, 0.8]]) + np.array([0.4, -0.7])


@pytest.mark.parametrize(
    ("pair", "noise"), [((model, guide), 0.0), ((noisy_model, noisy_guide), NOISE)], ids=["observed", "latent"]
)
def test_a_state_space_model_of_chains(pair, noise):
    """Minus the loss is the log density, of one draw; several particles make nothing else of it."""
    loss = jax.jit(lambda key: Trace_ELBO(num_particles=2).loss(key, {}, *pair, jnp.asarray(Y)))(jax.random.key(0))
    np.testing.assert_allclose(-loss, log_density(Y, noise), rtol=1e-10)


@pytest.mark.parametrize("noise", [0.0, NOISE], ids=["observed", "latent"])
def test_a_batch_of_series(noise):
    """In a plate in the body a series each: the densities add up, and each chain meets its own state."""
    several = jnp.stack([jnp.asarray(Y), 0.5 - jnp.asarray(Y)[::-1]], 1)  # (S, 2 series, 2)
    smoothed = jnp.stack([smoother(np.asarray(several[:, i]), noise) for i in range(2)], 1)  # (S, 2, 3)
    prior = jnp.broadcast_to(jnp.array([KEEP, 0.0, DRIVE]), (S, 2, 3))

    def program(declare, laws):
        def body(z, at):
            y, law = at
            with numpyro.plate("series", 2):
                z = numpyro.sample("z", dist.Normal(law[:, 0] * z + law[:, 1], law[:, 2]))
                declare(z, y)
            return z, None

        return lambda y: scan(body, jnp.zeros(2), (y, laws))

    def observed(z, y):
        x = dpm.reverse_chain("x", emission(z), obs=None if noise else y)
        if noise:
            numpyro.sample("y", dist.Normal(x, noise).to_event(1), obs=y)

    def guided(z, y):
        x = numpyro.sample("x", given(z, y)) if noise else y
        dpm.forward_chain("x", emission(z), x)

    pair = program(observed, prior), program(guided, smoothed)
    loss = jax.jit(lambda key: Trace_ELBO().loss(key, {}, *pair, several))(jax.random.key(0))
    expected = sum(log_density(np.asarray(several[:, i]), noise) for i in range(2))
    np.testing.assert_allclose(-loss, expected, rtol=1e-10)


def test_gradients_reach_what_the_emissions_share():
    """Of a parameter declared around the scan: the derivative of the log density, by Fisher's identity."""

    def learned(y):
        loading = numpyro.param("loading", jnp.ones(2))
        return model(y, emission=lambda z: emission(z, loading))

    def slope(key):
        return jax.grad(lambda p: -Trace_ELBO().loss(key, {"loading": p}, learned, guide, jnp.asarray(Y)))(LOADING)

    slopes = jax.jit(jax.vmap(slope))(jax.random.split(jax.random.key(0), 2000))
    expected = jax.grad(lambda loading: log_density(Y, 0.0, loading))(jnp.asarray(LOADING))
    error = np.std(slopes, 0) / np.sqrt(len(slopes))
    assert (np.abs((slopes.mean(0) - expected) / error)).max() < 4.5
    assert (np.abs(expected) / error).max() > 10


def test_it_generates():
    """Of many series, mean and covariance of all that they emit."""
    x = Predictive(model, num_samples=4000)(jax.random.key(0), None)["x"].reshape(4000, -1)
    mean, covariance, _ = seen(0.0)
    errors = np.sqrt(np.diag(covariance) / len(x))
    assert np.abs((x.mean(0) - mean) / errors).max() < 4.5
    spread = np.sqrt((np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2) / len(x))
    assert np.abs((np.cov(x.T) - covariance) / spread).max() < 4.5


def test_a_law_that_closes_over_the_carry_says_where_to_put_it():
    def closed(z):
        open_ = emission(z)
        law = open_.reverse.function
        return dpm.Diffusion(open_.kernel, lambda x, t: law(x, t, jnp.broadcast_to(z, x.shape[:-1])))

    pair = (lambda y: model(y, emission=closed)), (lambda y: guide(y, emission=closed))
    with pytest.raises(ValueError, match="close over a value made in the body of NumPyro's scan.*`context`"):
        jax.eval_shape(lambda key: Trace_ELBO().loss(key, {}, *pair, jnp.asarray(Y)), jax.random.key(0))


Z = jnp.asarray(RNG.normal(size=(3, 2)))  # of a stack of three, for two data each
VALUES = jnp.asarray(RNG.normal(size=(5, 3, 2, 3, 2)))  # five samples, three chains, two data, T = 3


def forward(z):
    return ForwardChain(emission(z), z[:, None] * LOADING)


def reverse(z):
    return ReverseChain(emission(z).of_batch((2,))).expand((2,))


@pytest.mark.parametrize("make", [forward, reverse])
def test_stacked_chains_are_scored_as_each_is(make):
    """With samples in front, or fewer values than chains: every one by its own kernel, data and reverse steps."""

    @jax.jit
    def scores(z):
        together, alone = promote_batch_shape(jax.vmap(make)(z)), [make(row) for row in z]
        assert together.batch_shape == (3, 2)
        assert together.event_shape == alone[0].event_shape == (3, 2)
        assert together.has_rsample
        each = jnp.stack([chain.log_prob(VALUES[:, i]) for i, chain in enumerate(alone)], 1)
        first = jnp.stack([chain.log_prob(VALUES[0, 0]) for chain in alone])
        return (together.log_prob(VALUES), together.log_prob(VALUES[0, 0])), (each, first)

    came, expected = scores(Z)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), came, expected)


@pytest.mark.parametrize(
    "make", [forward, lambda z: ReverseChain(emission(z[0]).of_batch(()))], ids=["forward", "reverse"]
)
def test_stacked_chains_are_drawn_as_each_is(make):
    """Means of the draws of a stack, and of each chain's own."""

    @jax.jit
    def draws(z):
        own = jnp.stack([make(row).sample(jax.random.key(2), (5000,)) for row in z], 1)
        return promote_batch_shape(jax.vmap(make)(z)).sample(jax.random.key(1), (5000,)), own

    together, alone = draws(Z)
    assert together.shape == alone.shape
    error = np.sqrt((together.var(0) + alone.var(0)) / 5000)
    assert (np.abs(together.mean(0) - alone.mean(0)) / error).max() < 4.5


def test_a_chain_is_a_pytree_of_its_arrays():
    """Through jit it comes as it went; by its leaves it has the derivatives that it has by what made them."""
    chain, value = reverse(Z[0]), VALUES[0, 0]
    slope = jax.jit(jax.grad(lambda chain: chain.log_prob(value).sum()))(chain).base_dist.diffusion.context
    kernel = chain.base_dist.kernel

    def made(z):
        return ReverseChain(dpm.Diffusion(kernel, Exact(kernel, jnp.asarray(LOADING)), context=z)).log_prob(value).sum()

    np.testing.assert_allclose(slope, jax.jit(jax.grad(made))(Z[0]), rtol=1e-10)
    assert np.abs(slope).min() > 0.01
    jax.tree.map(np.testing.assert_array_equal, jax.jit(lambda chain: chain)(chain), chain)
