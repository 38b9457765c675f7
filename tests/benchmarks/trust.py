"""How many posteriors of a fitted swiss roll are called trusted, why the others are not, and what their intervals hold.

The program draws a point and observes it with noise; `smc` is given the observation alone. Verdicts are those of
`Posterior.verdict()`, and coverage is that of `calibrate`, on as many simulations again.
Usage: python tests/benchmarks/trust.py [--run runs/swiss_roll] [--noise 0.2] [--simulations 100] [--particles 1000]
"""

import argparse
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from machine import describe, report

import dpm_ppl as dpm
from dpm_ppl.inference import calibrate, load_params, smc
from dpm_ppl.inference.posteriors.verdict import problems
from dpm_ppl.models import swiss_roll
from dpm_ppl.tracing import trace_quietly

BATCH = 10  # simulations at a time


def observed(y=None, noise=0.2):
    x = dpm.reverse_chain("x", swiss_roll.diffusion())
    numpyro.sample("y", dist.Normal(x, noise).to_event(1), obs=y)


def gates(row):
    """Which of the gates of the verdict a posterior fails, by short names."""
    words = {
        "k-hat is not": "k-hat unknown",
        "k-hat": "k-hat",
        "at its": "ESS",
        "all part": "ancestors",
        "the error": "error",
    }
    return [next(name for start, name in words.items() if problem.startswith(start)) for problem in problems(row)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, default=Path("runs/swiss_roll"))
    parser.add_argument("--noise", type=float, default=0.2)
    parser.add_argument("--simulations", type=int, default=100)
    parser.add_argument("--particles", type=int, default=1000)
    options = parser.parse_args()
    print(describe())
    if not (options.run / "run.json").exists():
        command = [sys.executable, "-m", "dpm_ppl", "fit", "swiss_roll", "--run-dir", str(options.run)]
        subprocess.run(command, check=True)
    params = load_params(options.run, swiss_roll.diffusion)
    program = partial(observed, noise=options.noise)
    run = smc(program, "x", params=params, num_particles=options.particles)

    def simulate(key):
        draw_key, key = jax.random.split(key)
        sites = trace_quietly(program, params=params, seed=draw_key)[1]
        return run(key, sites["y"]["value"])

    start = time.perf_counter()
    keys = jax.random.split(jax.random.key(0), options.simulations)
    posteriors = jax.jit(lambda keys: jax.lax.map(simulate, keys, batch_size=BATCH))(keys)
    rows = [jax.tree.map(lambda leaf, i=i: leaf[i], posteriors).summary() for i in range(options.simulations)]
    failed = Counter(name for row in rows for name in gates(row))
    trusted = sum(not problems(row) for row in rows)
    print(
        f"{trusted} of {len(rows)} trusted, in {time.perf_counter() - start:.0f} s; gates that failed: {dict(failed)}"
    )
    for number, row in enumerate(rows):
        for problem in problems(row):
            print(f"  {number}: {problem}")

    def posterior(key, y):
        key, draw_key = jax.random.split(key)
        return run(key, y).resample(draw_key, 99)

    simulations = {"num_simulations": options.simulations, "params": params, "batch_size": BATCH}
    found = calibrate(program, "x", "y", posterior, key=jax.random.key(1), **simulations)
    print(found)
    covered = found.coverage(0.9)
    report(
        {
            "trusted": trusted,
            "num_simulations": len(rows),
            "failed_gates": dict(failed),
            "least_ancestors": min(row["num_ancestors"] for row in rows),
            "median_ancestors": float(np.median([row["num_ancestors"] for row in rows])),
            "coverage_90": {name: np.round(share, 3).tolist() for name, share in covered.items()},
            "p_value": found.p_value,
        }
    )


if __name__ == "__main__":
    main()
