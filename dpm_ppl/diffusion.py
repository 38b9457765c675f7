"""A diffusion probabilistic model: a fixed forward kernel, and the reverse steps that undo it."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.primitives import Messenger

from dpm_ppl.distributions import coordinate_support
from dpm_ppl.kernels.kernel import Kernel, is_concrete, require_event_shape, step_number, widened
from dpm_ppl.leaves import arrays_as_leaves
from dpm_ppl.tracing import Sites, shapes_of, trace_of, trace_shapes

Reverse = Callable[..., dist.Distribution]
Decode = Callable[..., dist.Distribution]


@dataclass(frozen=True, eq=False)
class _Seeing:
    """`reverse` or `decode` as the library calls it, without a context: each element of the batch sees its own.

    Args:
        function: The user's, which takes a context last.
        context: Pytree of arrays, whose leaves begin with the batch's shape.
        event_dim: Number of dimensions of an event.
        batch_shape: The batch's shape, where it is known; else all that x has in front of its event.
    """

    function: Callable[..., dist.Distribution]
    context: Any
    event_dim: int
    batch_shape: tuple[int, ...] | None = None

    def __call__(self, x: Array, *t: Array) -> dist.Distribution:
        return self.function(x, *t, self._beside(jnp.shape(x)[: jnp.ndim(x) - self.event_dim]))

    def _beside(self, batch: tuple[int, ...]) -> Any:
        """The context of states of a batch shape, whose last dimensions are the data's."""
        own = batch if self.batch_shape is None else self.batch_shape
        in_front = batch[: len(batch) - len(own)]
        _require_beside(self.context, own)
        if batch[len(in_front) :] != own:
            raise ValueError(f"Expected states of batch shape (..., *{own}), that of the context; got {batch}.")
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, in_front + jnp.shape(leaf)), self.context)


def _require_beside(context: Any, batch: tuple[int, ...]) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(context):
        if jnp.shape(leaf)[: len(batch)] != batch:
            raise ValueError(
                f"Expected a context for each datum, leaves that begin with the batch shape {batch}; got "
                f"{jnp.shape(leaf)}{f' at {jax.tree_util.keystr(path)}' if path else ''}."
            )


