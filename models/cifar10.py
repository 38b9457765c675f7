"""CIFAR-10 by the chain and the U-Net of `mnist`: bits per dimension of the 256 levels, of no dequantisation."""

import numpy as np
import numpyro.distributions as dist

import dpm_ppl as dpm
from dpm_ppl.datasets import Scale
from dpm_ppl.models.mnist import of_images

SCALE = Scale(121.3, 64.1)  # near enough of the training images: the bound is of levels, whatever their scale

recipe = {"num_iterations": 2_000, "batch_size": 32, "num_steps_sampled": 2, "ema_decay": 0.995}


def data() -> dist.Distribution:
    """A training image at random, of the batches that are there, each level at the middle of its interval."""
    return dpm.datasets.Centred(dpm.datasets.cifar10(partial=True).train, SCALE)


def held_out() -> np.ndarray:
    """The test images that are there, on the same scale."""
    return SCALE.centre(dpm.datasets.cifar10(partial=True).test)


diffusion = of_images(32, 32, 3, scale=SCALE)
model, guide = dpm.single_chain(diffusion)
