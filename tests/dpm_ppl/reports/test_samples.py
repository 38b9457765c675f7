"""Samples of a fitted program, and their comparison with data."""

import math
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from dpm_ppl import inference
from dpm_ppl.commands import find
from dpm_ppl.commands.run import fitted_params
from dpm_ppl.inference import discriminate, parzen
from dpm_ppl.reports import samples as samples_module
from dpm_ppl.reports.samples import parzen_figures
from tests.command_line import dpm
from tests.dpm_ppl.reports.test_objective import GAIN, NOISE, OFFSET, read


def test_samples_are_those_of_the_model(latent):
    assert dpm("sample", latent[0], "-n", 4000, "--overwrite").exit_code == 0
    x0 = np.load(latent[0] / "samples.npz")["x0"]
    variance = GAIN**2 + NOISE**2
    assert x0.shape == (4000, 2)
    assert np.all(np.abs(x0.mean(0) - OFFSET) < 4 * np.sqrt(variance / 4000))
    assert np.all(np.abs(x0.var(0) / variance - 1) < 4 * np.sqrt(2 / 4000))
    product = GAIN.prod()
    assert abs(np.cov(x0.T)[0, 1] - product) < 4 * np.sqrt((variance.prod() + product**2) / 4000)
    dpm("sample", latent[0], "-n", 5, "--overwrite")
    np.testing.assert_array_equal(np.load(latent[0] / "samples.npz")["x0"], x0[:5])


def test_discriminator_is_asked_for_and_reported(gan, monkeypatch):
    monkeypatch.setattr(inference, "discriminate", partial(discriminate, num_iterations=600, width=64))
    done = dpm("evaluate", gan[0], "--discriminator", "--seed", 5, "--overwrite")
    assert done.exit_code == 0, done.output
    figures = read(gan[0] / "evaluation.json")
    # The generator is about N(0.3, 1), the data are not: JS by quadrature, with the shift where the fit left it.
    program = find.load(gan[0].parent / "mine.py")
    shift = np.asarray(fitted_params(gan[0], program, program.data())["shift"])
    grid = np.stack(np.meshgrid(*[np.linspace(-8, 8, 801)] * 2), -1)
    p = np.asarray(jnp.exp(program.data().log_prob(grid)))
    q = np.asarray(jnp.exp(dist.Normal(shift, 1.0).to_event(1).log_prob(grid)))
    terms = [np.where(f > 0, f * np.log2(np.where(f > 0, f, 1) / ((p + q) / 2 + 1e-300)), 0) for f in (p, q)]
    exact = 0.5 * sum(terms).sum() * 0.02**2
    assert -0.02 - 3 * figures["js_bits_se"] < figures["js_bits"] - exact < 3 * figures["js_bits_se"]
    assert figures["coverage"] < figures["coverage_expected"]
    assert figures["p_value"] < 1e-6
    for words in (f"{figures['js_bits']:.4f} ± {figures['js_bits_se']:.4f}", "coverage of the data", "p = "):
        assert words in done.stdout


# Two pixels on a scale, and a normal model of what the scale makes of them: all moments are known.
PIXELS = '''"""A normal law of two pixels."""
import jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist, optax
from dpm_ppl.datasets import Dequantised, Scale

recipe = {"num_iterations": 2, "batch_size": 4, "optimizer": optax.sgd(0.0)}
IMAGES = np.random.default_rng(0).integers([20, 60], [230, 160], (2000, 2)).astype(np.uint8)
data = Dequantised(IMAGES, Scale(shift=100.5, width=40.0))

def model(x0=None, size=1):
    mean = numpyro.param("mean", jnp.array([0.5, 0.2]))
    with numpyro.plate("data", size if x0 is None else len(x0)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        return numpyro.sample("x", dist.Normal(mean, jnp.array([2.5, 1.5])).to_event(1), obs=x0)

def guide(x0):
    with numpyro.plate("data", len(x0)):
        numpyro.sample("z", dist.Normal(0.0, 1.0))
'''
IMAGES = np.random.default_rng(0).integers([20, 60], [230, 160], (2000, 2))


def expected_nats(mean, spread, *, of_mean, of_spread):
    """E log N(x; mean, spread^2) over x of that mean and that spread; coordinates are independent."""
    square = (np.square(of_spread) + np.square(np.subtract(of_mean, mean))) / np.square(spread)
    return -0.5 * np.sum(square + np.log(2 * np.pi * np.square(spread)))


