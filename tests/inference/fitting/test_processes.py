"""A fit of two processes on one host: the numbers of one, rows of its own alone, and what follows when one goes."""

import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dpm_ppl.inference import read_run
from dpm_ppl.inference.devices import ALONE
from dpm_ppl.inference.fitting import processes, runs
from tests.inference.fitting import many_processes
from tests.inference.many_devices import fitted
from tests.processes import environment, free_port


def start(folder, case):
    """Two processes of a case."""
    port = free_port()
    command = [sys.executable, many_processes.__file__, str(folder), case]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return [subprocess.Popen([*command, str(i), "2", str(port)], env=environment(), **quiet) for i in (0, 1)]


def ended(started, *, timeout=180.0):
    """Their status, once both have ended."""
    try:
        return [process.wait(timeout) for process in started]
    finally:
        for process in started:
            process.kill()


def arrays(folder, case, process):
    with np.load(folder / f"{case}-{process}.npz") as kept:
        return dict(kept)


def error(folder, case, process):
    return json.loads((folder / f"{case}-{process}.json").read_text())


def at_least(folder, position):
    """Waits for a checkpoint after so many iterations."""
    end = time.monotonic() + 120
    while runs.newest_position(folder / "run") < position:
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """A fit of both, from the beginning to the end."""
    folder = tmp_path_factory.mktemp("read")
    assert ended(start(folder, "read")) == [0, 0]
    return [arrays(folder, "read", process) for process in (0, 1)]


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """One that was interrupted in its second process, carried on, and lost that."""
    folder = tmp_path_factory.mktemp("cut")
    started = start(folder, "slow")
    at_least(folder, 3)
    started[1].send_signal(signal.SIGINT)
    status = ended(started)
    interrupted = [error(folder, "slow", process) for process in (0, 1)]
    position = runs.newest_position(folder / "run")
    started = start(folder, "slow")
    at_least(folder, position + 3)
    started[1].kill()
    killed = time.monotonic()
    status += ended(started)
    return folder, status, interrupted, position, error(folder, "slow", 0), time.monotonic() - killed


def test_a_fit_of_two_is_that_of_one(read):
    alone = fitted(batch_size=24)
    for name, value in {"losses": alone.losses, "validation": alone.validation, **alone.params}.items():
        np.testing.assert_array_equal(read[0][name], read[1][name])  # each has all of it
        np.testing.assert_allclose(read[0][name], value, rtol=1e-11, atol=1e-11, err_msg=name)


def test_each_reads_its_own_rows(read):
    mine, others = (kept["asked"] for kept in read)
    assert mine.shape == others.shape == (50, 12)
    for one, other in zip(mine, others, strict=True):
        assert len({*one, *other}) == 24


def test_ctrl_c_in_one_ends_both_after_the_same_iteration(cut):
    folder, status, interrupted, position, *_ = cut
    assert status[:2] == [3, 3]
    assert interrupted[0] == interrupted[1]
    assert interrupted[0][0] == "KeyboardInterrupt"
    assert f"Interrupted after {position} of 50 iterations." in interrupted[0][1]
    assert f"continues from {runs.folder(folder / 'run', position)}" in interrupted[0][1]


def test_where_one_is_killed_the_other_says_so_and_stops(cut):
    _, status, _, position, (kind, message), seconds = cut
    assert status[2:] == [3, -signal.SIGKILL]
    assert kind == "ConnectionError"
    assert message.startswith("Expected all 2 processes to go on; process 0 lost another, which was stopped or failed")
    assert "resume=True continues from" in message
    assert seconds < 60
    assert runs.newest_position(cut[0] / "run") >= position + 3


def test_it_is_finished_by_one_or_by_two_as_if_nothing_had_been(cut, read, tmp_path):
    shutil.copytree(cut[0] / "run", tmp_path / "run")
    alone = fitted(**many_processes.case_of("rest", tmp_path, 0))
    assert ended(start(cut[0], "rest")) == [0, 0]
    by_two = arrays(cut[0], "rest", 0)
    for name in ("losses", "gain", "shift", "slope"):
        np.testing.assert_array_equal(by_two[name], read[0][name], err_msg=name)
        one = alone.losses if name == "losses" else alone.params[name]
        np.testing.assert_allclose(one, read[0][name], rtol=1e-11, atol=1e-11, err_msg=name)
    assert read_run(cut[0] / "run")["num_devices"] == 2
    lines = (cut[0] / "run" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines].count("50") == 1  # one of them wrote


def test_processes_that_disagree_say_what_differs_and_where(tmp_path):
    assert ended(start(tmp_path, "other")) == [3, 3]
    ours, theirs = (error(tmp_path, "other", process) for process in (0, 1))
    assert ours == theirs
    assert ours[0] == "ValueError"
    assert "Expected the same fit in all 2 processes; process 1 has another: data is" in ours[1]
    assert "float64[59, 1]" in ours[1]
    assert "num_iterations is 51 there and 50 in process 0" in ours[1]
    assert "callback is true there and false in process 0" in ours[1]
    assert not (tmp_path / "run" / "run.json").exists()


def test_an_error_of_a_source_is_told_as_it_is():
    for error in (OSError("Connection reset by peer"), RuntimeError("deadline of the store passed")):
        with pytest.raises(type(error)) as caught, processes._clear_of_losses(str):
            raise error
        assert caught.value is error
    with pytest.raises(ConnectionError, match="lost another"), processes._clear_of_losses(str):
        raise ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")


def test_one_process_agrees_with_itself():
    assert processes.writes(ALONE)
    processes.require_alike(ALONE, lambda: pytest.fail("asked, though there is no other"))
    with processes.together(ALONE, where=str) as together:
        assert together(7, save=True) == (7, True)
        assert together(8, save=False) == (8, False)
    assert jax.process_count() == 1
