"""The swiss roll's page where its network's output is a constant: its reverse steps and its bound are closed forms."""

from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from scipy.stats import multivariate_normal

from dpm_ppl.inference import bound
from dpm_ppl.models import swiss_roll
from dpm_ppl.programs import instantiate
from tests.oracles import worst

T = 6
X0 = np.array([1.3, -0.4])
OUTPUTS = {"zero": np.zeros(5), "constant": np.array([0.3, -0.7, 0.2, -0.4, 0.5])}  # velocity, log diagonal, triangle


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(swiss_roll, "NUM_STEPS", T)


@pytest.fixture(params=OUTPUTS)
def output(request):
    return OUTPUTS[request.param]


def start(program, *args):
    """Parameters as a program declares them."""

    def declared():
        trace = handlers.trace(handlers.seed(program, 0)).get_trace(*args)
        return {name: site["value"] for name, site in trace.items() if site["type"] == "param"}

    return jax.jit(declared)()


def with_bias(params, of, bias):
    """The same where `of` a reverse network is a bias: the weights of its last layer start at zero."""
    return {**params, "reverse$params": eqx.tree_at(of, params["reverse$params"], jnp.asarray(bias))}


def last_layer(net):
    return net.layers.layers[-1].bias


@cache
def skewed():
    """The start, with a schedule that is not its own."""
    params = start(swiss_roll.diffusion)
    return {**params, "beta": params["beta"] + 0.3 * np.cos(np.arange(T - 1))}


def schedule(params):
    """beta, and alpha_bar before and after each step, shapes (T,)."""
    beta = np.asarray(instantiate(swiss_roll.diffusion, params).kernel.beta)
    signal = np.append(1, np.cumprod(1 - beta))
    return beta, signal[:-1], signal[1:]


def steps(params, output):
    """For t = 2..T the posterior's weights of x^0 and x^t, its variance, and the reverse's covariance in its place."""
    beta, before, after = schedule(params)
    factor = np.array([[np.exp(output[2]), 0], [output[4], np.exp(output[3])]])
    for b, s, a in list(zip(beta, before, after, strict=True))[1:]:
        weights = np.sqrt(s) * b / (1 - a), np.sqrt(1 - b) * (1 - s) / (1 - a)
        yield a, *weights, b * (1 - s) / (1 - a), b * factor @ factor.T


@pytest.fixture
def params(output):
    return with_bias(skewed(), last_layer, output)


def test_reverse_steps(params, output):
    """Around x^0 = sqrt(alpha_bar_t) x - sqrt(1 - alpha_bar_t) v, with the covariance beta_t L L', at skewed states."""
    xt, x = np.array([[0.7, -1.9], [2.2, 0.1]]), np.array([[0.2, -1.1], [1.5, 0.9]])
    states, t = jnp.broadcast_to(xt, (T - 1, *xt.shape)), jnp.arange(2, T + 1)[:, None]
    log_prob = jax.jit(lambda: instantiate(swiss_roll.diffusion, params).reverse(states, t).log_prob(x))()
    expected = []
    for signal, of_data, of_state, _, cov in steps(params, output):
        mean = of_data * (np.sqrt(signal) * xt - np.sqrt(1 - signal) * output[:2]) + of_state * xt
        expected.append([multivariate_normal(m, cov).logpdf(row) for m, row in zip(mean, x, strict=True)])
    np.testing.assert_allclose(log_prob, expected, rtol=1e-10)


def test_bound_of_one_datum(params, output):
    """KLs by moments of x^t, whose draws alone vary; the ends exactly."""
    beta, _, after = schedule(params)
    found = bound(swiss_roll.diffusion, np.tile(X0, (3000, 1)), params=params, key=jax.random.key(0))
    expected = []
    for signal, of_data, _, variance, cov in steps(params, output):
        precision = np.linalg.inv(cov)
        off = (1 - signal) * X0 + np.sqrt(1 - signal) * output[:2]  # E[x^0 - what is predicted], then of its square
        square = np.outer(off, off) + signal * (1 - signal) * np.eye(2)
        kl = np.trace(precision @ (variance * np.eye(2) + of_data**2 * square)) - 2
        expected.append(0.5 * (kl + np.log(np.linalg.det(cov)) - 2 * np.log(variance)))
    assert worst(np.asarray(found.kl), np.array(expected)) < 3
    prior = 0.5 * (after[-1] * X0 @ X0 - 2 * after[-1] - 2 * np.log(1 - after[-1]))
    np.testing.assert_allclose(found.prior_matching, prior, rtol=1e-9)
    # E log N(x^0; sqrt(1 - beta_1) x^1, beta_1), which its control variate makes exact
    reconstruction = -np.log(2 * np.pi * beta[0]) - 0.5 * (beta[0] * X0 @ X0 + 2 * (1 - beta[0]))
    np.testing.assert_allclose(found.reconstruction, reconstruction, rtol=1e-9)
