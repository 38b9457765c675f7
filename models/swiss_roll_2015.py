"""Swiss roll as in 2015: T = 40, 16 radial basis units, diagonal covariance, learned schedule."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm

NUM_STEPS = 40

recipe = {"num_iterations": 30_000, "batch_size": 128, "num_steps_sampled": None, "learning_rate": 3e-2}


def data() -> dist.Distribution:
    """The roll with noise 0.25, of zero mean and unit variance."""
    return dpm.SwissRoll(noise=0.25)


def diffusion() -> dpm.Diffusion:
    """Normalised radial basis units shared by all steps, read out per step into a mean and a sigmoid variance."""
    kernel = dpm.GaussianKernel(dpm.schedules.learned("beta", NUM_STEPS, beta_1=1e-3), event_shape=(2,))
    net = eqx_module("reverse", dpm.networks.RBFNetwork(2, 4, num_steps=NUM_STEPS, key=numpyro.prng_key()))

    def reverse(x: Array, t: Array) -> dist.Distribution:
        mean, variance = jnp.split(net(x, t), 2, axis=-1)
        return dpm.outputs.residual_normal(kernel, x, t, mean, variance)

    return dpm.Diffusion(kernel, reverse)


model, guide = dpm.single_chain(diffusion)
