"""A command that several processes run together, on one host or on several: how they find each other."""

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import jax
import typer

AUTO = "auto"

_SECONDS = 300.0

_SILENT = 30  # seconds after which a process that says nothing is lost

Coordinator = Annotated[
    str | None,
    typer.Option(
        help=f"Where several processes meet: HOST:PORT of the first, the same for all; `{AUTO}` under Slurm, MPI or on "
        "TPUs, which say so themselves.",
        envvar="JAX_COORDINATOR_ADDRESS",
        metavar="HOST:PORT",
    ),
]
NumProcesses = Annotated[int | None, typer.Option(min=1, help="How many there are.", envvar="JAX_NUM_PROCESSES")]
ProcessId = Annotated[int | None, typer.Option(min=0, help="Which of them this is, from 0.", envvar="JAX_PROCESS_ID")]


@contextmanager
def together(
    coordinator: str | None, num_processes: int | None, process_id: int | None, *, seconds: float = _SECONDS
) -> Iterator[bool]:
    """Meets the other processes of a command, if there are any; yields whether this is the first, which speaks for all.

    A command that fails ends at once, without waiting for the others as JAX would: they may be lost.

    Args:
        coordinator: Where they meet, HOST:PORT; None for a process alone, `auto` to have JAX ask the cluster.
        num_processes: How many there are.
        process_id: Which of them this is.
        seconds: How long to wait for them.

    Raises:
        ValueError: a number is missing, or out of range, or the address is none.
        TimeoutError: the coordinator does not answer.
    """
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise ValueError(
                "Expected --coordinator HOST:PORT beside --num-processes and --process-id, where the processes meet; "
                "got none."
            )
        yield True
        return
    with _patience(seconds):
        if coordinator == AUTO:
            jax.distributed.initialize(initialization_timeout=int(seconds), heartbeat_timeout_seconds=_SILENT)
        else:
            number, process = _require_place(coordinator, num_processes, process_id)
            if process:
                _require_answer(coordinator, seconds)
            jax.distributed.initialize(
                coordinator,
                number,
                process,
                initialization_timeout=2 * int(seconds) + 1,  # after which JAX ends the process in words of its own
                heartbeat_timeout_seconds=_SILENT,
            )
    try:
        yield jax.process_index() == 0
    except typer.Exit as end:
        _end_now(end.exit_code)
    except BaseException:  # a program's own error
        traceback.print_exc()
        _end_now(1)


def part() -> None:
    """The processes part, once what they do together is done; each has its own devices still."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def _require_place(coordinator: str, num_processes: int | None, process_id: int | None) -> tuple[int, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"Expected --coordinator as HOST:PORT, such as 10.0.0.1:1234, or `{AUTO}`; got {coordinator}.")
    if num_processes is None or process_id is None:
        raise ValueError(
            "Expected --num-processes and --process-id beside --coordinator, or the variables JAX_NUM_PROCESSES and "
            f"JAX_PROCESS_ID; got {num_processes} and {process_id}."
        )
    if process_id >= num_processes:
        raise ValueError(
            f"Expected --process-id from 0 to {num_processes - 1}, as there are {num_processes} processes; got "
            f"{process_id}."
        )
    return num_processes, process_id


def _require_answer(coordinator: str, seconds: float) -> None:
    """Waits until the first process is there: JAX, which waits as well, would end this one without a clear error."""
    host, _, port = coordinator.rpartition(":")
    end = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=max(0.1, end - time.monotonic())):
                return
        except OSError as error:
            if time.monotonic() + 0.2 >= end:
                raise TimeoutError(
                    f"Expected the first process to answer at {coordinator}; it did not within {seconds:g} s "
                    f"({error}). Is it started, with the same --coordinator, and can its port be reached from here?"
                ) from error
            time.sleep(0.2)


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Ends this process with a clear error where the others do not come: JAX can't be called off while it waits."""

    def give_up() -> None:
        typer.echo(
            f"Error: Expected all processes to come together; some did not within {seconds:g} s. Is each started, with "
            "the same --coordinator and --num-processes, and a --process-id of its own?",
            err=True,
        )
        _end_now(1)

    timer = threading.Timer(seconds + 1, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end_now(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
