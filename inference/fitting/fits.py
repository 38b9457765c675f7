"""Fitting a program: stock SVI on the bound K, compiled, in chunks with checkpoints between them."""

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
import optax
from jax import Array
from jax.sharding import Mesh
from numpyro.infer import SVI, RenyiELBO, TraceMeanField_ELBO
from numpyro.infer.elbo import ELBO
from tqdm import tqdm

from dpm_ppl.arguments import require_count, require_key
from dpm_ppl.handlers import Weight, subsample_steps
from dpm_ppl.inference.arguments import require_flags
from dpm_ppl.inference.devices import ALONE, Spread, spread_over
from dpm_ppl.inference.fitting import runs
from dpm_ppl.inference.fitting.batches import Batches, Data, batches_of
from dpm_ppl.inference.fitting.loop import Carry, Done, Keep, advance, compile_loop, compiling, start
from dpm_ppl.inference.fitting.metrics import Metrics
from dpm_ppl.inference.fitting.optimiser import Steps, rate_ends
from dpm_ppl.inference.fitting.prepare import Prepared, prepare
from dpm_ppl.inference.fitting.processes import require_alike, writes
from dpm_ppl.inference.fitting.shards import Rule, placement
from dpm_ppl.inference.fitting.starts import fit_starts, scores, start_key
from dpm_ppl.inference.fitting.validation import Validated, describe, nothing_validated, validator
from dpm_ppl.inference.fitting.watch import Watch
from dpm_ppl.inference.sources import Resident, Source, described


