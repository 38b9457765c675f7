"""Every test runs in double precision, without a display; warnings are errors (pyproject.toml)."""

import gc
import os
import subprocess
import sys
import tempfile
import zlib

import jax
import numpy as np
import numpyro
import pytest

from tests.compiling import share_contexts

# Most tests compile for seconds and run for milliseconds: without XLA's optimisations they are ready in half the time.
# For those that run for long there is `tests.compiling.optimised`. The variable is for what tests start.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
jax.config.update("jax_disable_most_optimizations", True)
# XLA's older way to make code for CPUs is the quicker one, and a training step takes a fifth less where it does not
# split small programs over threads. A flag that it does not know ends the process: ask another.
_FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
_QUICKER = {**os.environ, "XLA_FLAGS": _FLAGS}
_TRIAL = [sys.executable, "-c", "import jax; jax.numpy.ones(1)"]
if "XLA_FLAGS" not in os.environ and not subprocess.run(_TRIAL, env=_QUICKER, capture_output=True).returncode:
    os.environ["XLA_FLAGS"] = _FLAGS
# Threads for XLA: on two cores its pool deadlocks for good in large batches of LAPACK calls, which a stock
# MultivariateNormal makes (see dpm_ppl/distributions.py).
os.environ.setdefault("NPROC", "4")
# Traces are millions of objects that live on: to look for cycles as often as usual takes a tenth of the time.
gc.set_threshold(200_000, 20, 20)
share_contexts()
# Which line of Python an instruction came from is a tenth of the time too, and nothing here reads it.
jax.config.update("jax_traceback_in_locations_limit", 0)
os.environ["MPLBACKEND"] = "Agg"  # also for the programs that tests start; NumPyro does not import matplotlib
numpyro.enable_x64()

# Programs are compiled once in a run, whichever test, process or command of it does so first: executables are kept in a
# folder of the run's own, or in the one that DPM_TEST_CACHE names, for the next run on the same machine too.
CACHE = "JAX_COMPILATION_CACHE_DIR"
_KEPT = pytest.StashKey[tempfile.TemporaryDirectory]()


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # workers, and what tests start, inherit the variable
        if "DPM_TEST_CACHE" in os.environ:
            os.environ[CACHE] = os.environ["DPM_TEST_CACHE"]
        else:
            config.stash[_KEPT] = tempfile.TemporaryDirectory(prefix="dpm-tests-")
            os.environ[CACHE] = config.stash[_KEPT].name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "1"
    jax.config.update("jax_compilation_cache_dir", os.environ[CACHE])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1)


def pytest_runtest_setup(item):
    """What needs real data is skipped where none are named: it may take minutes too."""
    if item.get_closest_marker("data") and not os.environ.get("DPM_DATA"):
        pytest.skip("DPM_DATA names no folder")


def pytest_unconfigure(config):
    if _KEPT in config.stash:
        config.stash[_KEPT].cleanup()


@pytest.fixture(autouse=True)
def _own_draws(request):
    """A module's generator starts anew with each test: what it draws does not depend on which tests ran before."""
    generator = getattr(request.module, "RNG", None)
    if isinstance(generator, np.random.Generator):
        seed = zlib.crc32(request.node.name.encode())
        generator.bit_generator.state = np.random.default_rng(seed).bit_generator.state
