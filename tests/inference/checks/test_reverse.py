"""Mistakes of reverse steps."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from dpm_ppl.inference.checks.reverse import reverse, scale
from tests.inference.checks.test_laws import DEVIATION, OwnKernel, T, chain_of, found


def test_time_reversed_in_the_reverse_step():
    for turned, status in ((True, "failed"), (False, "passed")):
        kernel = OwnKernel()

        def reverse_step(x, t, turned=turned, kernel=kernel):
            return kernel.step(x, T + 2 - t if turned else t)

        report = found(reverse(chain_of(kernel, reverse=reverse_step)))
        assert report["reverse time"].status == status, report


@pytest.mark.parametrize(("power", "status"), [(2, "failed"), (1, "passed")])
@pytest.mark.parametrize("law", ["step", "posterior"])
def test_a_variance_for_a_standard_deviation_in_the_reverse_step(law, power, status):
    """As wide as `step`, or as `posterior`: what a network that starts near zero is added to."""
    kernel = OwnKernel()

    def reverse_step(x, t):
        exact = (kernel.step(x, t) if law == "step" else kernel.posterior(x, x, t)).base_dist
        return dist.Normal(exact.loc, (exact.scale * jnp.array([1.02, 0.95])) ** power).to_event(1)

    finding = scale(chain_of(kernel, reverse=reverse_step))
    assert finding.status == status, finding
    assert (DEVIATION in finding.words) == (status == "failed")


def test_a_reverse_step_with_mass_where_the_forward_chain_has_none():
    """A forward chain that only switches bits off, and a reverse that switches some off as well: not undone by it."""

    class Off:
        num_steps, event_shape = 4, (3,)

        def stationary(self):
            return dist.Bernoulli(probs=jnp.zeros(3)).to_event(1)

        def step(self, x, t):
            return dist.Bernoulli(probs=x * (1 - 1 / (5 - jnp.asarray(t)))[..., None]).to_event(1)

    x0 = jnp.asarray(np.random.default_rng(0).integers(0, 2, (16, 3)))
    for most, status in ((1.0, "passed"), (0.8, "failed")):  # what a bit that is on stays on with, going back

        def back(x, t, most=most):
            return dist.Bernoulli(probs=jnp.where(x == 1, most, 0.3)).to_event(1)

        chain = chain_of(Off(), x0, back, decode=lambda x1, back=back: back(x1, jnp.asarray(1)))
        report = found(reverse(chain))
        assert report["reverse support"].status == status, report
    assert "a step that the forward chain never takes" in report["reverse support"].words
