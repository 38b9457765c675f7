"""Guides and models that do not agree."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import dpm_ppl as dpm
from tests.inference.checks.test_checklist_mistakes import flipped, of_chains, program
from tests.inference.checks.test_laws import OwnKernel, T


def test_time_reversed_in_the_schedule_of_the_guide():
    report = of_chains(program(guide=dpm.single_chain(flipped)[1]))
    assert report["chains"].status == "failed"
    assert "time runs the other way" in report["chains"].words
    assert of_chains(program())["chains"].status == "passed"


def site_by_site(*, turned):
    """A chain of single sites; `turned` declares the model's in the guide's order, as is easily done."""
    kernel = OwnKernel()

    def diffusion():
        numpyro.param("a", 0.5)
        return dpm.Diffusion(kernel, kernel.step)

    def guide(x0):
        diffusion()
        with numpyro.plate("data", len(x0)):
            x = x0
            for t in range(1, T + 1):
                x = numpyro.sample(f"x_{t}", kernel.step(x, jnp.asarray(t)))

    def model(x0=None, size=1):
        diffusion()
        with numpyro.plate("data", size if x0 is None else len(x0)):
            x = None
            for t in range(T, 0, -1):
                law = kernel.stationary() if x is None else kernel.step(x, jnp.asarray(t + 1))
                x = numpyro.sample(f"x_{T + 1 - t if turned else t}", law)
            return numpyro.sample("x", kernel.step(x, jnp.asarray(1)), obs=x0)

    return program(diffusion, model=model, guide=guide)


def test_time_reversed_in_sites_of_their_own():
    report = of_chains(site_by_site(turned=True))
    assert report["order of the sites"].status == "failed"
    assert "Time runs the other way in the model: x^0 correlates with x_1 and x_7" in report["order of the sites"].words
    assert of_chains(site_by_site(turned=False))["order of the sites"].status == "passed"


@pytest.mark.parametrize(("turned", "status"), [(True, "failed"), (False, "passed")])
def test_time_reversed_in_numpyros_scan(turned, status):
    """A scan stacks its states in the order in which it makes them, from x^T in the model: the guide's have to."""
    kernel, times = OwnKernel(), jnp.arange(1, T + 1)

    def declared(x, law):
        return numpyro.sample("z", dist.Normal(law.base_dist.loc, law.base_dist.scale * jnp.ones_like(x)).to_event(2))

    def guide(x0):
        def forward(x, t):
            x = declared(x, kernel.step(x, t))
            return x, None

        def from_the_end(x, t):  # the marginals alone, x^T first
            return declared(x, kernel.marginal(x0, t)), None

        scan(forward if turned else from_the_end, x0, times if turned else times[::-1])

    def model(x0=None, size=1):
        numpyro.param("a", 0.5)

        def back(x, t):
            x = declared(x, kernel.step(x, jnp.minimum(t + 1, T)))
            return x, None

        x, _ = scan(back, jnp.zeros((size if x0 is None else len(x0), 2)), times[::-1])
        return numpyro.sample("x", dist.Normal(x, 0.3).to_event(2), obs=x0)

    report = of_chains(program(None, guide=guide, model=model))
    assert report["order of the sites"].status == status, report
    if turned:
        assert "x^0 correlates with z[0] and z[-1]" in report["order of the sites"].words
