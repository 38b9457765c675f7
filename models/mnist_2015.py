"""MNIST as in 2015: T = 1000, convolutions at several scales that see x^t alone, bumps in place of time."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.contrib.module import eqx_module
from scipy.special import logit

import dpm_ppl as dpm
from dpm_ppl.diffusion import Definition

NUM_STEPS, BETA_1, ALPHA_BAR_T = 1000, 1e-4, 1e-3

recipe = {"num_iterations": 5_000, "batch_size": 32, "num_steps_sampled": 2, "learning_rate": 5e-3, "ema_decay": 0.995}


def data() -> dist.Distribution:
    """A training image at random, dequantised, on the scale of all of zero mean and unit variance."""
    images = dpm.datasets.mnist()
    return dpm.datasets.Dequantised(images.train, images.scale)


def held_out() -> np.ndarray:
    """The test images, dequantised by a seed."""
    images = dpm.datasets.mnist()
    return images.scale.dequantise(images.test, seed=0)


def of_images(*event_shape: int) -> Definition:
    """The paper's chain of images: a learned schedule, mean and sigmoid variance of each pixel from one network."""

    def diffusion() -> dpm.Diffusion:
        # It begins even in log-SNR: even in signal, step 2 alone would add nine times the noise of step 1.
        start = dpm.schedules.log_snr(NUM_STEPS, first=logit(1 - BETA_1), last=logit(ALPHA_BAR_T))
        beta = dpm.schedules.learned("beta", NUM_STEPS, beta_1=BETA_1, alpha_bar_T=ALPHA_BAR_T, start=start)
        kernel = dpm.GaussianKernel(beta, event_shape)
        net = dpm.networks.MultiScaleNetwork(event_shape, num_steps=NUM_STEPS, key=numpyro.prng_key())
        net = eqx_module("reverse", net)

        def reverse(x: Array, t: Array) -> dist.Distribution:
            mean, variance = jnp.moveaxis(net(x, t), -1, 0)
            return dpm.outputs.shifted_normal(kernel, x, t, mean, variance)

        return dpm.Diffusion(kernel, reverse)

    return diffusion


diffusion = of_images(28, 28)
model, guide = dpm.single_chain(diffusion)
