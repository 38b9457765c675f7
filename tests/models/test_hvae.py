"""A learned kernel without closed forms, against closed forms: linear steps make every chain one normal."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import Trace_ELBO, TraceMeanField_ELBO

import dpm_ppl as dpm
from dpm_ppl.inference import bound
from dpm_ppl.models import hvae
from tests.oracles import COV, MEAN, data, estimates, worst

X0 = data(3)


def linear(num_steps, *, seed=0):
    """Maps, shifts and log scales of the steps up (t = 1..T) and down (to t = T-1..1, then the data), all different."""
    rng, shape = np.random.default_rng(seed), {"map": (2, 2), "shift": (2,), "log_scale": (2,)}
    return {
        f"{way}_{name}": jnp.asarray(0.3 * rng.normal(size=(num_steps, *size)))
        for way in ("up", "down")
        for name, size in shape.items()
    }


def definition(params):
    """The page's kernel and steps, its networks replaced by affine maps: `down` at t leads from x^t to x^(t-1)."""

    def program():
        values = {name: numpyro.param(name, value) for name, value in params.items()}

        def net(way):
            def outputs(x, t):
                gain, shift, log_scale = (values[f"{way}_{name}"][t - 1] for name in ("map", "shift", "log_scale"))
                mean = jnp.einsum("...ij,...j->...i", gain, x) + shift
                return jnp.concatenate(jnp.broadcast_arrays(mean, log_scale), -1)

            return outputs

        down, num_steps = net("down"), len(params["up_map"])
        return dpm.Diffusion(
            hvae.LearnedKernel(net("up"), num_steps),
            reverse=lambda x, t: hvae.gated(x, down(x, t)),
            decode=lambda x1: hvae.gated(x1, down(x1, jnp.asarray(1))),
        )

    return program


def elbos(params, x0):
    """ELBO of each datum from the two joint normals of (x^1..x^T | x^0) and (x^0..x^T), nothing step by step."""
    num_steps = len(params["up_map"])
    eye, size = jnp.eye(2), 2 * num_steps

    def steps(way):
        gain = jnp.sqrt(0.5) * eye + params[f"{way}_map"]
        return gain, params[f"{way}_shift"], 0.5 * jnp.exp(2 * params[f"{way}_log_scale"])

    def stacked(order, gain, shift, variance, first_mean, first_cov):
        """Mean and covariance of a chain of affine steps, its states put at the places in `order`."""
        means, rows = [first_mean], [jnp.concatenate([jnp.linalg.cholesky(first_cov), jnp.zeros((2, size))], 1)]
        for i, at in enumerate(order):
            means.append(gain[at] @ means[-1] + shift[at])
            noise = jnp.zeros((2, size + 2)).at[:, 2 * i + 2 : 2 * i + 4].set(jnp.diag(jnp.sqrt(variance[at])))
            rows.append(gain[at] @ rows[-1] + noise)
        root = jnp.stack(rows)
        return jnp.stack(means), jnp.einsum("aik,bjk->aibj", root, root)

    up, down = steps("up"), steps("down")
    p_mean, p_cov = stacked(range(num_steps)[::-1], *down, jnp.zeros(2), eye)  # x^T..x^0
    p_mean, p_cov = p_mean[::-1].ravel(), p_cov[::-1, :, ::-1].reshape(size + 2, size + 2)
    precision, p_log_det = jnp.linalg.inv(p_cov), jnp.linalg.slogdet(p_cov)[1]

    def of_datum(x):
        mean, cov = stacked(range(num_steps), *up, x, 1e-30 * eye)
        off, cov = mean.ravel() - p_mean, cov.reshape(size + 2, size + 2)
        square = off @ precision @ off + jnp.trace(precision @ cov)
        entropy = 0.5 * (size * (1 + jnp.log(2 * jnp.pi)) + jnp.sum(jnp.log(up[2])))
        return entropy - 0.5 * (square + p_log_det + (size + 2) * jnp.log(2 * jnp.pi))

    return jax.vmap(of_datum)(x0)


