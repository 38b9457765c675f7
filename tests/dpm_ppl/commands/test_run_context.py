"""The commands on a program of a context: each datum beside its own, against closed forms; what is wrong is said."""

import json
import math
from functools import partial

import numpy as np
import pytest
import xarray as xr

from dpm_ppl.inference import smc, widened
from tests.command_line import dpm
from tests.dpm_ppl.commands.test_fit import assert_error
from tests.given import BETA, GIVEN, SCALE, SHIFT


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A finished fit, whose parameters stay where they are exact, and what was printed."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "mine.py").write_text(GIVEN)
    done = dpm("fit", folder / "mine.py", "--run-dir", folder / "run", "--seed", 2)
    assert done.exit_code == 0, done.output
    return folder / "run", done


def end():
    """Mean, as a factor of the data's own, and deviation of x^0 under the model, which begins at pi."""
    signal = np.append(1, np.cumprod(1 - BETA))[:, None]
    marginal = signal * SCALE**2 + 1 - signal
    factor, variance = np.zeros(2), np.ones(2)
    for t in range(len(BETA), 0, -1):
        gain = np.sqrt(1 - BETA[t - 1]) * marginal[t - 1] / marginal[t]
        factor = gain * factor + np.sqrt(signal[t - 1]) - gain * np.sqrt(signal[t])
        variance = gain**2 * variance + marginal[t - 1] - gain**2 * marginal[t]
    return factor, np.sqrt(variance)


def log_prob(x0, c):
    """log p(x0 | c) of the model."""
    factor, deviation = end()
    off = (x0 - factor * (c * [1, -2] + SHIFT)) / deviation
    return -0.5 * (off**2 + np.log(2 * np.pi * deviation**2)).sum(-1)


def arrays_of(path):
    with np.load(path) as file:
        return dict(file)


def test_fit_and_evaluate_score_each_datum_given_its_own(given):
    run_dir, done = given
    assert "40 of 400 data are held out" in done.stdout
    assert "Warning" not in done.stderr
    evaluated = dpm("evaluate", run_dir, "--particles", 300)
    assert evaluated.exit_code == 0, evaluated.output
    figures = json.loads((run_dir / "evaluation.json").read_text())
    per_datum = xr.open_datatree(run_dir / "likelihood.nc", engine="h5netcdf")["likelihood"].to_dataset()
    assert (figures["data"], figures["num_data"]) == ("held-out data", 40)
    kept = np.random.default_rng(5).normal(0.4, 1.0, size=(40, 2))
    x0 = kept * [1, -2] + SHIFT + SCALE * [0.5, -1.0]
    np.savez(run_dir / "data.npz", x0=x0, c=kept)
    out = ("--out", run_dir / "own")
    assert dpm("evaluate", run_dir, "--particles", 300, "--data", run_dir / "data.npz", *out).exit_code == 0
    own = xr.open_datatree(run_dir / "own" / "likelihood.nc", engine="h5netcdf")["likelihood"].to_dataset()
    exact = log_prob(x0, kept)
    assert np.abs(own["estimate"].values - exact).max() < 4.5 * own["standard_error"].values.max() + 1e-3
    assert np.std(log_prob(x0, np.roll(kept, 1, 0)) - exact) > 1  # another's context would be seen
    mean, error = (figures[name] * math.log(2) for name in ("estimate_bits", "estimate_bits_se"))
    factor, deviation = end()
    entropy = -0.5 * (1 + np.log(2 * np.pi * deviation**2)).sum()
    assert abs(mean - entropy) < 4 * error + 0.1
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["elbo_bits"] < figures["estimate_bits"] + 3 * figures["estimate_bits_se"]
    assert len(per_datum["estimate"]) == 40


def test_samples_are_beside_held_out_contexts_or_given_ones(given):
    run_dir, _ = given
    assert dpm("sample", run_dir, "-n", 4000).exit_code == 0
    held_out = arrays_of(run_dir / "samples.npz")
    assert len(np.unique(held_out["c"][:, 0])) == 40
    factor, deviation = end()

    def standard(samples):
        return (samples["x0"] - factor * (samples["c"] * [1, -2] + SHIFT)) / deviation

    np.savez(run_dir / "c.npz", c=np.array([[2.0, -1.0], [-1.0, 0.5], [0.3, 0.9]]))
    assert dpm("sample", run_dir, "-n", 4000, "--context", run_dir / "c.npz", "--overwrite").exit_code == 0
    chosen = arrays_of(run_dir / "samples.npz")
    np.testing.assert_array_equal(chosen["c"][:4], arrays_of(run_dir / "c.npz")["c"][[0, 1, 2, 0]])
    for samples in (held_out, chosen):
        z = standard(samples)
        assert np.abs(z.mean(0)).max() < 4 / math.sqrt(4000)
        assert np.abs((z**2).mean(0) - 1).max() < 4 * math.sqrt(2 / 4000)


