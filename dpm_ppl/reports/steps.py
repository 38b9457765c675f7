"""The reverse chain a step at a time: a few samples, seen at every time on their way, or left where time runs out."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dpm_ppl.parts import Parts

Walk = Callable[[Any], Iterator[tuple[int, Array]]]


def reverse_steps(parts: Parts, context: Any, *, key: Array, num_samples: int, num_steps: int) -> Walk:
    """Ancestral sampling that hands out every state: the draws of `dpm_ppl.chains.reverse_states`, of the same key.

    Where that compiles the network anew for each time that is kept, here one step is compiled, and the last one, once
    for all parameters.

    Args:
        parts: A program that is a chain.
        context: What is given beside, leaves of num_samples rows; None where nothing is.
        key: Random key.
        num_samples: Number of trajectories.
        num_steps: Number of steps T.

    Returns:
        Function of the parameters that goes from (T, x^T) to (0, x^0), states of shape (num_samples, *event).
    """

    @jax.jit
    def begin(params: Any) -> Array:
        kernel = parts.built(params, context).kernel
        return kernel.stationary().sample(jax.random.fold_in(key, num_steps + 1), (num_samples,))

    @jax.jit
    def back(params: Any, x: Array, t: Array) -> Array:
        return parts.built(params, context).reverse(x, t).sample(jax.random.fold_in(key, t))

    @jax.jit
    def end(params: Any, x: Array) -> Array:
        return parts.built(params, context).decode(x).sample(jax.random.fold_in(key, 1))

    def walk(params: Any) -> Iterator[tuple[int, Array]]:
        x = begin(params)
        yield num_steps, x
        for t in range(num_steps, 1, -1):
            x = back(params, x, jnp.asarray(t))
            yield t - 1, x
        yield 0, end(params, x)

    return walk
