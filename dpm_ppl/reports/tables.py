"""The tables of 2015, ours beside the published ones: what runs have reached, on which data, and what compares.

Source: Sohl-Dickstein et al. 2015, tables 1 and 2 of the last version; Goodfellow et al. 2014, table 1, for the others'
Parzen windows; Burda, Grosse and Salakhutdinov 2016 and van den Oord, Kalchbrenner and Kavukcuoglu 2016 for bits.
"""

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEADS = ("data", "program", "unit", "K", "K - L_null", "ELBO", "K, 2015", "K - L_null, 2015")

NONE = "-"


@dataclass(frozen=True)
class Published:
    """A row of table 1 as published.

    Args:
        data: What it is of.
        unit: "bits" a datum, or "bits/pixel".
        K: The paper's K, as printed.
        gain: Its K - L_null, as printed.
        programs: Programs of `dpm models` that are of the same data.
        note: What does not compare, or that all does.
    """

    data: str
    unit: str
    K: str
    gain: str
    programs: tuple[str, ...]
    note: str


TABLE_1 = (
    Published(
        *("swiss roll", "bits", "2.35", "6.45", ("swiss_roll_2015", "swiss_roll")),
        "The published roll's scale and noise are not stated, and K turns on both; ours has unit variance and noise "
        "0.25, whose entropy limit is -0.948 bits.",
    ),
    Published(
        *("binary heartbeat", "bits", "-2.414", "12.024", ("heartbeat_2015", "heartbeat")),
        "The same data, T and rate: K compares. The entropy limit is -2.322 bits.",
    ),
    Published(
        *("bark", "bits/pixel", "-0.55", "1.5", ("bark",)),
        "Other photographs, whose grain and scale decide: not comparable.",
    ),
    Published(
        *("dead leaves", "bits/pixel", "1.489", "3.536", ("dead_leaves",)),
        "The published cut-offs and noise are not stated; ours are 16 x 16 pixels, radii 1 to 16: not comparable. On "
        "the published images MCGSM had 1.244.",
    ),
    Published(
        *("CIFAR-10", "bits/pixel", "5.4 ± 0.2", "11.5 ± 0.2", ("cifar10_2015", "cifar10")),
        "A pixel is three channels of unit variance; the published K is about 4.2 bits per dimension of the levels. K "
        "compares where all test images were used.",
    ),
)

TABLE_2 = (
    ("generative adversarial net", "325"),
    ("diffusion, 2015", "317 ± 2.7"),
    ("deep belief network", "199"),
    ("the training images themselves", "349"),
)

PARZEN = ("mnist_2015", "mnist")

BINARY = (("IWAE, two layers, 50 samples", "-82.9"), ("PixelRNN", "-79.2"))


def read_runs(directories: Iterable[Path]) -> list[dict[str, Any]]:
    """What the finished fits among directories, and among those in them, have reached.

    Args:
        directories: Run directories of `dpm fit`, or folders of such.

    Returns:
        For each run the numbers of its `metrics.json`, those of `evaluation.json` under "evaluation", and the
        directory under "run"; by directory.

    Raises:
        ValueError: a file is damaged.
    """
    found = {}
    for directory in directories:
        for path in (directory, *(sorted(directory.iterdir()) if directory.is_dir() else ())):
            if (path / "metrics.json").is_file():
                evaluation = path / "evaluation.json"
                found[path] = {
                    **_read(path / "metrics.json"),
                    "evaluation": _read(evaluation) if evaluation.is_file() else {},
                    "run": str(path),
                }
    return list(found.values())


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"Expected JSON in {path}, as `dpm fit` and `dpm evaluate` write it; got {error}.") from error


