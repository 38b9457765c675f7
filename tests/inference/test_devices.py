"""Programs over devices: 1, 2 and 8 make the same numbers; what the compiled step sends; what cannot be placed."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

import dpm_ppl
from dpm_ppl.inference import bound, fit, log_likelihood, make_mesh, sandwich, smc
from dpm_ppl.inference.devices import ALONE, Spread, spread_over, using
from tests.inference import many_devices
from tests.inference.many_devices import CONTEXT, DATA, FITS, KEY, START, diffusion, fitted, numbers
from tests.processes import on_eight_devices


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """What a process with eight devices wrote: arrays by name, and its training step."""
    folder = tmp_path_factory.mktemp("eight")
    on_eight_devices(many_devices.__file__, folder)
    with np.load(folder / "numbers.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}, (folder / "step.txt").read_text()


def agree(found, expected):
    """All that is there, to 1e-11: rounding in another order, through fifty iterations or four steps."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11, atol=1e-11, err_msg=name)


def of(arrays, name):
    return {part.removeprefix(f"{name}/"): value for part, value in arrays.items() if part.startswith(f"{name}/")}


@pytest.mark.parametrize(("kind", "devices"), [("even", "2, then 8"), ("even", "8"), ("uneven", "8")])
def test_a_fit_is_the_same_on_any_number_of_devices(eight, kind, devices):
    """The first reads a memory-mapped array, and is resumed on more; eight do not divide a batch of 13."""
    alone = fitted(**FITS[kind])
    expected = {"losses": alone.losses, "validation": alone.validation, **alone.params}
    assert len(alone.losses) == 50
    agree(of(eight[0], f"{kind}/{devices}"), {name: np.asarray(value) for name, value in expected.items()})


@pytest.fixture(scope="module")
def alone():
    return {name: np.asarray(value) for name, value in numbers().items()}


@pytest.mark.parametrize("devices", [2, 8])
def test_weights_bounds_and_posteriors_are_the_same_on_any_number_of_devices(eight, alone, devices):
    agree(of(eight[0], f"numbers/{devices}"), alone)
    assert 0 < alone["resampled"].sum() < 4  # some steps resample and some do not
    assert all(0.1 < alone[f"taken/{kind}"] < 0.9 for kind in ("last", "each", "paths"))  # and some moves are taken


def test_the_training_step_adds_up_gradients_once_and_sends_no_data(eight):
    sent = re.findall(r"= (.*?) (all-\w+|collective-\w+|reduce-scatter|ragged-\S+?)(?:-start)?\(", eight[1])
    assert [name for _, name in sent] == ["all-reduce"]
    shapes = re.findall(r"f64\[(\d*)\]", sent[0][0])
    assert shapes[: len(START)] == ["3"] * len(START)  # the gradients, and what is left of the loss
    assert set(shapes[len(START) :]) == {""}
    assert re.search(r"f64\[3,1\]", eight[1])  # 24 data, three on each device


def test_one_device_places_nothing():
    tree = {"a": np.arange(3)}
    for spread in (spread_over(None), ALONE):
        assert spread == Spread(None)
        assert all(place(tree) is tree for place in (spread.put, spread.put_split, spread.constrained, spread.gathered))
        assert spread.whole is None
        assert spread.multiple(7) == 7


def test_what_lies_elsewhere_is_put_there_and_so_is_what_is_traced():
    spread = spread_over(make_mesh(1))
    x = jax.numpy.arange(3.0)
    assert jax.jit(spread.put)(x).tolist() == jax.vmap(spread.put)(x).tolist() == [0, 1, 2]
    own = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    there = jax.device_put(x, jax.sharding.NamedSharding(own, jax.sharding.PartitionSpec()))
    assert spread.put(there).sharding == spread.whole
    here = jax.device_put(x, spread.split)
    assert spread.put(here) is here


def test_a_default_device_is_kept_to(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [object()] * 8)
    monkeypatch.setattr(jax, "local_devices", lambda: [object()] * 8)
    with jax.default_device("cpu"):
        assert spread_over(None) is ALONE


def test_what_is_given_no_mesh_takes_the_one_in_use():
    mesh = make_mesh(1)
    with using(mesh), using(None):
        assert spread_over(None).mesh == mesh
    assert spread_over(None) is ALONE


def test_axes_become_those_that_numpyro_can_use():
    explicit = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Explicit,))
    spread = spread_over(explicit)
    assert spread.axis == "i"
    assert spread.mesh.axis_types == (AxisType.Auto,)
    several = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("model", "data"))
    assert spread_over(several).axis == "data"


@pytest.mark.parametrize(
    ("mesh", "error", "message"),
    [
        (8, TypeError, r"jax.sharding.Mesh, such as dpm_ppl.inference.make_mesh\(8\); got int"),
        (jax.devices(), TypeError, "got list"),
        (Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("a", "b")), ValueError, "axis 'data'.*got the axes 'a', 'b'"),
    ],
)
@pytest.mark.parametrize("of", ["fit", "log_likelihood", "bound", "sandwich", "smc"])
def test_what_is_no_mesh_of_data_is_refused(of, mesh, error, message):
    given = {"params": START, "key": KEY, "context": CONTEXT, "mesh": mesh}
    calls = {
        "fit": lambda: fit(*dpm_ppl.single_chain(diffusion), DATA, key=KEY, num_iterations=1, mesh=mesh),
        "log_likelihood": lambda: log_likelihood(diffusion, DATA, num_particles=2, **given),
        "bound": lambda: bound(diffusion, DATA, **given),
        "sandwich": lambda: sandwich(diffusion, num_data=64, num_particles=2, **given),
        "smc": lambda: smc(many_devices.observed, "x", params=START, num_particles=2, mesh=mesh),
    }
    with pytest.raises(error, match=message):
        calls[of]()


@pytest.mark.parametrize(
    ("num", "error", "message"),
    [
        (9, ValueError, r"at most 1, which JAX sees here \(cpu\); got 9. .*device_count=9"),
        (0, ValueError, "at least 1; got 0"),
        (1.5, TypeError, "integer; got 1.5"),
    ],
)
def test_a_mesh_of_more_devices_than_there_are(num, error, message):
    with pytest.raises(error, match=message):
        make_mesh(num)
