"""Importance-weighted likelihoods against closed forms, enumeration (bits, heartbeat), and their own stated errors."""

import math
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.chains import ForwardChain, ReverseChain
from dpm_ppl.inference import entropy_bounds, instantiate, log_likelihood
from dpm_ppl.inference.likelihoods.likelihood import Likelihood
from tests.oracles import COV, STATES, BernoulliOracle, GaussianOracle, data, worst

KEY = jax.random.key(0)


X0 = data(6)


LN2 = math.log(2)


def run(oracle, x0, num_particles, *, key=KEY, **options):
    return log_likelihood(
        oracle.diffusion, x0, params=oracle.params, key=key, num_particles=num_particles, progress=False, **options
    )


def score(built, trajectories, x0):
    """Log weights of given trajectories, scored by the chains as distributions: no scan, no sum of ours."""

    @jax.jit
    def log_weight():
        reverse = ReverseChain(built).log_prob(trajectories) + built.decode(trajectories[..., 0, :]).log_prob(x0)
        return reverse - ForwardChain(built, x0).log_prob(trajectories)

    return log_weight()


# A Gaussian model whose weights have a known law: log w is quadratic in the forward noise.


@cache
def imperfect():
    """Shifted means, wrong covariances, and weights of finite variance."""
    exact = GaussianOracle.exact(5)
    params = dict(exact.params)
    params["shift"] = params["shift"] + jnp.array([0.25, -0.15])
    params["factor"] = params["factor"] * 1.06 + jnp.array([[0.0, 0.0], [0.05, 0.0]])
    return replace(exact, params=params)


@cache
def quadratic():
    """c, b and M of log w(z) = c + b'z - z'Mz / 2 for each datum of X0, z the standard normal noise of all steps."""
    oracle = imperfect()
    beta, _ = oracle.schedule()

    def log_normal(x, mean, factor):
        first = (x - mean)[0] / factor[0, 0]
        second = ((x - mean)[1] - factor[1, 0] * first) / factor[1, 1]
        return -0.5 * (first**2 + second**2) - jnp.log(2 * jnp.pi * factor[0, 0] * factor[1, 1])

    def log_weight(z, x0):
        x, total, eye = x0, 0.0, jnp.eye(2)
        for t in range(1, 6):
            xt = jnp.sqrt(1 - beta[t - 1]) * x + jnp.sqrt(beta[t - 1]) * z.reshape(5, 2)[t - 1]
            forward = log_normal(xt, jnp.sqrt(1 - beta[t - 1]) * x, jnp.sqrt(beta[t - 1]) * eye)
            if t == 1:
                reverse = log_normal(x0, jnp.sqrt(1 - beta[0]) * xt, jnp.sqrt(beta[0]) * eye)
            else:
                gain, shift, factor = (oracle.params[name][t - 2] for name in ("map", "shift", "factor"))
                reverse = log_normal(x, gain @ xt + shift, jnp.tril(factor))
            x, total = xt, total + reverse - forward
        return total + log_normal(x, 0.0, jnp.eye(2))

    @jax.jit
    @jax.vmap
    def pieces(x0):
        z = jnp.zeros(10)
        return log_weight(z, x0), jax.grad(log_weight)(z, x0), -jax.hessian(log_weight)(z, x0)

    return pieces(X0)


def log_moment(power):
    """log E w^power for each datum of X0."""
    c, b, m = quadratic()
    spread = jnp.eye(10) + power * m
    assert (jnp.linalg.eigvalsh(spread) > 0).all()
    square = jnp.einsum("ni,ni->n", b, jnp.linalg.solve(spread, b[..., None])[..., 0])
    return power * c + 0.5 * power**2 * square - 0.5 * jnp.linalg.slogdet(spread)[1]


def test_gaussian_oracle_agrees_with_itself():
    c, _, m = quadratic()
    np.testing.assert_allclose(log_moment(1), imperfect().generated().log_prob(X0), rtol=1e-10)
    np.testing.assert_allclose(c - 0.5 * jnp.trace(m, axis1=1, axis2=2), imperfect().elbos(X0), rtol=1e-10)
    variance = jnp.exp(log_moment(2) - 2 * log_moment(1)) - 1
    assert (variance > 0.2).all()  # far from constant


