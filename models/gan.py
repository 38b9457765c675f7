"""Generative adversarial network of the swiss roll, to compare with: minimax by a gradient reversed; no likelihood."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from jax import Array
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm

NUM_ITERATIONS = 12_000
RATE = optax.cosine_decay_schedule(5e-4, NUM_ITERATIONS)  # to 0, so that the two come to rest
recipe = {"num_iterations": NUM_ITERATIONS, "batch_size": 256, "optimizer": optax.adam(RATE, b1=0.5)}


def data() -> dist.Distribution:
    """The roll with noise 0.25, of zero mean and unit variance."""
    return dpm.SwissRoll(noise=0.25)


def model(x0: Array | None = None, size: int = 1) -> Array:
    """Generates `size` points; or observes which of x0, shape (num_data, 2), and as many generated points are real.

    The objective is E log D + E log(1 - D), at most 2 JS - 2 log 2 in the discriminator D; the generator lowers it.
    """
    generate = eqx_module("generator", eqx.nn.MLP(2, 2, 128, 3, jax.nn.silu, key=numpyro.prng_key()))
    with numpyro.plate("data", size if x0 is None else len(x0)):
        x = jax.vmap(generate)(numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1)))
        if x0 is None:
            return x
        logit = eqx_module("discriminator", eqx.nn.MLP(2, "scalar", 128, 3, jax.nn.silu, key=numpyro.prng_key()))
        numpyro.sample("is_real", dist.Bernoulli(logits=jax.vmap(logit)(x0)), obs=jnp.ones(len(x0)))
        fooled = 2 * jax.lax.stop_gradient(x) - x  # the value is x; the gradient is turned, and so SVI's descent
        numpyro.sample("is_generated", dist.Bernoulli(logits=-jax.vmap(logit)(fooled)), obs=jnp.ones(len(x0)))
        return x0


def guide(x0: Array) -> None:
    """Nothing is inferred: the generator's noise is drawn from its prior."""
    with numpyro.plate("data", len(x0)):
        numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
