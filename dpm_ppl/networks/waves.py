"""Time as networks see it: sines and cosines of t / T at frequencies that double."""

import jax.numpy as jnp
from jax import Array


def waves(time: Array, *, num_frequencies: int) -> Array:
    """sin(pi 2^k t / T), then cos, for k = 0..num_frequencies - 1: from a half period over the whole chain.

    Args:
        time: t / T, of any shape.
        num_frequencies: Number of frequencies; the last has a period of 2^(2 - num_frequencies) T steps.

    Returns:
        Of shape (*time.shape, 2 num_frequencies).

    Source: Vaswani et al. 2017, section 3.5, with frequencies counted in chains.
    """
    angle = jnp.pi * jnp.asarray(time)[..., None] * 2.0 ** jnp.arange(num_frequencies)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
