"""The parts of a program's data: which of them is the datum, and what is given beside it."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from dpm_ppl.data import draw
from dpm_ppl.diffusion import Diffusion
from dpm_ppl.kernels.kernel import widened
from dpm_ppl.programs import Reader, called, checked, instantiate, takes
from dpm_ppl.tracing import trace_quietly, trace_shapes


@dataclass(frozen=True, eq=False)
class Parts:
    """How a program takes its data apart.

    Args:
        model: The program's model.
        definition: Its `diffusion`, of no argument, or of the context where there is one; None where the program is
            more than one chain of its data.
        names: Names of the parts, those of a dictionary or places in a tuple; () where data are the datum alone.
        datum: The part that is the datum; None where data are the datum alone.
        given: Whether the definition takes a context.
    """

    model: Callable[..., Any]
    definition: Callable[..., Diffusion] | None
    names: tuple[Any, ...] = ()
    datum: Any = None
    given: bool = False

    @property
    def beside(self) -> tuple[Any, ...]:
        """Names of the other parts."""
        return tuple(name for name in self.names if name != self.datum)

    def x0(self, batch: Any) -> Any:
        """The datum of each of a batch, shape (num_data, *event)."""
        return batch[self.datum] if self.names else batch

    def context(self, batch: Any) -> Any:
        """What is given beside: the other part, or of several a dictionary or tuple of them; None where none is."""
        return self._packed([batch[name] for name in self.beside])

    def batch(self, x0: Any, context: Any) -> Any:
        """A batch put together of both; where x0 is None the model draws it."""
        if not self.names:
            return x0
        parts = {**dict(zip(self.beside, self._unpacked(context), strict=True)), self.datum: x0}
        return parts if isinstance(self.datum, str) else tuple(parts[name] for name in self.names)

    @property
    def context_names(self) -> tuple[str, ...]:
        """What files call the parts of a context: their names in a dictionary, or of a tuple context_0 and so on."""
        if isinstance(self.datum, str) or not self.beside:
            return tuple(map(str, self.beside))
        return ("context",) if len(self.beside) == 1 else tuple(f"context_{i}" for i in range(len(self.beside)))

    def by_name(self, context: Any) -> dict[str, Any]:
        """The parts of a context, by the names that files have for them."""
        return dict(zip(self.context_names, self._unpacked(context), strict=True))

    def from_names(self, arrays: Any) -> Any:
        """The context of parts by these names."""
        return self._packed([arrays[name] for name in self.context_names])

    def _packed(self, values: list[Any]) -> Any:
        if len(values) < 2:
            return values[0] if values else None
        return dict(zip(self.beside, values, strict=True)) if isinstance(self.datum, str) else tuple(values)

    def _unpacked(self, context: Any) -> list[Any]:
        if len(self.beside) < 2:
            return [context] if self.beside else []
        return [context[name] for name in self.beside] if isinstance(self.datum, str) else list(context)

    @property
    def datum_name(self) -> str:
        """What files call the datum."""
        return self.datum if isinstance(self.datum, str) else "x0"

    def alone(self, data: Any) -> Any:
        """Data, where they are the datum alone, and so may know its density; else None."""
        return None if self.names else data

    def beside_batch(self, batch: Any) -> dict[str, Any]:
        """The option `context` of an algorithm for a batch; none where the definition takes none."""
        return {"context": self.context(batch)} if self.given else {}

    def built(self, params: Any, context: Any = None) -> Diffusion:
        """The diffusion with its parameters, beside a context where it takes one."""
        definition: Any = self.definition
        return instantiate(definition, params, context=context if self.given else None)

    def among(self, data: Any, params: Any) -> Diffusion:
        """The diffusion beside a few of the data, for what is the same beside all."""
        return self.built(params, self.context(draw(data, key=jax.random.key(0), num_data=16)))

    def generate(self, context: Any, size: int, *, model: Callable[..., Any] | None = None) -> Any:
        """Runs the model to draw data: `size` of them, or one for each context.

        Args:
            context: What is given, leaves of `size` rows; None where nothing is.
            size: How many.
            model: The model under handlers; by default as it is.
        """
        model = self.model if model is None else model
        return called(model, self.batch(None, context)) if self.names[1:] else model(size=size)


def rows_of(context: Any, rows: np.ndarray) -> Any:
    """Rows of a context, or of other data in parts; after the last row the first comes again."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows % len(leaf)], context)


