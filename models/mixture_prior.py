"""Noisy measurements of hidden values: a chain is the prior of the latent value, inside a hierarchical model.

Each thing has a value z, and three measurements of it with noise of unknown width. What the chain learns is how values
are spread among things, of which no value is seen (empirical Bayes).

Source: Vahdat et al. 2021 for a diffusion as the prior of a latent; Bovy et al. 2011 for the deconvolution.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm

NUM_STEPS, NUM_MEASUREMENTS, NOISE = 20, 3, 0.4
WEIGHT, CENTRE, WIDTH = (0.65, 0.35), (-0.7, 1.3), (0.35, 0.25)
recipe = {"num_iterations": 4_000, "batch_size": 256, "num_steps_sampled": 8}


def data() -> dist.Distribution:
    """Three measurements, shape (3,), of values in two groups: normal in each, correlated by the value they share."""
    shared, own = jnp.ones((NUM_MEASUREMENTS, NUM_MEASUREMENTS)), NOISE**2 * jnp.eye(NUM_MEASUREMENTS)
    covariance = jnp.stack([width**2 * shared + own for width in WIDTH])
    centre = jnp.broadcast_to(jnp.array(CENTRE)[:, None], (2, NUM_MEASUREMENTS))
    return dist.MixtureSameFamily(dist.Categorical(jnp.array(WEIGHT)), dist.MultivariateNormal(centre, covariance))


def prior() -> dpm.Diffusion:
    """The chain of a value z, shape (1,): of nothing that is observed."""
    kernel = dpm.GaussianKernel(dpm.schedules.learned("beta", NUM_STEPS, beta_1=1e-3), event_shape=(1,))
    net = eqx_module("reverse", dpm.networks.TimeMLP(1, 2, num_steps=NUM_STEPS, width=32, key=numpyro.prng_key()))

    def reverse(x: Array, t: Array) -> dist.Distribution:
        mean, variance = jnp.split(net(x, t), 2, axis=-1)
        return dpm.outputs.residual_normal(kernel, x, t, mean, variance)

    return dpm.Diffusion(kernel, reverse)


def model(x0: Array | None = None, size: int = 1) -> Array:
    """Value by the chain, then its measurements: generates `size` triples, or observes x0 of shape (num_data, 3)."""
    chain, noise = prior(), numpyro.param("noise", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", size if x0 is None else len(x0)):
        z = dpm.reverse_chain("z", chain)
        return numpyro.sample("x", dist.Normal(z + jnp.zeros(NUM_MEASUREMENTS), noise).to_event(1), obs=x0)


def guide(x0: Array) -> None:
    """An encoder of the measurements to their value, then the forward chain from there."""
    chain = prior()
    net = eqx_module("encoder", eqx.nn.MLP(NUM_MEASUREMENTS, 2, 32, 2, jax.nn.silu, key=numpyro.prng_key()))
    loc, log_scale = jnp.split(jax.vmap(net)(x0), 2, axis=-1)
    with numpyro.plate("data", len(x0)):
        z = numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))
        dpm.forward_chain("z", chain, z)
