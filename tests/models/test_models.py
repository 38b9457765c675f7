"""Every program in `models/`, found by itself, keeps the laws that all programs keep."""

import importlib
import pkgutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import handlers
from numpyro.infer import Trace_ELBO, TraceMeanField_ELBO

import dpm_ppl as dpm
from dpm_ppl import models, schedules
from dpm_ppl.inference import bound, fit

PROGRAMS = [module.name for module in pkgutil.iter_modules(models.__path__)]


@pytest.fixture(params=PROGRAMS)
def program(request):
    return importlib.import_module(f"dpm_ppl.models.{request.param}")


def initial(program, x0):
    """Parameters at the start, each moved a little: at zero outputs some gradients are zero by symmetry."""
    trace = handlers.trace(handlers.seed(program.model, 0)).get_trace(x0)
    params = {name: site["value"] for name, site in trace.items() if site["type"] == "param"}
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.05 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, moved)


def losses(program, x0, *, size, loss=TraceMeanField_ELBO):
    """-ELBO in nats per datum under a key, as a compiled function of parameters and key."""
    model, guide = (dpm.subsample_steps(f, size=size) for f in (program.model, program.guide))
    return jax.jit(lambda params, key: loss().loss(key, params, model, guide, x0) / len(x0))


def test_fits_on_one_page(program):
    assert len(Path(program.__file__).read_text().splitlines()) <= 80
    assert program.__doc__.splitlines()[0].endswith(".")


def test_subsampled_bound_is_unbiased(program):
    x0 = program.data().sample(jax.random.key(0), (32,))
    params = initial(program, x0)
    draws = {}
    for name, size in (("some", 8), ("more", min(80, program.NUM_STEPS - 1))):
        loss = losses(program, x0, size=size)
        draws[name] = np.array([float(loss(params, key)) for key in jax.random.split(jax.random.key(2), 40)])
    error = np.sqrt(sum(values.var() / len(values) for values in draws.values()))
    assert abs(draws["some"].mean() - draws["more"].mean()) < 3 * error
    assert error < 0.2 * abs(draws["more"].mean())


def test_gradient_reaches_every_parameter(program):
    x0 = program.data().sample(jax.random.key(0), (64,))
    params = initial(program, x0)
    loss = losses(program, x0, size=min(100, program.NUM_STEPS - 1))
    gradient = jax.grad(loss)(params, jax.random.key(2))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all()
        # A readout per step sees only the steps that were drawn.
        assert np.mean(np.asarray(leaf) != 0) > 0.01, jax.tree_util.keystr(path)


def test_fit_raises_the_bound(program):
    result = fit(
        program.model,
        program.guide,
        program.data(),
        key=jax.random.key(0),
        num_iterations=800,
        batch_size=64,
        num_steps_sampled=8,
        progress=False,
    )
    x0 = program.data().sample(jax.random.key(3), (100,))
    before = handlers.trace(handlers.seed(program.model, 0)).get_trace(x0)
    before = {name: site["value"] for name, site in before.items() if site["type"] == "param"}
    elbos = [bound(program.diffusion, x0, params=p, key=jax.random.key(4)).elbo for p in (before, result.params)]
    gain = np.asarray(elbos[1] - elbos[0])
    assert gain.mean() > 3 * gain.std() / np.sqrt(len(gain))


def test_analytic_divergences_are_hit(program):
    """Under `Trace_ELBO` each step is sampled; under `TraceMeanField_ELBO`, at the same points, it must not be."""
    x0 = program.data().sample(jax.random.key(0), (4,))
    params = initial(program, x0)

    def spread(loss):
        """Standard deviation over draws of x^(t-1) alone: the points x^t, the steps and x^1 stay as they are."""
        program_loss = loss()
        model, guide = (dpm.subsample_steps(f, size=8) for f in (program.model, program.guide))
        points = handlers.trace(handlers.seed(handlers.substitute(guide, data=params), 0)).get_trace(x0)
        kept = {name: points[name]["value"] for name in ("x_first", "x_at", "x_offset")}
        guide = handlers.substitute(guide, data=kept)
        value = jax.jit(lambda key: program_loss.loss(key, params, model, guide, x0))
        return np.std([float(value(key)) for key in jax.random.split(jax.random.key(5), 5)])

    assert spread(TraceMeanField_ELBO) < 1e-9
    assert spread(Trace_ELBO) > 1e-4


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
    np.testing.assert_array_equal(beta["fixed"], start)
    assert beta["learned"][0] == start[0]
    assert np.abs(np.log(beta["learned"][1:] / start[1:])).max() > 0.1
    assert jnp.all((beta["learned"] > 0) & (beta["learned"] < 1))
