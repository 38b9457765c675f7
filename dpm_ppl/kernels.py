r"""Markov diffusion kernels T_pi: how one step of noise is added, and what is known of many steps in closed form.

A kernel is any object with `num_steps`, `event_shape`, `stationary()` and `step(x, t)`. One that also has
`marginal(x0, t)` and `posterior(x0, xt, t)` gets analytic KL terms; one without gets the same bound by Monte Carlo
over trajectories. Steps are numbered t = 1..T as in the paper; `t` is an integer or an integer array that broadcasts
against the batch shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from dpm_ppl.schedules import is_learned


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


def has_closed_forms(kernel: Kernel) -> bool:
    """Whether a kernel has both `marginal` and `posterior`."""
    return hasattr(kernel, "marginal") and hasattr(kernel, "posterior")


def is_concrete(value: Any) -> bool:
    """Whether a value is known now, rather than a tracer of a JAX transformation."""
    return not isinstance(value, jax.core.Tracer)


@dataclass(frozen=True, eq=False)
class ScheduledKernel:
    """What Gaussian and discrete diffusion share: rates beta_t, checked, and the signal alpha_bar_t they leave."""

    beta: Array | np.ndarray  # a schedule in NumPy on the way in, in JAX from then on
    event_shape: tuple[int, ...]
    _log_alpha_bar: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "event_shape", check_event_shape(self.event_shape))
        beta = check_beta(self.beta)
        xp = jnp if isinstance(beta, Array) else np
        with np.errstate(divide="ignore"):  # beta_T = 1 leaves no signal: log 0
            log_alpha_bar = xp.cumsum(xp.log1p(-beta))
        object.__setattr__(self, "beta", jnp.asarray(beta))
        object.__setattr__(self, "_log_alpha_bar", jnp.asarray(xp.pad(log_alpha_bar, (1, 0))))

    @property
    def num_steps(self) -> int:
        """Number of steps T."""
        return len(self.beta)

    @property
    def alpha_bar(self) -> Array:
        """Share of the signal's variance left after t steps, shape (T + 1,), with alpha_bar[0] = 1."""
        return jnp.exp(self._log_alpha_bar)

    @property
    def one_minus_alpha_bar(self) -> Array:
        """Share of the stationary distribution's variance after t steps, shape (T + 1,), without cancellation."""
        return -jnp.expm1(self._log_alpha_bar)

    def _at(self, t: ArrayLike) -> tuple[Array, Array, Array, Array, Array]:
        """Rates of step t and signal before and after it, each broadcastable against (*batch, *event).

        `beta`, then `alpha_bar` and `1 - alpha_bar` (without cancellation) at t - 1, and the same at t.
        """
        t = check_step(t, self.num_steps)
        t = t.reshape(t.shape + (1,) * len(self.event_shape))
        before, after = self._log_alpha_bar[t - 1], self._log_alpha_bar[t]
        return self.beta[t - 1], jnp.exp(before), -jnp.expm1(before), jnp.exp(after), -jnp.expm1(after)


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
        x = check_state(x, self.event_shape)
        beta = self._at(t)[0]
        return self._normal(jnp.sqrt(1 - beta) * x, beta)

    def marginal(self, x0: ArrayLike, t: ArrayLike) -> dist.Distribution:
        """Closed form of t steps, q(x^t | x^0) = N(sqrt(alpha_bar_t) x0, 1 - alpha_bar_t).

        Arguments, shapes and errors are those of `step`.
        """
        x0 = check_state(x0, self.event_shape)
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
        x0, xt = check_state(x0, self.event_shape), check_state(xt, self.event_shape)
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
        check_fixed(self.beta, "a Bernoulli kernel")
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
        return self._bernoulli(*self._mix(check_state(x, self.event_shape), 1 - beta, beta))

    def marginal(self, x0: ArrayLike, t: ArrayLike) -> dist.Distribution:
        """Closed form of t steps: P(x^t = 1 | x^0) = alpha_bar_t x0 + (1 - alpha_bar_t) rate.

        Arguments, shapes and errors are those of `step`.
        """
        _, _, _, signal, noise = self._at(t)
        return self._bernoulli(*self._mix(check_state(x0, self.event_shape), signal, noise))

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
        x0, xt = check_state(x0, self.event_shape), check_state(xt, self.event_shape)
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
        certain = jnp.finfo(one.dtype).max / 4
        logits = jnp.clip(jnp.log(one) - jnp.log(zero), -certain, certain)
        return _diagonal(dist.Bernoulli(logits=logits), self.event_shape)


def _diagonal(base: dist.Distribution, event_shape: tuple[int, ...]) -> dist.Distribution:
    return base.to_event(len(event_shape))


def check_event_shape(event_shape: Sequence[int]) -> tuple[int, ...]:
    """An event shape as a tuple of positive integers, or a clear error."""
    if not isinstance(event_shape, Sequence) or not all(isinstance(n, int | np.integer) for n in event_shape):
        raise TypeError(f"Expected `event_shape` to be a tuple of integers, such as (2,); got {event_shape!r}.")
    if any(n < 1 for n in event_shape):
        raise ValueError(f"Expected every size in `event_shape` to be at least 1; got {tuple(event_shape)}.")
    return tuple(int(n) for n in event_shape)


def check_beta(beta: ArrayLike) -> Array | np.ndarray:
    """Diffusion rates of shape (T,) in (0, 1], or a clear error; in double precision and NumPy where they are known."""
    if not isinstance(beta, Array | np.ndarray):
        beta = np.asarray(beta)  # a list, or nothing that could be a schedule
    if not jnp.issubdtype(beta.dtype, jnp.floating):
        raise TypeError(f"Expected `beta` to be a floating-point array; got dtype {beta.dtype}.")
    if np.ndim(beta) != 1 or len(beta) < 1:
        raise ValueError(f"Expected `beta` of shape (T,), one rate for each of T >= 1 steps; got {np.shape(beta)}.")
    if not is_concrete(beta):
        return jnp.asarray(beta)
    beta = np.asarray(beta, np.float64)
    bad = ~((beta > 0) & (beta <= 1))
    if bad.any():
        t = int(np.argmax(bad))
        raise ValueError(f"Expected every `beta` in (0, 1]; got beta_{t + 1} = {beta[t]} (and {bad.sum() - 1} more).")
    return beta


def check_fixed(beta: ArrayLike, kernel: str) -> None:
    """A clear error where rates are learned, which a kernel of discrete states cannot have."""
    if is_learned(beta):
        raise TypeError(
            f"Expected a fixed schedule under {kernel}; got schedules.learned. Its states are discrete, so no "
            "reparameterised gradient reaches beta, and it would silently follow a wrong one. Use "
            "schedules.constant_fraction(num_steps), which erases 1/T of the signal a step."
        )


def check_step(t: ArrayLike, num_steps: int) -> Array:
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


def check_state(x: ArrayLike, event_shape: tuple[int, ...]) -> Array:
    """A state as an array whose last dimensions are the event shape, or a clear error."""
    x = jnp.asarray(x)
    if x.shape[x.ndim - len(event_shape) :] != event_shape or x.ndim < len(event_shape):
        raise ValueError(f"Expected a state of shape (*batch, *event) with event shape {event_shape}; got {x.shape}.")
    return x
