"""What is known of data, however they are given."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.data import draw, drawn_beside, entropy_limit, fresh_data, num_data_of, support_of, valid_sequences
from tests.dpm_ppl.reports.test_fit_figure import binary, drawn, titles

KEY = jax.random.key(0)


class NoEntropy(dist.Normal):
    def entropy(self):
        raise NotImplementedError


class NoDensity(NoEntropy):
    def log_prob(self, value):
        raise NotImplementedError


def test_listed_sequences_come_equally_often():
    x0 = fresh_data(dpm.Heartbeat(), key=KEY, num_data=1001)
    sequences, counts = np.unique(np.asarray(x0), axis=0, return_counts=True)
    assert x0.shape == (1000, 20)
    assert set(counts) == {200}
    assert np.isfinite(dpm.Heartbeat().log_prob(sequences)).all()


def test_unequally_likely_values_are_drawn():
    data = dist.Independent(dist.Bernoulli(jnp.array([0.1])), 1)
    x0 = fresh_data(data, key=KEY, num_data=10_000)
    assert abs(x0.mean() - 0.1) < 4 * math.sqrt(0.09 / 10_000)


def test_an_array_is_used_whole_or_in_part():
    data = np.arange(30.0).reshape(10, 3)
    np.testing.assert_array_equal(fresh_data(data, key=KEY, num_data=10), data)
    part = np.asarray(fresh_data(data, key=KEY, num_data=4))
    assert len(np.unique(part[:, 0])) == 4
    assert {tuple(row) for row in part} <= {tuple(row) for row in data}


def test_parts_stay_together():
    data = {"c": np.arange(10), "x0": np.arange(10) * 2.5}
    assert num_data_of(data) == num_data_of(tuple(data.values())) == 10
    assert num_data_of(dist.Normal()) is None
    for part in (fresh_data(data, key=KEY, num_data=4), draw(data, key=KEY, num_data=4)):
        assert len(set(np.asarray(part["c"]))) == 4
        np.testing.assert_array_equal(part["x0"], part["c"] * 2.5)
    np.testing.assert_array_equal(fresh_data(data, key=KEY, num_data=10)["c"], data["c"])
    first, second = draw(tuple(data.values()), key=KEY, num_data=3)
    np.testing.assert_array_equal(second, first * 2.5)


def test_distributions_beside_arrays_are_drawn_once():
    c = np.linspace(-50, 50, 2000)
    data = {"c": c, "each": dist.Normal(c[:, None], jnp.array([0.1, 2.0])).to_event(1), "all": dist.Normal(3.0, 0.5)}
    drawn = drawn_beside(data)
    assert (list(drawn), drawn["each"].shape, drawn["all"].shape) == (["c", "each", "all"], (2000, 2), (2000,))
    off = drawn["each"] - c[:, None]
    assert np.abs(off.mean(0) / [0.1, 2.0]).max() < 4 / np.sqrt(2000)
    assert np.abs(off.std(0) / [0.1, 2.0] - 1).max() < 4 / np.sqrt(4000)
    assert abs(drawn["all"].mean() - 3) < 4 * 0.5 / np.sqrt(2000)
    np.testing.assert_array_equal(drawn_beside(data)["each"], drawn["each"])
    assert drawn_beside((c, data["all"]))[1].shape == (2000,)
    assert drawn_beside(c) is c


def test_parts_that_do_not_fit():
    with pytest.raises(ValueError, match=r"one length, one entry for each datum, in `held_out`; got {'c': 3, 'x0': 4}"):
        drawn_beside({"c": np.zeros(3), "x0": np.zeros((4, 2))}, name="held_out")
    with pytest.raises(ValueError, match=r"an array beside the distributions in `data`"):
        drawn_beside((dist.Normal(), dist.Normal()))
    with pytest.raises(ValueError, match=r"'x' in `data` to have batch shape \(\) or \(3,\).*; got \(2,\)"):
        drawn_beside({"c": np.zeros(3), "x": dist.Normal(jnp.zeros(2), 1.0)})
    for wrong in ("label", None, 3.0):
        with pytest.raises(TypeError, match=f"got {type(wrong).__name__} for 'c'"):
            drawn_beside({"c": wrong, "x0": np.zeros(3)})


def test_entropy_limit_is_minus_the_entropy_or_the_mean_log_density():
    x0 = jnp.array([0.0, 1.0, 3.0])
    exact = -0.5 * math.log(2 * math.pi * math.e * 4)
    assert entropy_limit(dist.Normal(0.0, 2.0), x0) == pytest.approx(exact)
    mean = -0.5 * math.log(2 * math.pi * 4) - (0 + 1 + 9) / 3 / 8
    assert entropy_limit(NoEntropy(0.0, 2.0), x0) == pytest.approx(mean)
    assert entropy_limit(NoDensity(0.0, 2.0), x0) is None
    assert entropy_limit(np.asarray(x0), x0) is None


def test_entropy_limit_of_the_swiss_roll_in_bits():
    assert entropy_limit(dpm.SwissRoll(), jnp.zeros((1, 2))) / math.log(2) == pytest.approx(-0.948, abs=5e-4)


def test_support_is_the_distributions_or_read_off_the_type():
    assert support_of(dpm.Heartbeat(), jnp.zeros(1)) is dpm.Heartbeat.support
    assert support_of(np.zeros((3, 2)), jnp.zeros((3, 2), int)).is_discrete
    assert not support_of(np.zeros((3, 2)), jnp.zeros((3, 2))).is_discrete


def test_data_that_cannot_be_listed_have_no_frequencies():
    no_list = dist.Bernoulli(0.3 * jnp.ones(4)).to_event(1)
    many = SimpleNamespace(enumerate_support=lambda: np.zeros((65, 4)), log_prob=lambda x: np.zeros(len(x)))
    diffusion = binary((4,))
    for data in (None, np.zeros((5, 4)), no_list, many):
        assert valid_sequences(data) is None
        assert "How often each valid sequence is sampled" not in titles(drawn(diffusion, np.zeros((5, 4)), data=data))