def test_gaussian_moments_of_the_weights():
    oracle = imperfect()
    result = run(oracle, jnp.tile(X0, (50, 1)), 2000)
    log_weight = np.moveaxis(result.log_weight.reshape(2000, 50, 6), 1, 0).reshape(-1, 6)
    assert worst(log_weight, oracle.elbos(X0)) < 3
    assert worst(np.exp(log_weight), np.exp(log_moment(1))) < 3
    assert worst(np.exp(2 * log_weight), np.exp(log_moment(2))) < 3
    ess = 1 / np.exp(log_moment(2) - 2 * log_moment(1))  # share of the particles
    np.testing.assert_allclose(np.mean(result.ess.reshape(50, 6), 0) / 2000, ess, rtol=0.05)
    np.testing.assert_array_equal(result.elbo, result.log_weight.mean(0))


def test_gaussian_estimate_within_its_errors_over_seeds():
    exact = imperfect().generated().log_prob(X0)
    off = []
    for seed in range(20):
        result = run(imperfect(), X0, 1000, key=jax.random.key(seed))
        off.append((result.estimate - exact) / result.standard_error)
        assert (result.khat < 0.7).all()
        np.testing.assert_allclose(result.psis_estimate, result.estimate, atol=0.05)
    off = np.abs(off)
    assert (off < 3.5).all()  # 120 of them
    assert (off < 3).mean() > 0.98
    assert 0.89 < (off < 1.96).mean() < 0.99


@pytest.mark.parametrize("num_particles", [25, 1000])
def test_intervals_cover_at_their_rate(num_particles):
    x0 = X0[:2]
    result = run(imperfect(), jnp.repeat(x0, 1000, 0), num_particles)
    exact = jnp.repeat(imperfect().generated().log_prob(x0), 1000, 0)
    covered = np.abs(result.estimate - exact) < 1.96 * result.standard_error
    if num_particles == 25:  # too few for k-hat
        assert 0.93 < covered.mean() < 0.97
    else:
        trusted = (result.khat < 0.5).reshape(2, 1000)
        assert trusted.mean() > 0.8
        for covered_of, trusted_of in zip(covered.reshape(2, 1000), trusted, strict=True):
            assert 0.93 < covered_of[trusted_of].mean() < 0.97


# Bits.


@cache
def bits():
    """The enumerated oracle, its reverse steps near the best factorised ones; its log p; var(w) / p^2 of each datum."""
    oracle = BernoulliOracle()
    joint = np.exp(oracle.log_joint) * (np.array([3, 1, 2, 4, 1, 2, 1, 2]) / 16).reshape(8, 1, 1, 1, 1)
    tables = []
    for t in range(2, 5):
        pair = joint.sum(tuple(s for s in range(5) if s not in (t - 1, t)))  # (x^(t-1), x^t)
        one = STATES.T @ pair / pair.sum(0)  # (site, x^t)
        tables.append(np.log(one / (1 - one)).T)
    table = jnp.asarray(np.stack(tables) + 0.3 * np.random.default_rng(1).normal(size=(3, 8, 3)))
    oracle.__dict__["params"] = {"table": table}
    log_weight = np.asarray(oracle.log_model() - oracle.log_joint)
    second = np.sum(np.exp(oracle.log_joint + 2 * log_weight), (1, 2, 3, 4))
    return oracle, oracle.log_prob(), second / np.exp(2 * oracle.log_prob()) - 1


def test_bits_are_the_enumerated_ones_and_converge_as_one_over_num_particles():
    oracle, exact, variance = bits()
    result = run(oracle, np.tile(STATES, (12, 1)), 2**12)
    score = (result.estimate.reshape(12, 8) - exact) / result.standard_error.reshape(12, 8)
    assert (np.abs(score) < 3.5).all()  # 96 of them
    assert 0.8 < score.std() < 1.2
    assert worst(result.elbo.reshape(12, 8), oracle.elbos()) < 3
    off = np.exp(result.log_weight - np.tile(exact, 12)).mean(0) - 1  # 0 on average: a control variate
    for num in (16, 64):
        bias = (result.estimate_at(num) - np.tile(exact, 12) - off).reshape(12, 8)
        share = np.mean(bias, 1) / np.mean(-variance / (2 * num))  # of its leading term
        error = share.std(ddof=1) / math.sqrt(12)
        assert error < 0.1
        assert abs(share.mean() - 1) < 3 * error + 2 / num


