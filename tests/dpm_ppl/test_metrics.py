"""The numbers of a fit: data to evaluate on, the limit, and what is reported."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl import metrics

KEY = jax.random.key(0)


class NoEntropy(dist.Normal):
    def entropy(self):
        raise NotImplementedError


class NoDensity(NoEntropy):
    def log_prob(self, value):
        raise NotImplementedError


def diffusion(num_steps, *, width=1):
    kernel = dpm.GaussianKernel(dpm.schedules.linear(num_steps), (2,))
    matrix = jnp.ones((2, width)), jnp.ones((width, width)), jnp.ones((width, 2))

    def reverse(x, t):
        return dist.Normal(x @ matrix[0] @ matrix[1] @ matrix[2], 1.0).to_event(1)

    return dpm.Diffusion(kernel, reverse)


def test_affordable_falls_with_steps_and_with_the_size_of_the_network():
    def num(*args, **options):
        return metrics.affordable(diffusion(*args, **options), seconds=10, least=1, most=10**9)

    assert num(40) == num(40)
    assert num(400) == pytest.approx(num(40) / 10, rel=1e-3)
    assert num(40, width=2000) < num(40) / 50  # four million products a step
    assert metrics.affordable(diffusion(40), seconds=10, least=5, most=7) == 7
    assert metrics.affordable(diffusion(40, width=2000), seconds=1e-9, least=5, most=7) == 5
    assert metrics.affordable(diffusion(1), seconds=1e-9, least=5, most=7) == 7  # no learned step to pay for


def test_listed_sequences_come_equally_often():
    x0 = metrics.fresh_data(dpm.Heartbeat(), key=KEY, num_data=1001)
    sequences, counts = np.unique(np.asarray(x0), axis=0, return_counts=True)
    assert x0.shape == (1000, 20)
    assert set(counts) == {200}
    assert np.isfinite(dpm.Heartbeat().log_prob(sequences)).all()


def test_unequally_likely_values_are_drawn():
    data = dist.Independent(dist.Bernoulli(jnp.array([0.1])), 1)
    x0 = metrics.fresh_data(data, key=KEY, num_data=10_000)
    assert abs(x0.mean() - 0.1) < 4 * math.sqrt(0.09 / 10_000)


def test_an_array_is_used_whole_or_in_part():
    data = np.arange(30.0).reshape(10, 3)
    np.testing.assert_array_equal(metrics.fresh_data(data, key=KEY, num_data=10), data)
    part = np.asarray(metrics.fresh_data(data, key=KEY, num_data=4))
    assert len(np.unique(part[:, 0])) == 4
    assert {tuple(row) for row in part} <= {tuple(row) for row in data}


def test_entropy_limit_is_minus_the_entropy_or_the_mean_log_density():
    x0 = jnp.array([0.0, 1.0, 3.0])
    exact = -0.5 * math.log(2 * math.pi * math.e * 4)
    assert metrics.entropy_limit(dist.Normal(0.0, 2.0), x0) == pytest.approx(exact)
    mean = -0.5 * math.log(2 * math.pi * 4) - (0 + 1 + 9) / 3 / 8
    assert metrics.entropy_limit(NoEntropy(0.0, 2.0), x0) == pytest.approx(mean)
    assert metrics.entropy_limit(NoDensity(0.0, 2.0), x0) is None
    assert metrics.entropy_limit(np.asarray(x0), x0) is None


def test_entropy_limit_of_the_swiss_roll_in_bits():
    assert metrics.entropy_limit(dpm.SwissRoll(), jnp.zeros((1, 2))) / math.log(2) == pytest.approx(-0.948, abs=5e-4)


def summary(**changed):
    names = ("elbo", "K", "L_null", "K_minus_L_null", "kl", "prior_matching", "reconstruction")
    values = {f"{name}_bits": -1.0 - i for i, name in enumerate(names)}
    errors = {f"{name}_bits_se": 0.1 for name in names}
    return {**values, **errors, "elbo_bits_per_dimension": -0.5, "num_data": 50, **changed}


def test_gap_is_limit_minus_elbo():
    result = metrics.metrics(summary(), limit=-0.25 * math.log(2), about={"model": "m"})
    assert next(iter(result)) == "model"
    assert result["entropy_limit_bits"] == pytest.approx(-0.25)
    assert result["gap_bits"] == pytest.approx(0.75)
    assert (result["gap_bits_se"], result["K_bits"], result["L_null_bits"]) == (0.1, -2.0, -3.0)


def test_what_is_not_known_is_none():
    result = metrics.metrics(summary(K_bits=math.nan, elbo_bits_se=math.inf), limit=None, about={})
    assert result["K_bits"] is None
    assert result["elbo_bits_se"] is None
    assert "gap_bits" not in result
    assert "entropy_limit_bits" not in result


def test_table_shows_what_is_known_with_its_error():
    about = {"model": "m", "iterations": 12_000, "seconds": 61.0}
    known = metrics.table(metrics.metrics(summary(), limit=-0.25 * math.log(2), about=about))
    assert "m: 12,000 iterations in 61 s; bits per datum, on 50 data" in known
    assert "ELBO                    -1.0000 ± 0.1000" in known
    assert "gap to the limit         0.7500 ± 0.1000" in known
    unknown = metrics.table(metrics.metrics(summary(K_bits=math.nan), limit=None, about=about))
    assert "gap" not in unknown
    assert "paper's form" not in unknown


def test_a_program_that_is_no_chain_reports_what_is_known():
    about = {"model": "m", "iterations": 5, "seconds": 1.0}
    known = {"elbo_bits": -3.0, "elbo_bits_se": 0.1, "num_data": 50}
    result = metrics.metrics(known, limit=-math.log(2), about=about)
    assert (result["elbo_bits"], result["gap_bits"]) == (-3.0, 2.0)
    assert not {"K_bits", "L_null_bits", "objective_nats"} & set(result)
    assert "K (the paper's form)" not in metrics.table(result)
    unscored = metrics.metrics(
        {"objective_nats": -1.25, "objective_nats_se": 0.5, "num_data": 5}, limit=None, about=about
    )
    assert "No likelihood. Objective -1.2500 ± 0.5000 nats." in metrics.table(unscored)


def test_support_is_the_distributions_or_read_off_the_type():
    assert metrics.support(dpm.Heartbeat(), jnp.zeros(1)) is dpm.Heartbeat.support
    assert metrics.support(np.zeros((3, 2)), jnp.zeros((3, 2), int)).is_discrete
    assert not metrics.support(np.zeros((3, 2)), jnp.zeros((3, 2))).is_discrete