@dataclass(frozen=True)
class Fit:
    """What a fit ends with.

    Args:
        params: Averaged parameters, constrained, by name: what `Predictive` and the rest of this package take.
        raw_params: Those of the last iteration.
        losses: Loss of each iteration, an estimate of -ELBO in nats per datum, or of what `weight` or `loss` makes of
            it, shape (num_iterations,).
        seconds: Time from the call to the end, compilation included, and that of the sessions it resumes, up to their
            checkpoints.
        num_iterations: Number of iterations.
        validation: After how many iterations it was validated, and the loss in nats per datum, shape (num, 2); empty
            without `validation`.
        best_params: Averaged parameters of the lowest loss on the validation data; without them, `params`.
        key: Random key of the fit; of several starts, the best one's, which makes the same fit alone.
        start_losses: Losses of every start, shape (num_starts, num_iterations); NaN from where one failed.
    """

    params: dict[str, Any]
    raw_params: dict[str, Any]
    losses: np.ndarray
    seconds: float
    num_iterations: int
    validation: np.ndarray
    best_params: dict[str, Any]
    key: Array
    start_losses: np.ndarray


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Data,
    *,
    key: Array,
    num_iterations: int,
    num_starts: int = 1,
    batch_size: int = 256,
    num_steps_sampled: int | None = 8,
    weight: Weight | None = None,
    optimizer: optax.GradientTransformation | None = None,
    learning_rate: float = 3e-3,
    params: Mapping[str, Any] | None = None,
    args: tuple[Any, ...] = (),
    loss: Any = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    clip_norm: float | None = 1.0,
    ema_decay: float = 0.999,
    frozen_noise: bool = False,
    checkpoint_every: float = 30.0,
    num_checkpoints: int = 3,
    validation: Resident | Source | None = None,
    every: int = 1000,
    patience: int | None = None,
    callback: Callable[[Fit], Any] | None = None,
    mesh: Mesh | None = None,
    shard: Rule | None = None,
    progress: bool = True,
    fingerprint: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Fit:
    """Fits a program to data by stochastic variational inference on the bound K.

    Batch and noise of an iteration depend on key and iteration alone: on one machine the result is the same bit for
    bit wherever a fit was cut and resumed; on a GPU, as far as XLA's kernels are deterministic.

    A program with a latent variable or a prior beside its plate of data needs that plate in full,
    `numpyro.plate("data", num_data, subsample_size=len(x0))`: it gets the batch as its subsample, and the right scale.

    Args:
        model: Model of `(x0, *args)`, x0 a batch of shape (batch_size, *event); of a tuple of data it gets each part,
            `(*parts, *args)`, and of a dictionary each by its name. So does the guide.
        guide: Guide.
        data: All data, shape (num_data, *event), finite, of which batches are drawn epoch by epoch without
            replacement; a tuple or dictionary of arrays of one length, such as data and what is given beside them; or a
            NumPyro distribution, of which each batch is drawn anew. A memory-mapped array, what else has a length and
            an index, and an iterable of batches are read as they are needed (see `reading.read_batches`).
        key: Random key.
        num_iterations: Number of iterations in all, those of a resumed run included.
        num_starts: Fits to make at once, by `vmap` on one device, of keys `jax.random.fold_in(key, s)`; the best by
            `validation`, or its losses' last tenth, is returned: `fit(key=result.key, run_dir=...)` keeps it.
        batch_size: Number of data in a batch.
        num_steps_sampled: Steps per datum whose terms estimate the bound, at most all (`subsample_steps`); None is all.
        weight: What the KL of step t counts, `weight(kernel, t)`, in place of 1: another objective than the bound.
        optimizer: Optax optimiser, which sees the gradient per datum, clipped; by default Adam, its rate falling from
            `learning_rate` to 0 over num_iterations along a cosine, and again over those that a resumed run adds.
        learning_rate: First rate of the default optimiser, positive.
        params: Parameters to begin with, constrained, by name, such as `Fit.params`; others begin as ever.
        args: Further arguments of both.
        loss: NumPyro ELBO that is a sum over terms; by default `TraceMeanField_ELBO()`.
        run_dir: Directory for checkpoints, `run.json` and `metrics.csv` (see `metrics.Line`); by default none.
        resume: Continue from the newest checkpoint in run_dir, exactly, or else begin. More num_iterations extend a
            run: the default rate, 0 where it was to end, starts there once more (Loshchilov and Hutter 2017).
        clip_norm: Largest norm of the gradient per datum; None does not clip.
        ema_decay: Decay of the moving average of the unconstrained parameters, in [0, 1); at most (1 + i) / (10 + i).
        frozen_noise: The same random key in every iteration: of all data in one batch the objective is then a
            deterministic function of the parameters, as in the paper.
        checkpoint_every: Seconds between checkpoints; one is made at the end too, on Ctrl-C, and before a bad loss.
        num_checkpoints: How many of the newest are kept.
        validation: Data of the same kind, in memory or with an index, that are kept out of the fit: the averaged
            parameters are evaluated on all of them now and then, on the same noise, and the best of them kept.
        every: Iterations between validations, and between calls of `callback`; both come at the end too.
        patience: End the fit after so many validations that are no better than the best.
        callback: Called with the fit so far; of several processes in each.
        mesh: Devices that each batch is split over, by default all that JAX sees; parameters, and data in memory, are
            on each. A run may be continued on others. Those of several processes: each calls `fit` alike, reads its own
            part of what is read, and the first writes.
        shard: How the mesh splits a parameter: `shard(name, shape)`, a `jax.sharding.PartitionSpec`, or None for whole.
        progress: Whether to show a progress bar, with the bound in bits per datum, averaged over the last tenth.
        fingerprint: What else tells this run from another, such as a seed; JSON, kept in `run.json` and compared.
        files: What else to write into run_dir before the first iteration, such as the program: contents by path.

    Returns:
        Parameters and losses.

    Raises:
        TypeError, ValueError: an option, the data or the program is wrong; run_dir holds another run, or a damaged one.
        FileExistsError, OSError: run_dir holds a run, and resume is False; or cannot be written.
        NonFiniteLossError: a loss or parameter is not finite any more.
        KeyboardInterrupt, ConnectionError: Ctrl-C, after a checkpoint is saved (several starts are lost); or another
            process stopped or failed, and what was saved before is kept.

    Source: Sohl-Dickstein et al. 2015, sections 2.3 and 2.4; frozen noise as in section 2.4.1.
    """
    require_key(key)
    given = {**locals(), "began": time.perf_counter()}  # the arguments, and when they came
    return _run(_Options(**given))