def parts_of(program: Any, data: Any, *, by_value: bool = True) -> Parts:
    """Reads off a program which part of its data is the datum: what its chain observes, or else what it can draw.

    Args:
        program: A `dpm_ppl.programs.Program`, or any object with `model`; `diffusion` if it likes.
        data: Its data: a distribution, an array, or a tuple or dictionary of arrays.
        by_value: Whether the context of the model's chain is to be that of `diffusion` by value, and not by shape alone
            (`check` looks at what the laws make of it).

    Returns:
        The parts.

    Raises:
        ValueError: it cannot be told which part the datum is, or the model gives its diffusion another context than
            `diffusion` makes of the other parts.
    """
    model, raw = program.model, getattr(program, "conditional", None) or getattr(program, "diffusion", None)
    free, given = takes(raw), not takes(raw) and takes(raw, None)
    batch = _few(data)
    if not isinstance(batch, dict | tuple):
        return Parts(model, raw if free else None)
    names = tuple(batch) if isinstance(batch, dict) else tuple(range(len(batch)))
    statements = _stated(model, batch)
    observed = {name for name in names for statement in statements if statement.x0 is batch[name]}
    drawn = observed if len(observed) == 1 else {name for name in names if _can_be_drawn(model, name)}
    if len(drawn) != 1:
        raise ValueError(
            f"Expected to see which part of the data, {', '.join(map(str, names))}, is the datum and which are given "
            f"beside it; the model's chains observe {', '.join(map(str, sorted(observed, key=str))) or 'none of them'} "
            f"as they are, and {len(drawn)} of its arguments for them have the default None. Write it as model(c, "
            "x0=None), with obs=x0."
        )
    parts = Parts(model, raw if free or given else None, names, next(iter(drawn)), given)
    if parts.definition is not None:
        _require_same_context(parts, batch, by_value=by_value)
    return parts


def _few(data: Any) -> Any:
    """Three data of those that have parts, in arrays that a program hands on as they are."""
    if isinstance(data, dist.Distribution):
        shapes = jax.eval_shape(lambda key: data.sample(key, (3,)), jax.random.key(0))
        if not isinstance(shapes, dict | tuple):
            return None
    elif not isinstance(data, dict | tuple):
        return None
    batch = draw(data, key=jax.random.key(0), num_data=3)
    kept = {
        name: widened(jnp.asarray(batch[name])) for name in (batch if isinstance(batch, dict) else range(len(batch)))
    }
    return kept if isinstance(batch, dict) else tuple(kept.values())


def _stated(model: Callable[..., Any], batch: Any) -> list[Any]:
    """The chains that a model states of a batch, on shapes alone."""
    reader = Reader("model")
    trace_shapes(lambda *_: None, partial(called, model, batch), within=reader)
    return [declared.statement for declared in reader.statements]


def _can_be_drawn(model: Callable[..., Any], name: Any) -> bool:
    """Whether the model's argument for a part has the default None."""
    parameters = inspect.signature(model).parameters
    if isinstance(name, str):
        return name in parameters and parameters[name].default is None
    return name < len(parameters) and list(parameters.values())[name].default is None


def _require_same_context(parts: Parts, batch: Any, *, by_value: bool) -> None:
    """Checks that the model's chain has the context that `diffusion` makes of the parts beside the datum."""

    @jax.jit  # which leaves out what no context depends on, such as the network
    def contexts(batch: Any) -> tuple[list[Any], Any]:
        reader = Reader("model")
        trace_quietly(partial(called, parts.model, batch), within=reader)
        stated = [declared.statement for declared in reader.statements]
        found = [statement.diffusion.context for statement in stated if statement.x0 is batch[parts.datum]]
        definition: Any = parts.definition
        given = [parts.context(batch)] if parts.given else []
        return found, checked(trace_quietly(definition, *given)[0]).context

    found, own = contexts(batch)
    for context in found:
        if _shapes(context) != _shapes(own) or (by_value and not _equal(context, own)):
            given = f"what is beside the datum, {_shapes(parts.context(batch))}" if parts.given else "no argument"
            got = "other values" if _shapes(context) == _shapes(own) else _shapes(context)
            raise ValueError(
                f"Expected the model's chain beside the context that `diffusion` makes of {given}, {_shapes(own)}; got "
                f"{got}. Let both call diffusion with the parts of the data other than the datum, as they are: what is "
                "done to them is done in there."
            )


def _equal(context: Any, own: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.allclose, context, own)))


def _shapes(tree: Any) -> Any:
    return jax.tree.map(np.shape, tree)
