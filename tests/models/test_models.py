"""Every program in `models/`, found by itself, keeps the laws that all programs keep.

Which laws those are is read off the program: what it declares, observes and knows in closed form, never its name.
"""

import importlib
import math
import pkgutil
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.infer import TraceMeanField_ELBO
from numpyro.primitives import Messenger

import dpm_ppl as dpm
from dpm_ppl import metrics, models, programs, schedules
from dpm_ppl.commands.no_chain import has_likelihood
from dpm_ppl.inference import bound, fit, importance_weights, log_likelihood, sandwich
from dpm_ppl.inference.likelihood import log_mean_exp
from dpm_ppl.kernels import has_closed_forms

# Where a chain is a latent's prior, guide and model reach x^0 from opposite ends, and no KL is taken of it.
pytestmark = pytest.mark.filterwarnings("ignore:Failed to verify mean field restriction:UserWarning")

NUM_SAMPLES = 1000
PROGRAMS = [module.name for module in pkgutil.iter_modules(models.__path__)]


class Chains(Messenger):
    """Notes the diffusion and the x0 of every chain of a run."""

    def __init__(self):
        self.found = []
        super().__init__()

    def process_message(self, msg):
        if msg["type"] in ("forward_chain", "reverse_chain"):
            self.found.append(msg["args"][1:3])


