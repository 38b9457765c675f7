"""Which errors of a command are shown as one line."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer


@contextmanager
def clear_errors() -> Iterator[None]:
    """Shows an error that this package raised as one line; one from inside a program keeps its traceback."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("\nInterrupted.", err=True)
        raise typer.Exit(130) from None
    except typer.Exit:
        raise
    except Exception as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        ours = Path(raised_in).is_relative_to(Path(__file__).parents[1])
        if not ours and not isinstance(error, OSError):
            raise
        # The Python API's names of two options, as the command line calls them.
        message = str(error).replace("resume=True", "--resume").replace("`run_dir`", "--run-dir")
        typer.echo(f"Error: {' '.join(message.split())}", err=True)
        raise typer.Exit(1) from None