@dataclass(frozen=True, eq=False)
class Diffusion:
    """A forward kernel and its learned reversal.

    It is a pytree: the arrays of its context, and of its kernel, `reverse` and `decode` where these are pytrees (the
    kernels here, Equinox modules, `jax.tree_util.Partial` and methods of such are), can be scanned, vmapped and jitted
    over. A function is what it closes over: a value made in a transformation, or in the body of NumPyro's `scan`, such
    as its carry, belongs in the context.

    Args:
        kernel: The Markov diffusion kernel.
        reverse: p(x^(t-1) | x^t) as `reverse(xt, t)`, for t = 2..T. `xt` has shape (*batch, *event) and `t` is an
            integer array that broadcasts against batch; returns any NumPyro distribution of batch shape (*batch) and
            event shape (*event). It is called once on all steps together, and inside a scan: declare parameters and
            modules outside it.
        decode: p(x^0 | x^1) as `decode(x1)`; by default the paper's fixed last step, `kernel.step(x1, 1)`.
        context: What is given beside each datum, such as a label or a measurement: an array or a pytree, whose leaves
            begin with the batch's shape. Then `reverse(xt, t, c)` and `decode(x1, c)` get it beside x, of x's batch,
            however steps, particles or blocks rearrange that. From the record itself both are called without it.

    Raises:
        TypeError: the kernel lacks a part, its events are no single arrays, `reverse` or `decode` is no function, a law
            is no NumPyro distribution, or the context is no pytree of arrays.
        ValueError: `reverse` or `decode` returns the wrong batch shape, event shape or support, as one does that closes
            over something of the data's batch; it, or a law of the kernel, has side effects: declares sites, draws a
            key by `numpyro.prng_key()`, or reads what an earlier call kept, such as the running averages of a network;
            the context holds NaN or infinity. With a context the first of these are said where its batch is known, at
            the statement.

    Source: Sohl-Dickstein et al. 2015, section 2; the fixed last step is that of section 2.3 ("edge effect").
    """

    kernel: Kernel
    reverse: Reverse
    decode: Decode = None  # type: ignore[assignment]
    context: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.kernel, Kernel):
            missing = [
                name for name in ("num_steps", "event_shape", "stationary", "step") if not hasattr(self.kernel, name)
            ]
            came = f"no {', '.join(missing)}."
            if isinstance(self.kernel, tuple | list | dict):
                came = f"a {type(self.kernel).__name__}. {ONE_ARRAY}"
            raise TypeError(f"Expected a kernel with num_steps, event_shape, stationary and step; got {came}")
        try:
            require_event_shape(self.kernel.event_shape)
        except TypeError as error:
            raise TypeError(f"{error} {ONE_ARRAY}") from error
        if not type(self.kernel).__module__.startswith("dpm_ppl.kernels."):  # whose laws are plain functions
            require_laws(self.kernel, "stationary", "step")
        if self.decode is None or self.has_fixed_last_step:  # of another kernel, from dataclasses.replace
            object.__setattr__(self, "decode", _LastStep(self.kernel))
        for name in ("reverse", "decode"):
            if not callable(getattr(self, name)):
                raise TypeError(f"Expected `{name}` to be a function; got {type(getattr(self, name)).__name__}.")
        if self.context is not None:
            object.__setattr__(self, "context", _arrays(self.context))
            self._see(self.context, None)
        else:
            self._try({"reverse": self.reverse, "decode": lambda x, t: self.decode(x)})

    def of_batch(self, batch_shape: tuple[int, ...]) -> "Diffusion":
        """The same, its context known to belong to a batch of data; it is tried there for the first time.

        Args:
            batch_shape: Shape of the batch, with which every leaf of the context begins.

        Raises:
            TypeError, ValueError: a leaf does not; or `reverse` or `decode` returns something wrong (see `Diffusion`).
        """
        if self.context is None:
            return self
        _require_beside(self.context, batch_shape)
        dims = len(batch_shape)

        def foreign(law: Any) -> Reverse:
            """A law beside states and contexts of another batch than the data's: closing over theirs is refused."""

            def tried(x: Array, t: Array) -> dist.Distribution:
                batch = x.shape[: x.ndim - len(self.event_shape)]
                context = jax.tree.map(lambda leaf: jnp.zeros(batch + leaf.shape[dims:], leaf.dtype), self.context)
                return law.function(x, *t, context)

            return tried

        laws = {"reverse": lambda x, t: foreign(self.reverse)(x, (t,))}
        if not self.has_fixed_last_step:
            laws["decode"] = lambda x, t: foreign(self.decode)(x, ())
        self._try(laws)
        return self.beside(self.context, batch_shape)

    def beside(self, context: Any, batch_shape: tuple[int, ...] | None = None) -> "Diffusion":
        """The same with another context, of the same structure: of other data, or of some of the same in another order.

        Args:
            context: As in `Diffusion`.
            batch_shape: Shape of its batch, where states may have more dimensions in front; by default they have none.
        """
        if self.context is None:
            return self
        other = copy.copy(self)
        other._see(context, batch_shape)
        return other

    def _see(self, context: Any, batch_shape: tuple[int, ...] | None) -> None:
        object.__setattr__(self, "context", context)
        for name in ("reverse",) if self.has_fixed_last_step else ("reverse", "decode"):
            law = getattr(self, name)
            function = law.function if isinstance(law, _Seeing) else law
            object.__setattr__(self, name, _Seeing(function, context, len(self.event_shape), batch_shape))

    def _try(self, laws: dict[str, Reverse]) -> None:
        """Runs the steps on shapes alone, for batches of two sizes, as what closes over the data's fits one at most."""
        if self.has_fixed_last_step:
            laws = {name: law for name, law in laws.items() if name != "decode"}
        if self.num_steps == 1:
            laws = {name: law for name, law in laws.items() if name != "reverse"}
        stationary = self.kernel.stationary()
        one = jax.eval_shape(stationary.sample, jax.random.key(0))
        for batch in _BATCHES:
            state, t = jax.ShapeDtypeStruct(batch + one.shape, one.dtype), jax.ShapeDtypeStruct(batch[-1:], jnp.int32)
            for name, law in laws.items():
                require = partial(_require_law, self.event_shape, stationary.support, state=state, name=name)
                _try_law(law, state, t, name=name, require=require)

    @property
    def has_fixed_last_step(self) -> bool:
        """Whether `decode` is the default."""
        return isinstance(self.decode, _LastStep)

    @property
    def batch_shape(self) -> tuple[int, ...] | None:
        """Shape of the batch that the context belongs to; () without one, and None where it is not known yet."""
        return self.reverse.batch_shape if isinstance(self.reverse, _Seeing) else ()

    @property
    def num_steps(self) -> int:
        """Number of steps T."""
        return self.kernel.num_steps

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return self.kernel.event_shape


