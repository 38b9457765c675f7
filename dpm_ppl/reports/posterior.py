"""The numbers of a posterior: its evidence, how even the weights stayed, and in words whether to trust them."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from dpm_ppl.inference import Posterior
from dpm_ppl.inference.posteriors.verdict import cautions, problems, sentence
from dpm_ppl.inference.units import error_text
from dpm_ppl.reports.numbers import counted, known_or_none

MOST_ROWS = 20  # data that are printed


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


def headline(row: Mapping[str, Any]) -> str:
    """The evidence of a datum and whether to trust it, for a title."""
    evidence = f"log Z = {row['log_evidence_nats']:.2f} {error_text(row['log_evidence_nats_se'], 2)} nats"
    return f"{evidence}\n{'to be trusted' if row['trusted'] else 'NOT to be trusted'}"


def table(figures: Mapping[str, Any]) -> str:
    """The report as lines to print, and the verdict below."""
    rows = figures["data"]
    head = f"{figures['model']}: posterior of {counted(len(rows), 'datum', 'data')}, "
    head += counted(rows[0]["num_particles"], "particle", "particles")
    lines = [f"{head} each, in {figures['seconds']:.0f} s"]
    lines += [
        "  datum   log evidence, nats       in bits             effective at 0, least   k-hat at 0, largest   ancestors"
    ]
    for number, row in enumerate(rows[:MOST_ROWS]):
        nats, bits = (
            f"{row[f'log_evidence_{unit}']:.3f} {error_text(row[f'log_evidence_{unit}_se'], 3)}"
            for unit in ("nats", "bits")
        )
        effective, khat = f"{row['ess']:,.0f}, {row['least_ess']:,.0f}", f"{_text(row, 'khat')}, "
        note = "error uncertain" if row["cautions"] else ""
        note = note if row["trusted"] else "NOT trusted"
        line = f"  {number:<8}{nats:<25}{bits:<20}{effective:<24}{khat + _text(row, 'largest_khat'):<22}"
        lines.append(f"{line}{row['num_ancestors']:<9,}  {note}".rstrip())
    if len(rows) > MOST_ROWS:
        lines.append(f"  and {len(rows) - MOST_ROWS} more, in posterior.json")
    lines.append("  At 0 is of the weights of the datum itself; the least and the largest are over all steps t = 0..T.")
    return "\n".join([*lines, *(textwrap.fill(sentence, 110) for sentence in figures["verdict"])])


def _row(posterior: Posterior) -> dict[str, Any]:
    row = posterior.summary()
    found, careful = problems(row), cautions(row)
    known = {name: known_or_none(value) for name, value in row.items()}
    return {**known, "trusted": not found, "problems": found, "cautions": careful}


def _verdict(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    bad = [number for number, row in enumerate(rows) if not row["trusted"]]
    which = "The posterior" if len(rows) == 1 else f"The {len(rows)} posteriors"
    if not bad:
        careful = [number for number, row in enumerate(rows) if row["cautions"]]
        if len(rows) == 1 or not careful:
            said = [sentence(which, [], rows[0]["cautions"] if careful else [])]
        else:
            of = f" ({_named(careful)}): of datum {careful[0]}, {'; '.join(rows[careful[0]]['cautions'])}"
            said = [f"{which} can be trusted, but the error of the evidence less{of}."]
        advice = "Read the error as a lower bound; other seeds and more --particles tell how large it is."
        return [*said, *([advice] if careful else [])]
    if len(rows) == 1:
        lines = [sentence(which, rows[0]["problems"], [])]
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


def _text(row: Mapping[str, Any], name: str) -> str:
    return "none" if row[name] is None else f"{row[name]:.2f}"
