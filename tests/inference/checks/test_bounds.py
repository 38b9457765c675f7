"""The bounds of a program, and their order."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import dpm_ppl as dpm
from dpm_ppl.inference.checks.bounds import _analytic, _order
from tests.inference.checks.test_checklist import BETA, chain_of
from tests.oracles import data as gaussian_data


class WideSamples(dist.Normal):
    """A distribution of a user's own whose samples are not of its density."""

    def sample(self, key, sample_shape=()):
        return self.loc + 2 * self.scale * jax.random.normal(key, sample_shape + self.batch_shape)


def test_bounds_out_of_order_where_samples_are_not_of_the_density():
    kernel = dpm.GaussianKernel(BETA, (2,))
    for law, status in ((WideSamples, "failed"), (dist.Normal, "passed")):

        def reverse(x, t, law=law):
            exact = kernel.step(x, t).base_dist  # the reverse of a stationary chain
            return law(exact.loc, 0.9 * exact.scale).to_event(1)

        assert _order(chain_of(kernel, reverse, gaussian_data(64))).status == status


def test_a_divergence_that_is_sampled_in_silence_is_noted_with_its_deviation():
    kernel = dpm.GaussianKernel(BETA, (2,))

    def heavy(x, t):
        exact = kernel.step(x, t).base_dist
        return dist.StudentT(1e6, exact.loc, exact.scale).to_event(1)  # as good as normal, and not known to be

    known, silent = _analytic(chain_of(kernel)), _analytic(chain_of(kernel, heavy))
    assert (known.status, silent.status) == ("passed", "note")
    assert "KL(Normal || StudentT) is not known" in silent.words
    np.testing.assert_allclose(silent.numbers["deviation"], known.numbers["deviation_if_sampled"], rtol=1e-3)
    # log q - log p of normals of variances v and b, means m apart: variance D ((1 - v/b)^2 / 2) + v |m|^2 / b^2.
    chain, variance = chain_of(kernel), 0.0
    for t in (2, 3, 4):
        q, p = kernel.posterior(chain.x0, chain.states[t], t).base_dist, kernel.step(chain.states[t], t).base_dist
        v, b = q.scale**2, p.scale**2
        variance += float(jnp.mean(jnp.sum((1 - v / b) ** 2 / 2 + v * (q.loc - p.loc) ** 2 / b**2, -1)))
    np.testing.assert_allclose(known.numbers["deviation_if_sampled"], np.sqrt(variance), rtol=0.35)  # of 16 x 3 pairs
