"""Parameters in shards: the fit is that of whole ones, each device has its part, and so has it of Adam's moments."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from dpm_ppl.inference import bound, make_mesh
from dpm_ppl.inference.devices import ALONE, spread_over
from dpm_ppl.inference.fitting.shards import placement
from tests.inference.fitting import many_shards
from tests.inference.fitting.many_shards import DATA, FIRST, KEY, diffusion, fitted, rule
from tests.processes import on_eight_devices


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """What a process with eight devices wrote."""
    folder = tmp_path_factory.mktemp("shards")
    on_eight_devices(many_shards.__file__, folder)
    with np.load(folder / "numbers.npz") as arrays:
        return folder, {name: arrays[name] for name in arrays.files}, json.loads((folder / "about.json").read_text())


def test_the_fit_is_that_of_whole_parameters(eight):
    alone = fitted()
    expected = {"losses": alone.losses, **alone.params}
    for name, value in expected.items():
        np.testing.assert_allclose(eight[1][name], value, rtol=1e-11, atol=1e-11, err_msg=name)
    assert np.abs(np.asarray(alone.params["rise"]) - FIRST["rise"]).max() > 0.01  # it has moved


def test_each_device_has_its_part(eight):
    assert eight[2]["parts"] == {"rise": [4] * 8, "fall": [1] * 8, "shift": [1] * 8}
    assert eight[2]["whole"] == [0, 0]


def test_a_bound_takes_parameters_in_parts(eight):
    whole = bound(diffusion, DATA, params={name: jnp.asarray(eight[1][name]) for name in FIRST}, key=KEY)
    np.testing.assert_allclose(eight[1]["elbo"], whole.elbo, rtol=1e-11)


def test_a_run_goes_on_with_whole_parameters(eight):
    on = fitted(run_dir=eight[0] / "run", resume=True, num_iterations=41)
    np.testing.assert_array_equal(on.losses[:40], eight[1]["losses"])
    assert len(on.losses) == 41


def test_what_cannot_be_split_is_said_by_name(eight):
    axis, uneven, no_spec = eight[2]["errors"]
    assert axis.startswith(
        "ValueError: Expected `shard` to name axes of the mesh, which are 'data', 'model'; got 'rows'"
    )
    assert "to split ['shift'], of shape (1,), into equal parts over the mesh {'data': 4, 'model': 2}" in uneven
    assert no_spec.startswith("TypeError: Expected `shard` to give a jax.sharding.PartitionSpec, or None")


def test_what_is_kept_of_a_parameter_is_placed_like_it():
    params = {name: jnp.asarray(value) for name, value in FIRST.items()}
    state = {"params": params, "adam": optax.adam(0.1).init(params), "rise": jnp.zeros(3)}
    spread = spread_over(jax.sharding.Mesh(np.array(jax.devices()).reshape(1, 1), ("data", "model")))
    placed = placement(spread, rule, state, params)
    moments = placed["adam"][0]
    for tree in (placed["params"], moments.mu, moments.nu):
        assert tree["rise"].spec == PartitionSpec("model")
        assert tree["fall"].spec == PartitionSpec(("data", "model"))
        assert tree["shift"].spec == PartitionSpec()
    assert moments.count.spec == PartitionSpec()
    assert placed["rise"].spec == PartitionSpec()  # of the same name and another shape: it is something else


def test_a_longer_name_is_another_parameter():
    params = {"rise": jnp.zeros(8), "net": {"rise": jnp.zeros(8)}}
    spread = spread_over(jax.sharding.Mesh(np.array(jax.devices()).reshape(1, 1), ("data", "model")))
    placed = placement(spread, rule, {"mu": params}, params)["mu"]
    assert placed["rise"].spec == PartitionSpec("model")
    assert placed["net"]["rise"].spec == PartitionSpec()


def test_one_device_has_nothing_to_split_over():
    assert placement(ALONE, None, FIRST, FIRST) is None
    with pytest.raises(ValueError, match="Expected several devices, to split parameters over by `shard`"):
        fitted(shard=rule)
    with pytest.raises(TypeError, match="`shard` to be a function of a parameter's name and shape; got str"):
        fitted(shard="model", mesh=make_mesh(1))
    with pytest.raises(ValueError, match="Expected no `shard` with several starts"):
        fitted(shard=rule, num_starts=2)
