"""The commands of `dpm`, one a file: `models`, `new`, `fit`, `sample`, `evaluate`, `posterior`, `table` and `check`.

`find` finds a program by name or path, `run` reads what a fit left behind, with the program's `copies` and what is
`held_out` of its data, and `pretrained` makes such a run of parameters that come with a program; `devices` says what it
computes on and `hosts` with which other processes, `errors` shows an error as one line, `files` says what may be
written, and `terminal` how wide; `images` is what a fit of images draws besides. Reports, and with them matplotlib, are
imported by the command that needs them. `dpm_command` is what the installed command begins with.
"""
