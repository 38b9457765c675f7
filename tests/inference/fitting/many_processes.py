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

    read = {"batch_size": 24, "data": {"c": CONTEXT, "x0": Slow(DATA, seconds=0.3 if name == "slow" else 0.0)}}
    kept: dict[str, Any] = {**read, "run_dir": folder / "run", "checkpoint_every": 0.0, "resume": True}
    if name == "read":
        return read
    if name == "uneven":
        return {"batch_size": 13}
    if name in ("slow", "rest"):
        return kept
    if name == "other":
        return {
            **kept,
            "num_iterations": 50 + process,
            **({"callback": print} if process else {}),
            "data": {"c": CONTEXT[: 60 - process], "x0": DATA[: 60 - process]},
        }
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
        options = case_of(case, folder, process)
        done = fitted(**options)
    except (Exception, KeyboardInterrupt) as error:
        (folder / f"{case}-{process}.json").write_text(json.dumps([type(error).__name__, str(error)]))
        sys.stdout.flush()
        os._exit(3)  # JAX itself waits at the end for those that are lost
    kept: Any = {"losses": done.losses, "validation": done.validation, **done.params}
    if case == "read":
        kept["asked"] = np.asarray(options["data"]["x0"].asked[-50:])  # after the first batch, of which all look at all
    kept = {name: np.asarray(value) for name, value in kept.items()}
    np.savez(folder / f"{case}-{process}.npz", **kept)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
