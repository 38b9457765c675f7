"""A cloud of weighted particles at one time: how it is weighed, resampled and moved, and what it ends as."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dpm_ppl.inference.devices import ALONE, Spread
from dpm_ppl.inference.posteriors.conditioning import Latents
from dpm_ppl.inference.posteriors.posterior import Posterior
from dpm_ppl.inference.posteriors.proposals import Move
from dpm_ppl.inference.posteriors.resampling import multinomial
from dpm_ppl.inference.psis import tail_size
from dpm_ppl.kernels.kernel import is_concrete

UNKNOWN = -1.0  # a standard error that is not known, in compiled code: NaN there is a mistake to `jax_debug_nans`


def as_told(error: Array) -> Array:
    """A standard error, NaN where it is not known; by NumPy where values are."""
    if is_concrete(error):
        known = np.asarray(error)
        return jnp.asarray(np.where(known == UNKNOWN, np.nan, known).astype(known.dtype))
    return jnp.where(error == UNKNOWN, jnp.nan, error)


class Cloud(NamedTuple):
    """Weighted particles at one time.

    Attributes:
        x: States, shape (num_particles, *event).
        latents: The program's other latent variables, each of shape (num_particles, ...).
        log_weight: Log weights since they were last resampled, in nats, shape (num_particles,).
        log_evidence: Log of the product of the mean weights so far, in nats, scalar.
        eve: Which particle of the start each descends from, shape (num_particles,).
        num_resampled: How often they were resampled.
        log_path: log p(x^(t..T)) - log q(x^(t+1..T) | x^t) in nats, shape (num_particles,), where paths are moved.
    """

    x: Array
    latents: Latents
    log_weight: Array
    log_evidence: Array
    eve: Array
    num_resampled: Array
    log_path: Array | None = None


class Step(NamedTuple):
    """log r_t at each particle, shape (num_particles,), and its move."""

    log_r: Array
    move: Move


class Diagnosis(NamedTuple):
    """What is kept of the weights at one time: see `Posterior`.

    And `log_evidence`, that of the cloud, beside which the log weights are; and `log_sum`, the log of their sum.
    """

    ess: Array
    tail: Array
    num_ancestors: Array
    num_nan: Array
    log_evidence: Array
    log_sum: Array


class Descent(NamedTuple):
    """The particles at t = 0, with the diagnoses of t = 0..T, at which they were resampled, and moves taken by kind."""

    cloud: Cloud
    diagnosis: Diagnosis
    resampled: Array
    acceptance: dict[str, Array]


LEAST_SHARE = 0.005  # of the prior where a twist that has none is 0: a state that r forbids may lead to one it allows


def weighed(cloud: Cloud, log_r: Array, spread: Spread) -> tuple[Array, Array]:
    """Log weights of the particles with r_t, in nats, and which were NaN or +inf: they count as zero."""
    log_weight = spread.gathered(cloud.log_weight + log_r)
    nan = jnp.isnan(log_weight) | (log_weight == jnp.inf)
    return jnp.where(nan, -jnp.inf, log_weight), nan


def log_mean(cloud: Cloud, log_r: Array, *, spread: Spread = ALONE) -> Array:
    """The run's estimate of log E r_t over the prior, in nats; 0 where r_t is zero at all particles."""
    log_weight, _ = weighed(cloud, log_r, spread)
    mean = cloud.log_evidence + jax.nn.logsumexp(log_weight) - math.log(len(log_weight))
    return jnp.where(mean > -jnp.inf, mean, 0.0)


def with_prior(steps: Step, log_mean: Array, share: ArrayLike, *, defends: bool) -> Step:
    """Steps whose twist has a share of the prior, as have their moves (`defended`); or has it where it is 0 alone."""
    log_share, log_r = jnp.log(share), steps.log_r - log_mean
    if not defends:
        return steps._replace(log_r=jnp.where(log_r == -jnp.inf, log_share, log_r))
    log_r = jnp.logaddexp(jnp.log1p(-jnp.asarray(share)) + log_r, log_share)
    return Step(log_r, jax.vmap(lambda move, share: move.defended(share))(steps.move, jnp.exp(log_share - log_r)))


