"""The loop of a fit: chunks of compiled stock SVI updates and averages, until it is done, interrupted or broken."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState
from tqdm import tqdm

from dpm_ppl.inference.devices import ALONE, Spread
from dpm_ppl.inference.fitting import processes, runs
from dpm_ppl.inference.fitting.batches import Batches
from dpm_ppl.inference.fitting.reading import Feed
from dpm_ppl.inference.fitting.validation import Validated
from dpm_ppl.inference.progress import bar_options

LONGEST_CHUNK = 4096


class Carry(NamedTuple):
    """What an iteration hands to the next.

    Attributes:
        optim_state: Unconstrained parameters and the optimiser's state, as `SVI` keeps them.
        mutable_state: NumPyro's mutable state, or None.
        average: Exponential moving average of the unconstrained parameters.
    """

    optim_state: Any
    mutable_state: Any
    average: Any


class Chunk(NamedTuple):
    """What a chunk of iterations ends with.

    Attributes:
        position: Number of iterations done since the fit began.
        healthy: Whether the chunk reached its end; if not, iteration number `position + 1` would have spoiled the
            parameters.
        carry: State after the last iteration done.
        losses: Loss in nats per datum of each iteration of the chunk, that of a failed one too, shape (LONGEST_CHUNK,).
    """

    position: Array
    healthy: Array
    carry: Carry
    losses: Array


Loop = Callable[[Feed, Carry, int, int], Chunk]


def start(svi: SVI, state: SVIState) -> Carry:
    """The state before the first iteration: the average is the parameters themselves."""
    # No weak types: with them, a loop compiled for the first iteration would refuse a state read from a checkpoint.
    optim_state, mutable_state = jax.tree.map(_strong, (state.optim_state, state.mutable_state))
    return Carry(optim_state, mutable_state, svi.optim.get_params(optim_state))


Iteration = Callable[[Any, Array, Carry, Any], tuple[Carry, Any, Array]]


def iteration(
    svi: SVI,
    batches: Batches,
    args: tuple[Any, ...],
    *,
    key: Array,
    normaliser: int,
    ema_decay: float,
    frozen_noise: bool,
    spread: Spread = ALONE,
) -> Iteration:
    """One iteration, as a function of the batches' source, its number, the carry, and what batches carry.

    Arguments are those of `compile_loop`. Returns the new carry, what batches carry, and the loss in nats per datum.
    """

    def iterate(source: Any, i: Array, carry: Carry, carried: Any) -> tuple[Carry, Any, Array]:
        carried, *batch = batches.draw(source, i, carried)
        x0, indices = spread.constrained(batch)
        noise = key if frozen_noise else jax.random.fold_in(key, i)
        state, loss = svi.update(SVIState(carry.optim_state, carry.mutable_state, noise), (x0, indices), *args)
        decay = jnp.minimum(ema_decay, (1 + i.astype(float)) / (10 + i))
        params = svi.optim.get_params(state.optim_state)
        average = jax.tree.map(lambda a, p: (decay * a + (1 - decay) * p).astype(p.dtype), carry.average, params)
        return Carry(state.optim_state, state.mutable_state, average), carried, (loss / normaliser).astype(float)

    return iterate


def compile_loop(
    svi: SVI,
    batches: Batches,
    args: tuple[Any, ...],
    carry: Carry,
    *,
    key: Array,
    normaliser: int,
    ema_decay: float,
    frozen_noise: bool,
    spread: Spread,
    placed: Any,
) -> Loop:
    """Compiles an iteration, once for chunks of every length: with one executable, it does not matter where chunks end.

    Args:
        svi: Stock SVI, whose programs take `(x0, indices)` and then `args`.
        batches: Where batches come from.
        args: Further arguments of the programs.
        carry: A state, for its shapes.
        key: Random key of the noise; iteration i uses it folded with i, or as it is if `frozen_noise`.
        normaliser: Number of data that a loss adds up.
        ema_decay: Decay of the average; in iteration i it is at most (1 + i) / (10 + i).
        frozen_noise: Whether every iteration sees the same noise.
        spread: The devices that a batch is split over.
        placed: The sharding of each leaf of `carry`; None where nothing is placed.

    Raises:
        ValueError: another process has another program.

    Returns:
        `loop(feed, carry, start, stop)`, which does iterations start, ..., stop - 1 (counted from 0), at most
        LONGEST_CHUNK. The carry that it is given stays whole.
    """
    iterate = iteration(
        *(svi, batches, args),
        key=key,
        normaliser=normaliser,
        ema_decay=ema_decay,
        frozen_noise=frozen_noise,
        spread=spread,
    )

    def begin(source: Any, carry: Carry, start: Array) -> tuple[Chunk, Any]:
        chunk = Chunk(start, start >= 0, jax.tree.map(jnp.copy, carry), jnp.zeros(LONGEST_CHUNK, float))
        return chunk, batches.start(source, start)

    def step(at: tuple[Chunk, Any], source: Any, start: Array) -> tuple[Chunk, Any]:
        (i, was_healthy, before, losses), carried = at
        after, carried, loss = iterate(source, i, before, carried)
        healthy = was_healthy & jnp.isfinite(loss) & all_finite(after.average) & all_finite(after.mutable_state)
        kept = jax.tree.map(lambda a, b: jnp.where(healthy, a, b), after, before)
        losses = losses.at[i - start].set(jnp.where(was_healthy, loss, losses[i - start]))
        return Chunk(i + healthy, healthy, kept, losses), carried

    def loop(source: Any, carry: Carry, start: Array, stop: Array) -> Chunk:
        def unfinished(at: tuple[Chunk, Any]) -> Array:
            return (at[0].position < stop) & at[0].healthy

        return lax.while_loop(unfinished, lambda at: step(at, source, start), begin(source, carry, start))[0]

    first = jnp.asarray(0, jnp.int32)
    whole: Any = spread.whole
    shardings: Any = whole if placed is None else Chunk(whole, whole, placed, whole)
    if batches.resident and not _one_by_one():
        lowered = jax.jit(loop, out_shardings=shardings).lower(batches.source, carry, first, first)
        _require_one_program(spread, lowered)
        compiled = lowered.compile()
        return lambda feed, carry, start, stop: compiled(
            feed(start), carry, jnp.asarray(start, jnp.int32), jnp.asarray(stop, jnp.int32)
        )
    opening: Any = begin
    stepping: Any = step
    if not _interpreted():  # under which there is nothing to compile ahead
        both = (shardings, whole)
        opening = jax.jit(begin, out_shardings=both).lower(batches.source, carry, first).compile()
        shapes = jax.eval_shape(begin, batches.source, carry, first)
        shapes = (spread.shapes(shapes[0], shardings), spread.shapes(shapes[1]))
        lowered = jax.jit(step, donate_argnums=0, out_shardings=both).lower(shapes, batches.source, first)
        _require_one_program(spread, lowered)
        stepping = lowered.compile()

    def dispatched(feed: Feed, carry: Carry, start: int, stop: int) -> Chunk:
        first = jnp.asarray(start, jnp.int32)
        at = opening(batches.source, carry, first)
        for i in range(start, stop):  # after a failure those that are on their way change nothing
            at = stepping(at, feed(i), first)
        chunk: Chunk = at[0]
        return chunk

    return dispatched


def _require_one_program(spread: Spread, lowered: Any) -> None:
    """Checks that all processes compile the same, or they would wait for each other without end."""
    processes.require_alike(spread, lambda: {"program": hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16]})


def _one_by_one() -> bool:
    """Whether iterations are dispatched one at a time, and not as one compiled loop.

    So on a CPU, where XLA runs convolutions inside of a loop without its threaded kernels (jax-ml/jax #12868): an
    iteration of a small U-Net takes 7.8 s in a loop and 1.05 s alone; without convolutions dispatching costs nothing to
    speak of. On an accelerator a loop spares the host. Without compilation, too, a Python loop does.
    """
    return jax.default_backend() == "cpu" or _interpreted()


def _interpreted() -> bool:
    config: Any = jax.config
    return bool(config.jax_disable_jit)


def _strong(leaf: Any) -> Array:
    leaf = jnp.asarray(leaf)
    return lax.convert_element_type(leaf, leaf.dtype)


def all_finite(tree: Any) -> Array:
    """Whether every floating-point leaf is finite. A parameter that is not makes its average so, at once."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.asarray([jnp.isfinite(leaf).all() for leaf in leaves]))


BAR = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"  # the number first: it stays


@contextmanager
def compiling(*, progress: bool) -> Iterator[None]:
    """Says so where a bar is to follow, until it is done."""
    with tqdm(total=0, bar_format="compiling", leave=False, **bar_options(progress=progress)):
        yield


_CHUNK_SECONDS = 0.5

_FIRST_CHUNK = 1


class NonFiniteLossError(FloatingPointError):
    """A fit stopped at an iteration whose loss, or whose new parameters, are not finite; they were not taken over.

    Args:
        message: What happened, and how to go on.
        iteration: The iteration, counted from 1.
        bound_bits: The last finite bound, in bits per datum; NaN if there was none.
        checkpoint: Directory of a checkpoint from before it; None if there is none.
    """

    def __init__(self, message: str, *, iteration: int, bound_bits: float, checkpoint: Path | None) -> None:
        super().__init__(message)
        self.iteration = iteration
        self.bound_bits = bound_bits
        self.checkpoint = checkpoint


@dataclass(frozen=True)
class Done:
    """What is done of a fit.

    Args:
        position: Number of iterations.
        carry: State after them.
        losses: Their losses in nats per datum, shape (position,).
        seconds: Time that they took, over all sessions.
        validated: What validation has said of them.
    """

    position: int
    carry: Carry
    losses: np.ndarray
    seconds: float
    validated: Validated


class Watch(Protocol):
    """What is done beside the iterations."""

    def stop(self, position: int) -> float:
        """The next iteration after which a chunk has to end."""

    def after(self, done: Done, *, num_iterations: int) -> Done:
        """Called after each chunk: what is done, looked at."""

    def is_over(self, done: Done) -> bool:
        """Whether the fit is to end here."""


@dataclass(frozen=True)
class Keep:
    """Where and how often checkpoints are kept.

    Args:
        run_dir: Directory of the run.
        key: The fit's random key, kept with them.
        seconds: Seconds between checkpoints.
        num_checkpoints: How many of the newest to keep.
    """

    run_dir: Path
    key: Array
    seconds: float
    num_checkpoints: int

    def save(self, done: Done) -> int:
        """Saves what is done; returns its position."""
        tree = {**done.carry._asdict(), "key": self.key, "losses": done.losses}
        if len(done.validated.losses):
            tree["validated"] = done.validated._asdict()
        runs.save_checkpoint(
            self.run_dir, done.position, tree, seconds=done.seconds, num_checkpoints=self.num_checkpoints
        )
        return done.position

    def folder(self, position: int) -> Path:
        """Directory of a checkpoint."""
        return runs.folder(self.run_dir, position)


def advance(
    loop: Loop,
    feed: Feed,
    done: Done,
    *,
    began: float,
    num_iterations: int,
    keep: Keep | None,
    watch: Watch,
    progress: bool,
    objective: str = "bound",
    spread: Spread = ALONE,
) -> Done:
    """Does the iterations that are missing; of several processes all do so together.

    Args:
        loop: The compiled loop.
        feed: What batches are drawn from, by iteration.
        done: What is done, and kept, already.
        began: When this session began, by `time.perf_counter`.
        num_iterations: Number of iterations in all.
        keep: Where checkpoints are kept; None keeps none.
        watch: What is done beside the iterations.
        progress: Whether to show a progress bar.
        objective: What the bar calls minus the loss.
        spread: The devices.

    Returns:
        What is done in the end, kept.

    Raises:
        NonFiniteLossError: an iteration failed; a state before it is kept.
        ConnectionError: another process was lost; what was saved before is kept.
        KeyboardInterrupt: Ctrl-C; the state after the last chunk is kept.
        OSError: a checkpoint could not be saved.
    """
    began -= done.seconds
    kept, kept_at, length, before = done.position, time.perf_counter(), _FIRST_CHUNK, done

    def last() -> str:
        return _where(keep, kept)

    with (
        tqdm(total=num_iterations, initial=done.position, bar_format=BAR, **bar_options(progress=progress)) as bar,
        processes.together(spread, where=last) as together,
    ):
        try:
            if done.position:
                done = watch.after(done, num_iterations=num_iterations)
            while done.position < num_iterations and not watch.is_over(done):
                earlier, before, chunk_began = before, done, time.perf_counter()
                stop = int(min(done.position + length, num_iterations, watch.stop(done.position)))
                chunk = loop(feed, done.carry, done.position, stop)
                position, healthy, losses = int(chunk.position), bool(chunk.healthy), np.asarray(chunk.losses)
                now = time.perf_counter()
                count = position - done.position
                # One assignment, of buffers that are not donated: an interrupt at any moment finds a whole state.
                losses_done = np.append(done.losses, losses[:count])
                done = Done(position, chunk.carry, losses_done, now - began, done.validated)
                bar.set_description_str(f"{objective} {averaged_bits(done.losses):.3f} bits ", refresh=False)
                bar.update(count)
                if not healthy:
                    sound = _sound(loop, feed, before if count else earlier, done, float(losses[count]))
                    if keep is not None and sound is not None and sound.position > kept:
                        kept = keep.save(sound)
                    raise _failure(done, float(losses[count]), keep.folder(kept) if keep is not None and kept else None)
                done = watch.after(done, num_iterations=num_iterations)
                due = keep is not None and now - kept_at >= keep.seconds
                length, due = together(_next_length(count, now - chunk_began), save=due)
                if keep is not None and due:
                    kept, kept_at = keep.save(done), time.perf_counter()
            if keep is not None and kept < done.position:
                keep.save(done)
        except KeyboardInterrupt:
            if keep is not None and done.position > 0:
                kept = keep.save(done)
            raise KeyboardInterrupt(
                f"Interrupted after {done.position} of {num_iterations} iterations. {last()}"
            ) from None
        except NonFiniteLossError:
            raise
        except Exception:  # of a source, a callback or a disk; of one process alone, which saves nothing alone
            if keep is not None and done.position > kept and not spread.hosts:
                with suppress(OSError):
                    keep.save(done)
            raise
    return done


def _where(keep: Keep | None, position: int) -> str:
    """Where to carry on from."""
    if keep is None:
        return "Without `run_dir` nothing is kept."
    return f"resume=True continues from {keep.folder(position) if position else 'the beginning: nothing is kept yet'}."


def _sound(loop: Loop, feed: Feed, before: Done, done: Done, loss: float) -> Done | None:
    """The last state known to have a finite loss, where the iteration after `done` failed; None if it is not known.

    If it is the loss that is not finite, the parameters it was evaluated at are no good either, whatever comes next:
    what came since `before` is done again up to the parameters that came before them.
    """
    if math.isfinite(loss):
        return done
    position = done.position - 1
    if position < before.position:
        return None
    carry = loop(feed, before.carry, before.position, position).carry
    return Done(position, carry, done.losses[:position], done.seconds, before.validated)


def _next_length(count: int, seconds: float) -> int:
    """Number of iterations that will take about half a second, after `count` took `seconds`."""
    wanted = int(_CHUNK_SECONDS * count / max(seconds, 1e-9))
    return max(1, min(wanted, 8 * count, LONGEST_CHUNK))


def averaged_bits(losses: np.ndarray) -> float:
    """The bound in bits per datum, averaged over the last tenth of the iterations."""
    return -float(np.mean(losses[-max(1, len(losses) // 10) :])) / math.log(2) if len(losses) else math.nan


def _failure(done: Done, loss: float, checkpoint: Path | None) -> NonFiniteLossError:
    what = "an update to parameters that are not" if math.isfinite(loss) else f"a loss of {loss}"
    finite = loss if math.isfinite(loss) else float(done.losses[-1]) if done.position else math.nan
    bound_bits = -finite / math.log(2)
    last = "no bound was finite" if math.isnan(finite) else f"the last finite bound was {bound_bits:.4f} bits per datum"
    remedy = "There is no checkpoint. Try a lower learning rate in `optimizer`, or a smaller `clip_norm`."
    if checkpoint is not None:
        remedy = (
            f"resume=True continues from {checkpoint}, with an `optimizer` of the same kind and a lower rate; "
            "deleting that directory falls back to the checkpoint before."
        )
    return NonFiniteLossError(
        f"Expected a finite loss; got {what} in iteration {done.position + 1}; {last}. {remedy}",
        iteration=done.position + 1,
        bound_bits=bound_bits,
        checkpoint=checkpoint,
    )
