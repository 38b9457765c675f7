"""What every benchmark prints: the machine and versions first, its figures as one JSON object on the last line."""

import json
import os
import platform
from importlib.metadata import version
from typing import Any

import jax


def describe() -> str:
    """One line: devices, cores, Python and the versions that matter."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "numpyro", "equinox", "numpy"))
    devices = ", ".join(f"{device.platform} {device.device_kind}" for device in jax.devices())
    return f"{platform.machine()}, {os.cpu_count()} cores, {devices}; Python {platform.python_version()}, {packages}"


def report(figures: dict[str, Any]) -> None:
    """Prints the figures as one JSON object on a line of its own, the last."""
    print(json.dumps(figures))
