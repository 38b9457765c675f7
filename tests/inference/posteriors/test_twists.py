"""Every twist, and one of one's own, against the closed form; and which of them k-hat flags."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference import averaged, constant, defended, denoised, smc, tempered, unguided, widened
from dpm_ppl.inference.posteriors.proposals import Unguided
from tests.oracles import STATES, BernoulliOracle, GaussianOracle, WithoutClosedForms, worst

ORACLE = GaussianOracle.exact(25, beta_1=0.01, alpha_bar_T=0.002)
P = ORACLE.generated()
MEAN, COV = np.asarray(P.loc), np.asarray(P.covariance_matrix)
ROW = np.array([1.0, 0.6])
WIDE, NARROW = 1.2, 0.1


def observed(y, scale):
    x = dpm.reverse_chain("x", ORACLE.diffusion())
    numpyro.sample("y", dist.Normal(ROW @ x, scale), obs=y)


def without_closed_forms(y, scale):
    diffusion = ORACLE.diffusion()
    x = dpm.reverse_chain("x", replace(diffusion, kernel=WithoutClosedForms(diffusion.kernel)))
    numpyro.sample("y", dist.Normal(ROW @ x, scale), obs=y)


@dataclass(frozen=True)
class Wayward:
    """A twist of one's own, as unlike r as any, and no guidance: exact all the same."""

    def start(self, target):
        return Unguided(target.diffusion.kernel.stationary())

    def at(self, target, x, t):
        return jnp.cos(x.sum() + t), Unguided(target.diffusion.reverse(x, t))

    def last(self, target, x):
        return jnp.sin(x[0]), Unguided(target.diffusion.decode(x))


def closed_form(y, scale):
    variance = ROW @ COV @ ROW + scale**2
    off = y - ROW @ MEAN
    return MEAN + COV @ ROW / variance * off, -0.5 * (off**2 / variance + np.log(2 * np.pi * variance))


def runs(program, twist, scales, **options):
    """Posterior means, log evidences and tails of 20 runs at each noise, the observation 1 away from its mean."""
    run = smc(program, "x", params=ORACLE.params, num_particles=1000, twist=twist, **options)

    def one(key, scale):
        p = run(key, ROW @ MEAN + 1.0, scale)
        return p.mean(), p

    keys = jax.random.split(jax.random.key(0), 20)
    return jax.jit(jax.vmap(jax.vmap(one, (0, None)), (None, 0)))(keys, jnp.asarray(scales))


def check_exact(means, p, scale):
    mean, log_evidence = closed_form(ROW @ MEAN + 1.0, scale)
    assert worst((means, p.log_evidence), (mean, log_evidence)) < 3


@pytest.mark.parametrize("threshold", [0.0, 0.75, 1.0])
def test_a_twist_of_ones_own_is_exact_whenever_particles_are_resampled(threshold):
    means, p = runs(observed, Wayward(), [WIDE], threshold=threshold)
    resampled = np.asarray(p.resampled)
    share = resampled[..., 1:].mean()
    assert share == threshold if threshold in (0, 1) else 0 < share < 1
    check_exact(means[0], jax.tree.map(lambda leaf: leaf[0], p), WIDE)


@pytest.mark.parametrize("twist", [widened, widened(full=False), denoised, tempered, constant])
def test_twists_are_exact_and_constant_is_flagged_where_r_is_narrow(twist):
    means, p = runs(observed, twist, [WIDE, NARROW])
    check_exact(means[0], jax.tree.map(lambda leaf: leaf[0], p), WIDE)
    worst_khat = np.nanmax(np.where(np.isfinite(p.khat), p.khat, 1.0), -1)
    wide, narrow = np.median(worst_khat, -1)
    assert wide < 0.7
    if twist is constant:
        assert narrow > 0.7
    if twist is widened:
        assert narrow < 0.7
        check_exact(means[1], jax.tree.map(lambda leaf: leaf[1], p), NARROW)


def pooled(y):
    """Twenty standard normals, seen as the means of ten pairs."""
    kernel = dpm.GaussianKernel([0.1, 0.3, 0.6, 0.9], (20,))
    x = dpm.reverse_chain("x", dpm.Diffusion(kernel, kernel.step))
    numpyro.sample("y", dist.Normal(x.reshape(10, 2) @ jnp.array([0.8, 0.3]), 0.1).to_event(1), obs=y)


def test_an_r_that_mixes_many_coordinates_wants_their_covariance_and_tells_without():
    y, variance = np.linspace(-1.0, 1.5, 10), 0.8**2 + 0.3**2 + 0.1**2
    log_evidence = -0.5 * np.sum(y**2 / variance + np.log(2 * np.pi * variance))
    keys = jax.random.split(jax.random.key(0), 10)
    runs = {
        full: jax.jit(jax.vmap(lambda key, run=run: run(key, y)))(keys)
        for full in (True, None)
        for run in [smc(pooled, "x", params={}, num_particles=500, twist=widened(full=full))]
    }
    assert worst(runs[True].log_evidence, log_evidence) < 3
    assert runs[True].ess.min() > 200
    assert runs[None].ess.min() < 20


def test_a_kernel_without_closed_forms_falls_back_on_tempered_and_says_so():
    with pytest.warns(UserWarning, match="WithoutClosedForms has no marginal and posterior.*tempered"):
        means, p = runs(without_closed_forms, None, [WIDE])
    check_exact(means[0], jax.tree.map(lambda leaf: leaf[0], p), WIDE)
    for twist in (widened, denoised()):
        with pytest.raises(ValueError, match="Expected a kernel with marginal and posterior.*tempered"):
            smc(without_closed_forms, "x", params=ORACLE.params, num_particles=10, twist=twist)(jax.random.key(0), 0, 1)


