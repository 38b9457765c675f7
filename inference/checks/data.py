"""Are the data those that the kernel was made for?"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import constraints

from dpm_ppl.diffusion import check_data
from dpm_ppl.inference.checks.chain import Chain
from dpm_ppl.inference.checks.kernel import STANDARD_ERRORS
from dpm_ppl.inference.checks.report import Finding, failed, note, passed, skipped
from dpm_ppl.inference.checks.subject import Subject, draw
from dpm_ppl.inference.entropy import entropy

_NUM_DATA = 4000
FAR_RATE = 0.1  # of the data's mean from a Bernoulli kernel's rate
WIDEST = 4.0  # second moment, or its inverse, that is no slip of scaling
SMALL = 0.01  # nats per datum


def data(subject: Subject, chain: Chain) -> Iterator[Finding]:
    """Findings "data", "data's moments" and "K" of a chain on the data themselves."""
    if chain.x0.shape != subject.x0.shape or (chain.x0 != subject.x0).any():
        reason = "the chain is of a latent or a part of the data."
        yield from (skipped(name, reason) for name in ("data", "data's moments", "K"))
        return
    num_data = max(50, min(_NUM_DATA, 10_000_000 // max(subject.x0[0].size, 1)))
    x0 = draw(subject.data, key=subject.key, num_data=num_data)
    yield _support(chain, x0)
    yield _moments(chain, x0)
    yield _paper(chain, x0)


def _support(chain: Chain, x0: Array) -> Finding:
    try:
        check_data(chain.kernel, x0)
    except (TypeError, ValueError) as error:
        return failed("data", str(error))
    flat = np.asarray(x0).reshape(len(x0), -1)
    values = min(len(np.unique(column)) for column in flat.T[:8])
    if np.issubdtype(flat.dtype, np.floating) and values < 0.1 * len(flat):
        words = (
            f"The kernel's states are continuous, and the data take {values} values in a coordinate of {len(flat)} "
            "data: a density can grow there without bound. Add noise of one step between values (dequantise)."
        )
        return note("data", words, num_values=values)
    return passed("data", f"{len(x0)} data of shape {x0.shape[1:]} are finite and within the kernel's states.")


def _moments(chain: Chain, x0: Array) -> Finding:
    """Rate and mean of bits; second moment of reals."""
    name, pi = "data's moments", chain.kernel.stationary()
    support: Any = pi.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    flat = np.asarray(x0, np.float64).reshape(len(x0), -1)
    if support is constraints.boolean:
        rate, mean = float(jnp.mean(pi.mean)), float(flat.mean())
        words = f"The rate of pi is {rate:.4g} and the mean of the data {mean:.4g}"
        numbers = {"rate": rate, "mean": mean}
        if abs(rate - mean) > FAR_RATE:
            words += (
                f": the forward chain drives the data to another mean than theirs. Give the kernel rate={mean:.3g}."
            )
            return failed(name, words, **numbers)
        return passed(name, words + ".", **numbers)
    if support is constraints.real:
        second, mean = float((flat**2).mean()), flat.mean(0)
        of_pi = float(jnp.mean(pi.mean**2 + pi.variance))
        ratio = second / of_pi
        numbers = {"second_moment": second, "of_pi": of_pi, "largest_mean": float(np.abs(mean).max())}
        words = (
            f"The second moment of the data is {second:.4g} per dimension, the mean up to {numbers['largest_mean']:.3g}"
        )
        if not 1 / WIDEST < ratio < WIDEST:
            words += f", and pi's second moment is {of_pi:.3g}. Scale the data to zero mean and unit variance."
            return failed(name, words, **numbers)
        return passed(name, words + ".", **numbers)
    return skipped(name, f"pi is over {support}, of which neither mean nor scale is asked to match.")


def _paper(chain: Chain, x0: Array) -> Finding:
    """How far the paper's K is from the ELBO: it takes E log pi(x^t), t in {0, 1, T}, to be -H(pi)."""
    kernel: Any = chain.kernel
    if not chain.model.has_fixed_last_step or not hasattr(kernel, "marginal"):
        return skipped("K", "the paper's K is not known for a `decode` of one's own, or without `marginal`.")
    pi, num_steps = kernel.stationary(), kernel.num_steps
    keys = jax.random.split(chain.key, 3)

    def log_pi(x0: Array, t: int, key: Array) -> Array:
        """E log pi(x^t) of each datum, in nats."""
        return jnp.mean(pi.log_prob(kernel.marginal(x0, jnp.asarray(t)).sample(key, (20,))), 0)

    @jax.jit
    def excess_of(x0: Array) -> Array:
        replaced = pi.log_prob(x0) - log_pi(x0, 1, keys[0]) + log_pi(x0, num_steps, keys[1])
        return -jnp.mean(entropy(pi, keys[2])) - replaced

    excess = np.asarray(excess_of(x0), np.float64)
    off, error = float(excess.mean()), float(excess.std(ddof=1) / np.sqrt(len(excess)))
    words = f"The paper's K is {off:+.3g} ± {error:.2g} nats per datum off the exact ELBO"
    if abs(off) < max(STANDARD_ERRORS * error, SMALL):
        return passed("K", words + ".", K_minus_elbo=off, standard_error=error)
    words += ": the data's second moment (Gaussian) or mean (binomial) is not pi's, as K assumes. Report the ELBO."
    return note("K", words, K_minus_elbo=off, standard_error=error)
