"""A program: what its file declares, read quietly, and its diffusion with parameters put in."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.primitives import Messenger

from dpm_ppl.data import drawn_beside
from dpm_ppl.diffusion import Definition, Diffusion
from dpm_ppl.statements import Statement
from dpm_ppl.tracing import shapes_of, trace_quietly, trace_shapes

NAMES = ("model", "guide", "data")


@dataclass(frozen=True)
class Program:
    """What a program's file holds.

    Args:
        name: Its name in models/, or the absolute path of a user's own file: either loads it again.
        path: The file.
        summary: First line of the file's docstring.
        model: `model(x0=None, size=1)`, the reverse chain; returns x0 of shape (size, *event). Of data in parts it
            gets each part, those of a dictionary by name: `model(c, x0=None)`, and generates a datum for each c.
        guide: `guide(x0)`, the forward chain; of data in parts, of the same.
        data: Returns the data: a NumPyro distribution; an array of shape (num_data, *event); or in parts, a datum and
            what is given beside it: a tuple or dictionary of arrays of one length (for a distribution beside arrays see
            `dpm_ppl.data.drawn_beside`), or a distribution whose draws are such, as a simulator's may be.
        diffusion: Declares parameters and returns a `Diffusion`; None where the program is more than one chain of its
            data, or none: its file has no `diffusion` that is called without arguments.
        conditional: `diffusion` where it takes one argument, what is given beside each datum; else None.
        recipe: Keyword arguments for `dpm_ppl.inference.fit`; empty where the file has none.
        held_out: Returns data to evaluate on, which are not fitted; None where the file has no `held_out`.
    """

    name: str
    path: Path
    summary: str
    model: Callable[..., Any]
    guide: Callable[..., Any]
    data: Callable[[], Any]
    diffusion: Callable[[], Diffusion] | None = None
    conditional: Callable[[Any], Diffusion] | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    held_out: Callable[[], Any] | None = None


def program_of(name: str, path: Path, module: ModuleType) -> Program:
    """What a module declares, as a program of that name in that file; TypeError or ValueError where it is none."""
    missing = [part for part in NAMES if not hasattr(module, part)]
    if missing:
        raise ValueError(
            f"Expected {path} to have the names {', '.join(NAMES)}; it lacks {', '.join(missing)}. "
            "dpm_ppl/models/swiss_roll.py is a page to copy."
        )
    for part in ("model", "guide", "diffusion"):
        if hasattr(module, part) and not callable(getattr(module, part)):
            kind = type(getattr(module, part)).__name__
            raise TypeError(f"Expected `{part}` in {path} to be a function; got {kind}.")
    recipe, diffusion = getattr(module, "recipe", {}), getattr(module, "diffusion", None)
    if not isinstance(recipe, Mapping):
        raise TypeError(f"Expected `recipe` in {path} to be a dict of options of fit; got {type(recipe).__name__}.")
    return Program(
        name=name,
        path=path,
        summary=(module.__doc__ or "").strip().split("\n")[0],
        model=module.model,
        guide=module.guide,
        data=lambda: _data("data", module.data, path),
        diffusion=diffusion if takes(diffusion) else None,
        conditional=diffusion if not takes(diffusion) and takes(diffusion, None) else None,
        recipe=recipe,
        held_out=(lambda: _data("held_out", module.held_out, path)) if hasattr(module, "held_out") else None,
    )


def takes(function: Any, *args: Any) -> bool:
    """Whether a function can be called with these arguments; what is none cannot."""
    try:
        inspect.signature(function).bind(*args)
    except TypeError:
        return False
    return True


def called(program: Callable[..., Any], batch: Any, *args: Any) -> Any:
    """Runs a program on a batch as it takes it: an array, the parts of a tuple, or those of a dictionary by name."""
    if isinstance(batch, dict):
        return program(*args, **batch)
    return program(*batch, *args) if isinstance(batch, tuple) else program(batch, *args)


def _data(name: str, data: Any, path: Path) -> Any:
    if callable(data) and not isinstance(data, dist.Distribution):  # a distribution is callable too: it would draw
        data = data()
    if not isinstance(data, dist.Distribution | Array | np.ndarray | tuple | dict):
        raise TypeError(
            f"Expected `{name}` in {path} to be a NumPyro distribution or an array of shape (num_data, *event), a "
            f"tuple or dictionary of such, or a function that returns one; got {type(data).__name__}."
        )
    return drawn_beside(data, name=name)


def instantiate(definition: Definition, params: Mapping[str, Any], *, context: Any = None) -> Diffusion:
    """Runs a program's definition with its parameters put in.

    Works inside `jax.jit` with traced parameters; no message reaches the handlers around it.

    Args:
        definition: The function that declares parameters and modules, and returns a `dpm_ppl.Diffusion`.
        params: Value of each parameter by name, as `SVI.get_params` gives them; other names are ignored.
        context: What a definition of one argument is of: an array or pytree whose leaves begin with the batch's shape.

    Returns:
        The diffusion with these parameters.

    Raises:
        TypeError: `definition` is no function, or returns something else; it takes a context and none is given, or the
            other way round; `params` is no mapping.
        ValueError: a parameter is missing or of another structure or shape, or the definition samples a latent that has
            no value.
    """
    if not callable(definition):
        raise TypeError(
            f"Expected `definition` to be the function that declares parameters and returns a dpm_ppl.Diffusion; "
            f"got {type(definition).__name__}."
        )
    if not isinstance(params, Mapping):
        raise TypeError(f"Expected `params` to be a dictionary of parameters by name; got {type(params).__name__}.")
    given = () if context is None else (context,)
    _require_context(definition, *given)
    require_params(_declared(definition, *given), params)
    built = checked(trace_quietly(definition, *given, params=params)[0])
    if context is not None and built.context is None:
        raise TypeError(
            "Expected a definition of a context to return a Diffusion that has it, Diffusion(kernel, reverse, "
            "context=c); got one without: a context that is closed over does not follow its data."
        )
    return built


def _require_context(definition: Definition, *given: Any) -> None:
    try:
        inspect.signature(definition).bind(*given)
    except TypeError as error:
        raise TypeError(
            f"Expected `definition` to take {'the context' if given else 'no argument, as no context is given'}; "
            f"{error}. {'Leave `context` out.' if given else 'Give `context`, one for each datum.'}"
        ) from error


def _declared(definition: Definition, *given: Any) -> dict[str, tuple[str, Any]]:
    """Kind and abstract value of every parameter and latent that a definition declares, by name."""

    def read(result: Any, sites: dict[str, Any]) -> dict[str, tuple[str, Any]]:
        checked(result)
        needed = {name: site for name, site in sites.items() if site["type"] in ("param", "sample")}
        return {
            name: (site["type"], shapes_of(site["value"]))
            for name, site in needed.items()
            if not site.get("is_observed")
        }

    return trace_shapes(read, definition, *given)


def checked(result: Any) -> Diffusion:
    """What `diffusion` returned, if it is a Diffusion; TypeError if not."""
    if not isinstance(result, Diffusion):
        raise TypeError(f"Expected `diffusion` to return a dpm_ppl.Diffusion; got {type(result).__name__}.")
    return result


def require_params(declared: dict[str, tuple[str, Any]], params: Mapping[str, Any]) -> None:
    """Checks that parameters are those that a program declares, by name and shape.

    Args:
        declared: For every site that needs a value its kind, "param" or "sample", and a value of its shape.
        params: Values by name; others may be among them.

    Raises:
        ValueError: one is missing, or of another shape; it is named.
    """
    missing = [name for name in declared if name not in params]
    if any(declared[name][0] == "sample" for name in missing):
        latents = [name for name in missing if declared[name][0] == "sample"]
        raise ValueError(
            f"Expected values for the latent variables that `diffusion` samples; got none for {', '.join(latents)}. "
            "Give each in `params`, for instance its posterior mean."
        )
    if missing:
        raise ValueError(
            f"Expected a value for every parameter of the model; got none for {', '.join(missing)}. "
            f"`params` holds {', '.join(map(str, params)) or 'nothing'}: is it of another model?"
        )
    for name, (_, expected) in declared.items():
        shapes, came = _shapes(expected), _shapes(params[name])
        for part in [*shapes, *(part for part in came if part not in shapes)]:
            if shapes.get(part) != came.get(part):
                where = f"{name!r} at {part}" if part else repr(name)
                raise ValueError(
                    f"Expected parameter {where} of shape {shapes.get(part, 'none there')}; "
                    f"got {came.get(part, 'none there')}. Are these the parameters of another model?"
                )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shape of each array in a parameter, by its path within: static fields may hold a new function each time."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}


Sites = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True, eq=False)
class Declared:
    """A chain as a program declares it.

    Args:
        where: "guide", "model", or "diffusion()".
        statement: What is stated there; `diffusion()` states the chain of that name, without data.
    """

    where: str
    statement: Statement


@dataclass(eq=False)
class Reader(Messenger):
    """Reads chain statements instead of running them, and notes where parameters are declared."""

    where: str
    statements: list[Declared] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)
    looped: set[str] = field(default_factory=set)
    scans: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def process_message(self, msg: dict[str, Any]) -> None:
        """Notes a chain, which is not run; every other message passes."""
        if msg["type"] in ("forward_chain", "reverse_chain"):
            self.statements.append(Declared(self.where, msg["statement"]))
            msg["fn"] = _unread if msg["type"] == "forward_chain" else _stand_in
        elif msg["type"] == "param" and isinstance(jnp.zeros(()) + 0, jax.core.Tracer):
            self.looped.add(msg["name"])
        elif msg["type"] == "control_flow":
            self.scans = True


def _unread(statement: Statement) -> None:
    return None


def _stand_in(statement: Statement) -> Array:
    """A datum of the right shape where the reverse chain would generate one."""
    return numpyro.sample(statement.name, statement.diffusion.kernel.stationary(), obs=statement.x0)


def read(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    definition: Callable[[], Diffusion] | None,
    batch: Any,
    params: Mapping[str, Any],
) -> tuple[list[Declared], dict[str, Any], set[str], bool]:
    """Runs a program under the reader.

    Args:
        model: The model, of a batch (see `called`).
        guide: The guide, of the same.
        definition: `diffusion()`, or None; one of a context with that of the batch put in.
        batch: Data, in their parts.
        params: Parameters to put in; those not among them start as the program says.

    Returns:
        The chain statements; every parameter site by name; which were declared in a traced body; whether NumPyro's scan
        is used.
    """
    statements: list[Declared] = []
    sites: dict[str, Any] = {}
    looped: set[str] = set()
    scans = False
    drawn: dict[str, Any] = {}
    runs: list[tuple[str, Callable[[], Any]]] = [("guide", partial(guide, batch)), ("model", partial(model, batch))]
    if definition is not None:
        runs.append(("diffusion()", definition))
    for i, (where, run) in enumerate(runs):
        values = {**params, **{name: site["value"] for name, site in sites.items()}}
        reader = Reader(where)
        with handlers.block(), handlers.trace() as trace, reader:
            # The same names mean the same values, as in SVI.
            with handlers.substitute(data=values), handlers.seed(rng_seed=i), handlers.replay(trace=drawn):
                result = run()
        if where == "guide":
            drawn = {name: site for name, site in trace.items() if site["type"] == "sample"}
        if where == "diffusion()":
            known = result if result.context is None else result.of_batch(np.shape(jax.tree.leaves(batch)[0])[:1])
            reader.statements.append(Declared(where, Statement(where, known, None)))
        statements += reader.statements
        sites |= {name: site for name, site in trace.items() if site["type"] == "param" and name not in sites}
        looped, scans = looped | reader.looped, scans or reader.scans
    return statements, sites, looped, scans


def plain_sites(model: Callable[..., Any], guide: Callable[..., Any], batch: Any, params: Mapping[str, Any]) -> Sites:
    """Sites of the plain guide and model by name, run on shapes alone; what they hold is known, but no values."""
    sites: Sites = {}

    def run(key: Array) -> None:
        with handlers.block(), handlers.substitute(data=dict(params)), handlers.seed(rng_seed=key):
            sites["guide"] = dict(handlers.trace(guide).get_trace(batch))
            sites["model"] = dict(handlers.trace(handlers.replay(model, trace=sites["guide"])).get_trace(batch))

    jax.eval_shape(run, jax.random.key(0))
    return sites
