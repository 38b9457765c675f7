"""Swiss roll by a Markovian hierarchical VAE: four learned steps of noise, of which nothing is known in closed form.

The general case of a diffusion: the forward kernel is a network too, learned with the reverse by the same bound, whose
terms come from sampled trajectories. With NUM_STEPS = 1 it is a VAE.

Source: Kingma and Welling 2014 for one step; Luo 2022, section 2.3, for more.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm

NUM_STEPS = 4

recipe = {"num_iterations": 12_000, "batch_size": 256, "num_steps_sampled": None}


def data() -> dist.Distribution:
    """The roll with noise 0.25, of zero mean and unit variance."""
    return dpm.SwissRoll(noise=0.25)


@dataclass(frozen=True)
class LearnedKernel:
    """Normal steps whose shift and log scale come from `net(x, t)`; at zeros x^t = (x^(t-1) + noise) / sqrt(2)."""

    net: Callable[[Array, Array], Array]
    num_steps: int
    event_shape: tuple[int, ...] = (2,)

    def stationary(self) -> dist.Distribution:
        """The prior of x^T; no step need keep it, they only learn to end there."""
        return dist.Normal(jnp.zeros(self.event_shape), 1).to_event(1)

    def step(self, x: ArrayLike, t: ArrayLike) -> dist.Distribution:
        """q(x^t | x^(t-1) = x)."""
        x, t = jnp.asarray(x), jnp.asarray(t)
        return gated(x, self.net(x, t))


def gated(x: Array, output: Array) -> dist.Distribution:
    """A diagonal normal around x, shrunk and shifted, from a network's output of twice the size."""
    shift, log_scale = jnp.split(output, 2, axis=-1)
    return dist.Normal(jnp.sqrt(0.5) * x + shift, jnp.sqrt(0.5) * jnp.exp(log_scale)).to_event(1)


def diffusion() -> dpm.Diffusion:
    """Networks for the steps up, the steps down, and the last one down to the data."""
    forward, backward, last = (
        eqx_module(name, dpm.networks.TimeMLP(2, 4, num_steps=NUM_STEPS, width=64, key=numpyro.prng_key()))
        for name in ("forward", "backward", "last")
    )
    return dpm.Diffusion(
        LearnedKernel(forward, NUM_STEPS),
        reverse=lambda x, t: gated(x, backward(x, t)),
        decode=lambda x1: gated(x1, last(x1, jnp.ones(()))),
    )


model, guide = dpm.single_chain(diffusion)