@dataclass(frozen=True, eq=False, kw_only=True)
class _Options:
    """The arguments of `fit`, checked; and `began`, when it was called."""

    began: float
    model: Callable[..., Any]
    guide: Callable[..., Any]
    data: Any
    key: Array
    num_iterations: int
    num_starts: int
    batch_size: int
    num_steps_sampled: int | None
    weight: Weight | None
    optimizer: optax.GradientTransformation | None
    learning_rate: float
    params: Mapping[str, Any] | None
    args: tuple[Any, ...]
    loss: Any
    run_dir: str | Path | None
    resume: bool
    clip_norm: float | None
    ema_decay: float
    frozen_noise: bool
    checkpoint_every: float
    num_checkpoints: int
    validation: Any
    every: int
    patience: int | None
    callback: Callable[[Fit], Any] | None
    mesh: Mesh | None
    shard: Rule | None
    progress: bool
    fingerprint: Mapping[str, Any] | None
    files: Mapping[str, bytes] | None

    def __post_init__(self) -> None:
        if isinstance(self.optimizer, optax.MultiSteps):  # which is an object of Optax's, but no transformation
            object.__setattr__(self, "optimizer", self.optimizer.gradient_transformation())
        _require_kinds(
            model=self.model, guide=self.guide, key=self.key, args=self.args, loss=self.loss, optimizer=self.optimizer
        )
        counts = ("num_iterations", "num_starts", "batch_size", "num_checkpoints", "every")
        for name in counts if self.patience is None else (*counts, "patience"):
            object.__setattr__(self, name, require_count(name, getattr(self, name)))
        _require_numbers(
            learning_rate=self.learning_rate,
            clip_norm=self.clip_norm,
            ema_decay=self.ema_decay,
            checkpoint_every=self.checkpoint_every,
        )
        require_flags(resume=self.resume, frozen_noise=self.frozen_noise, progress=self.progress)
        object.__setattr__(self, "fingerprint", _require_fingerprint(self.fingerprint))
        if self.callback is not None and not callable(self.callback):
            raise TypeError(
                f"Expected `callback` to be a function of the fit so far; got {type(self.callback).__name__}."
            )
        if self.patience is not None and self.validation is None:
            raise ValueError("Expected `validation`, data by which `patience` is measured; got None.")
        if isinstance(self.validation, dist.Distribution):
            raise TypeError(
                "Expected `validation` to be data, the same each time; got a distribution. Draw them: "
                "validation=data.sample(key, (1000,))."
            )
        if self.resume and self.run_dir is None:
            raise ValueError("Expected `run_dir`, the directory of the run to resume; got None.")
        with_one = {name: getattr(self, name) for name in ("run_dir", "patience", "callback", "mesh", "shard")}
        if self.num_starts > 1 and (given := [name for name, value in with_one.items() if value is not None]):
            raise ValueError(
                f"Expected no `{given[0]}` with several starts, which are compared once, at their end; got num_starts="
                f"{self.num_starts}. Give it to a fit of the best one's key: fit(key=result.key, {given[0]}=...)."
            )
        object.__setattr__(self, "loss", TraceMeanField_ELBO() if self.loss is None else self.loss)
        if self.shard is not None and not callable(self.shard):
            raise TypeError(
                f"Expected `shard` to be a function of a parameter's name and shape; got {type(self.shard).__name__}."
            )
        spread_over(self.mesh, everywhere=True)

    def settings(self, batches: Batches, steps: Steps) -> dict[str, Any]:
        """What a run must keep to be continued exactly; JSON."""
        settings: dict[str, Any] = {
            "batch_size": self.batch_size,
            "num_steps_sampled": None if self.num_steps_sampled is None else int(self.num_steps_sampled),
            "clip_norm": None if self.clip_norm is None else float(self.clip_norm),
            "ema_decay": float(self.ema_decay),
            "frozen_noise": bool(self.frozen_noise),
            "loss": type(self.loss).__name__,
            "key": _describe_key(self.key),
            "data": batches.description,
            "fingerprint": self.fingerprint,
        }
        if self.weight is not None:
            settings["weight"] = getattr(self.weight, "__name__", type(self.weight).__name__)
        return settings | steps.settings


