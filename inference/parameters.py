"""Parameters of a run, read back for the program that was fitted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from numpyro import handlers
from numpyro.distributions import biject_to, constraints

from dpm_ppl.inference import checkpoints


def load_params(run_dir: str | Path, program: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """The averaged parameters of the newest checkpoint of a run, for the program that was fitted.

    Args:
        run_dir: Directory of the run, `run_dir` of `fit`.
        program: Model or guide. It is traced, on shapes alone, for the parameters and modules that it declares.
        *args: Arguments of the program.

    Returns:
        Value of each parameter that the program declares, by name, constrained; what `Fit.params` holds of them.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        TypeError: program is no function.
        ValueError: the checkpoint is damaged, or of another program.
    """
    if not callable(program):
        raise TypeError(f"Expected `program` to be the model or guide that was fitted; got {type(program).__name__}.")
    checkpoint = checkpoints.newest(Path(run_dir))
    if checkpoint is None:
        raise FileNotFoundError(
            f"Expected a checkpoint of a fit in {Path(run_dir)}; there is none. fit(run_dir=...) saves them."
        )

    def unconstrained() -> dict[str, Any]:
        return {name: transform.inv(value) for name, (value, transform) in _declared(program, args).items()}

    average = checkpoint.restore({"average": jax.eval_shape(unconstrained)})["average"]
    # Traced anew, as a constraint may be made of arrays of its trace; XLA drops all of the program but those.
    return jax.jit(
        lambda average: {name: transform(average[name]) for name, (_, transform) in _declared(program, args).items()}
    )(average)


def _declared(program: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, tuple[Any, Any]]:
    """Value of each parameter that a program declares, and the bijection to its constraint."""
    with handlers.block(), handlers.trace() as trace, handlers.seed(rng_seed=0):
        program(*args)
    params = {name: site for name, site in trace.items() if site["type"] == "param"}
    if not params:
        raise ValueError("Expected a program that declares parameters; it has none.")
    return {
        name: (site["value"], biject_to(site["kwargs"].get("constraint", constraints.real)))
        for name, site in params.items()
    }
