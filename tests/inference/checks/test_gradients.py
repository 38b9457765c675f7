"""Parameters that no gradient reaches."""

import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

import dpm_ppl as dpm
from dpm_ppl.inference.checks.checklist import check
from dpm_ppl.inference.checks.gradients import gradients
from dpm_ppl.inference.checks.subject import subject
from tests.inference.checks.test_checklist_mistakes import ORACLE, frozen, program
from tests.inference.checks.test_laws import OwnKernel, found


def test_parameters_frozen_by_a_stop_gradient():
    report = found(gradients(subject(frozen("shift"))))
    assert report["gradients"].status == "failed"
    assert "in shift is exactly zero" in report["gradients"].words
    assert "a stop_gradient" in report["gradients"].words
    fine = found(gradients(subject(program())))
    assert [finding.status for finding in fine.findings] == ["passed", "passed"], fine


def test_parameters_hidden_in_the_body_of_numpyros_scan():
    """As by the book: the parameter is registered outside too, and keeps its first value within."""

    def broken(x0=None, size=1):
        numpyro.param("drift", 0.3)
        chain = ORACLE.diffusion()

        def body(c, _):
            return c + numpyro.param("drift", 0.3), None

        total, _ = scan(body, 0.0, None, length=3)
        with numpyro.plate("data", size if x0 is None else len(x0)):
            numpyro.factor("pull", -(total**2))
            return dpm.reverse_chain("x", chain, obs=x0)

    report = found(gradients(subject(program(model=broken))))
    assert report["parameters in a loop body"].status == "failed", report
    assert "drift keeps its first value" in report["parameters in a loop body"].words


def test_parameters_hidden_in_the_reverse_step():
    def diffusion():
        kernel = OwnKernel()
        return dpm.Diffusion(kernel, lambda x, t: dist.Normal(numpyro.param("a", 0.9) * x, 1.0).to_event(1))

    report = check(program(diffusion))
    assert [finding.name for finding in report.failed] == ["parameters in a loop body"]
    assert "'a'" in report.failed[0].words
