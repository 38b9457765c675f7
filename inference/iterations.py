"""The iterations of a fit: one compiled loop of stock SVI updates and averages, which stops before damage."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState

from dpm_ppl.inference.minibatches import Batches

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


Loop = Callable[[Any, Carry, int, int], Chunk]


def start(svi: SVI, state: SVIState) -> Carry:
    """The state before the first iteration: the average is the parameters themselves."""
    # No weak types: with them, a loop compiled for the first iteration would refuse a state read from a checkpoint.
    optim_state, mutable_state = jax.tree.map(_strong, (state.optim_state, state.mutable_state))
    return Carry(optim_state, mutable_state, svi.optim.get_params(optim_state))


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
) -> Loop:
    """Compiles the loop, once for chunks of every length: with one executable, it does not matter where chunks end.

    Args:
        svi: Stock SVI, whose programs take `(x0, indices)` and then `args`.
        batches: Where batches come from.
        args: Further arguments of the programs.
        carry: A state, for its shapes.
        key: Random key of the noise; iteration i uses it folded with i, or as it is if `frozen_noise`.
        normaliser: Number of data that a loss adds up.
        ema_decay: Decay of the average; in iteration i it is at most (1 + i) / (10 + i).
        frozen_noise: Whether every iteration sees the same noise.

    Returns:
        `loop(source, carry, start, stop)`, which does iterations start, ..., stop - 1 (counted from 0), at most
        LONGEST_CHUNK.
    """

    def iterate(source: Any, i: Array, carry: Carry, carried: Any) -> tuple[Carry, Any, Array]:
        carried, x0, indices = batches.draw(source, i, carried)
        noise = key if frozen_noise else jax.random.fold_in(key, i)
        state, loss = svi.update(SVIState(carry.optim_state, carry.mutable_state, noise), (x0, indices), *args)
        decay = jnp.minimum(ema_decay, (1 + i.astype(float)) / (10 + i))
        params = svi.optim.get_params(state.optim_state)
        average = jax.tree.map(lambda a, p: (decay * a + (1 - decay) * p).astype(p.dtype), carry.average, params)
        return Carry(state.optim_state, state.mutable_state, average), carried, loss / normaliser

    def loop(source: Any, carry: Carry, start: Array, stop: Array) -> Chunk:
        def body(at: tuple[Chunk, Any]) -> tuple[Chunk, Any]:
            (i, _, before, losses), carried = at
            after, carried, loss = iterate(source, i, before, carried)
            healthy = jnp.isfinite(loss) & _finite(after.average) & _finite(after.mutable_state)
            kept = jax.tree.map(lambda a, b: jnp.where(healthy, a, b), after, before)
            return Chunk(i + healthy, healthy, kept, losses.at[i - start].set(loss)), carried

        losses = jnp.zeros(LONGEST_CHUNK, loss_type.dtype)
        begin = Chunk(start, start >= 0, carry, losses), batches.start(source, start)
        return lax.while_loop(lambda at: (at[0].position < stop) & at[0].healthy, body, begin)[0]

    first = jnp.asarray(0, jnp.int32)
    loss_type = jax.eval_shape(
        lambda c: iterate(batches.source, first, c, batches.start(batches.source, first))[2], carry
    )
    compiled = jax.jit(loop).lower(batches.source, carry, first, first).compile()
    return lambda source, carry, start, stop: compiled(
        source, carry, jnp.asarray(start, jnp.int32), jnp.asarray(stop, jnp.int32)
    )


def _strong(leaf: Any) -> Array:
    leaf = jnp.asarray(leaf)
    return lax.convert_element_type(leaf, leaf.dtype)


def _finite(tree: Any) -> Array:
    """Whether every floating-point leaf is finite. A parameter that is not makes its average so, at once."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.asarray([jnp.isfinite(leaf).all() for leaf in leaves]))
