"""Which program a run directory is of."""

import os
from pathlib import Path
from typing import Any


def fingerprint(run_dir: Path) -> dict[str, Any]:
    """What `dpm fit` noted of a run, in a directory that can be written, or a clear error."""
    from dpm_ppl.inference import read_run

    noted = read_run(run_dir)["settings"].get("fingerprint") or {}
    if not isinstance(noted.get("model"), str):
        raise ValueError(f"Expected the run in {run_dir} to be one of `dpm fit`, which notes its model; it has none.")
    if not os.access(run_dir, os.W_OK):
        raise PermissionError(f"Expected to write into {run_dir}; it is read-only. Copy it to where you may write.")
    return dict(noted)
