"""Coverage against its expectation in closed form, brute force, and samples with a piece missing."""

import math
from itertools import combinations

import numpy as np
import pytest

from dpm_ppl.inference import coverage

RNG = np.random.default_rng(0)


def skewed(num):
    """Draws of an asymmetric law in three dimensions, two of them dependent."""
    x = RNG.exponential(size=(num, 3))
    return np.stack([x[:, 0], x[:, 0] * x[:, 1], -x[:, 2]], -1)


@pytest.mark.parametrize(("num_data", "num_samples", "k"), [(3, 4, 1), (5, 3, 2), (4, 5, 3)])
def test_samples_like_the_data_cover_as_many_as_expected(num_data, num_samples, k):
    """Exactly, over all ways to call some of given points data: each is as likely, where all are drawn alike."""
    points = skewed(num_data + num_samples)
    found = []
    for chosen in combinations(range(len(points)), num_data):
        is_data = np.isin(np.arange(len(points)), chosen)
        found.append(coverage(points[is_data], points[~is_data], num_neighbours=k))
    assert np.mean([each.share for each in found]) == pytest.approx(found[0].expected, abs=1e-12)


def test_expected_of_many_is_one_less_a_power_of_two():
    assert coverage(skewed(4000), skewed(4000)).expected == pytest.approx(1 - 2**-5, abs=1e-4)


def test_a_missing_piece_is_missing():
    """Two pieces far apart, the smaller without samples: its data have none nearby, and the others are as expected."""
    num, left_out, k = 200, 60, 5
    shares = []
    for _ in range(200):
        data = np.concatenate([RNG.exponential(size=(num - left_out, 2)), 100 + RNG.normal(size=(left_out, 2))])
        found = coverage(data, RNG.exponential(size=(150, 2)), num_neighbours=k)
        assert not found.covered[-left_out:].any()
        shares.append(found.share)
    inside = 1 - math.prod((num - left_out - i) / (num - left_out + 150 - i) for i in range(1, k + 1))
    expected = inside * (num - left_out) / num
    assert abs(np.mean(shares) - expected) < 3 * np.std(shares) / math.sqrt(len(shares))
    assert expected < found.expected - 0.25


def test_agrees_with_brute_force_and_is_not_symmetric():
    data, samples = skewed(40).reshape(40, 3, 1), skewed(25).reshape(25, 3, 1) + 0.5

    def by_hand(data, samples):
        own = np.sort(np.linalg.norm(data[:, None] - data[None], axis=(-2, -1)), 1)[:, 4]  # the 4th after itself
        return np.linalg.norm(data[:, None] - samples[None], axis=(-2, -1)).min(1) <= own

    found, turned = (coverage(*pair, num_neighbours=4) for pair in ((data, samples), (samples, data)))
    np.testing.assert_array_equal(found.covered, by_hand(data, samples))
    np.testing.assert_array_equal(turned.covered, by_hand(samples, data))
    assert found.share != turned.share
    assert found.summary()["coverage"] == found.share


def test_discrete_data_are_covered_by_samples_that_are_the_same():
    sequences = np.eye(4, dtype=int)
    data = np.repeat(sequences, [10, 20, 30, 40], axis=0)
    assert coverage(data, np.repeat(sequences[[1, 3]], 10, axis=0)).share == 0.6
    assert coverage(data, np.repeat(sequences[[0]], 10, axis=0)).share == 0.1
    assert coverage(data, np.zeros((10, 4), int)).share == 0


def test_error_is_of_the_right_size():
    found = [coverage(skewed(100), skewed(100)[:40] / 2) for _ in range(300)]
    spread = np.std([each.share for each in found])
    assert 0.5 * spread < np.mean([each.share_error for each in found]) < 1.5 * spread  # data share neighbours


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"samples": skewed(9)[:, :2]}, ValueError, "one event shape"),
        ({"data": skewed(5)}, ValueError, r"`data` of shape .* at least 6 of them; got shape \(5, 3\)"),
        ({"samples": np.full((9, 3), np.nan)}, ValueError, "`samples` to be finite"),
        ({"num_neighbours": 0}, ValueError, "`num_neighbours` to be at least 1"),
        ({"num_neighbours": 1.0}, TypeError, "`num_neighbours` to be an integer"),
    ],
)
def test_bad_input_is_told(change, error, message):
    with pytest.raises(error, match=message):
        coverage(**{"data": skewed(9), "samples": skewed(9), **change})
