"""The toy data sets: densities against brute force, samples against densities, entropies against known numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Predictive
from numpyro.infer.util import log_density

from dpm_ppl.datasets import Heartbeat, SwissRoll


def fine_roll(num=1_000_001):
    """Angles and Simpson weights of their mean, and the roll without noise, in its own units."""
    angle = np.linspace(1.5 * np.pi, 4.5 * np.pi, num)
    weight = np.where(np.arange(num) % 2 == 1, 4.0, 2.0)
    weight[[0, -1]] = 1.0
    return weight / weight.sum(), np.stack([angle * np.cos(angle), angle * np.sin(angle)], -1)


def brute_moments(noise):
    weight, roll = fine_roll()
    mean = weight @ roll
    return mean, np.sqrt(weight @ (roll - mean) ** 2 + noise**2)


def brute_log_prob(value, noise):
    """Simpson's rule over the angle, standardised by moments that are summed as well."""
    weight, roll = fine_roll()
    mean, deviation = brute_moments(noise)
    log_prob = []
    for point in np.asarray(value) * deviation + mean:
        exponent = -0.5 * np.sum((point - roll) ** 2, -1) / noise**2
        log_prob.append(exponent.max() + np.log(weight @ np.exp(exponent - exponent.max())))
    return np.array(log_prob) - np.log(2 * np.pi * noise**2) + np.log(deviation).sum()


@pytest.mark.parametrize("noise", [0.25, 2.0, 30.0])
def test_density_is_the_integral_over_the_angle(noise):
    """At both ends of the roll, along it, between its windings and up to 40 noise away; no symmetry to hide behind."""
    rng = np.random.default_rng(0)
    mean, deviation = brute_moments(noise)
    angle = np.append(rng.uniform(1.5, 4.5, 32), [1.5, 4.5] * 4) * np.pi
    roll = np.stack([angle * np.cos(angle), angle * np.sin(angle)], -1)
    direction = rng.normal(size=(40, 2))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    away = noise * np.repeat([0.0, 1.5, 10.0, 40.0, 40.0], 2)
    points = (roll + np.tile(away, 4)[:, None] * direction - mean) / deviation
    np.testing.assert_allclose(SwissRoll(noise).log_prob(points), brute_log_prob(points, noise), rtol=0, atol=1e-8)


def test_density_in_single_precision():
    """Also where it underflows: log p = -4e5 with one correct digit in a million."""
    points = np.array([[-1.6, 0.7], [0.4, -0.3], [1.9, 2.0], [30.0, -20.0]], np.float32)
    log_prob = SwissRoll(0.25).log_prob(jnp.asarray(points))
    assert log_prob.dtype == jnp.float32
    np.testing.assert_allclose(log_prob, brute_log_prob(points, 0.25), rtol=3e-6, atol=1e-4)


def test_density_of_any_batch_is_that_of_each_point():
    """More points than are taken at a time, in a shape, under jit and vmap, against one by one; and the gradient."""
    roll = SwissRoll(0.25)
    points = roll.sample(jax.random.key(1), (3, 401))
    log_prob = roll.log_prob(points)
    assert log_prob.shape == (3, 401)
    some = [(0, 0), (1, 200), (2, 400)]
    one_by_one = np.array([roll.log_prob(points[i]) for i in some])
    np.testing.assert_allclose([log_prob[i] for i in some], one_by_one, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.vmap(roll.log_prob))(points[:, :2]), log_prob[:, :2], rtol=1e-12)
    step = 1e-5 * np.array([0.8, -0.6])
    slope = (brute_log_prob([points[1, 7] + step], 0.25) - brute_log_prob([points[1, 7] - step], 0.25))[0] / 2e-5
    np.testing.assert_allclose(jax.grad(roll.log_prob)(points[1, 7]) @ np.array([0.8, -0.6]), slope, rtol=1e-6)


def bin_probabilities(roll, edges, num=12):
    """Mass of the density in each bin of the plane, by Gauss-Legendre quadrature in each; shape (bins, bins)."""
    node, weight = np.polynomial.legendre.leggauss(num)
    half = np.diff(edges)[:, None] / 2
    axis = ((edges[1:] + edges[:-1])[:, None] / 2 + half * node).ravel()
    weight = (half * weight).ravel()
    density = np.exp(roll.log_prob(np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)))
    num_bins = len(edges) - 1
    return (weight[:, None] * density * weight).reshape(num_bins, num, num_bins, num).sum((1, 3))