@pytest.mark.parametrize("num_steps", [1, 2])
def test_few_steps(num_steps):
    kernel = dpm.BernoulliKernel(np.array([0.4, 0.7])[:num_steps], (1,), rate=0.3)
    x0 = np.array([[0], [1]])
    result = log_likelihood(
        lambda: dpm.Diffusion(kernel, lambda x, t: dist.Bernoulli(logits=x - 0.2).to_event(1)),
        np.repeat(x0, 400, 0),
        params={},
        key=KEY,
        num_particles=100,
        progress=False,
    )
    one = 1 / (1 + np.exp(0.2 - np.arange(2)))  # by x^2
    last = np.array([0.7, 0.3])
    first = last if num_steps == 1 else np.array([last @ (1 - one), last @ one])
    p1 = 0.6 * first[1] + 0.4 * 0.3
    weight = np.exp(result.log_weight).reshape(100, 2, 400).mean(0).T
    assert worst(weight, np.array([1 - p1, p1])) < 3
    assert result.reverse_cross_entropy.shape == (num_steps - 1,)


def test_heartbeat_of_eight_bits_is_what_transfer_matrices_give():
    num_steps, length, period = 60, 8, 4
    beats = (np.arange(length) % period == np.arange(period)[:, None]).astype(int)
    states = (np.arange(2**length)[:, None] >> np.arange(length)) & 1
    kernel = dpm.BernoulliKernel(dpm.schedules.constant_fraction(num_steps), (length,), rate=1 / period)

    def reverse(x, t):  # by enumeration of the beats, with bits preferred that a right one would not
        weight = kernel.marginal(beats, t[..., None]).log_prob(x[..., None, :])[..., None]
        one, zero = (jax.nn.logsumexp(jnp.where(beats == bit, weight, -jnp.inf), -2) for bit in (1, 0))
        return dpm.outputs.data_bernoulli(kernel, x, t, one - zero + 0.02 * jnp.arange(length))

    @jax.jit
    def transfer(t):
        return jnp.exp(reverse(states[:, None], jnp.full((1,), t)).log_prob(states))  # from and to

    state = jnp.exp(kernel.stationary().log_prob(states))
    for t in range(num_steps, 1, -1):
        state = state @ transfer(t)
    exact = jnp.log(state @ jnp.exp(kernel.step(states[:, None], 1).log_prob(beats)))
    result = log_likelihood(
        lambda: dpm.Diffusion(kernel, reverse),
        np.tile(beats, (16, 1)),
        params={},
        key=KEY,
        num_particles=1000,
        progress=False,
    )
    estimate = result.estimate.reshape(16, 4)
    assert np.exp(estimate.mean(0)).sum() <= 1
    assert abs(estimate.mean() - exact.mean()) / LN2 < 0.01
    assert worst(np.exp(result.log_weight).mean(0).reshape(16, 4), np.exp(exact)) < 3
    assert (result.elbo.reshape(16, 4).mean(0) < exact - 0.1).all()


# Constant, heavy, zero and impossible weights.


def normal_chain(num_steps, spoil=lambda x, t, step: step, decode=None):
    """Standard normal data, which the kernel keeps: its own step is the exact reverse, and all weights are p(x0)."""
    kernel = dpm.GaussianKernel(dpm.schedules.constant_fraction(num_steps), (2,))
    return lambda: dpm.Diffusion(kernel, lambda x, t: spoil(x, t, kernel.step(x, t)), decode)


def test_constant_weights_are_a_perfect_fit():
    result = log_likelihood(normal_chain(6), X0, params={}, key=KEY, num_particles=100, progress=False)
    exact = dist.Normal().log_prob(X0).sum(-1)
    for value in (result.elbo, result.estimate, result.psis_estimate, result.log_weight[5]):
        np.testing.assert_allclose(value, exact, rtol=1e-12)
    np.testing.assert_allclose(result.ess, 100, rtol=1e-9)
    np.testing.assert_allclose(result.standard_error, 0, atol=1e-6)
    np.testing.assert_array_equal(result.khat, 0)


def test_far_too_small_variance_is_seen_in_khat():
    exact = GaussianOracle.exact(10)
    narrow = replace(exact, params=exact.params | {"factor": 0.4 * exact.params["factor"]})
    assert (run(exact, X0, 500).khat < 0.5).all()
    result = run(narrow, X0, 500)
    assert (result.khat > 0.7).all()
    assert (result.ess < 20).all()


class Positive(dist.Normal):
    """A normal of which the negative half is cut away."""

    def log_prob(self, value, intermediates=None):
        return jnp.where(value > 0, super().log_prob(value) + LN2, -jnp.inf)


