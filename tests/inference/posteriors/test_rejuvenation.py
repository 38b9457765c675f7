"""Latent variables that are moved keep the posterior, the evidence and its spread; quadrature on asymmetric targets."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference import Moves, smc, widened
from dpm_ppl.inference.posteriors.conditioning import Conditioned
from dpm_ppl.inference.posteriors.rejuvenation import Proposal, Rejuvenation, Weighed, parted
from dpm_ppl.inference.posteriors.resampling import multinomial
from tests.oracles import GaussianOracle, worst

ORACLE = GaussianOracle.exact(5, beta_1=0.05, alpha_bar_T=0.02)
P = ORACLE.generated()
COV = np.asarray(P.covariance_matrix)
DRIFT = np.array([0.4, -0.3])
SENSORS = np.array([[0.0, 0.0], [1.5, -0.5]])
SHARES = np.array([0.7, 0.3])
Y = np.asarray(P.loc) + np.random.default_rng(1).normal(size=(6, 2)) * 0.3 + np.array([0.9, -0.4])


def shifted(which):
    return GaussianOracle(5, ORACLE.params | {"shift": ORACLE.params["shift"] + which * DRIFT}, 0.05, 0.02)


def model(y):
    """A class that the chain depends on; one, and a noise scale, that r alone does."""
    which = numpyro.sample("which", dist.Bernoulli(0.4))
    scale = numpyro.sample("scale", dist.LogNormal(-1.0, 1.5))
    sensor = numpyro.sample("sensor", dist.Categorical(jnp.asarray(SHARES)))
    chain = ORACLE.diffusion()

    def reverse(x, t):
        p = chain.reverse(x, t)
        return dist.MultivariateNormal(p.loc + which * DRIFT, scale_tril=p.scale_tril, validate_args=False)

    x = dpm.reverse_chain("x", dpm.Diffusion(chain.kernel, reverse))
    numpyro.sample("y", dist.Normal(x + jnp.asarray(SENSORS)[sensor], scale).expand(y.shape).to_event(2), obs=y)


def log_density(off, cov):
    return -0.5 * ((off * np.linalg.solve(cov, off[..., None])[..., 0]).sum(-1) + np.linalg.slogdet(2 * np.pi * cov)[1])


def exact():
    """Log evidence, the shares of the classes, and mean and variance of the log scale."""
    u = np.linspace(-7, 7, 2001)
    scale = np.exp(-1 + 1.5 * u)
    num, mean = len(Y), Y.mean(0)
    inner = ((Y - mean) ** 2).sum()
    terms = np.empty((2, 2, len(u)))
    for which, sensor in product((0, 1), (0, 1)):
        off = mean - SENSORS[sensor] - np.asarray(shifted(which).generated().loc)
        spread = COV + scale[:, None, None] ** 2 / num * np.eye(2)
        rest = -0.5 * inner / scale**2 - (num - 1) * np.log(2 * np.pi * scale**2) - np.log(num)
        prior = np.log((0.6, 0.4)[which] * SHARES[sensor]) - 0.5 * u**2
        terms[which, sensor] = prior + log_density(np.broadcast_to(off, (len(u), 2)), spread) + rest
    terms -= np.logaddexp.reduce(-0.5 * u**2)
    log_evidence = np.logaddexp.reduce(terms, None)
    share = np.exp(terms - log_evidence)
    first, second = ((share * np.log(scale) ** k).sum() for k in (1, 2))
    return log_evidence, share[1].sum(), share[:, 1].sum(), first, second - first**2


@pytest.fixture(scope="module")
def runs():
    """Of 400 runs of 100 particles without and with moves: estimates, distinct scales, and shares of moves taken."""

    def every(moves):
        run = smc(model, "x", params=ORACLE.params, num_particles=100, twist=widened(), moves=moves)

        def one(key):
            p = run(key, Y)
            scale, weight = jnp.log(p.latents["scale"]), p.weight
            first = weight @ scale
            means = weight @ p.latents["which"], weight @ p.latents["sensor"], first, weight @ scale**2 - first**2
            return p.log_evidence, p.log_evidence_se, means, jnp.sum(jnp.diff(jnp.sort(scale)) > 0) + 1, p.acceptance

        return jax.device_get(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 400)))

    return every(None), every(Moves(last=5, each=1, paths=2))


def test_moves_keep_the_evidence_unbiased_and_its_error_calibrated(runs):
    log_evidence = exact()[0]
    for estimates, errors, *_ in runs:
        assert worst(np.exp(estimates - log_evidence), 1.0) < 3
        assert 1 / 1.25 < np.nanstd((estimates - log_evidence) / errors) < 1.25


def test_moved_latents_are_those_of_quadrature(runs):
    log_evidence, *expected = exact()
    estimates, _, means, *_ = runs[1]
    factor = np.exp(estimates - log_evidence)  # a mean times the evidence is unbiased, whatever the number of particles
    assert worst([factor * (got - truth) for got, truth in zip(means[:3], expected[:3], strict=True)], [0.0] * 3) < 3


def test_more_values_survive_and_moments_are_nearer(runs):
    (*_, kept, few, _), (*_, moved, many, acceptance) = runs
    assert np.mean(few) < 40
    assert np.mean(many) > 85
    for name, before, after, truth, factor in zip(
        ("which", "sensor", "scale", "variance"), kept, moved, exact()[1:], (0.7, 0.9, 0.8, 0.85), strict=True
    ):
        errors = [np.sqrt(np.mean((estimates - truth) ** 2)) for estimates in (before, after)]
        assert errors[1] < factor * errors[0], name
    assert set(acceptance) == {"last", "each", "paths"}
    assert all((0.05 < share).all() and (share < 0.95).all() for share in acceptance.values())


# One variable depends on another, supports are bounded: the rule alone, at a fixed datum.

X0 = np.array([0.8, -0.2])


def hierarchy():
    which = numpyro.sample("which", dist.Categorical(jnp.array([0.6, 0.3, 0.1])))
    scale = numpyro.sample("scale", dist.Gamma(2.0, jnp.array([4.0, 1.5, 0.7])[which]))
    offset = numpyro.sample("offset", dist.Uniform(-scale, 3 * scale).expand([2]).to_event(1))
    x = dpm.reverse_chain("x", ORACLE.diffusion())
    numpyro.sample("y", dist.Normal(x + offset, scale).to_event(1), obs=jnp.array([1.7, 0.4]))


def test_the_rule_leaves_the_density_of_dependent_and_bounded_latents_alone():
    conditioned = Conditioned(hierarchy, "x", ORACLE.params)

    @jax.jit
    def moved(key):
        start_key, pick_key, key = jax.random.split(key, 3)
        proposal = Proposal.of(conditioned, parted(conditioned)[0])

        def at(latents, key):
            return Weighed(jax.vmap(lambda z: conditioned.target(z).log_r(jnp.asarray(X0)))(latents))

        # Draws of the prior, picked by r: the posterior, which moves are to keep.
        prior = jax.vmap(conditioned.latents)(jax.random.split(start_key, 200_000))
        picked = multinomial(jax.nn.softmax(at(prior, key).log_r), pick_key, 24_000)
        latents = jax.tree.map(lambda leaf: leaf[picked], prior)
        return proposal.move(key, latents, at(latents, key), at, num_moves=60)

    latents, _, taken = jax.device_get(moved(jax.random.key(1)))
    assert 0.1 < taken < 0.9
    scale, unit = np.linspace(0.005, 25, 4000)[:, None, None], (np.arange(200) + 0.5) / 200
    offset = scale * (-1 + 4 * unit)
    r = [np.exp(-0.5 * ((y - x - offset) / scale) ** 2) / scale for x, y in zip(X0, (1.7, 0.4), strict=True)]
    of_scale = [value.mean(-1).ravel() for value in r]  # the offsets are independent given the scale
    rates = np.array([4.0, 1.5, 0.7])[:, None]
    scale = scale.ravel()
    density = np.array([[0.6], [0.3], [0.1]]) * rates**2 * scale * np.exp(-rates * scale) * np.prod(of_scale, 0)
    density /= density.sum()
    first = (offset * r[0]).mean(-1).ravel() / np.maximum(of_scale[0], 1e-300)
    expected = [density.sum(1)[1:], (density @ np.log(scale)).sum(), (density @ first).sum()]
    got = [latents["which"][:, None] == np.array([1, 2]), np.log(latents["scale"]), latents["offset"][:, 0]]
    assert worst(got, expected) < 3


def test_latents_are_parted_by_whether_the_chain_depends_on_them():
    found = []
    jax.eval_shape(lambda: found.append(parted(Conditioned(lambda: model(Y), "x", ORACLE.params))) or 0)
    assert found == [(["scale", "sensor"], ["which"])]


class Simulated(dist.Normal):
    """Draws without a density."""

    def log_prob(self, value):
        raise NotImplementedError


def beside(law, *, chain=False):
    def program():
        level = numpyro.sample("level", law)
        other = dpm.reverse_chain("w", ORACLE.diffusion()) if chain else jnp.zeros(2)
        gain = numpyro.sample("gain", dist.Normal(other[0], 1.0))
        x = dpm.reverse_chain("x", ORACLE.diffusion())
        numpyro.sample("y", dist.Normal(x * gain + level, 0.5).to_event(1), obs=Y[0])

    return Conditioned(program, "x", ORACLE.params)


@pytest.mark.parametrize(
    ("conditioned", "expected"),
    [
        (beside(dist.Normal(0.0, 1.0)), ["gain", "level"]),
        (beside(Simulated(0.0, 1.0)), []),
        (beside(dist.Normal(0.0, 1.0), chain=True), ["gain", "level"]),
    ],
)
def test_what_has_no_density_or_is_a_chain_stays(conditioned, expected):
    found = []
    jax.eval_shape(lambda: found.append(parted(conditioned)) or 0)
    assert found == [(expected, [])]


def test_what_is_known_exactly_stays_where_a_latent_says_it():
    """x + s DRIFT is known: s and x hang on each other, s has a closed form, and no move may part them."""

    def program():
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        spread = numpyro.sample("spread", dist.LogNormal(0.0, 0.1))
        x = dpm.reverse_chain("x", ORACLE.diffusion())
        numpyro.sample("known", dist.Delta(x).to_event(1), obs=jnp.asarray(Y[0]) - level * DRIFT)
        numpyro.sample("y", dist.Normal(level, 1.0), obs=0.3)
        numpyro.sample("z", dist.Normal(0.0, spread), obs=0.1)

    run = smc(program, "x", params=ORACLE.params, num_particles=200)
    p = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 60))
    off = Y[0] - np.asarray(P.loc)
    precision = 2 + DRIFT @ np.linalg.solve(COV, DRIFT)
    expected = (0.3 + DRIFT @ np.linalg.solve(COV, off)) / precision
    assert set(p.acceptance) == {"last"}  # of the spread
    level = p.latents["level"]
    np.testing.assert_allclose(p.samples + level[..., None] * DRIFT, np.broadcast_to(Y[0], p.samples.shape), atol=1e-9)
    factor = np.exp(p.log_evidence - p.log_evidence.max())
    assert worst(factor * (np.sum(jax.nn.softmax(p.log_weight) * level, -1) - expected), 0.0) < 3


def test_without_latents_nothing_is_moved_and_bad_moves_are_refused():
    def plain():
        numpyro.sample("y", dist.Normal(dpm.reverse_chain("x", ORACLE.diffusion()), 0.5).to_event(1), obs=Y[0])

    found = []
    everything = Moves(each=2, paths=2)
    jax.eval_shape(lambda: found.append(Rejuvenation.of(Conditioned(plain, "x", ORACLE.params), everything)) or 0)
    assert found[0].is_none
    assert found[0].of_r is None
    with pytest.raises(TypeError, match=r"Expected `moves` to be a Moves, such as Moves\(paths=3\), or None; got 3"):
        smc(plain, "x", params=ORACLE.params, num_particles=20, moves=3)
    with pytest.raises(ValueError, match="Expected `each` to be at least 0; got -1"):
        Moves(each=-1)
    with pytest.raises(TypeError, match="Expected `paths` to be an integer"):
        Moves(paths=0.5)
