"""Are the data those that the kernel was made for?"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from dpm_ppl.data import draw
from dpm_ppl.diffusion import require_data
from dpm_ppl.distributions import coordinate_support
from dpm_ppl.inference.checks.laws import keeps_pi
from dpm_ppl.inference.checks.report import Finding, failed, note, passed, skipped
from dpm_ppl.inference.checks.statistics import STANDARD_ERRORS
from dpm_ppl.inference.checks.subject import Chain, Subject
from dpm_ppl.inference.likelihoods.entropy import entropy
from dpm_ppl.kernels.kernel import has_marginal

_NUM_DATA = 4000

FAR_RATE = 0.1  # of the data's mean from a Bernoulli kernel's rate

WIDE, GROSS = 4.0, 100.0  # ratio of second moments, or its inverse, to note, and that is a slip of scaling

SMALL = 0.01  # nats per datum

_NEVER = 1e-9  # probability
_ROUNDING = 1e-6  # of a frequency, in single precision: which of two is larger below it is an accident of the machine


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
        require_data(chain.kernel, x0)
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
    """Rate and mean of bits; frequencies of categories; second moment of reals."""
    name, pi = "data's moments", chain.kernel.stationary()
    support = coordinate_support(pi.support)
    flat = np.asarray(x0, np.float64).reshape(len(x0), -1)
    if support is constraints.boolean:
        return _rate(float(jnp.mean(pi.mean)), float(flat.mean()))
    if isinstance(support, constraints.integer_interval):
        return _frequencies(chain, support, flat)
    if support is constraints.real:
        return _second_moment(chain, flat)
    return skipped(name, f"pi is over {support}, of which neither mean nor scale is asked to match.")


def _rate(rate: float, mean: float) -> Finding:
    name, words = "data's moments", f"The rate of pi is {rate:.4g} and the mean of the data {mean:.4g}"
    numbers = {"rate": rate, "mean": mean}
    if abs(rate - mean) > FAR_RATE:
        words += f": the forward chain drives the data to another mean than theirs. Give the kernel rate={mean:.3g}."
        return failed(name, words, **numbers)
    return passed(name, words + ".", **numbers)


def _frequencies(chain: Chain, support: Any, flat: np.ndarray) -> Finding:
    name, law = "data's moments", chain.kernel.stationary()
    while isinstance(law, dist.Independent):
        law = law.base_dist
    if law.event_shape:
        return skipped(name, "the coordinates of pi are not independent.")
    states = np.arange(int(support.lower_bound), int(support.upper_bound) + 1)
    log_prob = law.log_prob(states.reshape(-1, *(1,) * len(law.batch_shape)))
    of_pi = np.exp(np.asarray(log_prob, np.float64)).reshape(len(states), -1).mean(1)
    of_data = np.array([(flat == state).mean() for state in states])
    differ = np.abs(of_data - of_pi)
    at = int((differ > differ.max() - _ROUNDING).argmax())  # two states differ alike: the first is named
    numbers = {"state": float(states[at]), "of_data": float(of_data[at]), "of_pi": float(of_pi[at])}
    words = f"State {states[at]} has a frequency of {of_data[at]:.3g} in the data and {of_pi[at]:.3g} in pi"
    if abs(of_data[at] - of_pi[at]) < FAR_RATE:
        return passed(name, f"{words}, which differs most.", **numbers)
    if ((of_pi < _NEVER) & (of_data > 0)).any():
        return note(name, f"{words}: pi lacks states of the data, as that of an absorbing kernel does.", **numbers)
    words += ": the forward chain drives the data to other frequencies than theirs"
    if not chain.model.has_fixed_last_step:
        return note(name, f"{words}, which the bound pays for at its end.", **numbers)
    shares = ", ".join(f"{share:.3g}" for share in of_data[:8])
    return failed(name, f"{words}. Give the kernel theirs, {shares}{', ...' * (len(states) > 8)}.", **numbers)


def _second_moment(chain: Chain, flat: np.ndarray) -> Finding:
    name, pi = "data's moments", chain.kernel.stationary()
    if not chain.model.has_fixed_last_step:
        return skipped(name, "`decode` is the program's own, and asks of no scale.")
    second, of_pi = float((flat**2).mean()), float(jnp.mean(pi.mean**2 + pi.variance))
    largest, ratio = float(np.abs(flat.mean(0)).max()), second / of_pi
    numbers = {"second_moment": second, "of_pi": of_pi, "largest_mean": largest}
    words = f"The second moment of the data is {second:.4g} per dimension, the mean up to {largest:.3g}"
    if 1 / WIDE < ratio < WIDE:
        return passed(name, words + ".", **numbers)
    if not keeps_pi(chain):
        return skipped(name, 'the kernel keeps no pi, whose scale the data could have; see "end of the chain".')
    words += f", and pi's second moment is {of_pi:.3g}"
    if 1 / GROSS < ratio < GROSS:
        return note(name, words + ": the bound is looser than with data of pi's scale.", **numbers)
    return failed(name, words + ". Scale the data to zero mean and unit variance.", **numbers)


def _paper(chain: Chain, x0: Array) -> Finding:
    """How far the paper's K is from the ELBO: it takes E log pi(x^t), t in {0, 1, T}, to be -H(pi)."""
    kernel = chain.kernel
    if not chain.model.has_fixed_last_step or not has_marginal(kernel):
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