def _run(options: _Options) -> Fit:
    """What `fit` does once its arguments are checked."""
    sampled_model, sampled_guide = (
        subsample_steps(program, size=options.num_steps_sampled, weight=options.weight)
        for program in (options.model, options.guide)
    )
    init_key, batch_key, noise_key = jax.random.split(options.key, 3)
    batches = batches_of(options.data, batch_size=options.batch_size, key=batch_key)
    path = None if options.run_dir is None else runs.open_run(options.run_dir, resume=options.resume)
    ends = rate_ends(path, options.num_iterations)
    steps = Steps(options.optimizer, options.learning_rate, options.clip_norm, tuple(ends))
    given = {"key": init_key, "loss": options.loss, "optimizer": steps.of}
    prepared = prepare(sampled_model, sampled_guide, batches, options.args, params=options.params, **given)
    if options.num_starts > 1:
        return _best_of(options, prepared, batches)
    spread = spread_over(options.mesh, everywhere=True)
    is_writer = writes(spread)
    batches = batches.over(spread)
    svi, carry, keep, metrics = prepared.svi, start(prepared.svi, prepared.state), None, None
    done = Done(0, carry, np.zeros(0), 0.0, nothing_validated(carry.average))
    placed = placement(spread, options.shard, carry, carry.average)
    settings = {**options.settings(batches, steps), "parameters": runs.kinds(carry.average)}
    seen = None
    if options.validation is not None and (path is not None or spread.hosts):
        seen = describe(options.validation, options.batch_size)
    if path is not None:
        runs.require_same(path, settings)
        done = _restored(path, done, options.key, options.num_iterations, validation=seen)
    told = {**settings, "validation": seen, "iterations done": done.position}
    require_alike(spread, partial(_told_to_others, options, carry, told))
    if path is not None:
        information: dict[str, Any] = {"num_iterations": options.num_iterations, "num_devices": spread.num}
        information |= {} if seen is None else {"validation": seen}
        information |= {"restarts": ends[1:]} if ends[1:] else {}
        if ends[1:] and options.progress and is_writer and done.position <= ends[-2]:
            rate = f"{options.learning_rate:g}"
            tqdm.write(f"After {ends[-2]} iterations the learning rate starts anew at {rate}.", file=sys.stderr)
        if is_writer:
            runs.write_files(path, options.files or {})
            runs.write_run(path, settings, information=information)
            metrics = Metrics(path, done.position)
        keep = Keep(path, options.key, float(options.checkpoint_every), options.num_checkpoints)
    validate = _validate(options, prepared, spread, noise_key)
    normaliser, has_chain = prepared.normaliser, prepared.has_chain
    done, callback = _placed(done, spread, placed), options.callback
    del carry, prepared  # whole on one device, where it is split
    watch = Watch(
        every=options.every,
        validate=validate,
        patience=options.patience,
        callback=None if callback is None else lambda done: callback(_so_far(svi, done, options.key, spread=spread)),
        metrics=metrics,
        rate=steps.rate,
    )
    if done.position < options.num_iterations:
        with compiling(progress=options.progress and is_writer):
            loop = compile_loop(
                *(svi, batches, options.args, done.carry),
                key=noise_key,
                normaliser=normaliser,
                ema_decay=options.ema_decay,
                frozen_noise=options.frozen_noise,
                spread=spread,
                placed=placed,
            )
        with batches.feed(options.num_iterations) as feed:
            done = advance(
                *(loop, feed, done),
                began=options.began,
                num_iterations=options.num_iterations,
                keep=keep,
                watch=watch,
                progress=options.progress and is_writer,
                objective=("weighted " if options.weight else "") + ("bound" if has_chain else "objective"),
                spread=spread,
            )
    elif done.position:
        done = watch.after(done, num_iterations=options.num_iterations)  # what its last session did not come to
    return _so_far(svi, done, options.key, spread=spread)


