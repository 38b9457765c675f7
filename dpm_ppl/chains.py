"""The chains as NumPyro distributions over a whole trajectory x^(1..T): event shape (T, *event), index 0 being x^1.

One distribution, rather than T sites, is scored in one vectorised call, compiles in the same time at any T, and has no
order of sites for a guide and a model to disagree on.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.util import is_prng_key

from dpm_ppl.arguments import require_count, require_key
from dpm_ppl.diffusion import Diffusion
from dpm_ppl.kernels.kernel import Kernel, step_number


class _Chain(dist.Distribution):
    """A distribution over trajectories; `steps` may restrict which transitions t = 2..T are scored.

    Chains that a scan or `vmap` stacks have a different diffusion each, and different data. What a subclass says of
    one chain, `_draw` and `_score`, is then said of each.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields: tuple[str, ...] = ("steps", "diffusion", "stack")
    pytree_aux_fields = ("num_own",)

    def __init__(
        self, diffusion: Diffusion, batch_shape: tuple[int, ...], *, steps: Array | None, validate_args: bool | None
    ) -> None:
        self.diffusion = diffusion
        self.steps = steps
        self.stack: Any = np.zeros(())  # of no meaning: its shape is what all leaves have in front, once stacked
        self.num_own = len(batch_shape)  # dimensions of the batch of a chain that is not stacked
        super().__init__(batch_shape, (diffusion.num_steps, *diffusion.event_shape), validate_args=validate_args)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Trajectories, shape (*sample_shape, *batch, T, *event), by one scan over the steps."""
        assert is_prng_key(key)
        if not jnp.ndim(self.stack):
            return self._draw(key, sample_shape)
        keys = jax.random.split(key, len(self.stack))
        return jax.vmap(lambda chain, key: chain.sample(key, sample_shape), out_axes=len(sample_shape))(self, keys)

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        """Log density in nats of trajectories of shape (*batch, T, *event)."""
        stack, value = jnp.shape(self.stack), jnp.asarray(value)
        if stack:
            batch = value.shape[: max(value.ndim - self.event_dim, 0)]
            whole = jnp.broadcast_shapes(batch, stack + (1,) * self.num_own)
            value = jnp.broadcast_to(value, whole + value.shape[len(batch) :])
        return self._score_each(value)

    def _score_each(self, value: Array) -> Array:
        stack = jnp.shape(self.stack)
        if not stack:
            return self._score(value)
        if stack[0] == 1:  # as where a plate around repeats one chain: its trajectories may differ
            return self._first()._score_each(value)
        axis = value.ndim - self.event_dim - self.num_own - len(stack)
        return jax.vmap(lambda chain, value: chain._score_each(value), in_axes=(0, axis), out_axes=axis)(self, value)

    def _first(self) -> Self:
        """The first of stacked chains."""
        first: Self = jax.tree.map(lambda leaf: leaf[0], self)
        return first

    def _one(self) -> Self:
        """Any of stacked chains, or the chain itself: what one says of its kind."""
        return self._first()._one() if jnp.ndim(self.stack) else self

    def _draw(self, key: Array, sample_shape: tuple[int, ...]) -> Array:
        raise NotImplementedError

    def _score(self, value: Array) -> Array:
        raise NotImplementedError

    @property
    def kernel(self) -> Kernel:
        return self.diffusion.kernel

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self._one().kernel.stationary().support, 1)

    def _transitions(self, trajectory: ArrayLike) -> tuple[Array, Array, Array, float]:
        """States x^(t-1) and x^t of the scored transitions, their t, and the factor that makes their sum stand for all.

        The step axis is in front of the batch, where nothing that goes with a datum can be mistaken for it.
        """
        trajectory = jnp.asarray(trajectory)
        if trajectory.shape[trajectory.ndim - self.event_dim :] != self.event_shape:
            raise ValueError(
                f"Expected a trajectory of event shape {self.event_shape}, (T, *event); got shape {trajectory.shape}. "
                "Do model and guide use the same Diffusion?"
            )
        axis = trajectory.ndim - self.event_dim
        if self.steps is None:
            states = jnp.moveaxis(trajectory, axis, 0)
            return states[:-1], states[1:], jnp.arange(2, self.diffusion.num_steps + 1).reshape(-1, *(1,) * axis), 1.0
        expand = self.steps.reshape(self.steps.shape + (1,) * self.event_dim)
        before, after = (
            jnp.take_along_axis(trajectory[None], expand - shift, axis + 1).squeeze(axis + 1) for shift in (2, 1)
        )
        return before, after, self.steps, (self.diffusion.num_steps - 1) / len(self.steps)

    def _of(self, trajectory: ArrayLike) -> Diffusion:
        """The diffusion, its context that of the data's batch, or where that is not known yet, of a trajectory's."""
        batch_shape = self.diffusion.batch_shape
        if batch_shape is None:
            batch_shape = jnp.shape(trajectory)[: jnp.ndim(trajectory) - self.event_dim]
        return self.diffusion.beside(self.diffusion.context, batch_shape)


class ForwardChain(_Chain):
    """The forward trajectory q(x^(1..T) | x^0) = prod_t q(x^t | x^(t-1)).

    Args:
        diffusion: The diffusion; only its kernel is used.
        x0: Data, shape (*batch, *event).
        steps: Steps t to score in place of all of 2..T, shape (m, *batch), each counted (T - 1) / m times: for
            unbiased estimates of the log density's gradient terms at a cost that does not grow with T. Step 1 is
            always scored.
    """

    pytree_data_fields = ("x0",)

    def __init__(
        self, diffusion: Diffusion, x0: ArrayLike, *, steps: Array | None = None, validate_args: bool | None = None
    ) -> None:
        self.x0 = jnp.asarray(x0)
        batch_shape = self.x0.shape[: self.x0.ndim - len(diffusion.event_shape)]
        super().__init__(diffusion, batch_shape, steps=steps, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        """Whether gradients pass through samples, as the kernel's step says."""
        one = self._one()
        return bool(one.kernel.step(one.x0, step_number(1)).has_rsample)

    def _draw(self, key: Array, sample_shape: tuple[int, ...]) -> Array:
        def step(x: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
            t, key = at
            x = self.kernel.step(x, t).sample(key)
            return x, x

        num_steps = self.diffusion.num_steps
        first_key, key = jax.random.split(key)
        start = jnp.broadcast_to(self.x0, sample_shape + self.x0.shape)
        first = self.kernel.step(start, step_number(1)).sample(first_key)
        keys = jax.random.split(key, num_steps - 1)
        _, rest = jax.lax.scan(step, first, (jnp.arange(2, num_steps + 1), keys))
        return jnp.moveaxis(jnp.concatenate([first[None], rest]), 0, first.ndim - len(self.diffusion.event_shape))

    def _score(self, value: Array) -> Array:
        before, after, t, factor = self._transitions(value)
        first = jnp.take(value, 0, axis=jnp.ndim(value) - self.event_dim)
        start = self.kernel.step(self.x0, step_number(1)).log_prob(first)
        if self.diffusion.num_steps == 1:
            return start
        return start + factor * jnp.sum(self.kernel.step(before, t).log_prob(after), 0)


class ReverseChain(_Chain):
    """The reverse trajectory p(x^(1..T)) = pi(x^T) prod_{t=2..T} p(x^(t-1) | x^t).

    Args:
        diffusion: The diffusion.
        steps: Steps to score in place of all, as in `ForwardChain`; the log density of x^T is always scored.
    """

    def __init__(self, diffusion: Diffusion, *, steps: Array | None = None, validate_args: bool | None = None) -> None:
        super().__init__(diffusion, (), steps=steps, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        """Whether gradients pass through samples, as pi and the reverse steps say."""
        diffusion = self._one().diffusion
        start = diffusion.kernel.stationary()
        if not start.has_rsample or diffusion.num_steps == 1:
            return bool(start.has_rsample)
        batch_shape = diffusion.batch_shape
        if batch_shape is None:  # of a context that has not met its data
            return True
        return bool(diffusion.reverse(jnp.zeros(batch_shape + diffusion.event_shape), jnp.asarray(2)).has_rsample)

    def _draw(self, key: Array, sample_shape: tuple[int, ...]) -> Array:
        def step(x: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
            t, key = at
            x = self.diffusion.reverse(x, t).sample(key)
            return x, x

        num_steps = self.diffusion.num_steps
        last_key, key = jax.random.split(key)
        last = self.kernel.stationary().sample(last_key, sample_shape)
        keys = jax.random.split(key, num_steps - 1)
        if self.diffusion.context is not None and num_steps > 1:
            _require_own_context(last, jax.eval_shape(step, last, (jnp.asarray(2), key))[0], self.diffusion.event_shape)
        _, rest = jax.lax.scan(step, last, (jnp.arange(2, num_steps + 1), keys), reverse=True)
        return jnp.moveaxis(jnp.concatenate([rest, last[None]]), 0, last.ndim - len(self.diffusion.event_shape))

    def _score(self, value: Array) -> Array:
        before, after, t, factor = self._transitions(value)
        last = jnp.take(value, -1, axis=jnp.ndim(value) - self.event_dim)
        start = self.kernel.stationary().log_prob(last)
        if self.diffusion.num_steps == 1:
            return start
        return start + factor * jnp.sum(self._of(value).reverse(after, t).log_prob(before), 0)


@promote_batch_shape.register
def _promote(chain: _Chain) -> _Chain:
    """NumPyro asks for the batch shape of what its scan, or a vmap, has stacked."""
    promoted = copy.copy(chain)
    own = chain.batch_shape[len(chain.batch_shape) - chain.num_own :]
    promoted._batch_shape = jnp.shape(chain.stack) + own
    return promoted


def _require_own_context(x: Array, back: Any, event_shape: tuple[int, ...]) -> None:
    """Raises ValueError where a step beside a context is of another batch than the states."""
    if back.shape != x.shape:
        batch, came = (each.shape[: len(each.shape) - len(event_shape)] for each in (x, back))
        raise ValueError(
            f"Expected a context for each of the chain's states, of batch shape {batch}; with the one given the "
            f"reverse step has batch shape {came}: data would see the contexts of others. Put the chain into a plate "
            "of the contexts' size; a posterior is of one datum beside its own, and of several by jax.vmap over both."
        )


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
        TypeError: key is no random key, or num_samples no integer.
        ValueError: num_samples is less than 1, or a time lies outside 0..T.
    """
    require_key(key)
    times = _check(diffusion, times)
    num_samples = require_count("num_samples", num_samples)

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
        TypeError: key is no random key.
        ValueError: a time lies outside 0..T.
    """
    require_key(key)

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
