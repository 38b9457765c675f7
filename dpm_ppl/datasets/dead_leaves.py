"""Dead leaves: images of discs that hide each other, of all sizes alike, as a NumPyro distribution.

Source: Lee, Mumford and Huang 2001, "Occlusion models for natural images", section 3; Matheron 1968.
"""

import math
from functools import partial
from numbers import Real
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from dpm_ppl.arguments import require_count

AT_ONCE = 64  # discs that are laid at a time


class DeadLeaves(dist.Distribution):
    """Grey images of opaque discs thrown on each other for ever, seen from above; batch shape (), event (size, size).

    Centres are uniform over the plane, radii have the density r^-3 between two cut-offs, and each disc has one grey,
    uniform over the levels 0..255: so has each pixel. Samples are exact, as discs are laid from the top one down until
    no pixel is left bare. Neighbouring pixels are often equal, so a density of real numbers needs them dequantised.

    Args:
        size: Height and width, pixels.
        smallest: Least radius, pixels.
        largest: Greatest radius, pixels.

    Raises:
        TypeError: `size` is no integer, or a radius no Python or NumPy number.
        ValueError: Not 0 < smallest < largest, or `size` is below 1.

    Source: Lee, Mumford and Huang 2001, section 3.2, for radii; Kendall and Thönnes 1999 for exact samples from above.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.integer_interval(0, 255), 2)
    pytree_data_fields = ()
    pytree_aux_fields = ("size", "smallest", "largest")
    size: int
    smallest: float
    largest: float

    def __init__(self, size: int = 16, *, smallest: float = 1.0, largest: float = 16.0) -> None:
        self.size = require_count("size", size)
        for name, radius in (("smallest", smallest), ("largest", largest)):
            if isinstance(radius, bool) or not isinstance(radius, Real):
                raise TypeError(f"Expected `{name}`, a radius in pixels, as a number; got {radius!r}.")
        if not 0 < smallest < largest < math.inf:
            raise ValueError(f"Expected radii 0 < smallest < largest; got {smallest} and {largest}.")
        self.smallest, self.largest = float(smallest), float(largest)
        super().__init__((), (self.size, self.size))

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Independent images, integers 0..255, shape (*sample_shape, size, size)."""
        keys = jax.random.split(key, math.prod(sample_shape))
        images = _images(keys, size=self.size, ends=(self.smallest, self.largest))
        return images.reshape(*sample_shape, *self.event_shape)

    @property
    def mean(self) -> Array:
        """127.5 everywhere, shape (size, size)."""
        return jnp.full(self.event_shape, 255 / 2)

    @property
    def variance(self) -> Array:
        """That of a uniform level, shape (size, size)."""
        return jnp.full(self.event_shape, (256**2 - 1) / 12)


@partial(jax.jit, static_argnames=("size", "ends"))
def _images(keys: Array, *, size: int, ends: tuple[float, float]) -> Array:
    """An image for each key, shape (num, size, size)."""
    row, column = jnp.meshgrid(jnp.arange(size), jnp.arange(size), indexing="ij")
    reach = ends[1]  # a disc whose centre is further away than this hides nothing of the image

    def image_of(key: Array) -> Array:
        def lay(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            i, image, bare = state
            of_centre, of_radius, of_grey = jax.random.split(jax.random.fold_in(key, i), 3)
            centre = jax.random.uniform(of_centre, (2, AT_ONCE, 1, 1), minval=-reach, maxval=size - 1 + reach)
            radius = _radii(jax.random.uniform(of_radius, (AT_ONCE, 1, 1)), ends)
            grey = jax.random.randint(of_grey, (AT_ONCE,), 0, 256)
            hides = (row - centre[0]) ** 2 + (column - centre[1]) ** 2 <= radius**2
            top = grey[jnp.argmax(hides, 0)]  # of the first disc, the uppermost, where there is one
            hidden = jnp.any(hides, 0)
            return i + 1, jnp.where(bare & hidden, top, image), bare & ~hidden

        begin = jnp.asarray(0), jnp.zeros((size, size), int), jnp.ones((size, size), bool)
        return jax.lax.while_loop(lambda state: jnp.any(state[2]), lay, begin)[1]

    return jax.lax.map(image_of, keys, batch_size=32)


def _radii(share: Array, ends: tuple[float, float]) -> Array:
    """Radii below which there is a share of all: the inverse of their distribution function, of density r^-3."""
    small, large = ends[0] ** -2, ends[1] ** -2
    return (small - share * (small - large)) ** -0.5
