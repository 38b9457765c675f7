"""The directory of a run: whose it is, and whether it can be written, told before any work."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpm_ppl.inference.whole_file import write_json

FILE = "run.json"
CHECKPOINTS = "checkpoints"
_PROBE_BYTES = 1 << 20


def open_run(run_dir: str | Path, *, resume: bool) -> Path:
    """Makes the directory of a run if there is none, and checks that it is free, or to be resumed, and can be written.

    Args:
        run_dir: The directory.
        resume: Whether a run that is there is to be continued.

    Returns:
        Its path.

    Raises:
        TypeError: run_dir is no path.
        FileExistsError: it holds a run, and resume is False.
        OSError: it cannot be written, or its disk is full.
    """
    if not isinstance(run_dir, str | os.PathLike):
        raise TypeError(f"Expected `run_dir` to be a path; got {type(run_dir).__name__}.")
    path = Path(run_dir)
    if not resume and any((path / name).exists() for name in (FILE, CHECKPOINTS)):
        raise FileExistsError(
            f"Expected `run_dir` without a run; {path} holds one. resume=True continues it; another directory starts "
            "afresh."
        )
    probe = path / f".probe-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        try:
            with probe.open("wb") as file:
                file.write(bytes(_PROBE_BYTES))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"Expected `run_dir` to be a directory that can be written, with room for checkpoints; {path} is not: "
            f"{error}."
        ) from error
    return path


def check_same(path: Path, settings: Mapping[str, Any]) -> None:
    """Checks that a directory holds no run, or one of these settings.

    Args:
        path: The directory.
        settings: What a run must keep to be continued exactly; JSON.

    Raises:
        ValueError: it holds a run of other settings, or its `run.json` is missing or damaged.
    """
    if not (path / FILE).exists():
        if (path / CHECKPOINTS).exists():
            raise ValueError(f"Expected {FILE} beside the checkpoints in {path}; it is missing. Use another `run_dir`.")
        return
    there, here = _flat(read_run(path)["settings"]), _flat(json.loads(json.dumps(settings)))
    differences = [
        f"{name} was {there.get(name, 'not there')} and is now {here.get(name, 'not there')}"
        for name in dict.fromkeys([*here, *there])
        if here.get(name) != there.get(name)
    ]
    if differences:
        raise ValueError(
            f"Expected the run that {path} holds, to continue it; this one differs: {'; '.join(differences)}. "
            "Give back what it was, or use another `run_dir`."
        )


def write_run(path: Path, settings: Mapping[str, Any], *, information: Mapping[str, Any]) -> None:
    """Writes `run.json`, all of it or nothing.

    Args:
        path: The directory.
        settings: What a run must keep to be continued exactly; JSON.
        information: What it may change; JSON.

    Raises:
        OSError: it cannot be written.
    """
    write_json(path / FILE, {"settings": settings, **information})


def read_run(run_dir: str | Path) -> dict[str, Any]:
    """What `run.json` says of a run: its `settings`, the caller's `fingerprint` among them, and `num_iterations`.

    Raises:
        FileNotFoundError: the directory holds no run.
        ValueError: the file is damaged.
    """
    path = Path(run_dir) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"Expected the directory of a fit, with {FILE}; there is none in {Path(run_dir)}.")
    try:
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        run["settings"].keys(), run["num_iterations"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"Expected a readable {path}; it is damaged ({error}).") from error
    return run


def _flat(settings: Mapping[str, Any], *, above: str = "") -> dict[str, str]:
    """Settings by their whole name, such as `fingerprint.seed`, as JSON."""
    flat = {}
    for name, value in settings.items():
        flat.update(
            _flat(value, above=f"{above}{name}.") if isinstance(value, dict) else {above + name: json.dumps(value)}
        )
    return flat
