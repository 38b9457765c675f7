"""`dpm evaluate`: its numbers against closed forms, its verdict on good and bad models, what its figure draws."""

import json
import math
import shutil

import jax
import numpy as np
import pytest
import xarray as xr

from dpm_ppl.commands import find
from dpm_ppl.inference import fit, load_params
from dpm_ppl.reports.evaluation import table
from tests.command_line import dpm

# Gaussian data and affine reverse steps, wrong by known amounts: the density of the model is known.
PROGRAM = '''"""Gaussian data, and reverse steps of which everything is known."""
import jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist
import dpm_ppl as dpm

MEAN, SCALE = np.array([0.6, -0.4]), np.array([0.5, 1.2])
BETA = np.linspace(0.1, 0.6, NUM_STEPS)

def data():
    return dist.Normal(jnp.asarray(MEAN), jnp.asarray(SCALE)).to_event(1)

def diffusion():
    kernel = dpm.GaussianKernel(BETA, (2,))
    offset = numpyro.param("offset", jnp.array([0.05, 0.1]))
    gain, shift, deviation = (jnp.asarray(a) for a in coefficients())
    def reverse(x, t):
        return dist.Normal(gain[t - 1] * x + shift[t - 1] + offset, deviation[t - 1]).to_event(1)
    return dpm.Diffusion(kernel, reverse)

def coefficients():
    """Gain, shift and standard deviation of the exact reverse step t, at t - 1, the deviation times FACTOR."""
    signal = np.append(1, np.cumprod(1 - BETA))[:, None]
    before, after = signal[:-1], signal[1:]
    variance = [s * SCALE**2 + 1 - s for s in (before, after)]
    gain = np.sqrt(1 - BETA[:, None]) * variance[0] / variance[1]
    shift = (np.sqrt(before) - gain * np.sqrt(after)) * MEAN
    return gain, shift, FACTOR * np.sqrt(variance[0] - gain**2 * variance[1])

def model(x0=None, size=1):
    chain = diffusion()
    with numpyro.plate("data", size if x0 is None else len(x0)):
        return dpm.reverse_chain("x", chain, obs=x0)

def guide(x0):
    chain = diffusion()
    with numpyro.plate("data", len(x0)):
        dpm.forward_chain("x", chain, x0)
'''


MEAN, SCALE = np.array([0.6, -0.4]), np.array([0.5, 1.2])


def evaluated(run_dir):
    """`evaluation.json`, which must hold no NaN."""
    text = (run_dir / "evaluation.json").read_text()
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
    """Makes the directory of a fit of a program, whose parameters have not moved far."""

    def make(factor=1.0, num_steps=5):
        folder = tmp_path_factory.mktemp("run")
        path = folder / "mine.py"
        path.write_text(f"FACTOR, NUM_STEPS = {factor}, {num_steps}\n{PROGRAM}")
        program = find.load(path)
        options = {"num_iterations": 1, "batch_size": 4, "num_steps_sampled": None, "progress": False}
        noted = {"model": program.name}
        where = {"run_dir": folder / "run", "fingerprint": noted}
        fit(program.model, program.guide, program.data(), key=jax.random.key(0), **where, **options)
        return folder / "run"

    return make


@pytest.fixture(scope="module")
def good(make_run):
    """A run of a good model, evaluated, and what was printed."""
    run_dir = make_run()
    done = dpm("evaluate", run_dir, "--particles", 200, "--num-data", 150, "--seed", 3)
    assert done.exit_code == 0, done.output
    return run_dir, done.stdout


@pytest.fixture(scope="module")
def bad(make_run):
    """The same of a model whose reverse steps are much too narrow."""
    run_dir = make_run(factor=0.25)
    done = dpm("evaluate", run_dir, "--particles", 100, "--num-data", 40)
    assert done.exit_code == 0, done.output
    return run_dir, done.stdout


def exact(run_dir):
    """The model's own normal density: mean and standard deviation of each coordinate."""
    program = find.load(run_dir.parent / "mine.py")
    names = program.diffusion.__globals__
    gain, shift, deviation = names["coefficients"]()
    offset = np.asarray(load_params(run_dir, program.diffusion)["offset"])
    mean, variance = np.zeros(2), np.ones(2)
    for t in range(len(gain), 1, -1):
        mean = gain[t - 1] * mean + shift[t - 1] + offset
        variance = gain[t - 1] ** 2 * variance + deviation[t - 1] ** 2
    keep = 1 - names["BETA"][0]
    return np.sqrt(keep) * mean, np.sqrt(keep * variance + 1 - keep)


def test_numbers_are_those_of_the_closed_form(good):
    run_dir, _ = good
    figures, (mean, deviation) = evaluated(run_dir), exact(run_dir)
    square = (SCALE**2 + (MEAN - mean) ** 2) / deviation**2
    expected = -0.5 * np.sum(square + np.log(2 * np.pi * deviation**2)) / math.log(2)
    entropy = 0.5 * np.sum(1 + np.log(2 * np.pi * SCALE**2)) / math.log(2)
    assert figures["entropy_limit_bits"] == pytest.approx(-entropy, abs=1e-6)
    for name, value in (("estimate_bits", expected), ("gap_bits", -entropy - expected), ("sandwich_gap_bits", 0.0)):
        assert abs(figures[name] - value) < 4 * figures[f"{name}_se"] + 1e-3, name
    assert figures["gap_bits_se"] < 0.8 * figures["estimate_bits_se"]  # it is taken datum by datum
    negative_entropy = -0.5 * np.sum(1 + np.log(2 * np.pi * deviation**2)) / math.log(2)
    for name in ("sandwich_lower_bits", "sandwich_upper_bits"):
        assert abs(figures[name] - negative_entropy) < 4 * figures[f"{name}_se"] + 1e-3, name
    assert figures["elbo_bits"] < figures["estimate_bits"]
    assert [row["num_particles"] for row in figures["estimates"]] == [1, 10, 100, 200]
    assert figures["estimates"][0]["bits"] == pytest.approx(figures["elbo_bits"], abs=0.1)
    assert figures["estimates"][-1]["bits"] == figures["estimate_bits"]
    assert figures["psis_bits"] == pytest.approx(figures["estimate_bits"], abs=0.01)
    assert abs(figures["work_crossing_bits"]) < 4 * figures["work_crossing_bits_se"]


