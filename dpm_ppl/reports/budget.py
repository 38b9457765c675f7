"""How much work a report may do: a number of data for a number of seconds, by counting operations."""

import math

import jax
import jax.numpy as jnp

from dpm_ppl.diffusion import Diffusion


def affordable(diffusion: Diffusion, *, seconds: float, least: int, most: int) -> int:
    """How many data can be taken through every step in about `seconds` on a core or two.

    It counts operations and takes no time, so that the same program is always evaluated on as many data.

    Args:
        diffusion: The diffusion, with a context beside that of a few data.
        seconds: What to spend.
        least: Result at least.
        most: Result at most.

    Returns:
        Number of data.
    """
    if diffusion.num_steps == 1:
        return most
    context = jax.tree.leaves(diffusion.context)
    batch = len(context[0]) if context else 16
    dtype = diffusion.kernel.stationary().sample(jax.random.key(0)).dtype
    x = jax.ShapeDtypeStruct((batch, *diffusion.event_shape), dtype)
    lowered = jax.jit(lambda x, t: diffusion.reverse(x, t).log_prob(x)).lower(x, jax.ShapeDtypeStruct((), jnp.int32))
    flops = float((lowered.cost_analysis() or {}).get("flops", 0.0)) / batch
    # Measured on two cores, swiss rolls and heartbeats: matrix products, and drawing and scoring each coordinate.
    seconds_per_step = 3e-11 * flops + 4.5e-7 * math.prod(diffusion.event_shape)
    return max(least, min(most, int(seconds / (seconds_per_step * diffusion.num_steps))))
