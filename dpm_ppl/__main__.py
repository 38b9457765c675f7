"""The command line, `dpm`: thin over the Python API. What is heavy is imported by the command that needs it."""

import os
import signal
import sys
from importlib import metadata
from typing import Annotated, Any

import typer

from dpm_ppl.commands.check import check
from dpm_ppl.commands.evaluate import evaluate
from dpm_ppl.commands.fit import fit
from dpm_ppl.commands.models import models
from dpm_ppl.commands.new import new
from dpm_ppl.commands.posterior import posterior
from dpm_ppl.commands.sample import sample
from dpm_ppl.commands.table import table

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Diffusion probabilistic models as NumPyro programs. MODEL: a name from `dpm models`, or a path to your file.",
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001, as Typer calls it
    if wanted:
        typer.echo(f"dpm_ppl {metadata.version('dpm_ppl')}")
        raise typer.Exit


_Version = Annotated[bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)]


@app.callback()
def _about(*, version: _Version = False) -> None:
    """What stands before a command."""


for command in (models, new, fit, sample, evaluate, posterior, table, check):
    app.command()(command)


INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main() -> None:
    """What `dpm` runs once all is imported: a command that Ctrl-C ended has the status 130, at whatever moment it came.

    It then ends at once: Python would wait for, and at times crash in, what XLA still compiles in its own threads.
    """
    came = False

    def interrupt(*at: Any) -> None:
        nonlocal came
        came = True
        signal.default_int_handler(*at)

    if callable(signal.getsignal(signal.SIGINT)):  # not where it is to be ignored
        signal.signal(signal.SIGINT, interrupt)
    try:
        app(prog_name="dpm")
    except BaseException as end:
        failed = not isinstance(end, SystemExit) or end.code not in (None, 0)
        if not (came and failed):
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
