"""Islands of particles: several runs that resample each among its own, and count by their evidence.

On many devices an island to each sends nothing until the end, where one population sends particles at each resampling.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from dpm_ppl.arguments import require_count
from dpm_ppl.inference.posteriors.cloud import Descent, log_evidence, relative_variance, standard_error
from dpm_ppl.inference.posteriors.posterior import Posterior
from dpm_ppl.inference.psis import tail_size


def require_islands(num_islands: int, num_particles: int) -> int:
    """The number of islands, checked.

    Raises:
        TypeError: it is no integer.
        ValueError: it is less than 1, or does not divide the particles into at least 2 for each.
    """
    num_islands = require_count("num_islands", num_islands)
    if num_particles % num_islands or num_particles < 2 * num_islands:
        raise ValueError(
            f"Expected `num_islands` to divide the {num_particles} particles into at least 2 for each; got "
            f"{num_islands}."
        )
    return num_islands


def tail_kept(num_particles: int, num_islands: int) -> int:
    """How many of its largest weights an island keeps, so that all have those of the whole."""
    return min(num_particles // num_islands, tail_size(num_particles) + 1)


def merged(islands: Descent, *, twist: Array, twists: tuple[str, ...]) -> Posterior:
    r"""The posterior of particles on islands.

    Z_hat is the mean over islands of their own, each unbiased, and so is the mean. An island of N / K particles has a
    variance of about K times that of N, and the mean of K such has that of N again, as long as the islands are large;
    small ones lose more, as each can lose the posterior's better half, which no other sends it.

    Args:
        islands: Where they came to, every leaf with the islands in front, two or more.
        twist: Number of the twist.
        twists: Names of the twists.

    Source: Verge, Dubarry, Del Moral and Moulines 2015, "On parallel implementation of sequential Monte Carlo methods:
        the island particle model", Statistics and Computing 25; sections 2 and 3 for islands that do not interact.
    """
    cloud, diagnosis = islands.cloud, islands.diagnosis
    num_islands, size = cloud.log_weight.shape
    log_z = jax.vmap(log_evidence)(cloud)
    share = jax.nn.softmax(log_z)
    own = jax.vmap(relative_variance)(cloud)
    variance = jnp.sum(jnp.where(share > 0, share**2 * own, 0.0))
    between = jnp.sum((num_islands * share - 1) ** 2) / (num_islands * (num_islands - 1))
    variance = jnp.where(variance < 0, between, variance)

    # What islands count at each t: a log weight beside the evidence that its island had gathered before.
    above = diagnosis.log_evidence - jnp.max(diagnosis.log_evidence, 0)
    tail = jnp.moveaxis(diagnosis.tail + above[..., None], 0, 1).reshape(above.shape[1], -1)
    log_total = above + diagnosis.log_sum
    part = jax.nn.softmax(log_total, axis=0)
    ess = 1 / jnp.sum(jnp.where(part > 0, part**2 / jnp.maximum(diagnosis.ess, 1e-30), 0.0), 0)

    def joined(leaf: Array) -> Array:
        return leaf.reshape(num_islands * size, *leaf.shape[2:])

    return Posterior(
        samples=joined(cloud.x),
        log_weight=joined(cloud.log_weight + (cloud.log_evidence - jnp.max(cloud.log_evidence))[:, None]),
        log_evidence=jax.nn.logsumexp(log_z) - math.log(num_islands),
        log_evidence_se=standard_error(variance),
        latents=jax.tree.map(joined, cloud.latents),
        ess=jnp.where(jnp.isfinite(ess), ess, 0.0),
        tail=jax.lax.top_k(tail, min(tail.shape[1], tail_size(num_islands * size) + 1))[0],
        num_ancestors=jnp.sum(diagnosis.num_ancestors, 0),
        num_nan=jnp.sum(diagnosis.num_nan, 0),
        resampled=jnp.any(islands.resampled, 0),
        acceptance=jax.tree.map(lambda leaf: jnp.mean(leaf, 0), islands.acceptance),
        twist=twist,
        twists=twists,
    )
