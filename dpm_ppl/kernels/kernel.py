"""What the language needs of a kernel, and how states and steps are checked."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeGuard, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike


@runtime_checkable
class Kernel(Protocol):
    """What the language needs of a kernel."""

    @property
    def num_steps(self) -> int:
        """Number of steps T."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one state."""

    def stationary(self) -> dist.Distribution:
        """The distribution pi that `step` keeps; batch shape (), event shape `event_shape`."""

    def step(self, x: ArrayLike, t: ArrayLike) -> dist.Distribution:
        """One step of noise, q(x^t | x^(t-1) = x)."""


@runtime_checkable
class MarginalKernel(Kernel, Protocol):
    """A kernel of which many steps forward are known in closed form."""

    def marginal(self, x0: ArrayLike, t: ArrayLike) -> dist.Distribution:
        """All of the first t steps, q(x^t | x^0)."""


@runtime_checkable
class ClosedFormKernel(MarginalKernel, Protocol):
    """A kernel of which the step backward is known too: its KL terms are analytic."""

    def posterior(self, x0: ArrayLike, xt: ArrayLike, t: ArrayLike) -> dist.Distribution:
        """One step backward with the data known, q(x^(t-1) | x^t, x^0)."""


def has_marginal(kernel: Kernel) -> TypeGuard[MarginalKernel]:
    """Whether a kernel has `marginal`."""
    return isinstance(kernel, MarginalKernel)


def has_closed_forms(kernel: Kernel) -> TypeGuard[ClosedFormKernel]:
    """Whether a kernel has both `marginal` and `posterior`."""
    return isinstance(kernel, ClosedFormKernel)


def require_closed_forms(kernel: Kernel) -> ClosedFormKernel:
    """A kernel with `marginal` and `posterior`, or a clear error."""
    if not has_closed_forms(kernel):
        missing = [name for name in ("marginal", "posterior") if not hasattr(kernel, name)]
        raise TypeError(f"Expected a kernel with marginal and posterior; {type(kernel).__name__} lacks {missing}.")
    return kernel


def is_concrete(value: Any) -> bool:
    """Whether a value is known now, rather than a tracer of a JAX transformation."""
    return not isinstance(value, jax.core.Tracer)


def require_event_shape(event_shape: Sequence[int]) -> tuple[int, ...]:
    """An event shape as a tuple of positive integers, or a clear error."""
    if not isinstance(event_shape, Sequence) or not all(isinstance(n, int | np.integer) for n in event_shape):
        raise TypeError(f"Expected `event_shape` to be a tuple of integers, such as (2,); got {event_shape!r}.")
    if any(n < 1 for n in event_shape):
        raise ValueError(f"Expected every size in `event_shape` to be at least 1; got {tuple(event_shape)}.")
    return tuple(int(n) for n in event_shape)


def require_step(t: ArrayLike, num_steps: int) -> Array:
    """Steps as an integer array, checked to lie in 1..num_steps where they are known."""
    if is_concrete(t):
        known = np.asarray(t)  # what NumPy makes of a JAX array under jit would be traced
        if not np.issubdtype(known.dtype, np.integer):
            raise TypeError(f"Expected the step `t` to be an integer or an array of integers; got {known.dtype}.")
        if known.size and (known.min() < 1 or known.max() > num_steps):
            raise ValueError(
                f"Expected 1 <= t <= {num_steps} (steps count from 1); got t from {known.min()} to {known.max()}."
            )
    return jnp.asarray(t)


def step_number(t: int) -> np.ndarray:
    """A step t as an array, as every t is that a program's own laws see: `t[..., None]` works at all of them."""
    return np.asarray(t)


_Kind = TypeVar("_Kind", Array, np.ndarray)


def widened(x: _Kind) -> _Kind:
    """An array of its own kind in 32 bits at least: fewer cannot count all states, nor sum the terms of a bound."""
    if x.dtype == bool or (jnp.issubdtype(x.dtype, jnp.integer) and x.dtype.itemsize < 4):
        return x.astype(np.int32)
    return x.astype(np.float32) if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4 else x


def require_state(x: ArrayLike, event_shape: tuple[int, ...]) -> Array:
    """A state as an array whose last dimensions are the event shape, or a clear error."""
    state = widened(jnp.asarray(x))
    shape, event_dim = state.shape, len(event_shape)
    if state.ndim < event_dim or shape[state.ndim - event_dim :] != event_shape:
        raise ValueError(f"Expected a state of shape (*batch, *event) with event shape {event_shape}; got {shape}.")
    return state
