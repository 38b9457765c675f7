"""What r says of a Gaussian step: a normal in x, multiplied by r expanded to second order at its mean.

All is done in blocks of coordinates, of shape (num_blocks, size): one block of all D, whose covariance is full, or D
blocks of one, where r is taken coordinate by coordinate. For r = N(y; A x, S) the expansion is exact.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from dpm_ppl.diffusion import Diffusion
from dpm_ppl.distributions import innermost, lower_factor, solve_lower
from dpm_ppl.inference.posteriors.conditioning import Known, LogR, Target
from dpm_ppl.inference.posteriors.proposals import NormalMove

NAME = "normal"

NEEDS = "posterior coefficients and alpha_bar"

LARGEST_FULL = 16  # coordinates whose joint covariance is kept; more are taken one by one

LEAST_UNCERTAIN = 0.05  # of 1 - alpha_bar_t, the least variance of x^0 given x^t: a network's slope may be wrong


class Normal(NamedTuple):
    """A normal in blocks: its mean, shape (num_blocks, size), and lower factor, shape (num_blocks, size, size)."""

    loc: Array
    scale_tril: Array


class Guided(NamedTuple):
    """A normal N times r: what r averages to, and the normal that the product is.

    Attributes:
        log_r: log E_N r, in nats, a scalar; `log_known` is the part of it that known coordinates make.
        base: N, given the known coordinates.
        shift: u, and ...
        inner: ... B, lower triangular: the product is base.loc + base.scale_tril B^-T (u + e), e standard normal.
    """

    log_r: Array
    log_known: Array
    base: Normal
    shift: Array
    inner: Array


def holds(stationary: dist.Distribution) -> bool:
    """Whether states are continuous; steps of another family are taken as normals, and weighed as what they are."""
    return not stationary.support.is_discrete


def applies(p: dist.Distribution) -> bool:
    """Whether a step is a normal, of diagonal or full covariance."""
    return isinstance(innermost(p), dist.Normal | dist.MultivariateNormal)


def guides(diffusion: Diffusion) -> bool:
    """Whether x^0 can be predicted: the kernel has posterior coefficients and alpha_bar."""
    names = ("posterior_coefficients", "alpha_bar", "one_minus_alpha_bar")
    return all(hasattr(diffusion.kernel, name) for name in names)


def require_clampable(p: dist.Distribution, *, full: bool | None = None) -> None:
    """Raises ValueError where a last step is no normal, or has a covariance of which only the diagonal is kept."""
    if not applies(p):
        raise ValueError(
            "Expected a chain whose last step can be conditioned, a normal, for coordinates that are known exactly; "
            f"got {type(innermost(p)).__name__}. Observe them with a little noise."
        )
    size = math.prod(p.event_shape)
    if not moments(p, full=_is_full(size, full=full))[1]:
        raise ValueError(
            f"Expected a last step of independent coordinates, or twist=widened(full=True), for known coordinates of "
            f"{size}; the last step has a full covariance, of which the default takes one coordinate at a time."
        )


def mode(p: dist.Distribution) -> Array:
    """The mean of a step, shape (*event)."""
    return p.mean


def moments(p: dist.Distribution, *, full: bool) -> tuple[Normal, bool]:
    """Mean and covariance of a reverse step of one particle, in blocks, and whether it is the normal that they make."""
    size = math.prod(p.event_shape)
    base = innermost(p)
    blocks = (1, size) if full else (size, 1)
    if isinstance(base, dist.MultivariateNormal):
        tril = jnp.broadcast_to(base.scale_tril, (size, size))
        tril = tril[None] if full else jnp.sqrt(jnp.sum(tril**2, -1))[:, None, None]
        return Normal(base.loc.reshape(blocks), tril), full
    is_normal = isinstance(base, dist.Normal)
    loc = base.loc if is_normal else p.mean
    scale = jnp.broadcast_to(base.scale if is_normal else jnp.sqrt(p.variance), loc.shape).ravel()
    return Normal(loc.reshape(blocks), jnp.diag(scale)[None] if full else scale[:, None, None]), is_normal


def guide(normal: Normal, log_r: LogR, known: Known, event_shape: tuple[int, ...]) -> Guided:
    """Multiplies a normal by r and by what is known exactly."""
    log_known = jnp.zeros(())
    if known is not None:
        log_known, normal = _given(normal, *known)
    value, slope, curvature = _expand(lambda flat: log_r(flat.reshape(event_shape)), normal.loc)
    tril = normal.scale_tril
    identity = jnp.eye(tril.shape[-1])
    precision = identity - jnp.einsum("bji,bjk,bkl->bil", tril, curvature, tril)
    inner = lower_factor(precision, floor=1.0)
    # Where log r is not concave a pivot was raised, and the expansion has no top; elsewhere its top may promise more
    # than r keeps. There, one coordinate at a time and guarded: particles that r is overrated at would be kept.
    alone = jnp.diagonal(precision, axis1=-2, axis2=-1)
    raised = jnp.sum(inner**2, -1) > alone + jnp.sqrt(jnp.finfo(alone.dtype).eps) * jnp.abs(alone)
    concave = ~jnp.any(raised, -1, keepdims=True)
    white = jnp.einsum("bji,bj->bi", tril, slope)
    shift = solve_lower(inner, white[..., None])[..., 0]
    off = jnp.einsum("bij,bkj,bk->bi", tril, _inverse(inner), shift)
    promised = value + jnp.sum(slope * off) + 0.5 * jnp.einsum("bi,bij,bj->", off, curvature, off)
    kept = log_r((normal.loc + off).reshape(event_shape)) > promised - 1 - 1e-3 * jnp.abs(value)
    trusted = concave & kept
    inner = jnp.where(trusted[..., None], inner, identity * jnp.sqrt(jnp.maximum(alone, 1.0))[..., None])
    bounded = _guarded(solve_lower(inner, white[..., None])[..., 0])
    shift = jnp.where(trusted, shift, bounded)
    widened = value + 0.5 * jnp.sum(shift**2) - jnp.sum(jnp.log(jnp.diagonal(inner, axis1=-2, axis2=-1)))
    return Guided(widened + log_known, log_known, normal, shift, inner)


def product(p: dist.Distribution, log_r: LogR, known: Known, *, full: bool | None = None) -> tuple[Array, NormalMove]:
    """Log E_p r in nats, r of the state itself and expanded at p's mean, and the proposal proportional to p r."""
    normal, is_normal = moments(p, full=_is_full(math.prod(p.event_shape), full=full))
    guided = guide(normal, log_r, known, p.event_shape)
    upper = jnp.swapaxes(_inverse(guided.inner), -1, -2)
    shift = jnp.einsum("bij,bj->bi", upper, guided.shift)
    return guided.log_r, NormalMove(
        *guided.base, shift, upper, guided.log_known, None if is_normal else p, p.event_shape
    )


