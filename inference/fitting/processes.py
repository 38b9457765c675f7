"""A fit of several processes: all must be of the same fit, one of them writes, and they end their chunks together.

Each has called `jax.distributed.initialize`, and the mesh has devices of all. What an iteration computes XLA keeps
together; what is decided on the host, by a clock or a signal, is told here to all.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import jax
import numpy as np

from dpm_ppl.inference.devices import Spread
from dpm_ppl.inference.fitting import runs

_STATUS = re.compile("[A-Z_]+: ")  # as XLA begins


class Together(Protocol):
    """Decides for all processes."""

    def __call__(self, length: int, *, save: bool) -> tuple[int, bool]:
        """Of how many iterations the next chunk is to have, and whether to save now, what all of them do."""


_CHUNKS = itertools.count(1)  # of all fits of this process, as JAX counts on from fit to fit

_LOST = re.compile(r"gloo|nccl|connection|coordination|heartbeat|unavailable|deadline", re.IGNORECASE)


def writes(spread: Spread) -> bool:
    """Whether this process writes files and shows progress: the first, of those that make a fit together."""
    return not spread.hosts or jax.process_index() == 0


def require_alike(spread: Spread, about: Callable[[], Mapping[str, Any]]) -> None:
    """Checks that what processes do together is the same in each; none goes on before all are here.

    Args:
        spread: The devices.
        about: What it is, in this process; JSON. Where there is no other, nobody asks.

    Raises:
        ValueError: it differs, in each process alike; what differs, and in which process.
        ConnectionError: another process failed before.
    """
    if not spread.hosts:
        return
    with _clear_of_losses(lambda: "Nothing was done yet."):
        first, *others = map(json.loads, _from_all(json.dumps(about()).encode()))
    for number, other in enumerate(others, 1):
        if found := runs.differences(other, first, "is {} there and {} in process 0"):
            raise ValueError(
                f"Expected the same fit in all {len(others) + 1} processes; process {number} has another: "
                f"{'; '.join(found)}. Start all of them with the same command, on the same files."
            )


def _from_all(content: bytes) -> list[bytes]:
    """Bytes of every process, in order."""
    from jax.experimental import multihost_utils

    lengths = np.ravel(multihost_utils.process_allgather(np.asarray(len(content))))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    rows = np.reshape(multihost_utils.process_allgather(padded), (len(lengths), -1))
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


@contextmanager
def together(spread: Spread, *, where: Callable[[], str]) -> Iterator[Together]:
    """What decides for all processes, once after each chunk, at the same iteration in each.

    Ctrl-C, in whichever process, then ends all of them there (a second one ends it at once), and so does SIGTERM, by
    which a cluster takes its machines back, where JAX's preemption service is on.

    Args:
        spread: The devices.
        where: Where to carry on from, in words.

    Raises:
        KeyboardInterrupt: a process was interrupted; from what is yielded.
        ConnectionError: another process does not answer any more; in place of what failed for it.
    """
    if not spread.hosts:
        yield _alone
        return
    from jax.experimental import multihost_utils

    with runs.uninterrupted(patience=1) as pending:

        def agreed(length: int, *, save: bool) -> tuple[int, bool]:
            votes = multihost_utils.process_allgather(np.asarray([length, save, bool(pending)], np.int32))
            chunk = next(_CHUNKS)
            taken_back = multihost_utils.reached_preemption_sync_point(chunk) if _preemption_service() else False
            if votes[:, 2].any() or taken_back:
                pending.clear()
                raise KeyboardInterrupt
            return int(votes[0, 0]), bool(votes[0, 1])

        with _clear_of_losses(where):
            yield agreed


@contextmanager
def _clear_of_losses(where: Callable[[], str]) -> Iterator[None]:
    """Says of what failed as another process was lost that it was lost, and `where` to carry on from."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        cause = error if error.__cause__ is None else error.__cause__  # of a checkpoint that was not saved
        of_jax = isinstance(cause, jax.errors.JaxRuntimeError) or _STATUS.match(str(cause))
        if not (of_jax and _LOST.search(str(cause))):
            raise
        raise ConnectionError(
            f"Expected all {jax.process_count()} processes to go on; process {jax.process_index()} lost another, "
            f"which was stopped or failed: see what that one says. {where()} ({cause})"
        ) from error


def _alone(length: int, *, save: bool) -> tuple[int, bool]:
    return length, save


def _preemption_service() -> bool:
    config: Any = jax.config
    return bool(config.jax_enable_preemption_service)
