"""What a fit writes down as it goes: `metrics.csv`, a line a second at most, and one at each validation."""

import csv
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from dpm_ppl.inference.records import write_bytes

FILE = "metrics.csv"

_SECONDS = 1.0


@dataclass(frozen=True)
class Line:
    """A line; what is not known is NaN, and an empty field.

    Args:
        iteration: Number of iterations done.
        seconds: Time that they took, over all sessions.
        bound_bits: What is fitted, averaged over the iterations since the line before, in bits per datum.
        validation_bits: The same of the averaged parameters on the validation data.
        gradient_norm: Norm of the last gradient per datum, before it is clipped.
        learning_rate: Rate of the last iteration.
    """

    iteration: int
    seconds: float
    bound_bits: float
    validation_bits: float
    gradient_norm: float
    learning_rate: float


class Metrics:
    """The file of a run, continued: lines of a session that died, later than its last checkpoint, are dropped.

    Args:
        run_dir: Directory of the run.
        position: Number of iterations done.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, run_dir: Path, position: int) -> None:
        self._path = run_dir / FILE
        kept = [line for line in _read(self._path) if int(line[0]) <= position]
        self.newest = int(kept[-1][0]) if kept else 0
        self._written = time.perf_counter()
        names = [field.name for field in fields(Line)]
        with self._told():
            write_bytes(self._path, "".join(map(_joined, [names, *kept])).encode())

    def due(self) -> bool:
        """Whether it is time for a line."""
        return time.perf_counter() - self._written >= _SECONDS

    def add(self, line: Line) -> None:
        """Adds a line; OSError where that fails."""
        values = ["" if math.isnan(value) else f"{value:.8g}" for value in astuple(line)]
        with self._told(), self._path.open("a", encoding="utf-8") as file:
            file.write(_joined(values))
        self.newest, self._written = line.iteration, time.perf_counter()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"Expected to write {self._path}; got {error}. Checkpoints are kept: make room, and continue with "
                "resume=True."
            ) from error


def _read(path: Path) -> list[list[str]]:
    """The whole lines of a file, without its head; none where there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    return [line for line in lines[1:] if len(line) == len(fields(Line)) and line[0].isdigit()]


def _joined(values: Iterable[str]) -> str:
    return ",".join(values) + "\n"
