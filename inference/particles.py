"""A cloud of weighted particles, and what sequential Monte Carlo does with one: weigh, resample, move."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dpm_ppl.inference.conditioned import Latents
from dpm_ppl.inference.diagnostics import tail_size
from dpm_ppl.inference.moves import Move
from dpm_ppl.inference.posterior import Posterior


class Cloud(NamedTuple):
    """Weighted particles at one time.

    Attributes:
        x: States, shape (num_particles, *event).
        latents: The program's other latent variables, each of shape (num_particles, ...).
        log_weight: Log weights since they were last resampled, in nats, shape (num_particles,).
        log_evidence: Log of the product of the mean weights so far, in nats, scalar.
        eve: Which particle of the start each descends from, shape (num_particles,).
        num_resampled: How often they were resampled.
    """

    x: Array
    latents: Latents
    log_weight: Array
    log_evidence: Array
    eve: Array
    num_resampled: Array


class Step(NamedTuple):
    """log r_t at each particle, shape (num_particles,), and its move."""

    log_r: Array
    move: Move


class Diagnosis(NamedTuple):
    """What is kept of the weights at one time: see `Posterior`."""

    ess: Array
    tail: Array
    num_ancestors: Array
    num_nan: Array


FORBIDDEN = 5.0  # nats below the best twist at which a particle lives on where its twist is 0: r itself is yet to come


def positive(steps: Step) -> Step:
    """Twists must be positive: a state that r would forbid may lead to a datum that it allows."""
    allowed = jnp.isfinite(steps.log_r)
    best = jnp.max(jnp.where(allowed, steps.log_r, -jnp.inf))
    lowest = jnp.where(best > -jnp.inf, best, 0.0) - FORBIDDEN
    return steps._replace(log_r=jnp.where(steps.log_r == -jnp.inf, lowest, steps.log_r))


def arrive(cloud: Cloud, log_r: Array) -> tuple[Cloud, Diagnosis]:
    """Weighs the particles by r_t, which completes w = p r_t / (q r_(t+1)); and says how even the weights are."""
    log_weight = cloud.log_weight + log_r
    nan = jnp.isnan(log_weight) | (log_weight == jnp.inf)
    log_weight = jnp.where(nan, -jnp.inf, log_weight)
    num = len(log_weight)
    share = jax.nn.softmax(log_weight)
    ess = 1 / jnp.sum(share**2)
    alive = jnp.zeros(num, bool).at[cloud.eve].max(share > 0)
    tail = jax.lax.top_k(log_weight, tail_size(num) + 1)[0]
    diagnosis = Diagnosis(jnp.where(jnp.isfinite(ess), ess, 0.0), tail, jnp.sum(alive), jnp.sum(nan))
    return cloud._replace(log_weight=log_weight), diagnosis


def resample(cloud: Cloud, steps: Step, *, key: Array, threshold: float) -> tuple[Cloud, Step, Array]:
    """Draws particles in proportion to their weights, systematically, where few of them count; else leaves them."""
    num = len(cloud.log_weight)
    share = jax.nn.softmax(cloud.log_weight)
    needed = 1 / jnp.sum(share**2) < threshold * num
    rows = jnp.where(needed, systematic(share, key, num), jnp.arange(num))
    x, latents, eve, steps = jax.tree.map(lambda leaf: leaf[rows], (cloud.x, cloud.latents, cloud.eve, steps))
    log_mean = jax.nn.logsumexp(cloud.log_weight) - jnp.log(num)
    resampled = Cloud(
        x,
        latents,
        jnp.where(needed, 0.0, cloud.log_weight),
        cloud.log_evidence + jnp.where(needed, log_mean, 0.0),
        eve,
        cloud.num_resampled + needed,
    )
    return resampled, steps, needed


def draw(cloud: Cloud, steps: Step, *, key: Array) -> Cloud:
    """Moves every particle a step back, and weighs it by p / (q r_t)."""
    x, log_ratio = jax.vmap(lambda move, key: move.draw(key))(steps.move, jax.random.split(key, len(cloud.x)))
    return cloud._replace(x=x, log_weight=cloud.log_weight + log_ratio - steps.log_r)


def systematic(share: Array, key: Array, num: int) -> Array:
    """Rows drawn with the expected numbers `num * share`, from one uniform draw, shape (num,)."""
    places = (jnp.arange(num) + jax.random.uniform(key)) / num
    total = jnp.cumsum(share)
    # The last row with a weight, should rounding leave the total below the last place.
    return jnp.minimum(jnp.searchsorted(total / total[-1], places, side="right"), len(share) - 1)


def finish(cloud: Cloud, ends: list[tuple[Diagnosis, Array]], trail: tuple[Diagnosis, Array]) -> Posterior:
    """The posterior that the particles at t = 0 are, with the diagnoses of t = 0, 1 (`ends`) and 2..T (`trail`)."""
    first = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ends)
    diagnosis, resampled = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, trail)
    num = len(cloud.log_weight)
    share = jax.nn.softmax(cloud.log_weight)
    by_eve = jnp.zeros(num).at[cloud.eve].add(share)
    correction = (num / (num - 1)) ** (cloud.num_resampled + 1.0)
    variance = 1 - correction * (1 - jnp.sum(by_eve**2))
    return Posterior(
        samples=cloud.x,
        log_weight=cloud.log_weight,
        log_evidence=cloud.log_evidence + jax.nn.logsumexp(cloud.log_weight) - jnp.log(num),
        log_evidence_se=jnp.sqrt(jnp.maximum(variance, 0.0)),
        latents=cloud.latents,
        ess=diagnosis.ess,
        tail=diagnosis.tail,
        num_ancestors=diagnosis.num_ancestors,
        num_nan=diagnosis.num_nan,
        resampled=resampled,
    )
