"""KL divergences: against sums over outcomes, against full normals, and as `TraceMeanField_ELBO` sees them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from multipledispatch.conflict import ambiguities
from numpyro.distributions.distribution import ExpandedDistribution, Independent, MaskedDistribution
from numpyro.distributions.kl import kl_divergence
from numpyro.infer import TraceMeanField_ELBO

from dpm_ppl import divergences as _registers  # noqa: F401

RATE_P, RATE_Q = np.array([0.0, 1.0, 0.2, 0.9, 0.35]), np.array([0.3, 0.6, 0.7, 0.05, 0.35])
PROBS_P = np.array([[0.2, 0.5, 0.3], [0.0, 0.9, 0.1], [0.0, 0.0, 1.0]])
PROBS_Q = np.array([0.6, 0.3, 0.1])


def log(x):
    with np.errstate(divide="ignore"):
        return np.log(x)


def logit(rate):
    return log(rate) - log(1 - rate)


def bernoulli(form, rate, dtype=jnp.float64):
    if form == "probs":
        return dist.Bernoulli(probs=jnp.asarray(rate, dtype))
    return dist.Bernoulli(logits=jnp.asarray(logit(np.asarray(rate, float)), dtype), validate_args=False)


def categorical(form, probs, dtype=jnp.float64):
    if form == "probs":
        return dist.Categorical(probs=jnp.asarray(probs, dtype))
    return dist.Categorical(logits=jnp.asarray(log(probs) + 1.7, dtype), validate_args=False)


def sum_over_outcomes(p, q):
    """KL by enumeration in plain Python floats, 0 log 0 being 0."""
    return sum(a * (np.log(a) - np.log(b)) if a > 0 else 0.0 for a, b in zip(p, q, strict=True))


BERNOULLI_KL = np.array([sum_over_outcomes([1 - a, a], [1 - b, b]) for a, b in zip(RATE_P, RATE_Q, strict=True)])
CATEGORICAL_KL = np.array([sum_over_outcomes(a, PROBS_Q) for a in PROBS_P])

FORMS = list(itertools.product(["probs", "logits"], repeat=2))
forms = pytest.mark.parametrize(("form_p", "form_q"), FORMS)
precisions = pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float32, 3e-6), (jnp.float64, 1e-12)])


@forms
@precisions
def test_discrete_divergences_are_sums_over_outcomes(form_p, form_q, dtype, rtol):
    kl = kl_divergence(bernoulli(form_p, RATE_P, dtype), bernoulli(form_q, RATE_Q, dtype))
    assert kl.dtype == dtype
    np.testing.assert_allclose(kl, BERNOULLI_KL, rtol=rtol, atol=rtol / 10)
    kl = kl_divergence(categorical(form_p, PROBS_P, dtype), categorical(form_q, PROBS_Q, dtype))
    assert kl.dtype == dtype
    np.testing.assert_allclose(kl, CATEGORICAL_KL, rtol=rtol)


@forms
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_discrete_divergences_at_the_boundary(form_p, form_q, dtype):
    """Equal point masses are at distance 0 exactly, and a q without mass where p has some is infinitely far."""
    p, q = np.array([0.0, 1.0, 0.0, 1.0, 0.2, 0.2]), np.array([0.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    expected = [0, 0, np.inf, np.inf, np.inf, np.inf]
    np.testing.assert_array_equal(kl_divergence(bernoulli(form_p, p, dtype), bernoulli(form_q, q, dtype)), expected)
    p = np.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [0.5, 0.0, 0.5]])
    q = np.array([[0.0, 1.0, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5]])
    kl = kl_divergence(categorical(form_p, p, dtype), categorical(form_q, q, dtype))
    np.testing.assert_allclose(kl, [0, np.inf, 0], atol=1e-7 if dtype == jnp.float32 else 1e-15)


@pytest.mark.parametrize("near", [0, 1])
def test_float32_bernoulli_is_as_good_near_one_as_near_zero(near):
    """Probabilities near 1 in float32: the nearest are 6e-8 apart, so compare with the numbers as rounded."""
    p, q = (np.float32(abs(near - small)) for small in (3e-7, 9e-7))
    expected = sum_over_outcomes([1 - float(p), float(p)], [1 - float(q), float(q)])
    np.testing.assert_allclose(kl_divergence(bernoulli("probs", p, "f4"), bernoulli("probs", q, "f4")), expected, 1e-5)
    sign = 2 * near - 1
    p, q = dist.Bernoulli(logits=jnp.float32(sign * 15.0)), dist.Bernoulli(logits=jnp.float32(sign * 14.0))
    rate_p, rate_q = (1 / (1 + np.exp(logits)) for logits in (15.0, 14.0))
    expected = rate_p * (np.log(rate_p) - np.log(rate_q)) + (1 - rate_p) * (np.log1p(-rate_p) - np.log1p(-rate_q))
    np.testing.assert_allclose(kl_divergence(p, q), expected, rtol=1e-5)


def test_bernoulli_of_python_and_integer_rates():
    np.testing.assert_allclose(kl_divergence(dist.Bernoulli(1), dist.Bernoulli(0.25)), np.log(4.0), rtol=1e-12)


@precisions
def test_gradients_in_q_are_exact_with_p_at_zero_and_one(dtype, rtol):
    """d KL / d rate_q = (1 - p) / (1 - q) - p / q, and by the logit it is q - p."""
    for form_p in ("probs", "logits"):
        p, q = bernoulli(form_p, RATE_P, dtype), jnp.asarray(RATE_Q, dtype)
        by_rate = jax.grad(lambda rate, p=p: kl_divergence(p, dist.Bernoulli(probs=rate)).sum())(q)
        np.testing.assert_allclose(by_rate, (1 - RATE_P) / (1 - RATE_Q) - RATE_P / RATE_Q, rtol=10 * rtol, atol=rtol)
        by_logit = jax.grad(lambda x, p=p: kl_divergence(p, dist.Bernoulli(logits=x)).sum())(jnp.asarray(logit(q)))
        np.testing.assert_allclose(by_logit, RATE_Q - RATE_P, rtol=10 * rtol, atol=rtol)

        p, q = categorical(form_p, PROBS_P, dtype), jnp.asarray(PROBS_Q, dtype)
        by_probs = jax.jacobian(lambda probs, p=p: kl_divergence(p, dist.Categorical(probs=probs)))(q)
        np.testing.assert_allclose(by_probs, -PROBS_P / PROBS_Q, rtol=10 * rtol)
        by_logits = jax.jacobian(lambda x, p=p: kl_divergence(p, dist.Categorical(logits=x)))(jnp.log(q) + 2)
        np.testing.assert_allclose(by_logits, PROBS_Q - PROBS_P, rtol=10 * rtol, atol=rtol)


def test_gradients_in_an_interior_p():
    """d KL / d rate_p is the difference of the logits; by the logit of p, that times p (1 - p)."""
    inside, q = RATE_P[2:], dist.Bernoulli(jnp.asarray(RATE_Q[2:]))
    by_rate = jax.grad(lambda rate: kl_divergence(dist.Bernoulli(probs=rate), q).sum())(jnp.asarray(inside))
    expected = logit(inside) - logit(RATE_Q[2:])
    np.testing.assert_allclose(by_rate, expected, rtol=1e-12, atol=1e-14)
    by_logit = jax.grad(lambda x: kl_divergence(dist.Bernoulli(logits=x), q).sum())(jnp.asarray(logit(inside)))
    np.testing.assert_allclose(by_logit, expected * inside * (1 - inside), rtol=1e-12, atol=1e-14)


@forms
@pytest.mark.parametrize(
    ("family", "to_logits", "certain", "some"),
    [
        (dist.Bernoulli, logit, [0.0, 1.0, 0.0], [0.0, 1.0, 0.3]),
        (dist.Categorical, log, [[0.0, 1.0, 0.0], [0.6, 0.0, 0.4]], [[0.2, 0.8, 0.0], [0.3, 0.0, 0.7]]),
    ],
    ids=["bernoulli", "categorical"],
)
def test_gradients_are_finite_where_either_is_certain(form_p, form_q, family, to_logits, certain, some):
    """NaN would come through `where`: outcomes impossible under p, or both, so with infinite logits."""

    def kl(p, q):
        p, q = (family(**{form: x}, validate_args=False) for form, x in ((form_p, p), (form_q, q)))
        return kl_divergence(p, q).sum()

    arguments = [
        jnp.asarray(probs if form == "probs" else to_logits(np.array(probs)))
        for form, probs in ((form_p, certain), (form_q, some))
    ]
    for gradient in jax.grad(kl, (0, 1))(*arguments):
        assert np.all(np.isfinite(gradient))


def test_categories_must_be_equally_many():
    with pytest.raises(ValueError, match=r"equally many categories; got 1 and 3"):
        kl_divergence(dist.Categorical(probs=jnp.ones(1)), dist.Categorical(probs=jnp.ones(3) / 3))


LOC, SCALE = jnp.array([[0.3, -1.2, 2.0], [0.0, 0.7, -0.4]]), jnp.array([0.4, 1.5, 0.9])
MEAN = jnp.array([[[0.1, -0.2, 1.1]], [[1.0, 0.0, -2.0]]])  # batch (2, 1), to broadcast against (2,)
TRIL = jnp.array([[0.8, 0.0, 0.0], [0.5, 1.1, 0.0], [-0.7, 0.2, 0.6]])


def diagonal_normals():
    """The same diagonal normal, batch shape (2,), event shape (3,), wrapped every way NumPyro might."""
    plain = dist.Normal(LOC, SCALE)
    same_rows = dist.Normal(jnp.full((2, 1), 0.3), 0.4)
    return {
        "independent": plain.to_event(1),
        "nested": Independent(Independent(plain, 1), 0),
        "inner no-op": Independent(Independent(plain, 0), 1),
        "true mask": MaskedDistribution(plain.to_event(1), True),
        "inner true mask": MaskedDistribution(plain, True).to_event(1),
        "expanded": dist.Normal(LOC[0], SCALE).to_event(1).expand((2,)),
        "expanded within": same_rows.expand((2, 3)).to_event(1),
        "expanded without": ExpandedDistribution(dist.Normal(LOC[0], SCALE).to_event(1), (2,)),
        "expanded both": ExpandedDistribution(dist.Normal(0.3, 0.4).expand((3,)).to_event(1), (2,)),
    }


def as_full(diagonal):
    """A diagonal normal as NumPyro's multivariate normal, for NumPyro's own rule."""
    scale = jnp.broadcast_to(jnp.sqrt(diagonal.variance), diagonal.shape())
    return dist.MultivariateNormal(
        jnp.broadcast_to(diagonal.mean, scale.shape), scale_tril=scale[..., None] * jnp.eye(3)
    )


@pytest.mark.parametrize("wrapping", list(diagonal_normals()))
def test_diagonal_against_full_normal(wrapping):
    diagonal, full = diagonal_normals()[wrapping], dist.MultivariateNormal(MEAN, scale_tril=TRIL)
    for other in (full, full.expand((2, 2)), dist.MultivariateNormal(MEAN[0, 0], scale_tril=TRIL)):
        forward, backward = kl_divergence(diagonal, other), kl_divergence(other, diagonal)
        assert forward.shape == jnp.broadcast_shapes((2,), other.batch_shape) == backward.shape
        plain = other.base_dist if isinstance(other, ExpandedDistribution) else other
        expected = jnp.broadcast_to(kl_divergence(as_full(diagonal), plain), forward.shape)
        np.testing.assert_allclose(forward, expected, rtol=1e-12)
        expected = jnp.broadcast_to(kl_divergence(plain, as_full(diagonal)), forward.shape)
        np.testing.assert_allclose(backward, expected, rtol=1e-12)


def test_diagonal_against_full_normal_by_quadrature():
    """Gauss-Hermite quadrature of log p - log q, which is quadratic, so exact."""
    node, weight = np.polynomial.hermite_e.hermegauss(4)
    noise = jnp.asarray(np.stack(np.meshgrid(node, node, node, indexing="ij"), -1).reshape(-1, 3))
    weight = np.einsum("i,j,k->ijk", weight, weight, weight).ravel() / (2 * np.pi) ** 1.5
    p, q = dist.Normal(LOC[1], SCALE).to_event(1), dist.MultivariateNormal(MEAN[0, 0], scale_tril=TRIL)
    x = LOC[1] + SCALE * noise
    np.testing.assert_allclose(kl_divergence(p, q), weight @ (p.log_prob(x) - q.log_prob(x)), rtol=1e-12)
    x = MEAN[0, 0] + noise @ TRIL.T
    np.testing.assert_allclose(kl_divergence(q, p), weight @ (q.log_prob(x) - p.log_prob(x)), rtol=1e-12)


def test_only_normals_of_one_event_shape():
    full = dist.MultivariateNormal(MEAN[0, 0], scale_tril=TRIL)
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        kl_divergence(dist.Normal(jnp.zeros(2), 1.0).to_event(1), full)
    with pytest.raises(NotImplementedError):
        kl_divergence(dist.Laplace(LOC, SCALE).to_event(1), full)


@pytest.mark.parametrize(("wrapping_p", "wrapping_q"), list(itertools.product(diagonal_normals(), repeat=2)))
def test_wrappers_do_not_matter(wrapping_p, wrapping_q):
    p, q = diagonal_normals()[wrapping_p], diagonal_normals()[wrapping_q]
    q = jax.tree.map(lambda x: 1.3 * x if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x, q)
    np.testing.assert_allclose(kl_divergence(p, q), kl_divergence(as_full(p), as_full(q)), rtol=1e-12, atol=1e-14)


def test_wrapper_that_changes_nothing_against_a_plain_distribution():
    plain, mean = dist.Bernoulli(jnp.array([0.2, 0.9])), dist.Bernoulli(logits=jnp.array([0.3, -1.0]))
    for wrapped in (Independent(plain, 0), MaskedDistribution(plain, True)):
        np.testing.assert_array_equal(kl_divergence(wrapped, mean), kl_divergence(plain, mean))
        np.testing.assert_array_equal(kl_divergence(mean, wrapped), kl_divergence(mean, plain))
    point, normal = dist.Delta(jnp.array(0.7)), dist.Normal(0.2, 1.5)
    for wrapped in (Independent(normal, 0), MaskedDistribution(normal, True), normal.mask(jnp.array(True))):
        np.testing.assert_array_equal(kl_divergence(point, wrapped), -normal.log_prob(0.7))


def test_masks_on_both_sides_stay_analytic():
    mask = jnp.array([True, False])
    p, q = bernoulli("probs", RATE_P[:4].reshape(2, 2)), bernoulli("logits", RATE_Q[:4].reshape(2, 2))
    expected = np.where(mask, BERNOULLI_KL[:4].reshape(2, 2).sum(-1), 0)
    p, q = p.to_event(1), q.to_event(1)
    np.testing.assert_allclose(kl_divergence(p.mask(mask), q.mask(mask)), expected, rtol=1e-12)
    np.testing.assert_array_equal(kl_divergence(p.mask(False), q.mask(False)), 0)


def test_no_pair_of_rules_is_ambiguous():
    assert ambiguities(kl_divergence.funcs) == set()


def losses(guide_fn, model_fn, *, num_keys=3):
    """One-particle losses, for several keys."""
    elbo = TraceMeanField_ELBO(num_particles=1)

    def model():
        numpyro.sample("z", model_fn)

    def guide():
        numpyro.sample("z", guide_fn)

    keys = jax.random.split(jax.random.key(5), num_keys)
    return jax.vmap(lambda key: elbo.loss(key, {}, model, guide))(keys)


def pairs():
    """Every pair that has a rule here, with its divergence in nats."""
    for form_p, form_q in FORMS:
        p, q = bernoulli(form_p, RATE_P[2:]), bernoulli(form_q, RATE_Q[2:])
        yield pytest.param(p.to_event(1), q.to_event(1), BERNOULLI_KL[2:].sum(), id=f"bernoulli-{form_p}-{form_q}")
        p, q = categorical(form_p, PROBS_P[:1]), categorical(form_q, PROBS_Q[None])
        yield pytest.param(p.to_event(1), q.to_event(1), CATEGORICAL_KL[0], id=f"categorical-{form_p}-{form_q}")
    full = dist.MultivariateNormal(MEAN[0, 0], scale_tril=TRIL)
    for name, diagonal in diagonal_normals().items():
        expected = kl_divergence(as_full(diagonal), full).sum()
        yield pytest.param(diagonal, full.expand((2,)), expected, id=f"{name}-full")
        yield pytest.param(full.expand((2,)), diagonal, kl_divergence(full, as_full(diagonal)).sum(), id=f"full-{name}")
    p, q = dist.Normal(0.3, 0.5), dist.Normal(-0.1, 1.2)
    expected = kl_divergence(p, q)
    yield pytest.param(Independent(p, 0), q, expected, id="no-op-plain")
    yield pytest.param(p, Independent(q, 0), expected, id="plain-no-op")
    yield pytest.param(MaskedDistribution(p, True), q, expected, id="true-mask-plain")
    yield pytest.param(p, MaskedDistribution(q, True), expected, id="plain-true-mask")


@pytest.mark.parametrize(("guide_fn", "model_fn", "expected"), list(pairs()))
def test_elbo_takes_the_closed_form(guide_fn, model_fn, expected):
    """A sampled term would differ from key to key."""
    np.testing.assert_allclose(losses(guide_fn, model_fn), expected, rtol=1e-12)


@pytest.mark.parametrize("masked", ["guide", "model"])
@pytest.mark.parametrize("inside", [True, False])
def test_mask_on_one_side_is_sampled_and_right(masked, inside):
    """With bin 0 masked away on one side, the loss of that bin is an entropy or a cross-entropy, not 0 and no KL."""
    p, q = np.array([0.2, 0.9]), np.array([0.7, 0.6])
    mask = jnp.array([False, True])

    def hide(d):
        return Independent(d.mask(mask), 1) if inside else Independent(d, 1).mask(False)

    guide_fn, model_fn = dist.Bernoulli(jnp.asarray(p)), dist.Bernoulli(jnp.asarray(q))
    guide_fn, model_fn = (
        (hide(guide_fn), model_fn.to_event(1)) if masked == "guide" else (guide_fn.to_event(1), hide(model_fn))
    )
    with pytest.raises(NotImplementedError):
        kl_divergence(guide_fn, model_fn)
    seen = np.array(mask) if inside else np.array([False, False])
    negative_entropy = p * np.log(p) + (1 - p) * np.log(1 - p)
    cross_entropy = -p * np.log(q) - (1 - p) * np.log(1 - q)
    in_guide, in_model = (seen, np.ones(2)) if masked == "guide" else (np.ones(2), seen)
    expected = np.sum(in_guide * negative_entropy + in_model * cross_entropy)
    sampled = losses(guide_fn, model_fn, num_keys=20_000)
    error = sampled.std() / np.sqrt(len(sampled))
    assert error > 0
    assert abs(sampled.mean() - expected) < 4 * error
