"""Crooks' theorem: for works that obey it by construction, and for those of the oracles."""

import math

import jax
import numpy as np
import pytest

from dpm_ppl.inference import dissipated_work, sandwich
from dpm_ppl.inference.likelihoods.bidirectional import Sandwich
from dpm_ppl.inference.likelihoods.likelihood import Likelihood
from tests.inference.likelihoods.test_bidirectional import simulated
from tests.inference.likelihoods.test_likelihood import normal_chain
from tests.oracles import worst

KEY = jax.random.key(0)


def gaussian_works(num_data, *, spread=1.2, shift=0.0, num_particles=400):
    """Works that obey Crooks exactly: N(v/2, v) and N(-v/2, v), above a free energy of another value for each datum."""
    rng = np.random.default_rng(0)
    free_energy = rng.normal(3.0, 2.0, size=num_data)
    forward = free_energy + rng.normal(spread**2 / 2, spread, size=(num_particles, num_data))
    reverse = free_energy + rng.normal(-(spread**2) / 2, spread, size=num_data) + shift
    return Sandwich(np.zeros((num_data, 1)), Likelihood(-forward, np.zeros(0)), -reverse), free_energy


def test_gaussian_works_cross_at_zero():
    given, free_energy = gaussian_works(4000)
    work = dissipated_work(given)
    assert work.forward.shape == (400, 4000)
    assert work.reverse.shape == (4000,)
    assert abs(work.crossing) < 3 * work.crossing_error < 0.2
    np.testing.assert_allclose(given.estimate.mean(), -free_energy.mean(), atol=0.02)
    assert work.forward.mean() == pytest.approx(0.72, abs=0.02)
    assert work.reverse.mean() == pytest.approx(-0.72, abs=0.07)
    # 2 int P_F P_R / (P_F + P_R), by quadrature
    d = np.linspace(-10, 10, 4001)
    pf, pr = (np.exp(-((d - sign * 0.72) ** 2) / 2.88) / math.sqrt(2.88 * math.pi) for sign in (1, -1))
    assert work.overlap == pytest.approx(2 * np.sum(pf * pr / (pf + pr)) * 0.005, abs=0.02)


def test_error_of_the_crossing_is_that_of_repeats():
    rng = np.random.default_rng(1)
    crossings, errors = [], []
    for _ in range(100):
        forward = rng.normal(0.72, 1.2, size=(500, 200))
        reverse = rng.normal(-0.72, 1.2, size=200)
        work = dissipated_work(Sandwich(np.zeros((200, 1)), Likelihood(-forward, np.zeros(0)), -reverse))
        crossings.append(work.crossing)
        errors.append(work.crossing_error)
    assert 0.8 < np.std(crossings) / np.mean(errors) < 1.25
    assert abs(np.mean(crossings)) < 3 * np.std(crossings) / 10 + 0.01


def test_works_that_do_not_obey_crooks_cross_elsewhere():
    given, _ = gaussian_works(4000, shift=1.0)
    work = dissipated_work(given)
    assert work.crossing > 0.3 > 5 * work.crossing_error


@pytest.mark.parametrize("case", ["gaussian", "bits"])
def test_works_of_the_oracles(case):
    given, log_prob = simulated(case, 64)
    work = dissipated_work(given)
    assert abs(work.crossing) < 3 * work.crossing_error < 0.2
    # What Crooks implies of the exact free energies, both ways: E_F exp(-D) = 1 and E_R exp(D) = 1.
    assert worst(np.exp(-given.forward_work - log_prob).mean(0), 1.0) < 3
    assert worst(np.exp(given.reverse_work + log_prob), 1.0) < 3
    assert work.reverse.mean() < 0 < work.forward.mean()


def test_a_perfect_model_dissipates_nothing():
    given = sandwich(normal_chain(4), params={}, key=KEY, num_data=20, num_particles=5, progress=False)
    work = dissipated_work(given)
    np.testing.assert_allclose(work.forward, 0, atol=1e-10)
    np.testing.assert_allclose(work.reverse, 0, atol=1e-10)
    assert abs(work.crossing) < 1e-10
    assert work.overlap == pytest.approx(1)


def test_zero_weights_have_infinite_work():
    forward = np.array([[1.0, 0.2], [np.inf, 0.1], [0.4, np.inf]])
    work = dissipated_work(Sandwich(np.zeros((2, 1)), Likelihood(-forward, np.zeros(0)), -np.array([0.3, 0.1])))
    assert np.isfinite(work.crossing)
    assert np.isinf(work.forward).sum() == 2