class Case:
    """A program, its parameters before and after a short fit, and its chains."""

    def __init__(self, name):
        self.program = programs.load(name)
        self.options = {"num_steps_sampled": 8, **self.program.recipe}
        self.source = self.program.data()

    def data(self, num, seed=0):
        return metrics.fresh_data(self.source, key=jax.random.key(seed), num_data=num)[:num]

    @cached_property
    def start(self):
        """Parameters that a fit starts from."""
        return {name: site["value"] for name, site in self._declared.items()}

    @cached_property
    def moved(self):
        """These moved a little, without leaving their constraints: at zero outputs some gradients are zero."""
        moved = {}
        for i, (name, site) in enumerate(sorted(self._declared.items())):
            transform = biject_to(site["kwargs"].get("constraint", constraints.real))
            leaves, structure = jax.tree.flatten(transform.inv(site["value"]))
            keys = jax.random.split(jax.random.fold_in(jax.random.key(1), i), len(leaves))
            leaves = [leaf + 0.05 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
            moved[name] = transform(jax.tree.unflatten(structure, leaves))
        return moved

    @cached_property
    def fitted(self):
        """Parameters after a short fit."""
        return self._short_fit[0]

    @cached_property
    def gain(self):
        """By how much that raises the bound of each of 40 data, nats."""
        return self._short_fit[1]

    @cached_property
    def _short_fit(self):
        """A fit in small batches; where their loss is too noisy to see a gain, the beginning of the recipe's own."""
        x0 = self.data(40, seed=3)
        small = {"num_iterations": 250, "batch_size": 64, "learning_rate": 3e-3}
        for options in (small, {"num_iterations": 1000}):
            options = {**self.options, "ema_decay": 0.98, "progress": False, **options}
            key = jax.random.key(0)
            params = fit(self.program.model, self.program.guide, self.source, key=key, **options).params
            if not has_likelihood(self.program, x0):
                return params, None
            before, after = (self.log_weights(of, x0, 2).mean(0) for of in (self.start, params))
            gain, error = mean_and_error(after - before)
            if gain > 3 * error:
                break
        return params, after - before

    @cached_property
    def generate(self):
        """Samples of the whole program, a function of its parameters."""
        program = self.program.model
        return jax.jit(lambda params: handlers.seed(handlers.substitute(program, data=params), 5)(size=NUM_SAMPLES))

    @cached_property
    def chains(self):
        """Diffusion and x0 of every chain that the guide, or else the model, declares."""
        for run in (self.program.guide, self.program.model):
            chains = Chains()
            with handlers.block(), chains, handlers.seed(rng_seed=0), handlers.substitute(data=self.moved):
                run(self.data(16))
            if chains.found:
                return chains.found
        return []

    def losses(self, x0, *, size, loss=None, plain=False):
        """The loss in nats per datum under a key, as a compiled function of parameters and key."""
        loss = TraceMeanField_ELBO() if loss is None else loss
        model, guide = self.program.model, self.program.guide
        if not plain:
            model, guide = (dpm.subsample_steps(f, size=size) for f in (model, guide))
        return jax.jit(lambda params, key: loss.loss(key, params, model, guide, x0) / len(x0))

    def log_weights(self, params, x0, num_particles):
        """Log importance weights, shape (num_particles, num_data)."""
        given = {"params": params, "key": jax.random.key(6), "num_particles": num_particles, "progress": False}
        if self.program.diffusion is not None:
            return log_likelihood(self.program.diffusion, x0, **given).log_weight
        return importance_weights(self.program.model, self.program.guide, x0, **given)

    @cached_property
    def _declared(self):
        """Every parameter of model and guide."""
        x0, found = self.data(16), {}
        for run in (self.program.model, self.program.guide):
            with handlers.block(), handlers.trace() as trace, handlers.seed(rng_seed=0):
                run(x0)
            found |= {name: site for name, site in trace.items() if site["type"] == "param"}
        return found


@pytest.fixture(params=PROGRAMS, scope="module")
def case(request):
    return Case(request.param)


@pytest.fixture
def program(case):
    return case.program


@pytest.fixture
def scored(case):
    """A program that scores its data."""
    if not has_likelihood(case.program, case.data(16)):
        pytest.skip("it has no likelihood")
    return case


@pytest.fixture
def chain(case):
    """A program that is one chain of its data."""
    if case.program.diffusion is None:
        pytest.skip("it is no single chain")
    return case


def mean_and_error(values):
    values = np.asarray(values, np.float64)
    return values.mean(), values.std(ddof=1) / math.sqrt(len(values))


def test_fits_on_one_page(program):
    assert len(program.path.read_text().splitlines()) <= 80
    assert program.summary.endswith(".")


def test_generates_what_it_is_fitted_to(case):
    generated = case.generate(case.moved)
    assert generated.shape == (NUM_SAMPLES, *case.data(2).shape[1:])
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
    x0 = scored.data(16)
    draws = []
    # Against many more steps; of a chain so short that there are no more, against whole trajectories.
    for size, num, plain in ((min(8, most), 60, False), (min(100, most), 20, most <= 8)):
        loss = scored.losses(x0, size=size, plain=plain)
        draws.append(mean_and_error([loss(scored.moved, key) for key in jax.random.split(jax.random.key(2), num)]))
    (some, some_error), (more, more_error) = draws
    error = math.hypot(some_error, more_error)
    assert abs(some - more) < 3.5 * error
    assert error < 0.2 * abs(more)


def test_gradient_reaches_every_parameter(case):
    most = min([diffusion.num_steps - 1 for diffusion, _ in case.chains], default=None)
    size = None if most is None else min(100, most)
    loss = case.losses(case.data(64), size=size, loss=case.options.get("loss"))
    gradient = jax.grad(loss)(case.moved, jax.random.key(2))
    assert jax.tree.leaves(gradient)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all()
        # A readout per step sees only the steps that were drawn.
        assert np.mean(np.asarray(leaf) != 0) > 0.01, jax.tree_util.keystr(path)


def test_fit_raises_the_bound(scored):
    gain, error = mean_and_error(scored.gain)
    assert gain > 3 * error


def test_samples_of_a_fit_are_nearer_to_the_data(case):
    """By the distance to the nearest of 2000 data, than samples of the program before its fit."""
    if has_likelihood(case.program, case.data(16)) and np.mean(case.gain) < 1:
        pytest.skip("so short a fit raises the bound by less than a nat, too little to see in samples")
    data = flat(case.data(2000, seed=4))
    distances = []
    for params in (case.start, case.fitted):
        samples = flat(case.generate(params))
        distances.append(mean_and_error([np.linalg.norm(data - x, axis=-1).min() for x in samples]))
    (before, before_error), (after, after_error) = distances
    assert after < before - 4 * math.hypot(before_error, after_error)


def flat(x):
    return np.asarray(x, float).reshape(len(x), -1)


def test_mean_log_weight_is_the_bound(chain):
    """E log w = ELBO, datum by datum: whole trajectories on one side, KLs at independent steps on the other."""
    x0 = chain.data(40, seed=3)
    terms = bound(chain.program.diffusion, x0, params=chain.fitted, key=jax.random.key(7), num_samples=2)
    mean, error = mean_and_error(chain.log_weights(chain.fitted, x0, 2).mean(0) - np.asarray(terms.elbo))
    assert abs(mean) < 4 * error + 1e-9


def test_estimates_lie_between_the_bounds(scored):
    """Bound <= estimate on independent draws; both at most the data's own log density, where it is known."""
    x0 = scored.data(30, seed=8)
    log_weight = scored.log_weights(scored.fitted, x0, 10)
    elbo, estimate = log_weight[:5].mean(0), log_mean_exp(log_weight[5:])
    mean, error = mean_and_error(estimate - elbo)
    assert mean > -3 * error
    limit = density(scored.source, x0)
    if limit is not None:
        mean, error = mean_and_error(limit - estimate)
        assert mean > -3 * error
    if scored.program.diffusion is not None:
        given = {"params": scored.fitted, "num_data": 30, "num_particles": 5, "progress": False}
        gap, error = mean_and_error(sandwich(scored.program.diffusion, key=jax.random.key(9), **given).gap)
        assert gap > -3 * error


def density(source, x0):
    """Log density of data, nats; None where it is not known."""
    if not isinstance(source, dist.Distribution):
        return None
    try:
        return np.asarray(source.log_prob(x0))
    except NotImplementedError:
        return None


def test_analytic_divergences_are_hit(chain):
    """At the same points x^t, steps and x^1, draws of x^(t-1) do not matter: no KL falls back to log q - log p."""
    ((diffusion, _),) = chain.chains
    if not has_closed_forms(diffusion.kernel):
        pytest.skip("no closed forms")
    x0, size = chain.data(4), min(8, diffusion.num_steps - 1)
    model, guide = (dpm.subsample_steps(f, size=size) for f in (chain.program.model, chain.program.guide))

    @jax.jit
    def loss(key):
        with handlers.block(), handlers.trace() as points, handlers.seed(rng_seed=0):
            handlers.substitute(guide, data=chain.moved)(x0)
        kept = {name: points[name]["value"] for name in points if name.endswith(("_first", "_at", "_offset"))}
        return TraceMeanField_ELBO().loss(key, chain.moved, model, handlers.substitute(guide, data=kept), x0)

    assert np.std([float(loss(key)) for key in jax.random.split(jax.random.key(5), 3)]) < 1e-9


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
