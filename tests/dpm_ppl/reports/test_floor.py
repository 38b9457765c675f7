"""The best law of independent coordinates: what it scores, and that no other of them scores more."""

import math

import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

from dpm_ppl.datasets import Centred, Scale
from dpm_ppl.reports.floor import independent_floor
from tests.models.images import independent_log_prob

RNG = np.random.default_rng(0)


def test_reals_are_normals_of_their_own_mean_and_scale():
    x0 = RNG.gamma(2.0, [[0.3, 4.0]], (500, 2)) * [1.0, -1.0]
    best = independent_floor(x0, constraints.real_vector)

    def score(shift, stretch):
        law = dist.Normal(x0.mean(0) + shift, x0.std(0) * stretch).to_event(1)
        return float(np.mean(law.log_prob(x0)))

    assert best == pytest.approx(score(0.0, 1.0), rel=1e-12)
    assert max(score(0.01, 1.0), score(-0.01, 1.0), score(0.0, 1.02), score(0.0, 0.98)) < best


def test_bits_and_letters_are_as_frequent_as_they_are():
    bits = np.array([[0, 1, 1], [1, 1, 0], [0, 1, 1], [0, 1, 0]])
    # -H(1/4) of the first, nothing of the second, which never changes, and log 2 of the third.
    expected = 0.25 * math.log(0.25) + 0.75 * math.log(0.75) - math.log(2)
    assert independent_floor(bits, dist.Bernoulli(np.full(3, 0.5)).to_event(1).support) == pytest.approx(expected)
    letters = np.array([[0, 2], [3, 2], [3, 1], [0, 0], [1, 2], [0, 2], [3, 2], [0, 2]])
    first, second = np.array([4, 1, 3]) / 8, np.array([1, 1, 6]) / 8
    expected = sum(float(shares @ np.log(shares)) for shares in (first, second))
    assert independent_floor(letters, constraints.nonnegative_integer) == pytest.approx(expected)


def test_of_angles_there_is_none_and_of_what_never_changes_no_end():
    assert independent_floor(np.ones((5, 2)), constraints.independent(constraints.circular, 1)) is None
    assert independent_floor(np.ones((5, 2)), constraints.real_vector) == math.inf


def test_middles_of_levels_are_scored_as_levels():
    levels = np.array([[0, 1, 1], [1, 1, 0], [0, 1, 1], [0, 1, 0]])
    scale = Scale(0.7, 3.0, levels=4)
    expected = independent_floor(levels, constraints.nonnegative_integer)
    data = Centred(levels.astype(np.uint8), scale)
    found = independent_floor(scale.centre(levels), data.support, levels_of=data.levels_of)
    assert found == pytest.approx(expected)
    assert independent_floor(scale.centre(levels), data.support) == math.inf  # of densities: the second never changes


def test_it_is_the_mean_of_what_each_image_scores():
    """By the helper that tests of pages hold each image against, of real numbers, of bits and of levels."""
    reals = RNG.gamma(2.0, size=(50, 2, 3)) * [1.0, -2.0, 0.3]
    bits = (reals > 0.5).astype(int)
    scale = Scale(2.0, 1.5, levels=8)
    data = Centred(RNG.integers(0, 8, (50, 2, 3)).astype(np.uint8), scale)
    levels = scale.centre(np.asarray(data.images))
    for x0, support, levels_of in (
        (reals, constraints.real, None),
        (bits, constraints.boolean, None),
        (levels, constraints.real, data.levels_of),
    ):
        each = independent_log_prob(x0, x0, levels_of=levels_of)
        assert each.shape == (50,)
        assert each.std() > 0.1
        assert each.mean() == pytest.approx(independent_floor(x0, support, levels_of=levels_of), rel=1e-6)
        np.testing.assert_allclose(independent_log_prob(x0[3:5], x0, levels_of=levels_of), each[3:5], rtol=1e-12)
