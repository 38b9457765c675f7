"""What is done beside the iterations of a fit."""

import csv

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpm_ppl.inference.fitting import metrics, runs
from tests.inference.fitting.test_fits import identical, small

OPTIONS = {"num_iterations": 30, "batch_size": 16}


def lines(run_dir):
    with (run_dir / metrics.FILE).open() as file:
        return list(csv.DictReader(file))


def test_lines_say_what_the_fit_does(monkeypatch, chunks, tmp_path):
    """One line an iteration: its loss, the default rate, and the norm by which an update of plain descent is known."""
    monkeypatch.setattr(metrics, "_SECONDS", 0.0)
    chunks(1)
    fit = small(run_dir=tmp_path / "adam", learning_rate=0.02, **OPTIONS)
    rows = lines(tmp_path / "adam")
    np.testing.assert_array_equal([int(row["iteration"]) for row in rows], np.arange(1, 31))
    np.testing.assert_allclose([float(row["bound_bits"]) for row in rows], -fit.losses / np.log(2), rtol=1e-6)
    cosine = 0.01 * (1 + np.cos(np.pi * np.arange(30) / 30))
    np.testing.assert_allclose([float(row["learning_rate"]) for row in rows], cosine, rtol=1e-6)
    one = {**OPTIONS, "num_iterations": 1, "clip_norm": None}
    moved = small(run_dir=tmp_path / "sgd", optimizer=optax.sgd(1.0), **one).raw_params
    # In unconstrained space, where the scale is a logarithm.
    steps = [moved["gain"] - 0.4, moved["shift"] + 0.2, jnp.log(moved["scale"] / 1.3)]
    norm = np.sqrt(sum(float(jnp.sum(step**2)) for step in steps))
    [row] = lines(tmp_path / "sgd")
    np.testing.assert_allclose(float(row["gradient_norm"]), norm, rtol=1e-6)
    assert row["learning_rate"] == row["validation_bits"] == ""


def test_an_injected_rate_is_told(tmp_path):
    for name, rate, told in (("fixed", 0.004, "0.004"), ("scheduled", lambda i: 0.002 + 0.0 * i, "0.002")):
        injected = optax.inject_hyperparams(optax.sgd)(learning_rate=rate)
        small(run_dir=tmp_path / name, optimizer=injected, **OPTIONS)
        assert {row["learning_rate"] for row in lines(tmp_path / name)} == {told}


def test_a_callback_sees_the_fit_so_far(tmp_path):
    seen = {}
    options = {**OPTIONS, "optimizer": optax.adam(1e-2)}
    fit = small(callback=lambda so_far: seen.update({so_far.num_iterations: so_far}), every=12, **options)
    assert list(seen) == [12, 24, 30]
    assert identical(seen[30].params, fit.params)
    assert identical(seen[24].params, small(**{**options, "num_iterations": 24}).params)


def test_what_a_callback_breaks_is_kept(tmp_path):
    def stop(so_far):
        raise RuntimeError("enough")

    options = {**OPTIONS, "optimizer": optax.adam(1e-2), "run_dir": tmp_path}
    with pytest.raises(RuntimeError, match="enough"):
        small(callback=stop, every=12, **options)
    assert runs.newest_position(tmp_path) == 12
    assert identical(small(resume=True, **options).params, small(**{**options, "run_dir": None}).params)


def test_a_run_of_before_the_norm_was_kept_resumes(monkeypatch, tmp_path):
    options = {**OPTIONS, "optimizer": optax.adam(1e-2)}
    save = runs.save_checkpoint

    def without_norm(run_dir, position, tree, **given):
        step, (params, state) = tree["optim_state"]
        save(run_dir, position, {**tree, "optim_state": (step, (params, state[:-1]))}, **given)

    with monkeypatch.context() as before:
        before.setattr(runs, "save_checkpoint", without_norm)
        small(run_dir=tmp_path, **{**options, "num_iterations": 10})
    assert identical(small(run_dir=tmp_path, resume=True, **options).params, small(**options).params)


def test_parameters_to_begin_with():
    """What one fit ends with begins the next, which a rate of zero leaves there; what is not named begins as ever."""
    before = small(**OPTIONS, learning_rate=0.03).params
    still = {**OPTIONS, "optimizer": optax.sgd(0.0), "num_iterations": 2}
    warm = small(params=before, **still).params
    partly = small(params={"gain": before["gain"]}, **still).params
    for name, value in before.items():
        np.testing.assert_allclose(warm[name], value, rtol=1e-12)
    np.testing.assert_allclose(partly["gain"], before["gain"])
    np.testing.assert_allclose(partly["shift"], -0.2)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"gaim": np.zeros(3)}, "which are gain, scale, shift; got gaim"),
        ({"scale": -np.ones(3)}, "finite and within their constraints; those of scale"),
        ({"gain": np.full(3, np.nan)}, "finite and within their constraints; those of gain"),
        ({"gain": np.zeros(2)}, r"gain is float64\[3\] in the program, and float64\[2\]"),
    ],
)
def test_parameters_of_another_program(params, message):
    with pytest.raises(ValueError, match=message):
        small(params=params, **OPTIONS)
