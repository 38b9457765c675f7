"""Samples told from data by a trained classifier: the Jensen-Shannon divergence from below, and a two-sample test."""

import math
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from dpm_ppl.arguments import require_count, require_key
from dpm_ppl.inference.arguments import require_pair

FEWEST = 40  # data, or samples: a quarter is held out

MOST_CATEGORIES = 32  # whole numbers in a wider range are read as quantities

NUM_FREQUENCIES = 4  # of the waves by which fine structure is seen; without them a perceptron misses a thin curve

MOST_WITH_WAVES = 64  # coordinates


@dataclass(frozen=True, eq=False)
class Discriminator:
    """What a classifier says of held-out data and samples, which took no part in its training; NumPy, float64.

    Attributes:
        data_logit: Log odds log D / (1 - D) of being data, of each held-out datum, shape (num_data,).
        model_logit: The same of each held-out sample, shape (num_samples,).
        iteration: The iteration whose classifier it is, the best on a part of its own; 0 is D = 1/2 everywhere.
    """

    data_logit: np.ndarray
    model_logit: np.ndarray
    iteration: int

    @property
    def objective(self) -> float:
        """Mean log D of data plus mean log (1 - D) of samples, in nats: 2 JS - 2 log 2 for the best of classifiers."""
        return float(-np.mean(np.logaddexp(0, -self.data_logit)) - np.mean(np.logaddexp(0, self.model_logit)))

    @property
    def js(self) -> float:
        """Estimate of the Jensen-Shannon divergence, nats, 0 to log 2: in expectation a LOWER bound.

        It is unbiased for what this classifier sees, and no classifier sees more than there is. So it can be far too
        low (a difference that is not learned), and negative by chance alone.
        """
        return 0.5 * self.objective + math.log(2)

    @property
    def js_error(self) -> float:
        """Standard error of `js`, for this classifier."""
        terms = np.logaddexp(0, -self.data_logit), np.logaddexp(0, self.model_logit)
        return 0.5 * math.sqrt(sum(float(np.var(term, ddof=1)) / len(term) for term in terms))

    @property
    def accuracy(self) -> float:
        """Share told right, data and samples counting the same: 1/2 in expectation where they are alike."""
        called_data = self._called_data
        return 0.5 + 0.5 * (called_data[0] - called_data[1])

    @property
    def accuracy_error(self) -> float:
        """Standard error of `accuracy`, for this classifier."""
        numbers = len(self.data_logit), len(self.model_logit)
        return 0.5 * math.sqrt(sum(a * (1 - a) / n for a, n in zip(self._called_data, numbers, strict=True)))

    @property
    def z(self) -> float:
        """`accuracy` above 1/2 in standard errors of the case that data and samples are alike; 0 where all look so.

        Normal for a fixed classifier. Lopez-Paz and Oquab have the variance 1 / (4 n) of labels drawn at random; with
        the two numbers fixed it is smaller, as the share a of both that is called data is near 0 or 1.
        """
        numbers = np.array([len(self.data_logit), len(self.model_logit)])
        a = float(np.dot(self._called_data, numbers)) / numbers.sum()
        error = 0.5 * math.sqrt(a * (1 - a) * float(np.sum(1 / numbers)))
        return (self.accuracy - 0.5) / error if error > 0 else 0.0

    @property
    def p_value(self) -> float:
        """Probability of such an accuracy or a higher one, were data and samples alike; one-sided."""
        return 0.5 * math.erfc(self.z / math.sqrt(2))

    def summary(self) -> dict[str, float]:
        """`js_nats`, `js_bits`, `accuracy`, each with its error under `_se`; `z`, `p_value`, `comparison_num_samples`.

        The last is the smaller number of held-out data and samples.
        """
        bits = {"js_bits": self.js / math.log(2), "js_bits_se": self.js_error / math.log(2)}
        nats = {"js_nats": self.js, "js_nats_se": self.js_error}
        test = {"accuracy": self.accuracy, "accuracy_se": self.accuracy_error, "z": self.z, "p_value": self.p_value}
        return {**bits, **nats, **test, "comparison_num_samples": min(len(self.data_logit), len(self.model_logit))}

    @property
    def _called_data(self) -> tuple[float, float]:
        return float(np.mean(self.data_logit > 0)), float(np.mean(self.model_logit > 0))


