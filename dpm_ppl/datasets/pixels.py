"""Images as a chain takes them: every draw is an image of a set, or of a law of images, on the chain's own states.

Each kind says what a log density of its states is worth in bits per dimension of the levels, `bits_per_dimension`.
"""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints

from dpm_ppl.datasets.images import Scale, require_levels
from dpm_ppl.distributions import coordinate_support


class _Resampled(dist.Distribution):
    """An image of a set, each as likely as the other, or of a law; its density is not for use."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    pytree_data_fields = ("images",)
    images: Array | np.ndarray | dist.Distribution

    def __init__(self, images: np.ndarray | dist.Distribution) -> None:
        self.images = images
        if isinstance(images, dist.Distribution):
            if images.batch_shape or not coordinate_support(images.support).is_discrete:
                raise ValueError(
                    "Expected a distribution of `images` to be over whole levels, of batch shape (); got one over "
                    f"{images.support}, of batch shape {images.batch_shape}."
                )
            super().__init__((), images.event_shape)
        else:
            require_levels(images)
            super().__init__((), images.shape[1:])

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Independent images, shape (*sample_shape, *event)."""
        key_image, key_pixels = jax.random.split(key)
        if isinstance(self.images, dist.Distribution):
            return self._pixels(key_pixels, self.images.sample(key_image, sample_shape))
        images = jnp.asarray(self.images)
        chosen = images[jax.random.randint(key_image, sample_shape, 0, len(images))]
        return self._pixels(key_pixels, chosen)

    def bits_per_dimension(self, nats: float) -> float:
        """Bits per dimension of a log probability of the states in nats per image, -nats / (D log 2)."""
        return -nats / math.prod(self.event_shape) / math.log(2)

    def _pixels(self, key: Array, chosen: Array) -> Array:
        raise NotImplementedError


class _Scaled(_Resampled):
    """Levels as real numbers."""

    pytree_aux_fields = ("scale",)
    scale: Scale

    def __init__(self, images: np.ndarray | dist.Distribution, scale: Scale) -> None:
        self.scale = scale
        super().__init__(images)

    @property
    def support(self) -> constraints.Constraint:
        """Real numbers."""
        return constraints.independent(constraints.real, self.event_dim)


class Binarised(_Resampled):
    """Black and white images: each pixel is 1 with the probability that its grey gives, level / 255, drawn anew.

    A model that is fitted to fresh bits does not learn by heart those that were drawn once. Held-out images have
    theirs drawn once, by `mnist_binary`.

    Args:
        images: Levels 0..255, shape (num, *event), or a distribution of levels.

    Raises:
        TypeError, ValueError: `images` are not integers 0..255.

    Source: Salakhutdinov and Murray 2008, section 6.1; drawn anew as in Burda, Grosse and Salakhutdinov 2016.
    """

    @property
    def support(self) -> constraints.Constraint:
        """Bits."""
        return constraints.independent(constraints.boolean, self.event_dim)

    def _pixels(self, key: Array, chosen: Array) -> Array:
        # Of 255 equally likely numbers below a level there are `level`.
        return (jax.random.randint(key, chosen.shape, 0, 255) < chosen).astype(jnp.result_type(int))


class Dequantised(_Scaled):
    """Images as real numbers of about zero mean and unit variance, each level spread evenly over its own interval.

    Args:
        images: Levels 0..255, shape (num, *event), or a distribution of levels.
        scale: How levels become numbers: that of the training images, also for others.

    Raises:
        TypeError, ValueError: `images` are not integers 0..255, as where they are scaled already.
    """

    def bits_per_dimension(self, nats: float) -> float:
        """Bits per dimension of the levels, of a log density in nats per image: at most so many, on average.

        Source: Theis, van den Oord and Bethge 2016, section 3.1 (see `dpm_ppl.datasets.images`).
        """
        return self.scale.bits_per_dimension(nats, math.prod(self.event_shape))

    def _pixels(self, key: Array, chosen: Array) -> Array:
        return (chosen + jax.random.uniform(key, chosen.shape) - self.scale.shift) / self.scale.width


class Centred(_Scaled):
    """The same with each level at the middle of its interval: for a chain whose last step is `DiscretisedNormal`.

    The ELBO is then a bound on the log probability of the levels themselves.

    Args:
        images: Levels 0..255, shape (num, *event), or a distribution of levels.
        scale: How levels become numbers: that of the training images, also for others.

    Raises:
        TypeError, ValueError: `images` are not integers 0..255, as where they are scaled already.
    """

    def levels_of(self, x: ArrayLike) -> np.ndarray:
        """The level that each number stands for, of x's shape."""
        return self.scale.quantise(x)

    def _pixels(self, key: Array, chosen: Array) -> Array:
        return (chosen + 0.5 - self.scale.shift) / self.scale.width