@dataclass(frozen=True, eq=False)
class _LastStep:
    """The paper's fixed last step."""

    kernel: Kernel

    def __call__(self, x1: Array) -> dist.Distribution:
        return self.kernel.step(x1, step_number(1))


@dataclass(frozen=True, eq=False)
class _Carried:
    """A function of a diffusion that was taken apart and made anew, which what it closes over may not outlive."""

    function: Callable[..., dist.Distribution]

    def __call__(self, *args: Any) -> dist.Distribution:
        try:
            return self.function(*args)
        except jax.errors.UnexpectedTracerError as error:
            raise ValueError(
                "Expected a Diffusion that holds all that its laws depend on; one closes over a value made inside a "
                "transformation, such as jax.vmap or jit, out of which the Diffusion came: the value is lost there. "
                f"{_HOLD} jax.tree_util.Partial(lambda value, x, t: ..., value) is one."
            ) from error


def _own(law: Any) -> Any:
    """The user's function behind a law; a method as a pytree, of which its object's arrays are leaves."""
    while isinstance(law, _Seeing | _Carried):
        law = law.function
    return jax.tree_util.Partial(law.__func__, law.__self__) if inspect.ismethod(law) else law


def _parts(diffusion: Diffusion) -> Any:
    """What a diffusion is made of, each once."""
    laws = [diffusion.reverse] if diffusion.has_fixed_last_step else [diffusion.reverse, diffusion.decode]
    functions = [_own(law) for law in laws]
    seen_in = diffusion.batch_shape if isinstance(diffusion.reverse, _Seeing) else None
    return diffusion.kernel, functions, diffusion.context, seen_in


def _of_parts(parts: Any) -> Diffusion:
    kernel, functions, context, seen_in = parts
    functions = [_Carried(law) if jax.tree_util.all_leaves([law]) else law for law in functions]
    diffusion = object.__new__(Diffusion)
    decode = functions[1] if functions[1:] else _LastStep(kernel)
    for name, value in {"kernel": kernel, "context": context, "reverse": functions[0], "decode": decode}.items():
        object.__setattr__(diffusion, name, value)
    if context is not None:
        diffusion._see(context, seen_in)
    return diffusion


arrays_as_leaves(Diffusion, _parts, _of_parts)

_HOLD = (
    "Give it as the Diffusion's `context`, and take it as an argument: reverse(x, t, c). Of a kernel, or of a law that "
    "is a pytree, it may be an array."
)

ONE_ARRAY = (
    "An event is one array: put its parts side by side in one, such as a label behind a vector, and let each "
    "law be one distribution over all of it. Parts with a kernel each are a chain each: two statements in one program, "
    "where the datum of the one may be the other's context. What is only given beside a datum is its Diffusion's "
    "`context`."
)

Definition = Callable[..., Diffusion]  # declares parameters, as a program does, and returns the record; of a context


def require_nothing_made_with(diffusion: Diffusion, made: Array) -> None:
    """Refuses laws that close over something of the trace in which an array was made, as nothing of it outlives it.

    Args:
        diffusion: The diffusion; its own leaves may be of that trace.
        made: The array, such as the number of the iteration in the body of NumPyro's scan.

    Raises:
        ValueError: a law does.
    """
    leaves, structure = jax.tree.flatten(diffusion)

    def laws(leaves: list[Array], x: Array, t: Array) -> list[Array]:
        own = jax.tree.unflatten(structure, leaves)
        back = [own.reverse(x, t)] if own.num_steps > 1 else []
        given = own.kernel.stationary(), own.kernel.step(x, t), own.decode(x), back
        return [leaf for leaf in jax.tree.leaves(given) if isinstance(leaf, Array)]

    state, t = _state(diffusion.kernel, diffusion.batch_shape or ()), jax.ShapeDtypeStruct((), jnp.int32)
    closed_over = jax.make_jaxpr(laws)(shapes_of(leaves), state, t).consts
    if any(trace_of(const) is trace_of(made) for const in closed_over):
        raise ValueError(
            "Expected a Diffusion that holds all that its laws depend on; they close over a value made in the body of "
            f"NumPyro's scan, such as its carry, which is lost when the scan is over. {_HOLD}"
        )


_BATCHES = (3, 2), (5, 7)  # of states that steps are tried on


