"""A program as its checks see it: data, parameters moved a little, and the diffusion of every chain it declares.

Chains are found by running guide and model under a handler that reads their statements, so that what is checked is
what they use; `diffusion()`, where a program has one, is checked beside them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import biject_to, constraints

from dpm_ppl.chains import ForwardChain, ReverseChain
from dpm_ppl.data import as_now, draw, drawn_beside, num_data_of
from dpm_ppl.diffusion import Diffusion
from dpm_ppl.inference.likelihoods.bounds import Bound, bound
from dpm_ppl.kernels.kernel import Kernel, widened
from dpm_ppl.parts import Parts, parts_of, rows_of
from dpm_ppl.programs import Declared, Sites, called, plain_sites, read

NUMBERS = 50_000  # in one trajectory of every datum


_NUM_DRAWN = 8192  # of a simulator, once, in place of its endless data

_NEVER = -34.0  # nats, a little above the rounding unit of double precision


@dataclass(frozen=True, eq=False)
class Chain:
    """A chain of guide and model together.

    Args:
        name: Its name; in words `label`.
        x0: Data, shape (*batch, *event).
        forward: The guide's diffusion, of which the kernel counts.
        model: The model's, of which the reverse steps count.
        key: Random key.
    """

    name: str
    x0: Array
    forward: Diffusion
    model: Diffusion
    key: Array

    @property
    def kernel(self) -> Kernel:
        """The forward kernel."""
        return self.forward.kernel

    @property
    def num_steps(self) -> int:
        """T."""
        return self.forward.num_steps

    @property
    def batch_dim(self) -> int:
        """Batch dimensions of the data."""
        return self.x0.ndim - len(self.forward.event_shape)

    @cached_property
    def definition(self) -> Callable[..., Diffusion]:
        """The model's diffusion as a program's definition, of a context where it has one."""
        diffusion = self.model
        return diffusion.beside if diffusion.context is not None else lambda: diffusion

    @property
    def context(self) -> Any:
        """What is given beside each datum, as of a batch of one dimension; None where nothing is."""
        dims = self.batch_dim
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[dims:]), self.model.context)

    @cached_property
    def states(self) -> Array:
        """A forward trajectory x^(0..T) of every datum, shape (T + 1, *batch, *event)."""
        trajectory = jax.jit(lambda key: ForwardChain(self.forward, self.x0).sample(key))(self.key)
        trajectory = jnp.moveaxis(trajectory, self.batch_dim, 0)
        return jnp.concatenate([self.x0[None].astype(trajectory.dtype), trajectory])

    @cached_property
    def simulated(self) -> tuple[Array, Array, Array]:
        """What the model makes: trajectories x^(0..T), their log densities in the forward chain step by step, log w.

        Beside a context, trajectory i is beside that of datum i, and after the last beside the first again.

        Shapes (T + 1, num, *event), (T, num) and (num,).
        """
        num = max(8, min(200, 20 * NUMBERS // (self.num_steps * math.prod(self.forward.event_shape))))
        model = self.model.beside(rows_of(self.context, np.arange(num)), (num,))

        @jax.jit
        def make(key: Array) -> tuple[Array, Array, Array]:
            key, last = jax.random.split(key)
            chain, t = ReverseChain(model), jnp.arange(1, self.num_steps + 1)[:, None]
            trajectory = chain.sample(key, (num,))
            states = jnp.moveaxis(trajectory, 1, 0)
            decode = model.decode(states[0])
            x0 = decode.sample(last)
            states = jnp.concatenate([x0[None].astype(states.dtype), states])
            forward = self.kernel.step(states[:-1], t)
            log_p = chain.log_prob(trajectory) + decode.log_prob(x0)
            return states, scored(forward, states[1:]), log_p - jnp.sum(forward.log_prob(states[1:]), 0)

        return make(self.key)

    @cached_property
    def terms(self) -> Bound:
        """The bound on the data, term by term."""
        num = max(4, min(64, 20 * NUMBERS // self.states.size))
        x0 = self.x0.reshape(-1, *self.forward.event_shape)
        return bound(self.definition, x0, params={}, key=self.key, num_samples=num, context=self.context)

    def steps(self, *t: int) -> Array:
        """Steps t, by default all of 1..T, shaped to broadcast against states of those steps."""
        return jnp.asarray(t or range(1, self.num_steps + 1)).reshape(-1, *(1,) * self.batch_dim)


def scored(law: dist.Distribution, value: Array) -> Array:
    """Log density, -inf where a discrete coordinate has the probability to which NumPyro clamps one of zero."""
    if not (isinstance(law, dist.Independent) and law.support.is_discrete):
        return law.log_prob(value)
    each = law.base_dist.log_prob(value)
    dims = tuple(range(-law.reinterpreted_batch_ndims, 0))
    return jnp.sum(jnp.where(each < _NEVER, -jnp.inf, each), dims)


def agree(one: Kernel, other: Kernel) -> bool:
    """Whether two kernels have the same number of steps and event shape."""
    return one.num_steps == other.num_steps and tuple(one.event_shape) == tuple(other.event_shape)


MOVED = 0.05  # standard deviation of what is added to unconstrained parameters: at zero outputs gradients vanish


@dataclass(frozen=True, eq=False)
class Subject:
    """A program with what its checks share.

    Args:
        model: The model, of a batch.
        guide: The guide, of a batch.
        parts: Which part of a batch is the datum, and what is given beside it.
        recipe: Options of `fit`.
        source: All data, a distribution or arrays.
        data: The same of the datum alone.
        batch: Some data.
        x0: The datum of each, shape (num_data, *event).
        params: Parameters, moved a little.
        looped: Parameters declared inside a traced body, such as that of a scan.
        statements: Every chain statement, those of the guide first.
        sites: Sites of guide and of model, plainly run on shapes alone, by name.
        scans: Whether the program uses NumPyro's own `scan`.
        key: Random key.
        others: Makes the chain statements at other parameters.
        stated: Makes those of another batch.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    parts: Parts
    recipe: Mapping[str, Any]
    source: Any
    data: Any
    batch: Any
    x0: Array
    params: dict[str, Any]
    looped: frozenset[str]
    statements: tuple[Declared, ...]
    sites: Sites
    scans: bool
    key: Array
    others: Callable[[], tuple[Declared, ...]]
    stated: Callable[[Any], tuple[Declared, ...]]

    @cached_property
    def chains(self) -> list[Chain]:
        """The chains that guide and model share; where they have none, that of `diffusion()`, over the data."""
        return self._chains(self.statements)

    @cached_property
    def elsewhere(self) -> list[Chain]:
        """The same chains at other parameters: what is as it was there is not learned."""
        return self._chains(self.others())

    @property
    def definition(self) -> Callable[[], Diffusion] | None:
        """`diffusion()`, or None; one of a context with that of the batch put in."""
        return bound_definition(self.parts, self.batch)

    def _chains(self, statements: tuple[Declared, ...]) -> list[Chain]:
        of = {(s.where, s.statement.name): s.statement for s in statements}
        names = [name for where, name in of if where == "guide" and ("model", name) in of]
        found = []
        for i, name in enumerate(names):
            guide, model = of["guide", name], of["model", name]
            x0 = self.x0 if guide.x0 is None else guide.x0  # a forward chain always has data
            found.append(Chain(name, x0, guide.diffusion, model.diffusion, jax.random.fold_in(self.key, i)))
        if not names:
            found += [
                Chain(name, self.x0, s.diffusion, s.diffusion, self.key)
                for (where, name), s in of.items()
                if where == "diffusion()"
            ]
        return found

    @property
    def normaliser(self) -> float:
        """Number of data that a loss stands for: the full size of a plate whose subsample is the batch."""
        for site in self.sites["model"].values():
            for frame in site.get("cond_indep_stack", ()) if site["type"] == "sample" else ():
                size = self.plates.get(frame.name, (frame.size, frame.size))
                if size[1] == len(self.x0) != size[0]:
                    return float(size[0])
        return float(len(self.x0))

    @property
    def plates(self) -> dict[str, tuple[int, int]]:
        """Full size and subsample size of each plate of the model."""
        sites = self.sites["model"].items()
        return {name: (s["args"][0], s["args"][1] or s["args"][0]) for name, s in sites if s["type"] == "plate"}


