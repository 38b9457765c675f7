"""A session of a fit: chunk after chunk, with a progress bar, until it is done, interrupted or broken."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array
from tqdm import tqdm

from dpm_ppl.inference import checkpoints
from dpm_ppl.inference.iterations import LONGEST_CHUNK, Carry, Loop

_CHUNK_SECONDS = 0.5
_FIRST_CHUNK = 16


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
    """

    position: int
    carry: Carry
    losses: np.ndarray
    seconds: float


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
        checkpoints.save(self.run_dir, done.position, tree, seconds=done.seconds, num_checkpoints=self.num_checkpoints)
        return done.position

    def folder(self, position: int) -> Path:
        """Directory of a checkpoint."""
        return checkpoints.folder(self.run_dir, position)


def advance(
    loop: Loop,
    source: Any,
    done: Done,
    *,
    began: float,
    num_iterations: int,
    keep: Keep | None,
    progress: bool,
    objective: str = "bound",
) -> Done:
    """Does the iterations that are missing.

    Args:
        loop: The compiled loop.
        source: What batches are drawn from.
        done: What is done, and kept, already.
        began: When this session began, by `time.perf_counter`.
        num_iterations: Number of iterations in all.
        keep: Where checkpoints are kept; None keeps none.
        progress: Whether to show a progress bar.
        objective: What the bar calls minus the loss.

    Returns:
        What is done in the end, kept.

    Raises:
        NonFiniteLossError: an iteration failed; a state before it is kept.
        KeyboardInterrupt: Ctrl-C; the state after the last chunk is kept.
        OSError: a checkpoint could not be saved.
    """
    began -= done.seconds
    kept, kept_at, length = done.position, time.perf_counter(), _FIRST_CHUNK
    with tqdm(total=num_iterations, initial=done.position, disable=not progress, dynamic_ncols=True) as bar:
        try:
            while done.position < num_iterations:
                before, chunk_began = done, time.perf_counter()
                chunk = loop(source, done.carry, done.position, min(done.position + length, num_iterations))
                position, healthy, losses = int(chunk.position), bool(chunk.healthy), np.asarray(chunk.losses)
                now = time.perf_counter()
                count = position - done.position
                # One assignment, of buffers that are not donated: an interrupt at any moment finds a whole state.
                done = Done(position, chunk.carry, np.append(done.losses, losses[:count]), now - began)
                bar.set_postfix_str(f"{objective} {_bound_bits(done.losses):.3f} bits", refresh=False)
                bar.update(count)
                if not healthy:
                    sound = _sound(loop, source, before, done, float(losses[count]))
                    if keep is not None and sound is not None and sound.position > kept:
                        kept = keep.save(sound)
                    raise _failure(done, float(losses[count]), keep.folder(kept) if keep is not None and kept else None)
                length = _next_length(count, now - chunk_began)
                if keep is not None and now - kept_at >= keep.seconds:
                    kept, kept_at = keep.save(done), time.perf_counter()
            if keep is not None and kept < done.position:
                keep.save(done)
        except KeyboardInterrupt:
            where = "Without `run_dir` nothing is kept."
            if keep is not None and done.position > 0:
                where = f"resume=True continues from {keep.folder(keep.save(done))}."
            raise KeyboardInterrupt(
                f"Interrupted after {done.position} of {num_iterations} iterations. {where}"
            ) from None
    return done


def _sound(loop: Loop, source: Any, before: Done, done: Done, loss: float) -> Done | None:
    """The last state known to have a finite loss, where the iteration after `done` failed; None if it is not known.

    If it is the loss that is not finite, the parameters it was evaluated at are no good either, whatever comes next:
    the chunk, which began at `before`, is done again up to the parameters that came before them.
    """
    if math.isfinite(loss):
        return done
    position = done.position - 1
    if position < before.position:
        return None
    return Done(
        position, loop(source, before.carry, before.position, position).carry, done.losses[:position], done.seconds
    )


def _next_length(count: int, seconds: float) -> int:
    """Number of iterations that will take about half a second, after `count` took `seconds`."""
    wanted = int(_CHUNK_SECONDS * count / max(seconds, 1e-9))
    return max(1, min(wanted, 8 * count, LONGEST_CHUNK))


def _bound_bits(losses: np.ndarray) -> float:
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
