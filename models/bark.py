"""Bark, 32 x 32 pixels of the photographs in a folder, by the chain and the U-Net of `mnist`: dequantised.

Bits per pixel are of a density on the scale of unit variance, as in 2015; on other photographs they are other numbers.
"""

from functools import cache

import numpy as np
import numpyro.distributions as dist

import dpm_ppl as dpm
from dpm_ppl.datasets import Images
from dpm_ppl.models.mnist import of_images

SIZE = 32

recipe = {"num_iterations": 2_000, "batch_size": 32, "num_steps_sampled": 2, "ema_decay": 0.995}


@cache
def patches() -> Images:
    """Patches of the left of every photograph to fit, of its right to test."""
    return dpm.datasets.bark(SIZE)


def data() -> dist.Distribution:
    """A training patch at random, dequantised, on the scale of all of zero mean and unit variance."""
    return dpm.datasets.Dequantised(patches().train, patches().scale)


def held_out() -> np.ndarray:
    """The test patches, dequantised by a seed."""
    return patches().scale.dequantise(patches().test, seed=0)


diffusion = of_images(SIZE, SIZE)
model, guide = dpm.single_chain(diffusion)
