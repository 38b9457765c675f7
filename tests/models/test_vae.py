"""The autoencoder where both of its networks are constants: every part of its bound is a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import Trace_ELBO, TraceMeanField_ELBO
from scipy.stats import norm

from dpm_ppl.models import vae
from tests.models.test_swiss_roll import start

X0 = np.array([[0.7, -1.9], [2.2, 0.1], [-3.0, 0.4]])
SCALE = np.array([0.4, 1.3])


def params(decoder, encoder):
    """Weights of zero, and these biases in the last layers."""
    shapes = jax.eval_shape(lambda: start(vae.model, X0) | start(vae.guide, X0))
    values = {**jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes), "scale": jnp.asarray(SCALE)}
    for name, bias in (("decoder$params", decoder), ("encoder$params", encoder)):
        leaves, structure = jax.tree.flatten(values[name])
        at = max(i for i, leaf in enumerate(leaves) if leaf.shape == (len(bias),))
        leaves[at] = jnp.asarray(bias)
        values[name] = jax.tree.unflatten(structure, leaves)
    return values


def elbo(of, values):
    loss = jax.jit(lambda key: of.loss(key, values, vae.model, vae.guide, X0))
    return -float(loss(jax.random.key(0)))


@pytest.mark.parametrize("of", [Trace_ELBO(), TraceMeanField_ELBO()], ids=["Trace", "TraceMeanField"])
def test_at_zero_the_bound_is_the_likelihood(of):
    """Neither network says anything, so q(z) is the prior, and x is the noise: whatever z is drawn."""
    found = elbo(of, params(np.zeros(2), np.zeros(4)))
    np.testing.assert_allclose(found, norm(0, SCALE).logpdf(X0).sum(), rtol=1e-12)


def test_constants_are_a_mean_and_a_divergence():
    """log N(x0; m, scale) less KL(N(mu, s) || N(0, 1)), for each of three data."""
    shift, mean, log_scale = np.array([0.9, -0.3]), np.array([0.5, -1.2]), np.array([-0.7, 0.4])
    found = elbo(TraceMeanField_ELBO(), params(shift, np.append(mean, log_scale)))
    kl = np.sum(0.5 * (mean**2 + np.exp(2 * log_scale) - 1) - log_scale)
    np.testing.assert_allclose(found, norm(shift, SCALE).logpdf(X0).sum() - len(X0) * kl, rtol=1e-12)
