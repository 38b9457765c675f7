"""The fitted parameters of a program, whether it is one chain or not."""

from pathlib import Path
from typing import Any

from dpm_ppl.programs import Program


def load_fitted(run_dir: Path, program: Program, data: Any) -> dict[str, Any]:
    """Parameters of a run, averaged: of `diffusion` where the program has one, and else of model and guide together.

    Args:
        run_dir: Directory of the fit.
        program: The program that was fitted.
        data: Its data, of which one is enough to see what it declares.

    Returns:
        Values by name, as `dpm_ppl.inference.load_params` gives them.
    """
    import jax
    from numpyro import handlers

    from dpm_ppl import metrics
    from dpm_ppl.inference import load_params

    if program.diffusion is not None:
        return load_params(run_dir, program.diffusion)
    x0 = metrics.fresh_data(data, key=jax.random.key(0), num_data=1)[:1]

    def declarations() -> None:
        with handlers.block(hide_fn=lambda site: site["type"] != "param"), handlers.seed(rng_seed=0):
            program.model(x0)
            program.guide(x0)

    return load_params(run_dir, declarations)
