"""The commands of `dpm`, one a file: `models`, `new`, `fit`, `sample`, `evaluate`, `posterior` and `check`.

`find` finds a program by name or path, `run` reads what a fit left behind, with the program's `copies` and what is
`held_out` of its data; `errors` shows an error as one line, and `files` says where they may be written.
Reports, and with them matplotlib, are imported by the command that needs them.
"""
