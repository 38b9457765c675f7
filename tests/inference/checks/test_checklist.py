"""`check` itself: what each finding measures, against closed forms, and what it makes of programs that are right."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference.checks.checklist import _optimised_little, check
from dpm_ppl.inference.checks.data import data
from dpm_ppl.inference.checks.gradients import gradients
from dpm_ppl.inference.checks.laws import kernel as kernel_checks
from dpm_ppl.inference.checks.report import Report
from dpm_ppl.inference.checks.subject import Chain, subject
from tests.oracles import COV, MEAN, GaussianOracle
from tests.oracles import data as gaussian_data

LAW = dist.MultivariateNormal(MEAN, COV)


ORACLE = GaussianOracle.exact(4).spoiled()


BETA = np.array([0.05, 0.1, 0.2, 0.3])


def program(diffusion, **parts):
    model, guide = dpm.single_chain(diffusion)
    return SimpleNamespace(**{"diffusion": diffusion, "model": model, "guide": guide, "data": LAW, **parts})


def chain_of(kernel, reverse=None, x0=None, **kwargs):
    diffusion = dpm.Diffusion(kernel, reverse or kernel.step, **kwargs)
    return Chain("x", gaussian_data(16) if x0 is None else x0, diffusion, diffusion, jax.random.key(0))


def found(*checks):
    return Report("", tuple(finding for check in checks for finding in check), 0.0)


def test_a_right_program_passes_everything():
    report = dpm.check(program(ORACLE.diffusion, recipe={"num_iterations": 100, "batch_size": 32}))
    assert report.passed, report
    statuses = {finding.name: finding.status for finding in report.findings}
    assert [name for name, status in statuses.items() if status == "skipped"] == [
        "order of the sites",
        "reverse scale",
        "reverse variance",
    ]
    assert [name for name, status in statuses.items() if status == "note"] == [
        "end of the chain",
        "K",
        "cost of a fit",
    ]
    assert len(statuses) == 28
    # The numbers are those of the closed forms, whatever the program's parameters were moved by: compare within.
    numbers = report["loss"].numbers
    assert numbers["elbo_of_loss"] == pytest.approx(numbers["elbo_of_diffusion"], abs=0.3)
    assert report["order of the bounds"].numbers["upper"] >= report["order of the bounds"].numbers["lower"]


@pytest.mark.parametrize("missing", ["model", "guide", "data"])
def test_what_is_no_program_is_refused(missing):
    parts = vars(program(ORACLE.diffusion))
    del parts[missing]
    with pytest.raises(TypeError, match=f"it lacks {missing}"):
        check(SimpleNamespace(**parts))


def test_xla_is_as_it_was_when_a_check_ends():
    """Little is optimised in a check, for speed; what the caller compiles after it is no business of it."""
    name, before = "jax_disable_most_optimizations", jax.config.read("jax_disable_most_optimizations")
    seen = []

    @_optimised_little()
    def fails():
        seen.append(jax.config.read(name))
        raise ValueError("within")

    try:
        jax.config.update(name, val=False)
        with pytest.raises(ValueError, match="within"):
            fails()
        assert (seen, jax.config.read(name)) == ([True], False)
    finally:
        jax.config.update(name, val=before)


def test_end_of_the_chain_and_the_papers_k_are_the_closed_forms():
    chain = chain_of(dpm.GaussianKernel(BETA, (2,)))
    signal = np.prod(1 - BETA)
    report = found(kernel_checks(chain), data(SimpleNamespace(x0=chain.x0, data=LAW, key=jax.random.key(1)), chain))
    kl = 0.5 * (signal * np.sum(np.asarray(chain.x0) ** 2, -1).mean() - 2 * signal - 2 * np.log1p(-signal))
    np.testing.assert_allclose(report["end of the chain"].numbers["bits"], kl / np.log(2), rtol=1e-9)
    second = MEAN @ MEAN + np.trace(COV)
    expected = 0.5 * (second - 2) * (BETA[0] + signal)  # MATH: (1/2)(s - 1)(beta_1 + abar_T) per dimension
    numbers = report["K"].numbers
    assert abs(numbers["K_minus_elbo"] - expected) < 4 * numbers["standard_error"]
    assert expected > 10 * numbers["standard_error"]
    assert report["K"].status == "note"


class Turning:
    """Keeps the standard normal and is not reversible: it turns the plane as it shrinks it."""

    num_steps, event_shape = 3, (2,)

    def stationary(self):
        return dist.Normal(jnp.zeros(2), 1).to_event(1)

    def step(self, x, t):
        turned = x @ jnp.array([[0.8, 0.6], [-0.6, 0.8]])
        return dist.Normal(0.9 * turned, jnp.sqrt(1 - 0.81) * jnp.ones_like(turned)).to_event(1)


def test_a_kernel_that_keeps_pi_without_being_reversible():
    report = found(kernel_checks(chain_of(Turning())))
    assert report["stationarity"].status == "passed"
    assert "not reversible" in report["stationarity"].words


def test_parameters_that_are_idle_or_whose_gradient_is_not_finite():
    def broken(x0=None, size=1):
        numpyro.param("idle", 1.0)
        root = numpyro.param("root", 0.0, constraint=dist.constraints.real)
        chain = ORACLE.diffusion()
        with numpyro.plate("data", size if x0 is None else len(x0)):
            numpyro.factor("nothing", 0.0 * jnp.sqrt(jnp.abs(root - root)))  # 0 times an infinite slope
            return dpm.reverse_chain("x", chain, obs=x0)

    report = found(gradients(subject(program(ORACLE.diffusion, model=broken))))
    assert "NaN or infinite in root" in report["gradients"].words

    def idle(x0=None, size=1):
        numpyro.param("idle", 1.0)
        return dpm.single_chain(ORACLE.diffusion)[0](x0, size)

    report = found(gradients(subject(program(ORACLE.diffusion, model=idle))))
    assert "No gradient reaches idle" in report["gradients"].words