def subject(program: Any, *, seed: int = 0, params: Mapping[str, Any] | None = None) -> Subject:
    """Makes a program ready to check: draws data, runs it once, and moves its parameters a little.

    Args:
        program: An object with `model`, `guide` and `data`; `diffusion` and `recipe` if it likes.
        seed: Seed of everything random.
        params: Parameters to check at; by default the initial ones, moved.

    Returns:
        The subject.

    Raises:
        TypeError: a name is missing or of the wrong kind.
        Exception: whatever the program raises.
    """
    missing = [name for name in ("model", "guide", "data") if not hasattr(program, name)]
    if missing:
        raise TypeError(f"Expected a program with the names model, guide and data; it lacks {', '.join(missing)}.")
    for name in ("model", "guide"):
        if not callable(getattr(program, name)):
            raise TypeError(f"Expected `{name}` to be a function; got {type(getattr(program, name)).__name__}.")
    data_key, key = jax.random.split(jax.random.key(seed))
    source = _source(program.data)
    parts = parts_of(program, source, by_value=False)
    if parts.names and num_data_of(source) is None:
        source = draw(source, key=jax.random.fold_in(data_key, 1), num_data=_NUM_DRAWN)
    model, guide = partial(called, program.model), partial(called, program.guide)

    def run(batch: Any, params: Mapping[str, Any]) -> Any:
        return read(model, guide, bound_definition(parts, batch), batch, params)

    longest = _longest(run, source, params or {})
    batch = draw(source, key=data_key, num_data=max(8, min(64, NUMBERS // longest)))
    batch = jax.tree.map(widened, batch)  # as chains take it, so that it is known as theirs
    _, sites, _, _ = run(batch, params or {})
    values = _moved(sites, seed=seed) if params is None else dict(params)
    statements, _, looped, scans = run(batch, values)
    return Subject(
        model=model,
        guide=guide,
        parts=parts,
        recipe=getattr(program, "recipe", {}),
        source=source,
        data=parts.x0(source),
        batch=batch,
        x0=parts.x0(batch),
        params={name: values[name] for name in sites},
        looped=frozenset(looped),
        statements=tuple(statements),
        sites=plain_sites(model, guide, batch, values),
        scans=scans,
        key=key,
        stated=lambda batch: tuple(run(batch, values)[0]),
        others=lambda: tuple(run(batch, _moved(sites, seed=seed + len(sites)))[0]),
    )


def _longest(run: Callable[..., Any], data: Any, params: Mapping[str, Any]) -> int:
    """Numbers in the longest trajectory of one datum; by shapes alone, which compiles nothing."""
    numbers, rows = [1], None if isinstance(data, dist.Distribution) else as_now(jax.tree.map(lambda x: x[:4], data))

    def shapes(key: Array) -> None:
        statements, *_ = run(data.sample(key, (4,)) if rows is None else rows, params)
        found = [s.statement.diffusion for s in statements]
        numbers.extend(diffusion.num_steps * math.prod(diffusion.event_shape) for diffusion in found)

    jax.eval_shape(shapes, jax.random.key(0))
    return max(numbers)


def _source(data: Any) -> Any:
    """A program's data, as `dpm_ppl.programs.Program.data` has them."""
    if callable(data) and not isinstance(data, dist.Distribution):
        data = data()
    if isinstance(data, tuple | dict):
        return drawn_beside(data)
    if not isinstance(data, dist.Distribution) and np.ndim(data) == 0:
        raise TypeError(
            f"Expected `data` to be a NumPyro distribution, or an array of shape (num_data, *event), a tuple or "
            f"dictionary of such, or to return one; got {type(data).__name__}."
        )
    return data if isinstance(data, dist.Distribution) else np.asarray(data)


def bound_definition(parts: Parts, batch: Any) -> Callable[[], Diffusion] | None:
    """`diffusion()` of a program; one of a context with that of a batch put in."""
    return None if parts.definition is None else partial(parts.definition, *parts.beside_batch(batch).values())


def perturbed(tree: Any, *, seed: int, scale: float) -> Any:
    """A tree whose floating-point leaves have normal noise added; by NumPy, as JAX compiles one for each shape."""
    rng = np.random.default_rng(seed)

    def noisy(leaf: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return leaf
        return jnp.asarray(np.asarray(leaf) + scale * rng.normal(size=np.shape(leaf)), jnp.result_type(leaf))

    return jax.tree.map(noisy, tree)


def _moved(sites: dict[str, Any], *, seed: int) -> dict[str, Any]:
    moved = {}
    for i, (name, site) in enumerate(sites.items()):
        transform = biject_to(site["kwargs"].get("constraint", constraints.real))
        free = as_now(transform.inv(as_now(site["value"])))
        moved[name] = transform(perturbed(free, seed=seed + i, scale=MOVED))
    return moved
