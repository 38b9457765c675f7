r"""Weights of whole trajectories, summed while the chain runs: memory for one state of each trajectory, whatever T.

For a trajectory x^(1..T) of the datum x^0, in nats,

    log w = log pi(x^T) + sum_{t=1..T} [ log p(x^(t-1)|x^t) - log q(x^t|x^(t-1)) ],

p(x^0|x^1) being the diffusion's `decode`. Under forward trajectories E w = p(x^0) and E log w is the ELBO.

Source: Sohl-Dickstein et al. 2015, eq. 9; Jarzynski 1997; Neal 2001 (annealed importance sampling).
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from tqdm import tqdm

from dpm_ppl.arguments import require_count
from dpm_ppl.diffusion import Definition, Diffusion
from dpm_ppl.inference.devices import ALONE, Spread
from dpm_ppl.inference.progress import bar_options
from dpm_ppl.kernels.kernel import is_concrete, step_number
from dpm_ppl.programs import instantiate

Total = tuple[Array, Array, Array]  # running sum, what its rounding lost, and the first step that made it NaN or +inf


@partial(jax.jit, static_argnames=("definition", "num_data", "keep"))
def forward_weights(
    definition: Definition,
    params: dict[str, Any],
    x0: Array,
    context: Any,
    key: Array,
    index: Array,
    real: Array,
    *,
    num_data: int,
    first: ArrayLike = 0,
    keep: bool = False,
) -> dict[str, Array]:
    """Log weights of a block of forward trajectories, particle by particle and in each datum by datum.

    Args:
        definition: A program's definition.
        params: Parameters by name.
        x0: All data, shape (num_data, *event).
        context: Context of each, leaves of shape (num_data, ...); or None.
        key: Random key; trajectory i of the result depends on it, on its datum and on its particle alone.
        index: Trajectories to run, particle * num_data + datum, shape (size,).
        real: Which of them count in the sums over the block, shape (size,).
        num_data: Number of data.
        first: What the first of them is called: its number among others.
        keep: Whether to return the trajectories too, which takes memory for all T states.

    Returns:
        `log_weight` and `lost`, the rounding error to add to it, each of shape (size,), in nats; `bad_step`, shape
        (size,), the first step t whose term is NaN or +inf, T + 1 for log pi(x^T), or 0; `reverse_cross_entropy`, shape
        (T - 1,), the sum of -log p(x^(t-1)|x^t) over the block for t = 2..T; with `keep` also `trajectory`, shape
        (size, T, *event).
    """
    context = jax.tree.map(lambda leaf: leaf[index % num_data], context)
    built = instantiate(definition, params, context=context)
    kernel = built.kernel
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, first + i % num_data), i // num_data))(index)
    x0 = x0[index % num_data]

    def onward(x: Array, t: Array | np.ndarray) -> tuple[Array, Array]:
        def draw(x: Array, key: Array) -> tuple[Array, Array]:
            step = kernel.step(x, t)
            xt = step.sample(jax.random.fold_in(key, t))
            return xt, step.log_prob(xt)

        return jax.vmap(draw)(x, keys)

    def step(carry: tuple[Array, Total], t: Array) -> tuple[tuple[Array, Total], Any]:
        x, total = carry
        xt, log_forward = onward(x, t)
        log_reverse = built.reverse(xt, t).log_prob(x)
        cross_entropy = -jnp.sum(jnp.where(real, log_reverse, 0.0))
        return (xt, _add(total, log_reverse - log_forward, t)), (cross_entropy, xt if keep else None)

    x1, log_forward = onward(x0, step_number(1))
    total = _add(_zero(len(index)), built.decode(x1).log_prob(x0) - log_forward, 1)
    (xt, total), (cross_entropy, states) = _scan(step, (x1, total), jnp.arange(2, built.num_steps + 1))
    result = _result(_add(total, kernel.stationary().log_prob(xt), built.num_steps + 1))
    result["reverse_cross_entropy"] = cross_entropy
    if keep:
        states = x1[None] if states is None else jnp.concatenate([x1[None], states])
        result["trajectory"] = jnp.moveaxis(states, 0, 1)
    return result


@partial(jax.jit, static_argnames=("definition",))
def reverse_weights(
    definition: Definition, params: dict[str, Any], context: Any, key: Array, index: Array, real: Array
) -> dict[str, Array]:
    """Data drawn from the model, and the log weights of the reverse trajectories that made them.

    Args:
        definition: A program's definition.
        params: Parameters by name.
        context: Context of each datum, leaves of shape (num_data, ...); or None.
        key: Random key; datum i of the result depends on it and on index[i] alone.
        index: Data to draw, shape (size,).
        real: Not used: nothing is summed over the block.

    Returns:
        `x0`, shape (size, *event), and `log_weight`, `lost` and `bad_step` as of `forward_weights`.
    """
    del real
    context = jax.tree.map(lambda leaf: leaf[index], context)
    built = instantiate(definition, params, context=context)
    kernel, num_steps = built.kernel, built.num_steps
    keys = jax.vmap(partial(jax.random.fold_in, key))(index)

    def draw(law: Callable[[Diffusion, Array], Any], t: Array | int, x: Array) -> tuple[Array, Array]:
        """One state back from each x, and its log density: the network is run once for both."""

        def one(x: Array, key: Array, context: Any) -> tuple[Array, Array]:
            back = law(built.beside(context), x)
            before = back.sample(jax.random.fold_in(key, t))
            return before, back.log_prob(before)

        return jax.vmap(one)(x, keys, context)

    def step(carry: tuple[Array, Total], t: Array) -> tuple[tuple[Array, Total], None]:
        xt, total = carry
        before, log_reverse = draw(lambda one, x: one.reverse(x, t), t, xt)
        return (before, _add(total, log_reverse - kernel.step(before, t).log_prob(xt), t)), None

    last, log_prior = draw(lambda one, _: kernel.stationary(), num_steps + 1, index)
    total = _add(_zero(len(index)), log_prior, num_steps + 1)
    (x1, total), _ = _scan(step, (last, total), jnp.arange(num_steps, 1, -1))
    x0, log_decode = draw(lambda one, x: one.decode(x), 1, x1)
    return {"x0": x0} | _result(_add(total, log_decode - kernel.step(x0, step_number(1)).log_prob(x1), 1))


def _scan(step: Callable[..., Any], carry: Any, t: Array) -> Any:
    """A scan, that with T = 1 does not trace a reverse step that is never taken."""
    return jax.lax.scan(step, carry, t) if len(t) else (carry, (jnp.zeros((0,)), None))


def _zero(size: int) -> Total:
    return jnp.zeros((size,)), jnp.zeros((size,)), jnp.zeros((size,), jnp.int32)


def _add(total: Total, term: Array, t: Array | int) -> Total:
    """Adds a term and keeps what rounding loses: a plain float32 sum of 10,000 steps is off by more than 1e-2 nats.

    Source: Knuth, The Art of Computer Programming vol. 2, section 4.2.2, theorem B.
    """
    high, low, bad_step = total
    term = term.astype(high.dtype)
    new = high + term
    added = new - high
    lost = (high - (new - added)) + (term - added)
    is_bad = (jnp.isnan(term) | (term == jnp.inf)) & (bad_step == 0)
    return new, low + jnp.where(jnp.isfinite(new), lost, 0.0), jnp.where(is_bad, t, bad_step).astype(jnp.int32)


def _result(total: Total) -> dict[str, Array]:
    return dict(zip(("log_weight", "lost", "bad_step"), total, strict=True))


def raise_for_terms(
    num_data: int, num_steps: int, *, first: int = 0
) -> Callable[[np.ndarray, dict[str, np.ndarray]], None]:
    """What raises, after a block, a ValueError that names the datum and the step of a term that is NaN or +inf."""

    def check(index: np.ndarray, results: dict[str, np.ndarray]) -> None:
        (wrong,) = np.nonzero(results["bad_step"])
        if not len(wrong):
            return
        t = int(results["bad_step"][wrong[0]])
        particle, row = divmod(int(index[wrong[0]]), num_data)
        term, step = f"log p(x^{t - 1}|x^{t}) - log q(x^{t}|x^{t - 1})", f"step t = {t}"
        if t > num_steps:
            term, step = f"log pi(x^{num_steps})", f"the last state, t = {num_steps}"
        raise ValueError(
            f"Expected log weights that are numbers; got NaN or +inf in {len(np.unique(index[wrong]))} of "
            f"{len(np.unique(index))} trajectories, first at {step} of datum {first + row} (particle {particle}), in "
            f"{term}. A reverse step with a scale of zero, or one that overflows, does that: give its scale a floor, "
            "or look at it there."
        )

    return check


_MEMORY = 2**30  # bytes that a block chosen here may take beside the data


def run_in_blocks(
    block: Callable[..., dict[str, Any]],
    *args: Any,
    num_items: int,
    block_size: int | None,
    numbers_per_item: int,
    num_steps: int,
    options: Mapping[str, Any],
    description: str,
    progress: bool,
    check: Callable[[np.ndarray, dict[str, np.ndarray]], None],
    spread: Spread = ALONE,
) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
    """Calls a jitted function on every item of range(num_items), a block at a time.

    Args:
        block: Jitted `block(*args, index, real, **options)`: results for the items `index`, of which those not `real`
            only fill up the last block, so that one compilation serves all.
        *args: Its first arguments.
        num_items: Number of items.
        block_size: Items at a time, or None to choose: as many as keep the processor busy and fit in memory, as
            compiled.
        numbers_per_item: Numbers in one state of one item.
        num_steps: Steps of one item; the more, the fewer items at a time, so that the bar moves.
        options: Static options of `block`.
        description: What the bar says.
        progress: Whether to show it.
        check: Called with the index and the results of each block when it is done, to raise.
        spread: The devices that items are split over.

    Returns:
        The index of each block, shape (num_blocks, block_size), in which the last block repeats the last item, and its
        results.

    Raises:
        TypeError, ValueError: block_size is no integer of at least 1.
        TypeError: it is called in a transformation of JAX's.
    """
    if block_size is not None:
        block_size = require_count("block_size", block_size)
    numbers = 2**15 if jax.default_backend() == "cpu" else 2**18  # a processor's cache; an accelerator wants more
    size = max(1, min(numbers // numbers_per_item, max(2**12, 2**11 * numbers // num_steps))) * spread.num
    index, real = _split(num_items, block_size or size, spread.num)
    while block_size is None and index.shape[1] > spread.num:
        first = spread.put_split((index[0], real[0]))
        memory = block.lower(*args, *first, **options).compile().memory_analysis()  # type: ignore[attr-defined]
        if memory is None or memory.temp_size_in_bytes <= _MEMORY:
            break
        size = max(1, int(0.9 * index.shape[1] * _MEMORY / memory.temp_size_in_bytes))
        index, real = _split(num_items, size, spread.num)
    results = []
    options_of_bar = bar_options(progress=progress)
    with tqdm(total=num_items, desc=description, unit="particle", delay=1, leave=False, **options_of_bar) as bar:
        for items, counted in zip(index, real, strict=True):
            results.append(jax.device_get(block(*args, *spread.put_split((items, counted)), **options)))
            if not all(map(is_concrete, jax.tree.leaves(results[-1]))):
                raise TypeError(
                    f"Expected the {description} outside of jax.vmap, jit and grad, as they run in blocks whose values "
                    "are looked at; got arrays that are traced. Give all data at once, as a batch, and loop over keys "
                    "or parameters."
                )
            check(items, results[-1])
            bar.update(int(counted.sum()))
    return index, results


def _split(num_items: int, size: int, num_devices: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of one size: index, and which items are real, each of shape (num_blocks, block_size).

    The size is at most `size`, but for what makes it a multiple of the number of devices.
    """
    num_blocks = math.ceil(num_items / size)
    size = math.ceil(num_items / num_blocks / num_devices) * num_devices
    items = np.arange(num_blocks * size).reshape(num_blocks, -1)
    return np.minimum(items, num_items - 1).astype(np.uint32), items < num_items
