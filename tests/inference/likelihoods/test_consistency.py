"""The consistency form of the bound against closed forms (Gaussian data) and enumeration (three bits)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference import bound, consistency_bound
from dpm_ppl.inference.likelihoods import consistency
from tests.oracles import STATES, BernoulliOracle, GaussianOracle, WithoutClosedForms, data, worst

KEY = jax.random.key(0)
X0 = data(5)
BITS = BernoulliOracle()
GAUSSIAN = {"exact": GaussianOracle.exact(6), "spoiled": GaussianOracle.exact(6).spoiled()}


def copies(x0, num):
    return jnp.tile(x0, (num, 1))


def worst_of(term, expected):
    """Worst standard score over copies of the data, each with a key of its own."""
    return worst(np.asarray(term).reshape(-1, *np.shape(expected)), expected)


def gaussian_terms(oracle, x0):
    """E [log q(x^t|x^(t-1)) - log p(x^t|x^(t+1))] of one datum by moments, and what is printed for it, t = 1..T-1."""
    beta, signal = (np.asarray(values) for values in oracle.schedule())
    terms, printed = [], []
    for t in range(1, oracle.num_steps):
        gain, shift, factor = (np.asarray(oracle.params[name])[t - 1] for name in ("map", "shift", "factor"))
        keep, before = np.sqrt(1 - beta[t]), (1 - beta[t - 1]) * (1 - signal[t - 1])
        back = np.eye(2) - keep * gain  # x^t - gain x^(t+1) = back x^t - gain noise
        mean = np.sqrt(signal[t]) * back @ x0 - shift
        along = (1 - signal[t]) * back @ back.T + beta[t] * gain @ gain.T
        # For a second draw of x^t from x^(t-1), which x^(t+1) knows nothing of:
        again = before * back @ back.T + beta[t - 1] * np.eye(2) + (keep**2 * beta[t - 1] + beta[t]) * gain @ gain.T
        precision = np.linalg.inv(factor @ factor.T)
        for cov, found in ((along, terms), (again, printed)):
            square = np.trace(precision @ (cov + np.outer(mean, mean)))
            found.append(0.5 * square - 1 - np.log(beta[t - 1]) + np.log(np.diag(factor)).sum())
    return terms, printed


@pytest.mark.parametrize("oracle", GAUSSIAN.values(), ids=GAUSSIAN)
def test_gaussian_terms_and_elbo_are_the_closed_forms(oracle):
    result = consistency_bound(oracle.diffusion, copies(X0, 3000), params=oracle.params, key=KEY)
    terms, printed = map(np.array, zip(*(gaussian_terms(oracle, np.asarray(x)) for x in X0), strict=True))
    assert worst_of(result.consistency, terms) < 3
    assert worst_of(result.as_printed, printed) < 3
    assert worst_of(result.elbo, oracle.elbos(X0)) < 3
    reconstruction = jax.vmap(lambda x: oracle.reconstruction(x, jnp.zeros((2, 2))))(X0)
    np.testing.assert_allclose(result.reconstruction[:5], reconstruction, rtol=1e-9)
    # What is often printed is another number: no bound that a fit of it, or a table, could be compared by.
    assert (printed - terms).sum(-1).min() > 1


def test_what_is_printed_is_a_nat_per_dimension_and_step_too_large():
    """Where steps are small, for the very reverse of the chain: the error grows with T while the bound converges."""
    oracle = GaussianOracle.exact(400, beta_1=0.005)
    terms, printed = (np.array(values) for values in gaussian_terms(oracle, np.asarray(X0[0])))
    np.testing.assert_allclose((printed - terms)[200:-1], 2, rtol=0.1)


def test_bernoulli_terms_and_elbo_are_the_enumerated_ones():
    result = consistency_bound(BITS.diffusion, copies(STATES, 3000), params=BITS.params, key=KEY)
    assert worst_of(result.elbo, BITS.elbos()) < 3
    joint, model, steps = np.exp(BITS.log_joint), np.exp(BITS.log_model()), range(1, BITS.num_steps + 1)
    for t in steps[:-1]:
        reverse = model.sum((0, *(s for s in steps if s not in (t, t + 1))))  # p(x^t, x^(t+1))
        forward_pair, reverse_pair = (
            joint.sum(tuple(s for s in steps if s not in pair)) for pair in ((t - 1, t), (t, t + 1))
        )
        log_q = (forward_pair * np.log(BITS.forward[t - 1])).reshape(8, -1).sum(-1)
        log_p = (reverse_pair * np.log(reverse / reverse.sum(0))).sum((1, 2))
        assert worst_of(result.consistency[:, t - 1], log_q - log_p) < 3


@pytest.mark.parametrize("oracle", [BITS, GAUSSIAN["spoiled"]], ids=["bits", "gaussian"])
def test_without_closed_forms_terms_are_sampled_and_the_elbo_is_the_same(oracle):
    def diffusion():
        return oracle.with_kernel(WithoutClosedForms(oracle.diffusion().kernel))

    x0, expected = (STATES, BITS.elbos()) if oracle is BITS else (X0, oracle.elbos(X0))
    result = consistency_bound(diffusion, copies(x0, 3000), params=oracle.params, key=KEY, num_samples=2)
    assert worst_of(result.elbo, expected) < 3
    averaged = consistency_bound(oracle.diffusion, copies(x0, 3000), params=oracle.params, key=KEY, num_samples=2)
    assert (result.consistency_variance.mean(0) > averaged.consistency_variance.mean(0)).all()


def test_neighbours_cost_variance_in_every_term():
    """Terms over two random states, x^t averaged over, against the other form's over one; at the ends they meet."""
    oracle, x0 = GaussianOracle.exact(20), X0[:2]
    ours = consistency_bound(oracle.diffusion, x0, params=oracle.params, key=KEY, num_samples=4000)
    theirs = bound(oracle.diffusion, x0, params=oracle.params, key=KEY, num_samples=4000)
    assert (ours.consistency_variance.sum(-1) > 3 * theirs.elbo_variance).all()  # its draws at each t are independent


