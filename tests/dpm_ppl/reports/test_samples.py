"""Samples of a fitted program, and their comparison with data."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from dpm_ppl import inference
from dpm_ppl.commands import find
from dpm_ppl.commands.run import fitted_params
from dpm_ppl.inference import discriminate
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