def chi_square(counts, probability):
    """Pearson's statistic in standard deviations above its mean; bins that expect fewer than 5 are taken together."""
    expected = probability.ravel() * counts.sum()
    many = expected >= 5
    observed = np.append(counts.ravel()[many], counts.sum() - counts.ravel()[many].sum())
    expected = np.append(expected[many], counts.sum() - expected[many].sum())
    degrees = len(expected) - 1
    return (np.sum((observed - expected) ** 2 / expected) - degrees) / np.sqrt(2 * degrees)


def test_density_integrates_to_one():
    total = bin_probabilities(SwissRoll(0.5), np.linspace(-3.2, 3.2, 17)).sum()
    np.testing.assert_allclose(total, 1, atol=1e-8)


def test_samples_follow_the_density():
    """Chi-square over bins of the plane within 5 standard deviations; a roll turned or mirrored is far outside."""
    roll, edges = SwissRoll(0.5), np.linspace(-3.2, 3.2, 17)
    x, y = np.array(roll.sample(jax.random.key(3), (20_000,))).T
    probability = bin_probabilities(roll, edges)

    def statistic(x, y):
        return chi_square(np.histogram2d(x, y, bins=(edges, edges))[0], probability)

    assert abs(statistic(x, y)) < 5
    assert min(statistic(y, x), statistic(-x, y), statistic(x, -y), statistic(-y, x), statistic(1.02 * x, y)) > 20


@pytest.mark.parametrize("noise", [0.25, 2.0])
def test_roll_is_standardised_exactly(noise):
    """Its first moments through the score: for a mixture of Gaussians, mean and variance by a sum over the plane."""
    roll = SwissRoll(noise)
    _, deviation = brute_moments(noise)
    axes = [np.arange(-16 - 9 * noise, 16 + 9 * noise, noise / 2) / scale for scale in deviation]
    plane = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    weight = np.exp(roll.log_prob(plane)) * (noise / 2) ** 2 / np.prod(deviation)
    np.testing.assert_allclose(weight.sum(), 1, atol=1e-10)
    mean = np.einsum("ij,ijk->k", weight, plane)
    np.testing.assert_allclose(mean, roll.mean, atol=1e-9)
    np.testing.assert_allclose(np.einsum("ij,ijk->k", weight, plane**2), roll.variance, atol=1e-9)


def test_samples_have_the_moments():
    x = np.array(SwissRoll(0.25).sample(jax.random.key(2), (100_000,)))
    np.testing.assert_allclose(x.mean(0), 0, atol=4 / np.sqrt(len(x)))
    np.testing.assert_allclose(x.var(0), 1, atol=4 * np.sqrt(2 / len(x)))


def test_entropy_of_the_papers_roll():
    """-0.9480 bits: by a sum over the plane, here by the mean of the log density along the roll and its noise."""
    roll, noise = SwissRoll(0.25), 0.25
    entropy_bits = roll.entropy() / np.log(2)
    np.testing.assert_allclose(entropy_bits, 0.94800, atol=1e-5)
    mean, deviation = brute_moments(noise)
    node, weight = np.polynomial.hermite_e.hermegauss(6)
    weight = weight / weight.sum()
    edges, (u, v) = np.linspace(1.5 * np.pi, 4.5 * np.pi, 61), np.polynomial.legendre.leggauss(8)
    angle = (edges[1:, None] + edges[:-1, None]) / 2 + np.diff(edges)[:, None] / 2 * u
    points = np.stack([angle * np.cos(angle), angle * np.sin(angle)], -1)[..., None, None, :]
    points = (points + noise * np.stack(np.meshgrid(node, node, indexing="ij"), -1) - mean) / deviation
    expected = -np.einsum("abij,b,i,j->", roll.log_prob(points), v / 2, weight, weight) / 60
    np.testing.assert_allclose(entropy_bits, expected / np.log(2), atol=1e-5)


def test_entropy_is_minus_the_mean_log_density():
    """Four standard errors, at a noise that blurs the windings into each other; and under jit."""
    roll = SwissRoll(2.0)
    log_prob = np.array(roll.log_prob(roll.sample(jax.random.key(0), (50_000,))))
    assert abs(log_prob.mean() + roll.entropy()) < 4 * log_prob.std() / np.sqrt(len(log_prob))
    np.testing.assert_allclose(jax.jit(lambda d: d.entropy())(roll), roll.entropy(), rtol=1e-12)


@pytest.mark.parametrize("noise", [0, -0.25, float("inf"), float("nan")])
def test_noise_must_be_positive_and_finite(noise):
    with pytest.raises(ValueError, match="Expected `noise` positive and finite; got"):
        SwissRoll(noise)


