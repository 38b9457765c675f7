"""A normal over the levels of an image: what a Gaussian chain's last step gives integers, p(x^0 | x^1).

With it as `decode`, on data at the centres of their levels, the ELBO is a bound on the log probability of the integers
themselves: bits per dimension are -ELBO / (D log 2), of no dequantisation. beta_1 may then be as small as one likes.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import log_ndtr
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import promote_shapes, validate_sample
from numpyro.util import is_prng_key

from dpm_ppl.datasets.images import Scale


class DiscretisedNormal(dist.Distribution):
    """The normal's mass on the interval of each level, the first and last reaching to infinity; of one coordinate.

    A value is a real number, as the states of a Gaussian chain are: any number in a level's interval stands for it, and
    samples are the intervals' centres.

    Args:
        loc: Mean, in the chain's units.
        scale: Standard deviation, in the same; broadcastable against `loc`.
        levels: How levels lie on the line, `dpm_ppl.datasets.Scale`.
        validate_args: Whether NumPyro checks arguments.

    Source: Ho et al. 2020, section 3.3, eq. 13.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.real
    has_atoms = True  # its log_prob is of a level, and no density
    pytree_data_fields = ("loc", "scale")
    pytree_aux_fields = ("levels",)
    loc: Array
    scale: Array
    levels: Scale

    def __init__(self, loc: ArrayLike, scale: ArrayLike, *, levels: Scale, validate_args: bool | None = None) -> None:
        self.loc, self.scale = promote_shapes(jnp.asarray(loc), jnp.asarray(scale))
        self.levels = levels
        batch_shape = jnp.broadcast_shapes(jnp.shape(loc), jnp.shape(scale))
        super().__init__(batch_shape, (), validate_args=validate_args)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Centres of levels, shape (*sample_shape, *batch)."""
        assert is_prng_key(key)
        noise = jax.random.normal(key, sample_shape + self.batch_shape, jnp.result_type(self.loc, float))
        return self._centre(self._level(self.loc + self.scale * noise))

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """Log probability in nats of the level that each value lies in, shape the broadcast batch."""
        level = self._level(value)
        low, high = ((level + end - self.levels.shift) / self.levels.width for end in (0, 1))
        low, high = ((edge - self.loc) / self.scale for edge in (low, high))
        first, last = level == 0, level == self.levels.levels - 1
        # In the tail above the mean the mass of the mirrored interval, which does not cancel.
        above = low > 0
        near = jnp.where(above, -low, high)  # the end that is nearer to the mean, in deviations from it
        inner = _log_mass(near, 1 / (self.levels.width * self.scale))
        return jnp.where(first, log_ndtr(high), jnp.where(last, log_ndtr(-low), inner))

    @property
    def mean(self) -> Array:
        """Mean of the levels' centres, shape the batch."""
        return self._expected(lambda x: x)

    @property
    def variance(self) -> Array:
        """Variance of the levels' centres, shape the batch."""
        mean = self.mean
        return self._expected(lambda x: (x - mean) ** 2)

    def _expected(self, value: Callable[[Array], Array]) -> Array:
        """The mean of a function of the centres: level by level, as all at once are as many times the memory."""

        def add(total: Array, level: Array) -> tuple[Array, None]:
            centre = self._centre(level)
            return total + value(centre) * jnp.exp(self.log_prob(centre)), None

        begin = jnp.zeros(self.batch_shape, jnp.result_type(self.loc, float))
        return jax.lax.scan(add, begin, jnp.arange(self.levels.levels))[0]

    def _level(self, value: ArrayLike) -> Array:
        level = jnp.floor(jnp.asarray(value) * self.levels.width + self.levels.shift)
        return jnp.clip(level, 0, self.levels.levels - 1)

    def _centre(self, level: Array) -> Array:
        return (level + 0.5 - self.levels.shift) / self.levels.width


def _log_mass(end: Array, width: Array) -> Array:
    """log(Phi(end) - Phi(end - width)); by the density in the middle where they are too close to subtract."""
    narrow = width < 1e-3
    apart = jnp.where(narrow, 1.0, width)  # no infinite slope in the branch that is not taken
    log_below = log_ndtr(end)
    wide = log_below + jnp.log(-jnp.expm1(log_ndtr(end - apart) - log_below))
    return jnp.where(narrow, dist.Normal().log_prob(end - width / 2) + jnp.log(width), wide)
