"""Gaussian diffusion towards a standard normal."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from dpm_ppl.kernels.kernel import require_state
from dpm_ppl.kernels.scheduled import ScheduledKernel


@dataclass(frozen=True, eq=False)
class GaussianKernel(ScheduledKernel):
    """Gaussian diffusion towards a standard normal, independently in every coordinate.

    Args:
        beta: Diffusion rates, shape (T,), each in (0, 1]; fixed or learned.
        event_shape: Shape of one state.

    Raises:
        TypeError: `beta` is no floating-point array, or `event_shape` no tuple of integers.
        ValueError: `beta` has another shape, or a value outside (0, 1].

    Source: Sohl-Dickstein et al. 2015, table App.1; MATH notation of Ho et al. 2020 for alpha_bar.
    """

    def stationary(self) -> dist.Distribution:
        """The standard normal pi; batch shape (), event shape `event_shape`."""
        zero = jnp.zeros(self.event_shape, self.beta.dtype)
        return _diagonal(dist.Normal(zero, jnp.ones_like(zero)), self.event_shape)

    def step(self, x: ArrayLike, t: ArrayLike) -> dist.Distribution:
        """One step of noise, q(x^t | x^(t-1) = x), a diagonal normal.

        Args:
            x: State before the step, shape (*batch, *event).
            t: Step, 1 <= t <= T, broadcastable against batch.

        Returns:
            N(sqrt(1 - beta_t) x, beta_t), event shape (*event).

        Raises:
            ValueError: t lies outside 1..T, or x does not end in the event shape.
        """
        x = require_state(x, self.event_shape)
        beta = self._at(t)[0]
        return self._normal(jnp.sqrt(1 - beta) * x, beta)

    def marginal(self, x0: ArrayLike, t: ArrayLike) -> dist.Distribution:
        """Closed form of t steps, q(x^t | x^0) = N(sqrt(alpha_bar_t) x0, 1 - alpha_bar_t).

        Arguments, shapes and errors are those of `step`.
        """
        x0 = require_state(x0, self.event_shape)
        _, _, _, signal, noise = self._at(t)
        return self._normal(jnp.sqrt(signal) * x0, noise)

    def posterior(self, x0: ArrayLike, xt: ArrayLike, t: ArrayLike) -> dist.Distribution:
        r"""One step backward with the data known, q(x^(t-1) | x^t, x^0).

        Args:
            x0: Data, shape (*batch, *event).
            xt: State after t steps, same event shape, broadcastable batch.
            t: Step, 1 <= t <= T, broadcastable against batch.

        Returns:
            Diagonal normal, event shape (*event); at t = 1 a point mass at x0 (a normal of scale 0).

        Raises:
            ValueError: t lies outside 1..T, or a state does not end in the event shape.

        Source: Sohl-Dickstein et al. 2015, app. B; in the form that stays finite at beta = 1.
        """
        x0, xt = require_state(x0, self.event_shape), require_state(xt, self.event_shape)
        from_data, from_state, variance = self.posterior_coefficients(t)
        return self._normal(from_data * x0 + from_state * xt, variance)

    def posterior_coefficients(self, t: ArrayLike) -> tuple[Array, Array, Array]:
        """Weights c0, c1 and the variance of `posterior`: its mean is c0 x0 + c1 xt.

        Args:
            t: Step, 1 <= t <= T, any shape.

        Returns:
            Three arrays, each of t's shape with a trailing 1 for every event dimension.
        """
        beta, signal_before, noise_before, _, noise = self._at(t)
        return (
            jnp.sqrt(signal_before) * beta / noise,
            jnp.sqrt(1 - beta) * noise_before / noise,
            beta * noise_before / noise,
        )

    def _normal(self, mean: Array, variance: Array) -> dist.Distribution:
        return _diagonal(dist.Normal(mean, jnp.sqrt(variance), validate_args=False), self.event_shape)


def _diagonal(base: dist.Distribution, event_shape: tuple[int, ...]) -> dist.Distribution:
    return base.to_event(len(event_shape))
