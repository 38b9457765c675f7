"""`dpm evaluate`: its numbers against closed forms, its verdict on good and bad models, what its figure draws."""

import json
import math
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from typer.testing import CliRunner

from dpm_ppl import evaluation_plots, programs
from dpm_ppl.__main__ import app
from dpm_ppl.evaluation import particle_counts, sandwich_at, table
from dpm_ppl.inference import dissipated_work, fit, load_params, log_likelihood, sandwich
from dpm_ppl.verdict import problems, verdict
from tests.oracles import GaussianOracle, data

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


def dpm(*args):
    """Runs the command in this process: warnings are errors here too."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


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
        program = programs.load(path)
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
    program = programs.load(run_dir.parent / "mine.py")
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
    assert printed.startswith(f"{figures['model']}: 150 data, 200 particles each")
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
    options = ("--particles", 200, "--num-data", 150)
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
    done = dpm("evaluate", run_dir, "--particles", 30, "--num-data", 5)
    assert "Error: Expected to write" in one_line_error(done)
    assert (run_dir / "evaluation.json").read_text() == before


# Verdicts.

FINE = {
    "num_particles": 1000,
    "estimate_bits": -1.25,
    "estimate_bits_se": 0.02,
    "estimate_bits_mc_se": 0.001,
    "gap_bits": 0.05,
    "gap_bits_se": 0.01,
    "khat_over_share": 0.05,
    "khat_unknown_share": 0.05,
    "khat_90_percent": 0.6,
    "ess_low_share": 0.05,
    "sandwich_gap_bits": 0.1,
    "work_overlap": 0.03,
}


def test_what_is_fine_is_trusted():
    assert problems(FINE) == []
    assert verdict(FINE, [])[0] == "The likelihood can be trusted: -1.2500 ± 0.0200 bits per datum."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"khat_over_share": 0.06}, "k-hat is over 0.7 for 6% of the data"),
        ({"khat_unknown_share": 0.06}, "k-hat is not known for 6% of the data"),
        ({"ess_low_share": 0.06}, "fewer than 10 particles are effective for 6% of the data"),
        ({"sandwich_gap_bits": 0.11}, "the bounds are 0.11 bits apart"),
        ({"sandwich_gap_bits": math.nan}, "the bounds are nan bits apart"),
        ({"work_overlap": 0.02}, "overlap by 2.0% only"),
        ({"gap_bits": -0.05}, "exceeds the data's own log density"),
    ],
    ids=["k-hat", "k-hat unknown", "ESS", "gap", "gap unknown", "overlap", "above the limit"],
)
def test_each_fault_is_named(change, words):
    (fault,) = problems(FINE | change)
    assert words in fault
    assert words in verdict(FINE | change, [fault])[0]


@pytest.mark.parametrize(
    ("khat", "num_particles", "advice"),
    [
        (0.7, 100, "--particles 3000"),  # 10^(1 / (1 - 0.7)) = 2154
        (0.75, 1000, "--particles 10000"),
        (0.3, 2000, "--particles 20000"),  # a wide gap alone
        (0.85, 1000, "more particles will not help soon"),
        (1.2, 1000, "more particles will not help soon"),
        (None, 1000, "more particles will not help soon"),  # all infinite
    ],
)
def test_advice_is_as_many_particles_as_the_tail_needs(khat, num_particles, advice):
    figures = FINE | {"khat_90_percent": khat, "num_particles": num_particles, "khat_over_share": 0.5}
    assert advice in verdict(figures, problems(figures))[-1]


# Figures.


@pytest.fixture(scope="module")
def records():
    oracle = GaussianOracle.exact(6).spoiled()
    given = {"params": oracle.params, "num_particles": 50, "progress": False}
    likelihood = log_likelihood(oracle.diffusion, data(20), key=jax.random.key(0), **given)
    return likelihood, sandwich(oracle.diffusion, key=jax.random.key(1), num_data=30, **given)


def test_particle_counts():
    assert [particle_counts(num) for num in (1, 2, 10, 11, 100, 250, 1000)] == [
        [1],
        [1, 2],
        [1, 10],
        [1, 10, 11],
        [1, 10, 100],
        [1, 10, 100, 250],
        [1, 10, 100, 1000],
    ]


def test_sandwich_at_fewer_particles_is_that_of_the_first(records):
    _, whole = records
    part = sandwich_at(whole, 7)
    np.testing.assert_allclose(part.lower, np.logaddexp.reduce(whole.forward.log_weight[:7]) - np.log(7))
    own = np.concatenate([whole.forward.log_weight[:6], whole.own_log_weight[None]])
    np.testing.assert_allclose(part.upper, np.logaddexp.reduce(own) - np.log(7))
    np.testing.assert_array_equal(sandwich_at(whole, 50).upper, whole.upper)


def lines(axes):
    """What is drawn, by the words of the legend up to a colon's or comma's detail."""
    handles, labels = axes.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def test_khat_panel():
    axes = Figure().subplots()
    evaluation_plots.draw_khat(axes, [0.2, 0.71, np.inf, np.nan, 5.0, -0.4, 0.7])
    drawn = lines(axes)
    below, over = drawn["0.7 or less, 42.9% of the data"], drawn["over 0.7, 42.9%"]
    np.testing.assert_allclose(below.get_offsets(), [[0, 0.2], [5, -0.4], [6, 0.7]])
    np.testing.assert_allclose(over.get_offsets(), [[1, 0.71]])
    np.testing.assert_allclose(drawn["of these, 2 beyond the axis"].get_offsets()[:, 0], [2, 4])
    assert "not known, 14.3%" in drawn
    low, high = axes.get_ylim()
    assert low < -0.4 < 3.0 < high
    assert sorted(line.get_ydata()[0] for line in axes.lines[-2:]) == [0.5, 0.7]


def test_estimates_panel(records):
    likelihood, simulated = records
    axes = Figure().subplots()
    evaluation_plots.draw_estimates(axes, likelihood, simulated, entropy_limit=-1.5)
    drawn = lines(axes)
    estimate = drawn["data: estimate"].lines[0]
    np.testing.assert_array_equal(estimate.get_xdata(), [1, 10, 50])
    expected = [likelihood.estimate_at(num) / np.log(2) for num in (1, 10, 50)]
    np.testing.assert_allclose(estimate.get_ydata(), np.mean(expected, 1))
    bars = np.array([bar[:, 1] for bar in drawn["data: estimate"].lines[2][0].get_segments()])
    np.testing.assert_allclose(np.diff(bars)[:, 0], 2 * np.std(expected, axis=1, ddof=1) / 20**0.5)
    for name in ("lower", "upper"):
        mean = getattr(simulated, name).mean() / np.log(2)
        assert drawn[f"simulated data: {name} bound"].lines[0].get_ydata()[-1] == pytest.approx(mean)
    assert drawn["data: entropy limit"].get_ydata()[0] == pytest.approx(-1.5 / np.log(2))


def test_work_panel(records):
    work = dissipated_work(records[1])
    axes = Figure().subplots()
    evaluation_plots.draw_work(axes, work)
    (crossing,) = (handle for label, handle in lines(axes).items() if label.startswith("crossing"))
    assert crossing.get_xdata()[0] == pytest.approx(work.crossing / np.log(2))
    for name in ("forward", "reverse"):
        assert any(label == f"{name}, mean {getattr(work, name).mean() / np.log(2):.3g} bits" for label in lines(axes))
    outlines = [patch.get_path().vertices for patch in axes.patches if len(patch.get_path().vertices) > 8]
    assert len(outlines) == 2
    for x, y in (outline.T for outline in outlines):  # each is a density
        assert abs(np.trapezoid(y, x)) == pytest.approx(1)


def test_work_that_does_not_overlap_has_no_crossing():
    axes = Figure().subplots()
    forward, reverse = np.array([5.0, 6.0, np.inf, 7.0]), np.array([-5.0, -6.0])
    work = SimpleNamespace(forward=forward, reverse=reverse, crossing=0.0, crossing_error=1.0, overlap=0.001)
    evaluation_plots.draw_work(axes, work)
    assert {"overlap 0.1%: no crossing to see", "25.0% of forward work is infinite"} <= set(lines(axes))
    assert not any(label.startswith("crossing") for label in lines(axes))


@pytest.mark.parametrize("num_steps", [7, 260])
def test_entropy_panel(num_steps):
    rng = np.random.default_rng(0)
    upper = rng.normal(size=num_steps - 1)
    lower, cross = upper - rng.random(num_steps - 1), upper + rng.normal(size=num_steps - 1)
    axes = Figure().subplots()
    evaluation_plots.draw_entropy_production(axes, cross, bounds=SimpleNamespace(lower=lower, upper=upper))
    total = (cross - upper).sum() / np.log(2)
    line = lines(axes)[f"model; the sum is {total:.3f} bits"]
    width = 1 if num_steps == 7 else 3
    starts = np.arange(0, num_steps - 1, width)
    expected = [(cross - upper)[i : i + width].mean() / np.log(2) for i in starts]
    np.testing.assert_allclose(line.get_ydata(), expected)
    np.testing.assert_allclose(line.get_xdata(), [np.arange(2, num_steps + 1)[i : i + width].mean() for i in starts])
    band = lines(axes)["between the bounds of eq. 24"].get_paths()[0].vertices[:, 1]
    averaged = [(lower - upper)[i : i + width].mean() for i in starts]
    assert band.min() == pytest.approx(min(averaged) / np.log(2))
    assert band.max() == 0


def test_entropy_panel_without_bounds_or_steps():
    axes = Figure().subplots()
    evaluation_plots.draw_entropy_production(axes, np.array([1.0, 2.0]))
    np.testing.assert_allclose(axes.lines[0].get_ydata(), np.array([1.0, 2.0]) / np.log(2))
    evaluation_plots.draw_entropy_production(Figure().subplots(), np.zeros(0))


def test_the_table_survives_numbers_that_are_not_known(bad):
    figures = evaluated(bad[0])
    unknown = figures | {name: None for name in figures if name.endswith("_bits") or name.endswith("_se")}
    assert "none" in table(unknown)
