"""Laws that every program in `models/` keeps after a short fit: the bound rises, samples and estimates follow."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

from dpm_ppl import schedules
from dpm_ppl.inference import bound, fit, sandwich
from dpm_ppl.inference.likelihoods.likelihood import log_mean_exp
from dpm_ppl.reports.objective import has_likelihood
from tests.compiling import optimised
from tests.models.cases import flat, mean_and_error

MOST_STEPS = 100  # these laws hold at any T; `test_models.py` takes the programs as they stand, of up to 2000

# Where a chain is a latent's prior, guide and model reach x^0 from opposite ends, and no KL is taken of it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Failed to verify mean field restriction:UserWarning"),
]


def test_fit_raises_the_bound(scored):
    gain, error = mean_and_error(scored.gain)
    assert gain > 3 * error


def test_samples_of_a_fit_are_nearer_to_the_data(case):
    """By the distance to the nearest of 2000 data, than samples of the program before its fit."""
    if has_likelihood(case.program, case.batch(16)) and np.mean(case.gain) < 1:
        pytest.skip("so short a fit raises the bound by less than a nat, too little to see in samples")
    data = flat(case.data(2000, seed=4))
    distances = []
    for params in (case.start, case.fitted):
        samples = flat(case.generate(params))
        distances.append(mean_and_error([np.linalg.norm(data - x, axis=-1).min() for x in samples]))
    (before, before_error), (after, after_error) = distances
    assert after < before - 4 * math.hypot(before_error, after_error)


def test_mean_log_weight_is_the_bound(chain):
    """E log w = ELBO, datum by datum: whole trajectories on one side, KLs at independent steps on the other."""
    batch, given = chain.batch(40, seed=3), {"params": chain.fitted, **chain.beside(40, seed=3)}
    terms = bound(chain.parts.definition, chain.parts.x0(batch), key=jax.random.key(7), num_samples=2, **given)
    mean, error = mean_and_error(chain.log_weights(chain.fitted, batch, 2).mean(0) - np.asarray(terms.elbo))
    assert abs(mean) < 4 * error + 1e-9


def test_estimates_lie_between_the_bounds(scored):
    """Bound <= estimate on independent draws; both at most the data's own log density, where it is known."""
    batch = scored.batch(30, seed=8)
    log_weight = scored.log_weights(scored.fitted, batch, 10)
    elbo, estimate = log_weight[:5].mean(0), log_mean_exp(log_weight[5:])
    mean, error = mean_and_error(estimate - elbo)
    assert mean > -3 * error
    limit = density(scored.source, batch)
    if limit is not None:
        mean, error = mean_and_error(limit - estimate)
        assert mean > -3 * error
    if scored.parts.definition is not None:
        given = {"params": scored.fitted, "num_data": 30, "num_particles": 5, "progress": False}
        given |= scored.beside(30, seed=8)
        with scored.compiling():
            gap, error = mean_and_error(sandwich(scored.parts.definition, key=jax.random.key(9), **given).gap)
        assert gap > -3 * error


def density(source, x0):
    """Log density of data, nats; None where it is not known."""
    if not isinstance(source, dist.Distribution):
        return None
    try:
        return np.asarray(source.log_prob(x0))
    except NotImplementedError:
        return None


@optimised()
def test_learned_schedule_beats_the_same_schedule_kept_fixed(monkeypatch):
    program = importlib.import_module("dpm_ppl.models.swiss_roll_2015")
    learned = schedules.learned

    def fitted():
        return fit(
            program.model,
            program.guide,
            program.data(),
            key=jax.random.key(0),
            num_iterations=6000,
            batch_size=64,
            num_steps_sampled=None,
            learning_rate=2e-2,
            progress=False,
        ).params

    def kept_fixed(*args, **kwargs):
        return jax.lax.stop_gradient(learned(*args, **kwargs))

    params = {"learned": fitted()}
    monkeypatch.setattr(schedules, "learned", kept_fixed)
    params["fixed"] = fitted()
    x0 = program.data().sample(jax.random.key(8), (2000,))
    with numpyro.handlers.seed(rng_seed=0):
        start = program.diffusion().kernel.beta
    elbo, beta = {}, {}
    for name, values in params.items():
        elbo[name] = bound(program.diffusion, x0, params=values, key=jax.random.key(9), num_samples=1).elbo
        with handlers.substitute(data=values), handlers.seed(rng_seed=0):
            beta[name] = np.asarray(program.diffusion().kernel.beta)
    gain = np.asarray(elbo["learned"] - elbo["fixed"])
    assert gain.mean() > 5 * gain.std() / np.sqrt(len(gain))
    np.testing.assert_allclose(beta["fixed"], start, rtol=1e-14)  # two programs may round it differently
    assert beta["learned"][0] == start[0]
    assert np.abs(np.log(beta["learned"][1:] / start[1:])).max() > 0.1
    assert jnp.all((beta["learned"] > 0) & (beta["learned"] < 1))
