"""A process of a fit of several, as each of them is started: it writes what it has of it in the end, or its error.

Usage: python tests/inference/fitting/many_processes.py FOLDER CASE PROCESS NUM_PROCESSES PORT.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np


class Slow:
    """Data that are read one batch after another, slowly; it notes which rows it was asked for."""

    def __init__(self, data: np.ndarray, *, seconds: float) -> None:
        self.data, self.seconds, self.asked = data, seconds, list[list[int]]()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, rows: Any) -> np.ndarray:
        time.sleep(self.seconds)
        self.asked.append(np.asarray(rows).tolist())
        return self.data[rows]


def case_of(name: str, folder: Path, process: int) -> dict[str, Any]:
    """Options of the fit."""
    from tests.inference.many_devices import CONTEXT, DATA

    beside: dict[str, Any] = {"batch_size": 24, "run_dir": folder / "run", "checkpoint_every": 0.0}
    if name == "plain":
        return beside
    if name == "read":
        return {**beside, "data": {"c": CONTEXT, "x0": Slow(DATA, seconds=0.0)}, "run_dir": None}
    if name == "uneven":
        return {**beside, "batch_size": 13, "run_dir": None}
    if name == "half":
        return {**beside, "num_iterations": 25}
    if name == "rest":
        return {**beside, "resume": True}
    if name == "slow":
        return {**beside, "data": {"c": CONTEXT, "x0": Slow(DATA, seconds=0.3)}, "num_iterations": 500}
    if name == "other_data":
        num_data = 64 - 4 * process
        return {**beside, "data": {"c": CONTEXT[:num_data], "x0": DATA[:num_data]}}
    if name == "no_file":
        return {**beside, "data": {"c": CONTEXT, "x0": DATA[: 64 - 4 * process]}}
    raise ValueError(name)


def main(folder: Path, case: str, process: int, num_processes: int, port: int) -> None:
    """Runs it."""
    if num_processes > 1:
        jax.distributed.initialize(
            f"127.0.0.1:{port}",
            num_processes,
            process,
            initialization_timeout=60,
            heartbeat_timeout_seconds=20,
            shutdown_timeout_seconds=20,
        )
    from tests.inference.many_devices import fitted  # it makes arrays, which ends the time to meet the others

    try:
        case_options = case_of(case, folder, process)
        done = fitted(**case_options)
    except (Exception, KeyboardInterrupt) as error:
        (folder / f"{case}-{process}.json").write_text(json.dumps([type(error).__name__, str(error)]))
        sys.stdout.flush()
        os._exit(3)  # JAX itself waits at the end for those that are lost
    kept: Any = {"losses": done.losses, "validation": done.validation, **done.params}
    asked = getattr(case_options.get("data", {}).get("x0"), "asked", None)
    if asked is not None:
        kept["asked"] = np.asarray(asked[1:])  # after the first batch, of which all look at all
    np.savez(folder / f"{case}-{process}.npz", **{name: np.asarray(value) for name, value in kept.items()})


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
