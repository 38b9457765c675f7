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
from dpm_ppl.distributions import has_density, innermost, inverse_lower, lower_factor, solve_lower
from dpm_ppl.inference.posteriors.conditioning import Known, LogR, Target
from dpm_ppl.inference.posteriors.proposals import NormalMove, Unguided
from dpm_ppl.kernels.kernel import has_closed_forms, step_number

NAME = "normal"

NEEDS = "marginal and posterior"

LARGEST_FULL = 16  # coordinates whose joint covariance is kept; more are taken one by one

LEAST_UNCERTAIN = 0.05  # of 1 - alpha_bar_t, the least variance of x^0 given x^t: a network's slope may be wrong

LITTLE_SIGNAL = 0.05  # alpha_bar_t / (1 - alpha_bar_t): below it the least variance grows towards that of all data


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


class Affine(NamedTuple):
    """What a kernel's closed forms are at one step: normals whose means are affine in x^0 and x^t, in blocks.

    q(x^t | x^0) = N(signal x0 + ..., noise), q(x^(t-1) | x^0, x^t) = N(from_data x0 + from_state x^t + offset, spread):
    matrices of shape (num_blocks, size, size), and the offset of shape (num_blocks, size).
    """

    signal: Array
    noise: Array
    from_data: Array
    from_state: Array
    offset: Array
    spread: Array


def holds(stationary: dist.Distribution) -> bool:
    """Whether states are continuous; steps of another family are taken as normals, and weighed as what they are."""
    return not stationary.support.is_discrete


def applies(p: dist.Distribution) -> bool:
    """Whether a step is a normal, of diagonal or full covariance."""
    return isinstance(innermost(p), dist.Normal | dist.MultivariateNormal)


def guides(diffusion: Diffusion) -> bool:
    """Whether x^0 can be predicted: the kernel has closed forms, and they are normals."""
    kernel = diffusion.kernel
    if not has_closed_forms(kernel):
        return False
    x = jnp.zeros(kernel.event_shape)
    return applies(kernel.marginal(x, step_number(1))) and (
        kernel.num_steps == 1 or applies(kernel.posterior(x, x, step_number(2)))
    )


def require_clampable(p: dist.Distribution, *, full: bool | None = None) -> None:
    """Raises ValueError where a last step is no normal, or has a covariance of which only the diagonal is kept."""
    if not applies(p):
        raise ValueError(
            "Expected a chain whose last step can be conditioned, a normal, for coordinates that are known exactly; "
            f"got {type(innermost(p)).__name__}. Observe them with a little noise."
        )
    size = math.prod(p.event_shape)
    if not moments(p, full=is_full(size, full=full))[1]:
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
    mean, scale = (base.loc, base.scale) if is_normal else (p.mean, jnp.sqrt(p.variance))
    loc, scale = jnp.broadcast_to(mean, p.event_shape), jnp.broadcast_to(scale, p.event_shape).ravel()
    return Normal(loc.reshape(blocks), jnp.diag(scale)[None] if full else scale[:, None, None]), is_normal


def guide(normal: Normal, log_r: LogR, known: Known, event_shape: tuple[int, ...]) -> Guided:
    """Multiplies a normal by r and by what is known exactly."""
    log_known = jnp.zeros(())
    if known is not None:
        log_known, normal = given(normal, *known)
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
    off = jnp.einsum("bij,bkj,bk->bi", tril, inverse_lower(inner), shift)
    promised = value + jnp.sum(slope * off) + 0.5 * jnp.einsum("bi,bij,bj->", off, curvature, off)
    kept = log_r((normal.loc + off).reshape(event_shape)) > promised - 1 - 1e-3 * jnp.abs(value)
    trusted = concave & kept
    inner = jnp.where(trusted[..., None], inner, identity * jnp.sqrt(jnp.maximum(alone, 1.0))[..., None])
    bounded = _guarded(solve_lower(inner, white[..., None])[..., 0])
    shift = jnp.where(trusted, shift, bounded)
    widened = value + 0.5 * jnp.sum(shift**2) - jnp.sum(jnp.log(jnp.diagonal(inner, axis1=-2, axis2=-1)))
    return Guided(widened + log_known, log_known, normal, shift, inner)


def product(
    p: dist.Distribution, log_r: LogR, known: Known, *, full: bool | None = None
) -> tuple[Array, NormalMove | Unguided]:
    """Log E_p r in nats, r of the state itself and expanded at p's mean, and the proposal proportional to p r.

    Where p has no density, as over the levels of an image, a normal cannot propose: it is p itself.
    """
    normal, is_normal = moments(p, full=is_full(math.prod(p.event_shape), full=full))
    guided = guide(normal, log_r, known, p.event_shape)
    if not has_density(p):
        return guided.log_r, Unguided(p)
    return guided.log_r, product_move(guided, None if is_normal else p, p.event_shape)


