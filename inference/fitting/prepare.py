"""From a program and its data to stock SVI: which plates hold data, what a loss adds up, and whether the data fit."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from numpyro import handlers
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState
from numpyro.infer.util import transform_fn
from numpyro.primitives import Messenger

from dpm_ppl.diffusion import ONE_ARRAY, require_data, require_within
from dpm_ppl.inference.fitting.batches import Batches
from dpm_ppl.inference.fitting.reading import Check
from dpm_ppl.inference.fitting.runs import kinds
from dpm_ppl.inference.pathwise import learned_laws, told
from dpm_ppl.kernels.kernel import Kernel, widened
from dpm_ppl.programs import called

Program = Callable[..., Any]


@dataclass(frozen=True)
class Prepared:
    """A program made ready to fit.

    Args:
        svi: SVI whose programs take `(x0, indices)` and then the user's arguments.
        state: Its state before the first iteration.
        normaliser: Number of data that a loss adds up: the full size of the data's plate, or the batch size.
        has_chain: Whether it declares a chain, so that minus its loss is the chain's bound.
        require_states: Checks the values of a batch against the states of the chains that it meets.
        begin: The state before the first iteration, of another random key and first batch.
    """

    svi: SVI
    state: SVIState
    normaliser: int
    has_chain: bool
    require_states: Check
    begin: Callable[[Array, Any], SVIState]

    def adds_up(self, batch: tuple[Any, Array], args: tuple[Any, ...]) -> int:
        """How many data a loss of another batch `(x0, indices)` adds up: of a plate in full, all that it stands for."""
        size, read = len(batch[1]), _Reader(batch[0])

        def run(key: Array) -> None:
            with read:
                SVI(self.svi.model, self.svi.guide, self.svi.optim, self.svi.loss).init(key, batch, *args)
            read.kernels.clear()  # which are of this trace

        with warnings.catch_warnings(action="ignore"):
            jax.eval_shape(run, jax.random.key(0))
        full = [of for of, part in read.plates.values() if part == size != of]
        return full[0] if full else size


def prepare(
    model: Program,
    guide: Program,
    batches: Batches,
    args: tuple[Any, ...],
    *,
    key: Array,
    loss: Any,
    optimizer: Callable[[int], Any],
    params: Mapping[str, Any] | None = None,
) -> Prepared:
    """Runs model and guide once on the first batch, initialises SVI, and checks all of the data.

    Args:
        model: Model of (x0, *args).
        guide: Guide of (x0, *args).
        batches: Where batches come from.
        args: Further arguments of both.
        key: Random key.
        loss: NumPyro ELBO.
        optimizer: Makes the Optax optimiser, given the normaliser.
        params: Values of parameters to begin with, constrained, by name.

    Returns:
        What a fit needs.

    Raises:
        TypeError, ValueError: what the program says of itself and the first batch; the data, all of them, are not
            those of its kernel (see `dpm_ppl.diffusion.require_data`); a data plate is of another size than the data;
            `params` are not the program's; nothing can be learned, the optimiser wants more than the gradient, the
            loss of a chain is no sum, or a parameter is in the law of draws that no gradient passes through.
    """
    first = jnp.asarray(0)
    _, x0, _ = batches.draw(batches.source, first, batches.start(batches.source, first))
    x0 = jax.tree.map(widened, x0)  # as chains take it, so that it is known as theirs
    for name, program in (("model", model), ("guide", guide)):
        _require_parts_taken(program, x0, args, name=name)
    svi = SVI(partial(called, model), partial(called, guide), optimizer(1), loss)
    read, supports = _Reader(x0), list[tuple[Any, int]]()

    def begin(key: Array, x0: Any) -> SVIState:
        x0 = jax.tree.map(widened, x0)
        return SVI(svi.model, svi.guide, svi.optim, loss).init(key, x0, *args, init_params=params)

    def initialise(key: Array) -> tuple[SVIState, Any]:
        with read:
            state = svi.init(key, x0, *args, init_params=params)
        if batches.resident:
            batches.require(read.require_all)
        supports[:] = [(kernel.stationary().support, leaf) for kernel, leaf in read.kernels]
        (transforms,) = svi.constrain_fn.args
        read.kernels.clear()  # of this trace, as are the transforms: neither may outlive it
        svi.constrain_fn = None
        return state, transforms

    params = None if params is None else jax.tree.map(jnp.asarray, dict(params))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if params is not None:
            _require_like(params, jax.eval_shape(lambda key: svi.get_params(svi.init(key, x0, *args)), key))
        # Compiled, as the network is then not run at all: of its values the state needs none.
        state, transforms = jax.jit(initialise)(key)
    for warning in caught:
        # A chain's own discrete states are right: its guide has no parameters, and NumPyro can't know that.
        if read.discrete or "discrete latent" not in str(warning.message):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    svi.constrain_fn = partial(transform_fn, transforms)
    if params is not None:
        _require_finite(params, svi.optim.get_params(state.optim_state))
    require_states = partial(_require_within, supports)
    if not batches.resident:
        batches.require(require_states)
    if not jax.tree.leaves(svi.get_params(state)):
        raise ValueError(
            "Expected a program with parameters to fit; model and guide declare none with numpyro.param or a module."
        )
    _require_gradient_alone(optimizer(1), svi.optim.get_params(state.optim_state))
    laws = learned_laws(partial(called, guide), svi.get_params(state), x0, *args, besides=read.discrete)
    if laws:
        raise ValueError(f"Expected chains of discrete states whose forward kernel is fixed; {told(laws)}")
    if read.has_chain:
        _require_sum(svi, state, x0, args)
    plates, normaliser = _data_plates(read.plates, batches)
    ready = SVI(_fed(model, plates), _fed(guide, plates), optimizer(normaliser), loss)
    ready.constrain_fn = svi.constrain_fn
    return Prepared(ready, state, normaliser, read.has_chain, require_states, begin)


def _require_sum(svi: SVI, state: SVIState, x0: Any, args: tuple[Any, ...]) -> None:
    """Refuses a loss of one's own that is no sum over a chain's terms: with all terms scaled it has to follow a line.

    One that exponentiates log densities does not, and takes terms of the bound for weights of whole trajectories. The
    scales are powers of two, so that products with them are exact.
    """
    if type(svi.loss).__module__.startswith("numpyro."):
        return

    @jax.jit
    def losses(scales: Array, params: Any, x0: Any) -> Array:
        def at(scale: Array) -> Any:
            model, guide = (handlers.scale(program, scale=scale) for program in (svi.model, svi.guide))
            return svi.loss.loss(state.rng_key, params, model, guide, x0, *args)

        return jax.lax.map(at, scales)

    with warnings.catch_warnings(action="ignore"):
        params = {**svi.get_params(state), **(state.mutable_state or {})}
        values = np.asarray(losses(2.0 ** jnp.arange(-16, 1), params, x0), np.float64)
    off = np.abs(values[2:] - 3 * values[1:-1] + 2 * values[:-2])  # of L(4s), L(2s), L(s)
    size = np.abs(values[2:]) + 3 * np.abs(values[1:-1]) + 2 * np.abs(values[:-2])
    if (off > _LEAST_OFF + _ROUNDING * size).any():
        raise ValueError(
            f"Expected a `loss` that is a sum over terms; got {type(svi.loss).__name__}, which is none: with every log "
            "density scaled by a number it does not follow a line. An importance-weighted bound, say, needs the "
            "weights of whole trajectories, which fit has not, as subsample_steps reads its chains. Use "
            "numpyro.infer.SVI on the plain model and guide."
        )


_ROUNDING = 1e-5  # of a loss's size, in single precision
_LEAST_OFF = 0.02  # nats: less may be what is left of terms that cancel; two particles' weights give 0.26


def _require_gradient_alone(optimizer: Any, params: Any) -> None:
    """Refuses an optimiser with a line search, which evaluates the loss again and again; on shapes alone."""

    def step(params: Any) -> Any:
        return optax.with_extra_args_support(optimizer).update(params, optimizer.init(params), params, value=0.0)

    try:
        jax.eval_shape(step, params)
    except TypeError as error:
        if "keyword-only argument" not in str(error):
            raise
        raise ValueError(
            f"Expected an `optimizer` that steps by the gradient alone; of this one {error}. A line search evaluates "
            "the loss again, at other parameters, which for a loss of batches and noise says little. Take "
            "one without, such as optax.adam."
        ) from error


@dataclass(eq=False)
class _Reader(Messenger):
    """Reads a program's plates, the kernels of chains on a leaf of the batch, and discrete latents beside chains."""

    x0: Any
    plates: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    kernels: list[tuple[Kernel, int]] = field(default_factory=list)
    discrete: list[str] = field(default_factory=list)
    has_chain: bool = False
    _inside: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] in ("forward_chain", "reverse_chain"):
            self._inside += 1
            self.has_chain = True
            statement = msg["statement"]
            leaves = jax.tree.leaves(self.x0)
            self.kernels += [(statement.diffusion.kernel, i) for i, leaf in enumerate(leaves) if leaf is statement.x0]
        elif msg["type"] == "plate" and not self._inside:
            self.plates[msg["name"]] = msg["args"]
        elif msg["type"] == "sample" and not self._inside and not msg["is_observed"] and msg["fn"].support.is_discrete:
            self.discrete.append(msg["name"])

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        self._inside -= msg["type"] in ("forward_chain", "reverse_chain")

    def require_all(self, data: Any) -> None:
        """Checks all data against the kernels that they meet."""
        leaves = jax.tree.leaves(data)
        for kernel, leaf in self.kernels:
            require_data(kernel, leaves[leaf])


