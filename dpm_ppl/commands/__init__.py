"""The commands of `dpm`, one a file; each imports what is heavy when it runs.

`find` finds a program by name or path, `run` reads what a fit left behind, `errors` shows an error as one line.
"""
