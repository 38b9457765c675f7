"""The discriminator's divergence against quadrature and enumeration, the test's calibration, what is held out."""

import math
from itertools import product

import jax
import numpy as np
import pytest
from scipy.stats import kstest, norm

from dpm_ppl.inference import Discriminator, discriminate

RNG = np.random.default_rng(0)


QUICK = {"num_iterations": 100, "width": 8, "depth": 1}


def js(p, q, weight=1.0):
    """In nats, from densities at the same points."""
    middle = (p + q) / 2
    terms = [np.where(f > 0, f * np.log(np.where(f > 0, f, 1) / middle), 0) for f in (p, q)]
    return 0.5 * np.sum(weight * (terms[0] + terms[1]))


def gaussians():
    """Two normals of different mean and scale: draws, their log ratio, and JS by quadrature."""
    p, q = norm(0.3, 1.0), norm(1.2, 0.5)
    x = np.linspace(-8, 9, 20_001)
    return (p, q), lambda x: p.logpdf(x) - q.logpdf(x), js(p.pdf(x), q.pdf(x), x[1] - x[0])


def categories():
    """Two laws of three categories in two places, dependent, one outcome impossible under the first."""
    outcomes = np.array(list(product(range(3), repeat=2)))
    p = np.array([0.3, 0.05, 0.1, 0.0, 0.2, 0.05, 0.15, 0.05, 0.1])
    q = np.array([0.1, 0.1, 0.1, 0.2, 0.05, 0.15, 0.1, 0.15, 0.05])
    return outcomes, p, q, js(p, q)


def test_the_best_discriminator_has_the_divergence_and_any_other_less():
    (p, q), log_ratio, exact = gaussians()
    logits = [log_ratio(f.rvs(200_000, random_state=RNG)) for f in (p, q)]
    best = Discriminator(*logits, 1)
    assert best.js_error < 1e-3
    assert abs(best.js - exact) < 3 * best.js_error
    assert best.objective == pytest.approx(2 * best.js - 2 * math.log(2))
    for worse in (Discriminator(*(0.5 * x for x in logits), 1), Discriminator(*(x + 1 for x in logits), 1)):
        assert worse.js < exact - 5 * worse.js_error


def test_error_is_the_spread_over_held_out_data():
    (p, q), log_ratio, _ = gaussians()
    found = [
        Discriminator(log_ratio(p.rvs(300, random_state=RNG)), log_ratio(q.rvs(100, random_state=RNG)), 1)
        for _ in range(2000)
    ]
    for value, error in (("js", "js_error"), ("accuracy", "accuracy_error")):
        spread = np.std([getattr(d, value) for d in found])
        assert np.mean([getattr(d, error) for d in found]) == pytest.approx(spread, rel=0.08)  # se of a spread: 1.6%


def test_p_values_are_uniform_where_data_and_samples_are_alike():
    def called_data(num):  # a fixed classifier that calls one in five data
        return RNG.normal(size=num) - 0.84

    found = [Discriminator(called_data(3000), called_data(1000), 1).p_value for _ in range(3000)]
    assert kstest(found, "uniform").pvalue > 0.01
    assert Discriminator(-np.ones(10), -np.ones(20), 0).p_value == 0.5  # all called samples: nothing is told apart


def test_accuracy_and_z_by_hand():
    found = Discriminator(np.array([1.0, 2.0, -1.0, 3.0]), np.array([-1.0, -1.0, 1.0, -2.0, -3.0]), 7)
    assert found.accuracy == pytest.approx((3 / 4 + 4 / 5) / 2)
    share = 4 / 9  # called data, of all
    assert found.z == pytest.approx((3 / 4 - 1 / 5) / math.sqrt(share * (1 - share) * (1 / 4 + 1 / 5)))
    assert found.p_value == pytest.approx(norm.sf(found.z))


def test_estimate_of_two_normals_is_just_below_the_divergence():
    (p, q), _, exact = gaussians()
    drawn = [f.rvs(num, random_state=RNG) for f, num in ((p, 12_000), (q, 8000))]
    found = discriminate(*drawn, key=jax.random.key(0), num_iterations=600, width=64, depth=2)
    assert -0.01 - 3 * found.js_error < found.js - exact < 3 * found.js_error
    assert (len(found.data_logit), len(found.model_logit)) == (3000, 2000)
    assert exact > 0.1
    assert found.p_value < 1e-10
    summary = found.summary()
    assert summary["js_bits"] * math.log(2) == pytest.approx(summary["js_nats"])
    assert summary["js_nats"] == found.js


