r"""The Parzen-window log likelihood of older tables: a normal density around every sample, as wide as validation says.

log p(x) = log 1/n sum_i N(x; s_i, h^2 I) = logsumexp_i(-|x - s_i|^2 / 2 h^2) - log n - D/2 log(2 pi h^2).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dpm_ppl.arguments import require_count
from dpm_ppl.inference.arguments import require_alike, require_numbers
from dpm_ppl.inference.units import in_both_units, mean_and_error

NUM_BANDWIDTHS = 10  # in a decade, from end to end, as Goodfellow et al. have them

MOST_ROUNDING = 0.05  # nats of a datum, of most of them


@dataclass(frozen=True, eq=False)
class Parzen:
    """Log likelihoods of data under windows around samples; NumPy, float64.

    Attributes:
        log_prob: Log density of each datum, nats, shape (num_data,).
        bandwidth: Standard deviation h of a window, in the data's own units.
        bandwidths: Every h that was tried, rising, shape (num_bandwidths,).
        validation_log_prob: Mean log density of the validation data under each, nats, shape (num_bandwidths,).
        num_samples: Number of samples.
    """

    log_prob: np.ndarray
    bandwidth: float
    bandwidths: np.ndarray
    validation_log_prob: np.ndarray
    num_samples: int

    @property
    def mean(self) -> float:
        """Mean of `log_prob`, nats per datum."""
        return mean_and_error(self.log_prob)[0]

    @property
    def mean_error(self) -> float:
        """Standard error of `mean` over the data, for these samples and this h; NaN of a single datum."""
        return mean_and_error(self.log_prob)[1]

    def summary(self) -> dict[str, float]:
        """`parzen_nats`, `parzen_bits`, each with its error under `_se`; `parzen_bandwidth`, `parzen_num_samples`."""
        return {
            **in_both_units("parzen", self.mean),
            **in_both_units("parzen", self.mean_error, suffix="_se"),
            "parzen_bandwidth": self.bandwidth,
            "parzen_num_samples": self.num_samples,
        }


def parzen(
    samples: ArrayLike,
    x: ArrayLike,
    validation: ArrayLike,
    *,
    bandwidths: ArrayLike | None = None,
    block_size: int = 1000,
) -> Parzen:
    """Log likelihood of data under a normal window around every sample, all of one width.

    For comparison with older tables only: it is a biased estimator of little meaning (Theis et al. 2016). In many
    dimensions it stays far from the log likelihood of the model however many samples there are, and ranks models
    otherwise; the training set itself, in place of samples, scores below some models. It depends on the unit of the
    data: tables have pixels of 0 to 1.

    Args:
        samples: Samples of a model, shape (num_samples, *event), at least two.
        x: Data, shape (num_data, *event).
        validation: Other data, shape (num_validation, *event), whose mean log likelihood chooses the width.
        bandwidths: Standard deviations to choose from, shape (num_bandwidths,) or (); by default ten from 0.1 to 1,
            their logarithms evenly spaced, as is customary. Where the best is the narrowest or the widest, those of a
            decade more are tried beyond it, until it is not. A single one is taken as it is.
        block_size: Data, and samples, of which all distances are in memory at once.

    Returns:
        The log likelihoods, and how the width was chosen.

    Raises:
        TypeError: an array is not numeric, or block_size is no integer.
        ValueError: event shapes differ, something is not finite, an array is too small, a bandwidth is not positive; or
            the bandwidth is so narrow that rounding decides, as it becomes where all validation data are samples.

    Source: Breuleux, Bengio and Vincent 2011; Goodfellow et al. 2014, table 1. What it is worth: Theis, van den Oord
        and Bethge 2016, table 1 and the section on Parzen window estimates.
    """
    block_size = require_count("block_size", block_size)
    samples = require_numbers("samples", samples, at_least=2)
    x, validation = require_numbers("x", x, at_least=1), require_numbers("validation", validation, at_least=1)
    require_alike(samples=samples, x=x, validation=validation)
    tried = _grid(bandwidths)
    windows = _Windows(samples, block_size)
    narrowest = windows.narrowest(validation)
    scores = windows.log_prob(validation, tried).mean(1)
    best = int(np.argmax(scores))
    while len(tried) > 1 and best in (0, len(tried) - 1) and tried[best] > narrowest:
        beyond = tried[best] * 10 ** (np.arange(1, NUM_BANDWIDTHS) / (NUM_BANDWIDTHS - 1) * (1 if best else -1))
        scores = np.append(scores, windows.log_prob(validation, beyond).mean(1))
        tried = np.append(tried, beyond)
        order = np.argsort(tried)
        tried, scores = tried[order], scores[order]
        best = int(np.argmax(scores))
    bandwidth = float(tried[best])
    if bandwidth <= narrowest:
        raise ValueError(
            f"Expected a bandwidth above {narrowest:.2g}, below which rounding decides; got {bandwidth:.2g}. Where all "
            "validation data are samples, as bits may be, narrower is always better: leave those out. Else set "
            "jax_enable_x64."
        )
    (log_prob,) = windows.log_prob(x, tried[best : best + 1])
    return Parzen(log_prob, bandwidth, tried, scores, len(samples))


def _grid(bandwidths: ArrayLike | None) -> np.ndarray:
    """Bandwidths to try first, rising."""
    if bandwidths is None:
        return np.logspace(-1, 0, NUM_BANDWIDTHS)
    values = require_numbers("bandwidths", np.atleast_1d(np.asarray(bandwidths)), at_least=1)
    if values.ndim != 1 or not np.all(values > 0):
        came = f"shape {values.shape}" if values.ndim != 1 else f"{values.min():g}"
        raise ValueError(f"Expected `bandwidths` to be positive, of shape (num_bandwidths,); got {came}.")
    return np.unique(values.astype(np.float64))


class _Windows:
    """Samples in blocks, ready to be windows.

    Squared distances are |x|^2 + |s|^2 - 2 x.s, which cancels: all is taken from the samples' mean, and in units of
    their standard deviation, in double precision before anything else.

    Args:
        samples: Samples, shape (num_samples, *event).
        block_size: Samples, and data, in a block.
    """

    def __init__(self, samples: np.ndarray, block_size: int) -> None:
        flat = samples.reshape(len(samples), -1)
        self.num_samples, self.num_dimensions = flat.shape
        self.block_size = block_size
        self.centre = flat.mean(0, dtype=np.float64)
        self.width = math.sqrt(self._mean_square(flat, 1.0) / self.num_dimensions) or 1.0
        dtype = jnp.result_type(float)
        self.blocks = [tuple(jnp.asarray(part, dtype) for part in block) for block in self._blocks(flat)]

    def narrowest(self, x: np.ndarray) -> float:
        """The bandwidth at which rounding of squared distances from x, (num_data, *event), is about `MOST_ROUNDING`.

        Their error is measured on images: at most some 4 units in the last place of |x|^2 + |s|^2.
        """
        terms = self.num_dimensions + self._mean_square(x.reshape(len(x), -1), self.width)
        return self.width * math.sqrt(4 * float(jnp.finfo(jnp.result_type(float)).eps) * terms / 2 / MOST_ROUNDING)

    def log_prob(self, x: np.ndarray, bandwidths: np.ndarray) -> np.ndarray:
        """Log density of each datum under each bandwidth, nats, float64.

        Args:
            x: Data, shape (num_data, *event).
            bandwidths: Standard deviations, shape (num_bandwidths,).

        Returns:
            Shape (num_bandwidths, num_data).
        """
        dtype = jnp.result_type(float)
        limits = jnp.finfo(dtype)
        inverse = jnp.asarray(np.clip(self.width / bandwidths, limits.tiny, limits.max), dtype)
        found = []
        for rows, squares in self._blocks(x.reshape(len(x), -1)):
            nearest, total = jnp.full(len(rows), jnp.inf), jnp.zeros((len(bandwidths), len(rows)))
            for samples, lengths in self.blocks:
                nearest, total = _with_more(nearest, total, jnp.asarray(rows, dtype), samples, lengths, inverse)
            square = np.maximum(squares + np.asarray(nearest, np.float64), 0)
            exponent = -0.5 * square * (self.width / bandwidths[:, None]) ** 2
            found.append(exponent + np.log(np.asarray(total, np.float64)))
        normaliser = math.log(self.num_samples) + self.num_dimensions / 2 * np.log(2 * math.pi * bandwidths**2)
        return np.concatenate(found, 1)[:, : len(x)] - normaliser[:, None]

    def _mean_square(self, flat: np.ndarray, width: float) -> float:
        """Mean of |x - centre|^2 in units of a width."""
        parts = (flat[i : i + self.block_size] for i in range(0, len(flat), self.block_size))
        return sum(float(np.sum(((part - self.centre) / width) ** 2)) for part in parts) / len(flat)

    def _blocks(self, flat: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Centred rows in blocks of one size, and their squared lengths: infinite where the last block is filled up."""
        size = min(self.block_size, len(flat))
        for i in range(0, len(flat), size):
            rows = (flat[i : i + size] - self.centre) / self.width
            missing = size - len(rows)
            squares = np.pad(np.sum(rows**2, 1), (0, missing), constant_values=math.inf)
            yield np.pad(rows, ((0, missing), (0, 0))), squares


