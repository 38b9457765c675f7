"""`dpm posterior`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpm_ppl.commands.errors import clear_errors
from dpm_ppl.commands.fingerprint import fingerprint

if TYPE_CHECKING:
    from dpm_ppl.commands.observation import Observation


def posterior(
    *,
    run_dir: Annotated[Path, typer.Argument(help="Directory of a fit.", metavar="DIR")],
    observe: Annotated[Path, typer.Option(help="What is observed: one datum, or several.", metavar="FILE.npy")],
    noise: Annotated[
        float | None, typer.Option(help="Standard deviation of the noise; of bits, how probable a flip is.")
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="Which coordinates are observed: without --noise, exactly.", metavar="FILE.npy"),
    ] = None,
    particles: Annotated[int, typer.Option(min=2, help="Particles of each datum.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
) -> None:
    """Denoise or complete data: samples given what is observed, and its evidence: posterior.nc, .json and .png."""
    import time

    import jax
    import numpy as np

    from dpm_ppl import posterior_report, programs
    from dpm_ppl.commands.draws import draws
    from dpm_ppl.commands.observation import read_observation
    from dpm_ppl.inference import instantiate, load_params
    from dpm_ppl.inference.posterior_record import save
    from dpm_ppl.inference.whole_file import write_json, write_whole
    from dpm_ppl.panels import is_plane
    from dpm_ppl.posterior_plots import MOST_SHOWN, posterior_figure

    with clear_errors():
        program = programs.load(fingerprint(run_dir)["model"])
        if program.diffusion is None:
            raise ValueError(
                f"Expected a program with `diffusion`, one chain of its data; {program.path.stem} has none. Condition "
                "it in a program of your own, and give that to dpm_ppl.inference.smc."
            )
        params = load_params(run_dir, program.diffusion)
        diffusion = instantiate(program.diffusion, params)
        support, event_shape = diffusion.kernel.stationary().support, tuple(diffusion.event_shape)
        observed = read_observation(observe, mask=mask, noise=noise, event_shape=event_shape, support=support)
        key, prior_key = jax.random.split(jax.random.key(seed))
        started = time.monotonic()
        batch = _sample(observed, program.diffusion, params, num_particles=particles, key=key)
        each = _each(batch)
        about = {
            "model": program.name,
            "seed": seed,
            "seconds": time.monotonic() - started,
            "observed": observed.text,
            "noise": noise,
            "num_known": int(observed.known.sum()),
        }
        figures = posterior_report.report(each, about=about)
        known = np.broadcast_to(observed.known, observed.y.shape)
        save(batch, run_dir / "posterior.nc", observed={"y": observed.y, "known": known})
        write_json(run_dir / "posterior.json", figures)
        prior = draws(program, params, key=prior_key, num_samples=2000) if is_plane(event_shape, support) else None
        figure = posterior_figure(
            each[:MOST_SHOWN],
            y=observed.y,
            known=observed.known,
            support=support,
            noise=noise,
            prior=prior,
            names=[posterior_report.headline(row) for row in figures["data"]],
            title=f"{program.path.stem}: {observed.text}",
        )
        write_whole(run_dir / "posterior.png", lambda file: figure.savefig(file, format="png", dpi=120))
        typer.echo(posterior_report.table(figures))
        typer.echo(", ".join(str(run_dir / f"posterior.{kind}") for kind in ("nc", "json", "png")))


def _sample(observed: "Observation", diffusion: Callable[[], Any], params: Any, *, num_particles: int, key: Any) -> Any:
    """The posteriors of all data as one batch, made in blocks of one size, so that memory stays the same."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from tqdm import tqdm

    from dpm_ppl.inference import smc

    run = jax.vmap(smc(observed.program(diffusion), "x", params=params, num_particles=num_particles))
    num_data = len(observed.y)
    size = max(1, min(num_data, 2**21 // (num_particles * observed.known.size)))
    keys = jax.random.split(key, num_data)
    blocks = []
    for first in tqdm(range(0, num_data, size), desc="posterior", unit="block", delay=2, leave=False):
        rows = np.minimum(np.arange(first, first + size), num_data - 1)  # the last block is filled up
        blocks.append(jax.tree.map(np.asarray, run(keys[rows], jnp.asarray(observed.y[rows]))))
        for row, one in zip(rows, _each(blocks[-1]), strict=True):
            try:
                one.check()
            except ValueError as error:
                raise ValueError(f"Datum {row}: {error}") from None
    return jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)[:num_data]), *blocks)


def _each(batch: Any) -> list[Any]:
    """The posteriors of a batch, one by one."""
    import jax

    return [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in range(len(batch.log_evidence))]
