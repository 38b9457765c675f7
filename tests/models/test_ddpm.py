"""DDPM: its reweighted bound is the squared error of the noise, step by step and datum by datum, exactly."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.distributions import kl_divergence
from numpyro.infer import TraceMeanField_ELBO

import dpm_ppl as dpm
from dpm_ppl.models import ddpm

X0 = jnp.asarray(
    np.random.default_rng(0).gamma(2.0, 0.6, size=(3, 2)) * [1.0, -0.7] + [0.4, -0.3]
)  # skewed, off centre


@pytest.fixture(params=["linear", "cosine"])
def schedule(request, monkeypatch):
    """Both of the literature's schedules, at fewer steps."""
    made = getattr(dpm.schedules, request.param)
    monkeypatch.setattr(ddpm, "SCHEDULE", made)
    monkeypatch.setattr(ddpm, "NUM_STEPS", 60)
    return made


def params():
    """Parameters moved off their start, where the network's output is zero."""
    trace = handlers.trace(handlers.seed(ddpm.model, 0)).get_trace(size=1)
    values = {name: site["value"] for name, site in trace.items() if site["type"] == "param"}
    return jax.tree.map(lambda leaf: leaf + 0.2 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), values)


def points(beta):
    """Fixed noise and the states x^t that it makes, t = 2..T, shape (T - 1, 3, 2)."""
    signal = np.cumprod(1 - beta)[1:, None, None]
    noise = np.random.default_rng(1).normal(size=(len(beta) - 1, *X0.shape))
    return noise, jnp.asarray(np.sqrt(signal) * X0 + np.sqrt(1 - signal) * noise)


def squared_errors(params, noise, xt):
    """||noise - prediction||^2 by the network itself, shape (T - 1, 3)."""
    net = dpm.networks.TimeMLP(2, 2, num_steps=len(noise) + 1, key=jax.random.key(0))
    net = eqx.combine(params["reverse$params"], eqx.filter(net, eqx.is_inexact_array, inverse=True))
    return jnp.sum((noise - net(xt, jnp.arange(2, len(noise) + 2)[:, None])) ** 2, -1)


def constants(beta):
    """What the weighted KL has beside it, sigma_t^2 being beta_t: shape (T - 1, 1)."""
    signal = np.cumprod(1 - beta)
    ratio = ((1 - signal[:-1]) / (1 - signal[1:]))[:, None]  # of the posterior's variance to beta_t
    weight = 2 * (1 - beta[1:, None]) * (1 - signal[1:, None]) / beta[1:, None]
    return weight * (ratio - 1 - np.log(ratio))  # two dimensions


def programs(xt, x1, *, weight):
    """Model and guide as terms at all steps, at the given points."""
    model, guide = (dpm.subsample_steps(f, size=None, weight=weight) for f in (ddpm.model, ddpm.guide))
    return model, handlers.substitute(guide, data={"x_at": xt, "x_first": x1})


def test_weighted_terms_are_the_squared_error_of_the_noise(schedule):
    values, (noise, xt) = params(), points(schedule(60))
    model, guide = programs(xt, 0.9 * X0, weight=ddpm.recipe["weight"])
    drawn = handlers.trace(handlers.seed(handlers.substitute(guide, data=values), 0)).get_trace(X0)
    scored = handlers.trace(
        handlers.seed(handlers.substitute(handlers.replay(model, drawn), data=values), 0)
    ).get_trace(X0)
    q, p = drawn["x_before"], scored["x_before"]
    weighted = kl_divergence(q["fn"], p["fn"]) * q["scale"]
    assert weighted.shape == (59, 3)
    expected = squared_errors(values, noise, xt) + constants(schedule(60))
    np.testing.assert_allclose(weighted, expected, rtol=1e-8)
    np.testing.assert_array_equal(q["scale"], p["scale"])


def test_loss_and_gradient_are_those_of_the_simple_loss(schedule):
    values, (noise, xt) = params(), points(schedule(60))
    pair = programs(xt, 0.9 * X0, weight=ddpm.recipe["weight"])
    kernel = dpm.GaussianKernel(schedule(60), (2,))
    ends = kl_divergence(kernel.marginal(X0, 60), kernel.stationary()) - kernel.step(0.9 * X0, 1).log_prob(X0)
    loss, gradient = jax.value_and_grad(
        lambda params: TraceMeanField_ELBO().loss(jax.random.key(0), params, *pair, X0)
    )(values)
    simple, expected = jax.value_and_grad(lambda params: squared_errors(params, noise, xt).sum())(values)
    np.testing.assert_allclose(loss, simple + 3 * constants(schedule(60)).sum() + ends.sum(), rtol=1e-9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), gradient, expected)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 1
    # The bound itself, of the same program at the same points, is another number and another gradient.
    plain = TraceMeanField_ELBO().loss(jax.random.key(0), values, *programs(xt, 0.9 * X0, weight=None), X0)
    assert abs(plain - loss) > 1


def test_ends_of_the_chain_are_those_of_the_paper():
    """At T = 1000, by the linear schedule, alpha_bar_T is 4e-5: the chain ends at pi, and there is little to lose."""
    with handlers.seed(rng_seed=0):
        kernel = ddpm.diffusion().kernel
    np.testing.assert_allclose(kernel.beta[jnp.array([0, -1])], [1e-4, 0.02], rtol=1e-9)
    np.testing.assert_allclose(kernel.alpha_bar[-1], 4.04e-5, rtol=1e-2)
