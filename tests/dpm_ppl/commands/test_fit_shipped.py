"""Every program of `models/` through every command: numbers and a figure from each, or one line that says why not."""

import json

import numpy as np
import pytest
import xarray as xr

from dpm_ppl import data
from dpm_ppl.commands import find
from dpm_ppl.reports import evaluation, fit
from tests.command_line import dpm
from tests.models.cases import PROGRAMS

OTHER_STATES = {"categorical", "torus"}  # letters and angles, whose noise `dpm posterior` has no law of


@pytest.fixture(scope="module", params=PROGRAMS)
def run(request, tmp_path_factory):
    """A program fitted for two iterations, as few data as can be in every report."""
    run_dir = tmp_path_factory.mktemp(request.param) / "run"
    with pytest.MonkeyPatch.context() as patch:
        for report in (fit, evaluation):
            patch.setattr(report, "affordable", lambda *args, least, **options: least)
        done = dpm("fit", request.param, "--iterations", 2, "--run-dir", run_dir)
        assert done.exit_code == 0, done.output
        yield find.load(request.param), run_dir, done


def written(run_dir, done, name, figure):
    """The numbers that a command wrote, none of them NaN; its figure is there, and was drawn without complaint."""
    assert done.exit_code == 0, done.output
    assert "Warning" not in done.stderr
    assert (run_dir / figure).stat().st_size > 10_000
    text = (run_dir / name).read_text()
    return json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} in {name}"))


@pytest.mark.filterwarnings("ignore:LearnedKernel has no marginal:UserWarning")  # hvae
def test_every_command(run):
    program, run_dir, done = run
    figures = written(run_dir, done, "metrics.json", "figure.png")
    is_gan = "objective_nats" in figures
    assert np.isfinite(figures["objective_nats" if is_gan else "elbo_bits"])

    done = dpm("sample", run_dir, "-n", 16)
    assert done.exit_code == 0, done.output
    with np.load(run_dir / "samples.npz") as archive:
        samples = dict(archive)
    x0 = samples.pop("theta" if program.name == "amortised" else "x0")
    assert x0.shape[0] == 16
    assert np.asarray(data.support_of(program.data(), x0)(x0)).all()
    assert (run_dir / "samples.png").stat().st_size > 10_000

    done = dpm("evaluate", run_dir, "--particles", 30, "--num-data", 4)
    assert done.exit_code == 0, done.output
    if is_gan:
        assert "no likelihood" in done.stdout
    else:
        written(run_dir, done, "evaluation.json", "evaluation.png")
        # By the same weights, datum by datum. `elbo_bits` is of draws of its own, a third of a bit off in a datum here.
        with xr.open_dataset(run_dir / "likelihood.nc", group="likelihood", engine="h5netcdf") as likelihood:
            assert (likelihood["elbo"] < likelihood["estimate"]).all()

    np.save(run_dir / "y.npy", x0[:1])
    observe = ("posterior", run_dir, "--observe", run_dir / "y.npy", "--noise", 0.4, "--particles", 100)
    if samples:
        np.savez(run_dir / "c.npz", **{name: array[:1] for name, array in samples.items()})
        observe += ("--context", run_dir / "c.npz")
    done = dpm(*observe)
    if program.diffusion is None and program.conditional is None:
        assert "Error: Expected a program with `diffusion`, one chain" in done.stderr
    elif program.name in OTHER_STATES:
        assert "Error: Expected a program of real numbers or bits" in done.stderr
    else:
        written(run_dir, done, "posterior.json", "posterior.png")
