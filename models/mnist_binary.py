"""Binary MNIST in 1000 steps: the kernel's posterior averaged over the digits that a U-Net predicts.

The bits of the training images are drawn anew in every batch, those of the 10,000 test images once, by a seed.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import logit
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm

NUM_STEPS, RATE, SHAPE, WIDTHS = 1000, 0.13, (28, 28), (48, 96)

recipe = {"num_iterations": 2_500, "batch_size": 64, "num_steps_sampled": 2, "ema_decay": 0.995}  # two cores, an hour
GPU = {"num_iterations": 25_000, "batch_size": 256, "num_steps_sampled": 4, "ema_decay": 0.9995}  # 4 minutes of an H200


def data() -> dist.Distribution:
    """A training image at random, each pixel 1 with the probability that its grey gives."""
    return dpm.datasets.Binarised(dpm.datasets.mnist().train)


def held_out() -> np.ndarray:
    """The test images, in bits."""
    return dpm.datasets.mnist_binary().test


def diffusion() -> dpm.Diffusion:
    """Reverse steps are factorised; where the network says nothing, pixels are independent of rate RATE."""
    kernel = dpm.BernoulliKernel(dpm.schedules.constant_fraction(NUM_STEPS), event_shape=SHAPE, rate=RATE)
    net = dpm.networks.UNet(SHAPE, num_steps=NUM_STEPS, widths=WIDTHS, key=numpyro.prng_key())
    net = eqx_module("reverse", net)

    def reverse(x: Array, t: Array) -> dist.Distribution:
        seen = [kernel.marginal(jnp.full_like(x, bit), t).base_dist.log_prob(x) for bit in (0, 1)]
        alone = logit(RATE) + seen[1] - seen[0]  # of P(x^0 = 1 | x^t) of each pixel by itself
        return dpm.outputs.data_bernoulli(kernel, x, t, alone + net(2.0 * x - 1.0, t))

    return dpm.Diffusion(kernel, reverse)


model, guide = dpm.single_chain(diffusion)
