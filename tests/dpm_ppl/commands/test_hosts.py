"""Several processes of `dpm fit`: they make the run that one makes; those that do not meet say so in time."""

import json
import subprocess
import sys
import time

import jax
import pytest

from dpm_ppl.commands.hosts import part, together
from tests.command_line import dpm
from tests.processes import environment, free_port


def start(*args, **variables):
    """`dpm` in a process of its own."""
    command = [sys.executable, "-m", "dpm_ppl", *map(str, args)]
    found = environment(JAX_ENABLE_X64="1", **variables)
    return subprocess.Popen(command, env=found, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_make_the_run_of_one(mine, run, tmp_path):
    """One is told by options what the other is told by the usual variables."""
    address, fit = f"127.0.0.1:{free_port()}", ["fit", mine, "--run-dir", tmp_path / "run", "--seed", 4]
    variables = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    started = [
        start(*fit, "--coordinator", address, "--num-processes", 2, "--process-id", 0),
        start(*fit, **variables),
    ]
    said = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    ours, alone = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "run", run[0]))
    assert ours.keys() == alone.keys()
    for name, value in alone.items():
        if name != "seconds":
            assert ours[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), name
    assert "metrics.json" in said[0][0]
    assert [line for line in said[1][0].splitlines() if "[Gloo]" not in line] == []  # the first speaks for all
    assert (tmp_path / "run" / "figure.png").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["num_devices"] == 2


def test_a_coordinator_that_does_not_answer():
    begun = time.monotonic()
    with (
        pytest.raises(TimeoutError, match=r"to answer at 127.0.0.1:\d+; it did not within 0.5 s .*same --coordinator"),
        together(f"127.0.0.1:{free_port()}", 2, 1, seconds=0.5),
    ):
        pass
    assert time.monotonic() - begun < 5
    assert not jax.distributed.is_initialized()


def run_python(code):
    command = [sys.executable, "-c", f"from dpm_ppl.commands.hosts import together\n{code}"]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)


def test_processes_that_do_not_come():
    """In a process of its own, which it ends."""
    done = run_python(f"with together('127.0.0.1:{free_port()}', 2, 0, seconds=2): print('went on')")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip().startswith("Error: Expected all processes to come together; some did not within 2 s.")


def test_a_program_that_fails_ends_its_process_at_once():
    """With what it says, and nothing that Python does at an end, where JAX waits for the others."""
    done = run_python(
        "import atexit\natexit.register(print, 'waited')\n"
        f"with together('127.0.0.1:{free_port()}', 1, 0): raise KeyError('of a program')"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip().endswith("KeyError: 'of a program'")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-processes", 2], "Expected --coordinator HOST:PORT beside --num-processes and --process-id"),
        (["--coordinator", "here"], "HOST:PORT, such as 10.0.0.1:1234, or `auto`; got here."),
        (["--coordinator", "h:1", "--num-processes", 2], "Expected --num-processes and --process-id beside"),
        (["--coordinator", "h:1", "--num-processes", 2, "--process-id", 2], "--process-id from 0 to 1, as there are 2"),
    ],
)
def test_places_that_are_none(options, message, tmp_path):
    done = dpm("fit", "swiss_roll", "--run-dir", tmp_path / "run", *options)
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_process_alone_meets_and_leaves_no_one():
    with together(None, None, None) as first:
        assert first
    part()
    assert not jax.distributed.is_initialized()
