"""What single precision does to the bound."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference.checks.precision import precision
from dpm_ppl.inference.checks.subject import subject
from tests.inference.checks.test_checklist import program


class Cancelling(dpm.GaussianKernel):
    """Takes 1 - alpha_bar as it stands: nothing is left of it in float32."""

    def marginal(self, x0, t):
        signal = self.alpha_bar[t][..., None]
        return dist.Normal(jnp.sqrt(signal) * x0, jnp.sqrt(1 - signal)).to_event(1)

    def posterior(self, x0, xt, t):
        beta, before, after = (a[..., None] for a in (self.beta[t - 1], self.alpha_bar[t - 1], self.alpha_bar[t]))
        mean = (jnp.sqrt(before) * beta * x0 + jnp.sqrt(1 - beta) * (1 - before) * xt) / (1 - after)
        return dist.Normal(mean, jnp.sqrt(beta * (1 - before) / (1 - after))).to_event(1)


@pytest.mark.parametrize(("kind", "status"), [(dpm.GaussianKernel, "passed"), (Cancelling, "failed")])
def test_a_cancellation_in_float32(kind, status):
    def diffusion():
        kernel = kind(np.array([1e-8, 1e-7, 0.3]), (2,))
        scale = numpyro.param("scale", 1.0)

        def reverse(x, t):
            step = kernel.step(x, t).base_dist
            return dist.Normal(step.loc, scale * step.scale).to_event(1)

        return dpm.Diffusion(kernel, reverse)

    (finding,) = precision(subject(program(diffusion)))
    assert finding.status == status, finding
