"""Every test runs in double precision, without a display; warnings are errors (pyproject.toml)."""

import os
import subprocess
import sys
import zlib

import jax
import numpy as np
import numpyro
import pytest
from jax.experimental.compilation_cache import compilation_cache

# Most tests compile for seconds and run for milliseconds: without XLA's optimisations they are ready in half the time.
# For those that run for long there is `tests.compiling.optimised`. The variable is for what tests start.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
jax.config.update("jax_disable_most_optimizations", True)
# XLA's older way to make code for CPUs is the quicker one. A flag that it does not know ends the process: ask another.
_QUICKER = {**os.environ, "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false"}
_TRIAL = [sys.executable, "-c", "import jax; jax.numpy.ones(1)"]
if "XLA_FLAGS" not in os.environ and not subprocess.run(_TRIAL, env=_QUICKER, capture_output=True).returncode:
    os.environ["XLA_FLAGS"] = _QUICKER["XLA_FLAGS"]
# Threads for XLA: on two cores its pool deadlocks for good in large batches of LAPACK calls (see dpm_ppl/normal.py),
# which a stock MultivariateNormal makes.
os.environ.setdefault("NPROC", "4")
os.environ["MPLBACKEND"] = "Agg"  # also for the programs that tests start; NumPyro does not import matplotlib
numpyro.enable_x64()

collect_ignore = ["benchmarks"]  # programs that measure, run by hand


@pytest.fixture(autouse=True)
def _own_draws(request):
    """A module's generator starts anew with each test: what it draws does not depend on which tests ran before."""
    generator = getattr(request.module, "RNG", None)
    if isinstance(generator, np.random.Generator):
        seed = zlib.crc32(request.node.name.encode())
        generator.bit_generator.state = np.random.default_rng(seed).bit_generator.state


@pytest.fixture(scope="module")
def compile_once(tmp_path_factory):
    """For a module that compiles the same program time and again: its executables are kept in files meanwhile."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(tmp_path_factory.mktemp("cache")), 0.2), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
