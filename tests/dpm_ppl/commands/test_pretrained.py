"""Parameters that come with a program: a run made of them, read as any other is."""

import json

import numpy as np
import pytest

from dpm_ppl.commands import find, pretrained
from dpm_ppl.inference import load_params
from tests.command_line import GAUSSIAN, dpm

OFFSET = np.array([0.25, -0.5])


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A program beside its parameters, an offset to the exact reverse that it would never come to by itself."""
    path = tmp_path_factory.mktemp("program") / "mine.py"
    path.write_text(GAUSSIAN)
    np.savez(path.with_suffix(".npz"), losses=np.float32([3.0, 2.5]), **{"['offset']": np.float16(OFFSET)})
    path.with_suffix(".json").write_text(json.dumps({"num_iterations": 2, "seconds": 1.5, "seed": 0}))
    return path


@pytest.fixture(scope="module")
def run(mine, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run") / "run"
    done = dpm("fit", mine, "--pretrained", "--run-dir", run_dir)
    assert done.exit_code == 0, done.output
    return run_dir, done.stdout


def test_the_run_holds_them(run, mine):
    run_dir, words = run
    params = load_params(run_dir, find.load(mine).diffusion)
    np.testing.assert_array_equal(params["offset"], OFFSET)
    assert params["offset"].dtype == np.float64  # that of the program
    assert "mine.py: 2 iterations in 2 s" in words
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["gap_bits"] > 0.1  # that the offset costs; the program's own start has no gap
    assert (run_dir / "figure.png").stat().st_size > 10_000


def test_other_commands_read_it(run):
    done = dpm("evaluate", run[0], "--particles", 10, "--num-data", 20)
    assert done.exit_code == 0, done.output
    evaluated = json.loads((run[0] / "evaluation.json").read_text())
    fitted = json.loads((run[0] / "metrics.json").read_text())
    assert evaluated["elbo_bits"] == pytest.approx(fitted["elbo_bits"], abs=5 * evaluated["elbo_bits_se"])


def test_it_is_no_fit_to_carry_on(run, mine):
    done = dpm("fit", mine, "--run-dir", run[0], "--resume")
    assert done.exit_code == 1
    assert "came with the program, without the state of their optimiser" in done.stderr
    assert "holds one" in dpm("fit", mine, "--run-dir", run[0], "--pretrained").stderr


@pytest.mark.parametrize("option", [("--resume",), ("--iterations", 3), ("--held-out", 0.2)])
def test_nothing_is_fitted_beside(mine, tmp_path, option):
    done = dpm("fit", mine, "--run-dir", tmp_path / "run", "--pretrained", *option)
    assert done.exit_code == 1
    assert "Expected --pretrained alone" in done.stderr
    assert not (tmp_path / "run").exists()


def test_of_an_array_all_is_training_data(mine, tmp_path):
    """Which of it the parameters have seen, nobody knows."""
    path = tmp_path / "array.py"
    law = "dist.Normal(jnp.asarray(MEAN), jnp.asarray(SCALE)).to_event(1)"
    assert law in GAUSSIAN
    path.write_text(GAUSSIAN.replace(law, "MEAN + SCALE * np.random.default_rng(0).normal(size=(40, 2))"))
    for suffix in (".npz", ".json"):
        path.with_suffix(suffix).write_bytes(mine.with_suffix(suffix).read_bytes())
    done = dpm("fit", path, "--pretrained", "--run-dir", tmp_path / "run", "--seed", 5)
    assert done.exit_code == 0, done.output
    assert "on 40 training data" in done.stdout
    assert "held out" not in done.stdout


def test_a_program_without_is_refused(tmp_path):
    done = dpm("fit", "swiss_roll", "--run-dir", tmp_path / "run", "--pretrained")
    assert done.exit_code == 1
    assert "swiss_roll has none (mnist_binary has). Without --pretrained it is fitted." in done.stderr
    assert not (tmp_path / "run").exists()


def test_parameters_of_another_program_leave_no_run(mine, tmp_path):
    path = tmp_path / "other.py"
    path.write_text(GAUSSIAN)
    np.savez(path.with_suffix(".npz"), losses=np.zeros(1), **{"['offset']": np.zeros(3)})
    path.with_suffix(".json").write_text(mine.with_suffix(".json").read_text())
    done = dpm("fit", path, "--run-dir", tmp_path / "run", "--pretrained")
    assert "at ['offset'] the program has shape (2,), the file shape (3,)" in done.stderr
    assert not (tmp_path / "run" / "run.json").exists()


def test_how_they_were_made_is_beside_them(mine):
    assert pretrained.how_made(find.load(mine))["num_iterations"] == 2