def _told_to_others(options: _Options, carry: Carry, settings: dict[str, Any]) -> dict[str, Any]:
    """What is to be the same in all processes of a fit: what they compute, where it begins, when it is looked at."""
    return {
        **settings,
        "num_iterations": options.num_iterations,
        "first parameters": described(carry.average),
        "files": {name: hashlib.sha256(content).hexdigest()[:16] for name, content in (options.files or {}).items()},
        "every": options.every,
        "patience": options.patience,
        "callback": options.callback is not None,
        "run_dir": options.run_dir is not None,
    }


def _placed(done: Done, spread: Spread, placed: Any) -> Done:
    """What is done, on its devices."""
    if placed is None:
        return done
    carry = spread.put(done.carry, placed)
    best = spread.put(done.validated.best, placed.average) if len(done.validated.losses) else carry.average
    return replace(done, carry=carry, validated=done.validated._replace(best=best))


def _best_of(options: _Options, prepared: Prepared, batches: Batches) -> Fit:
    """The best of several starts."""
    validate = _validate(options, prepared, ALONE, jax.random.split(options.key, 3)[2])
    starts = fit_starts(
        *(prepared, batches, options.args),
        key=options.key,
        num_starts=options.num_starts,
        num_iterations=options.num_iterations,
        ema_decay=options.ema_decay,
        frozen_noise=options.frozen_noise,
        progress=options.progress,
    )
    reached = own = scores(starts.losses)
    if validate is not None:
        ends = [starts.one(number) for number in range(options.num_starts)]
        on_others = [validate(carry.average, carry.mutable_state) for carry in ends]
        reached = np.where(np.isfinite(own), on_others, math.inf)
    best = int(np.argmin(reached if np.isfinite(reached).any() else own))  # own: one that failed is never best
    carry = starts.one(best)
    validated = nothing_validated(carry.average)
    if validate is not None:
        validated = validated.then(options.num_iterations, float(reached[best]), carry.average)
    seconds = time.perf_counter() - options.began
    done = Done(options.num_iterations, carry, starts.losses[best], seconds, validated)
    return _so_far(prepared.svi, done, start_key(options.key, best), starts.losses)


def _so_far(svi: SVI, done: Done, key: Array, start_losses: np.ndarray | None = None, *, spread: Spread = ALONE) -> Fit:
    """What is done, as a user sees it; of several processes, each has all of it for itself."""
    params = svi.constrain_fn(spread.here(done.carry.average))
    validated = done.validated
    return Fit(
        params=params,
        raw_params=svi.constrain_fn(spread.here(svi.optim.get_params(done.carry.optim_state))),
        losses=done.losses,
        seconds=done.seconds,
        num_iterations=done.position,
        validation=np.stack([validated.iterations, validated.losses], 1),
        best_params=svi.constrain_fn(spread.here(validated.best)) if len(validated.losses) else params,
        key=key,
        start_losses=done.losses[None] if start_losses is None else start_losses,
    )


def _validate(options: _Options, prepared: Prepared, spread: Spread, key: Array) -> Callable[[Any, Any], float] | None:
    """What a fit is validated by, tried before it begins; None without validation data."""
    if options.validation is None:
        return None
    given: dict[str, Any] = {"batch_size": options.batch_size, "key": key, "spread": spread}
    apart = replace(prepared, state=None)  # which outlives the beginning
    validate = validator(apart, options.validation, options.args, **given)
    try:
        validate(start(prepared.svi, prepared.state).average, prepared.state.mutable_state)
    except Exception as error:
        error.add_note("This is of the `validation` data, which have to be of the kind of `data`.")
        raise
    return validate


