"""Discrete diffusion over any number of states, towards any stationary distribution: uniform, absorbing or given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from dpm_ppl.kernels.kernel import is_concrete, require_state
from dpm_ppl.kernels.scheduled import ScheduledKernel, require_fixed


@dataclass(frozen=True, eq=False)
class CategoricalKernel(ScheduledKernel):
    """Independent coordinates in states 0..K-1, each redrawn from `probs` with probability beta_t.

    With equal `probs` this is D3PM's uniform diffusion; with all of it on one state, a mask, its absorbing diffusion;
    with (1 - rate, rate) it is `BernoulliKernel`.

    An event that cannot be has the log probability -finfo.max / 4 in place of -inf, so that all stays finite, and
    gradients are no NaN; a divergence or a weight with such a term is as good as infinite.

    Args:
        beta: Diffusion rates, shape (T,), each in (0, 1]; fixed.
        event_shape: Shape of one state.
        probs: Stationary probabilities pi of the states, shape (K,). Where some are 0, the schedule has to leave no
            signal (beta_T = 1, as in `schedules.constant_fraction`), or the chain could end in a state that pi lacks;
            and the Diffusion needs a `decode`, such as `reverse(x1, 1)`, as the default never leads to such a state.

    Raises:
        TypeError: `beta` comes from `schedules.learned`: no gradient passes through discrete states.
        ValueError: `beta` or `probs` is out of range or of the wrong shape, or the chain does not end in a pi that
            lacks states.

    Source: Austin et al. 2021, section 3 and app. A.2, with a step that is redrawn from any pi; uniform diffusion is
        that of Hoogeboom et al. 2021.
    """

    probs: Sequence[float] | np.ndarray  # an array in double precision from then on

    def __post_init__(self) -> None:
        require_fixed(self.beta, "a categorical kernel")
        probs = _check_probs(self.probs)
        object.__setattr__(self, "probs", probs)
        super().__post_init__()
        if (probs == 0).any() and is_concrete(self.beta) and not np.any(np.asarray(self.beta) == 1):
            raise ValueError(
                "Expected a schedule that leaves no signal, beta_T = 1, where some of `probs` are 0; got beta_T = "
                f"{self.beta[-1]:.4g} with {(probs == 0).sum()} states that pi lacks. The chain could end in one, "
                "infinitely far from pi: use schedules.constant_fraction(num_steps)."
            )

    @property
    def num_states(self) -> int:
        """Number of states K of a coordinate."""
        return len(self.probs)

    def stationary(self) -> dist.Distribution:
        """The factorised pi; batch shape (), event shape `event_shape`."""
        return self._categorical(_log(jnp.broadcast_to(self._pi, (*self.event_shape, self.num_states))))

    def step(self, x: ArrayLike, t: ArrayLike) -> dist.Distribution:
        """One step of noise: P(x^t = k | x^(t-1) = x) = (1 - beta_t) [k = x] + beta_t pi_k.

        Args:
            x: State before the step, integers 0..K-1, shape (*batch, *event).
            t: Step, 1 <= t <= T, broadcastable against batch.

        Returns:
            Factorised categorical, event shape (*event).

        Raises:
            TypeError: x does not hold integers.
            ValueError: t lies outside 1..T, or x does not end in the event shape.
        """
        beta = self._at(t)[0]
        return self._categorical(_log(self._mix(self._check(x), 1 - beta, beta)))

    def marginal(self, x0: ArrayLike, t: ArrayLike) -> dist.Distribution:
        """Closed form of t steps: P(x^t = k | x^0) = alpha_bar_t [k = x0] + (1 - alpha_bar_t) pi_k.

        Arguments, shapes and errors are those of `step`.
        """
        _, _, _, signal, noise = self._at(t)
        return self._categorical(_log(self._mix(self._check(x0), signal, noise)))

    def posterior(self, x0: ArrayLike, xt: ArrayLike, t: ArrayLike) -> dist.Distribution:
        """One step backward with the data known, q(x^(t-1) | x^t, x^0).

        Args:
            x0: Data, integers 0..K-1, shape (*batch, *event).
            xt: State after t steps, same event shape, broadcastable batch.
            t: Step, 1 <= t <= T, broadcastable against batch.

        Returns:
            Factorised categorical, event shape (*event); at t = 1 a point mass at x0. Of a pair that cannot be, such
            as another state than x0 under an absorbing kernel, it is finite and means nothing.

        Raises:
            TypeError: a state does not hold integers.
            ValueError: t lies outside 1..T, or a state does not end in the event shape.

        Source: Austin et al. 2021, eq. 3.
        """
        x0, xt = self._check(x0), self._check(xt)
        beta, signal, noise, _, _ = self._at(t)
        likelihood = _reaching(self._pi, xt, 1 - beta, beta)
        return self._categorical(_log(self._mix(x0, signal, noise)) + _log(likelihood))

    def averaged_posterior(self, logits: Array, xt: ArrayLike, t: ArrayLike) -> dist.Distribution:
        """One step backward with the data uncertain: `posterior` averaged over x^0, in time and memory of order K.

        P(x^(t-1) = j) = q(xt | j) (signal P_j / q(xt | x^0 = j) + noise pi_j sum_k P_k / q(xt | x^0 = k)), of the
        signal and the noise before step t.

        Args:
            logits: Logits of P(x^0 = k | x^t), shape (*batch, *event, K). An x^0 that cannot have led to xt gets none.
            xt: State after t steps, integers 0..K-1, shape (*batch, *event).
            t: Step, 1 <= t <= T, broadcastable against batch.

        Returns:
            Factorised categorical, event shape (*event).

        Raises:
            TypeError: xt does not hold integers.
            ValueError: t lies outside 1..T, or xt does not end in the event shape.

        Source: Austin et al. 2021, eq. 4, summed by hand for a step that redraws.
        """
        return self._categorical(_averaged(self._pi, logits, self._check(xt), self._at(t)))

    @property
    def _pi(self) -> Array:
        return jnp.asarray(self.probs, self.beta.dtype)

    def _check(self, x: ArrayLike) -> Array:
        x = require_state(x, self.event_shape)
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(f"Expected states to be integers 0..{self.num_states - 1}; got dtype {x.dtype}.")
        return x

    def _mix(self, x: Array, kept: Array, redrawn: Array) -> Array:
        """Probability of each state, where x is kept or redrawn with the given probabilities; no cancellation."""
        return _same(self._pi, x) * kept[..., None] + self._pi * redrawn[..., None]

    def _categorical(self, logits: Array) -> dist.Distribution:
        return dist.Categorical(logits=logits).to_event(len(self.event_shape))


def _same(pi: Array, x: Array) -> Array:
    """1 at the state x and 0 at the others, shape (*x.shape, K)."""
    return jax.nn.one_hot(x, len(pi), dtype=pi.dtype)


def _reaching(pi: Array, x: Array, kept: Array, redrawn: Array) -> Array:
    """Probability of x from each state, shape (*x.shape, K), where that is kept or redrawn with those given."""
    return _same(pi, x) * kept[..., None] + (redrawn * pi[x])[..., None]


@jax.jit
def _averaged(pi: Array, logits: Array, xt: Array, rates: tuple[Array, ...]) -> Array:
    """The logits of `averaged_posterior`; `rates` are what `_at` gives."""
    beta, signal, noise, signal_after, noise_after = rates
    reached = _reaching(pi, xt, signal_after, noise_after)  # q(xt | x^0 = k)
    possible = reached > 0
    log_reached = _log(jnp.where(possible, reached, 1.0))
    log_predicted = jax.nn.log_softmax(jnp.where(possible, logits, -jnp.finfo(logits.dtype).max / 8))
    log_ratio = jnp.where(possible, log_predicted - log_reached, -jnp.finfo(logits.dtype).max / 8)
    all_ratios = jax.nn.logsumexp(log_ratio, -1, keepdims=True)
    before = jnp.logaddexp(_log(signal)[..., None] + log_ratio, _log(noise[..., None] * pi) + all_ratios)
    return jax.nn.log_softmax(_log(_reaching(pi, xt, 1 - beta, beta)) + before)


def _log(probs: Array) -> Array:
    return jnp.maximum(jnp.log(probs), -jnp.finfo(probs.dtype).max / 4)


def _check_probs(probs: Any) -> np.ndarray:
    """Probabilities of shape (K,), or a clear error; in double precision, with a sum of 1."""
    if not is_concrete(probs):
        raise TypeError("Expected `probs` to be known numbers; got a tracer. The stationary distribution is fixed.")
    try:
        probs = np.asarray(probs, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"Expected `probs` to be an array of numbers; got {probs!r}.") from error
    if probs.ndim != 1 or len(probs) < 2:
        raise ValueError(f"Expected `probs` of shape (K,), one for each of K >= 2 states; got {probs.shape}.")
    if not (probs >= 0).all() or not abs(probs.sum() - 1) < 1e-6:
        raise ValueError(
            f"Expected `probs` of at least 0 with a sum of 1; got a least of {probs.min()} and a sum of {probs.sum()}."
        )
    return probs / probs.sum()
