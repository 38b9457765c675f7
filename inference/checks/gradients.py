"""Does the loss reach every parameter, and is none hidden where it keeps its first value?"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dpm_ppl.inference.checks.losses import fitted_loss
from dpm_ppl.inference.checks.report import Finding, failed, note, passed, skipped
from dpm_ppl.inference.checks.subject import Subject, perturbed
from dpm_ppl.inference.pathwise import learned_laws, told

_KEYS = 4

_PUSH = 0.3  # standard deviation of what a parameter is moved by, to see whether its value counts


def gradients(subject: Subject) -> Iterator[Finding]:
    """Findings "gradients", "parameters in a loop body" and, where there is one, "gradient of draws"."""
    others = subject.sites["guide"].keys() - {f"{chain.name}_chain" for chain in subject.chains}
    laws = learned_laws(subject.guide, subject.params, subject.batch, besides=others) if subject.params else {}
    if laws:
        words = told(laws)
        yield failed("gradient of draws", words[:1].upper() + words[1:])
    if not subject.params:
        reason = "the program declares no parameters."
        yield from (skipped(name, reason) for name in ("gradients", "parameters in a loop body"))
        return
    of_params = _per_datum(subject)
    value_and_grad = jax.jit(jax.value_and_grad(of_params, allow_int=True))
    reached: dict[str, Array] = {}
    infinite: set[str] = set()
    for key in jax.random.split(subject.key, _KEYS):
        _, gradient = value_and_grad(subject.params, key)
        for path, leaf in _leaves(gradient):
            values = np.asarray(leaf, np.float64)
            reached[path] = reached.get(path, False) | (values != 0)
            if not np.isfinite(values).all():
                infinite.add(path)
    zero = [path for path, hits in reached.items() if not hits.any()]
    if zero:  # a step that was not drawn reaches no parameter of its own
        of_params = _per_datum(subject, all_steps=True)
        gradient = dict(_leaves(jax.jit(jax.grad(of_params, allow_int=True))(subject.params, subject.key)))
        reached |= {path: np.asarray(gradient[path]) != 0 for path in zero}
        zero = [path for path in zero if not reached[path].any()]
    frozen, idle = _sorted(jax.jit(of_params), subject, zero)
    yield _gradients(reached, infinite, frozen, idle)
    yield _loops(subject, idle)


def _per_datum(subject: Subject, *, all_steps: bool = False) -> Callable[[dict[str, Any], Array], Array]:
    whole = fitted_loss(subject, all_steps=all_steps)

    def of_params(params: dict[str, Any], key: Array) -> Array:
        return whole(params, key, subject.batch) / subject.normaliser

    return of_params


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    """Floating-point leaves of parameters by readable name, `reverse$params.layers[0].weight`."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            found.append((f"{path[0].key}{jax.tree_util.keystr(path[1:])}", leaf))
    return found


def _sorted(of_params: Callable[..., Array], subject: Subject, zero: list[str]) -> tuple[list[str], list[str]]:
    """Of leaves without a gradient those whose value changes the loss, and those whose value does not."""
    frozen: list[str] = []
    idle: list[str] = []
    if not zero:
        return frozen, idle
    before = float(of_params(subject.params, subject.key))
    leaves, structure = jax.tree_util.tree_flatten_with_path(subject.params)
    for name in zero:
        pushed = [
            perturbed(leaf, seed=1, scale=_PUSH) if f"{path[0].key}{jax.tree_util.keystr(path[1:])}" == name else leaf
            for path, leaf in leaves
        ]
        after = float(of_params(jax.tree.unflatten(structure, pushed), subject.key))
        (idle if after == before else frozen).append(name)
    return frozen, idle


def _gradients(reached: dict[str, Any], infinite: set[str], frozen: list[str], idle: list[str]) -> Finding:
    name = "gradients"
    if infinite:
        words = f"The gradient is NaN or infinite in {', '.join(sorted(infinite))}. Look for a root or a division at 0."
        return failed(name, words)
    if frozen:
        words = (
            f"The gradient of the loss in {', '.join(frozen)} is exactly zero in {_KEYS} draws, although its value "
            "changes the loss: a stop_gradient, a rounding or a comparison stands between. It will not be learned."
        )
        return failed(name, words)
    if idle:
        words = (
            f"No gradient reaches {', '.join(idle)}: its value does not change the loss at all. It will not be learned."
        )
        return failed(name, words)
    counts = [int(hits.sum()) for hits in reached.values()]
    total = sum(hits.size for hits in reached.values())
    arrays = "the one array" if len(reached) == 1 else f"all {len(reached)} arrays"
    words = f"A finite gradient reaches {arrays} of parameters, {sum(counts)} of {total} numbers in {_KEYS} draws."
    return passed(name, words, reached=sum(counts), numbers=total)


def _loops(subject: Subject, idle: list[str]) -> Finding:
    name = "parameters in a loop body"
    hidden = [path for path in idle if subject.scans or any(path.startswith(p) for p in subject.looped)]
    if hidden:
        words = (
            f"{', '.join(hidden)} keeps its first value: it is declared in the body of a scan, where what SVI learns "
            "is not put in. Declare parameters and modules outside the loop."
        )
        return failed(name, words)
    if subject.looped:
        words = (
            f"{', '.join(sorted(subject.looped))} is declared in a body that JAX traces, such as that of a scan. A "
            "gradient reaches it here, but initial values made there are lost when it ends: declare it outside."
        )
        return note(name, words)
    num = len(subject.params)
    which = "The one parameter or module is" if num == 1 else f"All {num} parameters and modules are"
    return passed(name, f"{which} declared outside of loops.")
