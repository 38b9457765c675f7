"""The installed command, interrupted before it is there."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]

# As an installer writes it.
SCRIPT = """
import sys
print("begun", flush=True)
from {module} import {function}
sys.exit({function}())
"""


def begun(*args, prelude=""):
    module, function = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["dpm"].split(":")
    script = prelude + SCRIPT.format(module=module, function=function)
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    path = f"{ROOT}{os.pathsep}{ROOT / 'dpm_ppl' / 'commands'}"  # where it lies, installed or not
    command = [sys.executable, "-c", script, *args]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, text=True, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.6, 1.2])
def test_ctrl_c_while_it_imports_ends_in_one_line(seconds):
    """Where a fast machine has imported all by then, the command itself is interrupted, as it fits."""
    with begun("fit", "swiss_roll", "--iterations", "0") as process:
        time.sleep(seconds)
        if process.poll() is not None:
            pytest.skip("the command had ended by then")
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert (process.returncode, said) == (130, "Interrupted.\n")


def test_an_import_that_survives_its_interruption():
    """Such as of a package that is tried, and done without where it fails in whatever way."""
    swallowed = """
import builtins, os, signal
real = builtins.__import__
def interrupted(name, *args):
    if name == "numpyro":
        builtins.__import__ = real
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except BaseException:
            pass
    return real(name, *args)
builtins.__import__ = interrupted
"""
    with begun("--version", prelude=swallowed) as process:
        said = process.communicate(timeout=60)
    assert (process.returncode, *said) == (130, "", "Interrupted.\n")


def test_where_ctrl_c_is_to_be_ignored_it_is():
    """As in a script's background job."""
    with begun("--version", prelude="import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n") as process:
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert said[0].startswith("dpm_ppl ")


def test_the_command_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    package, module = settings["project"]["scripts"]["dpm"].split(":")[0].split(".")
    assert package in settings["tool"]["setuptools"]["packages"]
    assert (ROOT / settings["tool"]["setuptools"]["package-dir"][package] / f"{module}.py").exists()