def test_files_agree_with_each_other_and_the_table(good):
    run_dir, printed = good
    figures = evaluated(run_dir)
    tree = xr.open_datatree(run_dir / "likelihood.nc", engine="h5netcdf")
    per_datum = {name: np.asarray(values) for name, values in tree["likelihood"].to_dataset().items()}
    assert tree["sample_stats/log_weight"].sizes == {"particle": 200, "datum": 150}
    assert figures["estimate_bits"] == pytest.approx(per_datum["estimate"].mean() / math.log(2))
    assert figures["estimate_bits_se"] == pytest.approx(per_datum["estimate"].std(ddof=1) / 150**0.5 / math.log(2))
    mc_variance = np.sum(per_datum["standard_error"] ** 2) / 150**2
    assert figures["estimate_bits_mc_se"] == pytest.approx(mc_variance**0.5 / math.log(2))
    assert figures["K_bits"] == pytest.approx(per_datum["K"].mean() / math.log(2))
    assert figures["khat_over_share"] == np.mean(per_datum["khat"] > 0.7)
    assert figures["ess_min"] == per_datum["ess"].min()
    assert printed.startswith(f"{figures['model']}: 150 fresh data, 200 particles each")
    for name in ("elbo_bits", "psis_bits", "sandwich_upper_bits", "gap_bits"):
        assert f"{figures[name]:.4f} ± {figures[name + '_se']:.4f}" in printed
    assert f"{figures['khat_over_share']:.1%} of the data" in printed
    names = {path.name for path in run_dir.iterdir()}
    assert {"likelihood.nc", "evaluation.json", "evaluation.png"} <= names
    assert not any(name.startswith(".") for name in names)


def test_a_good_model_is_trusted(good):
    run_dir, printed = good
    assert evaluated(run_dir)["trusted"] is True
    assert "The likelihood can be trusted" in printed
    assert "What to do" not in printed


def test_a_bad_model_is_not_trusted_and_advice_is_given(bad):
    run_dir, printed = bad
    figures = evaluated(run_dir)
    assert figures["trusted"] is False
    assert figures["khat_over_share"] > 0.9
    assert figures["sandwich_upper_bits"] - figures["sandwich_lower_bits"] > 1
    words = " ".join(printed.split())
    assert "can NOT be trusted: k-hat is over 0.7" in words
    assert "as a lower bound" in words
    assert "fit for longer" in words


def test_the_seed_decides(good, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(good[0], run_dir)
    before = {**evaluated(run_dir), "seconds": None}
    options = ("--particles", 200, "--num-data", 150, "--overwrite")
    assert dpm("evaluate", run_dir, *options, "--seed", 3).exit_code == 0
    assert {**evaluated(run_dir), "seconds": None} == before
    assert dpm("evaluate", run_dir, *options, "--seed", 4).exit_code == 0
    assert evaluated(run_dir)["estimate_bits"] != before["estimate_bits"]


@pytest.mark.parametrize("num_steps", [1, 2])
def test_short_chains_and_one_particle(make_run, num_steps):
    run_dir = make_run(num_steps=num_steps)
    done = dpm("evaluate", run_dir, "--particles", 1, "--num-data", 1)
    assert done.exit_code == 0, done.output
    figures = evaluated(run_dir)
    assert figures["trusted"] is False
    assert figures["khat_unknown_share"] == 1
    assert figures["estimate_bits_se"] is None
    assert "--particles 1000" in done.stdout


@pytest.mark.parametrize("option", ["--particles", "--num-data"])
def test_counts_below_one_are_told(good, option):
    done = dpm("evaluate", good[0], option, 0)
    assert done.exit_code == 2
    assert option in done.output


def one_line_error(done):
    assert done.exit_code == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_a_directory_without_a_finished_checkpoint_is_told(good, tmp_path):
    assert "Error: Expected the directory of a fit" in one_line_error(dpm("evaluate", tmp_path))
    run_dir = tmp_path / "run"
    shutil.copytree(good[0], run_dir)
    (step,) = (run_dir / "checkpoints").glob("[0-9]*")
    step.rename(step.with_name(f"{step.name}.orbax-checkpoint-tmp"))  # what Orbax leaves of a save that was cut short
    assert "Error: Expected a checkpoint of a fit" in one_line_error(dpm("evaluate", run_dir))


def test_a_file_that_cannot_be_written_is_told(good, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(good[0], run_dir)
    (run_dir / "likelihood.nc").unlink()
    (run_dir / "likelihood.nc").mkdir()
    before = (run_dir / "evaluation.json").read_text()
    done = dpm("evaluate", run_dir, "--particles", 30, "--num-data", 5, "--overwrite")
    assert "Error: Expected to write" in one_line_error(done)
    assert (run_dir / "evaluation.json").read_text() == before


def test_the_table_survives_numbers_that_are_not_known(bad):
    figures = evaluated(bad[0])
    unknown = figures | {name: None for name in figures if name.endswith("_bits") or name.endswith("_se")}
    assert "none" in table(unknown)
