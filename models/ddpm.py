"""Swiss roll by DDPM: 1000 steps on a linear schedule, noise prediction, fixed variances, the simple loss.

The simple loss is the bound of the same program with other weights on its terms, `weight` in the recipe; the metrics
report the bound itself.

Source: Ho, Jain and Abbeel 2020, "Denoising Diffusion Probabilistic Models", eqs. 11 to 14.
"""

import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm

NUM_STEPS = 1000
SCHEDULE = dpm.schedules.linear  # or cosine, of Nichol and Dhariwal 2021


def variance(kernel: dpm.GaussianKernel, t: Array) -> Array:
    """sigma_t^2 = beta_t, the better of the paper's two where the data's own noise is wider than the first steps'."""
    return kernel.beta[t - 1]


def simple(kernel: dpm.GaussianKernel, t: Array) -> Array:
    """The weight that leaves ||noise - prediction||^2 of the KL at step t, and a constant."""
    return dpm.outputs.noise_weight(kernel, t, variance=variance(kernel, t))


recipe = {
    "num_iterations": 6_000,
    "batch_size": 512,
    "num_steps_sampled": 8,
    "weight": simple,
    "clip_norm": None,  # a sum of T - 1 squared errors has a gradient as large as T
}


def data() -> dist.Distribution:
    """The roll with noise 0.25, of zero mean and unit variance."""
    return dpm.SwissRoll(noise=0.25)


def diffusion() -> dpm.Diffusion:
    """Reverse steps have a fixed variance, and a mean from the noise that the network predicts."""
    kernel = dpm.GaussianKernel(SCHEDULE(NUM_STEPS), event_shape=(2,))
    net = eqx_module("reverse", dpm.networks.TimeMLP(2, 2, num_steps=NUM_STEPS, key=numpyro.prng_key()))

    def reverse(x: Array, t: Array) -> dist.Distribution:
        return dpm.outputs.noise_normal(kernel, x, t, net(x, t), variance=variance(kernel, t)[..., None])

    return dpm.Diffusion(kernel, reverse)


model, guide = dpm.single_chain(diffusion)
