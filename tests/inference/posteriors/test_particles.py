"""Posteriors and evidences of `smc` against closed forms, enumeration and quadrature, all asymmetric."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference import smc
from tests.oracles import GaussianOracle, worst

ORACLE = GaussianOracle.exact(25, beta_1=0.01, alpha_bar_T=0.002)
P = ORACLE.generated()
MEAN, COV = np.asarray(P.loc), np.asarray(P.covariance_matrix)
ROW = np.array([[1.0, 0.6], [0.0, 0.0], [0.0, 0.0]])  # one number seen; the other two are noise
FULL = np.array([[1.0, 0.6], [-0.3, 0.8], [0.5, 0.1]])
TRIL = np.array([[0.3, 0.0, 0.0], [0.1, 0.4, 0.0], [-0.2, 0.1, 0.5]])
NOWHERE, SECOND, BOTH = np.array([False, False]), np.array([False, True]), np.array([True, True])


def observed(y, matrix, tril, mask, value):
    x = dpm.reverse_chain("x", ORACLE.diffusion())
    numpyro.sample("known", dist.Delta(x).mask(mask).to_event(1), obs=value)
    numpyro.sample("y", dist.MultivariateNormal(matrix @ x, scale_tril=tril, validate_args=False), obs=y)


def exact(y, matrix, tril, mask, value):
    """Mean, covariance and log evidence."""
    rows, seen = np.concatenate([np.eye(2)[mask], matrix]), np.concatenate([value[mask], y])
    noise = np.zeros((len(seen), len(seen)))
    noise[mask.sum() :, mask.sum() :] = tril @ tril.T
    spread = rows @ COV @ rows.T + noise
    gain = np.linalg.solve(spread, rows @ COV).T
    off = seen - rows @ MEAN
    log_evidence = -0.5 * (off @ np.linalg.solve(spread, off) + np.linalg.slogdet(2 * np.pi * spread)[1])
    return MEAN + gain @ off, COV - gain @ rows @ COV, log_evidence


def _cases():
    for matrix in (ROW, FULL):
        out = np.linalg.cholesky(matrix @ COV @ matrix.T + TRIL @ TRIL.T)[:, 0]  # one standard deviation
        for far in (0, 5, 10):
            yield f"rank {np.linalg.matrix_rank(matrix)}, {far} sd", (matrix @ MEAN + far * out, matrix, TRIL, NOWHERE)
    nothing, y = np.zeros((3, 2)), np.array([0.3, -0.2, 0.1])
    yield "one known", (y, nothing, TRIL, SECOND)
    yield "one known and more seen", (FULL @ MEAN + TRIL[:, 0], FULL, TRIL, SECOND)
    yield "all known", (y, FULL, TRIL, BOTH)
    nearly = np.concatenate([[[0.0, 1.0]], nothing[:2]])
    yield "one nearly known", (np.append(VALUE[1], y[1:]), nearly, np.diag([1e-4, 0.4, 0.5]), NOWHERE)


VALUE = MEAN + 3 * np.sqrt(np.diag(COV))
CASES = {name: (*case, VALUE) for name, case in _cases()}


@pytest.fixture(scope="module")
def posteriors():
    run = smc(observed, "x", params=ORACLE.params, num_particles=2000)

    @jax.jit
    def every(keys, cases):
        p = jax.vmap(lambda case: jax.vmap(lambda key: run(key, *case))(keys))(cases)
        moments = jax.vmap(jax.vmap(lambda p: (p.mean(), p.covariance())))(p)
        return p, moments

    cases = jax.tree.map(lambda *leaves: jnp.stack(leaves), *CASES.values())
    p, moments = every(jax.random.split(jax.random.key(0), 20), cases)
    p.check()
    return jax.device_get((p, moments))


@pytest.mark.parametrize("name", CASES)
def test_linear_gaussian_posterior_and_evidence_are_the_closed_form(posteriors, name):
    (p, moments), at = posteriors, list(CASES).index(name)
    mean, cov, log_evidence = exact(*CASES[name])
    assert worst((*(m[at] for m in moments), p.log_evidence[at]), (mean, cov, log_evidence)) < 3
    assert np.abs(p.log_evidence[at] - log_evidence).max() < 0.1


def test_known_coordinates_are_kept_exactly_and_finite(posteriors):
    p, _ = posteriors
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(p))
    for name, mask in (("one known", SECOND), ("one known and more seen", SECOND), ("all known", BOTH)):
        kept = p.samples[list(CASES).index(name)] == VALUE
        assert kept[..., mask].all()
        assert not kept[..., ~mask].any()


# Evidence: unbiased, and its standard error true.


def narrow(y, oracle=ORACLE):
    x = dpm.reverse_chain("x", oracle.diffusion())
    numpyro.sample("y", dist.Normal(jnp.asarray(ROW[:1]) @ x, 0.3).to_event(1), obs=y)


def of_few_particles(program, params, *args):
    """Log evidences and their standard errors of 500 runs of 200 particles, for each row of the arguments."""
    run = smc(program, "x", params=params, num_particles=200)
    keys = jax.random.split(jax.random.key(1), 500)
    p = jax.jit(jax.vmap(lambda args: jax.vmap(lambda key: run(key, *args))(keys)))(args)
    return np.asarray(p.log_evidence), np.asarray(p.log_evidence_se)


def check_unbiased(log_evidences, log_evidence):
    assert worst(np.exp(log_evidences - log_evidence), 1.0) < 3


def check_calibrated(log_evidences, errors, log_evidence):
    """Each run by its own error: runs differ in the twist that their pilots chose, and so in how wide they spread."""
    assert np.isnan(errors).mean() <= 0.01
    spread = np.nanstd((log_evidences - log_evidence) / errors)
    assert 1 / 1.25 < spread < 1.25  # a standard deviation of 500 is itself known to 3 percent
    within = np.mean(np.abs(log_evidences - log_evidence) <= 2 * np.nan_to_num(errors, nan=np.inf))
    assert 0.92 < within < 0.98


def test_gaussian_evidence_is_unbiased_and_its_error_calibrated():
    y = ROW[:1] @ MEAN + 3.0
    variance = ROW[0] @ COV @ ROW[0] + 0.3**2
    log_evidence = -0.5 * (3.0**2 / variance + np.log(2 * np.pi * variance))
    (got,), (errors,) = of_few_particles(narrow, ORACLE.params, jnp.asarray(y)[None])
    check_unbiased(got, log_evidence)
    check_calibrated(got, errors, log_evidence)


def test_single_precision_is_enough():
    y = np.float32(ROW[:1] @ MEAN + 3.0)
    variance = ROW[0] @ COV @ ROW[0] + 0.3**2
    log_evidence = -0.5 * (3.0**2 / variance + np.log(2 * np.pi * variance))
    with jax.enable_x64(False):
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float32)), ORACLE.params)
        oracle = GaussianOracle(25, params, 0.01, 0.002)
        run = smc(lambda y: narrow(y, oracle), "x", params=params, num_particles=1000)
        p = jax.jit(jax.vmap(lambda key: run(key, y)))(jax.random.split(jax.random.key(4), 20))
        means = jax.vmap(lambda p: p.mean())(p)
        assert p.log_evidence.dtype == means.dtype == jnp.float32
    mean = MEAN + COV @ ROW[0] / variance * 3.0
    assert worst((np.float64(means), np.float64(p.log_evidence)), (mean, log_evidence)) < 3


# Ten bits, of which all 1024 states are enumerated.

BITS = np.array(list(product((0, 1), repeat=10)))
STRINGS = np.random.default_rng(2).integers(0, 2, (4, 10))
LOG_SHARE = np.log([0.4, 0.3, 0.2, 0.1])
SLOPE = np.random.default_rng(3).normal(size=10)


def bits_diffusion():
    """The factorised reverse by Bayes' rule for data that are one of four strings."""
    kernel = dpm.BernoulliKernel(dpm.schedules.constant_fraction(5), (10,), rate=0.3)

    def reverse(x, t):
        weight = kernel.marginal(STRINGS, t[..., None]).log_prob(x[..., None, :]) + LOG_SHARE
        one, zero = (jax.nn.logsumexp(jnp.where(STRINGS == bit, weight[..., None], -1e3), -2) for bit in (1, 0))
        return dpm.outputs.data_bernoulli(kernel, x, t, jnp.clip(one - zero, -4, 4))

    return dpm.Diffusion(kernel, reverse)


