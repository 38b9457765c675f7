"""What r says of a factorised Bernoulli step: r expanded in single flips, which is exact where it factorises."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.nn import log_sigmoid, sigmoid

from dpm_ppl.diffusion import Diffusion
from dpm_ppl.distributions import innermost
from dpm_ppl.inference.posteriors.conditioning import Known, LogR, Target, all_laws
from dpm_ppl.inference.posteriors.proposals import BernoulliMove
from dpm_ppl.kernels.kernel import has_closed_forms
from dpm_ppl.outputs import data_bernoulli

NAME = "Bernoulli"

NEEDS = "marginal and posterior"

LARGEST_GAIN = 6.0  # nats that one change can gain or lose: r itself, not its expansion, forbids a datum

LARGEST_GROUP = 32  # changes that are tried at once

LEAST_UNCERTAIN = 0.01  # of what x^t has lost of x^0, the least chance of either bit of x^0: a network may be wrong


def holds(stationary: dist.Distribution) -> bool:
    """Whether states are bits, each of its own Bernoulli in pi."""
    return applies(stationary)


def applies(p: dist.Distribution) -> bool:
    """Whether a step is a factorised Bernoulli."""
    return isinstance(innermost(p), dist.BernoulliLogits | dist.BernoulliProbs)


def guides(diffusion: Diffusion) -> bool:
    """Whether x^0 can be predicted: the kernel has closed forms, and all is factorised."""
    return has_closed_forms(diffusion.kernel) and all_laws(diffusion, applies)


def require_clampable(p: dist.Distribution, *, full: bool | None = None) -> None:
    """Any factorised step can be conditioned."""


def mode(p: dist.Distribution) -> Array:
    """The likeliest state of a step, shape (*event)."""
    return jnp.asarray(_logits(p) > 0, int)


def product(
    p: dist.Distribution, log_r: LogR, known: Known, *, full: bool | None = None
) -> tuple[Array, BernoulliMove]:
    """Log E_p r in nats, r expanded at p's mode, and the proposal proportional to p times that expansion."""
    log_mean, logits = _guide(_logits(p), log_r, known)
    unguided = _logits(p) if known is None else jnp.where(known[0], logits, _logits(p))
    return log_mean, BernoulliMove(p, logits, unguided)


def posterior_step(target: Target, x: Array, t: Array, *, full: bool | None = None) -> tuple[Array, BernoulliMove]:
    """Log r averaged over the predicted x^0, and the proposal for x^(t-1) that the guided x^0 makes."""
    p = target.diffusion.reverse(x, t)
    return _guided_step(p, _predicted(p, target, x, t), target, x, t)


def denoised_step(target: Target, x: Array, t: Array) -> tuple[Array, BernoulliMove]:
    """Log r at the likeliest datum given x^t, coordinate by coordinate, and the move of `posterior_step`."""
    p = target.diffusion.reverse(x, t)
    rate = _predicted(p, target, x, t)
    return target.log_r(jnp.asarray(rate > 0.5, int)), _guided_step(p, rate, target, x, t)[1]


def _guided_step(p: dist.Distribution, rate: Array, target: Target, x: Array, t: Array) -> tuple[Array, BernoulliMove]:
    logits = jnp.log(rate) - jnp.log1p(-rate)
    log_mean, guided = _guide(logits, target.log_r, target.known)
    kernel: Any = target.diffusion.kernel
    proposal = data_bernoulli(kernel, x, t, guided)
    return log_mean, BernoulliMove(p, _logits(proposal), _logits(p))


def _predicted(p: dist.Distribution, target: Target, x: Array, t: Array) -> Array:
    """P(x^0 = 1 | x^t) by the reverse step undone, shape (*event)."""
    kernel: Any = target.diffusion.kernel
    zero = sigmoid(_logits(kernel.posterior(jnp.zeros_like(x), x, t)))
    spread = _difference(lambda bit: kernel.posterior(jnp.full_like(x, bit), x, t))
    rate = (sigmoid(_logits(p)) - zero) / jnp.where(spread == 0, 1.0, spread)
    least = LEAST_UNCERTAIN * (1 - _difference(lambda bit: kernel.marginal(jnp.full_like(x, bit), t)))
    return jnp.clip(rate, least, 1 - least)


def _guide(logits: Array, log_r: LogR, known: Known) -> tuple[Array, Array]:
    """Log E r over independent bits, r expanded at their mode, and the logits of the bits times r."""
    anchor = jnp.asarray(logits > 0, int)
    if known is not None:
        anchor = jnp.where(known[0], jnp.asarray(known[1], int), anchor)
    flat = anchor.ravel()
    value = log_r(anchor)

    def flipped_at(i: Array) -> Array:
        return log_r(flat.at[i].set(1 - flat[i]).reshape(anchor.shape))

    # In groups, so that memory grows with the event and not with its square.
    flipped = jax.lax.map(flipped_at, jnp.arange(flat.size), batch_size=min(flat.size, LARGEST_GROUP))
    value, gain = bounded_gain(value, flipped)
    gain = gain.reshape(anchor.shape)
    gain = gain if known is None else jnp.where(known[0], 0.0, gain)
    towards_one = jnp.where(anchor == 1, -gain, gain)
    # log sum over the bit of P(bit) r(bit)/r(anchor): the anchor's own factor is 1.
    stays, flips_to = (
        log_sigmoid(jnp.where(anchor == 1, logits, -logits)),
        log_sigmoid(jnp.where(anchor == 1, -logits, logits)),
    )
    terms = jnp.logaddexp(stays, flips_to + gain)
    guided = logits + towards_one
    if known is not None:
        terms = jnp.where(known[0], stays, terms)
        guided = jnp.where(known[0], jnp.where(anchor == 1, 1.0, -1.0) * jnp.finfo(logits.dtype).max / 4, guided)
    return value + jnp.sum(terms), guided


def bounded_gain(value: Array, others: Array) -> tuple[Array, Array]:
    """Log r at a datum, raised where it is impossible, and what changes of it gain, shape (num,), within bounds."""
    # An impossible datum, one change from a possible one, must still find it.
    best = jnp.maximum(value, jnp.max(others))
    value = jnp.maximum(value, jnp.where(best > -jnp.inf, best, 0.0) - LARGEST_GAIN)
    return value, jnp.clip(others - value, -LARGEST_GAIN, LARGEST_GAIN)


def _difference(law: Callable[[int], dist.Distribution]) -> Array:
    """How much likelier a one is where the datum is one than where it is zero, shape (*event)."""
    one, zero = (sigmoid(_logits(law(bit))) for bit in (1, 0))
    return one - zero


def _logits(p: dist.Distribution) -> Array:
    return jnp.broadcast_to(innermost(p).logits, p.event_shape)
