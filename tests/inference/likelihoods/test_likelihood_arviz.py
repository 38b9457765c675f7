"""A likelihood in ArviZ's format, and on disk."""

import subprocess
import sys

import arviz as az
import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from dpm_ppl.inference.likelihoods.likelihood import Likelihood, log_likelihood
from tests.inference.test_psis import K
from tests.oracles import BernoulliOracle


def groups(data) -> dict[str, xr.Dataset]:
    """The data sets of either version's format, by group."""
    if isinstance(data, xr.DataTree):
        return {name: node.to_dataset() for name, node in data.children.items()}
    return {name: data[name] for name in data.groups()}


def check(data, likelihood):
    """Everything that `likelihood` knows stands where it should, with its units."""
    found = groups(data)
    assert set(found) == {"sample_stats", "likelihood", "steps", "trajectories", "posterior"}
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
    assert found["posterior"]["x"].dims == ("chain", "draw", "datum", "t", "event_0")
    assert data.attrs["inference_library"] == "dpm_ppl"


def test_arviz_holds_all_that_is_known(likelihood):
    check(likelihood.to_arviz(K=K), likelihood)
    without = groups(Likelihood(likelihood.log_weight, likelihood.reverse_cross_entropy).to_arviz())
    assert set(without) == {"sample_stats", "likelihood", "log_likelihood", "steps"}
    assert "K" not in without["likelihood"]
    log_prob = without["log_likelihood"]["x"]
    assert log_prob.dims == ("chain", "draw", "datum")
    np.testing.assert_array_equal(log_prob[0, 0], likelihood.psis_estimate)


def test_draws_of_trajectories_follow_the_weights():
    """Each is drawn as often as its weight among those kept says, to within one."""
    rng = np.random.default_rng(0)
    log_weight, x = rng.normal(scale=1.5, size=(500, 4)), rng.normal(size=(300, 4, 5, 2))
    drawn = groups(Likelihood(log_weight, np.zeros(4), x).to_arviz())["posterior"]["x"].values[0]
    share = np.exp(log_weight[:300]) / np.exp(log_weight[:300]).sum(0)
    for datum in range(4):
        count = (drawn[:, None, datum] == x[:, datum]).all((-1, -2)).sum(0)
        assert count.sum() == 300
        assert np.abs(count - 300 * share[:, datum]).max() <= 1


def test_a_datum_without_a_weight_has_no_draws(likelihood):
    log_weight = likelihood.log_weight.copy()
    log_weight[:3, 1] = -np.inf
    spoiled = Likelihood(log_weight, likelihood.reverse_cross_entropy, likelihood.trajectories)
    missing = groups(spoiled.to_arviz())["posterior"]["x"].isnull()
    assert missing.sel(datum=1).all()
    assert not missing.drop_sel(datum=1).any()


@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")
def test_arviz_summarises_and_draws_latent_states(likelihood):
    data = likelihood.to_arviz()
    where = {"datum": [2], "t": [1, 5]}
    x = groups(data)["posterior"]["x"].sel(where)
    kept = groups(data)["posterior"].sel(where)
    kept = xr.DataTree.from_dict({"posterior": kept}) if isinstance(data, xr.DataTree) else kept
    table = az.summary(kept, kind="stats", round_to="none")
    np.testing.assert_allclose(table["mean"], x.mean(("chain", "draw")).values.ravel())
    plt.close("all")
    az.plot_trace(kept)
    lines = [line for axis in plt.gcf().axes for line in axis.get_lines()]
    drawn = {tuple(np.asarray(line.get_ydata())) for line in lines}
    plt.close("all")
    assert {tuple(series) for series in x.values[0].reshape(3, -1).T} <= drawn


def test_netcdf_gives_back_what_was_saved(likelihood, tmp_path):
    path = tmp_path / "likelihood.nc"
    likelihood.save(path, K=K)
    opened = az.from_netcdf(str(path))
    check(opened, likelihood)
    assert [file.name for file in tmp_path.iterdir()] == ["likelihood.nc"]


