"""Variational autoencoder of the swiss roll, to compare with: two latents, perceptrons, a learned noise."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm

recipe = {"num_iterations": 20_000, "batch_size": 512, "learning_rate": 2e-3}


def data() -> dist.Distribution:
    """The roll with noise 0.25, of zero mean and unit variance."""
    return dpm.SwissRoll(noise=0.25)


def model(x0: Array | None = None, size: int = 1) -> Array:
    """Latents through the decoder, and noise: generates `size` points, or observes x0 of shape (num_data, 2)."""
    decode = eqx_module("decoder", eqx.nn.MLP(2, 2, 128, 3, jax.nn.silu, key=numpyro.prng_key()))
    scale = numpyro.param("scale", jnp.full(2, 0.5), constraint=dist.constraints.positive)
    with numpyro.plate("data", size if x0 is None else len(x0)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        return numpyro.sample("x", dist.Normal(jax.vmap(decode)(z), scale).to_event(1), obs=x0)


def guide(x0: Array) -> None:
    """The encoder: a factorised normal whose mean and scale depend on the point."""
    encode = eqx_module("encoder", eqx.nn.MLP(2, 4, 128, 3, jax.nn.silu, key=numpyro.prng_key()))
    mean, log_scale = jnp.split(jax.vmap(encode)(x0), 2, axis=-1)
    with numpyro.plate("data", len(x0)):
        numpyro.sample("z", dist.Normal(mean, jnp.exp(log_scale)).to_event(1))