def shifted(p: dist.Distribution, slope: Array) -> NormalMove:
    """The step shifted by Sigma times a gradient, at most two standard deviations in root mean square."""
    normal, is_normal = moments(p, full=slope.size <= LARGEST_FULL)
    shift = jnp.einsum("bji,bj->bi", normal.scale_tril, slope.reshape(normal.loc.shape))
    shift = _guarded(shift)
    factor = jnp.broadcast_to(jnp.eye(shift.shape[-1]), normal.scale_tril.shape)
    return NormalMove(*normal, shift, factor, jnp.zeros(()), None if is_normal else p, p.event_shape)


def predicted(target: Target, x: Array, t: Array) -> Array:
    """The x^0 that the reverse step predicts, (mean - c1 x^t) / c0, shape (*event)."""
    return _undone(target.diffusion.reverse(x, t), target, x, t)


def denoised_step(target: Target, x: Array, t: Array) -> tuple[Array, NormalMove]:
    """Log r at the predicted x^0, and the step shifted by Sigma times its gradient in x^t."""
    value, slope = jax.value_and_grad(lambda x: target.log_r(predicted(target, x, t)))(x)
    return value, shifted(target.diffusion.reverse(x, t), slope)


def posterior_step(target: Target, x: Array, t: Array, *, full: bool | None = None) -> tuple[Array, NormalMove]:
    """Log r widened by the uncertainty of x^0 given x^t, and the proposal for x^(t-1) that the guided x^0 makes.

    Source: products of normals; x^(t-1) given x^0 and x^t as in Sohl-Dickstein et al. 2015, app. B.
    """
    full = _is_full(x.size, full=full)
    c0, _, variance = _coefficients(target, t)
    p, x0 = _uncertain(target, x, t, full=full)
    guided = guide(x0, target.log_r, target.known, x.shape)
    reach = _matmul(guided.base.scale_tril, jnp.swapaxes(_inverse(guided.inner), -1, -2))  # a factor of the product
    moved = guided.base.loc - x0.loc + jnp.einsum("bij,bj->bi", reach, guided.shift)
    identity = jnp.eye(x0.loc.shape[-1])
    # What p's covariance would be with x0's: p's own may differ, and the proposal is made relative to it.
    expected = lower_factor(c0**2 * _square(x0.scale_tril) + variance * identity)
    half = solve_lower(expected, c0**2 * _square(reach) + variance * identity)
    factor = lower_factor(solve_lower(expected, jnp.swapaxes(half, -1, -2)), floor=1e-6)
    shift = c0 * solve_lower(expected, moved[..., None])[..., 0]
    normal, is_normal = moments(p, full=full)
    return guided.log_r, NormalMove(*normal, shift, factor, jnp.zeros(()), None if is_normal else p, p.event_shape)


def _is_full(size: int, *, full: bool | None) -> bool:
    """Whether the covariance of an event is kept whole; asked for or, by default, where it has few coordinates."""
    return size <= LARGEST_FULL if full is None else full


