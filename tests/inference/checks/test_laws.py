"""A kernel's laws, each slip as a user would make it: found under the right name; the unspoiled kernel passes."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import dpm_ppl as dpm
from dpm_ppl.inference.checks.laws import bayes
from dpm_ppl.inference.checks.laws import kernel as kernel_checks
from dpm_ppl.inference.checks.report import Report
from dpm_ppl.inference.checks.reverse import reverse
from dpm_ppl.inference.checks.subject import Chain
from tests.oracles import BernoulliOracle, WithoutClosedForms
from tests.oracles import data as gaussian_data

BETA = np.array([0.05, 0.08, 0.2, 0.35, 0.3, 0.6, 0.9])
T = len(BETA)
X0 = gaussian_data(16)


class OwnKernel:
    """Gaussian diffusion as a user writes it, a line for each law; each slip is a subclass."""

    num_steps, event_shape = T, (2,)

    def __init__(self, beta=BETA):
        self.beta = jnp.asarray(beta)
        self.alpha_bar = jnp.concatenate([jnp.ones(1), jnp.cumprod(1 - self.beta)])

    def stationary(self):
        return dist.Normal(jnp.zeros(2), 1).to_event(1)

    def step(self, x, t):
        beta = self.beta[t - 1][..., None]
        return dist.Normal(jnp.sqrt(1 - beta) * x, jnp.sqrt(beta)).to_event(1)

    def marginal(self, x0, t):
        alpha_bar = self.alpha_bar[t][..., None]
        return dist.Normal(jnp.sqrt(alpha_bar) * x0, jnp.sqrt(1 - alpha_bar)).to_event(1)

    def posterior(self, x0, xt, t):
        beta, before, after = (a[..., None] for a in (self.beta[t - 1], self.alpha_bar[t - 1], self.alpha_bar[t]))
        mean = (jnp.sqrt(before) * beta * x0 + jnp.sqrt(1 - beta) * (1 - before) * xt) / (1 - after)
        return dist.Normal(mean, jnp.sqrt(beta * (1 - before) / (1 - after))).to_event(1)


class PosteriorMissing(OwnKernel):
    def posterior(self, x0, xt, t):
        return self.step(xt, t)


class PosteriorIgnoresData(OwnKernel):
    def posterior(self, x0, xt, t):
        return super().posterior(jnp.zeros_like(x0), xt, t)


class BetaLate(OwnKernel):
    def step(self, x, t):
        beta = self.beta[jnp.clip(t, 0, T - 1)][..., None]
        return dist.Normal(jnp.sqrt(1 - beta) * x, jnp.sqrt(beta)).to_event(1)


class AlphaBarEarly(OwnKernel):
    def marginal(self, x0, t):
        return super().marginal(x0, jnp.maximum(t - 1, 1))


class AlphaBarLate(OwnKernel):
    def marginal(self, x0, t):
        return super().marginal(x0, jnp.minimum(t + 1, T))


class AlphaBarWithoutItsOne(OwnKernel):
    """In every law: where both are late, `step` might as well be early."""

    def marginal(self, x0, t):
        return super().marginal(x0, jnp.minimum(t + 1, T))

    def posterior(self, x0, xt, t):
        beta, before, after = (a[..., None] for a in (self.beta[t - 1], self.alpha_bar[t], self.alpha_bar[(t + 1) % 8]))
        mean = (jnp.sqrt(before) * beta * x0 + jnp.sqrt(1 - beta) * (1 - before) * xt) / (1 - after)
        return dist.Normal(mean, jnp.sqrt(beta * (1 - before) / (1 - after))).to_event(1)


class AlphaBarLateInPosterior(OwnKernel):
    def posterior(self, x0, xt, t):
        return super().posterior(x0, xt, jnp.minimum(t + 1, T))


class VarianceInStep(OwnKernel):
    def step(self, x, t):
        beta = self.beta[t - 1][..., None]
        return dist.Normal(jnp.sqrt(1 - beta) * x, beta).to_event(1)


class VarianceInMarginal(OwnKernel):
    def marginal(self, x0, t):
        alpha_bar = self.alpha_bar[t][..., None]
        return dist.Normal(jnp.sqrt(alpha_bar) * x0, 1 - alpha_bar).to_event(1)


class VarianceInPosterior(OwnKernel):
    def posterior(self, x0, xt, t):
        right = super().posterior(x0, xt, t).base_dist
        return dist.Normal(right.loc, right.scale**2).to_event(1)


class RootMissingInStep(OwnKernel):
    def step(self, x, t):
        beta = self.beta[t - 1][..., None]
        return dist.Normal((1 - beta) * x, jnp.sqrt(beta)).to_event(1)


class RootMissingInMarginal(OwnKernel):
    def marginal(self, x0, t):
        alpha_bar = self.alpha_bar[t][..., None]
        return dist.Normal(alpha_bar * x0, jnp.sqrt(1 - alpha_bar)).to_event(1)


def chain_of(kernel, x0=X0, reverse=None, **kwargs):
    """The chain of a kernel, its reverse the kernel's own step."""
    diffusion = dpm.Diffusion(kernel, reverse or (lambda x, t: kernel.step(x, t)), **kwargs)
    return Chain("x", jnp.asarray(x0), diffusion, diffusion, jax.random.key(0))


