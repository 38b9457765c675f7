"""How much work a report may do."""

import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.reports.budget import affordable


def diffusion(num_steps, *, width=1):
    kernel = dpm.GaussianKernel(dpm.schedules.linear(num_steps), (2,))
    matrix = jnp.ones((2, width)), jnp.ones((width, width)), jnp.ones((width, 2))

    def reverse(x, t):
        return dist.Normal(x @ matrix[0] @ matrix[1] @ matrix[2], 1.0).to_event(1)

    return dpm.Diffusion(kernel, reverse)


def test_affordable_falls_with_steps_and_with_the_size_of_the_network():
    def num(*args, **options):
        return affordable(diffusion(*args, **options), seconds=10, least=1, most=10**9)

    assert num(40) == num(40)
    assert num(400) == pytest.approx(num(40) / 10, rel=1e-3)
    assert num(40, width=2000) < num(40) / 50  # four million products a step
    assert affordable(diffusion(40), seconds=10, least=5, most=7) == 7
    assert affordable(diffusion(40, width=2000), seconds=1e-9, least=5, most=7) == 5
    assert affordable(diffusion(1), seconds=1e-9, least=5, most=7) == 7  # no learned step to pay for