def test_what_it_says_of_its_own_error():
    oracle = GAUSSIAN["spoiled"]
    result = consistency_bound(oracle.diffusion, copies(X0, 400), params=oracle.params, key=KEY, num_samples=20)
    spread = np.var(np.asarray(result.elbo).reshape(-1, 5), axis=0, ddof=1)
    np.testing.assert_allclose(spread, np.asarray(result.elbo_variance).reshape(-1, 5).mean(0) / 20, rtol=0.3)
    spread = np.var(np.asarray(result.consistency).reshape(-1, 5, 5), axis=0, ddof=1)
    claimed = np.asarray(result.consistency_variance).reshape(-1, 5, 5).mean(0) / 20
    np.testing.assert_allclose(spread, claimed, rtol=0.4)  # 400 values: 7 % standard error, heavy tails
    assert np.isnan(consistency_bound(oracle.diffusion, X0, params=oracle.params, key=KEY).elbo_variance).all()


def test_one_step_has_no_terms():
    def diffusion():
        return dpm.Diffusion(dpm.GaussianKernel(jnp.array([0.7]), (2,)), lambda x, t: None)

    result = consistency_bound(diffusion, X0, params={}, key=KEY)
    assert result.consistency.shape == (5, 0)
    np.testing.assert_allclose(result.elbo, -0.5 * jnp.sum(X0**2, -1) - np.log(2 * np.pi), rtol=1e-9)


def test_memory_does_not_grow_with_num_steps():
    keys, temporary = jax.random.split(KEY, 5), []
    for num_steps in (20, 400):
        oracle = GaussianOracle.exact(num_steps, beta_1=0.2 / num_steps)
        args = (oracle.diffusion, oracle.params, X0, keys, None)
        compiled = consistency._terms.lower(*args, num_samples=200).compile()
        temporary.append(compiled.memory_analysis().temp_size_in_bytes)
    assert temporary[1] - temporary[0] < 380 * 1000  # a trajectory would be 16 kB a step and state


def test_bad_input():
    oracle = GAUSSIAN["exact"]
    with pytest.raises(ValueError, match=r"one batch dimension before the event shape \(2,\); got \(2,\)"):
        consistency_bound(oracle.diffusion, X0[0], params=oracle.params, key=KEY)
    with pytest.raises(ValueError, match="`num_samples` to be at least 1; got 0"):
        consistency_bound(oracle.diffusion, X0, params=oracle.params, key=KEY, num_samples=0)
    with pytest.raises(ValueError, match="got none for beta, map"):
        consistency_bound(oracle.diffusion, X0, params={}, key=KEY)
