"""Binomial diffusion: bits, each redrawn now and then."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from dpm_ppl.kernels.gaussian import _diagonal
from dpm_ppl.kernels.kernel import require_state
from dpm_ppl.kernels.scheduled import ScheduledKernel, require_fixed


@dataclass(frozen=True, eq=False)
class BernoulliKernel(ScheduledKernel):
    """Binomial diffusion: independent binary coordinates, redrawn from B(rate) with probability beta_t.

    Args:
        beta: Diffusion rates, shape (T,), each in (0, 1]; fixed.
        event_shape: Shape of one state.
        rate: Base rate rho of the stationary distribution, in (0, 1).

    Raises:
        TypeError: `beta` comes from `schedules.learned`: no gradient passes through discrete states.
        ValueError: `beta` or `rate` lies outside its range, or has the wrong shape.

    Source: Sohl-Dickstein et al. 2015, table App.1, which prints rho = 0.5; its heartbeat needs 0.2.
    """

    rate: float = 0.5

    def __post_init__(self) -> None:
        require_fixed(self.beta, "a Bernoulli kernel")
        if not np.ndim(self.rate) == 0 or not 0 < self.rate < 1:
            raise ValueError(f"Expected `rate` to be one number in (0, 1); got {self.rate}.")
        super().__post_init__()

    def stationary(self) -> dist.Distribution:
        """The factorised B(rate); batch shape (), event shape `event_shape`."""
        rate = jnp.full(self.event_shape, self.rate, self.beta.dtype)
        return self._bernoulli(rate, 1 - rate)

    def step(self, x: ArrayLike, t: ArrayLike) -> dist.Distribution:
        """One step of noise: P(x^t = 1 | x^(t-1) = x) = (1 - beta_t) x + beta_t rate.

        Args:
            x: State before the step, 0 or 1, shape (*batch, *event).
            t: Step, 1 <= t <= T, broadcastable against batch.

        Returns:
            Factorised Bernoulli, event shape (*event).

        Raises:
            ValueError: t lies outside 1..T, or x does not end in the event shape.
        """
        beta = self._at(t)[0]
        return self._bernoulli(*self._mix(require_state(x, self.event_shape), 1 - beta, beta))

    def marginal(self, x0: ArrayLike, t: ArrayLike) -> dist.Distribution:
        """Closed form of t steps: P(x^t = 1 | x^0) = alpha_bar_t x0 + (1 - alpha_bar_t) rate.

        Arguments, shapes and errors are those of `step`.
        """
        _, _, _, signal, noise = self._at(t)
        return self._bernoulli(*self._mix(require_state(x0, self.event_shape), signal, noise))

    def posterior(self, x0: ArrayLike, xt: ArrayLike, t: ArrayLike) -> dist.Distribution:
        """One step backward with the data known, q(x^(t-1) | x^t, x^0).

        Args:
            x0: Data, 0 or 1, shape (*batch, *event); a rate between is read as an uncertain bit of that rate before
                noise.
            xt: State after t steps, 0 or 1, same event shape, broadcastable batch.
            t: Step, 1 <= t <= T, broadcastable against batch.

        Returns:
            Factorised Bernoulli, event shape (*event); at t = 1 a point mass at x0.

        Raises:
            ValueError: t lies outside 1..T, or a state does not end in the event shape.

        Source: Bayes' rule; Sohl-Dickstein et al. 2015, table App.1 leaves it out.
        """
        x0, xt = require_state(x0, self.event_shape), require_state(xt, self.event_shape)
        beta, signal, noise, _, _ = self._at(t)
        prior1, prior0 = self._mix(x0, signal, noise)
        likelihood1, likelihood0 = self._likelihood(xt, beta)
        return self._bernoulli(prior1 * likelihood1, prior0 * likelihood0)

    def _mix(self, x: Array, kept: Array, redrawn: Array) -> tuple[Array, Array]:
        """P(1) and P(0), each without cancellation, where x is kept or redrawn with the given probabilities."""
        return kept * x + redrawn * self.rate, kept * (1 - x) + redrawn * (1 - self.rate)

    def _likelihood(self, xt: Array, beta: Array) -> tuple[Array, Array]:
        """P(xt | x^(t-1) = 1) and P(xt | x^(t-1) = 0)."""
        redrawn = beta * jnp.where(xt == 1, self.rate, 1 - self.rate)
        return redrawn + (1 - beta) * xt, redrawn + (1 - beta) * (1 - xt)

    def _bernoulli(self, one: Array, zero: Array) -> dist.Distribution:
        """Bernoulli of the given weights, in logits: a probability near 1 loses the other side. All stay finite."""
        return _diagonal(dist.Bernoulli(logits=_log_odds(one, zero)), self.event_shape)


@jax.jit
def _log_odds(one: Array, zero: Array) -> Array:
    certain = jnp.finfo(one.dtype).max / 4
    return jnp.clip(jnp.log(one) - jnp.log(zero), -certain, certain)
