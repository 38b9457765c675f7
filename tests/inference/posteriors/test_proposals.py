"""Proposals draw what they say, and weigh it by log p - log q."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from dpm_ppl.inference.posteriors.proposals import (
    DEFENSIVE,
    BernoulliMove,
    CategoricalMove,
    MixtureMove,
    NormalMove,
    Unguided,
)
from tests.oracles import STATES, worst

LOC, TRIL = jnp.array([[0.4, -1.2]]), jnp.array([[[0.8, 0.0], [0.3, 0.5]]])
SHIFT, FACTOR = jnp.array([[0.6, -0.9]]), jnp.array([[[0.7, 0.2], [-0.4, 0.9]]])
KEYS = jax.random.split(jax.random.key(0), 20_000)


def draws(move):
    return jax.jit(jax.vmap(move.draw))(KEYS)


@pytest.mark.parametrize("factor", [jnp.tril(FACTOR), jnp.swapaxes(jnp.tril(FACTOR), -1, -2)])
@pytest.mark.parametrize("p", [None, dist.MultivariateNormal(jnp.array([0.1, -1.0]), scale_tril=0.9 * jnp.eye(2))])
def test_a_normal_move_is_weighed_by_the_ratio_of_densities(factor, p):
    x, log_ratio = draws(NormalMove(LOC, TRIL, SHIFT, factor, jnp.asarray(0.25), p, (2,)))
    whole = TRIL[0] @ factor[0]
    q = dist.MultivariateNormal(LOC[0] + TRIL[0] @ SHIFT[0], whole @ whole.T)
    over = dist.MultivariateNormal(LOC[0], scale_tril=TRIL[0]) if p is None else p
    known = 0.25 if p is None else 0.0  # the density of known coordinates, of normal steps alone
    np.testing.assert_allclose(log_ratio, over.log_prob(x) - q.log_prob(x) + known, rtol=1e-7, atol=1e-9)
    off = x - q.mean
    assert worst((x, off[:, :, None] * off[:, None, :]), (q.mean, q.covariance_matrix)) < 3


@pytest.mark.parametrize("p", [None, dist.MultivariateNormal(jnp.array([0.1, -1.0]), scale_tril=0.9 * jnp.eye(2))])
def test_a_normal_move_is_defended_by_the_reverse_step(p):
    move = NormalMove(LOC, TRIL, SHIFT, jnp.tril(FACTOR), jnp.asarray(0.25), p, (2,))
    x, log_ratio = draws(move.defended(jnp.asarray(0.3)))
    whole = dist.MultivariateNormal(LOC[0] + TRIL[0] @ SHIFT[0], scale_tril=TRIL[0] @ jnp.tril(FACTOR)[0])
    base = dist.MultivariateNormal(LOC[0], scale_tril=TRIL[0])
    log_q = jnp.logaddexp(jnp.log(0.7) + whole.log_prob(x), jnp.log(0.3) + base.log_prob(x))
    over, known = (base, 0.25) if p is None else (p, 0.0)
    np.testing.assert_allclose(log_ratio, over.log_prob(x) - log_q + known, rtol=1e-7, atol=1e-9)
    assert worst(x, 0.7 * whole.mean + 0.3 * base.mean) < 3
    again, same = draws(move.defended(jnp.asarray(0.3)).undefended())
    np.testing.assert_array_equal(again, draws(move)[0])
    np.testing.assert_array_equal(same, draws(move)[1])


def test_a_share_of_the_reverse_step_goes_beside_the_proposals_own():
    """1 - (1 - 0.1)(1 - 0.5) in all; a share of one is the reverse step."""
    p = dist.Bernoulli(logits=jnp.array([0.4, -1.1, 2.0])).to_event(1)
    move = BernoulliMove(p, jnp.array([-3.0, 1.0, 0.2]), p.base_dist.logits)
    _, log_ratio = draws(move.defended(jnp.asarray(1.0)))
    np.testing.assert_allclose(log_ratio, 0, atol=1e-12)
    whole = 1 - (1 - DEFENSIVE) * 0.5
    x, log_ratio = draws(move.defended(jnp.asarray(0.5)))
    state = x @ jnp.array([4, 2, 1])
    guided = np.exp(dist.Bernoulli(logits=move.logits).to_event(1).log_prob(STATES))
    unguided = np.exp(p.log_prob(STATES))
    np.testing.assert_allclose(log_ratio, np.log(unguided / ((1 - whole) * guided + whole * unguided))[state])


def test_a_bernoulli_move_is_a_defended_proposal():
    p = dist.Bernoulli(logits=jnp.array([0.4, -1.1, 2.0])).to_event(1)
    logits = jnp.array([-3.0, 1.0, 0.2])
    x, log_ratio = draws(BernoulliMove(p, logits, p.base_dist.logits))
    guided = np.exp(dist.Bernoulli(logits=logits).to_event(1).log_prob(STATES))
    unguided = np.exp(p.log_prob(STATES))
    q = (1 - DEFENSIVE) * guided + DEFENSIVE * unguided
    state = x @ jnp.array([4, 2, 1])
    assert worst(jax.nn.one_hot(state, 8), q) < 3
    np.testing.assert_allclose(log_ratio, np.log(unguided / q)[state], rtol=1e-9)
    assert log_ratio.max() < -np.log(DEFENSIVE)


def test_a_categorical_move_is_a_defended_proposal():
    p = dist.Categorical(logits=jnp.array([[0.4, -1.1, 2.0], [-0.2, 0.3, 0.1]])).to_event(1)
    logits = jnp.array([[-3.0, 1.0, 0.2], [1.2, -0.5, 0.0]])
    x, log_ratio = draws(CategoricalMove(p, logits, p.base_dist.logits))
    guided, unguided = (jax.nn.softmax(a) for a in (logits, p.base_dist.logits))
    pairs = [a[0][:, None] * a[1] for a in (guided, unguided)]
    q = (1 - DEFENSIVE) * pairs[0] + DEFENSIVE * pairs[1]
    assert worst(jax.nn.one_hot(x[:, 0] * 3 + x[:, 1], 9), q.ravel()) < 3
    np.testing.assert_allclose(log_ratio, np.log(pairs[1] / q)[x[:, 0], x[:, 1]], rtol=1e-9)
    assert log_ratio.max() < -np.log(DEFENSIVE)


def test_an_unguided_move_has_no_weight():
    x, log_ratio = draws(Unguided(dist.Normal(jnp.array([0.4, -1.2]), 0.5).to_event(1)))
    assert (log_ratio == 0).all()
    assert worst(x, np.array([0.4, -1.2])) < 3


@pytest.mark.parametrize("p", [None, dist.MultivariateNormal(jnp.array([0.1, -1.0]), scale_tril=0.9 * jnp.eye(2))])
def test_a_mixture_move_is_weighed_by_the_ratio_of_densities(p):
    normal = NormalMove(LOC, TRIL, SHIFT, jnp.tril(FACTOR), jnp.asarray(0.25), p, (2,))
    shifts, factor = jnp.array([[[1.5, 0.3]], [[-1.0, 0.8]], [[0.2, -2.0]]]), jnp.array([[[0.3, 0.0], [0.1, 0.6]]])
    share, trust, defence = jnp.array([0.5, 0.2, 0.3]), jnp.asarray(0.3), jnp.asarray(0.2)
    x, log_ratio = draws(MixtureMove(normal, shifts, jnp.log(share), factor, trust, defence))

    def part(shift, factor):
        return dist.MultivariateNormal(LOC[0] + TRIL[0] @ shift, scale_tril=TRIL[0] @ factor)

    parts = [part(shift[0], factor[0]) for shift in shifts]
    parts += [part(SHIFT[0], jnp.tril(FACTOR)[0]), part(jnp.zeros(2), jnp.eye(2))]
    shares = jnp.array([*(0.8 * 0.7 * share), 0.8 * 0.3, 0.2])
    log_q = jax.nn.logsumexp(jnp.stack([q.log_prob(x) for q in parts]) + jnp.log(shares)[:, None], axis=0)
    over = parts[-1] if p is None else p
    np.testing.assert_allclose(log_ratio, over.log_prob(x) - log_q + (0.25 if p is None else 0), rtol=1e-7, atol=1e-9)
    mean = sum(s * q.mean for s, q in zip(shares, parts, strict=True))
    squares = sum(s * (q.covariance_matrix + jnp.outer(q.mean, q.mean)) for s, q in zip(shares, parts, strict=True))
    assert worst((x, x[:, :, None] * x[:, None, :]), (mean, squares)) < 3.5
    assert (log_ratio - (0.25 if p is None else 0)).max() < -np.log(0.2) + (0 if p is None else 30)
