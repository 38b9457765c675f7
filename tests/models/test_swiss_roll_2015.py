"""The swiss roll of 2015 where its readouts are constants: the paper's eqs. 64 and 65, and at zero the forward step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import norm

from dpm_ppl.models import swiss_roll_2015
from dpm_ppl.programs import instantiate
from tests.models.test_swiss_roll import start, with_bias

T = 40
X = np.array([[0.7, -1.9], [2.2, 0.1], [-3.0, 0.4]])
BEFORE = np.array([[0.5, -1.7], [2.5, 0.3], [-2.1, 0.2]])


@pytest.mark.parametrize("scale", [0.0, 0.8], ids=["zero", "constants"])
def test_reverse_steps_of_all_t(scale):
    """A mean and a variance for every step: of a readout's four numbers the first two are z, the others z_Sigma."""
    output = scale * np.random.default_rng(0).normal(size=(T, 4))
    params = with_bias(start(swiss_roll_2015.diffusion), lambda net: net.readout.bias, output)
    diffusion = instantiate(swiss_roll_2015.diffusion, params)
    log_prob = jax.jit(lambda: diffusion.reverse(X, jnp.arange(2, T + 1)[:, None]).log_prob(BEFORE))()
    beta = np.asarray(diffusion.kernel.beta)[1:, None, None]
    if scale:
        mean, variance = np.split(output[1:, None], 2, -1)
        variance = expit(variance + logit(beta))
        law = norm((X - mean) * np.sqrt(1 - variance) + mean, np.sqrt(variance))
    else:  # the step that leads the other way
        law = norm(np.sqrt(1 - beta) * X, np.sqrt(beta))
    np.testing.assert_allclose(log_prob, law.logpdf(BEFORE).sum(-1), rtol=1e-10)
