r"""Sets of images: three parts of integer levels, and the one constant scale on which a Gaussian chain sees them.

Densities of real numbers stand for probabilities of integers where each level is spread evenly over its own interval
(dequantised): log p(x) of x = (level + u - shift) / width, u ~ Uniform[0, 1), is then on average at most log P(level) +
log width per pixel. So bits per dimension are -log2 p(x) / D + log2 width.

Source: Theis, van den Oord and Bethge 2016, section 3.1.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dpm_ppl.arguments import require_count


@dataclass(frozen=True, eq=False)
class Images:
    """Images of a data set in three parts, of which none is in two.

    Args:
        train: To fit, integers 0..levels - 1, shape (num_train, height, width) or (num_train, height, width, channels).
        validation: To choose by, of the same event shape.
        test: To report on.
        levels: Number of levels of a pixel.

    Raises:
        TypeError: a part holds no integers.
        ValueError: a level is out of range, a part is empty, or one has images of another shape.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    levels: int = 256

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            part = require_levels(getattr(self, name), name=name, levels=self.levels)
            if part.shape[1:] != self.train.shape[1:] or len(part) == 0:
                raise ValueError(
                    f"Expected `{name}` to hold images of shape {self.train.shape[1:]}, at least one; got an array of "
                    f"shape {part.shape}."
                )

    @classmethod
    def split(cls, train: np.ndarray, test: np.ndarray, *, num_validation: int, levels: int = 256) -> "Images":
        """Two published parts, of which the first gives its last `num_validation` images to validation.

        Raises:
            TypeError: num_validation is no integer; or as above.
            ValueError: no image is left to fit; or as above.
        """
        if require_count("num_validation", num_validation) >= len(train):
            raise ValueError(
                f"Expected `num_validation` below the number of training images, {len(train)}; got {num_validation}."
            )
        return cls(train[:-num_validation], train[-num_validation:], test, levels)

    @cached_property
    def scale(self) -> "Scale":
        """The scale on which the dequantised training images have mean 0 and variance 1, over all their pixels."""
        return Scale.of(self.train, levels=self.levels)


@dataclass(frozen=True)
class Scale:
    """How levels become numbers: x = (level + u - shift) / width, with u ~ Uniform[0, 1).

    Args:
        shift: Mean, in levels.
        width: Number of levels in a unit of x: a level is 1 / width wide.
        levels: Number of levels of a pixel.
    """

    shift: float
    width: float
    levels: int = 256

    @classmethod
    def of(cls, images: np.ndarray, *, levels: int = 256) -> "Scale":
        """The scale of mean 0 and variance 1 of dequantised images, shape (num, *event); u has variance 1/12.

        Raises:
            TypeError, ValueError: the images are not integers 0..levels - 1.
        """
        require_levels(images, levels=levels)
        counts = np.bincount(images.ravel(), minlength=levels) / images.size
        level = np.arange(levels)
        mean = float(counts @ level)
        return cls(mean + 0.5, math.sqrt(float(counts @ (level - mean) ** 2) + 1 / 12), levels)

    def dequantise(self, images: np.ndarray, *, seed: int) -> np.ndarray:
        """Images as real numbers, their noise drawn once by a seed.

        Args:
            images: Levels, shape (num, *event).
            seed: Seed of u.

        Returns:
            Of the same shape, in single precision.

        Raises:
            TypeError, ValueError: the images are not integers 0..levels - 1, as where they are scaled already.
        """
        require_levels(images, levels=self.levels)
        noise = np.random.default_rng(seed).random(images.shape, np.float32)
        return ((images + noise - self.shift) / self.width).astype(np.float32)

    def centre(self, images: np.ndarray) -> np.ndarray:
        """Images as real numbers, each level at the middle of its interval; of the same shape, in single precision.

        Raises:
            TypeError, ValueError: the images are not integers 0..levels - 1.
        """
        require_levels(images, levels=self.levels)
        return ((images + np.float32(0.5 - self.shift)) / np.float32(self.width)).astype(np.float32)

    def quantise(self, x: Any) -> np.ndarray:
        """The level that each number came from, the nearest one outside the range; integers of x's shape."""
        level = np.floor(np.asarray(x, np.float64) * self.width + self.shift)
        return np.clip(level, 0, self.levels - 1).astype(np.int64)

    def bits_per_dimension(self, nats: float, num_dimensions: int) -> float:
        """Bits per dimension of the integers, of a log density of x in nats per image, of so many dimensions."""
        return -nats / num_dimensions / math.log(2) + math.log2(self.width)


def require_levels(images: Any, *, name: str = "images", levels: int = 256) -> np.ndarray:
    """Images as integer levels, or a clear error.

    Args:
        images: Array of shape (num, *event).
        name: What they are called.
        levels: Number of levels.

    Raises:
        TypeError: they are no array of integers.
        ValueError: a level is out of range.
    """
    if not isinstance(images, np.ndarray) or not np.issubdtype(images.dtype, np.integer):
        came = type(images).__name__
        if isinstance(images, np.ndarray):
            came = images.dtype.name + (f" from {images.min():g} to {images.max():g}" if images.size else "")
        raise TypeError(
            f"Expected `{name}` to be a NumPy array of integers 0..{levels - 1}, the levels of a file; got {came}. "
            "Images that are scaled already cannot be dequantised: give them before scaling."
        )
    if images.size and not (images.min() >= 0 and images.max() < levels):
        raise ValueError(
            f"Expected `{name}` to hold levels 0..{levels - 1}; got integers from {images.min()} to {images.max()}."
        )
    return images
