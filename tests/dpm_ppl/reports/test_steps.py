"""The reverse chain a step at a time is the reverse chain."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.chains import reverse_states
from dpm_ppl.parts import Parts
from dpm_ppl.reports.steps import reverse_steps

SHAPE = (2, 3)


def chain(num_steps):
    """Of images, with a parameter that every step sees, and a last step of its own."""

    def definition():
        shift = numpyro.param("shift", jnp.zeros(()))
        kernel = dpm.GaussianKernel(dpm.schedules.linear(num_steps, first=0.1, last=0.5), SHAPE)

        def reverse(x, t):
            return dist.Normal(0.9 * x + shift * t[..., None, None], 0.3).to_event(2)

        return dpm.Diffusion(kernel, reverse, lambda x: dist.Normal(x - 2 * shift, 0.1).to_event(2))

    return definition


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_every_state_is_that_of_ancestral_sampling(num_steps):
    parts = Parts(None, chain(num_steps))
    key, times = jax.random.key(3), range(num_steps + 1)
    walk = reverse_steps(parts, None, key=key, num_samples=4, num_steps=num_steps)
    for shift in (0.4, -1.0):  # the parameters are those of the walk, not of the first one
        params = {"shift": jnp.asarray(shift)}
        states = reverse_states(parts.built(params), key=key, num_samples=4, times=times)
        walked = list(walk(params))
        assert [t for t, _ in walked] == list(reversed(times))
        for t, x in walked:
            np.testing.assert_allclose(x, states[t], rtol=1e-12, atol=1e-12)


def test_each_sample_is_beside_its_own_context():
    def definition(c):
        kernel = dpm.GaussianKernel(dpm.schedules.linear(3, first=0.1, last=0.5), SHAPE)
        numpyro.param("unused", jnp.zeros(()))

        def law(x, c):
            return dist.Normal(c[..., None, None] + 0 * x, 1e-9).to_event(2)

        return dpm.Diffusion(kernel, lambda x, t, c: law(x, c), law, context=c)

    context = jnp.asarray([5.0, -3.0])
    parts = Parts(None, definition, (0, 1), 1, True)
    walk = reverse_steps(parts, context, key=jax.random.key(0), num_samples=2, num_steps=3)
    *_, (_, x0) = walk({"unused": jnp.zeros(())})
    np.testing.assert_allclose(x0, np.broadcast_to(context[:, None, None], (2, *SHAPE)), atol=1e-6)