def arrive(
    cloud: Cloud, log_r: Array, *, num_tail: int | None = None, spread: Spread = ALONE
) -> tuple[Cloud, Diagnosis]:
    """Weighs the particles by r_t, which completes w = p r_t / (q r_(t+1)); and says how even the weights are."""
    log_weight, nan = weighed(cloud, log_r, spread)
    num = len(log_weight)
    share = spread.gathered(jax.nn.softmax(log_weight))
    ess = 1 / jnp.sum(share**2)
    alive = jnp.zeros(num, bool).at[cloud.eve].max(share > 0)
    tail = jax.lax.top_k(log_weight, tail_size(num) + 1 if num_tail is None else num_tail)[0]
    ess = jnp.where(jnp.isfinite(ess), ess, 0.0)
    diagnosis = Diagnosis(ess, tail, jnp.sum(alive), jnp.sum(nan), cloud.log_evidence, jax.nn.logsumexp(log_weight))
    return cloud._replace(log_weight=log_weight), diagnosis


def resample(
    cloud: Cloud, steps: Step, *, key: Array, threshold: float, spread: Spread = ALONE
) -> tuple[Cloud, Step, Array]:
    """Draws particles in proportion to their weights where few of them count; else leaves them.

    Independently of each other: only so does their ancestry tell the error of the evidence (Lee and Whiteley 2018).
    Over devices every one draws the same rows, of all, and particles travel only where they are drawn.
    """
    num = len(cloud.log_weight)
    share = spread.gathered(jax.nn.softmax(cloud.log_weight))
    needed = 1 / jnp.sum(share**2) < threshold * num
    rows = spread.gathered(jnp.where(needed, multinomial(share, key, num), jnp.arange(num)))
    moved = cloud.x, cloud.latents, cloud.log_path, steps
    x, latents, log_path, steps = spread.taken(rows, moved, where=needed)
    log_mean = jax.nn.logsumexp(cloud.log_weight) - jnp.log(num)
    resampled = Cloud(
        x,
        latents,
        jnp.where(needed, 0.0, cloud.log_weight),
        cloud.log_evidence + jnp.where(needed, log_mean, 0.0),
        spread.gathered(cloud.eve[rows]),
        cloud.num_resampled + needed,
        log_path,
    )
    return resampled, steps, needed


def draw(cloud: Cloud, steps: Step, *, keys: Array, spread: Spread = ALONE) -> Cloud:
    """Moves every particle a step back, each by its own key, and weighs it by p / (q r_t)."""
    x, log_ratio = jax.vmap(lambda move, key: move.draw(key))(steps.move, keys)
    x, log_weight = spread.constrained((x, cloud.log_weight + log_ratio - steps.log_r))
    return cloud._replace(x=x, log_weight=log_weight)


def finish(descent: Descent, *, twist: Array | int = 0, twists: tuple[str, ...] = ()) -> Posterior:
    """The posterior that the particles at t = 0 are."""
    cloud, diagnosis = descent.cloud, descent.diagnosis
    return Posterior(
        samples=cloud.x,
        log_weight=cloud.log_weight,
        log_evidence=log_evidence(cloud),
        log_evidence_se=standard_error(relative_variance(cloud)),
        latents=cloud.latents,
        ess=diagnosis.ess,
        tail=diagnosis.tail,
        num_ancestors=diagnosis.num_ancestors,
        num_nan=diagnosis.num_nan,
        resampled=descent.resampled,
        acceptance=descent.acceptance,
        twist=twist,
        twists=twists,
    )


def log_evidence(cloud: Cloud) -> Array:
    """Log Z_hat in nats, scalar, of particles at t = 0."""
    return cloud.log_evidence + jax.nn.logsumexp(cloud.log_weight) - math.log(len(cloud.log_weight))


def standard_error(variance: Array) -> Array:
    """Of log Z_hat in nats, by the delta method, of Var Z_hat / Z^2; UNKNOWN where that is below 0."""
    return jnp.where(variance < 0, UNKNOWN, jnp.sqrt(jnp.abs(variance)))


def relative_variance(cloud: Cloud) -> Array:
    """Var Z_hat / Z^2 as estimated from the ancestry of particles at t = 0, scalar; it may be below 0.

    Source: Lee and Whiteley 2018, eq. 8.
    """
    num = len(cloud.log_weight)
    by_eve = jnp.zeros(num).at[cloud.eve].add(jax.nn.softmax(cloud.log_weight))
    grown = jnp.expm1((cloud.num_resampled + 1.0) * math.log(num / (num - 1)))
    variance = (1 + grown) * jnp.sum(by_eve**2) - grown
    return jnp.where(jnp.abs(variance) < 1e-4 * grown, 0.0, variance)  # even weights, but for rounding
