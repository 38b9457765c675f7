"""The handler that turns a chain program into the paper's objective: KL terms at a few steps, not a trajectory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.primitives import _PYRO_STACK, Messenger

from dpm_ppl.arguments import require_count
from dpm_ppl.chains import ForwardChain, ReverseChain
from dpm_ppl.kernels.kernel import Kernel, has_closed_forms, require_closed_forms, step_number
from dpm_ppl.statements import PLAIN, Statement, decode, decode_first, in_order

Weight = Callable[[Any, Array], Array]

_BY_GUIDE = "drawn by the guide"


class subsample_steps(Messenger):  # noqa: N801 - named like NumPyro's handlers
    r"""Reads every chain statement inside as KL terms at `size` stratified steps per datum, in place of a trajectory.

    Wrap model and guide alike. Under `TraceMeanField_ELBO` the loss is then an unbiased estimate of -ELBO,

        KL(q(x^T|x^0) || pi) - E log p(x^0|x^1) + (T - 1)/size sum_t KL(q(x^(t-1)|x^t, x^0) || p(x^(t-1)|x^t)),

    with analytic KLs wherever NumPyro or `dpm_ppl.divergences` knows them; its cost does not grow with T. Under
    `Trace_ELBO` it is unbiased too, with noisier terms. The weights of single trajectories are gone: `RenyiELBO` is
    refused, and so are `TraceGraph_ELBO` and `TraceEnum_ELBO` for discrete states. A loss of your own that
    exponentiates log densities (an importance-weighted bound, annealing) can't be told from a sum here, and is wrong in
    silence: on a chain of six data RenyiELBO gave 6.3 nats with 1,000 particles where -ELBO is 14.5 and -log p(x)
    about 13.7. Give it the plain one. `dpm_ppl.inference.fit` tries its loss out, and refuses it.

    For a chain `x` the sites are `x_first` (x^1) and `x_at` (x^t), points of evaluation that carry no density;
    `x_last` (x^T); `x_before` (x^(t-1)), in the plate `x_steps`; `x_offset`, where t is drawn; and `x`. A kernel
    without `marginal` or `posterior` keeps the site `x_chain`, whose log densities then score `size` transitions of a
    sampled trajectory in place of all.

    Args:
        fn: Model or guide.
        size: Number of steps m per datum, m >= 1; None, and more than there are, sums all T - 1 terms.
        weight: What the KL term of step t counts, positive, as `weight(kernel, t)` of t's shape; by default 1, the
            bound. Another is no bound, but may train better (`dpm_ppl.outputs.noise_weight`); x^T and x^0 stay as they
            are.

    Raises:
        TypeError: size is no integer, or weight no function.
        ValueError: a statement is hidden from this handler, by `block` or, where a size or weight is asked for, in
            NumPyro's `scan`; the loss needs weights or scores; size is out of range, a model's chain is neither
            observed nor replayed from a guide (as where NUTS or `substitute` gives its points values), guide and model
            disagree on T, event shape, size or weight, or a weight is of another shape than t or is given for a kernel
            without closed forms, whose terms are no KLs.

    Source: Sohl-Dickstein et al. 2015, eq. 14, in the exact per-datum form; stratified t per datum is ours.
    """

    def __init__(self, fn: Callable[..., Any] | None = None, *, size: int | None, weight: Weight | None = None) -> None:
        if weight is not None and not callable(weight):
            raise TypeError(f"Expected `weight` to be a function of (kernel, t), or None; got {weight!r}.")
        self.size = None if size is None else require_count("size", size)
        self.weight = weight
        super().__init__(fn)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Replaces what a chain statement declares; every other message passes."""
        if msg["type"] in _READINGS:
            _require_sum(msg["statement"])
            terms, transitions = _READINGS[msg["type"]]
            msg["fn"] = partial(_read, terms=terms, transitions=transitions, size=self.size, weight=self.weight)
        elif msg["type"] == "sample" and "chain" in msg["infer"]:
            msg["chain"] = msg["infer"]["chain"]
        elif msg["type"] == "sample" and PLAIN in msg["infer"] and (self.size, self.weight) != (None, None):
            raise ValueError(
                f"Expected subsample_steps to see the chain statement of {msg['name']!r}; something between them hides "
                "it, and all T steps would count as they are, in silence. handlers.block with expose_types lets no "
                "statement through: put subsample_steps inside of it. The body of NumPyro's scan can't be read as "
                "terms of the bound: take all of its steps (size=None; num_steps_sampled=None of fit) and no weight."
            )

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """Compares what guide and model were built for: a replayed site brings its guide's `infer` along."""
        if msg["type"] == "sample" and "chain" in msg and msg["infer"].get("chain") != msg["chain"]:
            raise ValueError(
                f"Expected one diffusion, `size` and `weight` in guide and model; at site {msg['name']!r} the guide "
                f"has {msg['infer'].get('chain')} and the model {msg['chain']}."
            )
        if msg["type"] == "sample" and msg["infer"].get(_BY_GUIDE) is False:
            raise ValueError(
                f"Expected a guide's draws at site {msg['name']!r}; it has a value from elsewhere, such as a sampler "
                "(NUTS) or `substitute`: subsample_steps reads a chain as terms of the bound, at points of no density. "
                "Use the plain program, without subsample_steps."
            )


