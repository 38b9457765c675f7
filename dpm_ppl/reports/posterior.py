"""The numbers of a posterior: its evidence, how even the weights stayed, and in words whether to trust them."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpm_ppl.inference import Posterior
from dpm_ppl.inference.psis import GOOD_KHAT
from dpm_ppl.reports.numbers import FEW_PARTICLES, known_or_none

MOST_ROWS = 20  # data that are printed

LARGE_ERROR = 0.5  # nats, of the evidence: beyond it the estimator, which never exceeds 1, says little

EVEN_SHARE = 0.999  # of the particles: where so many count the weights are equal, and there is no error

FEW_SHARE = 0.1  # of the particles: where fewer count and k-hat is high, means are wrong, and not only their errors


def report(posteriors: Sequence[Posterior], *, about: Mapping[str, Any]) -> dict[str, Any]:
    """What `posterior.json` holds.

    Args:
        posteriors: `Posterior` of each datum.
        about: What else to report, put first.

    Returns:
        `about`; `data`, a record of each datum: `Posterior.summary()` (the evidence in nats and bits with its standard
        error; `ess` and `khat` of the datum itself, `least_ess` and `largest_khat` over the steps; of how many
        particles of the start descendants are left); `khat_used` and `share_used`, k-hat and the effective share of
        the particles at the worst of the steps whose mean weight enters the evidence; `trusted`, `problems` and
        `cautions` in words. And of all the data `trusted_share` and `verdict`. A number that
        is not known is None.
    """
    rows = [_row(posterior) for posterior in posteriors]
    share = sum(row["trusted"] for row in rows) / len(rows)
    return {**about, "num_data": len(rows), "data": rows, "trusted_share": share, "verdict": _verdict(rows)}


def problems(row: Mapping[str, Any]) -> list[str]:
    """What speaks against a posterior, a clause each; nothing where it can be trusted.

    Args:
        row: The numbers of a datum, as `report` has them.
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
    return found


def cautions(row: Mapping[str, Any]) -> list[str]:
    """What speaks against its error bars only: heavy tails, where many particles count still; an error not known."""
    found, error = [], row["log_evidence_nats_se"]
    if row["khat_used"] > GOOD_KHAT and row["share_used"] >= FEW_SHARE:
        found.append(f"{_tail(row)} so that now and then a particle counts for many")
    if error > LARGE_ERROR:
        found.append(f"an error of {error:.2f} nats is too large to be known well: it is never given as more than 1")
    if error == 0 and row["least_ess"] < EVEN_SHARE * row["num_particles"]:
        found.append("the variance that the error is the root of was estimated as negative")
    return found


def _tail(row: Mapping[str, Any]) -> str:
    return f"k-hat is {row['khat_used']:.2f}, over {GOOD_KHAT},"


def headline(row: Mapping[str, Any]) -> str:
    """The evidence of a datum and whether to trust it, for a title."""
    evidence = f"log Z = {row['log_evidence_nats']:.2f} ± {row['log_evidence_nats_se']:.2f} nats"
    return f"{evidence}\n{'to be trusted' if row['trusted'] else 'NOT to be trusted'}"


def table(figures: Mapping[str, Any]) -> str:
    """The report as lines to print, and the verdict below."""
    rows = figures["data"]
    head = f"{figures['model']}: posterior of {_count(len(rows), 'datum', 'data')}, {rows[0]['num_particles']:,} "
    lines = [f"{head}particles each, in {figures['seconds']:.0f} s"]
    lines += [
        "  datum   log evidence, nats       in bits             effective at 0, least   k-hat, largest   ancestors"
    ]
    for number, row in enumerate(rows[:MOST_ROWS]):
        nats, bits = (f"{row[f'log_evidence_{u}']:.3f} ± {row[f'log_evidence_{u}_se']:.3f}" for u in ("nats", "bits"))
        effective, khat = f"{row['ess']:,.0f}, {row['least_ess']:,.0f}", f"{_text(row, 'khat')}, "
        note = "error uncertain" if row["cautions"] else ""
        note = note if row["trusted"] else "NOT trusted"
        line = f"  {number:<8}{nats:<25}{bits:<20}{effective:<24}{khat + _text(row, 'largest_khat'):<17}"
        lines.append(f"{line}{row['num_ancestors']:<9,}  {note}".rstrip())
    if len(rows) > MOST_ROWS:
        lines.append(f"  and {len(rows) - MOST_ROWS} more, in posterior.json")
    return "\n".join([*lines, *(textwrap.fill(sentence, 110) for sentence in figures["verdict"])])


def _row(posterior: Posterior) -> dict[str, Any]:
    # A mean weight enters the evidence at t = 0 and where the particles were resampled; elsewhere weights are carried.
    used = np.asarray(posterior.resampled, bool).copy()
    used[0] = True
    khat, share = np.asarray(posterior.khat)[used], np.asarray(posterior.ess)[used] / posterior.num_particles
    heavy = khat > GOOD_KHAT
    worst = int(np.argmin(np.where(heavy, share, np.inf))) if heavy.any() else 0  # of heavy tails, where fewest count
    row = {**posterior.summary(), "khat_used": float(khat[worst]), "share_used": float(share[worst])}
    found, careful = problems(row), cautions(row)
    known = {name: known_or_none(value) for name, value in row.items()}
    return {**known, "trusted": not found, "problems": found, "cautions": careful}


def _verdict(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    bad = [number for number, row in enumerate(rows) if not row["trusted"]]
    which = "The posterior" if len(rows) == 1 else f"The {len(rows)} posteriors"
    if not bad:
        careful = [number for number, row in enumerate(rows) if row["cautions"]]
        if not careful:
            return [f"{which} can be trusted, and so can the evidence: at every step enough particles count."]
        of = "" if len(rows) == 1 else f" ({_named(careful)}): of datum {careful[0]}, "
        return [
            f"{which} can be trusted, but the error of the evidence less{of or ': '}"
            f"{'; '.join(rows[careful[0]]['cautions'])}.",
            "Read the error as a lower bound; other seeds and more --particles tell how large it is.",
        ]
    if len(rows) == 1:
        lines = [f"{which} can NOT be trusted: {'; '.join(rows[0]['problems'])}."]
    else:
        first = f"of datum {bad[0]}, {'; '.join(rows[bad[0]]['problems'])}"
        lines = [f"{len(bad)} of {len(rows)} posteriors can NOT be trusted ({_named(bad)}): {first}."]
    more = 10 * rows[bad[0]]["num_particles"]
    return [
        *lines,
        f"What to do: run again with --particles {more}, and with another --seed to see whether the evidence agrees. "
        "Where that does not help, the model finds the observation all but impossible: give it more --noise, or fit "
        "for longer.",
    ]


def _named(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:10]))}{' and others' if len(numbers) > 10 else ''}"


def _count(num: int, one: str, many: str) -> str:
    return f"{num:,} {one if num == 1 else many}"


def _text(row: Mapping[str, Any], name: str) -> str:
    return "none" if row[name] is None else f"{row[name]:.2f}"
