r"""The paper's two toy data sets as NumPyro distributions, so that what a model should reach is known exactly.

The best any model can do is the expected log density of the data, minus `entropy()`: in bits, -0.948 a point for the
swiss roll at noise 0.25 and -2.322 a sequence for the heartbeat.

Source: Sohl-Dickstein et al. 2015, section 3.1.
"""

import math
import operator
from functools import partial
from numbers import Real
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

_INNER, _OUTER = 1.5 * math.pi, 4.5 * math.pi  # angles, and so radii, at which the roll begins and ends


class SwissRoll(dist.Distribution):
    r"""A spiral in the plane under Gaussian noise, standardised; batch shape (), event shape (2,).

    The angle is uniform on [1.5 pi, 4.5 pi] and the point is (angle cos angle, angle sin angle) + noise N(0, I), of
    which each coordinate is then shifted and scaled by constants to mean 0 and variance 1, exactly.

    Args:
        noise: Standard deviation of the noise in units of the roll (radius 4.7 to 14.1, 6.3 between windings), before
            standardising. A Python number, static under `jit`.
        validate_args: Whether NumPyro checks values given to `log_prob`.

    Raises:
        TypeError: `noise` is no Python or NumPy number.
        ValueError: `noise` is not positive and finite.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"noise": constraints.positive}
    support = constraints.real_vector
    reparametrized_params: ClassVar[list[str]] = ["noise"]
    pytree_data_fields = ()
    pytree_aux_fields = ("noise",)
    noise: float

    def __init__(self, noise: float = 0.25, *, validate_args: bool | None = None) -> None:
        if not isinstance(noise, Real):
            raise TypeError(f"Expected `noise` as a Python number; got {type(noise).__name__}. Use float(noise).")
        if not (math.isfinite(noise) and noise > 0):
            raise ValueError(f"Expected `noise` positive and finite; got {noise}. Give a deviation, such as 0.25.")
        self.noise = float(noise)
        super().__init__((), (2,), validate_args=validate_args)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Independent points, shape (*sample_shape, 2)."""
        return _points(key, tuple(sample_shape), self.noise)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """Log density by quadrature over the angle.

        Args:
            value: Points, shape (*batch, 2), standardised. Their number does not change the memory needed.

        Returns:
            Log densities in nats, shape (*batch,), to 1e-9 (in x64) up to 40 `noise` away from the roll. The cost of
            a point is some 2,800 nodes at noise 0.25 and grows as 1 / noise.

        Raises:
            ValueError: `value` is not of shape (*batch, 2).
        """
        value = _check_event(value, self.event_shape)
        value = value.astype(jnp.result_type(value, float))
        return _log_density(value.reshape(-1, 2), noise=self.noise).reshape(value.shape[:-1])

    @property
    def mean(self) -> Array:
        """Zeros, shape (2,)."""
        return jnp.zeros(2)

    @property
    def variance(self) -> Array:
        """Ones, shape (2,)."""
        return jnp.ones(2)

    def entropy(self) -> Array:
        """Differential entropy in nats per point, shape (), by quadrature over the plane, to 1e-7 (in x64).

        Takes under a second at noise 0.25; the cost grows as 1 / noise^3.
        """
        # A trapezoidal sum over the whole plane: for a density smooth on the scale of its step, the most accurate.
        reach = _OUTER + 9 * self.noise
        num = math.ceil(4 * reach / self.noise) + 1  # a step of half the noise
        axis = np.linspace(-reach, reach, num)
        shift, scale = _standardisation(self.noise)
        log_prob = self.log_prob((np.stack(np.meshgrid(axis, axis), -1) - shift) / scale)
        return -jnp.sum(jnp.exp(log_prob) * log_prob) * (2 * reach / (num - 1)) ** 2 / np.prod(scale)


@partial(jax.jit, static_argnums=(1, 2))
def _points(key: Array, sample_shape: tuple[int, ...], noise: float) -> Array:
    key_angle, key_noise = jax.random.split(key)
    angle = jax.random.uniform(key_angle, sample_shape, minval=_INNER, maxval=_OUTER)
    roll = jnp.stack([angle * jnp.cos(angle), angle * jnp.sin(angle)], -1)
    shift, scale = _standardisation(noise)
    return (roll + noise * jax.random.normal(key_noise, roll.shape) - shift) / scale


