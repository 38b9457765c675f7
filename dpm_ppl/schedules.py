r"""Diffusion schedules: the rates beta_1..beta_T, as arrays of shape (T,).

The arrays are 0-based and the steps are not: the rate of step t is `beta[t - 1]`. The signal left after t steps is
alpha_bar_t = prod_{s<=t} (1 - beta_s), and the log signal-to-noise ratio log(alpha_bar_t / (1 - alpha_bar_t)). Fixed
schedules are NumPy arrays in double precision, known also while JAX traces a program, so that a kernel can check them
and sum them exactly.
"""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array

from dpm_ppl.arguments import require_count


def constant_fraction(num_steps: int) -> np.ndarray:
    """beta_t = 1 / (T - t + 1): erases the same 1/T of the signal each step, alpha_bar_t = 1 - t/T.

    Source: Sohl-Dickstein et al. 2015, section 2.4.1.
    """
    num_steps = require_count("num_steps", num_steps)
    return 1.0 / np.arange(num_steps, 0, -1)


def linear(num_steps: int, *, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
    """Rates evenly spaced from `first` to `last`.

    Source: Ho et al. 2020, section 4 (T = 1000).
    """
    num_steps = require_count("num_steps", num_steps)
    return np.linspace(first, last, num_steps)


def cosine(num_steps: int, *, offset: float = 0.008, largest: float = 0.999) -> np.ndarray:
    """alpha_bar_t = f(t) / f(0) with f(t) = cos^2((t/T + s) / (1 + s) pi/2), s = `offset`; rates end at `largest`.

    Source: Nichol and Dhariwal 2021, eq. 17.
    """
    num_steps = require_count("num_steps", num_steps)
    signal = np.cos((np.arange(num_steps + 1) / num_steps + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.minimum(1 - signal[1:] / signal[:-1], largest)


def log_snr(num_steps: int, *, first: float = 6.0, last: float = -6.0) -> np.ndarray:
    """Log signal-to-noise ratios evenly spaced from `first`, after step 1, to `last`, after step T.

    Source: Kingma et al. 2021, section 3.2 (the linear case), in nats.
    """
    num_steps = require_count("num_steps", num_steps)
    if not first > last:
        raise ValueError(f"Expected the log-SNR to fall, first > last; got first={first}, last={last}.")
    log_alpha_bar = -np.logaddexp(0, -np.linspace(first, last, num_steps))
    return -np.expm1(np.diff(log_alpha_bar, prepend=0.0))


def _plainly(operation: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: operation(self.rates, other.rates if isinstance(other, LearnedRates) else other)


def _stays_learned(operation: Callable[..., Any], *, swapped: bool = False) -> Callable[..., Any]:
    def method(self: "LearnedRates", *others: Any) -> "LearnedRates":
        arguments = (self.rates, *(other.rates if isinstance(other, LearnedRates) else other for other in others))
        return LearnedRates(operation(*(reversed(arguments) if swapped else arguments)))

    return method


@jax.tree_util.register_pytree_node_class
class LearnedRates:
    """Rates that a program learns: an array, and what is computed of it by arithmetic stays learned.

    A kernel of discrete states refuses them by this type, as no gradient would reach them. `jax.numpy` takes them as
    the array that they are, and returns a plain one; so do their attributes and methods, such as `sum()`.

    Args:
        rates: beta, shape (T,).
    """

    def __init__(self, rates: Array) -> None:
        self.rates = rates

    def __jax_array__(self) -> Array:
        return self.rates

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self.rates, dtype)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "rates":  # of the class, or not made yet
            raise AttributeError(name)
        return getattr(self.rates, name)

    def __len__(self) -> int:
        return len(self.rates)

    def __getitem__(self, index: Any) -> Any:
        chosen = self.rates[index]
        return LearnedRates(chosen) if chosen.ndim else chosen  # one rate is no schedule

    __array_priority__ = 1000  # of a NumPy array and of these, these do the arithmetic
    __lt__, __le__, __gt__, __ge__ = map(_plainly, (operator.lt, operator.le, operator.gt, operator.ge))
    __neg__ = _stays_learned(operator.neg)
    __add__, __radd__ = _stays_learned(operator.add), _stays_learned(operator.add, swapped=True)
    __sub__, __rsub__ = _stays_learned(operator.sub), _stays_learned(operator.sub, swapped=True)
    __mul__, __rmul__ = _stays_learned(operator.mul), _stays_learned(operator.mul, swapped=True)
    __truediv__, __rtruediv__ = _stays_learned(operator.truediv), _stays_learned(operator.truediv, swapped=True)
    __pow__, __rpow__ = _stays_learned(operator.pow), _stays_learned(operator.pow, swapped=True)

    def __repr__(self) -> str:
        return f"LearnedRates({self.rates!r})"

    def tree_flatten(self) -> tuple[tuple[Array], None]:
        """Its leaf, for JAX."""
        return (self.rates,), None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: tuple[Array]) -> "LearnedRates":
        """The same of other leaves, for JAX."""
        return cls(*leaves)


def learned(
    name: str, num_steps: int, *, beta_1: float = 1e-3, alpha_bar_T: float = 1e-3, start: np.ndarray | None = None
) -> "LearnedRates":
    """Rates learned with the model: a NumPyro parameter of shape (T - 1,), the logits of how the noise is shared out.

    Step t >= 2 takes the share w = softmax(parameter) of the whole fall of log alpha_bar, log((1 - beta_1) /
    alpha_bar_T), so every rate is in (0, 1), beta_1 stays as given, and the chain ends as near pi as asked, whatever
    is learned.

    Args:
        name: Name of the parameter.
        num_steps: Number of steps T, at least 2.
        beta_1: The rate of step 1, fixed: small, against overfitting.
        alpha_bar_T: Signal left at the end, fixed; the prior-matching term is of its order squared.
        start: Rates to begin with, shape (T,), of which steps 2..T are used, their -log(1 - beta) in proportion; by
            default `constant_fraction`. A last step of more noise than is left takes what is left, or as much as the
            step before it.

    Returns:
        beta, shape (T,).

    Raises:
        ValueError: a number is out of range, or `start` of another shape.

    Source: Sohl-Dickstein et al. 2015, section 2.4.1 (learned by gradient ascent on K); this parameterisation is ours.
    """
    num_steps = require_count("num_steps", num_steps, at_least=2)
    if not 0 < beta_1 < 1 or not 0 < alpha_bar_T < 1 - beta_1:
        raise ValueError(f"Expected 0 < beta_1 < 1 and 0 < alpha_bar_T < 1 - beta_1; got {beta_1} and {alpha_bar_T}.")
    beta = np.asarray(constant_fraction(num_steps) if start is None else start)
    if beta.shape != (num_steps,) or not ((beta > 0) & (beta <= 1)).all():
        raise ValueError(f"Expected `start` to hold {num_steps} rates in (0, 1]; got shape {beta.shape}.")
    fall = np.log((1 - beta_1) / alpha_bar_T)
    noise = -np.log1p(-np.minimum(beta[1:], 1 - 1e-6))
    # A schedule that ends with all signal gone, as constant_fraction does, has one infinite step.
    noise[-1] = min(noise[-1], max(fall - noise[:-1].sum(), noise[-2:][0]))
    share = jax.nn.softmax(numpyro.param(name, jnp.log(jnp.asarray(noise))))
    share = jnp.maximum(share, 1e-30)  # a share that underflows would be a rate of 0, and a division by it
    rates = jnp.concatenate([jnp.full((1,), beta_1, share.dtype), -jnp.expm1(-fall * share)])
    return LearnedRates(rates)


def learned_log_snr(
    name: str, num_steps: int, *, first: float = 6.0, last: float = -6.0, num_segments: int = 16
) -> "LearnedRates":
    """A falling log-SNR learned with the model, its two ends fixed: a NumPyro parameter of shape (num_segments,).

    A piecewise linear function of (t - 1) / (T - 1): over each of equally long segments it falls by the share
    softmax(parameter) of first - last. So the parameter does not grow with T and keeps its meaning as T does, and
    rates come without cancellation at any T. At zeros, where it starts, it is `log_snr`.

    Args:
        name: Name of the parameter.
        num_steps: Number of steps T, at least 2.
        first: Log-SNR after step 1, in nats.
        last: Log-SNR after step T.
        num_segments: Number of segments.

    Returns:
        beta, shape (T,), with beta_1 = sigmoid(-first) and alpha_bar_T = sigmoid(last) whatever is learned.

    Raises:
        TypeError: `num_steps` or `num_segments` is no integer.
        ValueError: a number is out of range.

    Source: Kingma et al. 2021, sections 3.2 and 5.1, and app. H for rates from differences of log-SNR; there a monotone
        network.
    """
    num_steps = require_count("num_steps", num_steps, at_least=2)
    num_segments = require_count("num_segments", num_segments)
    if not np.isfinite([first, last]).all() or not first > last:
        raise ValueError(f"Expected the log-SNR to fall, first > last, both finite; got first={first}, last={last}.")
    share = jnp.maximum(jax.nn.softmax(numpyro.param(name, jnp.zeros(num_segments))), 1e-30)
    ends = np.linspace(0, num_segments, num_steps)  # of the steps, in segments
    segment = np.arange(num_segments)
    overlap = np.minimum(ends[1:, None], segment + 1) - np.maximum(ends[:-1, None], segment)  # shape (T - 1, segments)
    falls = (first - last) * (jnp.asarray(np.maximum(overlap, 0)) @ share)
    noise = jax.nn.sigmoid(jnp.cumsum(falls) - first)  # 1 - alpha_bar_t
    rates = jnp.concatenate([jax.nn.sigmoid(jnp.full((1,), -first, share.dtype)), -jnp.expm1(-falls) * noise])
    return LearnedRates(rates)