def _require_within(supports: list[tuple[Any, int]], batch: Any) -> None:
    """Checks a batch that is read later, when the kernels, of a program's trace, are gone."""
    leaves = jax.tree.leaves(batch)
    for support, leaf in supports:
        require_within(support, leaves[leaf])


def _require_parts_taken(program: Program, x0: Any, args: tuple[Any, ...], *, name: str) -> None:
    """Checks that a program takes the parts of data that have several."""
    if not isinstance(x0, dict | tuple):
        return
    try:
        called(inspect.signature(program).bind, x0, *args)
    except TypeError as error:
        parts = f"by name, {', '.join(x0)}" if isinstance(x0, dict) else f"one by one, {len(x0)} of them"
        raise TypeError(
            f"Expected the {name} to take the parts of `data`, {parts}; its arguments are others: {error}. {ONE_ARRAY}"
        ) from error


def _require_like(params: Mapping[str, Any], declared: Mapping[str, Any]) -> None:
    """Checks that parameters to begin with are of those that a program declares."""
    if unknown := [name for name in params if name not in declared]:
        raise ValueError(
            f"Expected `params` of the program, which are {', '.join(declared)}; got {', '.join(unknown)} as well."
        )
    for name, value in params.items():
        there, here = kinds(declared[name]), kinds(value)
        if differing := [at for at in {**there, **here} if there.get(at) != here.get(at)]:
            at = differing[0]
            raise ValueError(
                f"Expected `params` like those of the program; {name}{at} is {there.get(at, 'not there')} in the "
                f"program, and {here.get(at, 'not there')} in `params`."
            )


