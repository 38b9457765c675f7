"""The ArviZ adapter, on known tails and degenerate weights; it holds with ArviZ 0.23 and 1.x."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from dpm_ppl.inference.diagnostics import psis, save, to_arviz, to_elpd
from dpm_ppl.inference.likelihood import Likelihood, log_likelihood
from tests.oracles import BernoulliOracle, GaussianOracle, data

RNG = np.random.default_rng


def pareto(k: float, num_particles: int, num_data: int, *, seed: int = 0) -> np.ndarray:
    """Log weights of which the weights are generalised Pareto of shape k, by inverting its distribution function."""
    u = RNG(seed).random((num_particles, num_data))
    return np.log(np.expm1(-k * np.log1p(-u)) / k)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8])
def test_khat_is_the_shape_of_a_known_tail(k):
    _, khat = psis(pareto(k, 20_000, 60))
    # ArviZ's prior, worth 10 of 425 weights, pulls k towards 0.5; beyond that the mean is within 4 standard errors.
    expected = (425 * k + 10 * 0.5) / 435
    assert abs(khat.mean() - expected) < 4 * khat.std(ddof=1) / 60**0.5


def test_tail_is_that_of_the_weights_and_not_of_their_inverses():
    # The inverses of these weights are bounded, so their k-hat is negative; a wrong sign would go unnoticed elsewhere.
    log_weight = np.log1p(np.exp(pareto(0.6, 5000, 8)))
    assert (psis(log_weight)[1] > 0.4).all()
    assert (psis(-log_weight)[1] < 0.1).all()


def test_smoothing_keeps_the_scale_and_lowers_the_error():
    # Weights of mean 1 / (1 - k): where the tail is heavy, the mean of the smoothed ones has the smaller squared error.
    k, num_particles = 0.7, 1000
    log_weight = pareto(k, num_particles, 400, seed=1) - 1234.5
    smoothed, _ = psis(log_weight)
    exact = -np.log(1 - k) - 1234.5
    off = {
        name: np.logaddexp.reduce(lw) - np.log(num_particles) - exact
        for name, lw in (("raw", log_weight), ("psis", smoothed))
    }
    assert abs(np.median(off["psis"])) < 0.2
    assert np.square(np.expm1(off["psis"])).mean() < 0.8 * np.square(np.expm1(off["raw"])).mean()


def test_smoothing_changes_the_tail_only_and_keeps_the_order():
    log_weight = pareto(0.7, 1000, 5, seed=2)
    smoothed, _ = psis(log_weight)
    body = np.argsort(log_weight, 0)[:-96]
    np.testing.assert_allclose(
        np.take_along_axis(smoothed, body, 0), np.take_along_axis(log_weight, body, 0), atol=1e-12
    )
    assert (np.argsort(smoothed, 0, kind="stable")[:-96] == body).all()
    assert (smoothed.max(0) <= log_weight.max(0) + 1e-12).all()


def test_data_are_separate():
    tails = np.concatenate([pareto(k, 5000, 1) for k in (0.1, 0.9)], 1)
    together, apart = psis(tails)[1], [float(psis(tails[:, [i]])[1][0]) for i in (0, 1)]
    np.testing.assert_allclose(together, apart)
    assert together[0] < 0.4 < 0.7 < together[1]


@pytest.mark.parametrize("num_particles", [2, 29, 30, 1000])
@pytest.mark.parametrize("value", [0.0, -1234.5])
def test_constant_weights_are_a_perfect_fit(num_particles, value):
    log_weight = np.full((num_particles, 3), value)
    smoothed, khat = psis(log_weight)
    np.testing.assert_array_equal(khat, 0.0)
    np.testing.assert_array_equal(smoothed, log_weight)


def test_constant_weights_up_to_rounding_are_a_perfect_fit():
    rounding = np.round(3 * RNG(0).normal(size=(1000, 4))) * np.spacing(np.float32(50))
    np.testing.assert_array_equal(psis((50 + rounding).astype(np.float32))[1], 0.0)


def test_a_few_dominating_weights_are_as_bad_as_can_be():
    dominated = np.zeros((1000, 1))
    dominated[[3, 500, 700], 0] = [13.0, 14.0, 12.0]
    degenerate = RNG(0).normal(size=(1000, 1)) * 1000
    smoothed, khat = psis(np.concatenate([dominated, degenerate], 1))
    assert (khat == np.inf).all()
    np.testing.assert_array_equal(smoothed, np.concatenate([dominated, degenerate], 1))


@pytest.mark.parametrize("scale", [5.0, 30.0, 100.0])
def test_wildly_spread_weights_have_a_high_khat(scale):
    assert (psis(RNG(0).normal(size=(1000, 5)) * scale)[1] > 0.7).all()


@pytest.mark.parametrize("num_particles", [1, 2, 29])
def test_khat_is_not_known_from_few_particles(num_particles):
    log_weight = RNG(0).normal(size=(num_particles, 3))
    smoothed, khat = psis(log_weight)
    assert np.isnan(khat).all()
    np.testing.assert_array_equal(smoothed, log_weight)


def test_khat_is_not_known_from_few_distinct_weights():
    values, shares = np.log([1.0, 2.0, 3.0, 4.0]), [0.5, 0.3, 0.15, 0.05]
    log_weight = RNG(0).choice(values, p=shares, size=(1000, 2))
    smoothed, khat = psis(log_weight)
    assert np.isnan(khat).all()
    np.testing.assert_array_equal(smoothed, log_weight)


def test_weights_of_zero():
    log_weight = pareto(0.5, 2000, 4)
    log_weight[RNG(1).random(log_weight.shape) < 0.5] = -np.inf
    log_weight[:, 3] = -np.inf
    smoothed, khat = psis(log_weight)
    assert ((khat[:3] > 0.2) & (khat[:3] < 0.8)).all()
    assert khat[3] == np.inf
    np.testing.assert_array_equal(smoothed == -np.inf, log_weight == -np.inf)
    assert not np.isnan(smoothed).any()


def test_takes_read_only_single_precision():
    log_weight = jnp.asarray(pareto(0.5, 500, 3), jnp.float32)
    smoothed, khat = psis(log_weight)
    assert smoothed.dtype == khat.dtype == np.float64
    read_only = np.asarray(log_weight)
    assert not read_only.flags.writeable
    before = read_only.copy()
    np.testing.assert_array_equal(psis(read_only)[1], khat)
    np.testing.assert_array_equal(read_only, before)


@pytest.mark.parametrize("shape", [(), (5,), (5, 2, 2), (0, 3), (3, 0)])
def test_wrong_shapes_are_told(shape):
    with pytest.raises(ValueError, match=r"Expected `log_weight` of shape \(num_particles, num_data\)"):
        psis(np.zeros(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_weights_are_told(value):
    log_weight = np.zeros((50, 3))
    log_weight[7, 2] = value
    with pytest.raises(ValueError, match=f"the first {value} for particle 7 of datum 2"):
        psis(log_weight)


@pytest.fixture(scope="module")
def likelihood() -> Likelihood:
    """Of six data under spoiled reverse steps, T = 5, with the trajectories of three particles."""
    oracle = GaussianOracle.exact(5).spoiled()
    options: dict[str, Any] = {"num_particles": 100, "num_trajectories": 3, "progress": False}
    return log_likelihood(oracle.diffusion, data(6), params=oracle.params, key=jax.random.key(0), **options)


K = np.arange(6) / 7


def groups(data) -> dict[str, xr.Dataset]:
    """The data sets of either version's format, by group."""
    if isinstance(data, xr.DataTree):
        return {name: node.to_dataset() for name, node in data.children.items()}
    return {name: data[name] for name in data.groups()}