@jax.jit
def _with_more(
    nearest: Array, total: Array, rows: Array, samples: Array, lengths: Array, inverse: Array
) -> tuple[Array, Array]:
    """Sums over samples with a block more, the nearest sample's term being 1 under every bandwidth.

    Args:
        nearest: |x - s|^2 - |x|^2 of each datum and the nearest sample so far, shape (num_data,).
        total: Sums of exp(-(|x - s|^2 - |x|^2 - nearest) / 2 h^2) so far, shape (num_bandwidths, num_data).
        rows: Data, shape (num_data, D).
        samples: Samples, shape (num_samples, D).
        lengths: Their squared lengths, shape (num_samples,).
        inverse: 1 / h, shape (num_bandwidths,).

    Returns:
        `nearest` and `total` of all.
    """
    # By default GPUs round the factors of such products to TF32, 11 bits.
    square = lengths - 2 * jnp.matmul(rows, samples.T, precision=jax.lax.Precision.HIGHEST)
    least = jnp.minimum(nearest, jnp.min(square, 1))

    def with_bandwidth(each: tuple[Array, Array]) -> Array:
        before, inverse = each

        def weight(excess: Array) -> Array:
            return jnp.exp(-0.5 * excess * inverse * inverse)

        return before * weight(nearest - least) + jnp.sum(weight(square - least[:, None]), 1)

    return least, jax.lax.map(with_bandwidth, (total, inverse))