def log_r(x, slope, couple):
    """Factorised where `couple` is 0."""
    return (slope * x).sum(-1) + couple * (x[..., 1:] * (1 - x[..., :-1])).sum(-1)


def bits(slope, couple, mask, value):
    x = dpm.reverse_chain("x", bits_diffusion())
    numpyro.sample("known", dist.Delta(x).mask(mask).to_event(1), obs=value)
    numpyro.factor("r", log_r(x, slope, couple))


def log_prior():
    """The model's own log p(x^0) of each of the 1024 states."""
    chain = bits_diffusion()

    def moved(p, step):
        logits = jnp.broadcast_to(step.base_dist.logits, BITS.shape)
        to = jax.nn.log_sigmoid(jnp.where(BITS == 1, logits[:, None], -logits[:, None])).sum(-1)
        return p @ jnp.exp(to)

    p = jnp.exp(chain.kernel.stationary().log_prob(BITS))
    for t in range(5, 1, -1):
        p = moved(p, chain.reverse(jnp.asarray(BITS), jnp.asarray(t)))
    return np.log(moved(p, chain.decode(jnp.asarray(BITS))))


FREE = np.zeros(10, bool)
BITS_CASES = {
    "factorised": (SLOPE, 0.0, FREE, STRINGS[0]),
    "coupled": (SLOPE, 1.5, FREE, STRINGS[0]),
    "three known": (SLOPE, 0.0, np.arange(10) % 4 == 1, 1 - STRINGS[0]),
    "two known and coupled": (SLOPE, 1.5, np.arange(10) > 7, STRINGS[2]),
}


