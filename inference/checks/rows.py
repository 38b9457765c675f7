"""Is a datum's density its own: the same among many data as among two?"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dpm_ppl.inference.checks.report import Finding, failed, passed, skipped
from dpm_ppl.inference.checks.statistics import Difference
from dpm_ppl.inference.checks.subject import Subject
from dpm_ppl.programs import plain_sites
from dpm_ppl.tracing import trace_quietly

NAME = "rows"
ROWS = np.array([0, 1])  # a row that is rolled, turned round or averaged over is another there


def rows(subject: Subject) -> Iterator[Finding]:
    """A finding "rows": every site of guide and model that is in the data's plate, at the same values of all latents.

    What is observed beside a datum is easily another's: a shuffled measurement, a mean over the batch, a plate of the
    wrong axis. Loss and evidence are then of another program, and look well.
    """
    pair = jax.tree.map(lambda leaf: leaf[ROWS], subject.batch)
    programs = {"guide": subject.guide, "model": subject.model}
    _, drawn = trace_quietly(subject.guide, subject.batch, params=subject.params)
    frames = _frames(subject, pair)
    latents = {
        name: site["value"]
        for name, site in drawn.items()
        if site["type"] == "plate" or (site["type"] == "sample" and not site["is_observed"])
    }
    of_pair = {name: _of_pair(drawn[name], frames["guide"].get(name), len(subject.x0)) for name in latents}
    off = []
    for where, program in programs.items():
        if not frames[where]:
            continue
        whole = _log_densities(program, subject.batch, subject.params, latents)
        alone = _log_densities(program, pair, subject.params, of_pair)
        for name, dim in frames[where].items():
            found = Difference.of(*(np.atleast_2d(a) for a in (alone[name], _rows(whole[name], dim))))
            if not found.is_none:
                off.append((found.off, where, name))
    if not any(frames.values()):
        yield skipped(NAME, "no site is in a plate of the data.")
    elif off:
        amount, where, name = max(off)
        words = (
            f"the {where}'s {name!r} scores a datum otherwise among {len(subject.x0)} data than among {len(ROWS)}, at "
            "the same values: it reads another row than its own. Let every law of a datum see the row of that datum "
            "alone, along the axis of the data's plate."
        )
        yield failed(NAME, words, off=amount)
    else:
        names = sorted({repr(name) for of in frames.values() for name in of})
        yield passed(
            NAME, f"A datum has the same densities among {len(subject.x0)} data as among 2: {', '.join(names)}."
        )


def _frames(subject: Subject, pair: Any) -> dict[str, dict[str, int]]:
    """The dimension of the data's plate at each site in it: that which is as long as any batch."""
    of_all, of_two = subject.sites, plain_sites(subject.model, subject.guide, pair, subject.params)
    both = len(subject.x0), len(ROWS)
    return {
        where: {
            name: frame.dim
            for name, site in of_all[where].items()
            if site["type"] == "sample" and name in of_two[where]
            for frame, of_pair in zip(site["cond_indep_stack"], of_two[where][name]["cond_indep_stack"], strict=True)
            if (frame.size, of_pair.size) == both
        }
        for where in ("guide", "model")
    }


def _of_pair(site: Any, dim: int | None, num_data: int) -> Any:
    """What the guide drew at a site, of the pair alone: along the data's plate, and of the plate's own indices."""
    value = site["value"]
    if dim is not None:
        return _rows(value, dim - site["fn"].event_dim)
    return value[: len(ROWS)] if site["type"] == "plate" and len(value) == num_data else value


def _log_densities(
    program: Any, batch: Any, params: Mapping[str, Any], latents: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Log densities of all sites, unscaled and not summed over plates."""

    @jax.jit
    def scores(batch: Any, latents: Mapping[str, Any]) -> dict[str, Array]:
        _, sites = trace_quietly(program, batch, params={**params, **latents})
        return {
            name: jnp.asarray(site["fn"].log_prob(site["value"]))
            for name, site in sites.items()
            if site["type"] == "sample"
        }

    return {name: np.asarray(values) for name, values in scores(batch, latents).items()}


def _rows(value: Any, dim: int) -> Any:
    """The rows of the pair along a dimension counted from behind, where the value has more than one there."""
    return value if value.ndim < -dim or value.shape[dim] == 1 else value.take(ROWS, dim)
