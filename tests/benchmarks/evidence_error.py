"""Whether `log_evidence_se` is right: an image of 5 x 5 known at its rim, by many keys: errors told beside the spread.

The data are a normal field and the reverse steps Bayes' rule for it, so that the evidence is known. The root mean
square of the errors told should be within 0.8 to 1.25 of the spread.
Usage: python tests/benchmarks/evidence_error.py [--length 2] [--steps 20] [--particles 1000] [--runs 60]
"""

import argparse
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from machine import describe, report
from scipy.stats import multivariate_normal

import dpm_ppl as dpm
from dpm_ppl.inference import smc

SIDE = 5
PLACES = np.array(list(product(range(SIDE), repeat=2)))
FAR = np.linalg.norm(PLACES[:, None] - PLACES, axis=-1)
RIM = ((PLACES == 0) | (PLACES == SIDE - 1)).any(-1)


def bayes(kernel, cov):
    """Gains and factors of the reverse steps t = 2..T for data N(0, cov), and the covariance of what they generate."""
    beta, signal = np.asarray(kernel.beta), np.asarray(kernel.alpha_bar)
    gains, factors, made = [], [], np.eye(SIDE**2)
    for t in range(kernel.num_steps, 1, -1):
        keep, before = np.sqrt(1 - beta[t - 1]), signal[t - 1] * cov + (1 - signal[t - 1]) * np.eye(SIDE**2)
        gain = keep * before @ np.linalg.inv(keep**2 * before + beta[t - 1] * np.eye(SIDE**2))
        rest = before - keep * gain @ before
        gains.append(gain)
        factors.append(np.linalg.cholesky(rest))
        made = gain @ made @ gain.T + rest
    return np.stack(gains[::-1]), np.stack(factors[::-1]), (1 - beta[0]) * made + beta[0] * np.eye(SIDE**2)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--particles", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--length", type=float, default=2.0, help="how far apart pixels are alike")
    options = parser.parse_args()
    print(describe())
    kernel = dpm.GaussianKernel(dpm.schedules.log_snr(options.steps, first=6.0, last=-6.0), (SIDE**2,))
    *steps, made = bayes(kernel, np.exp(-FAR / options.length))
    gains, factors = map(jnp.asarray, steps)

    def known(x0):
        def reverse(x, t):
            return dpm.FullNormal(jnp.einsum("...ij,...j->...i", gains[t - 2], x), scale_tril=factors[t - 2])

        x = dpm.reverse_chain("x", dpm.Diffusion(kernel, reverse))
        numpyro.sample("y", dist.Delta(x).mask(jnp.asarray(RIM)).to_event(1), obs=x0)

    x0 = np.random.default_rng(0).multivariate_normal(np.zeros(SIDE**2), made)
    truth = multivariate_normal(cov=made[np.ix_(RIM, RIM)]).logpdf(x0[RIM])
    run = smc(known, "x", params={}, num_particles=options.particles)

    def one(key):
        p = run(key, jnp.asarray(x0))
        return p.log_evidence, p.log_evidence_se, p.ess.min(), p.num_ancestors[0]

    keys = jax.random.split(jax.random.key(0), options.runs)
    found, told, ess, ancestors = map(np.asarray, jax.jit(lambda keys: jax.lax.map(one, keys))(keys))
    row = {
        "spread": np.std(found, ddof=1),
        "error_told": np.sqrt(np.nanmean(told**2)),
        "beyond_two_errors": np.mean(np.abs(found - truth) > 2 * told),
        "zero_or_unknown": np.mean(np.isnan(told) | (told == 0)),
        "mean_off": np.mean(found) - truth,
        "least_ess": np.median(ess),
        "ancestors": np.median(ancestors),
    }
    row["error_told_over_spread"] = row["error_told"] / row["spread"]
    report({name: round(float(value), 4) for name, value in row.items()})


if __name__ == "__main__":
    main()