@dataclass(frozen=True)
class OnlyClosedForms:
    """A kernel of a user's own, with the documented closed forms and none of ours."""

    kernel: dpm.Kernel
    num_steps: int = 4
    event_shape: tuple = (3,)

    def stationary(self):
        return self.kernel.stationary()

    def step(self, x, t):
        return self.kernel.step(x, t)

    def marginal(self, x0, t):
        return self.kernel.marginal(x0, t)

    def posterior(self, x0, xt, t):
        return self.kernel.posterior(x0, xt, t)


def test_a_users_kernel_of_documented_closed_forms_is_guided():
    def program():
        diffusion = BITS.diffusion()
        x = dpm.reverse_chain("x", replace(diffusion, kernel=OnlyClosedForms(diffusion.kernel)))
        numpyro.factor("r", 1.5 * x[0])

    run = smc(program, "x", params=BITS.params, num_particles=1000, twist=widened())
    got = jax.jit(jax.vmap(lambda key: run(key).log_evidence))(jax.random.split(jax.random.key(1), 20))
    assert worst(got, jax.nn.logsumexp(BITS.log_prob() + 1.5 * STATES[:, 0])) < 3


BITS = BernoulliOracle()


def log_r(x):
    """Two of the eight states are forbidden."""
    couple = 2.0 * (x[..., 0] == x[..., 1]) - 1.5 * x[..., 2] * x[..., 0]
    return jnp.where((x.sum(-1) == 0) | (x.sum(-1) == 3), -jnp.inf, couple)


def coupled():
    numpyro.factor("r", log_r(dpm.reverse_chain("x", BITS.diffusion())))


@pytest.mark.parametrize("twist", [widened, denoised, tempered])
def test_twists_over_bits_are_exact_where_states_are_forbidden(twist):
    log_joint = BITS.log_prob() + log_r(STATES)
    log_evidence = jax.nn.logsumexp(log_joint)
    run = smc(coupled, "x", params=BITS.params, num_particles=1000, twist=twist)

    def one(key):
        p = run(key)
        return p.mean(), p.log_evidence

    got = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 20))
    assert worst(got, (np.exp(log_joint - log_evidence) @ STATES, log_evidence)) < 3


# Shares of the prior.


def wrong_chain(y):
    """Reverse steps that are no Bayes' rule: what they predict of x^0 is not where the chain goes."""
    kernel = dpm.GaussianKernel(np.full(8, 1 - 0.01 ** (1 / 8)), (2,))
    beta = jnp.asarray(kernel.beta)

    def reverse(x, t):
        at = beta[t - 1][..., None]
        mean = jnp.sqrt(1 - at) * x + 0.3 * jnp.sin(2 * x) + 0.2
        return dist.Normal(mean, jnp.sqrt(at) * jnp.ones(2)).to_event(1)

    x = dpm.reverse_chain("x", dpm.Diffusion(kernel, reverse, lambda x: reverse(x, jnp.ones(x.shape[:-1], int))))
    numpyro.sample("y", dist.Normal(x, 0.3).to_event(1), obs=y)


def test_a_share_of_the_prior_bounds_what_a_wrong_twist_costs():
    """Beside the chain's own draws: on a chain that its steps mispredict, with each twist, and one unlike r."""
    y, keys = jnp.array([0.5, -1.0]), jax.random.split(jax.random.key(0), 20)

    def log_evidence(twist, num):
        run = smc(wrong_chain, "x", params={}, num_particles=num, twist=twist)
        return np.asarray(jax.jit(lambda keys: jax.lax.map(lambda key: run(key, y).log_evidence, keys))(keys))

    prior = log_evidence(unguided(), 50_000)
    truth = np.log(np.mean(np.exp(prior)))
    error = {
        twist: log_evidence(twist, 2000) - truth
        for twist in (widened(), defended(widened()), averaged(), defended(averaged()), defended(Wayward(), 0.5))
    }
    rms = {twist: np.sqrt(np.mean(of**2)) for twist, of in error.items()}
    of_prior = np.std(np.exp(prior - truth), ddof=1) * np.sqrt(50_000 / 2000)
    for twist in (widened(), averaged()):
        assert rms[twist] > 2.5 * of_prior
        assert rms[defended(twist)] < 1.3 * of_prior
        assert np.abs(error[defended(twist)]).max() < 0.35
    assert rms[defended(Wayward(), 0.5)] < 2 * of_prior


def test_a_share_of_the_prior_costs_that_share_where_the_twist_is_right():
    means, p = runs(observed, defended(averaged(), 0.3), [WIDE, NARROW])
    for number, scale in enumerate((WIDE, NARROW)):
        of = jax.tree.map(lambda leaf, number=number: leaf[number], p)
        check_exact(means[number], of, scale)
        assert np.mean(of.ess[:, 0]) > 0.5 * 1000


@pytest.mark.parametrize("share", [0, 1.0, -0.2, 2])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=r"`share`, of draws of the prior, in \(0, 1\)"):
        defended(widened(), share)


def test_a_twist_is_defended_once():
    with pytest.raises(ValueError, match=r"without a share of the prior; got defended\(twist=widened.*the one share"):
        defended(defended(widened()), 0.5)
