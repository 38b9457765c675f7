"""Files are written whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_no_half_file(likelihood, tmp_path, monkeypatch, there, failure):
    path = tmp_path / "likelihood.nc"
    if there:
        path.write_bytes(b"of before")
    beside = []

    def fail(_):
        beside.extend(file.name for file in tmp_path.iterdir() if file != path)
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(failure), match=r"Expected to write .*No space left" if failure.args else None):
        likelihood.save(path)
    assert len(beside) == 1  # beside, so that renaming it is atomic
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == ({path.name: b"of before"} if there else {})


def environment() -> dict[str, str]:
    """So that a program finds the package where it is not installed."""
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}


@pytest.mark.parametrize("room", [500, 200_000])
def test_a_full_disk_is_told_and_leaves_no_half_file(tmp_path, room):
    pytest.importorskip("resource")
    program = f"""
import resource, signal, sys
import numpy as np
from dpm_ppl.inference.likelihoods.likelihood import Likelihood
from dpm_ppl.inference.likelihoods.likelihood import Likelihood
noise = np.random.default_rng(0).normal(size=(1000, 300))
likelihood = Likelihood(noise, np.zeros(4))
likelihood.khat
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, resource.RLIM_INFINITY))
try:
    likelihood.save({str(tmp_path / "likelihood.nc")!r})
except OSError as error:
    print("told:", error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
    assert done.stdout.startswith("told: Expected to write"), done.stderr
    assert list(tmp_path.iterdir()) == []