def test_zero_weights_count_and_all_zero_is_minus_infinity():
    diffusion = normal_chain(3, decode=lambda x1: Positive(x1, 1.0).to_event(1))
    x0 = jnp.array([[0.5, 0.2], [0.5, -0.2]])
    result = log_likelihood(diffusion, x0, params={}, key=KEY, num_particles=50, progress=False)
    assert np.isfinite(result.log_weight[:, 0]).all()
    for value in (result.log_weight[0], result.elbo, result.estimate, result.psis_estimate, result.estimate_at(7)):
        assert value[1] == -np.inf
        assert np.isfinite(value[0])
    assert result.ess[1] == 0
    assert result.khat[1] == np.inf
    assert np.isnan(result.standard_error[1])

    diffusion = normal_chain(3, lambda x, t, step: Positive(jnp.zeros_like(x), 1.0).to_event(1))
    result = log_likelihood(
        diffusion, x0, params={}, key=KEY, num_particles=4000, num_trajectories=4000, progress=False
    )
    zero = ~(result.trajectories[..., :2, :] > 0).all((-1, -2))
    np.testing.assert_array_equal(result.log_weight == -np.inf, zero)
    assert 0.5 < zero.mean() < 1
    weight = np.exp(result.log_weight)
    np.testing.assert_allclose(result.estimate, np.log(weight.mean(0)), rtol=1e-9)
    np.testing.assert_allclose(
        result.standard_error, weight.std(0, ddof=1) / math.sqrt(4000) / weight.mean(0), rtol=0.02
    )


def test_the_result_is_that_of_the_key():
    first, again, other = (run(imperfect(), X0, 20, key=jax.random.key(seed)).log_weight for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


def test_trajectories_have_the_weights_and_cross_entropies_given():
    oracle = imperfect()
    result = run(oracle, X0, 40, num_trajectories=40)
    built, kept = instantiate(oracle.diffusion, oracle.params), result.trajectories
    assert kept.shape == (40, 6, 5, 2)
    np.testing.assert_allclose(result.log_weight, score(built, kept, X0), rtol=1e-10)
    steps = -jax.jit(lambda: built.reverse(kept[..., 1:, :], jnp.arange(2, 6)).log_prob(kept[..., :-1, :]))()
    np.testing.assert_allclose(result.reverse_cross_entropy, steps.mean((0, 1)), rtol=1e-10)
    np.testing.assert_array_equal(run(oracle, X0, 40, num_trajectories=3, block_size=7).trajectories, kept[:3])
    assert run(oracle, X0, 3).trajectories is None


def test_reverse_cross_entropy_of_the_exact_reverse_is_its_entropy():
    oracle = GaussianOracle.exact(5)
    means = [run(oracle, data(4000, seed=seed), 2).reverse_cross_entropy for seed in range(8)]
    entropy = jnp.log(2 * jnp.pi * jnp.e) + jnp.linalg.slogdet(oracle.params["factor"])[1]
    assert worst(np.stack(means), entropy) < 3
    x0 = data(20_000) @ np.linalg.inv(np.linalg.cholesky(COV)).T  # standardised: eq. 24 asks it of its upper bound
    x0 = (x0 - x0.mean(0)) / x0.std(0)
    result = log_likelihood(normal_chain(6), x0, params={}, key=KEY, num_particles=1, progress=False)
    bounds = entropy_bounds(normal_chain(6), x0, params={}, key=KEY)
    assert (bounds.lower[:-1] < result.reverse_cross_entropy[:-1]).all()
    np.testing.assert_allclose(result.reverse_cross_entropy, bounds.upper, atol=0.02)


def test_estimate_at():
    log_weight = np.random.default_rng(0).normal(size=(10, 3))
    result = Likelihood(log_weight, np.zeros(0))
    np.testing.assert_allclose(result.estimate_at(1), result.elbo)
    np.testing.assert_allclose(result.estimate_at(10), result.estimate)
    weight = np.exp(log_weight)
    groups = (weight[:4].mean(0), weight[4:8].mean(0))
    np.testing.assert_allclose(result.estimate_at(4), np.log(groups).mean(0))
    for num, message in ((0, "`num_particles` to be at least 1; got 0"), (11, "1 <= num_particles <= 10; got 11")):
        with pytest.raises(ValueError, match=message):
            result.estimate_at(num)
    assert np.isnan(Likelihood(log_weight[:1], np.zeros(0)).standard_error).all()


def test_to_arviz_and_save(tmp_path):
    result = run(imperfect(), X0, 50, num_trajectories=2)
    path = result.save(tmp_path / "likelihood.nc", K=np.arange(6.0))
    assert path.exists()
    np.testing.assert_array_equal(result.to_arviz()["sample_stats"]["log_weight"].values, result.log_weight)


# What cannot be asked.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_particles": 0}, ValueError, "`num_particles` to be at least 1; got 0"),
        ({"num_particles": 2.5}, TypeError, "`num_particles` to be an integer; got 2.5"),
        ({"num_trajectories": 4}, ValueError, "`num_trajectories` to be at most num_particles=3; got 4"),
        ({"num_trajectories": -1}, ValueError, "`num_trajectories` to be at least 0"),
        ({"block_size": 0}, ValueError, "`block_size` to be at least 1; got 0"),
        ({"x0": X0[0]}, ValueError, r"`x0` of shape \(num_data, \*event\)"),
        ({"x0": X0[:, :1]}, ValueError, r"event shape \(2,\); got \(6, 1\)"),
        ({"x0": X0.at[1, 1].set(jnp.nan)}, ValueError, "`x0` to be finite; got 1 NaN"),
        ({"x0": np.zeros((3, 2), int)}, TypeError, "floating-point"),
        ({"params": {}}, ValueError, "a value for every parameter of the model; got none for beta"),
        ({"params": GaussianOracle.exact(7).params}, ValueError, "parameters of another model"),
        ({"diffusion": 3}, TypeError, "`definition` to be the function"),
    ],
)
def test_bad_input(options, error, message):
    oracle = imperfect()
    given = {"diffusion": oracle.diffusion, "x0": X0, "params": oracle.params, "num_particles": 3} | options
    with pytest.raises(error, match=message):
        log_likelihood(given.pop("diffusion"), given.pop("x0"), key=KEY, progress=False, **given)


