"""What `dpm` says of itself, and the package."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dpm_ppl
from tests.command_line import dpm

ROOT = Path(__file__).parents[2]


def test_version_and_short_help():
    assert dpm("--version").stdout == f"dpm_ppl {dpm_ppl.__version__}\n"
    done = dpm("-h")
    assert done.exit_code == 0
    for command in ("models", "new", "fit", "sample", "evaluate", "posterior", "check"):
        assert f" {command} " in done.stdout
    assert dpm("fit", "-h").exit_code == 0


def test_the_package_names_all_that_it_has():
    assert all(hasattr(dpm_ppl, name) for name in dpm_ppl.__all__)
    for name in dpm_ppl.__all__:
        if name not in ("divergences", "inference"):
            assert f"`{name}" in dpm_ppl.__doc__, name


ENDED = """
import sys, threading, time, typer
from dpm_ppl import __main__

def command(prog_name):
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        {ending}

{beside}
__main__.app = command
__main__.main()
"""


BESIDE = "threading.Thread(target=time.sleep, args=(60,)).start()  # Python would wait for it"


@pytest.mark.parametrize(
    ("ending", "status"),
    [("raise typer.Exit(130)", 130), ("sys.exit(1)", 130), ("raise", 130), ("raise ValueError", 130)],
)
def test_a_command_that_is_interrupted_ends_at_once_with_130(ending, status):
    """However it ends, and whatever runs on in other threads."""
    given = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", ENDED.format(ending=ending, beside=BESIDE)], **given) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == status


def test_a_command_that_went_on_after_an_interrupt_ended_well():
    written = ENDED.format(ending="print('went on', flush=True); sys.exit(0)", beside="")
    given = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", written], **given) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[0] == b"went on\n"
    assert process.returncode == 0
