"""Posteriors in ArviZ's format and on disk, by hand-made weights; it holds with ArviZ 0.23 and 1.x."""

import math
import os

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from dpm_ppl.inference.posteriors.posterior import Posterior

NUM, NUM_STEPS = 400, 5
RNG = np.random.default_rng(0)


def made(num_particles: int = NUM, *, batch: tuple[int, ...] = (), scale: float = 1.0, latent: str = "noise/level"):
    """A posterior with the weights that importance sampling from N(0, 1) has for N(scale, 1), and made-up steps."""
    shape = (*batch, num_particles)
    x = RNG.normal(size=(*shape, 2))
    log_weight = scale * x[..., 0] + 3.0
    latents = {latent: jnp.asarray(x[..., 0] - 1), "kind": jnp.asarray((x[..., 1] > 0)[..., None].repeat(3, -1))}
    weight = np.exp(log_weight) / np.exp(log_weight).sum(-1, keepdims=True)
    ess = np.broadcast_to(1 / (weight**2).sum(-1)[..., None], (*batch, NUM_STEPS + 1))
    return Posterior(
        samples=jnp.asarray(x),
        log_weight=jnp.asarray(log_weight),
        log_evidence=jnp.asarray(RNG.normal(size=batch)),
        log_evidence_se=jnp.asarray(RNG.random(batch)),
        latents=latents,
        ess=jnp.asarray(ess),
        tail=jnp.asarray(-np.sort(-RNG.normal(size=(*batch, NUM_STEPS + 1, num_particles)), -1)[..., :61]),
        num_ancestors=jnp.asarray(RNG.integers(1, num_particles, (*batch, NUM_STEPS + 1))),
        num_nan=jnp.zeros((*batch, NUM_STEPS + 1), int),
        resampled=jnp.asarray(RNG.random((*batch, NUM_STEPS + 1)) < 0.5),
        acceptance={"last": jnp.asarray(RNG.random(batch))},
        twist=jnp.zeros(batch, int),
    )


def groups(data) -> dict[str, xr.Dataset]:
    if isinstance(data, xr.DataTree):
        return {name: node.to_dataset() for name, node in data.children.items()}
    return {name: data[name] for name in data.groups()}


def test_draws_have_the_moments_of_the_weighted_particles():
    posterior = made()
    x = groups(posterior.to_arviz(num=4 * NUM))["posterior"]["x"]
    assert x.dims == ("chain", "draw", "event_0")
    mean, covariance = np.asarray(posterior.mean()), np.asarray(posterior.covariance())
    # Systematic: every particle is drawn within one of its expected number of times.
    counts = (x.values[0, :, None] == np.asarray(posterior.samples)).all(-1).sum(0)
    assert np.abs(counts - 4 * NUM * np.asarray(posterior.weight)).max() < 1
    assert mean[0] > 0.5
    np.testing.assert_allclose(x.mean(("chain", "draw")), mean, atol=0.05)
    np.testing.assert_allclose(np.cov(x.values[0].T, ddof=0), covariance, atol=0.1)


def test_a_latent_variable_stays_with_its_particle():
    found = groups(made().to_arviz())
    for group, first in (("posterior", "draw"), ("particles", "particle")):
        x, level, kind = (found[group][name] for name in ("x", "noise.level", "kind"))
        np.testing.assert_array_equal(level, x.isel(event_0=0) - 1)
        np.testing.assert_array_equal(kind.isel(kind_0=2), x.isel(event_0=1) > 0)
        assert kind.dims[-2:] == (first, "kind_0")


def test_arviz_counts_the_copies_of_a_particle():
    # Copies stand together, so that its size, by autocorrelation, is near that of the weights; shuffled it is 2000.
    posterior = made(2000, scale=1.5)
    weight, off = np.asarray(posterior.weight)[:, None], np.asarray(posterior.samples - posterior.mean())
    expected = (weight * off**2).sum(0) / (weight**2 * off**2).sum(0)  # of the mean of each coordinate
    assert (expected < 500).all()
    found = az.summary(groups(posterior.to_arviz())["posterior"][["x"]])["ess_bulk"].to_numpy(float)
    assert (np.abs(np.log(found / expected)) < np.log(2)).all()


