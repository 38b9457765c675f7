"""A diffusion probabilistic model: a fixed forward kernel, and the reverse steps that undo it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints

from dpm_ppl.kernels.kernel import Kernel, is_concrete
from dpm_ppl.tracing import trace_shapes

Reverse = Callable[[Array, Array], dist.Distribution]
Decode = Callable[[Array], dist.Distribution]


@dataclass(frozen=True, eq=False)
class Diffusion:
    """A forward kernel and its learned reversal.

    Args:
        kernel: The Markov diffusion kernel.
        reverse: p(x^(t-1) | x^t) as `reverse(xt, t)`, for t = 2..T. `xt` has shape (*batch, *event) and `t` is an
            integer array that broadcasts against batch; returns any NumPyro distribution of batch shape (*batch) and
            event shape (*event). It is called once on all steps together, and inside a scan: declare parameters and
            modules outside it.
        decode: p(x^0 | x^1) as `decode(x1)`; by default the paper's fixed last step, `kernel.step(x1, 1)`.

    Attributes:
        has_fixed_last_step: Whether `decode` is the default.

    Raises:
        TypeError: the kernel lacks a part, or `reverse` or `decode` is not callable or returns no NumPyro distribution.
        ValueError: `reverse` or `decode` returns the wrong batch shape, event shape or support; or it, or a law of the
            kernel, declares sites of its own.

    Source: Sohl-Dickstein et al. 2015, section 2; the fixed last step is that of section 2.3 ("edge effect").
    """

    kernel: Kernel
    reverse: Reverse
    decode: Decode = None  # type: ignore[assignment]
    has_fixed_last_step: bool = field(init=False, default=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.kernel, Kernel):
            missing = [
                name for name in ("num_steps", "event_shape", "stationary", "step") if not hasattr(self.kernel, name)
            ]
            raise TypeError(
                f"Expected a kernel with num_steps, event_shape, stationary and step; got no {', '.join(missing)}."
            )
        state = _state(self.kernel)
        _require_laws(self.kernel, state, "step")
        if self.decode is None:
            object.__setattr__(self, "decode", lambda x1: self.kernel.step(x1, 1))
            object.__setattr__(self, "has_fixed_last_step", True)
        elif callable(self.decode):
            _require_step(self.kernel, state, lambda x, t: self.decode(x), "decode")
        for name in ("reverse", "decode"):
            if not callable(getattr(self, name)):
                raise TypeError(f"Expected `{name}` to be a function; got {type(getattr(self, name)).__name__}.")
        if self.num_steps > 1:
            _require_step(self.kernel, state, self.reverse, "reverse")

    @property
    def num_steps(self) -> int:
        """Number of steps T."""
        return self.kernel.num_steps

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return self.kernel.event_shape


Definition = Callable[[], Diffusion]  # declares parameters, as a program does, and returns the record


_BATCH = (3, 2)  # of states that steps are tried on


def require_laws(kernel: Kernel, *names: str) -> None:
    """Refuses a kernel one of whose laws declares sites: bounds and chains would take their initial values for ever.

    Args:
        kernel: The kernel.
        names: Its laws, "step", "marginal" and "posterior"; those that it lacks are none.

    Raises:
        ValueError: a law declares sites.
    """
    _require_laws(kernel, _state(kernel), *names)


def _require_laws(kernel: Kernel, state: Any, *names: str) -> None:
    t = jax.ShapeDtypeStruct(_BATCH[-1:], jnp.int32)
    for name in names:
        if hasattr(kernel, name):
            arguments = (state, state, t) if name == "posterior" else (state, t)
            _returned(getattr(kernel, name), *arguments, name=f"kernel.{name}")


def _state(kernel: Kernel) -> Any:
    """Shape and type of a batch of states."""
    stationary = kernel.stationary()
    return jax.eval_shape(lambda key: stationary.sample(key, _BATCH), jax.random.key(0))


def _returned(law: Callable[..., Any], *arguments: Any, name: str) -> Any:
    """Runs a law on shapes alone, and returns what it does; one that declares sites is refused."""
    result, sites = trace_shapes(law, *arguments)
    if sites:
        raise ValueError(
            f"Expected `{name}` to be a plain function of its arguments; it declares the sites {list(sites)}. Inside a "
            "scan they would silently keep their initial values: declare them outside it, where the Diffusion is made."
        )
    return result


def _require_step(kernel: Kernel, state: Any, step: Reverse, name: str) -> None:
    """Runs a reverse step on shapes alone, for one batch of two dimensions, and says what is wrong with its result."""
    batch, stationary = _BATCH, kernel.stationary()
    result = _returned(step, state, jax.ShapeDtypeStruct(batch[-1:], jnp.int32), name=name)
    if not isinstance(result, dist.Distribution):
        raise TypeError(f"Expected `{name}` to return a NumPyro distribution; got {type(result).__name__}.")
    if result.event_shape != kernel.event_shape:
        raise ValueError(
            f"Expected `{name}` to return event shape {kernel.event_shape}; got {result.event_shape} with batch shape "
            f"{result.batch_shape} for x of batch shape {batch}. `.to_event({len(kernel.event_shape)})` on independent "
            "coordinates makes them one event."
        )
    if result.batch_shape != batch:
        raise ValueError(
            f"Expected `{name}` to return batch shape {batch} for x of shape {state.shape} and t of {batch[-1:]}; "
            f"got {result.batch_shape}. It must work for any batch shape, with t broadcast against it."
        )
    if result.support.is_discrete != stationary.support.is_discrete:
        kinds = {True: "discrete", False: "continuous"}
        raise ValueError(
            f"Expected `{name}` to return a {kinds[stationary.support.is_discrete]} distribution, as the kernel's "
            f"states are; got the {kinds[result.support.is_discrete]} {type(result).__name__}."
        )
    expected, came = _coordinate(stationary.support), _coordinate(result.support)
    if expected in (constraints.real, constraints.boolean) and came != expected:
        raise ValueError(
            f"Expected `{name}` to return a distribution over the kernel's states, {expected}; got the "
            f"{type(result).__name__} over {came}."
        )


def _coordinate(support: Any) -> Any:
    """The support of one coordinate, under any event dimensions."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def require_data(kernel: Kernel, x0: ArrayLike) -> Array:
    """Data as an array that a kernel can diffuse, or a clear error; values are checked where they are known.

    Args:
        kernel: The kernel.
        x0: Data, shape (*batch, *event).

    Returns:
        x0 as an array.

    Raises:
        TypeError: x0 is not numeric, or holds integers where the kernel's states are continuous.
        ValueError: x0 does not end in the event shape, is empty, or holds NaN, infinity or values outside the support.
    """
    given = x0
    try:
        x0 = jnp.asarray(x0)
    except (TypeError, ValueError) as error:
        raise TypeError(f"Expected `x0` to be a numeric array; got {type(x0).__name__}.") from error
    support = kernel.stationary().support
    if jnp.issubdtype(x0.dtype, jnp.complexfloating) or not (
        support.is_discrete or jnp.issubdtype(x0.dtype, jnp.floating)
    ):
        raise TypeError(
            f"Expected `x0` to hold floating-point numbers, as the kernel's states are continuous; got {x0.dtype}. "
            "Convert it, and scale it to about zero mean and unit variance."
        )
    shape = kernel.event_shape
    if x0.ndim < len(shape) or x0.shape[x0.ndim - len(shape) :] != shape:
        raise ValueError(f"Expected `x0` of shape (*batch, *event) with event shape {shape}; got {x0.shape}.")
    if x0.size == 0:
        raise ValueError(f"Expected at least one datum in `x0`; got shape {x0.shape}.")
    known = x0 if is_concrete(x0) else given  # a NumPy array is known also while a program is traced
    if isinstance(known, np.ndarray | Array) and is_concrete(known):
        values = np.asarray(known)
        if not np.isfinite(values).all():
            raise ValueError(
                f"Expected `x0` to be finite; got {int((~np.isfinite(values)).sum())} NaN or infinite values."
            )
        with jax.ensure_compile_time_eval():
            inside = bool(jnp.all(support(values)))
        if not inside:
            raise ValueError(
                f"Expected `x0` within the support of the kernel's states, {support}; got values from {values.min()} "
                f"to {values.max()}."
            )
    return x0
