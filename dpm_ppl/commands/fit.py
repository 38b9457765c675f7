"""`dpm fit`."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpm_ppl.commands.errors import clear_errors

if TYPE_CHECKING:
    from dpm_ppl.programs import Program


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
    import numpy as np

    from dpm_ppl import metrics, programs
    from dpm_ppl.inference import fit as run
    from dpm_ppl.inference.whole_file import write_json, write_whole

    with clear_errors():
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
            about = {
                "model": program.name,
                "iterations": fitted.num_iterations,
                "seconds": float(fitted.seconds),
                "num_parameters": sum(int(np.size(leaf)) for leaf in jax.tree.leaves(fitted.params)),
                "seed": seed,
            }
            report = _report_chain if program.diffusion is not None else _report_no_chain
            figures, figure = report(program, data, fitted, about=about, key=evaluation_key)
            write_json(run_dir / "metrics.json", figures)
            typer.echo(metrics.table(figures))
            write_whole(run_dir / "figure.png", lambda file: figure.savefig(file, format="png", dpi=120))
            typer.echo(f"{run_dir / 'metrics.json'}, {run_dir / 'figure.png'}")
        except KeyboardInterrupt:
            again = ["dpm", "fit", model, "--run-dir", str(run_dir), "--seed", str(seed), "--resume"]
            again += [] if iterations is None else ["--iterations", str(iterations)]
            typer.echo(f"\nInterrupted. To carry on: {shlex.join(again)}", err=True)
            raise typer.Exit(130) from None


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
    num_data = 256 if isinstance(data, dist.Distribution) or data.ndim == 0 else len(data)
    batch_size = max(1, min(256, num_data))  # of no data at all, `fit` says so
    chosen: dict[str, Any] = {"num_iterations": 5000, "batch_size": batch_size}
    if program.diffusion is not None:
        with handlers.block(), handlers.seed(rng_seed=0):
            num_terms = program.diffusion().num_steps - 1
        chosen["num_steps_sampled"] = min(8, num_terms) or None
    return {**chosen, **program.recipe}


def _report_chain(program: "Program", data: Any, fitted: Any, *, about: dict[str, Any], key: Any) -> tuple[Any, Any]:
    """Evaluates a fit on fresh data: what goes into metrics.json, and the figure."""
    import jax

    from dpm_ppl import metrics, plots
    from dpm_ppl.inference import bound, instantiate
    from dpm_ppl.trajectories import forward_states, reverse_states

    definition: Any = program.diffusion
    keys = jax.random.split(key, 5)
    diffusion = instantiate(definition, fitted.params)
    num_data = metrics.affordable(diffusion, seconds=15, least=16, most=40_000)
    x0 = metrics.fresh_data(data, key=keys[0], num_data=num_data)
    terms = bound(definition, x0, params=fitted.params, key=keys[1])
    summary = terms.summary()
    limit = metrics.entropy_limit(data, x0)

    times = {0, diffusion.num_steps // 2, diffusion.num_steps}
    # Whole batches at once: several times cheaper a step than the bound, which is counted datum by datum.
    num_shown = metrics.affordable(diffusion, seconds=30, least=16, most=3000)
    shown = metrics.fresh_data(data, key=keys[2], num_data=num_shown)

    @jax.jit
    def states(params: Any, x0: Any) -> Any:
        diffusion = instantiate(definition, params)
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
    return metrics.metrics(summary, limit=limit, about=about), figure


def _report_no_chain(program: "Program", data: Any, fitted: Any, *, about: dict[str, Any], key: Any) -> tuple[Any, Any]:
    """The same of a program that is no single chain."""
    import jax

    from dpm_ppl import metrics, plots
    from dpm_ppl.commands.draws import draws
    from dpm_ppl.commands.no_chain import objective

    keys = jax.random.split(key, 3)
    x0 = metrics.fresh_data(data, key=keys[0], num_data=4000)
    summary = objective(program, fitted.params, x0, key=keys[1])
    limit = metrics.entropy_limit(data, x0) if "elbo_nats" in summary else None
    figures = metrics.metrics(summary, limit=limit, about=about)
    figure = plots.samples_figure(
        draws(program, fitted.params, key=keys[2], num_samples=2048),
        support=metrics.support(data, x0),
        data=data,
        x0=x0,
        losses=fitted.losses,
        elbo=summary.get("elbo_nats", summary.get("objective_nats")),
        entropy_limit=limit,
        title=program.path.stem,
    )
    return figures, figure
