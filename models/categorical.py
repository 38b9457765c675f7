"""Four-letter words by masked diffusion, D3PM: an absorbing kernel, and a perceptron that predicts the letters.

A kernel that redraws letters evenly, `diffusion(EVEN)`, is D3PM's uniform diffusion.

Source: Austin et al. 2021, "Structured Denoising Diffusion Models in Discrete State-Spaces".
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm

NUM_STEPS, LENGTH, LETTERS = 40, 4, "aest"  # and after the letters, in place 4, the mask
WORDS = ("east", "seat", "eats", "test", "teas", "ease", "sets", "tata")
MASKED, EVEN = (0.0, 0.0, 0.0, 0.0, 1.0), (0.25, 0.25, 0.25, 0.25, 0.0)

recipe = {"num_iterations": 5_000, "batch_size": 128, "num_steps_sampled": 8, "learning_rate": 5e-3}


def data() -> dist.Distribution:
    """Eight words as places in LETTERS, the first eight times as frequent as the last."""
    words = jnp.asarray([[LETTERS.index(letter) for letter in word] for word in WORDS])
    frequency = np.arange(len(WORDS), 0, -1) / sum(range(len(WORDS) + 1))
    return dist.MixtureSameFamily(dist.Categorical(jnp.asarray(frequency)), dist.Delta(words, event_dim=1))


def diffusion(probs: Sequence[float] = MASKED) -> dpm.Diffusion:
    """Reverse steps are factorised; with the true P(x^0 | x^t) they would be the best that factorised steps can be."""
    kernel = dpm.CategoricalKernel(dpm.schedules.constant_fraction(NUM_STEPS), (LENGTH,), probs)
    num_inputs, num_letters = LENGTH * kernel.num_states, len(LETTERS)
    net = dpm.networks.TimeMLP(num_inputs, LENGTH * num_letters, num_steps=NUM_STEPS, width=64, key=numpyro.prng_key())
    net = eqx_module("reverse", net)

    def reverse(x: Array, t: Array) -> dist.Distribution:
        seen = jax.nn.one_hot(x, kernel.num_states).reshape(*x.shape[:-1], num_inputs)
        letters = net(seen, t).reshape(*x.shape, num_letters)
        never_mask = jnp.full((*x.shape, 1), -1e9)
        return dpm.outputs.data_categorical(kernel, x, t, jnp.concatenate([letters, never_mask], -1))

    return dpm.Diffusion(kernel, reverse, decode=lambda x1: reverse(x1, jnp.asarray(1)))


model, guide = dpm.single_chain(diffusion)
