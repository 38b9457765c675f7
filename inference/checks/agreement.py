"""Do guide and model speak of the same chain, the same latents and the same plates?"""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array

from dpm_ppl.data import draw
from dpm_ppl.diffusion import Diffusion
from dpm_ppl.inference.checks.laws import chosen
from dpm_ppl.inference.checks.report import Finding, failed, note, passed, skipped
from dpm_ppl.inference.checks.statistics import Difference
from dpm_ppl.inference.checks.subject import Chain, Subject, agree
from dpm_ppl.programs import Declared
from dpm_ppl.tracing import trace_quietly

ORDERED = 0.25  # difference of correlations, below which none is seen


def sites(subject: Subject) -> Iterator[Finding]:
    """Findings "chains", "sites", "plates" and "order of the sites"."""
    yield _chains(subject)
    yield _sites(subject)
    yield _plates(subject)
    yield _order(subject)


def _chains(subject: Subject) -> Finding:
    of = {
        where: {s.statement.name: s for s in subject.statements if s.where == where}
        for where in ("guide", "model", "diffusion()")
    }
    guide, model, definition = of.values()
    if not guide and not model:
        return skipped("chains", "the program has no forward_chain or reverse_chain.")
    problems = []
    for name in model.keys() - guide.keys():
        problems.append(f"the model's reverse_chain {name!r} has no forward_chain of that name in the guide")
    for name in guide.keys() - model.keys():
        problems.append(f"the guide's forward_chain {name!r} has no reverse_chain of that name in the model")
    for name in guide.keys() & model.keys():
        problems += _differences(name, guide[name], model[name])
        if model[name].statement.x0 is None and guide[name].statement.x0 is subject.x0:
            problems.append(f"the model does not observe the data: give reverse_chain({name!r}, ...) its obs=x0")
    for built in definition.values():
        if len(model) == 1:
            problems += _differences("diffusion()", built, next(iter(model.values())))
    if problems:
        return failed("chains", _sentence(problems))
    chains = {name: s.statement.diffusion for name, s in model.items()}
    shapes = ", ".join(
        f"{name!r} of T = {d.num_steps}, event shape {tuple(d.event_shape)}" for name, d in chains.items()
    )
    return passed("chains", f"Guide and model have the same chains: {shapes}, with the same densities at all t.")


def _differences(name: str, one: Declared, other: Declared) -> list[str]:
    """What differs between two diffusions, first what makes the rest pointless."""
    first, second = one.statement.diffusion, other.statement.diffusion
    a, b = first.kernel, second.kernel
    if not agree(a, b):
        return [
            f"for {name!r} {one.where} has T = {a.num_steps} and event shape {tuple(a.event_shape)}, {other.where} "
            f"T = {b.num_steps} and {tuple(b.event_shape)}"
        ]
    x0 = one.statement.x0 if one.statement.x0 is not None else other.statement.x0
    if x0 is None:
        return []
    chain = Chain(name, x0, first, second, jax.random.key(0))
    turned, last = chain.num_steps + 1, chain.num_steps
    if last > 1:
        some = sorted({t for at in chosen(2, last) for t in (at, turned - at if turned - at > 1 else at)})
    else:
        some = []

    @jax.jit
    def scores(states: Array) -> dict[str, list[Array]]:
        def forward(diffusion: Diffusion, t: Array) -> Array:
            return diffusion.kernel.step(states[:-1], t).log_prob(states[1:])

        t, both = chain.steps(), (first, second)
        found = {
            "step": [forward(first, t), forward(second, t)],
            "turned": [forward(first, t), forward(second, turned - t)],
            "pi": [d.kernel.stationary().log_prob(states[-1])[None] for d in both],
        }
        if some and one.where == "diffusion()":
            at = np.asarray(some)
            found["reverse"] = [d.reverse(states[at], chain.steps(*some)).log_prob(states[at - 1]) for d in both]
        return found

    off = {law: Difference.of(*both) for law, both in scores(chain.states).items()}
    if not off["step"].is_none:
        t = off["step"].at + 1
        words = f"for {name!r} the kernel's step at t = {t} is another in {one.where} than in {other.where}"
        if off["turned"].is_none:
            words += f": time runs the other way, as {other.where} has at t what {one.where} has at T + 1 - t"
        return [words]
    if not off["pi"].is_none:
        return [f"for {name!r} pi is another in {one.where} than in {other.where}"]
    if "reverse" in off and not off["reverse"].is_none:
        return [f"the reverse step of diffusion() at t = {some[off['reverse'].at]} is not that of the model"]
    return []


