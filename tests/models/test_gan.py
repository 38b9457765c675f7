"""The adversarial pair: its objective written out, and a generator that climbs where the discriminator descends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer import Trace_ELBO

from dpm_ppl.models import gan
from tests.models.test_swiss_roll import start

X0 = jnp.array([[0.7, -1.9], [2.2, 0.1], [-3.0, 0.4]])
Z = jnp.array([[1.1, -0.2], [0.3, 2.0], [-0.9, -0.4]])


@pytest.fixture(scope="module")
def params():
    return start(gan.model, X0)


def network(params, x):
    """Affine layers with x sigmoid(x) between, over rows."""
    *hidden, last = params.layers
    for layer in hidden:
        x = x @ layer.weight.T + layer.bias
        x = x / (1 + jnp.exp(-x))
    return x @ last.weight.T + last.bias


def objective(params):
    """E log D(data) + E log(1 - D(generated)), summed over three of each."""
    generated = network(params["generator$params"], Z)
    real, fake = (1 / (1 + jnp.exp(-network(params["discriminator$params"], x))) for x in (X0, generated))
    return jnp.sum(jnp.log(real)) + jnp.sum(jnp.log(1 - fake))


def test_loss_and_gradient(params):
    """SVI lowers -objective: so it should raise it in the discriminator, and lower it in the generator."""
    guide = handlers.substitute(gan.guide, data={"z": Z})
    loss = lambda params: Trace_ELBO().loss(jax.random.key(0), params, gan.model, guide, X0)  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    expected, plain = jax.jit(jax.value_and_grad(objective))(params)
    np.testing.assert_allclose(value, -expected, rtol=1e-10)
    for name, sign in (("discriminator$params", -1), ("generator$params", 1)):
        leaves, expected = (jax.tree.leaves(tree[name]) for tree in (gradient, plain))
        for leaf, other in zip(leaves, expected, strict=True):
            np.testing.assert_allclose(leaf, sign * other, rtol=1e-8, atol=1e-12)
        assert max(float(jnp.abs(leaf).max()) for leaf in leaves) > 1e-3


def test_generated_points_are_the_generators(params):
    given = handlers.seed(handlers.substitute(gan.model, data={**params, "z": Z}), 0)
    found = jax.jit(lambda: given(size=3))()
    np.testing.assert_allclose(found, network(params["generator$params"], Z), rtol=1e-10)
