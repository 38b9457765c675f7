"""Whether a likelihood can be trusted, told in words from the numbers of its evaluation, and what to do if not."""

import math
from collections.abc import Mapping
from typing import Any

GOOD_KHAT = 0.7  # above it the weights' tail is too heavy (Vehtari et al. 2024)
FEW_PARTICLES = 10  # an effective sample size below it makes no estimate
TOLERATED_SHARE = 0.05  # of the data beyond either: k-hat, being an estimate itself, exceeds 0.7 now and then
WIDE_GAP_BITS = 0.1  # of the sandwich
LITTLE_OVERLAP = 0.03  # of forward and reverse work
MOST_PARTICLES = 100_000  # that are worth advising


def problems(figures: Mapping[str, Any]) -> list[str]:
    """What speaks against an evaluation's estimate, a clause each; nothing where it can be trusted."""
    found = []
    if (share := figures["khat_over_share"]) > TOLERATED_SHARE:
        found.append(f"k-hat is over {GOOD_KHAT} for {share:.0%} of the data, so that rare trajectories decide")
    if (share := figures["khat_unknown_share"]) > TOLERATED_SHARE:
        found.append(f"k-hat is not known for {share:.0%} of the data")
    if (share := figures["ess_low_share"]) > TOLERATED_SHARE:
        found.append(f"fewer than {FEW_PARTICLES} particles are effective for {share:.0%} of the data")
    if not (gap := figures.get("sandwich_gap_bits", 0.0)) <= WIDE_GAP_BITS:
        found.append(f"on simulated data the bounds are {gap:.3g} bits apart")
    if not (overlap := figures.get("work_overlap", 1.0)) >= LITTLE_OVERLAP:
        found.append(f"forward and reverse work overlap by {overlap:.1%} only")
    if figures.get("gap_bits", 0.0) < -4 * math.hypot(figures.get("gap_bits_se", 0.0), figures["estimate_bits_mc_se"]):
        found.append("on average it exceeds the data's own log density, as no likelihood can")
    return found


def verdict(figures: Mapping[str, Any], found: list[str]) -> list[str]:
    """Whether the likelihood can be trusted, and what to do if not, a sentence or two each.

    Args:
        figures: What `evaluation` returns.
        found: Its `problems`.
    """
    estimate, gap = with_error(figures, "estimate_bits").strip(), figures.get("sandwich_gap_bits")
    if not found:
        simulated = "" if gap is None else f", and on simulated data the bounds are {max(gap, 0):.2g} bits apart"
        return [
            f"The likelihood can be trusted: {estimate} bits per datum.",
            f"The weights have light tails{simulated}.",
        ]
    lines = [
        "The likelihood can NOT be trusted: " + "; ".join(found) + ".",
        f"Read {estimate} bits per datum as a lower bound, and do not compare models by it.",
    ]
    num_particles, khat = figures["num_particles"], figures["khat_90_percent"]
    # So many particles a tail of that shape needs (Vehtari et al. 2024, section 3.2.4).
    needed = math.inf if khat is None or not khat < 0.95 else 10 ** (1 / (1 - max(khat, 0)))
    needed = max(needed, 10 * num_particles)
    if figures["khat_unknown_share"] > TOLERATED_SHARE and num_particles < 100:
        lines.append("What to do: run again with --particles 1000; k-hat needs 30 at least, and hundreds to mean much.")
    elif needed <= MOST_PARTICLES:
        digits = 10 ** (len(str(int(needed))) - 1)
        lines.append(f"What to do: run again with --particles {math.ceil(needed / digits) * digits}.")
    elif gap is None:
        lines.append(
            "What to do: more particles will not help soon. The guide is far from the model's posterior: fit for "
            "longer, or give the guide more freedom."
        )
    else:
        lines.append(
            "What to do: more particles will not help soon. The reverse steps are far from the true ones, most often "
            "too narrow: fit for longer, give them more freedom (full covariance, a larger network), or take more "
            "steps. evaluation.png shows at which t the entropy production rises above its bounds."
        )
    return lines


def with_error(figures: Mapping[str, Any], name: str) -> str:
    """A number with its standard error, where it has one."""
    value, error = figures.get(name), figures.get(f"{name}_se")
    text = "      none" if value is None else f"{value:>10.4f}"
    return text + ("" if error is None else f" ± {error:.4f}")
