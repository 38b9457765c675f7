"""Time to trace and compile at T = 10,000 over T = 10: a fit's step, ancestral sampling, and a log density.

Repeats interleave the two, and the figure is the ratio of the fastest times.
Usage: python tests/benchmarks/compile_time.py [--repeats 5]
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from machine import describe, report
from numpyro import handlers
from numpyro.infer import SVI, Predictive, TraceMeanField_ELBO
from numpyro.infer.util import log_density

import dpm_ppl as dpm
from dpm_ppl.models import swiss_roll

SHORT, LONG = 10, 10_000


def fit_step(num_steps: int) -> Callable[[], object]:
    """Compiles one SVI step, from the program to the executable."""
    programs = [dpm.subsample_steps(f, size=8) for f in (swiss_roll.model, swiss_roll.guide)]
    x0 = jnp.zeros((64, 2))

    def build() -> object:
        svi = SVI(*programs, optax.adam(1e-3), TraceMeanField_ELBO())
        state = jax.eval_shape(svi.init, jax.random.key(0), x0)
        return jax.jit(svi.update).lower(state, x0).compile()

    return build


def sampling(num_steps: int) -> Callable[[], object]:
    """Compiles ancestral sampling with stock `Predictive`."""
    predictive = Predictive(swiss_roll.model, params={}, num_samples=1)
    return lambda: jax.jit(lambda key: predictive(key, size=64)["x"]).lower(jax.random.key(0)).compile()


def density(num_steps: int) -> Callable[[], object]:
    """Compiles the log density of the model at a trajectory and data."""
    x0, chain = jnp.zeros((8, 2)), jnp.zeros((8, num_steps, 2))

    def score(x0: jax.Array, chain: jax.Array, key: jax.Array) -> jax.Array:
        return log_density(handlers.seed(swiss_roll.model, key), (x0,), {}, {"x_chain": chain})[0]

    return lambda: jax.jit(score).lower(x0, chain, jax.random.key(0)).compile()


def seconds(build: Callable[[], object]) -> float:
    """Time of one build from cold caches."""
    jax.clear_caches()
    start = time.perf_counter()
    build()
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print(describe())
    figures = {}
    for task in (fit_step, sampling, density):
        times: dict[int, list[float]] = {SHORT: [], LONG: []}
        for _ in range(repeats):
            for num_steps in times:
                swiss_roll.NUM_STEPS = num_steps
                times[num_steps].append(seconds(task(num_steps)))
        fastest = {num_steps: min(values) for num_steps, values in times.items()}
        print(f"{task.__name__}: {fastest[SHORT]:.2f} s at T = {SHORT}, {fastest[LONG]:.2f} s at T = {LONG}")
        figures[f"ratio_{task.__name__}"] = round(fastest[LONG] / fastest[SHORT], 3)
    report(figures)
