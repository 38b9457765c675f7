"""Images whose pixels are random: every draw is an image of a set, its bits or the noise on its levels drawn anew."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from dpm_ppl.datasets.images import Scale, require_levels


class _Resampled(dist.Distribution):
    """An image of a set, each as likely as the other, with noise on its pixels; its density is not for use."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    pytree_data_fields = ("images",)
    images: Array | np.ndarray

    def __init__(self, images: np.ndarray) -> None:
        require_levels(images)
        self.images = images
        super().__init__((), images.shape[1:])

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Independent images, shape (*sample_shape, *event)."""
        key_image, key_pixels = jax.random.split(key)
        images = jnp.asarray(self.images)
        chosen = images[jax.random.randint(key_image, sample_shape, 0, len(images))]
        return self._pixels(key_pixels, chosen)

    def _pixels(self, key: Array, chosen: Array) -> Array:
        raise NotImplementedError


class Binarised(_Resampled):
    """Black and white images: each pixel is 1 with the probability that its grey gives, level / 255, drawn anew.

    A model that is fitted to fresh bits does not learn by heart those that were drawn once. Held-out images have
    theirs drawn once, by `mnist_binary`.

    Args:
        images: Levels 0..255, shape (num, *event).

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


class Dequantised(_Resampled):
    """Images as real numbers of about zero mean and unit variance, each level spread evenly over its own interval.

    Args:
        images: Levels 0..255, shape (num, *event).
        scale: How levels become numbers: that of the training images, also for others.

    Raises:
        TypeError, ValueError: `images` are not integers 0..255, as where they are scaled already.
    """

    pytree_aux_fields = ("scale",)
    scale: Scale

    def __init__(self, images: np.ndarray, scale: Scale) -> None:
        self.scale = scale
        super().__init__(images)

    @property
    def support(self) -> constraints.Constraint:
        """Real numbers."""
        return constraints.independent(constraints.real, self.event_dim)

    def _pixels(self, key: Array, chosen: Array) -> Array:
        noise = jax.random.uniform(key, chosen.shape)
        return (chosen + noise - self.scale.shift) / self.scale.width
