"""How well `models/amortised.py` draws of the two moons: C2ST against exact posteriors, beside the published figures.

A classifier tells 10,000 draws from as many of the exact posterior (1/2 where it cannot), averaged over 10
observations of the prior predictive. Published, of sequential neural posterior estimation, which spends all of its
simulations on one observation: https://github.com/sbi-benchmark/results (sbi 0.23, December 2024), averages over the
benchmark's own 10 observations.
Usage: python tests/benchmarks/amortised.py [--simulations N ...] [--iterations N] [--observations N]
"""

import argparse
import time

import jax
import numpy as np
from machine import describe, report

from dpm_ppl.commands.find import load
from dpm_ppl.inference import discriminate, fit
from dpm_ppl.models import amortised
from dpm_ppl.parts import parts_of
from dpm_ppl.reports.samples import draws

PUBLISHED = {1_000: 0.617, 10_000: 0.546, 100_000: 0.514}  # SNPE
NUM_DRAWS = 10_000


def accuracies(parts, params, observations, key):
    """C2ST of each observation, shape (num,)."""
    found = []
    for i, x in enumerate(observations):
        keys = jax.random.split(jax.random.fold_in(key, i), 3)
        exact = np.asarray(amortised.posterior(x, keys[0], 8 * NUM_DRAWS))[:NUM_DRAWS]
        drawn = draws(parts, params, key=keys[1], num_samples=len(exact), context=x[None])
        found.append(discriminate(exact, drawn, key=keys[2]).summary()["accuracy"])
    return np.array(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--iterations", type=int, default=amortised.recipe["num_iterations"])
    parser.add_argument("--observations", type=int, default=10)
    options = parser.parse_args()
    print(describe())
    theta_key, x_key = jax.random.split(jax.random.key(11))
    theta = jax.random.uniform(theta_key, (options.observations, 2), minval=-1, maxval=1)
    observations = amortised.simulator(theta, x_key)
    program, figures = load("amortised"), {}
    print(f"{'simulations':>12}{'C2ST':>10}{'published':>12}{'fit, s':>10}")
    for num in options.simulations:
        amortised.NUM_SIMULATIONS = num
        data = program.data()
        recipe = {**program.recipe, "num_iterations": options.iterations}
        recipe["batch_size"] = min(recipe["batch_size"], num)
        began = time.monotonic()
        params = fit(program.model, program.guide, data, key=jax.random.key(0), **recipe).params
        seconds = time.monotonic() - began
        c2st = accuracies(parts_of(program, data), params, observations, jax.random.key(1))
        figures[num] = {"c2st": c2st.mean(), "c2st_se": c2st.std(ddof=1) / np.sqrt(len(c2st)), "seconds": seconds}
        shown = f"{PUBLISHED[num]:>12.3f}" if num in PUBLISHED else f"{'':>12}"
        print(f"{num:>12,}{c2st.mean():>10.3f}{shown}{seconds:>10.0f}")
    report(figures)


if __name__ == "__main__":
    main()
