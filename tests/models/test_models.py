"""Laws that every program in `models/` keeps as it stands; those of a fitted one are in `test_fitted_models.py`."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import TraceMeanField_ELBO

import dpm_ppl as dpm
from dpm_ppl.commands import find
from dpm_ppl.kernels.kernel import has_closed_forms
from dpm_ppl.programs import called
from tests.models.cases import PROGRAMS, flat, mean_and_error

# Where a chain is a latent's prior, guide and model reach x^0 from opposite ends, and no KL is taken of it.
pytestmark = pytest.mark.filterwarnings("ignore:Failed to verify mean field restriction:UserWarning")


def test_fits_on_one_page(program):
    assert len(program.path.read_text().splitlines()) <= 80
    assert program.summary.endswith(".")


def test_most_fit_on_a_screen():
    lengths = [len(find.load(name).path.read_text().splitlines()) for name in PROGRAMS]
    assert np.median(lengths) <= 55


def test_generates_what_it_is_fitted_to(case):
    generated = case.generate(case.moved)
    assert generated.shape == (case.num_samples, *case.data(2).shape[1:])
    if isinstance(case.source, dist.Distribution):
        assert jnp.all(case.source.support(generated))


def test_step_keeps_pi(case):
    """Moments of x ~ pi do not change in a step; a learned kernel, with no closed form to use it, need not keep it."""
    kernels = [d.kernel for d, _ in case.chains if hasattr(d.kernel, "marginal") or d.has_fixed_last_step]
    if not kernels:
        pytest.skip("no chain, or one whose bound does not need it")
    for kernel in kernels:
        for t in {1, 2, (kernel.num_steps + 1) // 2, kernel.num_steps} & set(range(1, kernel.num_steps + 1)):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(2), t))
            before = kernel.stationary().sample(keys[0], (20_000,))
            after = kernel.step(before, jnp.asarray(t)).sample(keys[1])
            for moment in (lambda x: x, lambda x: x**2):
                mean, error = mean_and_error(flat(moment(after) - moment(before)).mean(1))
                assert abs(mean) <= 4.5 * error, f"t = {t}"


def test_closed_forms_are_those_of_the_steps(case):
    """q(x^t|x^(t-1)) q(x^(t-1)|x^0) = q(x^(t-1)|x^t,x^0) q(x^t|x^0): Bayes' rule and, integrated, the composed step."""
    chains = [(diffusion.kernel, x0) for diffusion, x0 in case.chains if has_closed_forms(diffusion.kernel)]
    if not chains:
        pytest.skip("no chain with closed forms")
    for kernel, x0 in chains:

        @jax.jit
        def sides(x0, t, key, kernel=kernel):
            keys = jax.random.split(key)
            before = kernel.marginal(x0, t - 1).sample(keys[0])
            xt = kernel.step(before, t).sample(keys[1])
            joint = kernel.step(before, t).log_prob(xt) + kernel.marginal(x0, t - 1).log_prob(before)
            return joint, kernel.posterior(x0, xt, t).log_prob(before) + kernel.marginal(x0, t).log_prob(xt)

        for t in {2, 3, (kernel.num_steps + 1) // 2, kernel.num_steps} & set(range(2, kernel.num_steps + 1)):
            np.testing.assert_allclose(*sides(x0, jnp.asarray(t), jax.random.key(t)), rtol=1e-7, atol=1e-7)
        x1 = kernel.step(x0, jnp.asarray(1)).sample(jax.random.key(3))
        one = [kernel.marginal(x0, jnp.asarray(1)).log_prob(x1), kernel.step(x0, jnp.asarray(1)).log_prob(x1)]
        np.testing.assert_allclose(*one, rtol=1e-9, atol=1e-9)


def test_subsampled_bound_is_unbiased(scored):
    if not scored.chains:
        pytest.skip("no chain")
    most = min(diffusion.num_steps for diffusion, _ in scored.chains) - 1
    batch = scored.batch(16)
    draws = []
    # Against many more steps; of a chain so short that there are no more, against whole trajectories.
    for size, num, plain in ((min(8, most), 60, False), (min(100, most), 20, most <= 8)):
        loss = scored.losses(batch, size=size, plain=plain)
        draws.append(mean_and_error([loss(scored.moved, key) for key in jax.random.split(jax.random.key(2), num)]))
    (some, some_error), (more, more_error) = draws
    error = math.hypot(some_error, more_error)
    assert abs(some - more) < 3.5 * error
    assert error < 0.2 * abs(more)


def test_gradient_reaches_every_parameter(case):
    most = min([diffusion.num_steps - 1 for diffusion, _ in case.chains], default=None)
    size = None if most is None else min(100, most)
    loss = case.losses(case.batch(64), size=size, loss=case.options.get("loss"))
    gradient = jax.grad(loss)(case.moved, jax.random.key(2))
    assert jax.tree.leaves(gradient)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all()
        # A readout per step sees only the steps that were drawn.
        assert np.mean(np.asarray(leaf) != 0) > 0.01, jax.tree_util.keystr(path)


def test_analytic_divergences_are_hit(chain):
    """At the same points x^t, steps and x^1, draws of x^(t-1) do not matter: no KL falls back to log q - log p."""
    ((diffusion, _),) = chain.chains
    if not has_closed_forms(diffusion.kernel):
        pytest.skip("no closed forms")
    batch, size = chain.batch(4), min(8, diffusion.num_steps - 1)
    programs = (dpm.subsample_steps(f, size=size) for f in (chain.program.model, chain.program.guide))
    model, guide = (partial(called, program) for program in programs)

    @jax.jit
    def loss(key):
        with handlers.block(), handlers.trace() as points, handlers.seed(rng_seed=0):
            handlers.substitute(guide, data=chain.moved)(batch)
        kept = {name: points[name]["value"] for name in points if name.endswith(("_first", "_at", "_offset"))}
        return TraceMeanField_ELBO().loss(key, chain.moved, model, handlers.substitute(guide, data=kept), batch)

    assert np.std([float(loss(key)) for key in jax.random.split(jax.random.key(5), 3)]) < 1e-9
