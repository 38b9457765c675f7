"""Samples of a fitted program, in blocks."""

from typing import Any

import numpy as np

from dpm_ppl.programs import Program


def draws(program: Program, params: Any, *, key: Any, num_samples: int) -> np.ndarray:
    """Samples x0 of a program, in blocks of one size, each from a key of its own.

    Args:
        program: The program.
        params: Its parameters.
        key: Random key.
        num_samples: How many; the first ones do not depend on it.

    Returns:
        Samples, shape (num_samples, *event).
    """
    import jax
    from numpyro import handlers
    from tqdm import tqdm

    from dpm_ppl import metrics
    from dpm_ppl.inference import instantiate
    from dpm_ppl.trajectories import reverse_states

    chain, size = program.diffusion, 512
    if chain is not None:
        size = metrics.affordable(instantiate(chain, params), seconds=10, least=16, most=4096)

    @jax.jit
    def draw(params: Any, key: Any) -> Any:
        if chain is not None:
            return reverse_states(instantiate(chain, params), key=key, num_samples=size)[0]
        return handlers.seed(handlers.substitute(program.model, data=params), key)(size=size)

    blocks = tqdm(range(-(-num_samples // size)), desc="sample", unit="block", delay=2, leave=False)
    return np.concatenate([np.asarray(draw(params, jax.random.fold_in(key, block))) for block in blocks])[:num_samples]