def _require_finite(params: Mapping[str, Any], unconstrained: Mapping[str, Any]) -> None:
    """Checks that parameters to begin with are finite and within their constraints: unconstrained they are finite."""
    for name in params:
        if not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(unconstrained[name])):
            raise ValueError(
                f"Expected `params` that are finite and within their constraints; those of {name} are not."
            )


def _data_plates(plates: dict[str, tuple[int, int | None]], batches: Batches) -> tuple[list[str], int]:
    """Names of the plates whose subsample is the batch, and the number of data that a loss stands for."""
    subsampled = {name: size for name, (size, part) in plates.items() if part == batches.batch_size and part != size}
    expected = batches.num_data or next(iter(subsampled.values()), batches.batch_size)
    for name, size in subsampled.items():
        if size != expected:
            raise ValueError(
                f"Expected the plate {name!r}, whose subsample_size is the batch size {batches.batch_size}, to have "
                f"the full size {expected} {'of the data' if batches.num_data else 'of the first such plate'}; got "
                f"{size}. The scale of its sites would be wrong. If it is no plate of data, use another batch_size."
            )
    return list(subsampled), expected if subsampled else batches.batch_size


def _fed(program: Program, plates: list[str]) -> Program:
    """A program of (x0, indices) whose data plates have the batch as their subsample, for the right scale."""

    def fed(batch: tuple[Any, Array], *args: Any) -> Any:
        x0, indices = batch
        with handlers.substitute(data=dict.fromkeys(plates, indices)):
            return called(program, x0, *args)

    return fed
