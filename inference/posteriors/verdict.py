"""Whether to trust a posterior, in words: k-hat, the particles that count, their ancestors and the evidence's error."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dpm_ppl.inference.psis import FEW_PARTICLES, GOOD_KHAT

LARGE_ERROR = 0.5  # nats, of the evidence: beyond it the estimator, which never exceeds 1, says little

FEW_SHARE = 0.1  # of the particles: where fewer count and k-hat is high, means are wrong, and not only their errors


def problems(row: Mapping[str, Any]) -> list[str]:
    """What speaks against a posterior, a clause each; nothing where it can be trusted.

    Args:
        row: Its numbers, as `Posterior.summary` has them.
    """
    found = []
    if row["khat_used"] > GOOD_KHAT and row["share_used"] < FEW_SHARE:
        found.append(f"{_tail(row)} and {row['share_used']:.1%} of the particles count, so that rare ones decide")
    if math.isnan(row["khat"]):
        found.append("k-hat is not known")
    if row["least_ess"] < FEW_PARTICLES:
        found.append(f"at its worst step {row['least_ess']:.1f} of {row['num_particles']:,} particles are effective")
    if row["num_ancestors"] < FEW_PARTICLES:
        found.append(f"all particles descend from {row['num_ancestors']} of those that started")
    if math.isnan(row["log_evidence_nats_se"]):
        found.append("the error of the evidence is not known, as its variance was estimated as negative")
    return found


def cautions(row: Mapping[str, Any]) -> list[str]:
    """What speaks against its error bars only: heavy tails, where many particles count still; a large error."""
    found, error = [], row["log_evidence_nats_se"]
    if row["khat_used"] > GOOD_KHAT and row["share_used"] >= FEW_SHARE:
        found.append(f"{_tail(row)} so that now and then a particle counts for many")
    if error > LARGE_ERROR:
        found.append(f"an error of {error:.2f} nats is too large to be known well: it is never given as more than 1")
    return found


def sentence(which: str, found: Sequence[str], careful: Sequence[str]) -> str:
    """The verdict on one posterior, called `which`, of its problems and cautions."""
    if found:
        return f"{which} can NOT be trusted: {'; '.join(found)}."
    if careful:
        return f"{which} can be trusted, but the error of the evidence less: {'; '.join(careful)}."
    return f"{which} can be trusted, and so can the evidence: at every step enough particles count."


def _tail(row: Mapping[str, Any]) -> str:
    return f"k-hat is {row['khat_used']:.2f}, over {GOOD_KHAT},"