def check(data, likelihood):
    """Everything that `likelihood` knows stands where it should, with its units."""
    found = groups(data)
    assert set(found) == {"sample_stats", "likelihood", "steps", "trajectories"}
    log_weight = found["sample_stats"]["log_weight"]
    assert log_weight.dims == ("particle", "datum")
    np.testing.assert_array_equal(log_weight, likelihood.log_weight)
    np.testing.assert_array_equal(log_weight.particle, np.arange(100))
    np.testing.assert_array_equal(log_weight.datum, np.arange(6))
    per_datum = found["likelihood"]
    expected = {
        n: getattr(likelihood, n) for n in ("elbo", "estimate", "standard_error", "psis_estimate", "ess", "khat")
    }
    assert set(per_datum) == {*expected, "K"}
    for name, values in {**expected, "K": K}.items():
        assert per_datum[name].dims == ("datum",)
        np.testing.assert_array_equal(per_datum[name], values)
    units = {name: variable.attrs["units"] for name, variable in per_datum.items()}
    assert units == {**dict.fromkeys([*expected, "K"], "nats"), "ess": "particles", "khat": "1"}
    steps = found["steps"]["reverse_cross_entropy"]
    assert list(steps.t) == [2, 3, 4, 5]
    np.testing.assert_array_equal(steps, likelihood.reverse_cross_entropy)
    x = found["trajectories"]["x"]
    assert x.dims == ("particle", "datum", "t", "event_0")
    assert list(x.t) == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(x, likelihood.trajectories)
    assert data.attrs["inference_library"] == "dpm_ppl"


def test_arviz_holds_all_that_is_known(likelihood):
    check(to_arviz(likelihood, K=K), likelihood)
    without = groups(to_arviz(Likelihood(likelihood.log_weight, likelihood.reverse_cross_entropy)))
    assert set(without) == {"sample_stats", "likelihood", "steps"}
    assert "K" not in without["likelihood"]


def test_netcdf_gives_back_what_was_saved(likelihood, tmp_path):
    path = tmp_path / "likelihood.nc"
    save(likelihood, path, K=K)
    opened = az.from_netcdf(str(path))
    check(opened, likelihood)
    assert [file.name for file in tmp_path.iterdir()] == ["likelihood.nc"]