@pytest.mark.parametrize(
    ("num_steps", "size", "elbo"),
    [(1, None, TraceMeanField_ELBO()), (3, None, Trace_ELBO()), (3, 1, TraceMeanField_ELBO()), (3, 2, Trace_ELBO())],
)
def test_loss_and_every_gradient_of_a_linear_chain(num_steps, size, elbo):
    """The forward kernel's parameters among them: reparameterised through the trajectory and in its density."""
    params = linear(num_steps)
    pair = tuple(dpm.subsample_steps(f, size=size) for f in dpm.single_chain(definition(params)))
    loss, gradient = jax.value_and_grad(lambda params: -elbos(params, X0).sum())(params)
    losses, gradients = estimates(elbo, *pair, params, X0, num=3000)
    assert worst(losses, loss) < 3
    assert worst(gradients, gradient) < 3
    assert all(float(jnp.abs(gradient[f"up_{name}"]).max()) > 0.3 for name in ("map", "shift", "log_scale"))


def test_bound_of_a_linear_chain():
    params = linear(3)
    result = bound(definition(params), jnp.tile(X0, (3000, 1)), params=params, key=jax.random.key(0))
    assert worst(np.asarray(result.elbo).reshape(-1, 3), elbos(params, X0)) < 3


def probabilistic_pca():
    """One step: x^0 = W z + mean + noise, W of orthogonal columns, and the exact posterior of z as the step up."""
    _, vectors = np.linalg.eigh(COV)
    variance, strength = 0.3, np.array([0.6, 1.1])
    loading = vectors * strength
    posterior = 1 / (1 + strength**2 / variance)
    gain = posterior[:, None] * loading.T / variance
    params = {
        "up_map": gain - np.sqrt(0.5) * np.eye(2),
        "up_shift": -gain @ MEAN,
        "up_log_scale": 0.5 * np.log(2 * posterior),
        "down_map": loading - np.sqrt(0.5) * np.eye(2),
        "down_shift": MEAN,
        "down_log_scale": 0.5 * np.log(2 * variance) * np.ones(2),
    }
    evidence = dist.MultivariateNormal(MEAN, loading @ loading.T + variance * np.eye(2))
    return {name: jnp.asarray(value)[None] for name, value in params.items()}, evidence


def test_one_step_with_the_exact_encoder_has_the_evidence_of_probabilistic_pca_in_every_draw():
    params, evidence = probabilistic_pca()
    result = bound(definition(params), X0, params=params, key=jax.random.key(0), num_samples=5)
    np.testing.assert_allclose(result.elbo, evidence.log_prob(X0), rtol=1e-9)
    np.testing.assert_allclose(result.elbo_variance, 0, atol=1e-18)
    worse = {**params, "up_shift": params["up_shift"] + 0.3}
    assert (elbos(worse, X0) < evidence.log_prob(X0) - 0.05).all()


def test_with_one_step_the_page_is_a_vae(monkeypatch):
    """Its density at any latent is that of a VAE written in stock NumPyro with the same networks."""
    monkeypatch.setattr(hvae, "NUM_STEPS", 1)
    trace = handlers.trace(handlers.seed(hvae.model, 0)).get_trace(size=1)
    params = {name: site["value"] for name, site in trace.items() if site["type"] == "param"}
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), params)
    net = dpm.networks.TimeMLP(2, 4, num_steps=1, width=64, key=jax.random.key(0))
    encoder, decoder = (
        partial(
            eqx.combine(params[f"{name}$params"], eqx.filter(net, eqx.is_inexact_array, inverse=True)), t=jnp.ones(())
        )
        for name in ("forward", "last")
    )

    def normal(x, output):
        shift, log_scale = output[..., :2], output[..., 2:]
        return dist.Normal(x / np.sqrt(2) + shift, jnp.exp(log_scale) / np.sqrt(2)).to_event(1)

    def vae(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1).to_event(1))
            numpyro.sample("x", normal(z, decoder(z)), obs=x)

    def vae_guide(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", normal(x, encoder(x)))

    z = jnp.asarray(np.random.default_rng(2).normal(size=X0.shape))
    log_density = numpyro.infer.util.log_density
    for ours, stock in ((hvae.model, vae), (hvae.guide, vae_guide)):
        chain, _ = log_density(
            handlers.seed(handlers.substitute(ours, data={"x_chain": z[:, None]}), 0), (X0,), {}, params
        )
        expected, _ = log_density(handlers.substitute(stock, data={"z": z}), (X0,), {}, {})
        np.testing.assert_allclose(chain, expected, rtol=1e-9)
