"""Files written whole or not at all."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file beside its place, to disk, and only then puts it there.

    Args:
        path: Where the file is to be.
        write: Writes its content to an open file.

    Raises:
        OSError: it cannot be written; a file that was there is as it was, and no part of the new one stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON that people can read, whole or not at all; errors are those of `write_whole`."""
    write_whole(path, lambda file: file.write((json.dumps(value, indent=2) + "\n").encode()))