def require_laws(kernel: Kernel, *names: str) -> None:
    """Refuses a kernel one of whose laws has side effects: what it declares, draws or keeps is lost in a scan.

    Args:
        kernel: The kernel.
        names: Its laws, "stationary", "step", "marginal" and "posterior"; those that it lacks are none.

    Raises:
        TypeError: a law is no distribution.
        ValueError: a law declares sites, draws a key, or keeps something from one call to the next.
    """
    for batch in _BATCHES:  # twice: what one call keeps, the next finds
        t = jax.ShapeDtypeStruct(batch[-1:], jnp.int32)
        for name in names:
            if hasattr(kernel, name):
                state = None if name == "stationary" else _state(kernel, batch)
                arguments = {"stationary": (), "posterior": (state, state, t)}.get(name, (state, t))
                require = partial(_require_distribution, name=f"kernel.{name}")
                _try_law(getattr(kernel, name), *arguments, name=f"kernel.{name}", require=require)


def _state(kernel: Kernel, batch: tuple[int, ...]) -> Any:
    """Shape and type of a batch of states."""
    stationary = kernel.stationary()
    return jax.eval_shape(lambda key: stationary.sample(key, batch), jax.random.key(0))


def _arrays(context: Any) -> Any:
    """A context as a pytree of arrays, or a clear error; values are checked where they are known."""
    leaves, structure = jax.tree.flatten(context)
    if not leaves:
        raise TypeError(f"Expected `context` to be an array or a pytree of arrays; got {context!r}, which holds none.")
    arrays = []
    for leaf in leaves:
        try:
            array = jnp.asarray(leaf)
        except (TypeError, ValueError) as error:
            kind = type(leaf).__name__
            raise TypeError(f"Expected `context` to be a pytree of arrays; got a {kind} in it.") from error
        if is_concrete(array) and jnp.issubdtype(array.dtype, jnp.inexact) and not np.isfinite(np.asarray(array)).all():
            raise ValueError(f"Expected a finite `context`; got NaN or infinity in a leaf of shape {array.shape}.")
        arrays.append(array)
    return jax.tree.unflatten(structure, arrays)


