"""The command line, `dpm`: thin over the Python API. What is heavy is imported by the command that needs it."""

import sys

import typer

from dpm_ppl.commands.check import check
from dpm_ppl.commands.evaluate import evaluate
from dpm_ppl.commands.fit import fit
from dpm_ppl.commands.models import models
from dpm_ppl.commands.posterior import posterior
from dpm_ppl.commands.sample import sample

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Diffusion probabilistic models as NumPyro programs. MODEL: a name from `dpm models`, or a path to your file.",
)
for command in (models, fit, sample, evaluate, posterior, check):
    app.command()(command)

if __name__ == "__main__":
    sys.exit(app(prog_name="dpm"))
