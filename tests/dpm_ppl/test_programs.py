"""Definitions with their parameters put in."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm
from dpm_ppl.inference import instantiate
from tests.oracles import GaussianOracle

ORACLE = GaussianOracle.exact(4)


def networked(num_units=3):
    """A definition whose network draws its first weights from the program's key."""

    def diffusion():
        kernel = dpm.GaussianKernel(dpm.schedules.constant_fraction(4), (2,))
        net = dpm.networks.RBFNetwork(2, 4, num_steps=4, num_units=num_units, key=numpyro.prng_key())
        net = eqx_module("reverse", net)

        def reverse(x, t):
            mean, variance = jnp.split(net(x, t), 2, -1)
            return dpm.outputs.residual_normal(kernel, x, t, mean, variance)

        return dpm.Diffusion(kernel, reverse)

    return diffusion


def parameters(diffusion, seed=1):
    trace = handlers.trace(handlers.seed(diffusion, seed)).get_trace()
    return {name: site["value"] for name, site in trace.items() if site["type"] == "param"}


def test_the_parameters_are_the_ones_given():
    params = ORACLE.spoiled().params | {"of something else": "ignored"}
    built = instantiate(ORACLE.diffusion, params)
    x = jnp.array([0.3, -1.2])
    step = built.reverse(x, jnp.array(3))
    np.testing.assert_allclose(step.loc, params["map"][1] @ x + params["shift"][1], rtol=1e-12)
    np.testing.assert_allclose(step.scale_tril, params["factor"][1], rtol=1e-12)
    longer = params | {"beta": params["beta"].at[0].add(1.0)}
    expected = GaussianOracle(4, longer).schedule()[0]
    np.testing.assert_allclose(instantiate(ORACLE.diffusion, longer).kernel.beta, expected, rtol=1e-12)


def test_a_network_that_draws_its_weights_gets_those_given():
    diffusion = networked()
    params = parameters(diffusion)
    params = jax.tree.map(lambda p: p + 0.5, params)  # the readout starts at zero, where weights have no effect
    x, t = jnp.array([[0.3, -1.2]]), jnp.array(2)
    with handlers.seed(rng_seed=9), handlers.substitute(data=params):
        expected = diffusion().reverse(x, t)
    got = instantiate(diffusion, params).reverse(x, t)
    np.testing.assert_allclose(got.mean, expected.mean, rtol=1e-12)
    other = instantiate(diffusion, parameters(diffusion, seed=2)).reverse(x, t)
    assert np.abs(got.mean - other.mean).max() > 1e-3


def test_under_jit_and_grad():
    def mean(params):
        return instantiate(ORACLE.diffusion, params).reverse(jnp.ones(2), jnp.array(2)).loc.sum()

    gradient = jax.jit(jax.grad(mean))(ORACLE.params)
    np.testing.assert_allclose(gradient["shift"], [[1, 1], [0, 0], [0, 0]])
    np.testing.assert_allclose(gradient["map"][0], np.ones((2, 2)))


def test_the_program_around_it_notices_nothing():
    diffusion = networked()
    params = parameters(diffusion)
    with handlers.trace() as trace:
        instantiate(diffusion, params)
    assert not trace


def test_parameters_missing_or_of_another_model():
    params = ORACLE.params
    with pytest.raises(
        ValueError, match=r"got none for map, factor. `params` holds beta, shift: is it of another model"
    ):
        instantiate(ORACLE.diffusion, {"beta": params["beta"], "shift": params["shift"]})
    with pytest.raises(ValueError, match=r"'shift' of shape \(3, 2\); got \(4, 2\)"):
        instantiate(ORACLE.diffusion, params | {"shift": jnp.zeros((4, 2))})
    with pytest.raises(ValueError, match=r"'beta' of shape \(3,\); got \(4,\)"):
        instantiate(ORACLE.diffusion, GaussianOracle.exact(5).params)
    with pytest.raises(ValueError, match=r"'reverse\$params' at \.centres of shape \(3, 2\); got \(5, 2\)"):
        instantiate(networked(), parameters(networked(num_units=5)))
    with pytest.raises(ValueError, match=r"'reverse\$params' at \.centres of shape \(3, 2\); got none there"):
        instantiate(networked(), {"reverse$params": dpm.networks.StepMLP(2, 4, num_steps=4, key=jax.random.key(0))})
    with pytest.raises(TypeError, match="`params` to be a dictionary of parameters by name; got ArrayImpl"):
        instantiate(ORACLE.diffusion, jnp.ones(3))


def test_what_is_no_definition():
    with pytest.raises(
        TypeError, match="function that declares parameters and returns a dpm_ppl.Diffusion; got Diffusion"
    ):
        instantiate(instantiate(ORACLE.diffusion, ORACLE.params), {})
    with pytest.raises(TypeError, match="to return a dpm_ppl.Diffusion; got GaussianKernel"):
        instantiate(lambda: dpm.GaussianKernel(jnp.array([0.5]), ()), {})


def test_a_latent_needs_a_value():
    def diffusion():
        scale = numpyro.sample("scale", dist.LogNormal())
        kernel = dpm.GaussianKernel(jnp.array([0.3, 0.6]), (2,))
        return dpm.Diffusion(kernel, lambda x, t: dist.Normal(x, scale).to_event(1))

    with pytest.raises(ValueError, match="latent variables that `diffusion` samples; got none for scale"):
        instantiate(diffusion, {})
    step = instantiate(diffusion, {"scale": 0.7}).reverse(jnp.zeros(2), jnp.array(2))
    np.testing.assert_allclose(step.variance, [0.49, 0.49])
