"""Diffusion, VAE and GAN of the swiss roll in one table: bound, likelihood, JS divergence and coverage, by `dpm`.

Programs are fitted by their recipes, or read from earlier runs in --runs. JS is a lower bound in expectation, in bits.
Usage: python tests/benchmarks/comparison.py [--runs runs] [--iterations N] [PROGRAM ...]
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from machine import describe, report

COLUMNS = {  # heading, file, number, its error
    "ELBO": ("metrics.json", "elbo_bits", "elbo_bits_se"),
    "log-likelihood": ("evaluation.json", "estimate_bits", "estimate_bits_se"),
    "JS, at least": ("evaluation.json", "js_bits", "js_bits_se"),
    "told apart": ("evaluation.json", "accuracy", "accuracy_se"),
    "coverage": ("evaluation.json", "coverage", "coverage_se"),
    "fit, s": ("metrics.json", "seconds", None),
}


def dpm(*args):
    """Runs a command of `dpm`, its output shown."""
    subprocess.run([sys.executable, "-m", "dpm_ppl", *map(str, args)], check=True)


def row(name, run_dir, iterations):
    """What the two files of a run hold, by column; fitted and evaluated where they are not there yet."""
    if not (run_dir / "metrics.json").exists():
        dpm("fit", name, "--run-dir", run_dir, *([] if iterations is None else ["--iterations", iterations]))
    dpm("evaluate", run_dir, "--particles", 1000, "--num-data", 200, "--discriminator", "--overwrite")
    figures = {file: json.loads((run_dir / file).read_text()) for file in ("metrics.json", "evaluation.json")}
    return {
        heading: (figures[file].get(number), figures[file].get(error))
        for heading, (file, number, error) in COLUMNS.items()
    }


def shown(value, error):
    if value is None:
        return "none"
    return f"{value:.3f}" + ("" if error is None else f" ± {error:.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("programs", nargs="*", default=["swiss_roll", "vae", "gan"])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--iterations", type=int)
    options = parser.parse_args()
    print(describe())
    rows = {name: row(name, options.runs / name, options.iterations) for name in options.programs}
    print(" ".join(f"{heading:>16}" for heading in ("bits per datum", *COLUMNS)))
    for name, columns in rows.items():
        print(" ".join(f"{text:>16}" for text in (name, *(shown(*column) for column in columns.values()))))
    report({name: {heading: value for heading, (value, _) in columns.items()} for name, columns in rows.items()})


if __name__ == "__main__":
    main()
