"""Data that a fit does not see, so that what is said of it holds for new data."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from dpm_ppl.data import num_data_of
from dpm_ppl.inference.sources import Rows
from dpm_ppl.programs import Program

FEWEST = 20  # of fewer data none are kept back


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Data to evaluate on.

    Args:
        data: A distribution, or an array of shape (num_data, *event), or a tuple or dictionary of arrays; of a mapped
            file, `Rows` that are read as they are needed.
        called: What they are, in words: "fresh data", "held-out data" or "training data".
    """

    data: Any
    called: str


def split(program: Program, data: Any, *, share: float, seed: int) -> tuple[Any, Evaluated]:
    """The data to fit, and those to evaluate on: the program's `held_out()`, else fresh draws, else a share kept back.

    Args:
        program: The program.
        data: All of its data.
        share: The share of arrays that is kept back, drawn by `seed`; of fewer than 20 data none is.
        seed: The seed.

    Raises:
        ValueError: share is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"Expected --held-out, the share of the data that is kept back, in [0, 1); got {share:g}.")
    if program.held_out is not None:
        return data, Evaluated(program.held_out(), "held-out data")
    num_data = num_data_of(data)
    if num_data is None:
        return data, Evaluated(data, "fresh data")
    num_kept = round(share * num_data)
    if num_data < FEWEST or num_kept == 0:
        return data, Evaluated(data, "training data")
    order = np.random.default_rng(seed).permutation(num_data)

    def rows(of: np.ndarray) -> Any:
        return jax.tree.map(lambda leaf: Rows(leaf, of) if isinstance(leaf, np.memmap) else leaf[of], data)

    return rows(np.sort(order[num_kept:])), Evaluated(rows(np.sort(order[:num_kept])), "held-out data")
