"""CIFAR-10 as in 2015: the chain and the network of `mnist_2015`, on 32 x 32 pixels of three channels."""

import numpy as np
import numpyro.distributions as dist

import dpm_ppl as dpm
from dpm_ppl.models.mnist_2015 import of_images

recipe = {"num_iterations": 4_000, "batch_size": 32, "num_steps_sampled": 2, "learning_rate": 5e-3, "ema_decay": 0.995}


def data() -> dist.Distribution:
    """A training image at random, of the batches that are there, dequantised, of zero mean and unit variance."""
    images = dpm.datasets.cifar10(partial=True)
    return dpm.datasets.Dequantised(images.train, images.scale)


def held_out() -> np.ndarray:
    """The test images, dequantised by a seed."""
    images = dpm.datasets.cifar10(partial=True)
    return images.scale.dequantise(images.test, seed=0)


diffusion = of_images(32, 32, 3)
model, guide = dpm.single_chain(diffusion)
