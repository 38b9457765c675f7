"""States of the two chains at chosen times, with memory for those alone: what a sampler and a picture need.

`ForwardChain` and `ReverseChain` are distributions over whole trajectories, which can be scored; their samples grow
with T.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jax import Array

from dpm_ppl.diffusion import Diffusion


def reverse_states(
    diffusion: Diffusion, *, key: Array, num_samples: int, times: Iterable[int] = (0,)
) -> dict[int, Array]:
    """Exact ancestral samples of the reverse chain, seen at some times; call it under `jax.jit`.

    Args:
        diffusion: The diffusion, with its parameters in place.
        key: Random key.
        num_samples: Number of trajectories.
        times: Times t to keep, 0 <= t <= T; t = 0 is the datum that the model generates.

    Returns:
        x^t for each time, each of shape (num_samples, *event), from T down.

    Raises:
        ValueError: num_samples is less than 1, or a time lies outside 0..T.
    """
    times = _check(diffusion, times)
    if num_samples < 1:
        raise ValueError(f"Expected `num_samples` to be at least 1; got {num_samples}.")

    def back(t: Array, x: Array) -> Array:
        return diffusion.reverse(x, t).sample(jax.random.fold_in(key, t))

    t = diffusion.num_steps
    x = diffusion.kernel.stationary().sample(jax.random.fold_in(key, t + 1), (num_samples,))
    states = {}
    for time in sorted(times, reverse=True):
        x, t = _steps(back, t, t - max(time, 1), x, stride=-1), time
        states[time] = x if time > 0 else diffusion.decode(x).sample(jax.random.fold_in(key, 1))
    return states


def forward_states(diffusion: Diffusion, x0: Array, *, key: Array, times: Iterable[int]) -> dict[int, Array]:
    """Forward trajectories from data, seen at some times; call it under `jax.jit`.

    Args:
        diffusion: The diffusion; only its kernel's `step` is used.
        x0: Data, shape (num_data, *event).
        key: Random key.
        times: Times t to keep, 0 <= t <= T; t = 0 is x0 itself.

    Returns:
        x^t for each time, each of x0's shape, from 0 up.

    Raises:
        ValueError: a time lies outside 0..T.
    """

    def on(t: Array, x: Array) -> Array:
        return diffusion.kernel.step(x, t).sample(jax.random.fold_in(key, t))

    states, x, t = {}, x0, 0
    for time in sorted(_check(diffusion, times)):
        x = _steps(on, t + 1, time - t, x, stride=1)
        states[time], t = x, time
    return states


def _steps(step: Callable[[Array, Array], Array], first: int, num_steps: int, x: Array, *, stride: int) -> Array:
    """Applies `step(t, x)` at t = first, first + stride, ..., in all num_steps times."""
    if num_steps == 0:
        return x
    x = step(jnp.asarray(first), x)  # outside the loop, whose state must keep its dtype: data may be integers

    def body(i: Array, x: Array) -> Array:
        return step(first + stride * i, x)

    return jax.lax.fori_loop(1, num_steps, body, x)


def _check(diffusion: Diffusion, times: Iterable[int]) -> set[int]:
    times = set(times)
    if not times or min(times) < 0 or max(times) > diffusion.num_steps:
        raise ValueError(f"Expected times in 0..{diffusion.num_steps}, at least one; got {sorted(times)}.")
    return times