def _restored(path: Path, start: Done, key: Array, num_iterations: int, *, validation: str | None) -> Done:
    """What is done in a directory, and what validation on the same data has said; `start` where nothing is."""
    checkpoint = runs.newest_checkpoint(path)
    if checkpoint is None:
        return start
    if checkpoint.position > num_iterations:
        raise ValueError(
            f"Expected `num_iterations` of at least {checkpoint.position}, which {path} has done; got {num_iterations}."
        )
    # Runs were kept before without the norm of the gradient, the last leaf of the optimiser's state.
    norm = "['optim_state']" + list(runs.kinds(start.carry.optim_state))[-1]
    carry = checkpoint.restore({**start.carry._asdict(), "key": key}, optional=norm)
    del carry["key"]  # run.json has it too, and was compared
    validated = nothing_validated(carry["average"])
    same = validation is not None and runs.read_run(path).get("validation") == validation
    if same and "['validated']['losses']" in checkpoint.leaves:
        best = checkpoint.restore({"validated": {"best": start.carry.average}})["validated"]["best"]
        iterations, losses = (checkpoint.leaves[f"['validated']['{name}']"] for name in ("iterations", "losses"))
        validated = Validated(iterations, losses, best)
    losses = checkpoint.leaves["['losses']"]
    return Done(checkpoint.position, Carry(**carry), losses, checkpoint.seconds, validated)


def _require_kinds(*, model: Any, guide: Any, key: Any, args: Any, loss: Any, optimizer: Any) -> None:
    """Checks that programs are functions, the key is a key, and so on; TypeError or ValueError if not."""
    for name, program in (("model", model), ("guide", guide)):
        if not callable(program):
            raise TypeError(f"Expected `{name}` to be a function of (x0, *args); got {type(program).__name__}.")
    if not isinstance(args, tuple):
        raise TypeError(
            f"Expected `args`, further arguments of model and guide, to be a tuple; got {type(args).__name__}."
        )
    if optimizer is not None and not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"Expected `optimizer` to be one of Optax, such as optax.adam(1e-3); got {type(optimizer).__name__}."
        )
    if loss is not None and not isinstance(loss, ELBO):
        raise TypeError(
            f"Expected `loss` to be an ELBO of NumPyro, such as TraceMeanField_ELBO(); got {type(loss).__name__}."
        )
    if isinstance(loss, RenyiELBO):
        raise ValueError(
            "Expected `loss` to be a sum over terms; got RenyiELBO, which needs the weights of whole trajectories. "
            "Fit it with numpyro.infer.SVI on the plain programs."
        )


def _require_numbers(*, learning_rate: Any, clip_norm: Any, ema_decay: Any, checkpoint_every: Any) -> None:
    """Checks the range of the real-valued options."""
    numbers = {"learning_rate": learning_rate, "ema_decay": ema_decay, "checkpoint_every": checkpoint_every}
    if clip_norm is not None:
        numbers["clip_norm"] = clip_norm
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise TypeError(f"Expected `{name}` to be a number; got {value!r}.")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"Expected `learning_rate` to be positive and finite; got {learning_rate}.")
    if not 0 <= ema_decay < 1:
        raise ValueError(f"Expected `ema_decay` in [0, 1); got {ema_decay}. 0 leaves the parameters as they are.")
    if not checkpoint_every >= 0:
        raise ValueError(f"Expected `checkpoint_every`, in seconds, to be at least 0; got {checkpoint_every}.")
    if clip_norm is not None and not 0 < clip_norm < math.inf:
        raise ValueError(f"Expected `clip_norm` to be positive and finite, or None; got {clip_norm}.")


def _require_fingerprint(fingerprint: Any) -> dict[str, Any]:
    """A caller's fingerprint as a dictionary; TypeError if it is none, or is no JSON."""
    if not isinstance(fingerprint, Mapping | None):
        raise TypeError(f"Expected `fingerprint` to be a dictionary; got {type(fingerprint).__name__}.")
    try:
        checked: dict[str, Any] = json.loads(json.dumps(dict(fingerprint or {})))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"Expected `fingerprint` to hold strings, numbers, lists and dictionaries, as JSON does; {error}."
        ) from error
    return checked


def _describe_key(key: Array) -> list[int]:
    """The numbers of a random key, of either kind."""
    data: list[int] = np.asarray(jax.random.key_data(key)).tolist()
    return data