def _require_sum(statement: Statement) -> None:
    """Refuses stock objectives that need more than the sum of a chain's terms, as they stand on NumPyro's stack."""
    for handler in _PYRO_STACK:
        if isinstance(handler, handlers.seed) and "sample" in handler.hide_types:  # which RenyiELBO alone uses
            raise ValueError(
                "Expected a loss that is a sum over terms under subsample_steps; got RenyiELBO, which needs the "
                "weights of whole trajectories: of these it makes a number that looks the better the more particles "
                "it takes. Use it on the plain model and guide."
            )
        if type(handler).__name__ == "_without_rsample_stop_gradient":  # of TraceGraph_ELBO and TraceEnum_ELBO
            x0, diffusion = statement.x0, statement.diffusion
            is_discrete = diffusion.kernel.stationary().support.is_discrete
            if is_discrete or (x0 is not None and not ForwardChain(diffusion, x0).has_rsample):
                raise ValueError(
                    "Expected a chain of continuous states, whose steps are reparameterised, for TraceGraph_ELBO or "
                    "TraceEnum_ELBO under subsample_steps; for other draws they take the score, which points of "
                    "evaluation lack. Use them on the plain model and guide."
                )


class _Given(dist.ImproperUniform):
    """Stands in a model for a point of evaluation that its guide draws: it has no density and cannot be sampled."""

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        raise ValueError(
            "Expected a guide's draws: subsample_steps reads a chain as terms of the bound, at points that the guide "
            "draws, so its model can't generate. Sample from the plain model, without subsample_steps; to fit, wrap "
            "the guide as well as the model. The body of NumPyro's scan, which runs a model once without its guide, "
            "takes no subsample_steps: a chain there is read whole."
        )


def _read(
    statement: Statement,
    *,
    terms: Callable[..., Any],
    transitions: Callable[..., Any],
    size: int | None,
    weight: Weight | None,
) -> Any:
    """Reads a statement as terms of the bound, or as transitions where its kernel has no closed forms."""
    kernel = statement.diffusion.kernel
    size = None if size is None or size > kernel.num_steps - 1 else size
    if has_closed_forms(kernel):
        return terms(statement, size=size, weight=weight)
    if weight is None:
        return transitions(statement, size=size)
    raise ValueError(
        f"Expected no `weight` for {type(kernel).__name__}, a kernel without `marginal` and `posterior`: its terms are "
        "log density ratios along a trajectory, and only their plain sum is a divergence."
    )


def _forward_terms(statement: Statement, *, size: int | None, weight: Weight | None) -> None:
    name = statement.name
    x0: Any = statement.x0  # which a forward chain has
    kernel = require_closed_forms(statement.diffusion.kernel)
    x1 = _point(
        f"{name}_first", kernel.marginal(x0, step_number(1)), {**_built_for(kernel, size, weight), _BY_GUIDE: True}
    )
    numpyro.sample(f"{name}_last", kernel.marginal(x0, step_number(kernel.num_steps)))
    if kernel.num_steps > 1:
        t = _draw_steps(name, kernel, _batch_shape(kernel, x1), size)
        with _plate(name, t):
            xt = _point(f"{name}_at", kernel.marginal(x0, t))
            with _counted(kernel, t, weight):
                numpyro.sample(f"{name}_before", kernel.posterior(x0, xt, t))