def test_estimate_of_categories_is_just_below_the_divergence():
    outcomes, p, q, exact = categories()
    drawn = [outcomes[RNG.choice(9, 12_000, p=f)].reshape(-1, 1, 2) for f in (p, q)]
    found = discriminate(*drawn, key=jax.random.key(1), num_iterations=600, width=64, depth=2)
    assert -0.01 - 3 * found.js_error < found.js - exact < 3 * found.js_error
    assert found.js > 5 * found.js_error


def test_a_thinner_curve_is_told_apart():
    """Normals about a circle, of two widths: a perceptron of the coordinates alone finds nothing. JS by quadrature."""
    widths, angle = (0.04, 0.015), RNG.uniform(0, 2 * np.pi, (2, 6000))
    radius = 1 + np.array(widths)[:, None] * RNG.normal(size=angle.shape)
    drawn = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    r = np.linspace(0.7, 1.3, 20_001)
    exact = js(*(norm(1, width).pdf(r) for width in widths), r[1] - r[0])
    found = discriminate(*drawn, key=jax.random.key(3), num_iterations=600, width=64, depth=2)
    assert found.js < exact + 3 * found.js_error
    assert found.js > 0.5 * exact > 5 * found.js_error


def test_parity_of_bits_is_learned():
    """Any two bits of the data look like the samples'; all three do not."""
    bits = np.array(list(product((0, 1), repeat=3)))
    p = np.where(bits.sum(1) % 2, 0.2, 0.05)
    q = np.full(8, 1 / 8)
    drawn = [bits[RNG.choice(8, 12_000, p=f)].astype(bool) for f in (p, q)]
    found = discriminate(*drawn, key=jax.random.key(2), num_iterations=600, width=64, depth=2)
    assert abs(found.js - js(p, q)) < 3 * found.js_error + 0.003
    assert found.js > 5 * found.js_error


@pytest.fixture(scope="module")
def alike():
    """Comparisons of equal distributions, with a classifier that could learn all 100 training data by heart."""
    found = []
    for seed in range(24):
        x = np.random.default_rng(seed).normal(size=(2, 200, 10))
        found.append(discriminate(*x, key=jax.random.key(seed), num_iterations=200, width=64, depth=2))
    return found


def test_what_is_alike_is_not_told_apart(alike):
    """Held out: an accuracy or divergence of the training data would be near its highest."""
    for value, exact in (("js", 0.0), ("accuracy", 0.5)):
        values = np.array([getattr(d, value) for d in alike])
        assert values.mean() < exact + 3 * values.std() / math.sqrt(len(values))
    p_values = np.array([d.p_value for d in alike])
    assert np.mean(p_values < 0.1) < 0.1 + 3 * math.sqrt(0.09 / len(alike))


def test_training_stops_before_it_harms(alike):
    """Trained to the end, these classifiers are sure and wrong: their divergence would be far below 0."""
    assert np.mean([d.iteration for d in alike]) < 100
    assert np.mean([d.js for d in alike]) > -0.02


def test_the_key_decides():
    # Far apart: of data that look the same, a classifier that has learned nothing may be the best under either key.
    x = np.random.default_rng(0).normal(size=(2, 100, 2)) + np.array([0.0, 1.5])[:, None, None]
    logits = [discriminate(*x, key=jax.random.key(key), **QUICK).data_logit for key in (0, 0, 1)]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert not np.array_equal(logits[0], logits[2])


GOOD = np.ones((50, 2)) * np.arange(50)[:, None]


@pytest.mark.parametrize(
    ("data", "samples", "options", "error", "message"),
    [
        (GOOD, GOOD[:, :1], {}, ValueError, r"one event shape; got \(2,\) and \(1,\)"),
        (GOOD, GOOD[:39], {}, ValueError, r"`samples` .* at least 40 of them; got shape \(39, 2\)"),
        (np.float64(1.0), GOOD, {}, ValueError, r"`data` of shape .* got shape \(\)"),
        (GOOD, np.where(GOOD == 7, np.nan, GOOD), {}, ValueError, "`samples` to be finite; .* in 1 of 50"),
        (np.where(GOOD > 47, np.inf, GOOD), GOOD, {}, ValueError, "`data` to be finite; .* in 2 of 50"),
        (GOOD.astype(str), GOOD, {}, TypeError, "`data` to be a numeric array"),
        (GOOD, GOOD, {"key": 3}, TypeError, "one random key"),
        (GOOD, GOOD, {"num_iterations": 0}, ValueError, "`num_iterations` to be at least 1"),
        (GOOD, GOOD, {"batch_size": 2.5}, TypeError, "`batch_size` to be an integer"),
        (GOOD, GOOD, {"learning_rate": 0.0}, ValueError, "`learning_rate` to be a positive float"),
    ],
)
def test_bad_input_is_told(data, samples, options, error, message):
    with pytest.raises(error, match=message):
        discriminate(data, samples, **{"key": jax.random.key(0), **options})
