"""Simulation-based calibration: whether a posterior is right, on average, for a program's own simulations."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.stats import binom

from dpm_ppl.arguments import require_count, require_key
from dpm_ppl.inference.records import record, variable
from dpm_ppl.programs import require_params
from dpm_ppl.tracing import Sites, trace_quietly, trace_shapes

TARP = "TARP"  # among the quantities: the distance to a reference point

NUM_REFERENCES = 1000  # simulations of which the one most like an observation gives its reference point

NUM_NULL = 10_000  # simulated sets of uniform ranks: a p-value of 0.01 has a standard error of 0.001

MOST_PLACES = 99  # at which an empirical distribution function is looked at


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks of what was simulated among draws of its posterior, which are uniform where that is exact; NumPy.

    Attributes:
        ranks: How many draws lie below the simulated value, 0..num_draws, for each quantity by name, shape
            (num_simulations, *shape of the quantity). "TARP" is the distance to a reference point.
        num_draws: Number of draws of each posterior.
    """

    ranks: Mapping[str, np.ndarray]
    num_draws: int

    def __repr__(self) -> str:
        lines = [f"Calibration: {self.num_simulations:,} simulations, {self.num_draws:,} draws each"]
        cover = self.coverage(0.9)
        for name, p in self.p_values.items():
            low, high = np.min(cover[name]), np.max(cover[name])
            held = f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}"
            least = f"least p of {p.size}" if p.size > 1 else "p"
            lines.append(f"  {name}: {least} = {np.min(p):.2g}; 90% regions hold {held}")
        return "\n".join([*lines, f"  all together: p = {self.p_value:.2g}"])

    @property
    def num_simulations(self) -> int:
        """Number of simulations."""
        return len(self.ranks[TARP])

    @cached_property
    def p_values(self) -> dict[str, np.ndarray]:
        """Probability, for uniform ranks, of an empirical distribution as far out, by name, each of a quantity's shape.

        How far out it is, is the least probability of either tail of a count of ranks below a place; its law is
        simulated, and no p-value is below 1 / 10,001.

        Source: Säilynoja, Bürkner and Vehtari 2022, section 2.
        """
        places, null = _places(self.num_draws), _null(self.num_simulations, self.num_draws)

        def of(ranks: np.ndarray) -> np.ndarray:
            counts = np.sum(ranks[..., None] < places, 0)
            found = _tail(counts, self.num_simulations, self.num_draws)
            # Equal ones differ by rounding alone.
            return (1 + np.searchsorted(null, found * (1 + 1e-9), side="right")) / (1 + len(null))

        return {name: of(ranks) for name, ranks in self.ranks.items()}

    @property
    def p_value(self) -> float:
        """The least of all p-values times their number (Bonferroni): small where any of the quantities is off."""
        every = np.concatenate([np.ravel(p) for p in self.p_values.values()])
        return min(1.0, float(every.min()) * every.size)

    def coverage(self, level: float) -> dict[str, np.ndarray]:
        """Share of simulations whose value lies in a region of this posterior probability, by name.

        The regions are the central intervals of a quantity; for TARP the ball around the reference point. An exact
        posterior covers `level` of them, with a standard error of at most sqrt(level (1 - level) / num_simulations). A
        rank stands for a cell of width 1 / (num_draws + 1), and counts by how much of it is in the region.

        Raises:
            ValueError: level lies outside [0, 1].
        """
        if not 0 <= level <= 1:
            raise ValueError(f"Expected `level`, a probability, in [0, 1]; got {level}.")
        size = self.num_draws + 1

        def of(name: str, ranks: np.ndarray) -> np.ndarray:
            low, high = (0.0, level) if name == TARP else (0.5 - level / 2, 0.5 + level / 2)
            inside = np.minimum(ranks + 1, high * size) - np.maximum(ranks, low * size)
            return np.mean(np.clip(inside, 0, 1), 0)

        return {name: of(name, ranks) for name, ranks in self.ranks.items()}

    def band(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the empirical distribution function of uniform ranks lies as a whole with this probability.

        Returns:
            Places between 0 and 1, and the least and greatest share of ranks below them, each of shape (num_places,).
            A distribution leaves it where its p-value is below 1 - level.

        Raises:
            ValueError: level lies outside (0, 1).

        Source: Säilynoja, Bürkner and Vehtari 2022, with the law of the statistic simulated.
        """
        if not 0 < level < 1:
            raise ValueError(f"Expected `level`, a probability, in (0, 1); got {level}.")
        num, null = self.num_simulations, _null(self.num_simulations, self.num_draws)
        # A small step down, as what has just this probability is inside.
        tail = null[math.floor((1 - level) * len(null))] * (1 - 1e-9)
        z = _places(self.num_draws) / (self.num_draws + 1)
        return z, binom.ppf(tail / 2, num, z) / num, 1 - binom.ppf(tail / 2, num, 1 - z) / num

    def to_arviz(self) -> Any:
        """As ArviZ's `InferenceData` (0.23) or `xarray.DataTree` (1.x).

        Returns:
            A group `prior_sbc`, which `arviz.plot_ecdf_pit` of 1.x reads, with the ranks of each quantity as
            probabilities, (rank + 1/2) / (num_draws + 1), of dims (chain, draw, ...), draw being the simulation; and
            `sample_stats`, with the ranks themselves.
        """
        import xarray as xr

        def group(of: Callable[[np.ndarray], np.ndarray], what: str) -> Any:
            variables = {}
            for name, ranks in self.ranks.items():
                named = name.replace("/", ".")  # a group may not look nested
                dims = ("chain", "draw", *(f"{named}_{i}" for i in range(ranks.ndim - 1)))
                variables[named] = variable(dims, of(ranks)[None], f"{what} of the simulated {name}", "1")
            return xr.Dataset(variables, {"chain": [0], "draw": np.arange(self.num_simulations)})

        pit = group(lambda ranks: (ranks + 0.5) / (self.num_draws + 1), "posterior probability below")
        return record({"prior_sbc": pit, "sample_stats": group(np.asarray, "rank")}, about=_ABOUT)


_ABOUT = {"title": "Simulation-based calibration of a posterior", "inference_library": "dpm_ppl"}

Names = str | Sequence[str]


def calibrate(
    model: Callable[[], Any],
    sites: Names,
    observed: Names,
    posterior: Callable[[Array, Any], Any],
    *,
    key: Array,
    num_simulations: int,
    params: Mapping[str, Any] | None = None,
    quantities: Callable[[Any, Any], Mapping[str, Any]] | None = None,
    batch_size: int | None = None,
) -> Calibration:
    """Ranks of a program's own values among draws of their posteriors given its own observations.

    The program draws a value and what is observed of it, and the posterior, given the observation, draws that value:
    an exact one makes every rank uniform, whatever the program is. That holds for one which ignores the observation and
    draws of the prior, too, of all quantities that are of the value alone: what tells it is the distance to a point
    that goes with the observation (TARP). Here it is the value of that one of 1,000 further simulations whose
    observation is most like this, which sees the prior where like observations come of like values.

    Args:
        model: The program, without observations and without arguments (bind them by `functools.partial`).
        sites: What is inferred: name of a chain, a sample or a deterministic site; or a sequence of them.
        observed: What is observed, likewise.
        posterior: A function of a random key and an observation to draws, with the number of draws in front of the
            value's shape: (num_draws, *shape). Of a sequence of names value, draws or observation are dictionaries.
            `num_draws` + 1 should be a multiple of 20, for intervals to be exact. JAX must be able to trace it.
        key: Random key.
        num_simulations: Number of simulations; hundreds see an interval wrong by a tenth.
        params: Parameters of the program by name, as for `smc`.
        quantities: A function of a value and an observation to what is ranked, scalars or arrays by name; by default
            every coordinate of the value. One that depends on the observation, such as the log likelihood, sees more.
        batch_size: Simulations at a time, by default all, if memory allows.

    Returns:
        The ranks; equal draws are put in random order, so that they are uniform for discrete values too.

    Raises:
        TypeError: something is of the wrong kind.
        ValueError: the program has no such site, observes it, or needs other parameters; draws have another shape than
            the value; a quantity is called TARP; or a value, a draw or a quantity is NaN.

    Source: Talts, Betancourt, Simpson, Vehtari and Gelman 2018; Lemos, Coogan, Hezaveh and Perreault-Levasseur 2023,
        algorithm 2 (TARP); Modrák et al. 2023 for quantities that depend on the observation.
    """
    for name, given in (("model", model), ("posterior", posterior), ("quantities", quantities or posterior)):
        if not callable(given):
            raise TypeError(f"Expected `{name}` to be a function; got {type(given).__name__}.")
    require_key(key)
    num_simulations = require_count("num_simulations", num_simulations, at_least=2)
    batch_size = require_count("batch_size", num_simulations if batch_size is None else batch_size)
    params = dict(params or {})
    names = [*_listed(sites), *_listed(observed)]
    trace_shapes(lambda _, sites: _require_simulated(sites, names, params), model)

    def ranked(value: Any, observation: Any) -> dict[str, Any]:
        if quantities is not None:
            return _named(quantities(value, observation))
        return dict(value) if isinstance(value, dict) else {_listed(sites)[0]: value}

    def simulate(key: Array) -> tuple[Any, Any]:
        trace = trace_quietly(model, params=params, seed=key)[1]
        return _picked(trace, sites), _picked(trace, observed)

    num_draws = _require_fitting(posterior, ranked, *jax.eval_shape(simulate, key))

    def rank(key: Array, references: _References) -> Any:
        key, posterior_key, tie_key = jax.random.split(key, 3)
        value, observation = simulate(key)
        draws = posterior(posterior_key, observation)
        distance = references.distance_from(observation)

        def of(value: Any) -> dict[str, Array]:
            return {**jax.tree.map(jnp.asarray, ranked(value, observation)), TARP: distance(value)}

        true, drawn = of(value), jax.vmap(of)(draws)
        below, same = (jax.tree.map(lambda a, b, op=op: op(a, b).sum(0), drawn, true) for op in (jnp.less, jnp.equal))
        keys = dict(zip(true, jax.random.split(tie_key, len(true)), strict=True))
        ties = {name: jax.random.randint(keys[name], n.shape, 0, n + 1) for name, n in same.items()}
        nan = [jnp.isnan(leaf).any() for leaf in jax.tree.leaves((true, drawn))]
        return jax.tree.map(jnp.add, below, ties), jnp.any(jnp.stack(nan))

    @jax.jit
    def run(key: Array) -> Any:
        reference_key, key = jax.random.split(key)
        references = _References.of(*jax.vmap(simulate)(jax.random.split(reference_key, NUM_REFERENCES)))
        return jax.lax.map(
            lambda key: rank(key, references), jax.random.split(key, num_simulations), batch_size=batch_size
        )

    ranks, nan = jax.device_get(run(key))
    if nan.any():
        raise ValueError(
            f"Expected values, draws and quantities that are numbers; {nan.sum()} of {num_simulations} simulations "
            "have NaN. Try the posterior on one of them."
        )
    return Calibration(ranks, num_draws)


class _References:
    """Simulations by which a reference point is chosen: the value that goes with the most similar observation."""

    def __init__(self, values: Array, observations: Array) -> None:
        self.values, self.value_scale = values, _scale(values)
        self.observations, self.scale = observations, _scale(observations)

    @classmethod
    def of(cls, values: Any, observations: Any) -> "_References":
        """Of simulations, a leading axis each."""
        return cls(jax.vmap(_flat)(values), jax.vmap(_flat)(observations))

    def distance_from(self, observation: Any) -> Callable[[Any], Array]:
        """The distance of a value to the reference point of an observation, in standard deviations."""
        off = (self.observations - _flat(observation)) / self.scale
        point = self.values[jnp.argmin(jnp.sum(off**2, -1))]
        return lambda value: jnp.sqrt(jnp.sum(((_flat(value) - point) / self.value_scale) ** 2))


def _named(quantities: Any) -> dict[str, Any]:
    if not isinstance(quantities, Mapping):
        raise TypeError(f"Expected `quantities` to return a dictionary of them; got {type(quantities).__name__}.")
    return dict(quantities)


def _flat(tree: Any) -> Array:
    return jnp.concatenate([jnp.ravel(leaf).astype(float) for leaf in jax.tree.leaves(tree)])


def _scale(rows: Array) -> Array:
    spread = jnp.std(rows, 0)
    return jnp.where(spread > 0, spread, 1.0)


def _listed(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _picked(trace: Sites, names: Names) -> Any:
    if isinstance(names, str):
        return trace[names]["value"]
    return {name: trace[name]["value"] for name in names}


def _require_simulated(trace: Sites, names: list[str], params: Mapping[str, Any]) -> None:
    """Every site is there and drawn, and the parameters are those of the program; or a clear error."""
    drawn = [name for name, site in trace.items() if site["type"] in ("sample", "deterministic")]
    for name in names:
        if name not in drawn:
            raise ValueError(f"Expected the name of a site of the program, one of {', '.join(drawn)}; got {name!r}.")
        if trace[name].get("is_observed"):
            raise ValueError(
                f"Expected the program to draw {name!r}; it observes it. Give the program without its observations: "
                "functools.partial(model, y=None)."
            )
    declared = {name: ("param", site["value"]) for name, site in trace.items() if site["type"] == "param"}
    require_params(declared, params)


def _require_fitting(
    posterior: Callable[[Array, Any], Any], ranked: Callable[[Any, Any], Any], value: Any, observation: Any
) -> int:
    """The number of draws of a posterior that are shaped as the value, and quantities with names; or a clear error."""
    draws = jax.eval_shape(posterior, jax.random.key(0), observation)
    expected, came = (jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (value, draws))
    numbers = {leaf.shape[:1] for leaf in jax.tree.leaves(draws)}
    shapes = jax.tree.map(lambda leaf: leaf.shape[1:], draws)
    if len(numbers) != 1 or numbers == {()} or shapes != expected:
        raise ValueError(
            "Expected `posterior` to return draws with their number in front of the shape of what is simulated, "
            f"{expected}; got {came}. It returns draws for one observation: posterior.resample(key, 99), say."
        )
    (num_draws,) = numbers.pop()
    if num_draws < 1:
        raise ValueError("Expected `posterior` to return at least one draw; it returns none.")
    names = jax.eval_shape(ranked, value, observation)
    if TARP in names:
        raise ValueError(f"Expected no quantity called {TARP}, which is the distance to a reference point. Rename it.")
    return int(num_draws)


def _places(num_draws: int) -> np.ndarray:
    """Ranks below which ranks are counted, at most `MOST_PLACES` of 1..num_draws, shape (num_places,)."""
    return np.unique(np.linspace(1, num_draws, min(num_draws, MOST_PLACES)).round().astype(int))


def _tail(counts: np.ndarray, num_simulations: int, num_draws: int) -> np.ndarray:
    """Twice the least tail probability of counts of ranks below the places, over the last axis."""
    z = _places(num_draws) / (num_draws + 1)
    every = np.arange(num_simulations + 1)[:, None]
    table = 2 * np.minimum(binom.cdf(every, num_simulations, z), binom.sf(every - 1, num_simulations, z))
    return np.min(table[counts, np.arange(len(z))], -1)


@lru_cache
def _null(num_simulations: int, num_draws: int) -> np.ndarray:
    """`_tail` of simulated uniform ranks, sorted, shape (NUM_NULL,)."""
    cells = np.diff(_places(num_draws), prepend=0, append=num_draws + 1) / (num_draws + 1)
    counts = np.random.default_rng(0).multinomial(num_simulations, cells, NUM_NULL).cumsum(-1)[:, :-1]
    return np.sort(_tail(counts, num_simulations, num_draws))