def test_windows_of_pixels_are_on_the_scale_of_the_literature(make_run, tmp_path):
    run_dir, _ = make_run(PIXELS)
    done = dpm("evaluate", run_dir, "--particles", 2, "--num-data", 5, "--parzen", 4000, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    figures = read(tmp_path / "evaluation.json")
    assert (figures["parzen_num_samples"], figures["parzen_num_data"]) == (4000, 10_000)
    expected = expected_nats(
        (np.array([0.5, 0.2]) * 40 + 100.5) / 256,
        np.hypot(np.array([2.5, 1.5]) * 40 / 256, figures["parzen_bandwidth"]),
        of_mean=(IMAGES.mean(0) + 0.5) / 256,
        of_spread=np.sqrt(IMAGES.var(0) + 1 / 12) / 256,
    )
    # That there are 4,000 samples lowers it, as the mean of a logarithm: by 0.02 as measured; the wrong unit is 1.9.
    assert abs(figures["parzen_nats"] - expected) < 0.05
    assert figures["parzen_bits"] == pytest.approx(figures["parzen_nats"] / math.log(2))
    assert 0.01 < figures["parzen_bandwidth"] < 0.1
    for words in (
        f"Parzen, 4,000 samples {figures['parzen_bits']:>12.4f} ± {figures['parzen_bits_se']:.4f}",
        f"{figures['parzen_bandwidth']:.4g}; {figures['parzen_nats']:.4f} ± {figures['parzen_nats_se']:.4f} nats",
        "unit: pixels 0 to 1",
        "\n  Parzen: biased, and ranks models wrongly (Theis et al. 2016); for comparison with old tables only.\n",
    ):
        assert words in done.stdout


def test_windows_are_asked_for_and_reported_where_there_is_no_likelihood(gan, tmp_path):
    done = dpm("evaluate", gan[0], "--parzen", 500, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    figures = read(tmp_path / "evaluation.json")
    assert "has no likelihood" in done.stdout
    assert f"Parzen, 500 samples {figures['parzen_bits']:>14.4f} ± " in done.stdout
    assert "unit: the data's own" in done.stdout
    # No density scores more than the data's own, and a normal that is far too wide scores less than windows do.
    spread = {"of_mean": [0.7, -0.2], "of_spread": [1.5, 0.4]}
    best = expected_nats([0.7, -0.2], [1.5, 0.4], **spread)
    assert expected_nats(0.3, 3.0, **spread) < figures["parzen_nats"] < best


def beside(data):
    """A program that draws a datum about what it is given beside it."""

    def model(c, x0=None):
        with numpyro.plate("data", len(c)):
            return numpyro.sample("x", dist.Normal(c, 1.0), obs=x0)

    return SimpleNamespace(model=model, guide=lambda c, x0: None, data=lambda: data)


def test_samples_under_windows_are_beside_contexts_of_the_data():
    rng = np.random.default_rng(0)
    c = np.where(rng.random(8000) < 0.2, 20.0, 0.0)
    data = {"c": c, "x0": c + rng.normal(size=len(c))}
    figures = parzen_figures(beside(data), {}, data, num_samples=6000, key=jax.random.key(0))
    assert (figures["parzen_num_data"], figures["parzen_unit"]) == (7000, "the data's own")
    entropies = 0.5 * math.log(2 * math.pi * math.e) - 0.2 * math.log(0.2) - 0.8 * math.log(0.8)
    assert abs(figures["parzen_nats"] + entropies) < 4 * figures["parzen_nats_se"] + 0.02
    few = {name: leaf[:100] for name, leaf in data.items()}
    assert parzen_figures(beside(few), {}, few, num_samples=50, key=jax.random.key(0))["parzen_num_data"] == 75
    few = {name: leaf[:3] for name, leaf in data.items()}
    with pytest.raises(ValueError, match="at least 4 data for Parzen windows, some to choose the width; got 3"):
        parzen_figures(beside(few), {}, few, num_samples=50, key=jax.random.key(0))


def test_data_that_choose_the_width_are_not_scored(monkeypatch):
    """Every datum is in one of the two, of an array; of a distribution all are drawn anew."""
    seen = []
    monkeypatch.setattr(samples_module, "parzen", lambda *args: seen.append(args) or parzen(*args))
    array = np.sort(np.random.default_rng(0).exponential(size=(40, 2)), 0)
    normal = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    program = SimpleNamespace(model=lambda x0=None, size=1: numpyro.sample("x", normal.expand([size])), guide=None)
    for data, sizes in ((array, (30, 10)), (normal, (10_000, 1000))):
        parzen_figures(program, {}, data, num_samples=20, key=jax.random.key(1))
        _, scored, chosen = seen.pop()
        assert (len(scored), len(chosen)) == sizes
        assert not set(map(tuple, np.asarray(scored))) & set(map(tuple, np.asarray(chosen)))
