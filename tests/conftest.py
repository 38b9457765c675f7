"""Every test runs in double precision, without a display; warnings are errors (pyproject.toml)."""

import os

import jax
import numpyro
import pytest

# Most tests compile for seconds and run for milliseconds: unoptimised programs are ready in half the time. Before JAX
# is set up, so that programs and notebooks that tests start do the same; `optimised` is for those that run for long.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
jax.config.update("jax_disable_most_optimizations", True)
# Threads for XLA: on two cores its pool deadlocks for good in large batches of LAPACK calls (see dpm_ppl/normal.py),
# which a stock MultivariateNormal makes.
os.environ.setdefault("NPROC", "4")
os.environ["MPLBACKEND"] = "Agg"  # also for the programs that tests start; NumPyro does not import matplotlib
numpyro.enable_x64()

collect_ignore = ["benchmarks"]  # programs that measure, run by hand


@pytest.fixture(scope="module")
def optimised():
    """For a module whose programs run for longer than it takes to optimise them."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