def test_netcdf_of_discrete_states_and_one_step(tmp_path):
    oracle = BernoulliOracle()
    options = {"params": oracle.params, "key": jax.random.key(0), "num_particles": 40, "num_trajectories": 2}
    likelihood = log_likelihood(oracle.diffusion, np.array([[0, 1, 1], [1, 0, 0]]), **options, progress=False)
    likelihood = Likelihood(likelihood.log_weight, np.zeros((0,)), likelihood.trajectories[:, :, :1])
    likelihood.log_weight[:, 1] = -np.inf
    save(likelihood, tmp_path / "likelihood.nc")
    opened = groups(az.from_netcdf(str(tmp_path / "likelihood.nc")))
    np.testing.assert_array_equal(opened["trajectories"]["x"], likelihood.trajectories)
    assert opened["steps"].sizes == {"t": 0}
    assert opened["likelihood"]["khat"][1] == np.inf


def test_netcdf_opens_without_this_package(likelihood, tmp_path):
    save(likelihood, tmp_path / "likelihood.nc")
    program = """
import sys
sys.modules["dpm_ppl"] = None
import xarray as xr
print(float(xr.open_datatree("likelihood.nc", engine="h5netcdf")["likelihood/estimate"][3]))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(done.stdout) == likelihood.estimate[3]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_no_half_file(likelihood, tmp_path, monkeypatch, there, failure):
    path = tmp_path / "likelihood.nc"
    if there:
        path.write_bytes(b"of before")
    beside = []

    def fail(_):
        beside.extend(file.name for file in tmp_path.iterdir() if file != path)
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(failure), match=r"Expected to write .*No space left" if failure.args else None):
        save(likelihood, path)
    assert len(beside) == 1  # beside, so that renaming it is atomic
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == ({path.name: b"of before"} if there else {})


def environment() -> dict[str, str]:
    """So that a program finds the package where it is not installed."""
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}


@pytest.mark.parametrize("room", [500, 200_000])
def test_a_full_disk_is_told_and_leaves_no_half_file(tmp_path, room):
    pytest.importorskip("resource")
    program = f"""
import resource, signal, sys
import numpy as np
from dpm_ppl.inference.diagnostics import save
from dpm_ppl.inference.likelihood import Likelihood
noise = np.random.default_rng(0).normal(size=(1000, 300))
likelihood = Likelihood(noise, np.zeros(4))
likelihood.khat
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, resource.RLIM_INFINITY))
try:
    save(likelihood, {str(tmp_path / "likelihood.nc")!r})
except OSError as error:
    print("told:", error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
    assert done.stdout.startswith("told: Expected to write"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_caller_are_told(likelihood, tmp_path):
    with pytest.raises(ValueError, match=r"Expected `K` of shape \(6,\), one for each datum; got \(5,\)"):
        to_arviz(likelihood, K=np.zeros(5))
    with pytest.raises(OSError, match="Expected to write .*Make room, or choose another place"):
        save(likelihood, tmp_path / "no such folder" / "likelihood.nc")


@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")  # ArviZ 0.23 under Matplotlib 3.11
@pytest.mark.parametrize("options", [{}, {"threshold": 0.7}], ids=["plain", "threshold"])
def test_arviz_plots_khat(likelihood, options):
    log_weight = likelihood.log_weight.copy()
    log_weight[:, 2] = 0.0
    log_weight[5, 4] += 200.0
    likelihood = Likelihood(log_weight, likelihood.reverse_cross_entropy)
    assert likelihood.khat[2] == 0.0
    assert likelihood.khat[4] > 0.7
    plt.close("all")
    az.plot_khat(to_elpd(likelihood), **options)
    points = [np.asarray(c.get_offsets()) for c in plt.gcf().axes[0].collections if len(c.get_offsets())]
    drawn = np.unique(np.concatenate(points), axis=0)
    plt.close("all")
    finite = np.isfinite(likelihood.khat)
    np.testing.assert_allclose(drawn[np.isfinite(drawn[:, 1]), 1], likelihood.khat[finite])


def test_elpd_prints_sums_of_the_smoothed_estimates(likelihood):
    text = str(to_elpd(likelihood))
    assert f"{likelihood.psis_estimate.sum():.2f}" in text
    assert f"{6**0.5 * likelihood.psis_estimate.std():.2f}" in text


@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")
def test_arviz_summarises_log_weights(likelihood):
    data = to_arviz(likelihood)
    if isinstance(data, xr.DataTree):
        table = az.summary(data, group="sample_stats", sample_dims="particle", kind="stats", round_to="none")
    else:
        draws = data.sample_stats.rename(particle="draw").expand_dims("chain")
        table = az.summary(draws, kind="stats", round_to="none")
    np.testing.assert_allclose(table["mean"], likelihood.elbo)
