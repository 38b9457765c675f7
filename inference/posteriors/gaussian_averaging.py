"""What any r says of a Gaussian step: r averaged over points of a normal, and a mixture of normals about them.

Half of the points are those of the normal, half those of its product with r as `gaussian_guidance` expands it; each is
weighed by what it should be drawn from over what it was, so that no expansion is believed further than r bears it out.
Blocks are as there.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from scipy.stats import norm, qmc

from dpm_ppl.distributions import has_density, inverse_lower, lower_factor
from dpm_ppl.inference.posteriors.conditioning import Known, LogR, Target
from dpm_ppl.inference.posteriors.gaussian_guidance import (
    Guided,
    Normal,
    affine,
    expected_factor,
    given,
    guide,
    is_full,
    matmul,
    moments,
    product_move,
    step_move,
    uncertain,
)
from dpm_ppl.inference.posteriors.proposals import DEFENSIVE, MixtureMove, NormalMove, Unguided

MOST_COORDINATES = 10  # of an event that is averaged over by default: in more few points meet r, and programs are large

MOST_TRUST = 0.98  # share of the expansion's normal where r bears it out at every point


@dataclass(frozen=True)
class Averaging:
    """How r is averaged.

    Args:
        num_points: Number of points, a power of two.
        slopes: Whether half of them come from r's expansion, which takes its gradient; else all are the normal's.
        power: Power of r, from 0 (r is ignored, and steps are the reverse steps themselves) to 1.
    """

    num_points: int
    slopes: bool
    power: ArrayLike

    def of(self, log_r: LogR) -> LogR:
        """Log of the power of r."""
        power = jnp.asarray(self.power)
        return lambda x: jnp.where(power > 0, power * log_r(x), 0.0)  # also where r is 0


class Averaged(NamedTuple):
    """A normal N times r.

    Attributes:
        log_r: log E_N r, in nats, a scalar.
        guided: The product by r's expansion, or N itself; its `base` is N given the known coordinates.
        white: The points in units of `base`, shape (num_points, num_blocks, size).
        log_share: Log of their weights, which add up to one, shape (num_points,).
        trust: How far r bears the expansion out, from 0 to 1.
    """

    log_r: Array
    guided: Guided
    white: Array
    log_share: Array
    trust: Array


def points(num_points: int, num_coordinates: int) -> np.ndarray:
    """Standard normal points spread evenly, always the same, of mean 0, shape (num_points, num_coordinates)."""
    uniform = qmc.Sobol(num_coordinates, rng=0).random_base2(round(math.log2(num_points)))
    normal = norm.ppf(uniform)
    return np.asarray(normal - normal.mean(0))


def average(normal: Normal, log_r: LogR, known: Known, event_shape: tuple[int, ...], averaging: Averaging) -> Averaged:
    """Averages r over a normal and over what is known exactly.

    The mean over the points is corrected by that of the expansion, whose integral is known, as far as it is trusted.
    """
    log_r, num = averaging.of(log_r), averaging.num_points
    z = jnp.asarray(points(num, math.prod(event_shape)), normal.loc.dtype).reshape(-1, *normal.loc.shape)

    def log_r_at(base: Normal, white: Array) -> Array:
        x = base.loc + jnp.einsum("bij,mbj->mbi", base.scale_tril, white)
        return jax.vmap(lambda x: log_r(x.reshape(event_shape)))(x)

    if not averaging.slopes:
        log_known, base = (jnp.zeros(()), normal) if known is None else given(normal, *known)
        identity = jnp.broadcast_to(jnp.eye(normal.loc.shape[-1]), normal.scale_tril.shape)
        log_mean, log_share = _normalised(log_r_at(base, z))
        nothing = Guided(log_known, log_known, base, jnp.zeros_like(base.loc), identity)
        return Averaged(log_mean + log_known, nothing, z, log_share, jnp.zeros(()))
    guided = guide(normal, log_r, known, event_shape)
    # r may have no slope there, as a root of 0 has none.
    sound = jnp.all(jnp.isfinite(guided.shift)) & jnp.all(jnp.isfinite(guided.inner)) & jnp.isfinite(guided.log_r)
    inner = jnp.where(sound, guided.inner, jnp.eye(guided.inner.shape[-1]))
    guided = guided._replace(inner=inner, shift=jnp.where(sound, guided.shift, 0.0))
    half = num // 2  # of Sobol points each half is spread evenly
    near = jnp.einsum("bji,mbj->mbi", inverse_lower(inner), guided.shift + z[half:])
    white = jnp.concatenate([z[:half], near])
    log_normal = -0.5 * jnp.sum(white**2, (-1, -2))
    log_det = jnp.sum(jnp.log(jnp.diagonal(inner, axis1=-2, axis2=-1)))
    log_near = log_det - 0.5 * jnp.sum((jnp.einsum("bji,mbj->mbi", inner, white) - guided.shift) ** 2, (-1, -2))
    log_both = jnp.logaddexp(log_normal, log_near) - math.log(2)
    value = log_r_at(guided.base, white)
    log_mean, log_share = _normalised(value + log_normal - log_both)
    # r over its expansion where the expansion puts the datum: even where it is right, if of another level.
    off = (value + log_normal - log_near)[half:]
    log_level, share = _normalised(off)
    even = 1 / (half * jnp.sum(jnp.exp(2 * share)))
    explained = jnp.exp(jnp.minimum(log_level - log_mean, 0.0))  # less where r has more to it elsewhere
    trust = jnp.where(jnp.isfinite(log_level), MOST_TRUST * even * explained, 0.0)
    excess = 1 - jnp.mean(jnp.exp(log_near - log_both))
    corrected = 1 + trust * jnp.exp(jnp.minimum(log_level - log_mean, 1.0)) * excess
    log_mean = log_mean + jnp.where(trust > 0, jnp.log(jnp.clip(corrected, 0.5, 2.0)), 0.0)
    return Averaged(log_mean + guided.log_known, guided, white, log_share, trust)


def averaged_step(
    target: Target, x: Array, t: Array, averaging: Averaging, *, full: bool | None = None
) -> tuple[Array, MixtureMove]:
    """Log r averaged over x^0 given x^t, and the proposal for x^(t-1) that the weighted x^0 make.

    The normal of x^0 is that of `gaussian_guidance.posterior_step`, the network being run once.
    """
    full = is_full(x.size, full=full)
    forms = affine(target.diffusion.kernel, t, full=full)
    p, x0 = uncertain(target, x, forms, t)
    of = average(x0, target.log_r, target.known, x.shape, averaging)
    base, unit = of.guided.base, inverse_lower(expected_factor(x0, forms))
    moved = base.loc - x0.loc + jnp.einsum("bij,mbj->mbi", base.scale_tril, of.white)
    shifts = jnp.einsum("bij,mbj->mbi", matmul(unit, forms.from_data), moved)
    spread = matmul(matmul(unit, forms.spread), jnp.swapaxes(unit, -1, -2))
    return of.log_r, _mixture(step_move(p, x0, of.guided, forms, full=full), of, shifts, spread, averaging)


def averaged_product(
    p: dist.Distribution, log_r: LogR, known: Known, averaging: Averaging, *, full: bool | None = None
) -> tuple[Array, MixtureMove | Unguided]:
    """Log E_p r in nats, r of the state itself, and a proposal near p r; the known coordinates are clamped."""
    normal, is_normal = moments(p, full=is_full(math.prod(p.event_shape), full=full))
    of = average(normal, log_r, known, p.event_shape, averaging)
    if not has_density(p):
        return of.log_r, Unguided(p)
    move = product_move(of.guided, None if is_normal else p, p.event_shape)
    return of.log_r, _mixture(move, of, of.white, jnp.zeros_like(move.factor), averaging)


def _normalised(log_weight: Array) -> tuple[Array, Array]:
    """Log of the mean weight, and the log weights less their sum's: even ones where all are zero."""
    log_weight = jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight) - math.log(len(log_weight))
    log_mean = jax.nn.logsumexp(log_weight)
    return log_mean, jnp.where(jnp.isfinite(log_mean), log_weight - log_mean, -math.log(len(log_weight)))


def _mixture(move: NormalMove, of: Averaged, shifts: Array, spread: Array, averaging: Averaging) -> MixtureMove:
    shifts, factor = _smoothed(shifts, of.log_share, spread=spread)
    defence = jnp.where(jnp.asarray(averaging.power) > 0, DEFENSIVE, 1.0).astype(shifts.dtype)
    return MixtureMove(move, shifts, of.log_share, factor, of.trust.astype(shifts.dtype), defence)


def _smoothed(shifts: Array, log_share: Array, *, spread: Array) -> tuple[Array, Array]:
    """Means and the common factor of a mixture about weighted points, of their mean, and their covariance and `spread`.

    Source: West 1993 (mixtures shrunk towards their mean), with the width of Silverman 1986, section 4.3.
    """
    share = jnp.exp(log_share)
    mean = jnp.einsum("m,mbi->bi", share, shifts)
    off = shifts - mean
    covariance = jnp.einsum("m,mbi,mbj->bij", share, off, off)
    size = mean.size
    width = jnp.minimum(1.0, (4 / (size + 2) * jnp.sum(share**2)) ** (1 / (size + 4)))
    return mean + jnp.sqrt(1 - width**2) * off, lower_factor(spread + width**2 * covariance, floor=1e-6)
