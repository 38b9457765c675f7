"""Checkpoints: what is saved comes back bit for bit or not at all, and parameters for the program that made them."""

import json
import os
import shutil
import signal
import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import orbax.checkpoint as ocp
import pytest
from numpyro.contrib.module import eqx_module

import dpm_ppl as dpm
from dpm_ppl.inference import fit, load_params
from dpm_ppl.inference.fitting import runs

DATA = np.random.default_rng(0).normal(0.4, 1.3, size=(32, 2))


def model(x0=None, size=1, *, width=5, num_steps=6):
    kernel = dpm.GaussianKernel(dpm.schedules.learned("beta", num_steps), (2,))
    net = eqx_module(
        "reverse", dpm.networks.TimeMLP(2, 2, num_steps=num_steps, width=width, depth=1, key=numpyro.prng_key())
    )
    scale = numpyro.param("scale", 0.7, constraint=dist.constraints.greater_than(jnp.asarray(0.25)))
    chain = dpm.Diffusion(kernel, lambda x, t: dist.Normal(net(x, t), scale).to_event(1))
    with numpyro.plate("data", size if x0 is None else len(x0)):
        return dpm.reverse_chain("x", chain, obs=x0)


def guide(x0):
    shift = numpyro.param("shift", jnp.zeros(2))
    kernel = dpm.GaussianKernel(dpm.schedules.learned("beta", 6), (2,))
    with numpyro.plate("data", len(x0)):
        dpm.forward_chain("x", dpm.Diffusion(kernel, kernel.step), x0 + 0 * shift)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A fit, and its directory with the checkpoints of iterations 4 and 9."""
    run_dir = tmp_path_factory.mktemp("run")
    options = {
        "key": jax.random.key(0),
        "batch_size": 16,
        "num_steps_sampled": 2,
        "progress": False,
        "run_dir": run_dir,
    }
    fit(model, guide, DATA, num_iterations=4, optimizer=optax.adam(0.01), **options)
    return fit(model, guide, DATA, num_iterations=9, optimizer=optax.adam(0.01), resume=True, **options), run_dir


@pytest.fixture
def run_dir(run, tmp_path):
    """A copy to damage."""
    return shutil.copytree(run[1], tmp_path / "run")


def trees():
    return {
        "float": jnp.arange(6.0).reshape(2, 3) / 7,
        "small": [jnp.asarray([1.5, -2.25], jnp.bfloat16), np.float32(0.1)],
        "int": jnp.asarray(-3, jnp.int32),
        "bool": jnp.asarray([True, False]),
        "empty": jnp.zeros((0, 4), jnp.float32),
        "typed key": jax.random.split(jax.random.key(5), 3),
        "another kind of key": jax.random.key(5, impl="rbg"),
        "raw key": jax.random.PRNGKey(5),
        "nothing": None,
        "a/b.c['d']": (jnp.ones(1),),
    }


def same(a, b):
    def numbers(leaf):
        return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)

    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        assert numbers(x).tobytes() == numbers(y).tobytes()


def test_every_kind_of_leaf_comes_back(tmp_path):
    runs.save_checkpoint(tmp_path, 12, trees(), seconds=3.5, num_checkpoints=3)
    checkpoint = runs.newest_checkpoint(tmp_path)
    same(
        checkpoint.restore(
            jax.tree.map(jnp.zeros_like, {k: v for k, v in trees().items() if "key" not in k})
            | {name: key for name, key in trees().items() if "key" in name}
        ),
        trees(),
    )
    assert (checkpoint.position, checkpoint.seconds) == (12, 3.5)
    assert checkpoint.folder == tmp_path / "checkpoints" / "12"


def test_the_newest_is_the_one_of_most_iterations(tmp_path):
    for position in (9, 10, 100):
        runs.save_checkpoint(tmp_path, position, {"x": jnp.asarray(position)}, seconds=0.0, num_checkpoints=2)
    assert int(runs.newest_checkpoint(tmp_path).restore({"x": jnp.asarray(0)})["x"]) == 100
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "100"]


@pytest.mark.parametrize(
    ("template", "difference"),
    [
        ({"x": jnp.zeros(4)}, r"\['x'\] the program has float64\[4\] and the checkpoint float64\[3\]"),
        ({"x": jnp.zeros(3, jnp.float32)}, r"\['x'\] the program has float32\[3\] and the checkpoint float64\[3\]"),
        ({"y": jnp.zeros(3)}, r"\['y'\] the program has float64\[3\] and the checkpoint nothing"),
        ({"x": [jnp.zeros(3)]}, r"\['x'\]\[0\] the program has"),
        ({"k": jax.random.key(0, impl="rbg")}, r"\['k'\] the program has key<rbg>\[\] and the checkpoint key<fry>\[\]"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, template, difference):
    runs.save_checkpoint(tmp_path, 1, {"x": jnp.zeros(3), "k": jax.random.key(0)}, seconds=0.0, num_checkpoints=1)
    with pytest.raises(ValueError, match=difference):
        runs.newest_checkpoint(tmp_path).restore(template)


# Damage.


def files(run_dir):
    return sorted(path for path in (run_dir / "checkpoints" / "9").rglob("*") if path.is_file())


def emptied(path):
    path.write_bytes(b"")


def halved(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [emptied, halved, flipped, lambda path: path.unlink()])
def test_damage_to_any_file_is_told_or_does_no_harm(run_dir, damage):
    whole, told = runs.newest_checkpoint(run_dir), {}
    for path in files(run_dir):
        content = path.read_bytes()
        damage(path)
        try:
            found = runs.newest_checkpoint(run_dir)
        except ValueError as error:
            told[str(path.relative_to(run_dir / "checkpoints" / "9"))] = str(error)
        else:  # Orbax does not need the file
            assert found.kinds == whole.kinds
            same(found.leaves, whole.leaves)
        path.write_bytes(content)
    assert {"about/metadata", "arrays/manifest.ocdbt"} < set(told)
    assert any(name.startswith("arrays/d/") for name in told)  # where the numbers are
    for message in told.values():
        assert f"{run_dir / 'checkpoints' / '9'}; it is damaged" in message
        assert "Deleting that directory falls back to iteration 4" in message
    same(runs.newest_checkpoint(run_dir).leaves, whole.leaves)


def test_the_damaged_leaf_is_named(tmp_path):
    """Bits of two large leaves are turned, which Orbax does not tell."""
    tree = {name: jax.random.bits(jax.random.key(i), (300, 100)) for i, name in enumerate("ab")}  # not compressed
    runs.save_checkpoint(tmp_path, 3, {**tree, "c": jnp.zeros(3)}, seconds=0.0, num_checkpoints=1)
    told = {}
    for name, leaf in tree.items():
        row = np.asarray(leaf)[150].tobytes()[:8]
        contents = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        holding = [(path, content) for path, content in contents.items() if row in content]  # one, or a copy too
        assert holding
        for path, content in holding:
            at = content.index(row)
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(ValueError, match="it is damaged") as told[name]:
            runs.newest_checkpoint(tmp_path)
        if name != "b":
            for path, content in holding:
                path.write_bytes(content)
    for name in tree:
        assert f"the leaf ['{name}'] " in str(told[name].value)
        assert len(str(told[name].value)) < 600
    # Of leaves that are not asked for, none is looked at.
    same(runs.newest_checkpoint(tmp_path, under="['a']").restore({"a": tree["a"]}), {"a": tree["a"]})
    with pytest.raises(ValueError, match=r"the leaf \['b'\] "):
        runs.newest_checkpoint(tmp_path, under="['b']")


def in_first_format(run_dir, position, leaves, kinds):
    """Writes a checkpoint as they were when all leaves were one array of bytes."""
    rows = [[name, kinds[name], str(leaf.dtype), list(leaf.shape)] for name, leaf in leaves.items()]
    about = {"position": position, "seconds": 3.5, "leaves": rows}
    content = b"".join(leaf.tobytes() for leaf in leaves.values())
    about["checksum"] = zlib.crc32(json.dumps(about, sort_keys=True).encode(), zlib.crc32(content))
    array = ocp.args.StandardSave({"leaves": np.frombuffer(content, np.uint8)})
    with ocp.CheckpointManager(run_dir / "checkpoints") as manager:
        manager.save(position, args=ocp.args.Composite(arrays=array, about=ocp.args.JsonSave(about)))


def test_a_checkpoint_of_the_first_format_reads(tmp_path):
    runs.save_checkpoint(tmp_path / "new", 12, trees(), seconds=3.5, num_checkpoints=3)
    new = runs.newest_checkpoint(tmp_path / "new")
    in_first_format(tmp_path / "old", 12, new.leaves, new.kinds)
    old = runs.newest_checkpoint(tmp_path / "old")
    assert list(old.leaves) == list(new.leaves)
    same(old.leaves, new.leaves)
    assert (old.position, old.seconds, old.kinds) == (12, 3.5, new.kinds)
    numbers = max((path for path in tmp_path.glob("old/**/d/*")), key=lambda path: path.stat().st_size)
    flipped(numbers)
    with pytest.raises(ValueError, match="it is damaged"):
        runs.newest_checkpoint(tmp_path / "old")


def again(run_dir):
    """The run, continued to its end."""
    options = {"key": jax.random.key(0), "batch_size": 16, "num_steps_sampled": 2, "progress": False, "resume": True}
    return fit(model, guide, DATA, num_iterations=9, optimizer=optax.adam(0.01), run_dir=run_dir, **options)


def test_a_run_of_the_first_format_ends_the_same(run, run_dir):
    shutil.rmtree(run_dir / "checkpoints" / "9")
    before = runs.newest_checkpoint(run_dir)
    shutil.rmtree(run_dir / "checkpoints")
    in_first_format(run_dir, 4, before.leaves, before.kinds)
    same(again(run_dir).params, run[0].params)


def test_deleting_a_damaged_checkpoint_falls_back_and_ends_the_same(run, run_dir):
    for path in files(run_dir):
        emptied(path)
    with pytest.raises(ValueError, match="damaged.*falls back to iteration 4"):
        again(run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "9")
    same(again(run_dir).params, run[0].params)


def test_what_a_killed_save_leaves_is_passed_over(run_dir):
    checkpoint = run_dir / "checkpoints" / "9"
    checkpoint.rename(checkpoint.with_name("9.orbax-checkpoint-tmp-1"))
    assert runs.newest_checkpoint(run_dir).position == 4


# Parameters for a program.


def test_parameters_are_the_averages_constrained(run):
    result, run_dir = run
    params = load_params(run_dir, model)
    assert set(params) == {"beta", "reverse$params", "scale"}
    same(params, {name: result.params[name] for name in params})
    assert float(params["scale"]) != float(result.raw_params["scale"])
    same(load_params(str(run_dir), guide, DATA), {name: result.params[name] for name in ("beta", "shift")})
    x0 = numpyro.infer.Predictive(model, params=params, num_samples=1)(jax.random.key(1), size=7)["x"]
    assert x0.shape == (1, 7, 2)
    assert np.isfinite(x0).all()


def test_the_handlers_around_do_not_see_the_program(run):
    with numpyro.handlers.trace() as trace:
        load_params(run[1], model)
    assert not trace


@pytest.mark.parametrize(
    ("program", "difference"),
    [
        (
            partial(model, width=7),
            r"\['reverse\$params'\].layers.layers\[0\].weight the program has float64\[7, 14\] and .*\[5, 14\]",
        ),
        (partial(model, num_steps=8), r"\['beta'\] the program has float64\[7\] and the checkpoint float64\[5\]"),
        (lambda: numpyro.param("other", 0.0), r"\['other'\] the program has float64\[\] and the checkpoint nothing"),
    ],
)
def test_another_program_is_told(run, program, difference):
    with pytest.raises(ValueError, match=difference):
        load_params(run[1], program)


def test_bad_input(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="a checkpoint of a fit"):
        load_params(tmp_path, model)
    with pytest.raises(TypeError, match="the model or guide that was fitted; got str"):
        load_params(run[1], "model")
    with pytest.raises(ValueError, match="declares parameters"):
        load_params(run[1], lambda: None)


def test_parameters_kept_leaf_by_leaf_come_back(run, tmp_path):
    """Unconstrained in half precision, as a file of a package holds them: what they are rounded to, constrained."""
    kept = {name.removeprefix("['average']"): leaf for name, leaf in runs.newest_checkpoint(run[1]).leaves.items()}
    kept = {name: np.float16(leaf) for name, leaf in kept.items() if name.startswith(("['beta", "['rev", "['scale"))}
    runs.save_checkpoint(
        tmp_path, 9, {"average": runs.named(kept, model, where="here")}, seconds=1.0, num_checkpoints=1
    )
    params = load_params(tmp_path, model)
    expected = 0.25 + np.exp(np.float64(kept["['scale']"]))
    assert float(params["scale"]) == pytest.approx(expected, rel=1e-12)
    for leaf, exact in zip(*map(jax.tree.leaves, (params, load_params(run[1], model))), strict=True):
        np.testing.assert_allclose(leaf, exact, rtol=2e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"in here; at \['scale'\] the program has shape \(\), the file nothing"):
        runs.named({name: leaf for name, leaf in kept.items() if name != "['scale']"}, model, where="here")
    with pytest.raises(ValueError, match=r"at \['more'\] the program has nothing, the file shape \(3,\)"):
        runs.named({**kept, "['more']": np.zeros(3)}, model, where="here")


def _interrupt_twice(pending):
    os.kill(os.getpid(), signal.SIGINT)
    assert len(pending) == 1
    os.kill(os.getpid(), signal.SIGINT)


def test_a_second_ctrl_c_is_not_kept_waiting():
    with runs.uninterrupted(patience=1) as pending, pytest.raises(KeyboardInterrupt):
        _interrupt_twice(pending)
    with runs.uninterrupted() as pending:
        _interrupt_twice(pending)
        assert len(pending) == 2
        pending.clear()  # and then it does not come
