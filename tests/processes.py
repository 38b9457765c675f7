"""Processes of their own, as tests start them: what they find, and where they meet."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import dpm_ppl

ROOT = Path(dpm_ppl.__file__).parents[1]


def environment(**variables: str) -> dict[str, str]:
    """That of this process, with the package in it."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **variables}


def on_eight_devices(script: str, *args: object) -> None:
    """Runs a script to its end where JAX sees eight devices; warnings are errors there too."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    command = [sys.executable, "-W", "error", script, *map(str, args)]
    subprocess.run(command, env=environment(XLA_FLAGS=flags), check=True, timeout=900)


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