def test_noise_must_be_a_number_now():
    with pytest.raises(TypeError, match=r"Python number; got .*Use float\(noise\)"):
        SwissRoll(jnp.array(0.25))


HEARTBEATS = np.array([[1, 0, 0, 1, 0, 0, 1], [0, 1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 1, 0]])


def test_heartbeat_is_uniform_over_its_sequences():
    """All 2^7 sequences: the three with a beat every 3 bins share the mass, one of them with a beat more."""
    heart = Heartbeat(7, 3)
    np.testing.assert_array_equal(heart.enumerate_support(), HEARTBEATS)
    sequences = np.array(list(itertools.product([0, 1], repeat=7)))
    prob = np.exp(heart.log_prob(sequences))
    np.testing.assert_allclose(prob.sum(), 1, rtol=1e-14)
    np.testing.assert_array_equal(prob > 0, [row in HEARTBEATS.tolist() for row in sequences.tolist()])
    np.testing.assert_allclose(prob @ sequences, heart.mean, rtol=1e-12)
    np.testing.assert_allclose(prob @ (sequences - prob @ sequences) ** 2, heart.variance, rtol=1e-12)
    np.testing.assert_allclose(-np.log(prob[prob > 0]) @ prob[prob > 0], heart.entropy(), rtol=1e-12)


def test_heartbeat_of_the_paper():
    heart = Heartbeat()
    np.testing.assert_allclose(heart.entropy() / np.log(2), np.log2(5), rtol=1e-12)
    beats = heart.enumerate_support()
    assert beats.shape == (5, 20)
    np.testing.assert_array_equal(np.flatnonzero(beats[3]), [3, 8, 13, 18])
    np.testing.assert_allclose(heart.log_prob(beats.astype(jnp.float32)), -np.log(5), rtol=1e-6)
    assert heart.log_prob(beats[3].at[13].set(0)) == -jnp.inf
    assert heart.log_prob(beats[3].at[14].set(1)) == -jnp.inf


def test_heartbeat_samples_each_phase_equally_often():
    """Chi-square of the three phases: 13.8 is exceeded once in a thousand seeds."""
    samples = Heartbeat(7, 3).sample(jax.random.key(0), (3_000,))
    assert samples.dtype == dist.Bernoulli(0.5).sample(jax.random.key(0)).dtype
    counts = np.array([np.all(samples == row, -1).sum() for row in HEARTBEATS])
    assert counts.sum() == 3_000
    assert np.sum((counts - 1_000) ** 2 / 1_000) < 13.8


@pytest.mark.parametrize(("length", "period"), [(20, 0), (4, 5), (20, -1), (0, 0)])
def test_heartbeat_needs_a_beat_in_every_phase(length, period):
    with pytest.raises(ValueError, match=rf"1 <= period <= length; got period {period} and length {length}"):
        Heartbeat(length, period)


@pytest.mark.parametrize(("length", "period", "name"), [(20.0, 5, "length"), (20, "5", "period"), (True, 1, "length")])
def test_heartbeat_counts_bins_in_integers(length, period, name):
    with pytest.raises(TypeError, match=f"Expected `{name}` as an integer"):
        Heartbeat(length, period)


@pytest.mark.parametrize("data", [SwissRoll(), Heartbeat(7, 3)], ids=["roll", "heartbeat"])
def test_data_is_a_numpyro_distribution(data):
    """In a plate, under `Predictive`, through a pytree and `jit`, expanded; and data of another width are refused."""

    def program(x=None):
        with numpyro.plate("data", 4):
            return numpyro.sample("x", data, obs=x)

    x = Predictive(program, num_samples=3)(jax.random.key(0))["x"]
    assert x.shape == (3, 4, *data.event_shape)
    assert len(np.unique(np.array(x).reshape(12, -1), axis=0)) > 1
    assert np.all(data.support(x))
    total = sum(float(data.log_prob(row)) for row in x[0])
    assert np.isfinite(total)
    np.testing.assert_allclose(log_density(program, (x[0],), {}, {})[0], total, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(lambda d, x: d.log_prob(x).sum())(data, x[0]), total, rtol=1e-12)
    np.testing.assert_allclose(data.expand((4,)).log_prob(x[0]).sum(), total, rtol=1e-12)
    with pytest.raises(ValueError, match=r"Expected `value` of shape \(\*batch, "):
        data.log_prob(jnp.ones((4, 3)))
