"""The heartbeat of 2015 where its readouts are constants: logits added to the forward step, which zero gives back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logit

from dpm_ppl.models import heartbeat_2015
from dpm_ppl.programs import instantiate
from tests.models.test_swiss_roll import start, with_bias

T = 7


@pytest.mark.parametrize("scale", [0.0, 0.8], ids=["zero", "constants"])
def test_reverse_steps_of_all_t(scale, monkeypatch):
    monkeypatch.setattr(heartbeat_2015, "NUM_STEPS", T)
    output = scale * np.random.default_rng(0).normal(size=(T, 20))
    params = with_bias(start(heartbeat_2015.diffusion), lambda net: net.readout.bias, output)
    x = np.random.default_rng(1).binomial(1, 0.3, (4, 20))
    reverse = instantiate(heartbeat_2015.diffusion, params).reverse
    found = jax.jit(lambda: reverse(jnp.asarray(x), jnp.arange(2, T + 1)[:, None]).mean)()
    beta = 1 / np.arange(T - 1, 0, -1)[:, None, None]  # of t = 2..T: the last redraws all from B(1/5)
    np.testing.assert_allclose(found, expit(logit((1 - beta) * x + beta / 5) + output[1:, None]), rtol=1e-12)
