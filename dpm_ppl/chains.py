"""The chains as NumPyro distributions over a whole trajectory x^(1..T): event shape (T, *event), index 0 being x^1.

One distribution, rather than T sites, is scored in one vectorised call, compiles in the same time at any T, and has no
order of sites for a guide and a model to disagree on.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.util import is_prng_key

from dpm_ppl.diffusion import Diffusion
from dpm_ppl.kernels import Kernel


class _Chain(dist.Distribution):
    """A distribution over trajectories; `steps` may restrict which transitions t = 2..T are scored."""

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("steps",)
    pytree_aux_fields = ("diffusion",)

    def __init__(
        self, diffusion: Diffusion, batch_shape: tuple[int, ...], *, steps: Array | None, validate_args: bool | None
    ) -> None:
        self.diffusion = diffusion
        self.steps = steps
        super().__init__(batch_shape, (diffusion.num_steps, *diffusion.event_shape), validate_args=validate_args)

    @property
    def kernel(self) -> Kernel:
        return self.diffusion.kernel

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.kernel.stationary().support, 1)

    def _transitions(self, trajectory: ArrayLike) -> tuple[Array, Array, Array, float]:
        """States x^(t-1) and x^t of the scored transitions, their t, and the factor that makes their sum stand for all.

        The step axis is the last of the batch where all are scored, and the first where `steps`, of shape (m, *batch),
        are.
        """
        trajectory = jnp.asarray(trajectory)
        if trajectory.shape[trajectory.ndim - self.event_dim :] != self.event_shape:
            raise ValueError(
                f"Expected a trajectory of event shape {self.event_shape}, (T, *event); got shape {trajectory.shape}. "
                "Do model and guide use the same Diffusion?"
            )
        axis = trajectory.ndim - self.event_dim
        if self.steps is None:
            before = jax.lax.slice_in_dim(trajectory, 0, -1, axis=axis)
            after = jax.lax.slice_in_dim(trajectory, 1, None, axis=axis)
            return before, after, jnp.arange(2, self.diffusion.num_steps + 1), 1.0
        expand = self.steps.reshape(self.steps.shape + (1,) * self.event_dim)
        before, after = (
            jnp.take_along_axis(trajectory[None], expand - shift, axis + 1).squeeze(axis + 1) for shift in (2, 1)
        )
        return before, after, self.steps, (self.diffusion.num_steps - 1) / len(self.steps)

    def _total(self, transition_log_prob: Array, factor: float) -> Array:
        return factor * jnp.sum(transition_log_prob, -1 if self.steps is None else 0)


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
        return bool(self.kernel.step(self.x0, 1).has_rsample)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Trajectories, shape (*sample_shape, *batch, T, *event), by one scan over the steps."""
        assert is_prng_key(key)

        def step(x: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
            t, key = at
            x = self.kernel.step(x, t).sample(key)
            return x, x

        num_steps = self.diffusion.num_steps
        first_key, key = jax.random.split(key)
        start = jnp.broadcast_to(self.x0, sample_shape + self.x0.shape)
        first = self.kernel.step(start, 1).sample(first_key)
        keys = jax.random.split(key, num_steps - 1)
        _, rest = jax.lax.scan(step, first, (jnp.arange(2, num_steps + 1), keys))
        return jnp.moveaxis(jnp.concatenate([first[None], rest]), 0, first.ndim - len(self.diffusion.event_shape))

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        """Log density in nats of trajectories of shape (*batch, T, *event)."""
        before, after, t, factor = self._transitions(value)
        first = jnp.take(value, 0, axis=jnp.ndim(value) - self.event_dim)
        start = self.kernel.step(self.x0, 1).log_prob(first)
        if self.diffusion.num_steps == 1:
            return start
        return start + self._total(self.kernel.step(before, t).log_prob(after), factor)


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
        start = self.kernel.stationary()
        if not start.has_rsample or self.diffusion.num_steps == 1:
            return bool(start.has_rsample)
        return bool(self.diffusion.reverse(jnp.zeros(self.kernel.event_shape), jnp.asarray(2)).has_rsample)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Trajectories, shape (*sample_shape, T, *event), by one scan from x^T down to x^1."""
        assert is_prng_key(key)

        def step(x: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
            t, key = at
            x = self.diffusion.reverse(x, t).sample(key)
            return x, x

        num_steps = self.diffusion.num_steps
        last_key, key = jax.random.split(key)
        last = self.kernel.stationary().sample(last_key, sample_shape)
        keys = jax.random.split(key, num_steps - 1)
        _, rest = jax.lax.scan(step, last, (jnp.arange(2, num_steps + 1), keys), reverse=True)
        return jnp.moveaxis(jnp.concatenate([rest, last[None]]), 0, last.ndim - len(self.diffusion.event_shape))

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        """Log density in nats of trajectories of shape (*batch, T, *event)."""
        before, after, t, factor = self._transitions(value)
        last = jnp.take(value, -1, axis=jnp.ndim(value) - self.event_dim)
        start = self.kernel.stationary().log_prob(last)
        if self.diffusion.num_steps == 1:
            return start
        return start + self._total(self.diffusion.reverse(after, t).log_prob(before), factor)