def discriminate(
    data: ArrayLike,
    samples: ArrayLike,
    *,
    key: Array,
    num_iterations: int = 4000,
    batch_size: int = 256,
    width: int = 128,
    depth: int = 3,
    learning_rate: float = 5e-3,
) -> Discriminator:
    """Trains a perceptron to tell samples from data on half of both, and tries it on what it has not seen.

    A quarter of both chooses the iteration (early stopping), and the last quarter is what the result holds. Whole
    numbers of a few values, bits and categories, are read as such; all else is standardised, and where it has few
    coordinates joined by sines and cosines of each.

    Args:
        data: Data, shape (num_data, *event).
        samples: Samples of a model, shape (num_samples, *event); their number may differ.
        key: Random key.
        num_iterations: Iterations of Adam, its rate falling to 0 along a cosine.
        batch_size: Number of data, and of samples, in a batch.
        width: Units in a hidden layer.
        depth: Number of hidden layers.
        learning_rate: First rate.

    Returns:
        The classifier's log odds for held-out data and samples.

    Raises:
        TypeError: the key or an option is of the wrong kind, or data or samples are not numeric.
        ValueError: their event shapes differ, there are fewer than 40 of either, or one is not finite.

    Source: Goodfellow et al. 2014, theorem 1, for the divergence; Lopez-Paz and Oquab 2017, section 3, for the test;
        Tancik et al. 2020 for the sines and cosines.
    """
    require_key(key)
    num_iterations, batch_size = (
        require_count("num_iterations", num_iterations),
        require_count("batch_size", batch_size),
    )
    width = require_count("width", width)
    depth = require_count("depth", depth, at_least=0)
    if not (isinstance(learning_rate, float) and 0 < learning_rate < math.inf):
        raise ValueError(f"Expected `learning_rate` to be a positive float; got {learning_rate!r}.")
    both = require_pair(data, samples, at_least=FEWEST)
    split_keys, train_key = jax.random.split(key, (2,)), jax.random.fold_in(key, 2)
    both = [np.asarray(jax.random.permutation(k, x)) for k, x in zip(split_keys, both, strict=True)]
    ends = [(len(x) // 2, 3 * len(x) // 4) for x in both]
    features = _features(both, [end for end, _ in ends])
    train, valid, test = (
        tuple(x[slice(*part)] for x, part in zip(features, parts, strict=True))
        for parts in zip(*[((0, a), (a, b), (b, None)) for a, b in ends], strict=True)
    )
    net, iteration = _train(
        *(train, valid, train_key),
        size=(width, depth),
        num_iterations=num_iterations,
        batch_size=batch_size,
        learning_rate=learning_rate,
    )
    of_data, of_samples = (np.asarray(_logits(net, x), np.float64) for x in test)
    return Discriminator(of_data, of_samples, iteration=int(iteration))


def _features(both: list[np.ndarray], num_train: list[int]) -> list[np.ndarray]:
    """Inputs of the classifier, each of shape (number, num_features)."""
    flat = [x.reshape(len(x), -1) for x in both]
    is_discrete = all(np.issubdtype(x.dtype, np.integer) or x.dtype == bool for x in flat)
    if is_discrete:
        low, high = (int(f([f(x) for x in flat])) for f in (np.min, np.max))
        is_discrete = high - low < MOST_CATEGORIES
        if is_discrete and high - low > 1:
            flat = [(x[..., None] == np.arange(low, high + 1)).reshape(len(x), -1) for x in flat]
    flat = [x.astype(jnp.result_type(float)) for x in flat]
    train = np.concatenate([x[:num] for x, num in zip(flat, num_train, strict=True)])
    mean, deviation = train.mean(0), train.std(0)
    flat = [(x - mean) / np.where(deviation > 0, deviation, 1) for x in flat]
    if is_discrete or len(mean) > MOST_WITH_WAVES:
        return flat
    angles = [[0.5 * np.pi * 2**j * x for j in range(NUM_FREQUENCIES)] for x in flat]
    return [np.hstack([x, *map(np.sin, angle), *map(np.cos, angle)]) for x, angle in zip(flat, angles, strict=True)]


@eqx.filter_jit
def _logits(net: eqx.nn.MLP, x: ArrayLike) -> Array:
    """Log odds, shape (number,)."""
    return jax.vmap(net)(jnp.asarray(x))


def _loss(net: eqx.nn.MLP, both: tuple[ArrayLike, ...]) -> Array:
    """-`objective` / 2, log 2 for a classifier that knows nothing."""
    return 0.5 * (jnp.mean(jax.nn.softplus(-_logits(net, both[0]))) + jnp.mean(jax.nn.softplus(_logits(net, both[1]))))


@eqx.filter_jit
def _train(
    train: tuple[Any, ...],
    valid: tuple[Any, ...],
    key: Array,
    *,
    size: tuple[int, int],
    num_iterations: int,
    batch_size: int,
    learning_rate: float,
) -> tuple[eqx.nn.MLP, Array]:
    """The classifier that is best on `valid`, of some 50 along its training on `train`, and its iteration."""
    net = eqx.nn.MLP(train[0].shape[1], "scalar", *size, jax.nn.silu, key=key)
    last = net.layers[-1]
    net = eqx.tree_at(lambda net: net.layers[-1].weight, net, jnp.zeros_like(last.weight))
    net = eqx.tree_at(lambda net: net.layers[-1].bias, net, jnp.zeros_like(jnp.asarray(last.bias)))
    start, static = eqx.partition(net, eqx.is_inexact_array)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_iterations))
    every = max(1, num_iterations // 50)

    def step(carry: Any, iteration: Array) -> tuple[Any, None]:
        weights, state, (best, best_loss, best_iteration) = carry
        keys = jax.random.split(jax.random.fold_in(key, iteration))
        batch = tuple(x[jax.random.randint(k, (batch_size,), 0, len(x))] for k, x in zip(keys, train, strict=True))
        gradient = jax.grad(lambda weights: _loss(eqx.combine(weights, static), batch))(weights)
        updates, state = optimizer.update(gradient, state)
        weights = optax.apply_updates(weights, updates)
        due = (iteration % every == 0) | (iteration == num_iterations)
        loss = jax.lax.cond(due, lambda: _loss(eqx.combine(weights, static), valid), lambda: jnp.array(jnp.inf))
        better = loss < best_loss
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), weights, best)
        kept = (best, jnp.where(better, loss, best_loss), jnp.where(better, iteration, best_iteration))
        return (weights, state, kept), None

    first = (start, optimizer.init(start), (start, _loss(net, valid), jnp.array(0)))
    (_, _, (best, _, iteration)), _ = jax.lax.scan(step, first, jnp.arange(1, num_iterations + 1))
    return eqx.combine(best, static), iteration
