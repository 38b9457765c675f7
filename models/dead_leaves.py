"""Dead leaves, 16 x 16 pixels of radii 1 to 16, by the chain and the U-Net of `mnist`: real numbers, dequantised.

Every batch is of new images. Bits per pixel are of a density on the scale of unit variance, as in 2015; the setting is
ours, so that its numbers are no others' to compare with.
"""

import math

import jax
import numpy as np
import numpyro.distributions as dist

import dpm_ppl as dpm
from dpm_ppl.datasets import Scale
from dpm_ppl.models.mnist import of_images

IMAGES = dpm.datasets.DeadLeaves(16, smallest=1.0, largest=16.0)
SCALE = Scale(128.0, 256 / math.sqrt(12))  # exact: a dequantised pixel is uniform over 0..256

recipe = {"num_iterations": 6_000, "batch_size": 64, "num_steps_sampled": 2, "ema_decay": 0.995}


def data() -> dist.Distribution:
    """A new image, dequantised, of zero mean and unit variance."""
    return dpm.datasets.Dequantised(IMAGES, SCALE)


def held_out() -> np.ndarray:
    """1,000 images by a seed."""
    levels = IMAGES.sample(jax.random.key(2015), (1000,))
    return SCALE.dequantise(np.asarray(levels), seed=2015)


diffusion = of_images(16, 16)
model, guide = dpm.single_chain(diffusion)
