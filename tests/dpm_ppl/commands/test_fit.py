"""`dpm`: what it writes agrees with the Python API and with closed forms; what is wrong is said in one line."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest

from dpm_ppl.commands import find
from dpm_ppl.inference import bound, load_params
from tests.command_line import GAUSSIAN, dpm

ROOT = Path(__file__).parents[3]


BETA = np.linspace(0.05, 0.6, 6)


MEAN, SCALE = np.array([1.0, -0.5]), np.array([0.5, 1.3])


def metrics_of(run_dir):
    return json.loads(
        (run_dir / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON")
    )


def assert_picture(path):
    image = matplotlib.image.imread(path)
    assert min(image.shape[:2]) > 300
    image = image[::5, ::5]
    assert len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 100


def assert_error(done, message, *, code=1):
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.output


def exact_elbo():
    """Closed form in nats per datum, for normal data and p(x^(t-1)|x^t) = q(x^(t-1)|x^t), t = 2..T.

    Then prod p(x^(t-1)|x^t) = q(x^(1..T)) / q(x^T), and q(x^(1..T)|x^0) = q(x^1|x^0) q(x^(1..T)) / q(x^1), so that
    ELBO = E log pi(x^T) + H(X^T) - H(X^1) + E log p(x^0|x^1) + H(X^1|X^0).
    """
    signal = np.append(1, np.cumprod(1 - BETA))
    mean, variance = np.sqrt(signal)[:, None] * MEAN, signal[:, None] * SCALE**2 + 1 - signal[:, None]

    def entropy(v):
        return 0.5 * np.log(2 * np.pi * np.e * v)

    log_pi = -0.5 * np.log(2 * np.pi) - 0.5 * (variance[-1] + mean[-1] ** 2)
    # x^0 - sqrt(1 - beta) x^1 = beta x^0 - sqrt(1 - beta) sqrt(beta) noise
    residual = BETA[0] ** 2 * (SCALE**2 + MEAN**2) + (1 - BETA[0]) * BETA[0]
    log_decode = -0.5 * np.log(2 * np.pi * BETA[0]) - 0.5 * residual / BETA[0]
    return np.sum(log_pi + entropy(variance[-1]) - entropy(variance[1]) + log_decode + entropy(BETA[0]))


def test_fit_reports_the_exact_bound_of_a_known_program(run):
    figures = metrics_of(run[0])
    assert abs(figures["elbo_bits"] - exact_elbo() / math.log(2)) < 4 * figures["elbo_bits_se"]
    assert figures["elbo_bits_se"] < 0.05
    null = np.sum(-0.5 * np.log(2 * np.pi) - 0.5 * (SCALE**2 + MEAN**2)) / math.log(2)
    assert abs(figures["L_null_bits"] - null) < 4 * figures["L_null_bits_se"]
    # MATH.md section 3, of each dimension; the second moments are not 1, so that eq. 14 is no bound.
    above = 0.5 * np.sum(SCALE**2 + MEAN**2 - 1) * (BETA[0] + np.prod(1 - BETA)) / math.log(2)
    assert above > 0.1
    assert figures["K_bits"] - figures["elbo_bits"] == pytest.approx(above, abs=0.01)


def test_metrics_agree_with_bound_and_with_each_other(mine, run):
    figures, program = metrics_of(run[0]), find.load(mine)
    params = load_params(run[0], program.diffusion)
    x0 = program.data().sample(jax.random.key(77), (4000,))
    again = bound(program.diffusion, x0, params=params, key=jax.random.key(78)).summary()
    for name in ("elbo_bits", "K_bits", "L_null_bits", "K_minus_L_null_bits"):
        error = math.hypot(figures[f"{name}_se"], again[f"{name}_se"])
        assert abs(figures[name] - again[name]) < 4 * error
    assert figures["K_minus_L_null_bits"] == pytest.approx(figures["K_bits"] - figures["L_null_bits"])
    limit = -np.sum(0.5 * np.log(2 * np.pi * np.e * SCALE**2)) / math.log(2)
    assert figures["entropy_limit_bits"] == pytest.approx(limit, abs=0.05)
    assert figures["gap_bits"] == figures["entropy_limit_bits"] - figures["elbo_bits"]
    assert figures["gap_bits"] > 0
    assert figures["model"] == "mine.py"
    assert figures["data"] == "fresh data"
    assert (figures["iterations"], figures["num_parameters"], figures["seed"]) == (30, 2, 4)
    assert figures["seconds"] > 0


def test_fit_prints_the_table_and_draws_the_figure(run):
    run_dir, printed = run
    figures = metrics_of(run_dir)
    assert f"{figures['elbo_bits']:.4f} ± {figures['elbo_bits_se']:.4f}" in printed
    assert f"{figures['gap_bits']:.4f}" in printed
    assert_picture(run_dir / "figure.png")
    assert [path.name for path in run_dir.iterdir() if path.name.startswith(".")] == []


def test_resuming_a_finished_fit_reports_it_again(mine, run):
    before = metrics_of(run[0])
    (run[0] / "metrics.json").unlink()
    done = dpm("fit", mine, "--run-dir", run[0], "--seed", 4, "--resume")
    assert done.exit_code == 0, done.output
    assert metrics_of(run[0]) == before


def test_a_run_goes_on_with_as_many_steps_sampled_as_it_had(tmp_path):
    """Where the program says nothing of it, as in runs that were begun when the default was another."""
    (tmp_path / "bare.py").write_text(GAUSSIAN.replace("recipe =", "unused ="))
    given = ["fit", tmp_path / "bare.py", "--run-dir", tmp_path / "run"]
    assert dpm(*given, "--iterations", 4).exit_code == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    run["settings"]["num_steps_sampled"] = 5
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    done = dpm(*given, "--iterations", 6, "--resume")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["num_steps_sampled"] == 5


def test_a_file_with_the_four_names_alone_fits(tmp_path):
    """No recipe; fewer data and steps than the options of `fit` are made for; an array, so no limit is known."""
    text = GAUSSIAN.replace("linear(6", "linear(3").replace("recipe =", "unused =")
    (tmp_path / "bare.py").write_text(f"{text}\ndata = np.random.default_rng(0).normal(size=(40, 2))\n")
    done = dpm("fit", tmp_path / "bare.py", "--run-dir", tmp_path / "run", "--iterations", 20)
    assert done.exit_code == 0, done.output
    figures = metrics_of(tmp_path / "run")
    assert (figures["num_data"], figures["data"]) == (4, "held-out data")
    assert "4 of 40 data are held out, drawn by the seed, to evaluate on; --held-out 0 fits all." in done.stdout
    assert "on 4 held-out data" in done.stdout
    assert "gap_bits" not in figures
    assert figures["K_bits"] is not None
    assert_picture(tmp_path / "run" / "figure.png")


def test_ctrl_c_saves_and_says_how_to_carry_on(mine, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_ENABLE_X64": "1"}
    command = [sys.executable, "-m", "dpm_ppl", "fit", str(mine), "--iterations", "100000000", "--run-dir", "my run"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        seen = b""
        while b"bits " not in seen and process.poll() is None:  # the progress bar: iterations have begun
            seen += os.read(process.stderr.fileno(), 4096)
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    again = shlex.split(rest.strip().splitlines()[-1].partition("To carry on: ")[2])
    assert again[:3] == ["dpm", "fit", str(mine)]
    done = int(max(os.listdir(tmp_path / "my run" / "checkpoints"), key=int))
    again[again.index("--iterations") + 1] = str(done + 10)
    again[again.index("--run-dir") + 1] = str(tmp_path / "my run")
    assert dpm(*again[1:]).exit_code == 0
    assert metrics_of(tmp_path / "my run")["iterations"] == done + 10


def test_the_default_run_directory_is_named_after_the_program(mine, tmp_path, monkeypatch):
    from dpm_ppl import inference

    seen = {}

    def stop(model, guide, data, *, num_iterations, batch_size, num_steps_sampled, optimizer, **options):
        seen.update(options, num_iterations=num_iterations)
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "fit", stop)
    monkeypatch.chdir(tmp_path)
    assert dpm("fit", mine, "--seed", 2).exit_code == 130
    assert seen["run_dir"] == Path("runs/mine")
    assert seen["fingerprint"] == {"model": "mine.py", "seed": 2}
    assert seen["num_iterations"] == 30


# Bad input: one line each, before any work.


def test_unknown_model():
    assert_error(dpm("fit", "swiss_rolls"), f"Did you mean swiss_roll? Known models: {', '.join(find.known())}.")


def test_missing_file(tmp_path):
    assert_error(dpm("fit", tmp_path / "none.py"), "there is none at")


def test_file_without_the_names_of_a_program(tmp_path):
    (tmp_path / "some.py").write_text("def model(): pass\ndef data(): pass")
    assert_error(dpm("fit", tmp_path / "some.py"), "it lacks guide.")


def test_file_that_does_not_import(tmp_path):
    (tmp_path / "some.py").write_text("import nothing_of_this_name")
    assert_error(
        dpm("fit", tmp_path / "some.py"), "line 1: ModuleNotFoundError: No module named 'nothing_of_this_name'"
    )


def test_recipe_with_an_unknown_option(mine, tmp_path):
    (tmp_path / "some.py").write_text(GAUSSIAN.replace('"batch_size"', '"batchsize"'))
    done = dpm("fit", tmp_path / "some.py", "--run-dir", tmp_path / "run")
    assert_error(done, "got batchsize.")
    assert "batch_size" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("np.zeros((0, 2))", "Expected at least one datum in `data`"),
        ("np.array(3.0)", "got a single number"),
        ("np.full((30, 2), np.nan)", "Expected `data` to be finite"),
        ("np.zeros((30, 3))", "event shape (2,)"),
        ("np.zeros((30, 2), int)", "floating-point"),
    ],
)
def test_data_that_do_not_fit(tmp_path, data, message):
    (tmp_path / "some.py").write_text(GAUSSIAN.replace("recipe =", "unused =") + f"\ndata = {data}\n")
    assert_error(dpm("fit", tmp_path / "some.py", "--run-dir", tmp_path / "run"), message)


def test_run_directory_in_use(mine, run):
    before = metrics_of(run[0])
    assert_error(dpm("fit", mine, "--run-dir", run[0]), "Expected --run-dir without a run")
    assert_error(dpm("fit", mine, "--run-dir", run[0]), "--resume continues it")
    assert metrics_of(run[0]) == before


def test_run_directory_of_another_model(mine, run, tmp_path):
    (tmp_path / "other.py").write_text(GAUSSIAN)
    done = dpm("fit", tmp_path / "other.py", "--run-dir", run[0], "--seed", 4, "--resume")
    assert_error(done, "fingerprint.model was")


def test_run_directory_of_another_seed(mine, run):
    assert_error(dpm("fit", mine, "--run-dir", run[0], "--seed", 5, "--resume"), "fingerprint.seed was 4 and is now 5")


def test_run_directory_below_a_file(mine, tmp_path):
    (tmp_path / "file").write_text("")
    assert_error(dpm("fit", mine, "--run-dir", tmp_path / "file" / "run"), "that can be written")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    from dpm_ppl.inference.records import write_whole

    (tmp_path / "file").write_text("old")

    def fail(file):
        file.write(b"half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "file", fail)
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_help_is_quick():
    began = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "dpm_ppl", "--help"], capture_output=True, text=True, env=environment)
    assert {"models", "fit", "sample"} <= set(done.stdout.split())
    assert time.perf_counter() - began < 15  # mostly importing JAX; generous, for busy machines