def found(*checks):
    return Report("", tuple(finding for check in checks for finding in check), 0.0)


def of_kernel(kernel):
    chain = chain_of(kernel)
    return found(kernel_checks(chain), bayes(chain))


OFF_BY_ONE = "off by one"
DEVIATION = "a variance where a standard deviation belongs"
KERNEL_MISTAKES = {
    PosteriorMissing: ("posterior", "q(x^(t-1)|x^t) stands in place"),
    PosteriorIgnoresData: ("posterior", "q(x^(t-1)|x^t) stands in place"),
    BetaLate: ("composition", "in `step` alone they agree: beta is off by one"),
    AlphaBarEarly: ("composition", "in `marginal` alone they agree: alpha_bar is off by one"),
    AlphaBarLate: ("composition", "in `marginal` alone they agree: alpha_bar is off by one"),
    AlphaBarWithoutItsOne: (
        "composition",
        "beta is off by one there, or with t - 1 for t in `marginal` alone they agree",
    ),
    AlphaBarLateInPosterior: ("posterior", "in `posterior` alone they agree: beta or alpha_bar is off by one"),
    VarianceInStep: ("stationarity", f"its scale `step` is right: it gives Normal {DEVIATION}"),
    VarianceInMarginal: ("composition", f"its scale `marginal` is right: it gives Normal {DEVIATION}"),
    VarianceInPosterior: ("posterior", f"its scale `posterior` is right: it gives Normal {DEVIATION}"),
    RootMissingInStep: ("stationarity", "should be sqrt(1 - beta) x"),
    RootMissingInMarginal: ("composition", "should be sqrt(alpha_bar) x"),
}


@pytest.mark.parametrize("mistaken", KERNEL_MISTAKES, ids=lambda kernel: kernel.__name__)
def test_mistakes_of_a_kernel(mistaken):
    name, words = KERNEL_MISTAKES[mistaken]
    report = of_kernel(mistaken())
    assert report[name].status == "failed", report
    assert words in report[name].words, report


def test_the_unspoiled_kernel_passes():
    report = of_kernel(OwnKernel())
    assert [finding.status for finding in report.findings] == ["passed"] * 5, report


@pytest.mark.parametrize("law", ["step", "marginal", "posterior"])
def test_parameters_hidden_in_a_law_of_the_kernel(law):
    """Found before a bound takes its first value for ever."""

    def hidden(self, *arguments):
        numpyro.param("keep", 0.7)
        return getattr(OwnKernel, law)(self, *arguments)

    chain = replace(chain_of(OwnKernel()), forward=SimpleNamespace(kernel=type("Own", (OwnKernel,), {law: hidden})()))
    with pytest.raises(ValueError, match=rf"`kernel.{law}` .* declares the sites \['keep'\]"):
        list(kernel_checks(chain))


@pytest.mark.parametrize("slip", [BetaLate, None])
def test_mistakes_of_a_kernel_without_a_posterior(slip):
    kernel = (slip or OwnKernel)()
    partial = SimpleNamespace(
        **{n: getattr(kernel, n) for n in ("num_steps", "event_shape", "stationary", "step", "marginal")}
    )
    report = of_kernel(partial)
    assert report["posterior"].status == "skipped"
    assert report["composition"].status == ("failed" if slip else "passed"), report
    if slip:
        assert OFF_BY_ONE in report["composition"].words, report


def test_bits_oracle_without_closed_forms_is_skipped_with_reasons():
    oracle = BernoulliOracle()
    with handlers.seed(rng_seed=0):
        diffusion = oracle.with_kernel(WithoutClosedForms(oracle.diffusion().kernel))
    chain = replace(chain_of(oracle_kernel(oracle), jnp.zeros((8, 3), int)), forward=diffusion, model=diffusion)
    report = found(kernel_checks(chain), bayes(chain), reverse(chain))
    assert {f.name for f in report.findings if f.status == "skipped"} == {
        "end of the chain",
        "first marginal",
        "composition",
        "posterior",
        "reverse scale",
        "reverse time",
    }
    assert report.passed, report


def oracle_kernel(oracle):
    with handlers.seed(rng_seed=0):
        return oracle.diffusion().kernel
