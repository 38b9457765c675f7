"""Programs that are no single chain, through the command line: a linear latent program in closed form, and a GAN."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from dpm_ppl.commands import find
from dpm_ppl.commands.run import fitted_params
from dpm_ppl.programs import Program
from dpm_ppl.reports.objective import has_likelihood, objective
from tests.command_line import LATENT, dpm

GAIN, NOISE, OFFSET, SLOPE, SCALE = np.array([1.2, -0.3]), np.array([0.8, 0.5]), 0.5, 0.4, 0.7


MEAN, SPREAD = np.array([0.7, -0.2]), np.array([1.5, 0.4])


def exact_elbo():
    """E_q log p(x|z) - KL(q(z|x) || p(z)), averaged over the data, nats."""
    square = MEAN[0] ** 2 + SPREAD[0] ** 2
    kl = 0.5 * (SLOPE**2 * square + SCALE**2 - 1) - math.log(SCALE)
    # x - GAIN (SLOPE x_1 + SCALE e) - OFFSET is normal.
    mean = MEAN - GAIN * SLOPE * MEAN[0] - OFFSET
    variance = (1 - GAIN[0] * SLOPE) ** 2 * SPREAD[0] ** 2, SPREAD[1] ** 2 + (GAIN[1] * SLOPE * SPREAD[0]) ** 2
    residual = np.array(variance) + (GAIN * SCALE) ** 2 + mean**2
    return -0.5 * np.sum(residual / NOISE**2 + np.log(2 * np.pi * NOISE**2)) - kl


def exact_log_likelihood():
    """E log p(x) under the data, nats: the cross-entropy of two normals."""
    covariance = np.outer(GAIN, GAIN) + np.diag(NOISE**2)
    second = np.diag(SPREAD**2) + np.outer(MEAN - OFFSET, MEAN - OFFSET)
    return -0.5 * (np.trace(np.linalg.solve(covariance, second)) + np.linalg.slogdet(2 * np.pi * covariance)[1])


def read(path):
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_fit_reports_the_exact_bound_and_gap(latent):
    run_dir, printed = latent
    figures = read(run_dir / "metrics.json")
    assert abs(figures["elbo_bits"] - exact_elbo() / math.log(2)) < 4 * figures["elbo_bits_se"]
    assert 0 < figures["elbo_bits_se"] < 0.05
    limit = -0.5 * np.sum(1 + np.log(2 * np.pi * SPREAD**2)) / math.log(2)
    assert figures["entropy_limit_bits"] == pytest.approx(limit)
    assert figures["gap_bits"] == pytest.approx(limit - figures["elbo_bits"])
    assert figures["num_parameters"] == 5  # of the guide too
    assert "K_bits" not in figures
    assert f"{figures['elbo_bits']:.4f} ± " in printed
    assert (run_dir / "figure.png").stat().st_size > 20_000


def test_evaluation_is_the_exact_likelihood_with_no_sandwich(latent):
    run_dir, _ = latent
    done = dpm("evaluate", run_dir, "--particles", 300, "--num-data", 300, "--overwrite")
    assert done.exit_code == 0, done.output
    figures = read(run_dir / "evaluation.json")
    assert abs(figures["estimate_bits"] - exact_log_likelihood() / math.log(2)) < 4 * figures["estimate_bits_se"]
    assert abs(figures["elbo_bits"] - exact_elbo() / math.log(2)) < 4 * figures["elbo_bits_se"]
    assert figures["elbo_bits"] < figures["estimate_bits"] - 0.05
    assert figures["trusted"] is True
    assert not [name for name in figures if "sandwich" in name or "work" in name or "js" in name]
    assert "sandwich" not in done.stdout
    assert (run_dir / "likelihood.nc").exists()
    assert (run_dir / "evaluation.png").exists()


def test_a_bad_guide_is_told(make_run):
    run_dir, _ = make_run(LATENT.replace("slope * x0[:, 0], 0.7", "slope * x0[:, 0] + 3, 0.1"))
    done = dpm("evaluate", run_dir, "--particles", 200, "--num-data", 30)
    assert done.exit_code == 0, done.output
    assert read(run_dir / "evaluation.json")["trusted"] is False
    assert "The guide is far from the model's posterior" in " ".join(done.stdout.split())


def test_a_gan_says_that_it_has_no_likelihood(gan):
    run_dir, printed = gan
    figures = read(run_dir / "metrics.json")
    assert "elbo_bits" not in figures
    assert "gap_bits" not in figures
    assert "No likelihood. Objective" in printed
    done = dpm("evaluate", run_dir, "--overwrite")
    assert done.exit_code == 0, done.output
    assert "has no likelihood" in done.stdout
    evaluation = read(run_dir / "evaluation.json")
    assert evaluation["trusted"] is None
    assert "estimate_bits" not in evaluation
    assert not (run_dir / "likelihood.nc").exists()


def test_objective_of_a_gan_is_that_of_its_discriminator(gan):
    """E log D + E log(1 - D) on fresh draws, by NumPy."""
    program = find.load(gan[0].parent / "mine.py")
    params = fitted_params(gan[0], program, program.data())
    x0 = program.data().sample(jax.random.key(0), (4000,))
    found = objective(program, params, x0, key=jax.random.key(1))
    rng = np.random.default_rng(0)
    shift, slope = np.asarray(params["shift"]), np.asarray(params["slope"])
    real, generated = rng.normal(MEAN, SPREAD, (400_000, 2)) @ slope, rng.normal(shift, 1, (400_000, 2)) @ slope
    expected = -np.logaddexp(0, -real).mean() - np.logaddexp(0, generated).mean()
    assert abs(found["objective_nats"] - expected) < 4 * found["objective_nats_se"]
    assert found["objective_nats_se"] < 0.01


@pytest.mark.parametrize("change", ["numpyro.factor('more', z)", "numpyro.sample('y', dist.Normal(z, 1.0), obs=z)"])
def test_what_is_observed_and_not_generated_is_no_likelihood(tmp_path, change):
    (tmp_path / "mine.py").write_text(LATENT)
    assert has_likelihood(find.load(tmp_path / "mine.py"), jnp.ones((3, 2)))
    (tmp_path / "other.py").write_text(
        LATENT.replace("return numpyro.sample", f"{change}\n        return numpyro.sample")
    )
    assert not has_likelihood(find.load(tmp_path / "other.py"), jnp.ones((3, 2)))


def test_a_loss_that_stands_for_all_data_is_told_by_the_plate():
    """With a global latent and a subsample of the plate, loss / (data it stands for) is -ELBO per datum."""

    def model(x0=None, size=1):
        mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
        num = size if x0 is None else len(x0)
        with numpyro.plate("data", 40 if x0 is not None else num, subsample_size=num):
            return numpyro.sample("x", dist.Normal(mean, 1.5), obs=x0)

    def guide(x0):
        numpyro.sample("mean", dist.Normal(0.7, 0.05))

    program = Program("mine", None, "", model, guide, lambda: None)
    x0 = np.ones(400)  # 20 batches of 20
    found = objective(program, {}, x0, key=jax.random.key(0))
    kl = 0.5 * (0.05**2 + 0.7**2) / 4 - 0.5 - math.log(0.05 / 2)
    exact = -0.5 * (0.3**2 + 0.05**2) / 1.5**2 - 0.5 * math.log(2 * math.pi * 1.5**2) - kl / 40
    assert abs(found["elbo_nats"] - exact) < 4 * found["elbo_nats_se"]
    assert kl / 40 > 20 * found["elbo_nats_se"]
    assert found["elbo_bits"] == found["elbo_nats"] / math.log(2)
    drawn = np.random.default_rng(0).normal(0.7, 0.05, 100_000)
    value = -0.5 * (1 - drawn) ** 2 / 1.5**2 + (0.5 * ((drawn - 0.7) / 0.05) ** 2 - drawn**2 / 8) / 40
    assert found["elbo_nats_se"] == pytest.approx(value.std() / math.sqrt(20), rel=0.5)  # 3 errors of a spread


def test_an_unknown_recipe_of_a_program_without_a_chain(tmp_path):
    (tmp_path / "some.py").write_text(LATENT.replace('"batch_size"', '"batchsize"'))
    done = dpm("fit", tmp_path / "some.py", "--run-dir", tmp_path / "run")
    assert done.exit_code == 1
    assert "got batchsize." in done.stderr
