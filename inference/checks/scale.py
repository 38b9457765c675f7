"""Is the scale of the reverse steps a standard deviation, as NumPyro's Normal takes one, or a variance?"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dpm_ppl.inference.checks.alternatives import Laws, NoNormalError, normal
from dpm_ppl.inference.checks.chain import Chain
from dpm_ppl.inference.checks.report import Finding, failed, passed, skipped

NEAR, FAR = 0.1, 0.3  # of the log of a scale from the kernel's: a root that lands near, from far, is the right scale


def scale(chain: Chain) -> Finding:
    """A finding "reverse scale": an untrained reverse step is about as wide as `step` or `posterior`."""
    name = "reverse scale"
    if chain.num_steps == 1:
        return skipped(name, "there is no reverse step with T = 1.")
    try:
        off, off_root = (float(a) for a in _medians(chain))
    except NoNormalError:
        return skipped(name, "it takes normal laws, without correlations.")
    numbers = {"off": off, "off_root": off_root}
    words = f"In the median over all t the scale of `reverse` is {np.exp(off):.3g} times off that of the kernel's"
    if off_root < NEAR and off > FAR:
        words += (
            f" `step` or `posterior`, and its root {np.exp(off_root):.3g} times: it gives Normal a variance where a "
            "standard deviation belongs."
        )
        return failed(name, words, **numbers)
    return passed(name, f"{words} `step` or `posterior`.", **numbers)


def _medians(chain: Chain) -> tuple[Array, Array]:
    """Median |log of scale over the kernel's|, as it is and of the scale's root, by the law that is nearer."""
    laws = Laws.of(chain.kernel)

    @jax.jit
    def medians(states: Array) -> tuple[Array, Array]:
        xt, t = states[2:], chain.steps(*range(2, chain.num_steps + 1))
        mean, own, _ = normal(chain.model.reverse(xt, t))
        references = [normal(laws.step(xt, t))[1]]
        if laws.posterior is not None:
            references.append(normal(laws.posterior(jnp.broadcast_to(chain.x0, xt.shape), xt, t))[1])

        def nearest(scale: Array) -> Array:
            off = [jnp.median(jnp.abs(jnp.broadcast_to(jnp.log(scale / r), mean.shape))) for r in references]
            return jnp.min(jnp.stack(off))

        return nearest(own), nearest(jnp.sqrt(own))

    return medians(chain.states)
