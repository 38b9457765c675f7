"""Which twist the default is: never worse than the prior, whatever r; the best of those that suit the chain."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference import smc, unguided, widened
from dpm_ppl.inference.posteriors.pilots import INDIFFERENT, best
from tests.oracles import COV, MEAN, STATES, BernoulliOracle, GaussianOracle, worst

ORACLE = GaussianOracle.exact(25, beta_1=0.01, alpha_bar_T=0.002)
DRAWS = jnp.asarray(np.random.default_rng(0).multivariate_normal(MEAN, COV, 1_000_000))
BITS = BernoulliOracle()

# What is observed, its value and noise.
SEEN = {
    "a ring": (lambda x: jnp.sqrt(x @ x + 0.001), 1.9, 0.1),
    "a sum of squares": (lambda x: x @ x, 2.5, 0.4),
    "a product": (lambda x: x[0] * x[1], -0.6, 0.08),
    "waves": (lambda x: jnp.sin(3 * x[0]) + x[1] ** 2, 0.4, 0.1),
    "a maximum": (jnp.max, 1.0, 0.1),
    "a sum, far out": (lambda x: x[0] + 0.5 * x[1], 7.0, 0.3),
}


def program(seen, y, noise):
    def model():
        x = dpm.reverse_chain("x", ORACLE.diffusion())
        numpyro.sample("y", dist.Normal(seen(x), noise), obs=y)

    return model


def every(number):
    """The program of each observation in turn, compiled once."""
    seen, values, noises = zip(*SEEN.values(), strict=True)
    x = dpm.reverse_chain("x", ORACLE.diffusion())
    mean = jax.lax.switch(number, [lambda x, f=f: jnp.asarray(f(x)) for f in seen], x)
    numpyro.sample("y", dist.Normal(mean, jnp.array(noises)[number]), obs=jnp.array(values)[number])


def truth(seen, y, noise):
    """Log evidence and posterior mean by draws of the datum's own law, and their errors."""
    log_r = jax.vmap(lambda x: dist.Normal(seen(x), noise).log_prob(y))(DRAWS)
    weight = jax.nn.softmax(log_r)
    return jax.nn.logsumexp(log_r) - np.log(len(DRAWS)), weight @ DRAWS


@pytest.fixture(scope="module")
def by_default():
    """Ten posteriors of each observation."""
    run = jax.jit(jax.vmap(smc(every, "x", params=ORACLE.params, num_particles=1000), (0, None)))
    return {name: run(jax.random.split(jax.random.key(1), 10), number) for number, name in enumerate(SEEN)}


@pytest.mark.parametrize("name", SEEN)
def test_the_default_is_right_under_any_observation(name, by_default):
    posteriors = by_default[name]
    expected, mean = truth(*SEEN[name])
    if name == "a sum, far out":  # few draws get there: its closed form
        rows = np.array([1, 0.5])
        spread = rows @ COV @ rows + SEEN[name][2] ** 2
        off = SEEN[name][1] - rows @ MEAN
        expected = -0.5 * (off**2 / spread + np.log(2 * np.pi * spread))
        mean = MEAN + COV @ rows * off / spread
    error = np.asarray(posteriors.log_evidence) - expected
    assert abs(np.median(error)) < 0.15
    assert np.abs(error).max() < 0.5
    means = np.einsum("kn,kni->ki", jax.nn.softmax(posteriors.log_weight, -1), posteriors.samples)
    np.testing.assert_allclose(means.mean(0), mean, atol=4 * means.std(0).max() / np.sqrt(10) + 0.02)


@pytest.fixture(scope="module")
def expanded():
    return smc(every, "x", params=ORACLE.params, num_particles=1000, twist=widened())


@pytest.mark.parametrize("name", ["a ring", "a product", "waves"])
def test_what_was_wrong_is_called_untrusted(name, expanded):
    with pytest.warns(UserWarning, match=r"The posterior can NOT be trusted: .* Take more particles"):
        posterior = expanded(jax.random.key(0), jnp.array(list(SEEN).index(name)))
    assert posterior.log_evidence < truth(*SEEN[name])[0] - 1
    assert "NOT" in posterior.verdict()


def test_an_r_without_a_gradient_has_an_answer():
    def simulated(x):
        return jax.pure_callback(
            lambda x: np.round(np.asarray(x)), jax.ShapeDtypeStruct((), x.dtype), x, vmap_method="broadcast_all"
        )

    seen = (lambda x: simulated(x[0]), 1.0, 0.2)
    run = smc(program(*seen), "x", params=ORACLE.params, num_particles=1000)
    posterior = run(jax.random.key(0))
    assert "slopes=False" in posterior.twists[0]
    by_hand = truth(lambda x: jnp.round(x[0]), 1.0, 0.2)
    assert posterior.log_evidence == pytest.approx(float(by_hand[0]), abs=0.15)
    with pytest.raises(TypeError, match=r"as the twist widened\(\) takes its gradient.*unguided\(\)"):
        smc(program(*seen), "x", params=ORACLE.params, num_particles=10, twist=widened)(jax.random.key(0))


COUPLED = {
    "parity": lambda x: jnp.where(x.sum(-1) % 2 == 1, 0.0, -4.0),
    "a count": lambda x: dist.Poisson(0.2 + x.sum(-1)).log_prob(3),
    "a maximum": lambda x: 3.0 * x.max(-1),
}


@pytest.fixture(scope="module")
def coupled():
    """Log evidence of twenty posteriors under each."""

    def model(number):
        numpyro.factor("r", jax.lax.switch(number, list(COUPLED.values()), dpm.reverse_chain("x", BITS.diffusion())))

    run = smc(model, "x", params=BITS.params, num_particles=500)
    runs = jax.jit(jax.vmap(lambda key, number: run(key, number).log_evidence, (0, None)))
    return {name: runs(jax.random.split(jax.random.key(1), 20), number) for number, name in enumerate(COUPLED)}