def test_inside_a_transformation():
    oracle = GaussianOracle.exact(4)
    with pytest.raises(TypeError, match="the log likelihood outside of jax.vmap, jit and grad.*all data at once"):
        jax.vmap(lambda x0: run(oracle, x0[None], 3).log_weight)(X0)


def test_bits_outside_the_support():
    oracle = BernoulliOracle()
    with pytest.raises(ValueError, match="within the support"):
        run(oracle, np.array([[0, 2, 1]]), 3)


def test_parameters_are_put_in():
    def diffusion():
        shift = numpyro.param("shift", jnp.zeros(()))
        kernel = dpm.GaussianKernel(np.array([0.3, 0.6]), (2,))
        return dpm.Diffusion(kernel, lambda x, t: dist.Normal(x + shift, 1.0).to_event(1))

    options = {"key": KEY, "num_particles": 5, "progress": False, "num_trajectories": 5}
    plain, shifted = (log_likelihood(diffusion, X0, params={"shift": s}, **options) for s in (0.0, 0.5))
    before, after = plain.trajectories[..., 0, :], plain.trajectories[..., 1, :]
    change = -0.5 * ((before - after - 0.5) ** 2 - (before - after) ** 2).sum(-1)
    np.testing.assert_allclose(shifted.log_weight - plain.log_weight, change, rtol=1e-9)


def test_it_prints_as_a_few_lines():
    rng = np.random.default_rng(0)
    heavy = np.append(np.full(199, -3.0), 9.0)  # one weight of 200 decides
    log_weight = np.stack([rng.normal(-2.0, 0.1, 200), heavy], -1)
    likelihood = Likelihood(log_weight, np.zeros(3))
    mean, error = np.mean(likelihood.estimate), np.std(likelihood.estimate, ddof=1) / math.sqrt(2)
    assert repr(likelihood).splitlines() == [
        "Likelihood of 2 data, 200 particles each",
        f"  log p(x0) {mean:.3f} ± {error:.3f} nats a datum; ELBO {log_weight.mean():.3f}",
        "  least effective 1; k-hat over 0.7 or not known for 1 of 2 data",
    ]
    single = replace(likelihood, log_weight=log_weight[:, :1], trajectories=np.zeros((5, 1, 4, 2)))
    lines = repr(single).splitlines()
    assert lines[0] == "Likelihood of 1 data, 200 particles each, 5 trajectories kept"
    assert "± unknown" in lines[1]
