"""Pairs of angles by a kernel written in this page: wrapped normals, uniform in the end (after Jing et al. 2022)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm

NUM_STEPS, TURN = 30, 2 * np.pi
SCALES = np.geomspace(0.03, 2.0, NUM_STEPS)  # of each step; of all together about 4, which leaves 1e-7 of a nat
recipe = {"num_iterations": 4_000, "batch_size": 256, "num_steps_sampled": 8}


class _WrappedNormal(dist.Distribution):
    """A normal angle wrapped to -pi..pi: its density is summed over turns (Mardia and Jupp 2000, section 3.5.7)."""

    support = dist.constraints.circular

    def __init__(self, loc: Any, scale: Any) -> None:
        self.loc, self.scale = jnp.broadcast_arrays(loc, scale)
        super().__init__(self.loc.shape)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        drawn = self.loc + self.scale * jax.random.normal(key, sample_shape + self.batch_shape)
        return (drawn + np.pi) % TURN - np.pi

    def log_prob(self, value: Any) -> Array:
        turned = ((value - self.loc) % TURN)[..., None] + TURN * np.arange(-5, 5)  # enough for a scale of 4
        return jax.nn.logsumexp(dist.Normal(0.0, self.scale[..., None]).log_prob(turned), -1)


class _Kernel:
    """Steps round the circle; a kernel needs no more than these four, and gets its bound from whole trajectories."""

    num_steps, event_shape = NUM_STEPS, (2,)

    def stationary(self) -> dist.Distribution:
        return dist.Uniform(-np.pi, np.pi).expand((2,)).to_event(1)

    def step(self, x: Any, t: Any) -> dist.Distribution:
        return _WrappedNormal(x, jnp.asarray(SCALES)[t - 1][..., None]).to_event(1)


def data() -> dist.Distribution:
    """Three spots of unequal weight and width, one of them across the cut at pi."""
    centre, width = np.array([[-1.0, 0.5], [1.5, -2.0], [3.0, 2.6]]), np.array([[0.5, 0.3], [0.3, 0.7], [0.4, 0.4]])
    spots = _WrappedNormal(centre, width).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(np.array([0.5, 0.3, 0.2])), spots)


def diffusion() -> dpm.Diffusion:
    """Reverse steps are wrapped normals too, whose network sees sines and cosines."""
    net = eqx_module("reverse", dpm.networks.TimeMLP(4, 4, num_steps=NUM_STEPS, width=64, key=numpyro.prng_key()))

    def reverse(x: Array, t: Array) -> dist.Distribution:
        move, log_scale = jnp.split(net(jnp.concatenate([jnp.sin(x), jnp.cos(x)], -1), t), 2, -1)
        scale = jnp.asarray(SCALES, x.dtype)[t - 1][..., None]
        return _WrappedNormal(x + scale * move, scale * jnp.exp(log_scale)).to_event(1)

    return dpm.Diffusion(_Kernel(), reverse)


model, guide = dpm.single_chain(diffusion)
