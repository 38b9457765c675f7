"""Every test runs in double precision, without a display; warnings are errors (pyproject.toml)."""

import os

import numpyro

# Threads for XLA: on two cores its pool deadlocks for good in large batches of LAPACK calls (see dpm_ppl/normal.py),
# which a stock MultivariateNormal makes.
os.environ.setdefault("NPROC", "4")
os.environ["MPLBACKEND"] = "Agg"  # also for the programs that tests start; NumPyro does not import matplotlib
numpyro.enable_x64()

collect_ignore = ["benchmarks"]  # programs that measure, run by hand
