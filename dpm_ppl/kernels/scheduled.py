"""What kernels of this package share: rates beta_t, checked, and the signal alpha_bar_t that they leave."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dpm_ppl.kernels.kernel import is_concrete, require_event_shape, require_step
from dpm_ppl.leaves import by_attributes
from dpm_ppl.schedules import LearnedRates


@dataclass(frozen=True, eq=False)
class ScheduledKernel:
    """What Gaussian and discrete diffusion share: rates beta_t, checked, and the signal alpha_bar_t they leave.

    A pytree of its arrays, as every class is that is made of it.
    """

    beta: Any  # a schedule in NumPy, or learned, on the way in; a JAX array from then on
    event_shape: tuple[int, ...]
    _log_alpha_bar: Array = field(init=False, repr=False)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        by_attributes(cls)

    def __post_init__(self) -> None:
        object.__setattr__(self, "event_shape", require_event_shape(self.event_shape))
        beta = require_beta(self.beta)
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
        t = require_step(t, self.num_steps)
        return _rates_at(self.beta, self._log_alpha_bar, t.reshape(t.shape + (1,) * len(self.event_shape)))


@jax.jit
def _rates_at(beta: Array, log_alpha_bar: Array, t: Array) -> tuple[Array, Array, Array, Array, Array]:
    before, after = log_alpha_bar[t - 1], log_alpha_bar[t]
    return beta[t - 1], jnp.exp(before), -jnp.expm1(before), jnp.exp(after), -jnp.expm1(after)


def require_beta(beta: ArrayLike) -> Array | np.ndarray:
    """Diffusion rates of shape (T,) in (0, 1], or a clear error; in double precision and NumPy where they are known."""
    if isinstance(beta, LearnedRates):
        beta = beta.rates
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


def require_fixed(beta: ArrayLike, kernel: str) -> None:
    """A clear error where rates are learned, which a kernel of discrete states cannot have."""
    if isinstance(beta, LearnedRates):
        raise TypeError(
            f"Expected a fixed schedule under {kernel}; got schedules.learned. Its states are discrete, so no "
            "reparameterised gradient reaches beta, and it would silently follow a wrong one. Use "
            "schedules.constant_fraction(num_steps), which erases 1/T of the signal a step."
        )