@pytest.mark.parametrize("name", COUPLED)
def test_bits_under_what_couples_all_of_them(name, coupled):
    got = coupled[name]
    expected = jax.nn.logsumexp(BITS.log_prob() + COUPLED[name](STATES))
    assert worst(np.exp(got), np.exp(expected)) < 3
    assert np.abs(got - expected).max() < 0.3


class Pilot(NamedTuple):
    """What the choice reads of a pilot."""

    log_evidence: jax.Array
    num_nan: jax.Array


def pilot_runs(means, spreads, nan=()):
    """Runs whose log evidence is a normal of each twist's own."""

    def run(key, num, which):
        log_evidence = jnp.asarray(means)[which] + jnp.asarray(spreads)[which] * jax.random.normal(key)
        return Pilot(log_evidence, jnp.isin(which, jnp.asarray([*nan, -1])).astype(int)[None])

    return run


@pytest.mark.parametrize(
    ("means", "spreads", "nan", "expected"),
    [
        ((-2.0, -1.0, -3.0), (0.01, 0.01, 0.01), (), 1),
        ((-1.0, -1.0 + INDIFFERENT / 3, -1.0), (0.0, 0.0, 0.0), (), 0),
        ((-1.0, -0.5, -1.1), (0.01, 3.0, 0.01), (), 0),  # a lucky pilot is not taken
        ((-1.0, -0.5, -1.1), (0.01, 0.01, 0.01), (1,), 0),
        ((-np.inf, -np.inf, -9.0), (0.01, 0.01, 0.01), (), 2),
    ],
)
def test_the_highest_of_the_certain_is_best(means, spreads, nan, expected):
    keys = jax.random.split(jax.random.key(0), 40)
    chosen = np.asarray(jax.jit(jax.vmap(lambda key: best(pilot_runs(means, spreads, nan), key, 3, 1000)))(keys))
    assert np.mean(chosen == expected) > 0.8


@dataclass(frozen=True)
class Exploding:
    """A variance-exploding kernel of a user's own, q(x^t | x^0) = N(x0, sigma_t^2), with the documented parts alone."""

    sigma: np.ndarray
    start: np.ndarray
    event_shape: tuple = (2,)

    @property
    def num_steps(self):
        return len(self.sigma) - 1

    def stationary(self):
        return dist.MultivariateNormal(jnp.zeros(2), jnp.asarray(self.start) + self.sigma[-1] ** 2 * jnp.eye(2))

    def _normal(self, mean, variance):
        return dist.Normal(mean, jnp.sqrt(variance), validate_args=False).to_event(1)

    def _squares(self, t):
        squares = jnp.asarray(self.sigma**2)
        return squares[t - 1][..., None], squares[t][..., None]

    def step(self, x, t):
        before, after = self._squares(jnp.asarray(t))
        return self._normal(jnp.asarray(x), after - before)

    def marginal(self, x0, t):
        return self._normal(jnp.asarray(x0), self._squares(jnp.asarray(t))[1])

    def posterior(self, x0, xt, t):
        before, after = self._squares(jnp.asarray(t))
        mean = before / after * jnp.asarray(xt) + (1 - before / after) * jnp.asarray(x0)
        return self._normal(mean, before * (1 - before / after))


def test_a_kernel_of_documented_closed_forms_gets_the_good_twists():
    """Data N(0, C) under the exact reverse of a variance-exploding chain; two sums are seen, far out."""
    spread = np.array([[2.0, 0.9], [0.9, 0.8]])
    sigma = np.append(0.0, np.geomspace(0.05, 6.0, 30))
    kernel = Exploding(sigma, spread)

    def law(t):
        squares = jnp.asarray(sigma**2)
        before, after = (jnp.asarray(spread) + squares[s][..., None, None] * jnp.eye(2) for s in (t - 1, t))
        gain = before @ jnp.linalg.inv(after)
        return gain, before - gain @ before

    def reverse(x, t):
        gain, cov = law(jnp.asarray(t))
        return dist.MultivariateNormal(jnp.einsum("...ij,...j->...i", gain, x), cov + 1e-12 * jnp.eye(2))

    rows, noise, y = np.array([[1.0, -0.5], [0.3, 0.8]]), 0.2, np.array([4.0, 2.5])

    def model():
        x = dpm.reverse_chain("x", dpm.Diffusion(kernel, reverse, lambda x: reverse(x, jnp.ones((), int))))
        numpyro.sample("y", dist.Normal(jnp.asarray(rows) @ x, noise).to_event(1), obs=y)

    whole = rows @ spread @ rows.T + noise**2 * np.eye(2)
    expected = -0.5 * (y @ np.linalg.solve(whole, y) + np.linalg.slogdet(2 * np.pi * whole)[1])
    mean = spread @ rows.T @ np.linalg.solve(whole, y)
    for twist in (None, widened()):
        run = smc(model, "x", params={}, num_particles=1000, twist=twist)
        posterior = run(jax.random.key(0))
        assert posterior.log_evidence == pytest.approx(expected, abs=0.1)
        np.testing.assert_allclose(posterior.mean(), mean, atol=0.05)
        assert posterior.ess.min() > 300
    bare = smc(model, "x", params={}, num_particles=1000, twist=unguided())
    with pytest.warns(UserWarning, match="can NOT be trusted"):
        assert abs(bare(jax.random.key(0)).log_evidence - expected) > 1
