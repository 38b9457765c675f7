"""`dpm sample`."""

from pathlib import Path
from typing import Annotated

import typer

from dpm_ppl.commands.errors import clear_errors
from dpm_ppl.commands.fingerprint import fingerprint


def sample(
    *,
    run_dir: Annotated[Path, typer.Argument(help="Directory of a fit.", metavar="DIR")],
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=1, help="How many.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
) -> None:
    """Draw exact ancestral samples from a fit: samples.npz (x0) and samples.png in its directory."""
    import jax
    import numpy as np

    from dpm_ppl import metrics, plots, programs
    from dpm_ppl.commands.draws import draws
    from dpm_ppl.commands.parameters import load_fitted
    from dpm_ppl.inference.whole_file import write_whole

    with clear_errors():
        program = programs.load(fingerprint(run_dir)["model"])
        data = program.data()
        params = load_fitted(run_dir, program, data)
        key, data_key = jax.random.split(jax.random.key(seed))
        x0 = draws(program, params, key=key, num_samples=num_samples)
        write_whole(run_dir / "samples.npz", lambda file: np.savez(file, x0=x0))
        shown = metrics.fresh_data(data, key=data_key, num_data=min(len(x0), 3000))
        support = metrics.support(data, x0)
        figure = plots.samples_figure(x0, support=support, data=data, x0=shown, title=program.path.stem)
        write_whole(run_dir / "samples.png", lambda file: figure.savefig(file, format="png", dpi=120))
        typer.echo(f"{len(x0):,} samples of shape {x0.shape[1:]}: {run_dir / 'samples.npz'}, {run_dir / 'samples.png'}")
