"""`check` itself: what each finding measures, against closed forms, and what it makes of programs that are right."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from typer.testing import CliRunner

import dpm_ppl as dpm
from dpm_ppl.__main__ import app
from dpm_ppl.inference.checks.bounds import _analytic, _order
from dpm_ppl.inference.checks.chain import Chain
from dpm_ppl.inference.checks.check import _optimised_little, check
from dpm_ppl.inference.checks.data import data
from dpm_ppl.inference.checks.gradients import gradients
from dpm_ppl.inference.checks.kernel import kernel as kernel_checks
from dpm_ppl.inference.checks.precision import precision
from dpm_ppl.inference.checks.report import Report, failed, note, passed, skipped
from dpm_ppl.inference.checks.subject import subject
from tests.oracles import COV, MEAN, GaussianOracle, programs
from tests.oracles import data as gaussian_data

LAW = dist.MultivariateNormal(MEAN, COV)
ORACLE = GaussianOracle.exact(4).spoiled()
BETA = np.array([0.05, 0.1, 0.2, 0.3])


def program(diffusion, **parts):
    model, guide = programs(diffusion)
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
    ]
    assert [name for name, status in statuses.items() if status == "note"] == [
        "end of the chain",
        "K",
        "cost of a fit",
    ]
    assert len(statuses) == 26
    # The numbers are those of the closed forms, whatever the program's parameters were moved by: compare within.
    numbers = report["loss"].numbers
    assert numbers["elbo_of_loss"] == pytest.approx(numbers["elbo_of_diffusion"], abs=0.3)
    assert report["order of the bounds"].numbers["upper"] >= report["order of the bounds"].numbers["lower"]


def test_report_names_counts_and_shows_findings():
    report = Report("mine", (passed("a", "fine."), note("b", "so so.", nats=1.0), failed("a", "wrong at t = 3.")), 2.0)
    assert not report.passed
    assert report["a"].words == "wrong at t = 3."
    assert report["b"].numbers == {"nats": 1.0}
    lines = str(report).splitlines()
    assert lines[2].split(maxsplit=2) == ["FAILED", "a", "wrong at t = 3."]
    assert lines[-1] == "mine: 1 mistake found; 1 passed, 1 to note, 0 skipped; 2 s"
    with pytest.raises(KeyError, match="there are a, b"):
        report["c"]
    unseen = str(Report("mine", (passed("a", "fine."), skipped("loss", "it has no bound.")), 2.0))
    assert unseen.endswith(
        "mine: no mistake found, but the loss could not be checked; 1 passed, 0 to note, 1 skipped; 2 s"
    )


def test_exit_status_of_the_command(tmp_path):
    result = CliRunner().invoke(app, ["check", "gan"])
    assert result.exit_code == 0, result.output
    assert "gan: no mistake found" in result.output
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpyro, numpyro.distributions as dist, dpm_ppl as dpm\n"
        "def diffusion():\n"
        "    kernel = dpm.GaussianKernel([0.1, 0.2], (2,))\n"
        "    return dpm.Diffusion(kernel, lambda x, t: dist.Normal(numpyro.param('a', 0.9) * x, 1).to_event(1))\n"
        "def model(x0=None, size=1):\n"
        "    dpm.reverse_chain('x', diffusion(), obs=x0)\n"
        "def guide(x0):\n"
        "    dpm.forward_chain('x', diffusion(), x0)\n"
        "def data():\n"
        "    return dpm.SwissRoll()\n"
    )
    result = CliRunner().invoke(app, ["check", str(file)])
    assert result.exit_code == 1
    assert "FAILED  parameters in a loop body" in result.output
    assert "mine: 1 mistake found" in result.output


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


def test_a_chain_and_its_trajectories_are_made_once():
    ready = subject(program(ORACLE.diffusion))
    (chain,) = ready.chains
    assert chain is ready.chains[0]


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
        return programs(ORACLE.diffusion)[0](x0, size)

    report = found(gradients(subject(program(ORACLE.diffusion, model=idle))))
    assert "No gradient reaches idle" in report["gradients"].words


@pytest.mark.parametrize(
    ("values", "name", "status", "words"),
    [
        (lambda x: 10 * x, "data's moments", "failed", "Scale the data"),
        (lambda x: 0.3 * x, "data's moments", "note", "looser"),
        (lambda x: np.round(2 * x) / 2, "data", "note", "dequantise"),
        (lambda x: np.round(x).astype(int), "data", "failed", "floating-point"),
        (lambda x: np.where(np.arange(len(x))[:, None] == 7, np.nan, x), "data", "failed", "finite"),
        (lambda x: x, "data", "passed", "finite and within"),
    ],
    ids=["scale", "small", "quantised", "integers", "NaN", "right"],
)
def test_data(values, name, status, words):
    x0 = values(np.asarray(gaussian_data(500)))
    chain = chain_of(dpm.GaussianKernel(BETA, (2,)), x0=jnp.asarray(x0)[:7])
    report = found(data(SimpleNamespace(x0=chain.x0, data=x0, key=jax.random.key(1)), chain))
    assert report[name].status == status, report
    assert words in report[name].words