def tables(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Both tables, a row for each run, and for each published number that no run is of.

    Args:
        runs: What `read_runs` gives.

    Returns:
        Under "table 1" and "table 2" rows, of which each says what it is of (`of`) and what compares (`note`). Numbers
        that are not known are None.
    """
    first = [row for published in TABLE_1 for row in _rows(published, runs)]
    return {"table 1": first, "table 2": [*_parzen(runs), *_binary(runs)]}


def _rows(published: Published, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    common = {"data": published.data, "unit": published.unit}
    beside = {"published_K": published.K, "published_K_minus_L_null": published.gain, "note": published.note}
    found = []
    for program in published.programs:
        own = [run for run in runs if run.get("model") == program]
        for run in own:
            suffix = "_per_pixel" if published.unit == "bits/pixel" else ""
            names = {"K": "K_bits", "K_minus_L_null": "K_minus_L_null_bits", "elbo": "elbo_bits"}
            numbers = {
                f"{name}{error}": run.get(f"{key}{suffix}{error}")
                for name, key in names.items()
                for error in ("", "_se")
            }
            numbers |= {f"bits_per_dimension{error}": run.get(f"bits_per_dimension{error}") for error in ("", "_se")}
            found.append({**common, "program": program, **numbers, **beside, **_of(run)})
        if not own:
            found.append({**common, "program": program, **beside, **_missing(program)})
    return found


def _of(run: Mapping[str, Any]) -> dict[str, Any]:
    """Which data, and which fit."""
    return {
        "of": f"{run.get('num_data', 0):,} {run.get('data', 'data')}, {run.get('iterations', 0):,} iterations",
        "run": run["run"],
    }


def _missing(program: str, *, then: str = "") -> dict[str, Any]:
    return {"of": f"not run: dpm fit {program}{then}", "run": None}


def _parzen(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    common = {"data": "MNIST", "unit": "bits"}
    rows = []
    for program in PARZEN:
        known = [run for run in runs if run.get("model") == program and "parzen_bits" in run["evaluation"]]
        for run in known:
            of = run["evaluation"]
            by = f"{of.get('parzen_num_samples', 0):,} samples, bandwidth {of.get('parzen_bandwidth', 0):.3g}."
            rows.append(
                {
                    **common,
                    "program": program,
                    "parzen": of["parzen_bits"],
                    "parzen_se": of.get("parzen_bits_se"),
                    **_of(run),
                    "note": f"{program}: {by}",
                }
            )
        if not known:
            rows.append({**common, "program": program, **_missing(program, then=", dpm evaluate DIR --parzen 10000")})
    note = "As published, by windows on 10,000 samples."
    return rows + [
        {**common, "program": name, "published": text, "of": "published", "note": note} for name, text in TABLE_2
    ]


def _binary(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    common = {"data": "binary MNIST", "unit": "nats"}
    own = [run for run in runs if run.get("model") == "mnist_binary" and run.get("elbo_bits") is not None]
    rows = [
        {
            **common,
            "program": "mnist_binary",
            "elbo": run["elbo_bits"] * math.log(2),
            "elbo_se": None if run.get("elbo_bits_se") is None else run["elbo_bits_se"] * math.log(2),
            **_of(run),
            "note": "A lower bound, as IWAE's is; PixelRNN's is exact.",
        }
        for run in own
    ]
    if not own:
        rows = [{**common, "program": "mnist_binary", **_missing("mnist_binary", then=" --pretrained")}]
    return rows + [{**common, "program": name, "published": text, "of": "published"} for name, text in BINARY]


def _number(row: Mapping[str, Any], name: str) -> str:
    value, error = row.get(name), row.get(f"{name}_se")
    if value is None:
        return NONE
    return f"{value:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _cells(
    found: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Heads and cells of each table."""
    first = [
        (
            *(row["data"], row["program"], row["unit"]),
            *(_number(row, name) for name in ("K", "K_minus_L_null", "elbo")),
            *(row["published_K"], row["published_K_minus_L_null"]),
        )
        for row in found["table 1"]
    ]
    second = [
        (
            *(row["data"], row["program"], row["unit"]),
            next((_number(row, name) for name in ("parzen", "elbo") if name in row), row.get("published", NONE)),
        )
        for row in found["table 2"]
    ]
    return {
        "Table 1: the bound": (HEADS, first),
        "Table 2: MNIST, by Parzen windows and by the ELBO of bits": (("data", "model", "unit", "value"), second),
    }


def _notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of each row what it is of, and once for all rows of the same data what compares."""
    lines, said = [], set()
    for row in rows:
        if row["of"] != "published":
            per_dimension = (
                f"; {_number(row, 'bits_per_dimension')} bits per dimension" if row.get("bits_per_dimension") else ""
            )
            where = f" ({row['run']})" if row["run"] else ""
            lines.append(f"{row['program']}: {row['of']}{where}{per_dimension}.")
    for row in rows:
        if row.get("note") and (row["data"], row["note"]) not in said:
            said.add((row["data"], row["note"]))
            lines.append(f"{row['data']}: {row['note']}")
    return lines


def as_text(found: Mapping[str, Sequence[Mapping[str, Any]]], *, width: int = 118) -> str:
    """Tables to print, with notes below each."""
    lines = []
    for (title, (heads, cells)), rows in zip(_cells(found).items(), found.values(), strict=True):
        sizes = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
        lines += [title, *("  ".join(map(str.ljust, row, sizes)).rstrip() for row in (heads, *cells))]
        for words in _notes(rows):
            lines += textwrap.wrap(words, width, initial_indent="  ", subsequent_indent="    ")
        lines.append("")
    return "\n".join(lines[:-1])


def as_markdown(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The same as Markdown."""
    lines = []
    for (title, (heads, cells)), rows in zip(_cells(found).items(), found.values(), strict=True):
        lines += [f"**{title}**", "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        lines += [f"| {' | '.join(row)} |" for row in cells]
        lines += ["", *(f"- {words}" for words in _notes(rows)), ""]
    return "\n".join(lines[:-1])
