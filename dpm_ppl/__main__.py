"""The command line, `dpm`: thin over the Python API. What is heavy is imported by the command that needs it."""

import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dpm_ppl.programs import Program

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Diffusion probabilistic models as NumPyro programs. MODEL: a name from `dpm models`, or a path to your file.",
)


@app.command()
def models() -> None:
    """List the programs that come with the package."""
    from dpm_ppl import programs

    with _clear_errors():
        summaries = programs.known()
        width = max(map(len, summaries), default=0)
        for name, summary in summaries.items():
            typer.echo(f"{name:<{width}}  {summary}")


@app.command()
def fit(
    *,
    model: Annotated[str, typer.Argument(help="Name of a program, or path to a .py file.", metavar="MODEL")],
    iterations: Annotated[int | None, typer.Option(min=1, help="Iterations of SVI; by default the recipe's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    run_dir: Annotated[Path | None, typer.Option(help="Where the run goes; by default runs/MODEL.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Carry on from the last checkpoint.")] = False,
) -> None:
    """Fit a program by SVI; then write metrics.json and figure.png, and print the bound."""
    import jax

    from dpm_ppl import programs
    from dpm_ppl.inference import fit as run

    with _clear_errors():
        program = programs.load(model)
        run_dir = run_dir or Path("runs") / program.path.stem
        key, evaluation_key = jax.random.split(jax.random.key(seed))
        data = program.data()
        recipe = _recipe(program, data, run)
        if iterations is not None:
            recipe["num_iterations"] = iterations
        noted = {"model": program.name, "seed": seed}
        programs_and_data = (program.model, program.guide, data)
        try:
            fitted = run(*programs_and_data, key=key, run_dir=run_dir, resume=resume, fingerprint=noted, **recipe)
            _report(program, data, fitted, run_dir=run_dir, seed=seed, key=evaluation_key)
        except KeyboardInterrupt:
            again = ["dpm", "fit", model, "--run-dir", str(run_dir), "--seed", str(seed), "--resume"]
            again += [] if iterations is None else ["--iterations", str(iterations)]
            typer.echo(f"\nInterrupted. To carry on: {shlex.join(again)}", err=True)
            raise typer.Exit(130) from None


@app.command()
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
    from dpm_ppl.inference import instantiate, load_params
    from dpm_ppl.inference.whole_file import write_whole

    with _clear_errors():
        program = programs.load(_fingerprint(run_dir)["model"])
        params = load_params(run_dir, program.diffusion)
        key, data_key = jax.random.split(jax.random.key(seed))
        x0 = np.concatenate(list(_blocks(program, params, key=key, num_samples=num_samples)))[:num_samples]
        write_whole(run_dir / "samples.npz", lambda file: np.savez(file, x0=x0))
        data = program.data()
        shown = metrics.fresh_data(data, key=data_key, num_data=min(len(x0), 3000))
        diffusion = instantiate(program.diffusion, params)
        figure = plots.samples_figure(x0, diffusion=diffusion, data=data, x0=shown, title=program.path.stem)
        write_whole(run_dir / "samples.png", lambda file: figure.savefig(file, format="png", dpi=120))
        typer.echo(f"{len(x0):,} samples of shape {x0.shape[1:]}: {run_dir / 'samples.npz'}, {run_dir / 'samples.png'}")


@app.command()
def evaluate(
    *,
    run_dir: Annotated[Path, typer.Argument(help="Directory of a fit.", metavar="DIR")],
    particles: Annotated[int, typer.Option(min=1, help="Trajectories of each datum.")] = 1000,
    num_data: Annotated[int | None, typer.Option(min=1, help="Data; by default what takes a minute or two.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
) -> None:
    """Estimate the likelihood of data, and say whether to trust it: likelihood.nc, evaluation.json, evaluation.png."""
    import time

    import jax

    from dpm_ppl import evaluation, metrics, programs
    from dpm_ppl.evaluation_plots import evaluation_figure
    from dpm_ppl.inference import (
        bound,
        dissipated_work,
        entropy_bounds,
        instantiate,
        load_params,
        log_likelihood,
        sandwich,
    )
    from dpm_ppl.inference.diagnostics import save
    from dpm_ppl.inference.whole_file import write_json, write_whole

    with _clear_errors():
        program = programs.load(_fingerprint(run_dir)["model"])
        params, data = load_params(run_dir, program.diffusion), program.data()
        diffusion, keys = instantiate(program.diffusion, params), jax.random.split(jax.random.key(seed), 5)
        if num_data is None:
            trajectories = metrics.affordable(diffusion, seconds=300, least=particles, most=10**9)
            num_data = max(10, min(500, trajectories // particles))
        started = time.monotonic()
        given: dict[str, Any] = {"params": params, "num_particles": particles}
        x0 = metrics.fresh_data(data, key=keys[0], num_data=num_data)
        terms = bound(program.diffusion, x0, params=params, key=keys[1], num_samples=min(particles, 100))
        likelihood = log_likelihood(program.diffusion, x0, key=keys[2], **given)
        simulated = sandwich(program.diffusion, key=keys[3], num_data=len(x0), **given)
        entropies = None
        if diffusion.num_steps > 1 and hasattr(diffusion.kernel, "marginal"):
            num_states = max(1, min(particles, 20_000 // len(x0)))
            entropies = entropy_bounds(program.diffusion, x0, params=params, key=keys[4], num_samples=num_states)
        work, limit = dissipated_work(simulated), metrics.entropy_limit(data, x0)
        records, noted = (likelihood, simulated, work), {"model": program.name, "seed": seed}
        figures = evaluation.evaluation(
            *records,
            bound=terms.summary(),
            limit=limit,
            data_log_density=evaluation.log_density(data, x0),
            about={**noted, "seconds": time.monotonic() - started},
        )
        title = f"{program.path.stem}: {evaluation.headline(figures)}"
        figure = evaluation_figure(*records, entropy_bounds=entropies, entropy_limit=limit, title=title)
        save(likelihood, run_dir / "likelihood.nc", K=terms.K)
        write_json(run_dir / "evaluation.json", figures)
        write_whole(run_dir / "evaluation.png", lambda file: figure.savefig(file, format="png", dpi=120))
        typer.echo(evaluation.table(figures))
        typer.echo(", ".join(str(run_dir / name) for name in ("likelihood.nc", "evaluation.json", "evaluation.png")))


def _recipe(program: "Program", data: Any, run: Callable[..., Any]) -> dict[str, Any]:
    """The program's recipe, all of it known to `fit`; what a program without one needs is chosen to suit its data."""
    import inspect

    import numpyro.distributions as dist
    from numpyro import handlers

    ours = {"key", "run_dir", "resume", "progress", "fingerprint"}
    parameters = inspect.signature(run).parameters.items()
    known = [name for name, p in parameters if p.kind is p.KEYWORD_ONLY and name not in ours]
    unknown = [name for name in program.recipe if name not in known]
    if unknown:
        raise ValueError(
            f"Expected `recipe` in {program.path} to hold some of {', '.join(known)}; got {', '.join(unknown)}."
        )
    with handlers.block(), handlers.seed(rng_seed=0):
        num_terms = program.diffusion().num_steps - 1
    num_data = 256 if isinstance(data, dist.Distribution) or data.ndim == 0 else len(data)
    batch_size = max(1, min(256, num_data))  # of no data at all, `fit` says so
    chosen = {"num_iterations": 5000, "batch_size": batch_size, "num_steps_sampled": min(8, num_terms) or None}
    return {**chosen, **program.recipe}


def _report(program: "Program", data: Any, fitted: Any, *, run_dir: Path, seed: int, key: Any) -> None:
    """Evaluates a fit on fresh data; writes metrics.json and figure.png; prints the table."""
    import jax
    import numpy as np

    from dpm_ppl import metrics, plots
    from dpm_ppl.inference import bound, instantiate
    from dpm_ppl.inference.whole_file import write_json, write_whole
    from dpm_ppl.trajectories import forward_states, reverse_states

    keys = jax.random.split(key, 5)
    diffusion = instantiate(program.diffusion, fitted.params)
    num_data = metrics.affordable(diffusion, seconds=15, least=16, most=40_000)
    x0 = metrics.fresh_data(data, key=keys[0], num_data=num_data)
    terms = bound(program.diffusion, x0, params=fitted.params, key=keys[1])
    summary = terms.summary()
    limit = metrics.entropy_limit(data, x0)
    about = {
        "model": program.name,
        "iterations": fitted.num_iterations,
        "seconds": float(fitted.seconds),
        "num_parameters": sum(int(np.size(leaf)) for leaf in jax.tree.leaves(fitted.params)),
        "seed": seed,
    }
    figures = metrics.metrics(summary, limit=limit, about=about)
    write_json(run_dir / "metrics.json", figures)
    typer.echo(metrics.table(figures))

    times = {0, diffusion.num_steps // 2, diffusion.num_steps}
    # Whole batches at once: several times cheaper a step than the bound, which is counted datum by datum.
    num_shown = metrics.affordable(diffusion, seconds=30, least=16, most=3000)
    shown = metrics.fresh_data(data, key=keys[2], num_data=num_shown)

    @jax.jit
    def states(params: Any, x0: Any) -> Any:
        diffusion = instantiate(program.diffusion, params)
        reverse = reverse_states(diffusion, key=keys[3], num_samples=num_shown, times=times)
        return forward_states(diffusion, x0, key=keys[4], times=times), reverse

    forward, reverse = states(fitted.params, shown)
    figure = plots.fit_figure(
        diffusion,
        forward=forward,
        reverse=reverse,
        losses=fitted.losses,
        kl=terms.kl,
        elbo=summary["elbo_nats"],
        null=summary["L_null_nats"],
        entropy_limit=limit,
        data=data,
        title=f"{program.path.stem}: ELBO {summary['elbo_bits']:.3f} ± {summary['elbo_bits_se']:.3f} bits per datum",
    )
    write_whole(run_dir / "figure.png", lambda file: figure.savefig(file, format="png", dpi=120))
    typer.echo(f"{run_dir / 'metrics.json'}, {run_dir / 'figure.png'}")


def _blocks(program: "Program", params: Any, *, key: Any, num_samples: int) -> Iterator[Any]:
    """Samples in blocks of one size, each from a key of its own: the first ones do not depend on how many are drawn."""
    import jax
    import numpy as np
    from tqdm import tqdm

    from dpm_ppl import metrics
    from dpm_ppl.inference import instantiate
    from dpm_ppl.trajectories import reverse_states

    size = metrics.affordable(instantiate(program.diffusion, params), seconds=10, least=16, most=4096)

    @jax.jit
    def draw(params: Any, key: Any) -> Any:
        return reverse_states(instantiate(program.diffusion, params), key=key, num_samples=size)[0]

    for block in tqdm(range(-(-num_samples // size)), desc="sample", unit="block", delay=2, leave=False):
        yield np.asarray(draw(params, jax.random.fold_in(key, block)))


def _fingerprint(run_dir: Path) -> dict[str, Any]:
    """What `dpm fit` noted of a run, in a directory that can be written, or a clear error."""
    from dpm_ppl.inference import read_run

    noted = read_run(run_dir)["settings"].get("fingerprint") or {}
    if not isinstance(noted.get("model"), str):
        raise ValueError(f"Expected the run in {run_dir} to be one of `dpm fit`, which notes its model; it has none.")
    if not os.access(run_dir, os.W_OK):
        raise PermissionError(f"Expected to write into {run_dir}; it is read-only. Copy it to where you may write.")
    return dict(noted)


@contextmanager
def _clear_errors() -> Iterator[None]:
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
        ours = Path(raised_in).is_relative_to(Path(__file__).parent)
        if not ours and not isinstance(error, OSError):
            raise
        # The Python API's names of two options, as the command line calls them.
        message = str(error).replace("resume=True", "--resume").replace("`run_dir`", "--run-dir")
        typer.echo(f"Error: {' '.join(message.split())}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    sys.exit(app(prog_name="dpm"))
