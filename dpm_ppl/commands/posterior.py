"""`dpm posterior`."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

from dpm_ppl.commands.devices import Devices, on
from dpm_ppl.commands.errors import clear_errors
from dpm_ppl.commands.files import Context, Out, Overwrite, free_directory, read_array, read_context, save_figure
from dpm_ppl.commands.run import Force, Model, RunDir, open_run
from dpm_ppl.inference.records import write_json
from dpm_ppl.parts import Parts


def posterior(
    *,
    run_dir: RunDir,
    observe: Annotated[Path, typer.Option(help="What is observed: one datum, or several.", metavar="FILE.npy")],
    noise: Annotated[
        float | None, typer.Option(help="Standard deviation of the noise; of bits, how probable a flip is.")
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="Which coordinates are observed: without --noise, exactly.", metavar="FILE.npy"),
    ] = None,
    context: Context = None,
    particles: Annotated[int, typer.Option(min=2, help="Particles of each datum.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    model: Model = None,
    force: Force = False,
    devices: Devices = None,
) -> None:
    """Denoise or complete data: samples given what is observed, and its evidence: posterior.nc, .json and .png."""
    from dpm_ppl.reports.posterior import headline, report, table
    from dpm_ppl.reports.posterior_figure import MOST_SHOWN, posterior_figure, shows_prior
    from dpm_ppl.reports.samples import draws

    with clear_errors(), on(devices):
        run = open_run(run_dir, model=model, force=force)
        program, params, parts = run.program, run.params, run.parts
        if parts.definition is None:
            raise ValueError(
                f"Expected a program with `diffusion`, one chain of its data; {program.path.stem} has none. Condition "
                "it in a program of your own, and give that to dpm_ppl.inference.smc."
            )
        diffusion = parts.among(run.data, params)
        support, event_shape = diffusion.kernel.stationary().support, tuple(diffusion.event_shape)
        observed = read_observation(observe, mask=mask, noise=noise, event_shape=event_shape, support=support)
        given = _beside(read_context(context, parts), parts, num_data=len(observed.y))
        names = [f"posterior.{kind}" for kind in ("nc", "json", "png")]
        directory = free_directory(run_dir, out, names, overwrite=overwrite)
        key, prior_key = jax.random.split(jax.random.key(seed))
        started = time.monotonic()
        batch = _sample(observed, parts, params, given, num_particles=particles, key=key)
        each = _each(batch)
        about = {
            "model": run.name,
            "seed": seed,
            "seconds": time.monotonic() - started,
            "observed": observed.text,
            "noise": noise,
            "num_known": int(observed.known.sum()),
        }
        figures = report(each, about=about)
        known = np.broadcast_to(observed.known, observed.y.shape)
        beside = None if given is None else parts.by_name(given)
        batch.save(directory / "posterior.nc", observed={"y": observed.y, "known": known}, context=beside)
        write_json(directory / "posterior.json", figures)
        typer.echo(table(figures))

        def draw() -> Any:
            shared = shows_prior(event_shape, support) and (given is None or len(observed.y) == 1)  # one prior of all
            return posterior_figure(
                each[:MOST_SHOWN],
                y=observed.y,
                known=observed.known,
                support=support,
                noise=noise,
                prior=draws(parts, params, key=prior_key, num_samples=2000, context=given) if shared else None,
                names=[headline(row) for row in figures["data"]],
                title=f"{program.path.stem}: {observed.text}",
            )

        written = [directory / f"posterior.{kind}" for kind in ("nc", "json")]
        typer.echo(", ".join(map(str, [*written, *save_figure(directory / "posterior.png", draw)])))


def _beside(context: Any, parts: Parts, *, num_data: int) -> Any:
    """A context for each observed datum: one for each, or one that all share; None where the program takes none."""
    if not parts.given:
        if context is not None:
            raise ValueError("Expected no --context: the program's `diffusion` takes none.")
        return None
    if context is None:
        raise ValueError(
            f"Expected --context FILE.npz with {', '.join(parts.context_names)}, what is given beside each datum; "
            "got none."
        )
    num = len(jax.tree.leaves(context)[0])
    if num not in (1, num_data):
        raise ValueError(f"Expected a context for each of {num_data} observed data, or one for all; got {num}.")
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (num_data, *leaf.shape[1:])), context)


def _sample(observed: "Observation", parts: Parts, params: Any, context: Any, *, num_particles: int, key: Any) -> Any:
    """The posteriors of all data as one batch, made in blocks of one size, so that memory stays the same."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from tqdm import tqdm

    from dpm_ppl.inference import smc
    from dpm_ppl.inference.progress import bar_options

    definition: Any = parts.definition
    run = jax.vmap(smc(observed.program(definition), "x", params=params, num_particles=num_particles))
    num_data = len(observed.y)
    size = max(1, min(num_data, 2**21 // (num_particles * observed.known.size)))
    keys = jax.random.split(key, num_data)
    blocks = []
    for first in tqdm(range(0, num_data, size), desc="posterior", unit="block", delay=2, leave=False, **bar_options()):
        rows = np.minimum(np.arange(first, first + size), num_data - 1)  # the last block is filled up
        beside = () if context is None else (jax.tree.map(lambda leaf, rows=rows: jnp.asarray(leaf[rows]), context),)
        blocks.append(jax.tree.map(np.asarray, run(keys[rows], jnp.asarray(observed.y[rows]), *beside)))
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


@dataclass(frozen=True, eq=False)
class Observation:
    """Data of which something is known.

    Args:
        y: What is observed, shape (num_data, *event); 0 where nothing is.
        known: Which coordinates are observed, boolean, shape (*event).
        noise: Standard deviation of normal noise, or of bits the probability that one is flipped; None for none.
        binary: Whether coordinates are bits.
    """

    y: np.ndarray
    known: np.ndarray
    noise: float | None
    binary: bool

    def program(self, diffusion: Callable[..., Any]) -> Callable[..., None]:
        """The program of one datum, of y of shape (*event) and its context if any: the chain, this observed of it."""
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist

        from dpm_ppl.statements import reverse_chain

        def conditioned(y: Any, *context: Any) -> None:
            x0 = reverse_chain("x", diffusion(*context))
            if self.noise is None:
                law: Any = dist.Delta(x0)
            elif self.binary:
                law = dist.Bernoulli(probs=jnp.where(x0 == 1, 1 - self.noise, self.noise))
            else:
                law = dist.Normal(x0, self.noise)
            numpyro.sample("y", law.mask(self.known).to_event(self.known.ndim), obs=y)

        return conditioned

    @property
    def text(self) -> str:
        """What is observed, in words."""
        which = "all coordinates" if self.known.all() else f"{self.known.sum()} of {self.known.size} coordinates"
        if self.noise is None:
            return f"{which} known exactly"
        return f"{which} with {'bits flipped with probability' if self.binary else 'noise'} {self.noise:g}"


def read_observation(
    observe: Path, *, mask: Path | None, noise: float | None, event_shape: tuple[int, ...], support: Any
) -> Observation:
    """Reads an observation and checks all of it.

    Args:
        observe: File of an array, one datum (*event) or several (num_data, *event).
        mask: File of a boolean array of shape (*event), the coordinates that are observed; None for all.
        noise: Noise; None where coordinates are known exactly, which takes a mask.
        event_shape: Shape of a datum.
        support: Where the coordinates of a datum lie.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: neither mask nor noise is given; a file is no array, or of another shape; noise is out of range;
            the mask is not boolean, or has nothing; observed values are not finite, or outside the support.
    """
    if mask is None and noise is None:
        raise ValueError(
            "Expected --noise S (all coordinates are observed with noise), --mask FILE.npy (the coordinates that are "
            "known exactly), or both (these coordinates are observed with noise); got neither."
        )
    binary = _is_binary(support)
    if noise is not None and not 0 < noise < (0.5 if binary else np.inf):
        kind = "the probability that a bit is flipped, in (0, 0.5)" if binary else "a standard deviation, above 0"
        exactly = " For coordinates that are known exactly leave --noise out, and give a --mask." if noise == 0 else ""
        raise ValueError(f"Expected --noise to be {kind}; got {noise:g}.{exactly}")
    y, known = read_array(observe, "--observe"), np.ones(event_shape, bool)
    if mask is not None:
        known = _mask(read_array(mask, "--mask"), event_shape)
    if y.shape != event_shape and y.shape[1:] != event_shape or y.size == 0:
        raise ValueError(
            f"Expected --observe to hold one datum, of shape {event_shape}, or several, of shape (num_data, "
            f"{', '.join(map(str, event_shape))}); got {y.shape} in {observe}."
        )
    if y.dtype.kind not in "biuf":
        raise ValueError(f"Expected --observe to hold numbers; got {y.dtype} in {observe}.")
    y = y.reshape(-1, *event_shape).astype(float)
    seen = y[:, known]
    if not np.isfinite(seen).all():
        raise ValueError(
            f"Expected finite values where {observe} is observed; got {(~np.isfinite(seen)).sum()} others."
        )
    if binary and (outside := ~np.isin(seen, (0, 1))).any():
        raise ValueError(f"Expected 0 or 1 where {observe} is observed; got {seen[outside][0]:g}.")
    return Observation(np.where(known, y, 0).astype(int if binary else float), known, noise, binary)


def _is_binary(support: Any) -> bool:
    """Whether coordinates are bits, or else real numbers."""
    from numpyro.distributions import constraints

    from dpm_ppl.distributions import coordinate_support

    base = coordinate_support(support)
    if base not in (constraints.boolean, constraints.real):
        raise ValueError(
            f"Expected a program of real numbers or bits; its data are {type(base).__name__.strip('_').lower()}. "
            "Observe them in a program of your own, and give it to dpm_ppl.inference.smc."
        )
    return bool(base == constraints.boolean)


def _mask(mask: np.ndarray, event_shape: tuple[int, ...]) -> np.ndarray:
    if mask.shape != event_shape:
        raise ValueError(f"Expected --mask of shape {event_shape}, that of a datum; got {mask.shape}.")
    if mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
        raise ValueError(f"Expected --mask to be boolean, or 0 and 1; got other values, of {mask.dtype}.")
    if not mask.any():
        raise ValueError("Expected --mask to be true where something is observed; it is false everywhere.")
    return mask.astype(bool)
