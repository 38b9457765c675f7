"""MNIST in 1000 steps: a U-Net predicts the velocity, the log-SNR is learned, and the last step is over the levels.

Its ELBO is a bound on the probability of the 256 levels themselves: bits per dimension of no dequantisation.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm
from dpm_ppl.datasets import Scale
from dpm_ppl.diffusion import Definition

NUM_STEPS, FIRST, LAST, WIDTHS = 1000, 10.0, -8.0, (48, 96)
SCALE = Scale(33.832771, 78.590674)  # `dpm.datasets.mnist().scale`; below, black, white, grey: share, mean, deviation
PIXELS = ((0.809, -0.424, 0.0), (0.070, 2.798, 0.011), (0.121, 1.215, 1.027))

recipe = {"num_iterations": 2_500, "batch_size": 64, "num_steps_sampled": 2, "ema_decay": 0.995}


def data() -> dist.Distribution:
    """A training image at random, each level at the middle of its interval."""
    return dpm.datasets.Centred(dpm.datasets.mnist().train, SCALE)


def held_out() -> np.ndarray:
    """The test images, on the same scale."""
    return SCALE.centre(dpm.datasets.mnist().test)


def of_images(
    *event_shape: int,
    scale: Scale | None = None,
    first: float = FIRST,
    num_steps: int = NUM_STEPS,
    widths: tuple[int, int] = WIDTHS,
    pixels: tuple[tuple[float, float, float], ...] = ((1.0, 0.0, 1.0),),
) -> Definition:
    """A chain of images on real numbers; with the scale of their levels, its last step is over these.

    x^1 is to be less than a level from x^0: the log-SNR `first` says how near, in units of the data. Where the network
    says nothing, `pixels` are independent of this mixture of normals.
    """

    def diffusion() -> dpm.Diffusion:
        beta = dpm.schedules.learned_log_snr("log_snr", num_steps, first=first, last=LAST)
        kernel = dpm.GaussianKernel(beta, event_shape)
        net = dpm.networks.UNet(event_shape, num_outputs=2, num_steps=num_steps, widths=widths, key=numpyro.prng_key())
        net = eqx_module("reverse", net)

        def predicted(x: Array, t: Array) -> tuple[Array, Array, Array]:
            velocity, log_scale = jnp.moveaxis(net(x, t), -1, 0)
            x0, variance = dpm.outputs.mixture_moments(kernel, x, t, pixels)
            noise = kernel.one_minus_alpha_bar[t].reshape(t.shape + (1,) * len(event_shape))
            return x0 - jnp.sqrt(noise) * velocity, variance, log_scale

        def reverse(x: Array, t: Array) -> dist.Distribution:
            x0, variance, log_scale = predicted(x, t)
            from_data, _, certain = kernel.posterior_coefficients(t)
            spread = certain + from_data**2 * variance * jnp.exp(2 * log_scale)
            return dpm.outputs.data_normal(kernel, x, t, x0, variance=spread)

        if scale is None:
            return dpm.Diffusion(kernel, reverse)

        def decode(x1: Array) -> dist.Distribution:
            x0, _, log_scale = predicted(x1, jnp.ones(x1.shape[: x1.ndim - len(event_shape)], int))
            scales = jnp.exp(log_scale - first / 2)
            return dpm.DiscretisedNormal(x0, scales, levels=scale).to_event(len(event_shape))

        return dpm.Diffusion(kernel, reverse, decode)

    return diffusion


diffusion = of_images(28, 28, scale=SCALE, pixels=PIXELS)
model, guide = dpm.single_chain(diffusion)
