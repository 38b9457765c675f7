"""Progress bars: as wide as a terminal, and quiet in a file."""

import sys
from typing import Any


def bar_options(*, progress: bool = True) -> dict[str, Any]:
    """Options of a `tqdm` bar: as wide as a terminal, and to a file a line every 10 s at most.

    Args:
        progress: Whether there is one.
    """
    terminal = sys.stderr.isatty()
    return {"disable": not progress, "dynamic_ncols": terminal, "mininterval": 0.1 if terminal else 10.0}
