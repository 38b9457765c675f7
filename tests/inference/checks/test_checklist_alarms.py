"""Programs that are right in an unusual way: `check` raises no alarm, though it may note what is unusual."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference.checks.data import data
from dpm_ppl.inference.checks.gradients import gradients
from dpm_ppl.inference.checks.laws import bayes, chosen
from dpm_ppl.inference.checks.laws import kernel as kernel_checks
from dpm_ppl.inference.checks.reverse import reverse
from dpm_ppl.inference.checks.statistics import Difference
from dpm_ppl.inference.checks.subject import subject
from dpm_ppl.inference.checks.variance import variance
from tests.inference.checks.test_checklist_mistakes import of_chains, program
from tests.inference.checks.test_laws import OwnKernel, chain_of, found


class SingleConstants(OwnKernel):
    """Its schedule was made in single precision, as at an import, and the rest is computed in double."""

    num_steps = 40

    def __init__(self):
        self.beta = jnp.linspace(1e-4, 0.3, 40, dtype=jnp.float32)
        self.alpha_bar = jnp.concatenate([jnp.ones(1, jnp.float32), jnp.cumprod(1 - self.beta)])


def test_constants_in_single_precision_are_noted():
    chain = chain_of(SingleConstants())
    report = found(kernel_checks(chain), bayes(chain), reverse(chain))
    noted = [finding for finding in report.findings if "float32 constants" in finding.words]
    assert report.passed, report
    assert {"first marginal", "composition", "posterior"} <= {finding.name for finding in noted}
    assert {finding.status for finding in noted} == {"note"}


def test_single_precision_explains_no_large_difference():
    steps = np.array([[-3.0, 2.0], [40.0, -70.0], [5.0, np.inf]])
    near = Difference.of(steps, steps * (1 + np.array([[1e-5, 0], [2e-5, 0], [0, 0]])))
    np.testing.assert_allclose([near.off, near.at, near.nats], [2e-5 * 40 / 81, 1, (40 * 2e-5 - 3e-5) / 2], rtol=1e-4)
    assert near.is_single
    assert not near.is_none
    assert Difference.of(steps, steps).is_none
    never = np.full((1, 4), -1.5e308)  # as discrete kernels say it: no sum of such numbers is one
    assert not Difference.of(never, np.zeros((1, 4))).is_single
    large = Difference.of(1000 * steps, 1000 * steps + 0.1)  # a relative difference of single precision, and a tenth
    assert large.off < 1e-3
    assert not large.is_single
    assert not Difference.of(steps, np.where(steps == 2, np.nan, steps)).is_single


class Exploding:
    """Noise is added and nothing is lost: no pi is kept, only met at the end."""

    num_steps, event_shape = 6, (2,)
    scale = np.append(0, np.geomspace(0.2, 8.0, 6))

    def stationary(self):
        return dist.Normal(jnp.zeros(2), self.scale[-1]).to_event(1)

    def step(self, x, t):
        scale = jnp.asarray(self.scale)
        return dist.Normal(x, jnp.sqrt(scale[t] ** 2 - scale[t - 1] ** 2)[..., None]).to_event(1)

    def marginal(self, x0, t):
        return dist.Normal(x0, jnp.asarray(self.scale)[t][..., None]).to_event(1)

    def posterior(self, x0, xt, t):
        before, after = (jnp.asarray(self.scale)[s][..., None] ** 2 for s in (t - 1, t))
        mean = x0 * (1 - before / after) + xt * before / after
        return dist.Normal(mean, jnp.sqrt(before / after * (after - before))).to_event(1)


class ScaleOfPi(Exploding):
    """pi is wider than where the chain ends."""

    def stationary(self):
        return dist.Normal(jnp.zeros(2), 3 * self.scale[-1]).to_event(1)


class RootMissing(Exploding):
    """A variance where `step` takes a standard deviation."""

    def step(self, x, t):
        scale = jnp.asarray(self.scale)
        return dist.Normal(x, (scale[t] ** 2 - scale[t - 1] ** 2)[..., None]).to_event(1)


MEAN, SCALE = jnp.array([0.9, -0.5]), jnp.array([0.5, 0.2])


def exploding(kernel, decode=None):
    """What is said of the exact reverse of normal data, x^0 + N(0, scale_t^2), and of a `decode` of its own."""
    scale = jnp.asarray(Exploding.scale)

    def diffusion():
        offset = numpyro.param("offset", jnp.zeros(2))

        def reverse(x, t):
            before, after = (scale[s][..., None] ** 2 for s in (t - 1, t))
            share, kept = SCALE**2 / (SCALE**2 + after), before / after
            x0 = MEAN + offset + share * (x - MEAN)
            variance = kept * (after - before) + (1 - kept) ** 2 * share * after
            return dist.Normal((1 - kept) * x0 + kept * x, jnp.sqrt(variance)).to_event(1)

        return dpm.Diffusion(kernel, reverse, decode)

    model, guide = dpm.single_chain(diffusion)
    law = dist.Normal(MEAN, SCALE).to_event(1)
    ready = subject(program(diffusion, model=model, guide=guide, data=law))
    (chain,) = ready.chains
    return found(kernel_checks(chain), bayes(chain), reverse(chain), variance(ready, chain), data(ready, chain))


@pytest.mark.parametrize("decode", [None, lambda x1: dist.Normal(x1, 0.15).to_event(1)], ids=["default", "own"])
def test_a_variance_exploding_kernel(decode):
    """Its bound holds: the chain ends at pi, which nothing keeps, and no scale of the data is asked for."""
    report = exploding(Exploding(), decode)
    assert report.passed, report
    assert report["stationarity"].status == "note"
    assert "does not keep pi" in report["stationarity"].words
    assert report["end of the chain"].numbers["bits_per_dimension"] < 0.05
    assert report["data's moments"].status == "skipped"
    assert report["last step"].status == "note"


@pytest.mark.parametrize("kernel", [ScaleOfPi(), RootMissing()], ids=["pi is not met", "a wrong step"])
def test_a_slip_of_such_a_kernel_is_found(kernel):
    assert found(kernel_checks(chain_of(kernel)))["stationarity"].status == "failed"


def test_exchangeable_latents_have_no_order():
    def model(x0=None, size=1):
        weight = numpyro.param("weight", jnp.array([0.9, 1.3, 1.0]))
        with numpyro.plate("data", size if x0 is None else len(x0)):
            z = [numpyro.sample(f"z{i}", dist.Normal(jnp.zeros(2), 1).to_event(1)) for i in range(3)]
            return numpyro.sample(
                "x", dist.Normal(sum(w * z for w, z in zip(weight, z, strict=True)), 0.5).to_event(1), obs=x0
            )

    def guide(x0):
        share = numpyro.param("share", jnp.array([0.35, 0.3, 0.3]))  # the first nearer, and in the model the last
        with numpyro.plate("data", len(x0)):
            for i in range(3):
                numpyro.sample(f"z{i}", dist.Normal(share[i] * x0, 0.8).to_event(1))

    report = of_chains(program(None, model=model, guide=guide))
    assert report["order of the sites"].status == "skipped", report
    assert "no order is seen" in report["order of the sites"].words


@pytest.mark.parametrize(
    ("first", "last", "steps"), [(1, 1, [1]), (2, 2, [2]), (1, 2, [1, 2]), (2, 42, [2, 3, 12, 22, 32, 41, 42])]
)
def test_steps_that_are_looked_at_exist(first, last, steps):
    assert chosen(first, last) == steps


def test_parameters_of_steps_that_were_not_drawn():
    """One number for one step of many: a gradient in all steps reaches it, and only then."""
    num_steps = 2000

    def diffusion():
        kernel = dpm.GaussianKernel(dpm.schedules.linear(num_steps, first=1e-4, last=0.02), (2,))
        middle, rest = numpyro.param("middle", 0.9), numpyro.param("rest", 0.8)

        def back(x, t):
            return dist.Normal(jnp.where(jnp.asarray(t) == 1000, middle, rest)[..., None] * x, 0.5).to_event(1)

        return dpm.Diffusion(kernel, back)

    report = found(gradients(subject(program(diffusion, recipe={"num_steps_sampled": 1}))))
    assert [finding.status for finding in report.findings] == ["passed", "passed"], report