def product_move(guided: Guided, p: dist.Distribution | None, event_shape: tuple[int, ...]) -> NormalMove:
    """The proposal that a guided step is, p being the step where it is no normal."""
    upper = jnp.swapaxes(inverse_lower(guided.inner), -1, -2)
    shift = jnp.einsum("bij,bj->bi", upper, guided.shift)
    return NormalMove(*guided.base, shift, lower_factor(square(upper)), guided.log_known, p, event_shape)


def shifted(p: dist.Distribution, slope: Array) -> NormalMove | Unguided:
    """The step shifted by Sigma times a gradient, at most two standard deviations in root mean square."""
    if not has_density(p):
        return Unguided(p)
    normal, is_normal = moments(p, full=slope.size <= LARGEST_FULL)
    shift = jnp.einsum("bji,bj->bi", normal.scale_tril, slope.reshape(normal.loc.shape))
    shift = _guarded(shift)
    factor = jnp.broadcast_to(jnp.eye(shift.shape[-1]), normal.scale_tril.shape)
    return NormalMove(*normal, shift, factor, jnp.zeros(()), None if is_normal else p, p.event_shape)


def predicted(target: Target, x: Array, t: Array) -> Array:
    """The x^0 that the reverse step predicts, shape (*event)."""
    forms = affine(target.diffusion.kernel, t, full=is_full(x.size, full=None))
    return _undone(target.diffusion.reverse(x, t), forms, x).reshape(x.shape)


def denoised_step(target: Target, x: Array, t: Array) -> tuple[Array, NormalMove | Unguided]:
    """Log r at the predicted x^0, and the step shifted by Sigma times its gradient in x^t."""
    value, slope = jax.value_and_grad(lambda x: target.log_r(predicted(target, x, t)))(x)
    return value, shifted(target.diffusion.reverse(x, t), slope)


def posterior_step(target: Target, x: Array, t: Array, *, full: bool | None = None) -> tuple[Array, NormalMove]:
    """Log r widened by the uncertainty of x^0 given x^t, and the proposal for x^(t-1) that the guided x^0 makes.

    Source: products of normals; x^(t-1) given x^0 and x^t as in Sohl-Dickstein et al. 2015, app. B.
    """
    full = is_full(x.size, full=full)
    forms = affine(target.diffusion.kernel, t, full=full)
    p, x0 = uncertain(target, x, forms, t)
    guided = guide(x0, target.log_r, target.known, x.shape)
    return guided.log_r, step_move(p, x0, guided, forms, full=full)


def step_move(p: dist.Distribution, x0: Normal, guided: Guided, forms: Affine, *, full: bool) -> NormalMove:
    """The proposal for x^(t-1) that a guided x^0 makes, relative to the reverse step p."""
    reach = matmul(guided.base.scale_tril, jnp.swapaxes(inverse_lower(guided.inner), -1, -2))  # a factor of the product
    moved = guided.base.loc - x0.loc + jnp.einsum("bij,bj->bi", reach, guided.shift)
    c0, expected = forms.from_data, expected_factor(x0, forms)
    half = solve_lower(expected, square(matmul(c0, reach)) + forms.spread)
    factor = lower_factor(solve_lower(expected, jnp.swapaxes(half, -1, -2)), floor=1e-6)
    shift = solve_lower(expected, jnp.einsum("bij,bj->bi", c0, moved)[..., None])[..., 0]
    normal, is_normal = moments(p, full=full)
    return NormalMove(*normal, shift, factor, jnp.zeros(()), None if is_normal else p, p.event_shape)


def expected_factor(x0: Normal, forms: Affine) -> Array:
    """A factor of what the reverse step's covariance would be with x0's: its own may differ."""
    return lower_factor(square(matmul(forms.from_data, x0.scale_tril)) + forms.spread)


def is_full(size: int, *, full: bool | None) -> bool:
    """Whether the covariance of an event is kept whole; asked for or, by default, where it has few coordinates."""
    return size <= LARGEST_FULL if full is None else full


def affine(kernel: Any, t: Array, *, full: bool) -> Affine:
    """Reads them off `marginal` and `posterior`: means at zero, and their derivatives."""
    zero = jnp.zeros(kernel.event_shape, jnp.result_type(float))

    def slope(mean: Any) -> Array:
        def flat(x: Array) -> Array:
            return mean(x.reshape(zero.shape)).ravel()

        if full:
            return jax.jacfwd(flat)(zero.ravel())[None]
        return jax.jvp(flat, (zero.ravel(),), (jnp.ones(zero.size, zero.dtype),))[1][:, None, None]

    marginal, posterior = kernel.marginal(zero, t), kernel.posterior(zero, zero, t)
    (_, noise), (offset, spread) = (moments(p, full=full)[0] for p in (marginal, posterior))
    return Affine(
        slope(lambda x0: kernel.marginal(x0, t).mean),
        square(noise),
        slope(lambda x0: kernel.posterior(x0, zero, t).mean),
        slope(lambda x: kernel.posterior(zero, x, t).mean),
        offset,
        square(spread),
    )


