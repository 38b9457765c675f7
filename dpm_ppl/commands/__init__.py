"""The commands of `dpm`, one a file: `models`, `fit`, `sample`, `evaluate`, `posterior` and `check`.

`find` finds a program by name or path, `run` reads what a fit left behind, `errors` shows an error as one line,
`figures` saves what is drawn.
Reports, and with them matplotlib, are imported by the command that needs them.
"""
