"""A program of `models/` as the laws see it: its parameters before and after a short fit, its chains, its samples."""

import math
import pkgutil
from contextlib import nullcontext
from functools import cached_property, partial

import jax
import numpy as np
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.infer import TraceMeanField_ELBO
from numpyro.primitives import Messenger

import dpm_ppl as dpm
from dpm_ppl import models
from dpm_ppl.commands import find
from dpm_ppl.data import fresh_data, num_data_of
from dpm_ppl.inference import fit, importance_weights, log_likelihood
from dpm_ppl.parts import parts_of
from dpm_ppl.programs import called
from dpm_ppl.reports.objective import has_likelihood
from tests.compiling import optimised

IMAGES = {
    "bark",
    "cifar10",
    "cifar10_2015",
    "dead_leaves",
    "mnist",
    "mnist_2015",
    "mnist_binary",
}  # need files, and networks that take minutes to compile: their own tests take them small
NOISY = {"hvae", "swiss_roll", "vdm"}  # of whose loss small batches tell too little
PROGRAMS = [module.name for module in pkgutil.iter_modules(models.__path__) if module.name not in IMAGES]


class Chains(Messenger):
    """Notes the diffusion and the x0 of every chain of a run."""

    def __init__(self):
        self.found = []
        super().__init__()

    def process_message(self, msg):
        if msg["type"] in ("forward_chain", "reverse_chain"):
            self.found.append((msg["statement"].diffusion, msg["statement"].x0))


class Case:
    """A program, its parameters before and after a short fit, and its chains."""

    def __init__(self, name):
        self.name, self.program = name, find.load(name)
        self.options = {"num_steps_sampled": 8, **self.program.recipe}
        self.source = self.program.data()
        self.parts = parts_of(self.program, self.source)

    def batch(self, num, seed=0):
        """Data as the program takes them."""
        drawn = fresh_data(self.source, key=jax.random.key(seed), num_data=num)
        return jax.tree.map(lambda leaf: leaf[:num], drawn)

    def data(self, num, seed=0):
        """The datum of each."""
        return self.parts.x0(self.batch(num, seed))

    def beside(self, num, seed=0):
        """The option `context` for as many data, where the program has one."""
        return self.parts.beside_batch(self.batch(num, seed))

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
        batch = self.batch(40, seed=3)
        small = {"num_iterations": 250, "batch_size": 64, "learning_rate": 3e-3}
        tries = [small, {"num_iterations": 300}, {"num_iterations": 1000}]
        for options in tries[self.name in NOISY :]:
            with nullcontext() if options is small else optimised():
                options = {**self.options, "ema_decay": 0.98, "progress": False, **options}
                key = jax.random.key(0)
                params = fit(self.program.model, self.program.guide, self.source, key=key, **options).params
            if not has_likelihood(self.program, batch):
                return params, None
            before, after = (self.log_weights(of, batch, 2).mean(0) for of in (self.start, params))
            gain, error = mean_and_error(after - before)
            if gain > 3 * error:
                break
        return params, after - before

    @cached_property
    def generate(self):
        """Samples of the whole program, a function of its parameters."""
        context, size = self.parts.context(self.batch(self.num_samples, seed=6)), self.num_samples

        @jax.jit
        def compiled(params):
            model = handlers.seed(handlers.substitute(self.program.model, data=params), 5)
            return self.parts.generate(context, size, model=model)

        def generate(params):
            with self.compiling():
                return compiled(params)

        return generate

    @cached_property
    def num_samples(self):
        """Fewer where a chain is long: they take time in proportion to it."""
        return 200 if self.is_long else 1000

    @cached_property
    def is_long(self):
        """Whether a chain is long, so that what runs along it takes longer than compiling it."""
        return any(diffusion.num_steps > 100 for diffusion, _ in self.chains)

    def compiling(self):
        """How to compile what runs along whole chains."""
        return optimised() if self.is_long else nullcontext()

    @cached_property
    def chains(self):
        """Diffusion and x0 of every chain that the guide, or else the model, declares."""
        for run in (self.program.guide, self.program.model):
            chains = Chains()
            with handlers.block(), chains, handlers.seed(rng_seed=0), handlers.substitute(data=self.moved):
                called(run, self.batch(16))
            if chains.found:
                return chains.found
        return []

    def losses(self, batch, *, size, loss=None, plain=False):
        """The loss in nats per datum under a key, as a compiled function of parameters and key."""
        loss = TraceMeanField_ELBO() if loss is None else loss
        model, guide = self.program.model, self.program.guide
        if not plain:
            model, guide = (dpm.subsample_steps(f, size=size) for f in (model, guide))
        model, guide = partial(called, model), partial(called, guide)
        return jax.jit(lambda params, key: loss.loss(key, params, model, guide, batch) / num_data_of(batch))

    def log_weights(self, params, batch, num_particles):
        """Log importance weights, shape (num_particles, num_data)."""
        given = {"params": params, "key": jax.random.key(6), "num_particles": num_particles, "progress": False}
        with self.compiling():
            if self.parts.definition is not None:
                x0, beside = self.parts.x0(batch), self.parts.beside_batch(batch)
                return log_likelihood(self.parts.definition, x0, **given, **beside).log_weight
            programs = partial(called, self.program.model), partial(called, self.program.guide)
            return importance_weights(*programs, batch, **given)

    @cached_property
    def _declared(self):
        """Every parameter of model and guide."""
        batch, found = self.batch(16), {}
        for run in (self.program.model, self.program.guide):
            with handlers.block(), handlers.trace() as trace, handlers.seed(rng_seed=0):
                called(run, batch)
            found |= {name: site for name, site in trace.items() if site["type"] == "param"}
        return found


def mean_and_error(values):
    values = np.asarray(values, np.float64)
    return values.mean(), values.std(ddof=1) / math.sqrt(len(values))


def flat(x):
    return np.asarray(x, float).reshape(len(x), -1)
