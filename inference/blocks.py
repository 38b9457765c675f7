"""Many trajectories in blocks that fit in memory, behind a progress bar."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

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

    Returns:
        The index of each block, shape (num_blocks, block_size), in which the last block repeats the last item, and its
        results.

    Raises:
        ValueError: block_size is no integer of at least 1.
    """
    if block_size is not None and (not isinstance(block_size, int) or isinstance(block_size, bool) or block_size < 1):
        raise ValueError(f"Expected `block_size` to be an integer of at least 1, or None; got {block_size!r}.")
    numbers = 2**15 if jax.default_backend() == "cpu" else 2**18  # a processor's cache; an accelerator wants more
    size = block_size or max(1, min(numbers // numbers_per_item, max(2**12, 2**11 * numbers // num_steps)))
    index, real = _split(num_items, size)
    while block_size is None and index.shape[1] > 1:
        memory = block.lower(*args, index[0], real[0], **options).compile().memory_analysis()  # type: ignore[attr-defined]
        if memory is None or memory.temp_size_in_bytes <= _MEMORY:
            break
        index, real = _split(num_items, max(1, int(0.9 * index.shape[1] * _MEMORY / memory.temp_size_in_bytes)))
    results = []
    with tqdm(total=num_items, desc=description, unit="particle", delay=1, leave=False, disable=not progress) as bar:
        for items, counted in zip(index, real, strict=True):
            results.append(jax.device_get(block(*args, items, counted, **options)))
            check(items, results[-1])
            bar.update(int(counted.sum()))
    return index, results


def _split(num_items: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of one size, at most `size`: index, and which items are real, each of shape (num_blocks, block_size)."""
    num_blocks = math.ceil(num_items / size)
    items = np.arange(num_blocks * math.ceil(num_items / num_blocks)).reshape(num_blocks, -1)
    return np.minimum(items, num_items - 1).astype(np.uint32), items < num_items
