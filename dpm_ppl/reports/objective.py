"""The numbers of a program that is no single chain: its bound where it has one, from the whole of model and guide."""

from functools import partial
from typing import Any

import jax
import numpy as np
from numpyro.infer import Trace_ELBO

from dpm_ppl.inference.units import in_both_units, mean_and_error
from dpm_ppl.programs import Program
from dpm_ppl.tracing import Sites, trace_quietly, trace_shapes

NO_LIKELIHOOD = "The program has no likelihood: what it observes when it is fitted is not what it generates."


def has_likelihood(program: Program, x0: Any) -> bool:
    """Whether a program scores data: all that it observes, given x0, are sites that it draws when it generates.

    A GAN, which observes what is real and what is generated, draws neither. No density is computed.

    Args:
        program: The program.
        x0: Data, shape (num_data, *event).
    """
    observed = trace_shapes(partial(_names, observed=True), program.model, x0=x0)
    drawn = trace_shapes(partial(_names, observed=False), program.model, size=len(x0))
    return bool(observed) and observed <= drawn


def _names(result: Any, sites: Sites, *, observed: bool) -> set[str]:
    return {name for name, site in sites.items() if site["type"] == "sample" and site["is_observed"] == observed}


def objective(program: Program, params: Any, x0: Any, *, key: Any) -> dict[str, float]:
    """What a fit raises, the ELBO of a program that has a likelihood, on x0: its mean per datum and its error.

    Args:
        program: The program.
        params: Its parameters.
        x0: Data, shape (num_data, *event), taken in 20 batches.
        key: Random key.

    Returns:
        `num_data`; in nats and bits per datum `elbo_bits`, its standard error `elbo_bits_se`, and so on, with
        `objective` for `elbo` where there is no likelihood. The error is that of independent batches.
    """
    num_batches = min(20, len(x0))
    size = len(x0) // num_batches
    batches = np.asarray(x0)[: num_batches * size].reshape(num_batches, size, *np.shape(x0)[1:])
    _, sites = trace_quietly(program.model, batches[0])
    plates = [site["args"] for site in sites.values() if site["type"] == "plate"]
    num_all = next((whole for whole, part in plates if part == size), size)  # that one loss stands for

    @jax.jit
    def loss(key: Any, x0: Any) -> Any:
        return Trace_ELBO().loss(key, params, program.model, program.guide, x0)

    keys = jax.random.split(key, num_batches)
    values = -np.array([float(loss(*given)) for given in zip(keys, batches, strict=True)]) / num_all
    mean, error = mean_and_error(values)
    name = "elbo" if has_likelihood(program, batches[0]) else "objective"
    result: dict[str, float] = {"num_data": num_batches * size}
    return result | in_both_units(name, mean) | in_both_units(name, error, suffix="_se")
