"""Variance of the bound's two forms against T: consistency terms over denoising-matching terms, on one chain.

On a Gaussian, with the exact reverse steps and with spoiled ones. Three estimates for a datum: denoising-matching terms
at independent x^t, which `bound` draws; consistency terms as if drawn independently, as in a loss that draws t; and
those along one trajectory, where neighbours make up for some of each other's noise. Beside them the bound by the
consistency terms as they are often printed, which is none.
Usage: python tests/benchmarks/bound_forms.py [--samples 2000] [--figure bound_forms.png]
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from bound_form_plots import bound_forms_figure
from machine import describe, report

import dpm_ppl as dpm
from dpm_ppl.inference import bound, consistency_bound

NUM_STEPS = (4, 16, 64, 256)
MEAN, VARIANCE = np.array([0.7, -0.4]), np.array([1.7, 0.2])


def program(num_steps: int, error: float):
    """The reverse of the chain on N(MEAN, VARIANCE), its mean of x^0 off by `error` in units of its noise."""

    def diffusion():
        kernel = dpm.GaussianKernel(dpm.schedules.log_snr(num_steps, first=5.0, last=-5.0), (2,))

        def reverse(x, t):
            signal = kernel.alpha_bar[t][..., None]
            mixed = signal * VARIANCE + 1 - signal
            x0 = MEAN + jnp.sqrt(signal) * VARIANCE / mixed * (x - jnp.sqrt(signal) * MEAN)
            x0 = x0 + error * jnp.sqrt(1 - signal) * jnp.sin(3 * x + 1)
            from_data, _, certain = kernel.posterior_coefficients(t)
            variance = certain + from_data**2 * VARIANCE * (1 - signal) / mixed
            return dpm.outputs.data_normal(kernel, x, t, x0, variance=variance)

        return dpm.Diffusion(kernel, reverse)

    return diffusion


def measure(num_steps: int, error: float, num_samples: int) -> dict[str, float]:
    """Variances of the three estimates, means over data, in nats^2; and the bounds, with standard errors."""
    x0 = dist.Normal(MEAN, np.sqrt(VARIANCE)).to_event(1).sample(jax.random.key(1), (64,))
    ours = consistency_bound(program(num_steps, error), x0, params={}, key=jax.random.key(2), num_samples=num_samples)
    theirs = bound(program(num_steps, error), x0, params={}, key=jax.random.key(3), num_samples=num_samples)
    printed = ours.elbo - jnp.sum(ours.as_printed - ours.consistency, -1)
    difference = np.asarray(ours.elbo - theirs.elbo)
    result = {
        "matching_variance": theirs.elbo_variance.mean(),
        "consistency_variance": ours.consistency_variance.sum(-1).mean(),
        "along_variance": ours.elbo_variance.mean(),
        "matching_elbo": theirs.elbo.mean(),
        "consistency_elbo": ours.elbo.mean(),
        "printed": printed.mean(),
        "difference_in_se": difference.mean() / (difference.std() / np.sqrt(len(difference))),
    }
    return {name: float(value) for name, value in result.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--figure", default="bound_forms.png")
    options = parser.parse_args()
    print(describe())
    print(f"{'reverse':<8}{'T':>5}{'matching':>10}{'consist.':>10}{'ratio':>8}{'along':>9}{'ratio':>8}", end="")
    print(f"{'ELBO':>9}{'consist.':>10}{'diff/se':>9}{'as printed':>12}")
    results: dict[str, list[dict[str, float]]] = {"exact": [], "spoiled": []}
    for name, error in (("exact", 0.0), ("spoiled", 0.3)):
        for num_steps in NUM_STEPS:
            one = measure(num_steps, error, options.samples)
            results[name].append(one)
            least, terms, along = (one[f"{form}_variance"] for form in ("matching", "consistency", "along"))
            print(f"{name:<8}{num_steps:>5}{least:>10.4f}{terms:>10.4f}{terms / least:>8.2f}{along:>9.4f}", end="")
            print(f"{along / least:>8.2f}{one['matching_elbo']:>9.3f}{one['consistency_elbo']:>10.3f}", end="")
            print(f"{one['difference_in_se']:>9.2f}{one['printed']:>12.3f}")
    forms = {
        "denoising matching": "matching_variance",
        "consistency": "consistency_variance",
        "consistency, one trajectory": "along_variance",
    }
    bounds = {"both forms": "matching_elbo", "consistency as often printed": "printed"}
    variance_lines, bound_lines = (
        {name: {form: [row[key] for row in rows] for form, key in wanted.items()} for name, rows in results.items()}
        for wanted in (forms, bounds)
    )
    title = "Two forms of one bound: Gaussian data, reverse steps exact and spoiled"
    figure = bound_forms_figure(NUM_STEPS, variance_lines, bound_lines, title=title)
    figure.savefig(options.figure, dpi=120)
    report(results)