def _coefficients(target: Target, t: Array) -> tuple[Array, Array, Array]:
    kernel: Any = target.diffusion.kernel
    from_data, from_state, variance = (jnp.ravel(c)[0] for c in kernel.posterior_coefficients(t))
    return from_data, from_state, variance


def _guarded(shift: Array) -> Array:
    """A shift of at most two standard deviations in root mean square: a gradient overshoots where r is narrow."""
    return shift * jnp.minimum(1.0, 2.0 / jnp.maximum(jnp.sqrt(jnp.mean(shift**2)), 1e-30))


def _undone(p: dist.Distribution, target: Target, x: Array, t: Array) -> Array:
    from_data, from_state, _ = _coefficients(target, t)
    mean: Array = p.mean
    return (mean - from_state * x) / from_data


def _uncertain(target: Target, x: Array, t: Array, *, full: bool) -> tuple[dist.Distribution, Normal]:
    """The reverse step, and mean and covariance of x^0 given x^t; the network is run once."""
    kernel: Any = target.diffusion.kernel
    signal, noise = kernel.alpha_bar[t], kernel.one_minus_alpha_bar[t]

    def step(flat: Array) -> tuple[Array, tuple[Array, dist.Distribution]]:
        state = flat.reshape(x.shape)
        p = target.diffusion.reverse(state, t)
        x0 = _undone(p, target, state, t).ravel()
        return x0, (x0, p)

    if not full:
        loc, (_, p) = step(x.ravel())
        return p, Normal(loc[:, None], jnp.broadcast_to(jnp.sqrt(noise), (len(loc), 1, 1)))
    slope, (loc, p) = jax.jacfwd(step, has_aux=True)(x.ravel())
    identity = jnp.eye(len(loc))
    # Where no signal is left the slope is rounding alone.
    lost = signal < jnp.finfo(signal.dtype).eps
    slope = jnp.where(lost, identity, 0.5 * (slope + slope.T) / jnp.sqrt(jnp.where(lost, 1.0, signal)))
    least = LEAST_UNCERTAIN * noise * identity
    return p, Normal(loc[None], lower_factor(least + _positive_part(noise * slope - least))[None])


def _positive_part(matrix: Array) -> Array:
    """A symmetric matrix without its negative eigenvalues: half of A + |A|, |A| = A sign(A) by Newton and Schulz."""
    norm = jnp.sqrt(jnp.sum(matrix**2))
    sign = matrix / jnp.maximum(norm, jnp.finfo(matrix.dtype).tiny)
    sign = jax.lax.fori_loop(0, 15, lambda _, sign: 1.5 * sign - 0.5 * sign @ sign @ sign, sign)
    return 0.5 * (matrix + matrix @ sign)


def _given(normal: Normal, mask: Array, value: Array) -> tuple[Array, Normal]:
    """Log density of the known coordinates, and the normal of the others given them."""
    loc, tril = normal
    mask, value = mask.reshape(loc.shape), value.reshape(loc.shape)
    cov = _square(tril)
    of_known = jnp.where(mask[..., :, None] & mask[..., None, :], cov, jnp.eye(loc.shape[-1]))
    factor = lower_factor(of_known)
    white = solve_lower(factor, jnp.where(mask, value - loc, 0.0)[..., None])[..., 0]
    scale = jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)) + 0.5 * math.log(2 * math.pi)
    log_density = -0.5 * jnp.sum(white**2) - jnp.sum(jnp.where(mask, scale, 0.0))
    gain = solve_lower(factor, jnp.where(mask[..., None], cov, 0.0))
    both = mask[..., :, None] | mask[..., None, :]
    rest = jnp.where(both, 0.0, cov - jnp.einsum("bji,bjk->bik", gain, gain))
    loc = jnp.where(mask, value, loc + jnp.einsum("bji,bj->bi", gain, white))
    return log_density, Normal(loc, lower_factor(rest))


def _expand(log_r: LogR, loc: Array) -> tuple[Array, Array, Array]:
    """Value, gradient and Hessian of log r at a point; where blocks are of one, the Hessian's rows are summed."""
    first, flat = jax.value_and_grad(log_r), loc.ravel()

    def slope_and_both(x: Array) -> tuple[Array, tuple[Array, Array]]:
        both = first(x)
        return both[1], both

    if len(loc) == 1:
        curvature, (value, slope) = jax.jacfwd(slope_and_both, has_aux=True)(flat)
        return value, slope[None], curvature[None]
    (value, slope), (_, curvature) = jax.jvp(first, (flat,), (jnp.ones_like(flat),))
    return value, slope[:, None], curvature[:, None, None]


def _square(tril: Array) -> Array:
    return jnp.einsum("bij,bkj->bik", tril, tril)


def _matmul(a: Array, b: Array) -> Array:
    return jnp.einsum("bij,bjk->bik", a, b)


def _inverse(tril: Array) -> Array:
    return solve_lower(tril, jnp.broadcast_to(jnp.eye(tril.shape[-1], dtype=tril.dtype), tril.shape))