def test_every_number_is_there_with_its_units():
    posterior = made()
    found = groups(posterior.to_arviz())
    assert set(found) == {"posterior", "sample_stats", "particles", "steps", "evidence"}
    for group in ("sample_stats", "particles"):
        np.testing.assert_array_equal(found[group]["log_weight"], posterior.log_weight)
    np.testing.assert_array_equal(found["particles"]["x"], posterior.samples)
    steps = found["steps"]
    assert list(steps["t"].values) == list(range(NUM_STEPS + 1))
    for name in ("ess", "khat", "num_ancestors", "num_nan", "resampled"):
        np.testing.assert_array_equal(steps[name], getattr(posterior, name))
    assert found["sample_stats"]["acceptance_rate_last"].item() == posterior.acceptance["last"]
    for name in ("log_evidence", "log_evidence_se"):
        assert found["evidence"][name].item() == getattr(posterior, name)
        assert found["evidence"][name].attrs["units"] == "nats"
    assert all(v.attrs["units"] and v.attrs["long_name"] for data in found.values() for v in data.data_vars.values())


def test_a_batch_has_a_dimension_of_its_own():
    posterior, y = made(batch=(3,)), np.arange(6.0).reshape(3, 2)
    found = groups(posterior.to_arviz(key=jax.random.key(5), num=50, observed={"y": y}))
    assert found["posterior"]["x"].dims == ("chain", "draw", "datum", "event_0")
    assert found["posterior"].sizes == {"chain": 1, "draw": 50, "datum": 3, "event_0": 2, "kind_0": 3}
    for datum in range(3):
        part = jax.tree.map(lambda leaf, datum=datum: leaf[datum], posterior)
        alone = groups(part.to_arviz())
        for group in ("particles", "steps", "evidence"):
            xr.testing.assert_identical(found[group].sel(datum=datum, drop=True), alone[group])
        drawn = found["posterior"]["x"].sel(datum=datum).values[0]
        assert (drawn[:, None] == np.asarray(part.samples)).all(-1).any(-1).all()
        np.testing.assert_array_equal(found["observed_data"]["y"].sel(datum=datum), y[datum])


@pytest.mark.parametrize("batch", [(3,), (3, 2)], ids=["of one datum", "of two data"])
def test_runs_are_chains(batch):
    posterior, y = made(batch=batch), np.arange(2.0 * math.prod(batch[1:])).reshape(*batch[1:], 2)
    found = groups(posterior.to_arviz(key=jax.random.key(5), observed={"y": y}, chains=True))
    assert found["posterior"]["x"].dims == ("chain", "draw", *["datum"] * (len(batch) - 1), "event_0")
    np.testing.assert_array_equal(found["observed_data"]["y"], y)
    for run in range(3):
        part = jax.tree.map(lambda leaf, run=run: leaf[run], posterior)
        alone = groups(part.to_arviz())
        for group in ("sample_stats", "particles", "steps", "evidence"):
            xr.testing.assert_identical(found[group].sel(chain=run, drop=True), alone[group])
        x, level = (found["posterior"][name].sel(chain=run) for name in ("x", "noise.level"))
        np.testing.assert_array_equal(level, x.isel(event_0=0) - 1)
        assert np.isin(x, alone["particles"]["x"]).all()
        count = (x.values[:, None] == np.asarray(part.samples).swapaxes(0, -2)).all(-1).sum(0)
        assert np.abs(count - NUM * np.asarray(part.weight).T).max() < 1


def test_arviz_sets_runs_against_each_other():
    posterior = made(1000, batch=(4,), scale=0.3)
    agree = az.summary(posterior.to_arviz(chains=True), round_to="none")["r_hat"].astype(float)
    apart = Posterior(**{**vars(posterior), "samples": posterior.samples.at[2].add(1.0)})
    differ = az.summary(apart.to_arviz(chains=True), round_to="none")["r_hat"].astype(float)
    assert (agree < 1.02).all()
    assert (differ[["x[0]", "x[1]"]] > 1.05).all()
    assert (differ.drop(["x[0]", "x[1]"]) < 1.02).all()