def _reverse_terms(statement: Statement, *, size: int | None, weight: Weight | None) -> Array:
    name, kernel = statement.name, statement.diffusion.kernel
    given = _Given(kernel.stationary().support, statement.batch_shape, kernel.event_shape)

    def terms() -> Array:
        x1 = _point(f"{name}_first", given, {**_built_for(kernel, size, weight), _BY_GUIDE: False})
        numpyro.sample(f"{name}_last", kernel.stationary().expand(statement.batch_shape))
        if kernel.num_steps > 1:
            batch_shape = _batch_shape(kernel, x1)
            diffusion = statement.diffusion.beside(statement.diffusion.context, batch_shape)
            t = _draw_steps(name, kernel, batch_shape, size)
            with _plate(name, t):
                xt = _point(f"{name}_at", given)
                with _counted(kernel, t, weight):
                    numpyro.sample(f"{name}_before", diffusion.reverse(xt, t))
        return x1

    return in_order(statement, f"{name}_first", terms, partial(decode, statement))


def _forward_transitions(statement: Statement, *, size: int | None) -> None:
    name, diffusion = statement.name, statement.diffusion
    x0: Any = statement.x0  # which a forward chain has
    steps = None if size is None else _draw_steps(name, diffusion.kernel, _batch_shape(diffusion.kernel, x0), size)
    chain = ForwardChain(diffusion, x0, steps=steps)
    numpyro.sample(f"{name}_chain", chain, infer=_built_for(diffusion.kernel, size))


def _reverse_transitions(statement: Statement, *, size: int | None) -> Array:
    name, diffusion = statement.name, statement.diffusion
    steps = None if size is None else _draw_steps(name, diffusion.kernel, statement.batch_shape, size)
    chain = ReverseChain(diffusion, steps=steps).expand(statement.batch_shape)
    site, infer = f"{name}_chain", _built_for(diffusion.kernel, size)
    draw = partial(numpyro.sample, site, chain, infer=infer)
    return in_order(statement, site, draw, partial(decode_first, statement))


_READINGS = {
    "forward_chain": (_forward_terms, _forward_transitions),
    "reverse_chain": (_reverse_terms, _reverse_transitions),
}


def _draw_steps(name: str, kernel: Kernel, batch_shape: tuple[int, ...], size: int | None) -> Array:
    """Steps t in 2..T, shape (size, *batch), by one uniform offset per datum for equally spaced strata; or all."""
    num_terms = kernel.num_steps - 1
    if size is None:
        return jnp.arange(2, kernel.num_steps + 1).reshape(-1, *(1,) * len(batch_shape))
    offset = _point(f"{name}_offset", dist.Uniform().expand(batch_shape))
    stratum = jnp.arange(size).reshape(-1, *(1,) * jnp.ndim(offset)) / size
    return 2 + jnp.minimum(jnp.floor((offset + stratum) % 1 * num_terms).astype(int), num_terms - 1)


def _point(name: str, distribution: dist.Distribution, infer: dict[str, Any] | None = None) -> Array:
    """A site that hands a value from guide to model, and carries no density in either."""
    with handlers.mask(mask=False):
        return numpyro.sample(name, distribution, infer=infer)


@contextmanager
def _plate(name: str, t: Array) -> Iterator[None]:
    try:
        with numpyro.plate(f"{name}_steps", len(t), dim=-t.ndim):
            yield
    except ValueError as error:
        if "Ran out of free dims" not in str(error):
            raise
        raise ValueError(
            f"Expected TraceEnum_ELBO to leave a dimension for the plate of steps, which subsample_steps puts around a "
            f"chain's {t.ndim - 1} of data: TraceEnum_ELBO(max_plate_nesting={t.ndim}), or more where other plates are "
            "nested deeper."
        ) from error


def _counted(kernel: Kernel, t: Array, weight: Weight | None) -> handlers.scale:
    """Makes each of the m steps drawn stand for (T - 1)/m, times its weight."""
    share: Any = (kernel.num_steps - 1) / len(t)
    if weight is not None:
        counts = jnp.asarray(weight(kernel, t))
        if counts.shape not in ((), t.shape):
            raise ValueError(
                f"Expected `weight` to return one number for each step, of t's shape {t.shape}; got {counts.shape}."
            )
        share = share * counts
    return handlers.scale(scale=share)


def _built_for(kernel: Kernel, size: int | None, weight: Weight | None = None) -> dict[str, Any]:
    weighted = "" if weight is None else f", weight {getattr(weight, '__name__', weight)}"
    return {"chain": f"T = {kernel.num_steps}, event shape {kernel.event_shape}, size {size}{weighted}"}


def _batch_shape(kernel: Kernel, x: Array) -> tuple[int, ...]:
    return jnp.shape(x)[: jnp.ndim(x) - len(kernel.event_shape)]