def test_a_posterior_is_beside_the_context_of_its_observation(given, monkeypatch):
    monkeypatch.setattr("dpm_ppl.inference.smc", partial(smc, twist=widened()))  # exact here, without pilots
    run_dir, _ = given
    y, c = np.array([[1.0, 0.2], [1.0, 0.2]]), np.array([[1.5, 0.3], [-2.0, -0.6]])
    np.save(run_dir / "y.npy", y)
    np.save(run_dir / "c.npy", c)
    observe = ("posterior", run_dir, "--observe", run_dir / "y.npy", "--noise", 0.6)
    done = dpm(*observe, "--context", run_dir / "c.npy", "--particles", 500)
    assert done.exit_code == 0, done.output
    rows = json.loads((run_dir / "posterior.json").read_text())["data"]
    with xr.open_datatree(run_dir / "posterior.nc", engine="h5netcdf") as kept:
        assert kept["constant_data"]["c"].dims == ("datum", "c_0")
        np.testing.assert_array_equal(kept["constant_data"]["c"], c)
        np.testing.assert_array_equal(kept["observed_data"]["y"], y)
    factor, deviation = end()
    for row, at, beside in zip(rows, y, c, strict=True):
        scale = np.sqrt(deviation**2 + 0.6**2)
        off = (at - factor * (beside * [1, -2] + SHIFT)) / scale
        exact = -0.5 * (off**2 + np.log(2 * np.pi * scale**2)).sum()
        assert abs(row["log_evidence_nats"] - exact) < 4.5 * row["log_evidence_nats_se"] + 1e-3
    assert abs(rows[0]["log_evidence_nats"] - rows[1]["log_evidence_nats"]) > 1
    again = (*observe, "--out", run_dir / "again")
    assert_error(dpm(*again), "Expected --context FILE.npz with c")
    np.save(run_dir / "three.npy", np.zeros((3, 2)))
    assert_error(dpm(*again, "--context", run_dir / "three.npy"), "for each of 2 observed data, or one for all; got 3")


PAIRS = """class Pairs(dist.Distribution):
    def sample(self, key, sample_shape=()):
        e = jax.random.normal(key, (2, *sample_shape, 2))
        c = 0.4 + e[0]
        return {"c": c, "x0": c * jnp.array([1.0, -2.0]) + SHIFT + SCALE * e[1]}

def data():
    return Pairs()

"""


def test_a_simulator_of_pairs_goes_through_the_commands(tmp_path, monkeypatch):
    monkeypatch.setattr("dpm_ppl.inference.smc", partial(smc, twist=widened()))
    program = GIVEN.replace(GIVEN[GIVEN.index("def data") : GIVEN.index("def diffusion")], PAIRS)
    (tmp_path / "mine.py").write_text("import jax\n" + program)
    run_dir = tmp_path / "run"
    done = dpm("fit", tmp_path / "mine.py", "--run-dir", run_dir)
    assert done.exit_code == 0, done.output
    assert "on 40,000 fresh data" in done.stdout
    assert dpm("evaluate", run_dir, "--particles", 50).exit_code == 0
    figures = json.loads((run_dir / "evaluation.json").read_text())
    factor, deviation = end()
    entropy = -0.5 * (1 + np.log(2 * np.pi * deviation**2)).sum() / math.log(2)
    assert abs(figures["estimate_bits"] - entropy) < 4 * figures["estimate_bits_se"] + 0.1
    assert dpm("sample", run_dir, "-n", 500).exit_code == 0
    samples = arrays_of(run_dir / "samples.npz")
    z = (samples["x0"] - factor * (samples["c"] * [1, -2] + SHIFT)) / deviation
    assert len(np.unique(samples["c"][:, 0])) > 100
    assert np.abs(z.mean(0)).max() < 4 / math.sqrt(500)
    y, c = np.array([1.0, 0.2]), np.array([[1.5, 0.3]])
    np.save(tmp_path / "y.npy", y)
    np.savez(tmp_path / "c.npz", c=c)
    observe = ("posterior", run_dir, "--observe", tmp_path / "y.npy", "--noise", 0.6)
    assert dpm(*observe, "--context", tmp_path / "c.npz", "--particles", 200).exit_code == 0
    (row,) = json.loads((run_dir / "posterior.json").read_text())["data"]
    scale = np.sqrt(deviation**2 + 0.6**2)
    off = (y - factor * (c[0] * [1, -2] + SHIFT)) / scale
    exact = -0.5 * (off**2 + np.log(2 * np.pi * scale**2)).sum()
    assert abs(row["log_evidence_nats"] - exact) < 4.5 * row["log_evidence_nats_se"] + 1e-3


def test_a_context_that_is_not_there_or_not_asked_for(given, run, tmp_path):
    run_dir, _ = given
    sample = ("sample", run_dir, "--out", tmp_path, "--context")
    assert_error(dpm(*sample, tmp_path / "none.npz"), "Expected --context to be a .npz file with arrays c")
    np.savez(tmp_path / "wrong.npz", a=np.zeros(3), b=np.zeros(3))
    assert_error(dpm(*sample, tmp_path / "wrong.npz"), "wrong.npz has a, b.")
    np.savez(tmp_path / "nan.npz", c=np.full((3, 2), np.nan))
    assert_error(dpm(*sample, tmp_path / "nan.npz"), "Expected a finite `context`")
    np.savez(tmp_path / "data.npz", x0=np.zeros((3, 2)), c=np.zeros((4, 2)))
    assert_error(
        dpm("evaluate", run_dir, "--out", tmp_path, "--data", tmp_path / "data.npz"),
        "Expected arrays of one length, one entry for each datum, in",
    )
    for of, message in (
        ("c * np.nan", "finite"),
        ("c[:300]", "to have batch shape () or (300,)"),
    ):
        (tmp_path / "wrong.py").write_text(GIVEN.replace('"c": c,', f'"c": {of},'))
        assert_error(dpm("fit", tmp_path / "wrong.py", "--run-dir", tmp_path / "wrong"), message)
    np.save(tmp_path / "c.npy", np.zeros((3, 2)))
    given = ("sample", run[0], "--out", tmp_path, "--context", tmp_path / "c.npy")
    assert_error(dpm(*given), "Expected no --context, as the program's data have nothing beside them")