def test_latent_variables_may_be_called_as_dimensions_and_as_each_other(tmp_path):
    """None is lost, and each says the name that it has in the program."""
    names = ["draw", "chain", "particle", "datum", "t", "x", "log_weight", "event", "sigma_0", "sigma", "a/b", "a.b"]
    x = RNG.normal(size=(len(names), 40, 3))
    values = {n: jnp.asarray(v[:, 0] if n in ("sigma_0", "draw") else v) for n, v in zip(names, x, strict=True)}
    posterior = Posterior(**{**vars(made(40)), "latents": values})
    renamed = r"other names in it: draw is draw_, chain is chain_, .*event is event_, sigma is sigma_, a\.b is a\.b_\.$"
    with pytest.warns(UserWarning, match=renamed) as told:
        posterior.save(tmp_path / "posterior.nc")
    with pytest.warns(UserWarning, match=renamed) as told_too:
        direct = posterior.to_arviz()
    assert [warning.filename for warning in (*told, *told_too)] == [__file__, __file__]
    for data in (direct, az.from_netcdf(str(tmp_path / "posterior.nc"))):
        found = groups(data)
        for group in ("posterior", "particles"):
            said = {v.attrs["long_name"].removeprefix("the latent variable "): v for v in found[group].values()}
            assert set(names) < set(said)
            assert all(said[name].sizes.get(f"{said[name].name}_0", 1) in (1, 3) for name in names)
        for name in names:
            np.testing.assert_array_equal(said[name], values[name])
        assert found["particles"]["sigma_0"].dims == ("particle",)
        assert (said["a/b"].name, said["a.b"].name, said["draw"].name) == ("a.b", "a.b_", "draw_")


@pytest.mark.parametrize("batch", [(), (2,)], ids=["one", "two"])
def test_netcdf_gives_back_what_was_saved(batch, tmp_path):
    posterior, y = made(batch=batch), np.ones((*batch, 2), bool)
    beside = {
        "observed": {"y": y},
        "context": {"label": RNG.integers(0, 9, batch), "datum": RNG.normal(size=(*batch, 3, 4))},
    }
    assert posterior.save(tmp_path / "posterior.nc", **beside) == tmp_path / "posterior.nc"
    opened, expected = az.from_netcdf(str(tmp_path / "posterior.nc")), posterior.to_arviz(**beside)
    np.testing.assert_array_equal(groups(opened)["constant_data"]["datum_"], beside["context"]["datum"])
    assert (
        opened.attrs["title"] == expected.attrs["title"] == "Posterior of a diffusion model by sequential Monte Carlo"
    )
    assert set(groups(opened)) == set(groups(expected))
    for name, data in groups(expected).items():
        xr.testing.assert_identical(groups(opened)[name].load(), data)
    assert groups(opened)["steps"]["resampled"].dtype == bool


def test_a_write_that_fails_leaves_no_half_file(tmp_path, monkeypatch):
    path = tmp_path / "posterior.nc"
    path.write_bytes(b"of before")

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"Expected to write .*No space left"):
        made().save(path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {path.name: b"of before"}


def test_errors_of_the_caller_are_told():
    with pytest.raises(ValueError, match=r"one posterior, or a batch of one axis; got one of shape \(2, 2\)"):
        made(30, batch=(2, 2)).to_arviz()
    with pytest.raises(ValueError, match=r"two axes, runs and data; got one of shape \(2, 2, 2\)"):
        made(30, batch=(2, 2, 2)).to_arviz(chains=True)
    with pytest.raises(ValueError, match="to be chains; got one posterior"):
        made(30).to_arviz(chains=True)
    with pytest.raises(ValueError, match=r"'y', of shape \(3, 2\); got \(2,\)"):
        made(batch=(3,)).to_arviz(observed={"y": np.zeros(2)})
    with pytest.raises(ValueError, match=r"a context 'c' for each of \(3,\) data; got shape \(2, 3\)"):
        made(batch=(3,)).to_arviz(context={"c": np.zeros((2, 3))})
    with pytest.raises(ValueError, match="`num` to be at least 1; got 0"):
        made().to_arviz(num=0)
