"""Laws that every kind of state obeys, and which kind a chain and a step are of."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference.posteriors import guidance
from dpm_ppl.programs import instantiate
from tests.oracles import BernoulliOracle, GaussianOracle, WithoutClosedForms

LOGITS = jnp.array([[0.4, -1.1, 2.0], [-0.2, 0.3, 0.1], [1.3, 0.0, -0.6]])
STEPS = {
    "normal": dist.Normal(LOGITS[0], jnp.array([0.4, 0.9, 1.3])).to_event(1),
    "Bernoulli": dist.Bernoulli(logits=LOGITS[0]).to_event(1),
    "categorical": dist.Categorical(logits=LOGITS).to_event(1),
}
SLOPE = np.array([0.5, -0.7, 0.3])
MASK, VALUE = jnp.array([False, True, False]), jnp.ones(3, int)
KEYS = jax.random.split(jax.random.key(0), 50)

BITS = instantiate(BernoulliOracle().diffusion, BernoulliOracle().params)
LETTERS = dpm.CategoricalKernel(dpm.schedules.constant_fraction(3), (2,), (0.2, 0.5, 0.3))
NORMALS = dpm.GaussianKernel([0.1, 0.3, 0.6], (2,))
CHAINS = {
    "normal": dpm.Diffusion(NORMALS, NORMALS.step),
    "Bernoulli": BITS,
    "categorical": dpm.Diffusion(LETTERS, LETTERS.step),
}


def mixed_bits(x, t):
    """A reverse step that is no product over bits."""
    bits = dist.Bernoulli(logits=jnp.stack([1.0 * x, -2.0 * x], -2)).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(probs=jnp.full((*x.shape[:-1], 2), 0.5)), bits)


def test_a_step_and_a_chain_are_of_one_kind():
    assert [kind.NAME for kind in guidance.KINDS] == list(STEPS)
    for kind in guidance.KINDS:
        assert [name for name, p in STEPS.items() if kind.applies(p)] == [kind.NAME]
        assert [name for name, chain in CHAINS.items() if kind.holds(chain.kernel.stationary())] == [kind.NAME]
        assert guidance.predicting(CHAINS[kind.NAME]) is kind


@pytest.mark.parametrize("known", [None, (MASK, VALUE)], ids=["free", "known"])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_times_an_r_of_its_own_family_is_exact_so_that_every_draw_weighs_the_same(name, known):
    p = STEPS[name]

    @jax.jit
    def run():
        log_mean, move = guidance.of_step(p).product(p, lambda x: jnp.sum(SLOPE * x), known)
        return log_mean, *jax.vmap(move.undefended().draw)(KEYS)

    log_mean, x, log_ratio = run()
    np.testing.assert_allclose(log_ratio + x @ SLOPE, log_mean, rtol=1e-9)
    assert len(np.unique(np.asarray(x), axis=0)) > 3
    assert known is None or (x[:, 1] == 1).all()
    if known is None:
        draws = jax.vmap(p.sample)(jax.random.split(jax.random.key(1), 20_000))
        np.testing.assert_allclose(np.exp(log_mean), np.exp(draws @ SLOPE).mean(), rtol=0.05)


@pytest.mark.parametrize("name", STEPS)
def test_an_r_that_says_nothing_leaves_a_step_as_it_is(name):
    p = STEPS[name]
    log_mean, log_ratio = jax.jit(lambda: _product_and_ratios(p))()
    np.testing.assert_allclose(log_mean, -0.3, rtol=1e-9)
    np.testing.assert_allclose(log_ratio, 0.0, atol=1e-9)


def _product_and_ratios(p):
    log_mean, move = guidance.of_step(p).product(p, lambda x: jnp.full((), -0.3), None)
    return log_mean, jax.vmap(move.draw)(KEYS)[1]


def test_what_is_of_no_kind_or_tells_nothing_of_its_datum_is_not_guided():
    assert guidance.of_step(dist.StudentT(4.0, jnp.zeros(2), 1.0).to_event(1)) is None
    assert guidance.of_step(dist.Binomial(3, 0.4 * jnp.ones(2)).to_event(1)) is None
    for chain in (CHAINS["categorical"], BITS, GaussianOracle.exact(3).diffusion):
        chain = chain if isinstance(chain, dpm.Diffusion) else instantiate(chain, GaussianOracle.exact(3).params)
        assert guidance.predicting(chain) is not None
        assert guidance.predicting(replace(chain, kernel=WithoutClosedForms(chain.kernel))) is None
    assert guidance.predicting(dpm.Diffusion(BITS.kernel, mixed_bits)) is None


def test_states_of_no_kind_are_refused_by_name():
    class Counts:
        num_steps, event_shape = 3, (2,)

        def stationary(self):
            return dist.Binomial(3, 0.4 * jnp.ones(2)).to_event(1)

        def step(self, x, t):
            return self.stationary()

    with pytest.raises(ValueError, match="normal, Bernoulli or categorical; Counts ends in.*tempered"):
        guidance.require_predicting(Counts())
