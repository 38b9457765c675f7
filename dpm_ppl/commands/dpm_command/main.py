"""The command `dpm`, from its first moment: Ctrl-C is heard before all else is imported, which takes seconds."""

import os
import signal
from typing import Any


def main() -> None:
    """What the installed command runs: `dpm_ppl.__main__.main`, which hears Ctrl-C itself from then on."""
    if callable(signal.getsignal(signal.SIGINT)):  # not where it is to be ignored
        signal.signal(signal.SIGINT, _end)
    from dpm_ppl.__main__ import main

    main()


def _end(*at: Any) -> None:
    """Ends at once, with nothing to save: as an exception, some imports would take it for a failure of their own."""
    os.write(2, b"Interrupted.\n")
    os._exit(128 + signal.SIGINT)
