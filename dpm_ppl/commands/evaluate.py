"""`dpm evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpm_ppl.commands.errors import clear_errors
from dpm_ppl.commands.fingerprint import fingerprint

if TYPE_CHECKING:
    from dpm_ppl.programs import Program


def evaluate(
    *,
    run_dir: Annotated[Path, typer.Argument(help="Directory of a fit.", metavar="DIR")],
    particles: Annotated[int, typer.Option(min=1, help="Trajectories of each datum.")] = 1000,
    num_data: Annotated[int | None, typer.Option(min=1, help="Data; by default what takes a minute or two.")] = None,
    discriminator: Annotated[
        bool, typer.Option("--discriminator", help="Also compare samples with data: JS divergence, C2ST, coverage.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
) -> None:
    """Estimate the likelihood of data, and say whether to trust it: likelihood.nc, evaluation.json, evaluation.png."""
    import time

    import jax

    from dpm_ppl import evaluation, programs
    from dpm_ppl.commands.comparison import comparison
    from dpm_ppl.commands.parameters import load_fitted
    from dpm_ppl.inference.diagnostics import save
    from dpm_ppl.inference.whole_file import write_json, write_whole

    with clear_errors():
        program = programs.load(fingerprint(run_dir)["model"])
        data = program.data()
        params, key = load_fitted(run_dir, program, data), jax.random.key(seed)
        about = {"model": program.name, "seed": seed, "seconds": 0.0}
        given: dict[str, Any] = {"particles": particles, "num_data": num_data, "about": about, "key": key}
        started = time.monotonic()
        run = _evaluate_chain if program.diffusion is not None else _evaluate_no_chain
        figures, figure, likelihood, K = run(program, params, data, **given)  # noqa: N806 - the paper's name
        if discriminator:
            figures |= comparison(program, params, data, key=jax.random.fold_in(key, 1))
        figures["seconds"] = time.monotonic() - started
        written = ["evaluation.json"]
        if likelihood is not None:
            save(likelihood, run_dir / "likelihood.nc", K=K)
            written.insert(0, "likelihood.nc")
        write_json(run_dir / "evaluation.json", figures)
        if figure is not None:
            write_whole(run_dir / "evaluation.png", lambda file: figure.savefig(file, format="png", dpi=120))
            written.append("evaluation.png")
        typer.echo(evaluation.table(figures))
        typer.echo(", ".join(str(run_dir / name) for name in written))


def _evaluate_chain(
    program: "Program", params: Any, data: Any, *, particles: int, num_data: int | None, about: dict[str, Any], key: Any
) -> tuple[dict[str, Any], Any, Any, Any]:
    """What goes into evaluation.json, the figure, the weights and K."""
    import jax

    from dpm_ppl import evaluation, metrics
    from dpm_ppl.evaluation_plots import evaluation_figure
    from dpm_ppl.inference import bound, dissipated_work, entropy_bounds, instantiate, log_likelihood, sandwich

    definition: Any = program.diffusion
    diffusion, keys = instantiate(definition, params), jax.random.split(key, 5)
    if num_data is None:
        trajectories = metrics.affordable(diffusion, seconds=300, least=particles, most=10**9)
        num_data = max(10, min(500, trajectories // particles))
    given: dict[str, Any] = {"params": params, "num_particles": particles}
    x0 = metrics.fresh_data(data, key=keys[0], num_data=num_data)
    terms = bound(definition, x0, params=params, key=keys[1], num_samples=min(particles, 100))
    likelihood = log_likelihood(definition, x0, key=keys[2], **given)
    simulated = sandwich(definition, key=keys[3], num_data=len(x0), **given)
    entropies = None
    if diffusion.num_steps > 1 and hasattr(diffusion.kernel, "marginal"):
        num_states = max(1, min(particles, 20_000 // len(x0)))
        entropies = entropy_bounds(definition, x0, params=params, key=keys[4], num_samples=num_states)
    records = (likelihood, simulated, dissipated_work(simulated))
    limit, log_density = metrics.entropy_limit(data, x0), evaluation.log_density(data, x0)
    figures = evaluation.evaluation(
        *records, bound=terms.summary(), limit=limit, data_log_density=log_density, about=about
    )
    title = f"{program.path.stem}: {evaluation.headline(figures)}"
    figure = evaluation_figure(*records, entropy_bounds=entropies, entropy_limit=limit, title=title)
    return figures, figure, likelihood, terms.K


def _evaluate_no_chain(
    program: "Program", params: Any, data: Any, *, particles: int, num_data: int | None, about: dict[str, Any], key: Any
) -> tuple[dict[str, Any], Any, Any, Any]:
    """The same of a program that is no single chain, from the weights of its guide; of a GAN, that it has none."""
    import jax
    import numpy as np

    from dpm_ppl import evaluation, metrics
    from dpm_ppl.commands.no_chain import NO_LIKELIHOOD, has_likelihood
    from dpm_ppl.evaluation_plots import evaluation_figure
    from dpm_ppl.inference import Likelihood, importance_weights

    keys = jax.random.split(key, 2)
    x0 = metrics.fresh_data(data, key=keys[0], num_data=num_data or 200)
    if not has_likelihood(program, x0):
        return evaluation.no_likelihood(NO_LIKELIHOOD, about=about), None, None, None
    given: dict[str, Any] = {"params": params, "key": keys[1], "num_particles": particles}
    likelihood = Likelihood(importance_weights(program.model, program.guide, x0, **given), np.zeros(0))
    limit, log_density = metrics.entropy_limit(data, x0), evaluation.log_density(data, x0)
    elbo = evaluation.mean_and_error("elbo_bits", likelihood.elbo)
    figures = evaluation.evaluation(likelihood, bound=elbo, limit=limit, data_log_density=log_density, about=about)
    title = f"{program.path.stem}: {evaluation.headline(figures)}"
    return figures, evaluation_figure(likelihood, entropy_limit=limit, title=title), likelihood, None
