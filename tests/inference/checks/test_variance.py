"""Fixed variances that cannot be right, against the closed form of normal data; those that can give no alarm."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference.checks.subject import subject
from dpm_ppl.inference.checks.variance import variance
from tests.inference.checks.test_checklist_mistakes import program

BETA = np.linspace(0.02, 0.5, 8)
SIGNAL = np.append(1, np.cumprod(1 - BETA))
MEAN, SCALE = np.array([0.4, -0.6]), np.array([0.7, 1.2])


def found(variance_of, *, data=None, decode=None, beta=BETA, seed=0, **options):
    """The finding of a chain whose reverse steps have a variance, a function of the kernel and t, and any mean."""

    def diffusion():
        kernel = dpm.GaussianKernel(beta, (2,))
        factor = numpyro.param("factor", 0.5, constraint=dist.constraints.positive)
        slope = numpyro.param("slope", jnp.array([0.3, -0.2]))  # whatever the mean is, it does not count

        def reverse(x, t):
            deviation = jnp.sqrt(variance_of(kernel, t, factor))[..., None]
            return dist.Normal(slope * x, jnp.broadcast_to(deviation, x.shape)).to_event(1)

        return dpm.Diffusion(kernel, reverse, decode)

    data = dist.Normal(jnp.asarray(MEAN), jnp.asarray(SCALE)).to_event(1) if data is None else data
    model, guide = dpm.single_chain(diffusion)
    ready = subject(program(diffusion, model=model, guide=guide, data=data, **options), seed=seed)
    (finding,) = variance(ready, ready.chains[0])
    return finding


def posterior(kernel, t, factor):
    return kernel.posterior_coefficients(t)[2][..., 0]


def rates(kernel, t, factor):
    return kernel.beta[t - 1]


def exact(own):
    """The bound at the best mean, under variances of steps 2..T and under the best ones; nats.

    The best mean of a step of normal data is E[x^(t-1) | x^t], and that variance which it leaves is v, the posterior's
    b <= v: KL = (v / s - 1 - log(b / s)) / 2 under s.
    """
    keep = 1 - BETA
    least = BETA * (1 - SIGNAL[:-1]) / (1 - SIGNAL[1:])
    marginal = SIGNAL[:, None] * SCALE**2 + 1 - SIGNAL[:, None]
    left = marginal[:-1] - keep[:, None] * marginal[:-1] ** 2 / marginal[1:]  # var(x^(t-1) | x^t), t = 1..T
    s, b, v = own[1:, None], least[1:, None], left[1:]
    kl, best = 0.5 * (v / s - 1 - np.log(b / s)), 0.5 * np.log(v / b)
    last = -0.5 * (np.log(2 * np.pi * BETA[0]) + left[0] / BETA[0])
    best_last = -0.5 * (np.log(2 * np.pi * left[0]) + 1)
    square = SIGNAL[-1] * (SCALE**2 + MEAN**2)
    prior = 0.5 * (square + 1 - SIGNAL[-1] - 1 - np.log(1 - SIGNAL[-1]))
    return (last - prior - kl.sum(0)).sum(), (best_last - prior - best.sum(0)).sum()


@pytest.mark.parametrize("own", [posterior, rates])
def test_the_bound_at_the_best_mean_is_the_closed_form(own):
    finding = found(own)
    of = {"posterior": BETA * (1 - SIGNAL[:-1]) / (1 - SIGNAL[1:]), "rates": BETA}[own.__name__]
    fixed, free = exact(of)
    assert fixed < free - 0.02
    # 200 data, of which the variance left is known to a tenth, and weighed far up in the posterior's case.
    assert finding.numbers["elbo_at_best_mean"] == pytest.approx(fixed, abs=0.15 * (free - fixed) + 0.1)
    assert finding.numbers["elbo_at_best_variance"] == pytest.approx(free, abs=0.15)
    null = np.sum(-0.5 * np.log(2 * np.pi) - 0.5 * (SCALE**2 + MEAN**2))
    assert finding.numbers["L_null"] == pytest.approx(null, abs=0.5)
    assert finding.status == ("passed" if fixed > null else "failed")


def test_a_variance_too_small_for_its_step_is_a_mistake_and_the_right_one_is_none():
    """The program of the report: 50 steps from 1e-4 to 0.2, the posterior's variance; its fit ended at -51.7 bits."""
    beta, roll = np.linspace(1e-4, 0.2, 50), dpm.SwissRoll(noise=0.25)
    finding = found(posterior, data=roll, beta=beta)
    assert finding.status == "failed"
    assert -60 < finding.numbers["elbo_at_best_mean"] / np.log(2) < -30
    assert -2.3 < finding.numbers["elbo_at_best_variance"] / np.log(2) < -1
    assert "the variance of steps t = 2, 3, 4 alone costs" in finding.words
    assert found(rates, data=roll, beta=beta).status == "passed"


@pytest.mark.parametrize("seed", range(4))
def test_a_bound_that_cannot_exceed_l_null_is_no_mistake(seed):
    """Of data that are the noise itself L_null is the best there is: no draw of data is to look like a mistake."""
    standard = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    assert found(rates, data=standard, seed=seed).status == "passed"


def test_a_variance_too_large_is_a_mistake_too():
    assert found(lambda kernel, t, factor: 40 * kernel.beta[t - 1]).status == "failed"


def test_what_is_learned_is_not_judged():
    def learned(kernel, t, factor):
        return 1e-6 * factor * kernel.beta[t - 1]

    assert found(learned).words == "the variances are learned."


def test_what_it_cannot_say():
    def full(x1):
        return dist.MultivariateNormal(x1, scale_tril=0.1 * jnp.eye(2))

    assert "without correlations" in found(rates, decode=full).words
    assert "it takes 40 data at least; these are 30." in found(rates, data=np.zeros((30, 2)) + [[0.3, 1.0]]).words
    assert found(rates, data=np.random.default_rng(0).normal(size=(60, 2))).status == "passed"