def _standardisation(noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each coordinate, noise included, in units of the roll; each of shape (2,)."""
    # Of the angle a: E a cos a = 2, E a sin a = 2 / 3 pi, E (a cos a)^2 = E a^2 / 2 - 1/4, E (a sin a)^2 with + 1/4.
    mean = np.array([2.0, 2 / (3 * math.pi)])
    mean_square = (_OUTER**3 - _INNER**3) / (6 * (_OUTER - _INNER)) + np.array([-0.25, 0.25])
    return mean, np.sqrt(mean_square - mean**2 + noise**2)


def _angles(noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and log weights for the mean over the angle, on panels of equal length along the roll."""
    # 32 nodes a panel of 4 noise, for the steep integrands of points far away; at least 6 panels, for the roll turns.
    num_panels = max(6, math.ceil((_OUTER**2 - _INNER**2) / 2 / (4 * noise)))
    edges = np.sqrt(np.linspace(_INNER**2, _OUTER**2, num_panels + 1))  # length along the roll is about angle^2 / 2
    node, weight = np.polynomial.legendre.leggauss(32)
    centre, half = (edges[1:, None] + edges[:-1, None]) / 2, np.diff(edges)[:, None] / 2
    return (centre + half * node).ravel(), np.log((half * weight / (_OUTER - _INNER)).ravel())


@partial(jax.jit, static_argnames="noise")
def _log_density(value: Array, *, noise: float) -> Array:
    """Log density in nats, shape (num_points,), of points of shape (num_points, 2)."""
    (angle, log_weight), (shift, scale) = _angles(noise), _standardisation(noise)
    # Nodes and points in units of the noise, rounded once to the precision of the points.
    node_x, node_y = (np.asarray(angle * turn(angle) / noise, value.dtype) for turn in (np.cos, np.sin))
    log_weight = np.asarray(log_weight + np.log(np.prod(scale)) - math.log(2 * math.pi * noise**2), value.dtype)
    points = value * np.asarray(scale / noise, value.dtype) + np.asarray(shift / noise, value.dtype)

    @jax.checkpoint  # a gradient recomputes, so that its memory is bounded as well
    def log_density(point: Array) -> Array:
        return logsumexp(log_weight - 0.5 * ((point[0] - node_x) ** 2 + (point[1] - node_y) ** 2))

    return jax.lax.map(log_density, points, batch_size=max(1, 2**20 // angle.size))


class Heartbeat(dist.Distribution):
    """Binary sequences with a one every `period` bins, the phase uniform; batch shape (), event shape (length,).

    Args:
        length: Number of bins.
        period: Bins from one beat to the next, at most `length`, so that every phase gives another sequence.
        validate_args: Whether NumPyro checks values given to `log_prob`.

    Raises:
        TypeError: `length` or `period` is no integer.
        ValueError: Not 1 <= period <= length.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "length": constraints.positive_integer,
        "period": constraints.positive_integer,
    }
    support = constraints.independent(constraints.boolean, 1)
    # `has_enumerate_support` stays False: NumPyro's expand, so any plate, can enumerate scalar events only.
    pytree_data_fields = ()
    pytree_aux_fields = ("length", "period")
    length: int
    period: int

    def __init__(self, length: int = 20, period: int = 5, *, validate_args: bool | None = None) -> None:
        self.length, self.period = _check_integer(length, "length"), _check_integer(period, "period")
        if not 1 <= self.period <= self.length:
            raise ValueError(
                f"Expected 1 <= period <= length; got period {period} and length {length}. "
                "The paper's sequences are length=20, period=5."
            )
        super().__init__((), (self.length,), validate_args=validate_args)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Independent sequences of 0 and 1, integers as NumPyro's Bernoulli gives, shape (*sample_shape, length)."""
        return self.enumerate_support()[jax.random.randint(key, sample_shape, 0, self.period)]

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """Log probability in nats: -log period for a heartbeat, -inf for any other sequence.

        Args:
            value: Sequences of 0 and 1, shape (*batch, length), of any type.

        Returns:
            Log probabilities, shape (*batch,).

        Raises:
            ValueError: `value` is not of shape (*batch, length).
        """
        value = _check_event(value, self.event_shape)
        valid = jnp.any(jnp.all(value[..., None, :] == self.enumerate_support(), -1), -1)
        return jnp.where(valid, -math.log(self.period), -jnp.inf)

    def enumerate_support(self, expand: bool = True) -> Array:  # noqa: FBT001, FBT002 - NumPyro's signature
        """The sequences of positive probability, shape (period, length); row i has its first one in bin i."""
        beats = (jnp.arange(self.length) - jnp.arange(self.period)[:, None]) % self.period == 0
        return beats.astype(jnp.result_type(int))

    @property
    def mean(self) -> Array:
        """Probability of a one in each bin, 1 / period, shape (length,)."""
        return jnp.full(self.length, 1 / self.period)

    @property
    def variance(self) -> Array:
        """Variance of each bin, shape (length,)."""
        return self.mean * (1 - self.mean)

    def entropy(self) -> Array:
        """Entropy log(period) in nats per sequence, shape ()."""
        return jnp.log(jnp.asarray(self.period, float))


def _check_integer(value: int, name: str) -> int:
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"Expected `{name}` as an integer; got {value}. Give a number of bins.")
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"Expected `{name}` as an integer; got {value!r}. Give a whole number of bins.") from error


def _check_event(value: ArrayLike, event_shape: tuple[int, ...]) -> Array:
    value = jnp.asarray(value)
    if value.shape[-1:] != event_shape:
        raise ValueError(
            f"Expected `value` of shape (*batch, {event_shape[0]}); got {value.shape}. The last axis is one datum."
        )
    return value
