"""A posterior as weighted particles, with its evidence and what tells whether to trust them."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dpm_ppl.inference import diagnostics


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Posterior:
    """Weighted particles of p(x) r(x) / Z. Under `jax.vmap` every array has the axes of the batch in front.

    Attributes:
        samples: Data x^0, shape (num_particles, *event).
        log_weight: Log weights of `samples` in nats, shape (num_particles,); of any scale.
        log_evidence: log Z_hat in nats, scalar; exp of it is an unbiased estimate of Z.
        log_evidence_se: Its standard error by the delta method, from the particles' ancestry in this one run: that of
            multinomial resampling, so somewhat large for the systematic one used; too small, by a quarter to a third
            over ten bits in five steps, where now and then a weight is large. It is never above 1, nor worth much above
            one half; and 0 where the estimated variance is below 0, as it can be when few ancestors are left. Source:
            Lee and Whiteley 2018, eq. 8.
        latents: The program's other latent variables, each of shape (num_particles, ...).
        ess: Kish's effective sample size of the weights of x^t before any resampling, t = 0..T, shape (T + 1,).
        tail: The largest log weights at each t, from which `khat` is taken, shape (T + 1, tail).
        num_ancestors: How many particles of the start have descendants with a weight at t, shape (T + 1,); where few
            are left, latent variables and far-back states are known from few draws.
        num_nan: Weights that were NaN or +inf at t, shape (T + 1,); they count as zero.
        resampled: Whether the particles were resampled at t, shape (T + 1,).
    """

    samples: Array
    log_weight: Array
    log_evidence: Array
    log_evidence_se: Array
    latents: dict[str, Array]
    ess: Array
    tail: Array
    num_ancestors: Array
    num_nan: Array
    resampled: Array

    @property
    def num_particles(self) -> int:
        """Number of particles."""
        return self.log_weight.shape[-1]

    @property
    def weight(self) -> Array:
        """Normalised weights, shape (num_particles,)."""
        return jax.nn.softmax(self.log_weight)

    @property
    def khat(self) -> np.ndarray:
        """Tail shape of the weights of x^t by `diagnostics.psis`, t = 0..T, shape (T + 1,): above 0.7 trust nothing."""
        tail = np.asarray(self.tail, np.float64)
        rows = tail.reshape(-1, tail.shape[-1])
        # The fit reads the tail alone: the other weights may stand at its foot.
        filler = np.repeat(rows[:, -1:], self.num_particles - rows.shape[-1], -1)
        return diagnostics.psis(np.concatenate([rows, filler], -1).T)[1].reshape(tail.shape[:-1])

    def mean(self) -> Array:
        """Posterior mean of x^0, shape (*event)."""
        self._check_single()
        return jnp.tensordot(self.weight, self.samples, 1)

    def covariance(self) -> Array:
        """Posterior covariance of x^0 laid flat, shape (D, D)."""
        self._check_single()
        off = (self.samples - self.mean()).reshape(self.num_particles, -1)
        return jnp.einsum("n,ni,nj->ij", self.weight, off, off)

    def resample(self, key: Array, num: int) -> Array:
        """Draws from the posterior with equal weights, independent given the particles, shape (num, *event).

        Raises:
            ValueError: num is less than 1, or this is a batch of posteriors.
        """
        self._check_single()
        if num < 1:
            raise ValueError(f"Expected `num` to be at least 1; got {num}.")
        return self.samples[jax.random.categorical(key, self.log_weight, shape=(num,))]

    def check(self) -> None:
        """Says at which step the weights failed.

        Raises:
            ValueError: all weights are zero, or some NaN, at a step.
        """
        nan, ess = np.asarray(self.num_nan), np.asarray(self.ess)
        for t in range(ess.shape[-1] - 1, -1, -1):
            if (count := int(nan[..., t].max())) > 0:
                raise ValueError(
                    f"Expected finite log r and gradients; {count} of {self.num_particles} particles have NaN at "
                    f"t = {t} of {ess.shape[-1] - 1}. Look for a log or a root of 0, or 0 * inf, in the observations."
                )
            if (ess[..., t] == 0).any():
                raise ValueError(
                    f"Expected a particle with r > 0; all weights are zero at t = {t} of {ess.shape[-1] - 1}. Either "
                    "the observation is impossible, or r is zero at nearly all data: soften it (more noise), take more "
                    "particles, or a twist that does not look ahead (tempered())."
                )

    def summary(self) -> dict[str, float]:
        """The evidence and its error in nats and bits, the least ESS, the largest k-hat, the surviving ancestors."""
        self._check_single()
        khat = self.khat
        error = float(self.log_evidence_se)
        return {
            "num_particles": self.num_particles,
            "log_evidence_nats": float(self.log_evidence),
            "log_evidence_nats_se": error,
            "log_evidence_bits": float(self.log_evidence) / float(np.log(2)),
            "log_evidence_bits_se": error / float(np.log(2)),
            "ess": float(self.ess[0]),
            "least_ess": float(jnp.min(self.ess)),
            "khat": float(khat[0]),
            "largest_khat": float(np.nanmax(khat)) if np.isfinite(khat).any() else float("nan"),
            "num_ancestors": int(self.num_ancestors[0]),
            "num_resampled": int(jnp.sum(self.resampled)),
        }

    def _check_single(self) -> None:
        if self.log_weight.ndim != 1:
            raise ValueError(
                f"Expected the posterior of one observation; got a batch of {self.log_weight.shape[:-1]}. Take one, "
                "jax.tree.map(lambda leaf: leaf[i], posterior), or each, jax.vmap(lambda p: p.mean())(posterior)."
            )

    def to_arviz(self, *, key: Array | None = None, num: int | None = None) -> Any:
        """ArviZ's format, as `posterior_record.to_arviz` says."""
        from dpm_ppl.inference.posterior_record import to_arviz

        return to_arviz(self, key=key, num=num)