def _sites(subject: Subject) -> Finding:
    guide, model = ({k: s for k, s in of.items() if s["type"] == "sample"} for of in subject.sites.values())
    latent = {name for name, site in model.items() if not site["is_observed"]}
    drawn = {name for name, site in guide.items() if not site["is_observed"]}
    problems = [f"the guide does not draw the model's {name!r}" for name in sorted(latent - drawn)]
    auxiliary = {name for name in drawn if (guide[name]["infer"] or {}).get("is_auxiliary")}
    problems += [
        f"the guide draws {name!r}, which the model does not have" for name in sorted(drawn - latent - auxiliary)
    ]
    for name in sorted(latent & drawn):
        shapes = [tuple(of[name]["fn"].shape()) for of in (guide, model)]
        try:
            np.broadcast_shapes(*shapes)
        except ValueError:
            problems.append(f"{name!r} is of shape {shapes[0]} in the guide and {shapes[1]} in the model")
    observed = sorted(set(model) - latent)
    if not observed:
        problems.append("the model observes nothing: the loss knows no data")
    if problems:
        return failed("sites", _sentence(problems))
    return passed(
        "sites",
        f"Guide and model share the latents {', '.join(sorted(latent)) or '(none)'}; the model observes "
        f"{', '.join(observed)}.",
    )


def _plates(subject: Subject) -> Finding:
    guide, model = ({k: s for k, s in of.items() if s["type"] == "sample"} for of in subject.sites.values())
    problems, seen, outside = [], {}, []
    for name in guide.keys() & model.keys():
        one, other = (sorted((f.name, f.dim, f.size) for f in of[name]["cond_indep_stack"]) for of in (guide, model))
        if one != other:
            described = (
                " and ".join(f"{n!r} of {size}" for n, _, size in frames) or "no plate" for frames in (one, other)
            )
            problems.append("{!r} is inside {} in the guide, and {} in the model".format(name, *described))
    for of in (guide, model):
        for name, site in of.items():
            for frame in site["cond_indep_stack"]:
                seen[frame.name] = frame.size
            if site["is_observed"] and not site["cond_indep_stack"]:
                outside.append(name)
    if problems:
        return failed("plates", _sentence(problems))
    if outside and not seen:
        return note("plates", f"The observed {', '.join(outside)} are in no plate: fit takes a batch for all the data.")
    return passed(
        "plates", f"Every shared site is in the same plates: {', '.join(f'{n!r} of {s}' for n, s in seen.items())}."
    )


def _order(subject: Subject) -> Finding:
    """For chains x_1..x_T, of single sites or as a scan stacks them: whether the same end is next to the data."""
    name = "order of the sites"
    chains = _ends(subject)
    if not chains:
        return skipped(name, "the program declares no chain site by site.")
    batch = draw(subject.source, key=subject.key, num_data=500)
    x0, context = subject.parts.x0(batch), subject.parts.context(batch)
    _, drawn = trace_quietly(subject.guide, batch, params=subject.params)
    generated, made = trace_quietly(partial(subject.parts.generate, context, len(x0)), params=subject.params, seed=1)
    words: list[str] = []
    for ends in chains:
        guide, model = (
            [_dependence(values, trace[site]["value"][row]) for site, row in ends]
            for values, trace in ((x0, drawn), (generated, made))
        )
        first, last = (site if row is ... else f"{site}[{row}]" for site, row in ends)
        if min(abs(guide[0] - guide[1]), abs(model[0] - model[1])) < ORDERED:
            continue
        if (guide[0] > guide[1]) != (model[0] > model[1]):
            turned = (
                f"Time runs the other way in the model: x^0 correlates with {first} and {last} by {guide[0]:.2f} and "
                f"{guide[1]:.2f} in the guide, by {model[0]:.2f} and {model[1]:.2f} in what the model generates."
            )
            return failed(name, turned)
        words.append(f"{first if guide[0] > guide[1] else last} is next to the data, in guide and model alike")
    if not words:
        return skipped(name, "no order is seen: the data correlate with both ends alike, in the guide or the model.")
    return passed(name, _sentence(words))


def _ends(subject: Subject) -> list[list[tuple[str, Any]]]:
    """First and last state of each such chain: a site, and the row of it that is meant."""
    latent = {k for k, s in subject.sites["model"].items() if s["type"] == "sample" and not s["is_observed"]}
    shared = sorted(latent & set(subject.sites["guide"]))
    stacked = [site for site in shared if _is_stacked(subject.sites["guide"][site]["value"], subject.x0)]
    numbered: dict[str, dict[int, str]] = {}
    for site in shared:
        if match := re.fullmatch(r"(.*?)(\d+)", site):
            numbered.setdefault(match[1], {})[int(match[2])] = site
    chains = [[(sites[i], ...) for i in (min(sites), max(sites))] for sites in numbered.values() if len(sites) > 2]
    return chains + [[(site, 0), (site, -1)] for site in stacked]


def _is_stacked(value: Any, x0: Any) -> bool:
    return value.ndim == x0.ndim + 1 and value.shape[1:] == x0.shape and len(value) > 2


def _dependence(x0: Any, latent: Any) -> float:
    """Mean absolute correlation of coordinates, or 0 where shapes differ."""
    a, b = np.asarray(x0, np.float64), np.asarray(latent, np.float64)
    if a.shape != b.shape:
        return 0.0
    a, b = (v.reshape(len(v), -1) - v.reshape(len(v), -1).mean(0) for v in (a, b))
    scale = np.sqrt((a**2).mean(0) * (b**2).mean(0))
    return float(np.mean(np.abs((a * b).mean(0)) / np.maximum(scale, 1e-12)))


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."