def enumerated(log_p, slope, couple, mask, value):
    """Marginals and log evidence."""
    terms = log_p + np.where((BITS == value)[:, mask].all(-1), log_r(BITS, slope, couple), -np.inf)
    total = jax.nn.logsumexp(terms)
    return np.exp(terms - total) @ BITS, float(total)


@pytest.fixture(scope="module")
def bits_posteriors():
    run = smc(bits, "x", params={}, num_particles=2000)

    @jax.jit
    def every(keys, cases):
        p = jax.vmap(lambda case: jax.vmap(lambda key: run(key, *case))(keys))(cases)
        return p, jax.vmap(jax.vmap(lambda p: p.mean()))(p)

    cases = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *BITS_CASES.values())
    p, means = every(jax.random.split(jax.random.key(2), 20), cases)
    p.check()
    return jax.device_get((p, means)), log_prior()


@pytest.mark.parametrize("name", BITS_CASES)
def test_marginals_and_evidence_of_ten_bits_are_those_enumerated(bits_posteriors, name):
    (p, means), log_p = bits_posteriors
    at = list(BITS_CASES).index(name)
    marginals, log_evidence = enumerated(log_p, *BITS_CASES[name])
    assert worst((means[at], p.log_evidence[at]), (marginals, log_evidence)) < 3
    mask, value = BITS_CASES[name][-2:]
    assert (p.samples[at] == value)[..., mask].all()


def test_evidence_of_bits_is_unbiased_and_its_error_calibrated(bits_posteriors):
    cases = [BITS_CASES[name] for name in ("coupled", "factorised")]
    got, errors = of_few_particles(
        bits, {}, *(jnp.stack([jnp.asarray(a) for a in args]) for args in zip(*cases, strict=True))
    )
    for estimates, claimed, case in zip(got, errors, cases, strict=True):
        log_evidence = enumerated(bits_posteriors[1], *case)[1]
        check_unbiased(estimates, log_evidence)
        check_calibrated(estimates, claimed, log_evidence)


# Latent variables beside the chain.

DRIFT = np.array([0.05, -0.03])


def unknown_class_and_noise(y):
    which = numpyro.sample("which", dist.Bernoulli(0.3))
    scale = numpyro.sample("scale", dist.LogNormal(-1.0, 0.5))
    chain = ORACLE.diffusion()

    def reverse(x, t):
        p = chain.reverse(x, t)
        return dist.MultivariateNormal(p.loc + which * DRIFT, scale_tril=p.scale_tril, validate_args=False)

    x = dpm.reverse_chain("x", dpm.Diffusion(chain.kernel, reverse))
    numpyro.sample("y", dist.Normal(x, scale).to_event(1), obs=y)


def test_latent_variables_beside_the_chain_are_those_of_quadrature():
    y = MEAN + np.array([1.6, -0.3])
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    scale, log_share = np.exp(-1.0 + 0.5 * nodes), np.log(weights / weights.sum())
    terms, x = [], []
    for which, share in ((0, 0.7), (1, 0.3)):
        oracle = GaussianOracle(25, ORACLE.params | {"shift": ORACLE.params["shift"] + which * DRIFT}, 0.01, 0.002)
        mean = np.asarray(oracle.generated().loc)
        spread = COV + scale[:, None, None] ** 2 * np.eye(2)
        solved = np.linalg.solve(spread, (y - mean)[:, None])[..., 0]
        log_density = -0.5 * (solved @ (y - mean) + np.linalg.slogdet(2 * np.pi * spread)[1])
        terms.append(np.log(share) + log_share + log_density)
        x.append(mean + solved @ COV)
    terms, x = np.stack(terms), np.stack(x)
    log_evidence = np.logaddexp.reduce(terms, None)
    share = np.exp(terms - log_evidence)
    expected = np.einsum("zs,zsi->i", share, x), share[1].sum(), (share * np.log(scale)).sum(), log_evidence

    run = smc(unknown_class_and_noise, "x", params=ORACLE.params, num_particles=2000)

    def one(key):
        p = run(key, y)
        return p.mean(), p.weight @ p.latents["which"], p.weight @ jnp.log(p.latents["scale"]), p.log_evidence

    assert worst(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), 20)), expected) < 3