def _guarded(shift: Array) -> Array:
    """A shift of at most two standard deviations in root mean square: a gradient overshoots where r is narrow."""
    return shift * jnp.minimum(1.0, 2.0 / jnp.maximum(jnp.sqrt(jnp.mean(shift**2)), 1e-30))


def _undone(p: dist.Distribution, forms: Affine, x: Array) -> Array:
    """The x^0 that the reverse step predicts, (mean - offset - c1 x^t) / c0, in blocks."""
    mean, state = (value.reshape(forms.offset.shape) for value in (p.mean, x))
    rest = mean - forms.offset - jnp.einsum("bij,bj->bi", forms.from_state, state)
    return jnp.einsum("bij,bj->bi", _inverse(forms.from_data), rest)


def uncertain(target: Target, x: Array, forms: Affine, t: Array) -> tuple[dist.Distribution, Normal]:
    """The reverse step, and mean and covariance of x^0 given x^t; the network is run once.

    The covariance is dx0/dx^t S A^-T for q(x^t | x^0) = N(A x0, S), and at least a part of that of data which are
    standard normal, R = 1 / (1 + A' S^-1 A), which a chain of many coordinates takes alone. A^-T makes much of a small
    error in the network's slope where little signal is left: there the part grows, as a particle whose x^0 is taken for
    too certain is all but lost, while one that is too uncertain costs little.
    """
    signal, noise = forms.signal, forms.noise
    identity = jnp.eye(signal.shape[-1])
    strength = jnp.einsum("bji,bjk,bkl->bil", signal, _inverse(noise), signal)
    standard = _inverse(identity + strength)

    def step(flat: Array) -> tuple[Array, tuple[Array, dist.Distribution]]:
        state = flat.reshape(x.shape)
        p = target.diffusion.reverse(state, t)
        x0 = _undone(p, forms, state)
        return x0.ravel(), (x0, p)

    if len(signal) > 1:
        _, (loc, p) = step(x.ravel())
        return p, Normal(loc, jnp.sqrt(standard))
    slope, (loc, p) = jax.jacfwd(step, has_aux=True)(x.ravel())
    # Where no signal is left the slope is rounding alone.
    lost = jnp.max(jnp.abs(strength)) < jnp.finfo(signal.dtype).eps
    back = jnp.where(lost, 0.0, _inverse(jnp.where(lost, identity, signal))[0])
    covariance = jnp.where(lost, standard[0], slope @ noise[0] @ back.T)
    part = jnp.sqrt(jnp.clip(1 - jnp.diagonal(strength[0]) / LITTLE_SIGNAL, LEAST_UNCERTAIN, 1.0))
    least = part[:, None] * standard[0] * part
    covariance = 0.5 * (covariance + covariance.T)
    return p, Normal(loc, lower_factor(least + _positive_part(covariance - least))[None])


def _positive_part(matrix: Array) -> Array:
    """A symmetric matrix without its negative eigenvalues: half of A + |A|, |A| = A sign(A) by Newton and Schulz."""
    norm = jnp.sqrt(jnp.sum(matrix**2))
    sign = matrix / jnp.maximum(norm, jnp.finfo(matrix.dtype).tiny)
    sign = jax.lax.fori_loop(0, 15, lambda _, sign: 1.5 * sign - 0.5 * sign @ sign @ sign, sign)
    return 0.5 * (matrix + matrix @ sign)


def given(normal: Normal, mask: Array, value: Array) -> tuple[Array, Normal]:
    """Log density of the known coordinates, and the normal of the others given them."""
    loc, tril = normal
    mask, value = mask.reshape(loc.shape), value.reshape(loc.shape)
    cov = square(tril)
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


def square(tril: Array) -> Array:
    """Matrices times their transposes, in blocks."""
    return jnp.einsum("bij,bkj->bik", tril, tril)


def matmul(a: Array, b: Array) -> Array:
    """Products of matrices, in blocks."""
    return jnp.einsum("bij,bjk->bik", a, b)


def _inverse(matrix: Array) -> Array:
    """Inverses of matrices in blocks: of a kernel's, one a step and not one a particle."""
    return 1 / matrix if matrix.shape[-1] == 1 else jnp.linalg.inv(matrix)
