"""A chain as guide and model declare it, with the trajectories that its checks share."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from dpm_ppl.chains import ForwardChain, ReverseChain
from dpm_ppl.diffusion import Diffusion
from dpm_ppl.inference.bound import Bound, bound
from dpm_ppl.kernels import Kernel

NUMBERS = 50_000  # in one trajectory of every datum
_NEVER = -34.0  # nats, a little above the rounding unit of double precision


@dataclass(frozen=True, eq=False)
class Chain:
    """A chain of guide and model together.

    Args:
        name: Its name; in words `label`.
        x0: Data, shape (*batch, *event).
        forward: The guide's diffusion, of which the kernel counts.
        model: The model's, of which the reverse steps count.
        key: Random key.
    """

    name: str
    x0: Array
    forward: Diffusion
    model: Diffusion
    key: Array

    @property
    def kernel(self) -> Any:
        """The forward kernel."""
        return self.forward.kernel

    @property
    def num_steps(self) -> int:
        """T."""
        return self.forward.num_steps

    @property
    def batch_dim(self) -> int:
        """Batch dimensions of the data."""
        return self.x0.ndim - len(self.forward.event_shape)

    @cached_property
    def definition(self) -> Callable[[], Diffusion]:
        """The model's diffusion as a program's definition."""
        diffusion = self.model
        return lambda: diffusion

    @cached_property
    def states(self) -> Array:
        """A forward trajectory x^(0..T) of every datum, shape (T + 1, *batch, *event)."""
        trajectory = jax.jit(lambda key: ForwardChain(self.forward, self.x0).sample(key))(self.key)
        trajectory = jnp.moveaxis(trajectory, self.batch_dim, 0)
        return jnp.concatenate([self.x0[None].astype(trajectory.dtype), trajectory])

    @cached_property
    def simulated(self) -> tuple[Array, Array, Array]:
        """What the model makes: trajectories x^(0..T), their log densities in the forward chain step by step, log w.

        Shapes (T + 1, num, *event), (T, num) and (num,).
        """
        num = max(8, min(200, 20 * NUMBERS // (self.num_steps * math.prod(self.forward.event_shape))))

        @jax.jit
        def make(key: Array) -> tuple[Array, Array, Array]:
            key, last = jax.random.split(key)
            chain, t = ReverseChain(self.model), jnp.arange(1, self.num_steps + 1)[:, None]
            trajectory = chain.sample(key, (num,))
            states = jnp.moveaxis(trajectory, 1, 0)
            decode = self.model.decode(states[0])
            x0 = decode.sample(last)
            states = jnp.concatenate([x0[None].astype(states.dtype), states])
            forward = self.kernel.step(states[:-1], t)
            log_p = chain.log_prob(trajectory) + decode.log_prob(x0)
            return states, scored(forward, states[1:]), log_p - jnp.sum(forward.log_prob(states[1:]), 0)

        return make(self.key)

    @cached_property
    def terms(self) -> Bound:
        """The bound on the data, term by term."""
        num = max(4, min(64, 20 * NUMBERS // self.states.size))
        x0 = self.x0.reshape(-1, *self.forward.event_shape)
        return bound(self.definition, x0, params={}, key=self.key, num_samples=num)

    def steps(self, *t: int) -> Array:
        """Steps t, by default all of 1..T, shaped to broadcast against states of those steps."""
        return jnp.asarray(t or range(1, self.num_steps + 1)).reshape(-1, *(1,) * self.batch_dim)


def scored(law: dist.Distribution, value: Array) -> Array:
    """Log density, -inf where a discrete coordinate has the probability to which NumPyro clamps one of zero."""
    if not (isinstance(law, dist.Independent) and law.support.is_discrete):
        return law.log_prob(value)
    each = law.base_dist.log_prob(value)
    dims = tuple(range(-law.reinterpreted_batch_ndims, 0))
    return jnp.sum(jnp.where(each < _NEVER, -jnp.inf, each), dims)


def agree(one: Kernel, other: Kernel) -> bool:
    """Whether two kernels have the same number of steps and event shape."""
    return one.num_steps == other.num_steps and tuple(one.event_shape) == tuple(other.event_shape)
