"""How wide a command writes."""

import shutil


def width() -> int:
    """Characters in a line: those of the terminal, or 118 where there is none; 60 at least."""
    return max(60, shutil.get_terminal_size((118, 24)).columns)
