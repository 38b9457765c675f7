"""Counts and keys: what passes, and what is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dpm_ppl as dpm
from dpm_ppl import inference
from dpm_ppl.arguments import require_count, require_key
from dpm_ppl.chains import forward_states, reverse_states
from tests.inference.posteriors.test_posterior_record import made
from tests.oracles import GaussianOracle

ORACLE = GaussianOracle.exact(4)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), jnp.array(3)])
def test_counts_are_integers_of_python(value):
    count = require_count("num_samples", value, at_least=3)
    assert count == 3
    assert type(count) is int


@pytest.mark.parametrize(
    "value", [True, np.True_, 3.0, np.float64(3), "3", None, np.array([3]), np.array(True), jnp.array(3.0)]
)
def test_a_count_that_is_no_integer(value):
    with pytest.raises(TypeError, match="Expected `num_samples` to be an integer; got"):
        require_count("num_samples", value)


@pytest.mark.parametrize(("value", "at_least"), [(0, 1), (-2, 1), (np.int32(4), 5), (-1, 0)])
def test_a_count_too_small(value, at_least):
    with pytest.raises(ValueError, match=rf"Expected `num_samples` to be at least {at_least}; got {value}\."):
        require_count("num_samples", value, at_least=at_least)


@pytest.mark.parametrize("key", [jax.random.key(0), jax.random.PRNGKey(0)])
def test_a_key_of_either_style_passes(key):
    assert require_key(key) is key


@pytest.mark.parametrize(
    "key", [0, None, np.int64(3), jnp.zeros(2), jnp.zeros(2, int), jax.random.split(jax.random.key(0), 3)]
)
def test_what_is_no_key(key):
    with pytest.raises(TypeError, match=r"Expected `key` to be one random key, such as jax.random.key\(0\); got"):
        require_key(key)


def test_functions_say_so_before_any_work():
    pair = dpm.single_chain(ORACLE.diffusion)
    of = {"params": ORACLE.params, "key": 0}
    for call in (
        lambda: inference.bound(ORACLE.diffusion, np.zeros((3, 2)), **of),
        lambda: inference.log_likelihood(ORACLE.diffusion, np.zeros((3, 2)), num_particles=2, **of),
        lambda: inference.consistency_bound(ORACLE.diffusion, np.zeros((3, 2)), **of),
        lambda: inference.entropy_bounds(ORACLE.diffusion, np.zeros((3, 2)), **of),
        lambda: inference.sandwich(ORACLE.diffusion, num_data=3, num_particles=2, **of),
        lambda: inference.importance_weights(*pair, np.zeros((3, 2)), num_particles=2, **of),
        lambda: inference.fit(*pair, np.zeros((3, 2)), key=0, num_iterations=1, batch_size=2),
        lambda: inference.smc(pair[0], "x", params=ORACLE.params, num_particles=2)(0),
        lambda: inference.perturbed_chain(pair[0], "x", params=ORACLE.params, num_samples=2)(0),
        lambda: reverse_states(ORACLE.diffusion(), key=0, num_samples=2),
        lambda: forward_states(ORACLE.diffusion(), np.zeros((3, 2)), key=0, times=[1]),
        lambda: dpm.networks.RBFNetwork(2, 4, num_steps=3, key=0),
        lambda: dpm.networks.StepMLP(2, 4, num_steps=3, key=0),
        lambda: dpm.networks.TimeMLP(2, 4, num_steps=3, key=0),
        lambda: made().resample(0, 5),
        lambda: made().to_arviz(key=0),
    ):
        with pytest.raises(TypeError, match="Expected `key` to be one random key"):
            call()


@pytest.mark.parametrize("of", [np.int8, np.uint64, np.array, jnp.asarray])
def test_any_integer_is_a_count(of):
    """Of a narrow type too: 100 particles of three data are more than it can hold."""
    of_all = {"params": ORACLE.params, "key": jax.random.key(0), "progress": False}
    x0 = np.array([[0.3, -0.2], [1.0, 0.4], [-0.7, 0.1]])
    one, other = (
        inference.log_likelihood(ORACLE.diffusion, x0, **of_all, num_particles=count(100), num_trajectories=count(1))
        for count in (int, of)
    )
    np.testing.assert_array_equal(one.log_weight, other.log_weight)
    np.testing.assert_array_equal(one.estimate_at(7), other.estimate_at(of(7)))
    for schedule in (
        dpm.schedules.linear,
        dpm.schedules.cosine,
        dpm.schedules.constant_fraction,
        dpm.schedules.log_snr,
    ):
        np.testing.assert_array_equal(schedule(of(120)), schedule(120))
    nets = [
        [
            dpm.networks.TimeMLP(n(2), n(3), num_steps=n(5), width=n(4), depth=n(2), key=jax.random.key(0)),
            dpm.networks.StepMLP(n(2), n(3), num_steps=n(5), width=n(4), depth=n(2), key=jax.random.key(0)),
            dpm.networks.RBFNetwork(n(2), n(3), num_steps=n(5), num_units=n(4), key=jax.random.key(0)),
        ]
        for n in (int, of)
    ]
    assert jax.tree.structure(nets[0]) == jax.tree.structure(nets[1])
    assert dpm.Heartbeat(of(10), of(5)).event_shape == (10,)
    assert made().to_arviz(num=of(30))["posterior"].sizes["draw"] == 30
    assert hash(inference.averaged(num_points=of(32))) == hash(inference.averaged(num_points=32))
