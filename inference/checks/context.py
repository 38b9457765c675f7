"""Does each datum see its own context, all of it, and no other's?"""

from collections.abc import Iterator

import jax
import numpy as np
from jax import Array

from dpm_ppl.diffusion import Diffusion
from dpm_ppl.inference.checks.report import Finding, failed, passed, skipped
from dpm_ppl.inference.checks.statistics import Difference
from dpm_ppl.inference.checks.subject import Chain, Subject


def context(subject: Subject, chain: Chain) -> Iterator[Finding]:
    """A finding "context" of a chain that has one.

    The first two data are scored as a batch of their own, at the same states as among all data: a context
    that the program rolls, turns round, averages over the batch or lays along another axis is another there. And with
    contexts rolled by one along the batch the laws are to change, or they do not see them.
    """
    if chain.model.context is None:
        return
    chains = {name for other in subject.chains for name in (other.name, f"{other.name}_chain")}
    sites = subject.sites["model"].items()
    drawn = [name for name, site in sites if site["type"] == "sample" and not site["is_observed"]]
    if others := set(drawn) - chains:
        yield skipped("context", f"it may depend on what is drawn, {', '.join(sorted(others))}.")
        return
    own, moved = _scores(chain, chain.model), _scores(chain, _rolled(chain))
    rows = np.array([0, 1])
    pair = subject.stated(jax.tree.map(lambda leaf: leaf[rows], subject.batch))
    stated = {(s.where, s.statement.name): s.statement.diffusion for s in pair}
    model = stated.get(("model", chain.name)) or stated["diffusion()", "diffusion()"]
    of_pair = _scores(chain, model, rows=rows)
    for law in own:
        off = Difference.of(of_pair[law], own[law][:, rows])
        if not off.is_none:
            words = (
                f"`{law}` scores a datum otherwise among {len(chain.x0)} data than among 2, at the same state and t: a "
                "datum sees the context of another. Give Diffusion the context as the data have it, a row for each "
                "datum in front, and let no law mix rows."
            )
            yield failed("context", words, off=off.off)
            return
    seen = {law: np.abs(own[law] - moved[law]).reshape(len(own[law]), -1).max(1) > 0 for law in own}
    if not any(at.any() for at in seen.values()):
        words = "With contexts rolled by one along the batch no law of the model changes: it does not see the context."
        same = all((np.asarray(leaf) == np.asarray(leaf)[:1]).all() for leaf in jax.tree.leaves(chain.model.context))
        yield skipped("context", "that of all data is the same.") if same else failed("context", words)
        return
    counts = ", ".join(f"`{law}` at {int(at.sum())} of {len(at)} steps" for law, at in seen.items())
    yield passed("context", f"Each datum sees its own context alone: {counts}.")


def _rolled(chain: Chain) -> Diffusion:
    """The model with every context given to the datum after its own."""
    batch = chain.x0.shape[: chain.batch_dim]
    return chain.model.beside(jax.tree.map(lambda leaf: np.roll(leaf, 1, 0), chain.model.context), batch)


def _scores(chain: Chain, model: Diffusion, *, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
    """Log densities of the chain's own states under the reverse steps t = 2..T, and the last where it is not fixed."""

    @jax.jit
    def scores(states: Array) -> dict[str, Array]:
        found = {}
        if chain.num_steps > 1:
            t = chain.steps(*range(2, chain.num_steps + 1))
            found["reverse"] = model.reverse(states[2:], t).log_prob(states[1:-1])
        if not model.has_fixed_last_step:
            found["decode"] = model.decode(states[1]).log_prob(states[0].astype(chain.x0.dtype))[None]
        return found

    return {law: np.asarray(values) for law, values in scores(chain.states[:, rows]).items()}