class _NoKeys(Messenger):
    """Refuses random keys drawn in a law, by name."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__()

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "prng_key":
            raise ValueError(
                f"Expected `{self.name}` to be a plain function of its arguments; it draws a key by "
                "numpyro.prng_key(), which a scan over the steps can't. Draw it where the Diffusion is made, and close "
                "over it: jax.random.fold_in(key, t) is another for each step."
            )


def _try_law(
    law: Callable[..., Any],
    *arguments: Any,
    name: str,
    require: Callable[[Any], None] = lambda result: None,
) -> None:
    """Runs a law on shapes alone, and checks what it returns; one that has side effects is refused."""

    def read(result: Any, sites: Sites) -> None:
        if sites:
            raise ValueError(
                f"Expected `{name}` to be a plain function of its arguments; it declares the sites {list(sites)}. "
                "Inside a scan they would silently keep their initial values: declare them outside it, where the "
                "Diffusion is made."
            )
        require(result)

    try:
        trace_shapes(read, law, *arguments, within=_NoKeys(name))
    except jax.errors.UnexpectedTracerError as error:
        raise ValueError(
            f"Expected `{name}` to be a plain function of its arguments; it reads what an earlier call, its own or "
            "another law's, kept: a network's state (running averages of BatchNorm, a key that moves on), a counter. A "
            "scan over the steps can't keep it. Normalise without one (LayerNorm, GroupNorm), or fix it: in inference "
            "mode, with the parameters alone declared. NumPyro's flax_module and nnx_module write back even a state "
            "that stays as it is; where the Diffusion is made, params = numpyro.param('net', variables['params']), and "
            "net.apply({**variables, 'params': params}, x), or nnx.merge(graph, params, state)(x) of an nnx.split."
        ) from error
    except (TypeError, ValueError) as error:
        if not arguments or "ncompatible shapes" not in str(error):
            raise
        raise ValueError(
            f"Expected `{name}` to work for states of any batch shape; for {arguments[0].shape} it fails: {error} What "
            "goes with each datum, such as a label, is its Diffusion's `context`, not something to close over."
        ) from error


def _require_law(event_shape: tuple[int, ...], support: Any, result: Any, *, state: Any, name: str) -> None:
    """What is wrong with the law that a reverse step returned for states of two batch dimensions, if anything."""
    batch = state.shape[:2]
    _require_distribution(result, name)
    if result.event_shape != event_shape:
        raise ValueError(
            f"Expected `{name}` to return event shape {event_shape}; got {result.event_shape} with batch shape "
            f"{result.batch_shape} for x of batch shape {batch}. `.to_event({len(event_shape)})` on independent "
            "coordinates makes them one event."
        )
    if result.batch_shape != batch:
        raise ValueError(
            f"Expected `{name}` to return batch shape {batch} for x of shape {state.shape} and t of {batch[-1:]}; "
            f"got {result.batch_shape}. It must work for any batch shape, with t broadcast against it: what goes with "
            "each datum, such as a label, is its Diffusion's `context`."
        )
    if result.support.is_discrete != support.is_discrete:
        kinds = {True: "discrete", False: "continuous"}
        raise ValueError(
            f"Expected `{name}` to return a {kinds[support.is_discrete]} distribution, as the kernel's "
            f"states are; got the {kinds[result.support.is_discrete]} {type(result).__name__}."
        )
    expected, came = coordinate_support(support), coordinate_support(result.support)
    # The whole line is no part of any other support; of two others the one may lie within the other.
    fixed = expected in (constraints.real, constraints.boolean)
    if came != expected and (fixed or came == constraints.real):
        raise ValueError(
            f"Expected `{name}` to return a distribution over the kernel's states, {expected}; got the "
            f"{type(result).__name__} over {came}."
        )


def _require_distribution(result: Any, name: str) -> None:
    if not isinstance(result, dist.Distribution):
        several = f" {ONE_ARRAY}" if isinstance(result, tuple | list | dict) else ""
        raise TypeError(f"Expected `{name}` to return a NumPyro distribution; got {type(result).__name__}.{several}")


def require_data(kernel: Kernel, x0: ArrayLike) -> Array:
    """Data as an array that a kernel can diffuse, or a clear error; values are checked where they are known.

    Args:
        kernel: The kernel.
        x0: Data, shape (*batch, *event).

    Returns:
        x0 as an array, in 32 bits at least.

    Raises:
        TypeError: x0 is not numeric, or holds integers where the kernel's states are continuous.
        ValueError: x0 does not end in the event shape, is empty, or holds NaN, infinity or values outside the support.
    """
    given = x0
    try:
        if isinstance(x0, tuple) and any(isinstance(part, Array | np.ndarray) and part.ndim for part in x0):
            raise TypeError  # which would be data of one batch more
        x0 = jnp.asarray(x0)
    except (TypeError, ValueError) as error:
        several = f" {ONE_ARRAY}" if isinstance(x0, tuple | list | dict) else ""
        raise TypeError(f"Expected `x0` to be a numeric array; got {type(x0).__name__}.{several}") from error
    support = kernel.stationary().support
    came, x0 = x0.dtype, widened(x0)
    if jnp.issubdtype(x0.dtype, jnp.complexfloating) or not (
        support.is_discrete or jnp.issubdtype(x0.dtype, jnp.floating)
    ):
        raise TypeError(
            f"Expected `x0` to hold floating-point numbers, as the kernel's states are continuous; got {came}. "
            "Convert it, and scale it to about zero mean and unit variance."
        )
    shape = kernel.event_shape
    if x0.ndim < len(shape) or x0.shape[x0.ndim - len(shape) :] != shape:
        raise ValueError(f"Expected `x0` of shape (*batch, *event) with event shape {shape}; got {x0.shape}.")
    if x0.size == 0:
        raise ValueError(f"Expected at least one datum in `x0`; got shape {x0.shape}.")
    known = x0 if is_concrete(x0) else given  # a NumPy array is known also while a program is traced
    if isinstance(known, np.ndarray | Array) and is_concrete(known):
        values = widened(np.asarray(known))
        if not np.isfinite(values).all():
            raise ValueError(
                f"Expected `x0` to be finite; got {int((~np.isfinite(values)).sum())} NaN or infinite values."
            )
        require_within(support, values)
    return x0


def require_within(support: Any, values: Any) -> None:
    """Checks that known values lie in the support of a kernel's states; ValueError if one does not."""
    with jax.ensure_compile_time_eval():
        inside = bool(jnp.all(support(values)))
    if not inside:
        raise ValueError(
            f"Expected `x0` within the support of the kernel's states, {support}; got values from {values.min()} to "
            f"{values.max()}."
        )