def test_netcdf_of_discrete_states_and_one_step(tmp_path):
    oracle = BernoulliOracle()
    options = {"params": oracle.params, "key": jax.random.key(0), "num_particles": 40, "num_trajectories": 2}
    likelihood = log_likelihood(oracle.diffusion, np.array([[0, 1, 1], [1, 0, 0]]), **options, progress=False)
    likelihood = Likelihood(likelihood.log_weight, np.zeros((0,)), likelihood.trajectories[:, :, :1])
    likelihood.log_weight[:, 1] = -np.inf
    likelihood.save(tmp_path / "likelihood.nc")
    opened = groups(az.from_netcdf(str(tmp_path / "likelihood.nc")))
    np.testing.assert_array_equal(opened["trajectories"]["x"], likelihood.trajectories)
    assert opened["steps"].sizes == {"t": 0}
    assert opened["likelihood"]["khat"][1] == np.inf


def test_netcdf_opens_without_this_package(likelihood, tmp_path):
    likelihood.save(tmp_path / "likelihood.nc")
    program = """
import sys
sys.modules["dpm_ppl"] = None
import xarray as xr
print(float(xr.open_datatree("likelihood.nc", engine="h5netcdf")["likelihood/estimate"][3]))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(done.stdout) == likelihood.estimate[3]


def test_errors_of_the_caller_are_told(likelihood, tmp_path):
    with pytest.raises(ValueError, match=r"Expected `K` of shape \(6,\), one for each datum; got \(5,\)"):
        likelihood.to_arviz(K=np.zeros(5))
    with pytest.raises(OSError, match="Expected to write .*Make room, or choose another place"):
        likelihood.save(tmp_path / "no such folder" / "likelihood.nc")


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
    az.plot_khat(likelihood.to_elpd(), **options)
    points = [np.asarray(c.get_offsets()) for c in plt.gcf().axes[0].collections if len(c.get_offsets())]
    drawn = np.unique(np.concatenate(points), axis=0)
    plt.close("all")
    finite = np.isfinite(likelihood.khat)
    np.testing.assert_allclose(drawn[np.isfinite(drawn[:, 1]), 1], likelihood.khat[finite])


def test_elpd_prints_sums_of_the_smoothed_estimates(likelihood):
    text = str(likelihood.to_elpd())
    assert f"{likelihood.psis_estimate.sum():.2f}" in text
    assert f"{6**0.5 * likelihood.psis_estimate.std():.2f}" in text


def test_arviz_compares_two_programs_on_the_same_data(likelihood):
    """The sum of paired differences, and its error over pairs."""
    other = Likelihood(likelihood.log_weight - np.array([0.1, 0.3, 0.2, 0.0, 0.5, 0.7]), np.zeros(4))
    exact = {} if az.__version__.startswith("0.") else {"round_to": "none"}
    table = az.compare({"one": likelihood.to_elpd(), "other": other.to_elpd()}, **exact)
    difference = likelihood.psis_estimate - other.psis_estimate
    np.testing.assert_allclose(difference.sum(), 1.8, rtol=1e-12)
    np.testing.assert_allclose(abs(float(table["elpd_diff"]["other"])), 1.8)
    # To within the divisor, 5 or 6, which is theirs to choose.
    np.testing.assert_allclose(float(table["dse"]["other"]), 6**0.5 * difference.std(), rtol=0.1)
    assert list(table.index) == ["one", "other"]


def test_loo_needs_draws_of_the_parameters(likelihood):
    """It says what there is none of; `to_elpd` is what it would return."""
    without = Likelihood(likelihood.log_weight, likelihood.reverse_cross_entropy)
    for record, missing in ((likelihood, "log likelihood not found"), (without, "extract a posterior group")):
        with pytest.raises(TypeError, match=missing):
            az.loo(record.to_arviz())
        with pytest.raises(TypeError, match="ELPD"):
            az.compare({"one": record.to_arviz(), "other": record.to_arviz()})


@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")
def test_arviz_summarises_log_weights(likelihood):
    data = likelihood.to_arviz()
    if isinstance(data, xr.DataTree):
        table = az.summary(data, group="sample_stats", sample_dims="particle", kind="stats", round_to="none")
    else:
        draws = data.sample_stats.rename(particle="draw").expand_dims("chain")
        table = az.summary(draws, kind="stats", round_to="none")
    np.testing.assert_allclose(table["mean"], likelihood.elbo)
