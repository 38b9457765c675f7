"""Several starts of a fit at once, each from a random key of its own, by one `vmap`; the best is seen at the end."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

from dpm_ppl.inference.fitting.batches import Batches
from dpm_ppl.inference.fitting.loop import (
    BAR,
    Carry,
    NonFiniteLossError,
    all_finite,
    averaged_bits,
    compiling,
    iteration,
    start,
)
from dpm_ppl.inference.fitting.prepare import Prepared
from dpm_ppl.inference.progress import bar_options

_BETWEEN_LOOKS = 50  # iterations between two looks at the losses, for the bar


class Starts(NamedTuple):
    """Where several starts ended.

    Attributes:
        carry: State after their last iterations, leaves of (num_starts, ...); of one that failed, before that.
        losses: Loss in nats per datum of each iteration, shape (num_starts, num_iterations); NaN from a failure on.
    """

    carry: Carry
    losses: np.ndarray

    def one(self, number: int) -> Carry:
        """The state of one start."""
        carry: Carry = jax.tree.map(lambda leaf: leaf[number], self.carry)
        return carry


class _State(NamedTuple):
    """All starts, between two iterations: leaves of (num_starts, ...), but for the losses, which come last."""

    batch_key: Array
    noise_key: Array
    carry: Carry
    carried: Any
    healthy: Array


def start_key(key: Array, number: int | Array) -> Array:
    """The random key of a start, which makes the same fit alone."""
    return jax.random.fold_in(key, number)


def fit_starts(
    prepared: Prepared,
    batches: Any,
    args: tuple[Any, ...],
    *,
    key: Array,
    num_starts: int,
    num_iterations: int,
    ema_decay: float,
    frozen_noise: bool,
    progress: bool,
) -> Starts:
    """Fits from several starts, to their end.

    Args:
        prepared: The program, ready to fit.
        batches: Where batches come from, in memory; each start draws its own.
        args: Further arguments of the program.
        key: Random key; start s is the fit of `start_key(key, s)`.
        num_starts: How many.
        num_iterations: Number of iterations of each.
        ema_decay: As in `fit`.
        frozen_noise: As in `fit`.
        progress: Whether to show a progress bar, with the bound of the best.

    Returns:
        Where they ended. A start whose loss or parameters are not finite stays where it was before that.

    Raises:
        ValueError: the data are read as they are needed.
        NonFiniteLossError: all starts failed.
    """
    if not batches.resident:
        raise ValueError(
            "Expected `data` in memory for several starts, each of which draws its own batches; these are read as they "
            "are needed. Fit once for each key, or take `num_starts=1`."
        )
    keys = jax.vmap(start_key, in_axes=(None, 0))(key, jnp.arange(num_starts))
    first = jnp.asarray(0, jnp.int32)

    def own(batch_key: Array) -> Batches:
        of_key: Batches = replace(batches, key=batch_key)
        return of_key

    def begin(key: Array, source: Any) -> _State:
        init_key, batch_key, noise_key = jax.random.split(key, 3)
        carried = own(batch_key).start(source, first)
        _, x0, _ = own(batch_key).draw(source, first, carried)
        carry = start(prepared.svi, prepared.begin(init_key, x0))
        return _State(batch_key, noise_key, carry, carried, jnp.isfinite(0.0))

    def step(state: _State, i: Array, source: Any) -> tuple[_State, Array]:
        iterate = iteration(
            *(prepared.svi, own(state.batch_key), args),
            key=state.noise_key,
            normaliser=prepared.normaliser,
            ema_decay=ema_decay,
            frozen_noise=frozen_noise,
        )
        after, carried, loss = iterate(source, i, state.carry, state.carried)
        healthy = state.healthy & jnp.isfinite(loss) & all_finite(after.average) & all_finite(after.mutable_state)
        carry = jax.tree.map(lambda a, b: jnp.where(healthy, a, b), after, state.carry)
        return _State(state.batch_key, state.noise_key, carry, carried, healthy), jnp.where(healthy, loss, jnp.inf)

    def steps(at: tuple[_State, Array], i: Array, source: Any) -> tuple[_State, Array]:
        state, losses = at
        state, loss = jax.vmap(step, in_axes=(0, None, None))(state, i, source)
        return state, losses.at[:, i].set(loss)

    with compiling(progress=progress):
        state = jax.jit(jax.vmap(begin, in_axes=(0, None)))(keys, batches.source)
        stepping = jax.jit(steps, donate_argnums=0)
        at = stepping((state, jnp.full((num_starts, num_iterations), jnp.inf)), first, batches.source)
    with tqdm(total=num_iterations, initial=1, bar_format=BAR, **bar_options(progress=progress)) as bar:
        for i in range(1, num_iterations):
            at = stepping(at, jnp.asarray(i, jnp.int32), batches.source)
            if i % _BETWEEN_LOOKS == 0:
                _look(_fetched(at[1])[:, : i + 1], bar)
        _look(_fetched(at[1]), bar)
    return Starts(at[0].carry, _fetched(at[1]))


def _fetched(losses: Array) -> np.ndarray:
    """Losses with NaN where a start had failed: infinite on the device, as `jax_debug_nans` would stop at NaN there."""
    found = np.asarray(losses)
    return np.where(np.isfinite(found), found, np.nan)


def scores(losses: np.ndarray) -> np.ndarray:
    """The loss of each start, averaged over the last tenth of its iterations; infinite where it failed."""
    last = losses[:, -max(1, losses.shape[1] // 10) :].mean(1)
    return np.where(np.isnan(losses[:, -1]), math.inf, last)


def _look(losses: np.ndarray, bar: Any) -> None:
    """Shows the bound of the best start; NonFiniteLossError where there is none left."""
    best, num_done = int(np.argmin(scores(losses))), losses.shape[1]
    bar.set_description_str(f"best bound {averaged_bits(losses[best]):.3f} bits ", refresh=False)
    bar.update(num_done - bar.n)
    if np.isnan(losses[:, -1]).all():
        lasted = int(np.isfinite(losses).sum(1).max())
        raise NonFiniteLossError(
            f"Expected a finite loss from one start at least; all {len(losses)} failed, the last in iteration "
            f"{lasted + 1}. Try a lower learning rate in `optimizer`, or a smaller `clip_norm`.",
            iteration=lasted + 1,
            bound_bits=math.nan,
            checkpoint=None,
        )
