"""Each datum sees its own context, in every reading: as the same chains with no context, one datum at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from numpyro.optim import Adam

import dpm_ppl as dpm
from dpm_ppl.chains import ForwardChain, ReverseChain, reverse_states
from dpm_ppl.inference import (
    bound,
    consistency_bound,
    entropy_bounds,
    instantiate,
    log_likelihood,
    perturbed_chain,
    sandwich,
    smc,
    widened,
)
from dpm_ppl.inference.likelihoods.bounds import bound_terms
from dpm_ppl.inference.likelihoods.weights import forward_weights, reverse_weights
from tests.oracles import STATES, BernoulliOracle, worst

T = 4
BETA = np.array([0.1, 0.3, 0.2, 0.6])
KEY = jax.random.key(2)
PARAMS = {"tilt": jnp.array(0.4)}
SIZES = [1, 2, T - 1, T, 7]


def made(num_data, seed=0):
    """Data of two dimensions, and a context of two leaves, different for each."""
    rng = np.random.default_rng(seed)
    context = {"shift": rng.normal(size=(num_data, 1)), "level": rng.uniform(-1, 1, size=num_data)}
    return jnp.asarray(rng.normal(size=(num_data, 2))), jax.tree.map(jnp.asarray, context)


def laws(tilt):
    """Affine reverse steps that turn with the context, and a last step of their own."""

    def reverse(x, t, c):
        gain = 0.5 + 0.1 * jnp.asarray(t)[..., None]
        mean = gain * x + c["shift"] * jnp.array([1.0, -2.0]) + tilt
        return dist.Normal(mean, 0.5 * jnp.exp(0.3 * c["level"][..., None]) + jnp.zeros(2)).to_event(1)

    def decode(x, c):
        return dist.Normal(x - 0.7 * c["shift"], 0.4 * jnp.exp(c["level"][..., None]) + jnp.zeros(2)).to_event(1)

    return reverse, decode


def given(c):
    """A definition of a context."""
    kernel = dpm.GaussianKernel(BETA, (2,))
    return dpm.Diffusion(kernel, *laws(numpyro.param("tilt", jnp.array(0.1))), context=c)


def of_one(c):
    """The same for one datum, its context put in as numbers: no context anywhere."""
    kernel = dpm.GaussianKernel(BETA, (2,))
    reverse, decode = laws(numpyro.param("tilt", jnp.array(0.1)))
    return dpm.Diffusion(kernel, lambda x, t: reverse(x, t, c), lambda x: decode(x, c))


def row(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def model(c, x0=None):
    with numpyro.plate("data", len(c["level"])):
        return dpm.reverse_chain("x", given(c), obs=x0)


def guide(c, x0):
    with numpyro.plate("data", len(x0)):
        dpm.forward_chain("x", given(c), x0)


@pytest.mark.parametrize("num_data", SIZES)
def test_trajectories_are_scored_each_beside_its_own(num_data):
    x0, c = made(num_data)
    diffusion = instantiate(given, PARAMS, context=c)
    trajectory = ForwardChain(diffusion, x0).sample(KEY)
    scores = ReverseChain(diffusion).log_prob(trajectory)
    each = [
        ReverseChain(instantiate(partial(of_one, row(c, i)), PARAMS)).log_prob(trajectory[i]) for i in range(num_data)
    ]
    np.testing.assert_allclose(scores, each, rtol=1e-12)
    if num_data > 1:  # a context rolled along the batch is another
        rolled = instantiate(given, PARAMS, context=jax.tree.map(lambda leaf: jnp.roll(leaf, 1, 0), c))
        assert np.abs(ReverseChain(rolled).log_prob(trajectory) - scores).min() > 1e-3


@pytest.mark.parametrize("num_data", SIZES)
@pytest.mark.parametrize("size", ["plain", None, 2])
def test_every_reading_of_a_program_is_that_of_its_data_one_by_one(num_data, size):
    x0, c = made(num_data)
    read = (lambda fn: fn) if size == "plain" else partial(dpm.subsample_steps, size=size)

    def sites(model, guide, seed, values):
        with handlers.substitute(data=values), handlers.seed(rng_seed=seed):
            drawn = handlers.trace(read(guide)).get_trace()
            return drawn, handlers.trace(handlers.replay(read(model), trace=drawn)).get_trace()

    drawn, scored = sites(lambda: model(c, x0), lambda: guide(c, x0), 0, PARAMS)
    values = {name: site["value"] for name, site in drawn.items() if site["type"] == "sample"}
    for i in {0, num_data - 1}:
        alone = dpm.single_chain(partial(of_one, row(c, i)))
        own = {
            name: v
            if name.endswith("offset") and v.ndim == 0
            else jnp.take(v, jnp.array([i]), _axis(v, num_data, name))
            for name, v in values.items()
        }
        _, one = sites(*(partial(program, x0[i : i + 1]) for program in alone), 0, {**PARAMS, **own})
        for name in set(scored) & set(one):
            if scored[name]["type"] == "sample" and name in ("x", "x_chain", "x_before", "x_last"):
                both = scored[name]["fn"].log_prob(scored[name]["value"]), one[name]["fn"].log_prob(one[name]["value"])
                np.testing.assert_allclose(both[0][..., i], both[1][..., 0], rtol=1e-12)


def _axis(value, num_data, name):
    """Where the data are: in front, but for sites of several steps, which are behind those."""
    return 1 if name in ("x_at", "x_before") else 0


@pytest.mark.parametrize("num_data", SIZES)
def test_bound_and_weights_are_those_of_the_data_one_by_one(num_data):
    x0, c = made(num_data)
    keys = jax.random.split(KEY, num_data)
    together = bound_terms(given, PARAMS, x0, keys, c, num_samples=3)
    index = np.arange(2 * num_data, dtype=np.uint32)
    weights = forward_weights(given, PARAMS, x0, c, KEY, index, index >= 0, num_data=num_data)["log_weight"]
    simulated = reverse_weights(given, PARAMS, c, KEY, index[:num_data], index[:num_data] >= 0)
    for i in {0, num_data - 1} if num_data < 4 else {num_data // 2}:
        alone = partial(of_one, row(c, i))
        one = bound_terms(alone, PARAMS, x0[i : i + 1], keys[i : i + 1], num_samples=3)
        for name in one:
            np.testing.assert_allclose(together[name][i], one[name][0], rtol=1e-10)
        own = index[i::num_data]
        expected = forward_weights(alone, PARAMS, x0, None, KEY, own, own >= 0, num_data=num_data)["log_weight"]
        np.testing.assert_allclose(weights[i::num_data], expected, rtol=1e-10)
        made_alone = reverse_weights(alone, PARAMS, None, KEY, index[i : i + 1], index[:1] >= 0)
        np.testing.assert_allclose(simulated["x0"][i], made_alone["x0"][0], rtol=1e-12)
        np.testing.assert_allclose(simulated["log_weight"][i], made_alone["log_weight"][0], rtol=1e-10)


def test_blocks_rearrange_the_context_with_the_data():
    x0, c = made(7)
    options = {"params": PARAMS, "key": KEY, "context": c}
    whole = log_likelihood(given, x0, num_particles=5, progress=False, **options)
    parts = log_likelihood(given, x0, num_particles=5, block_size=4, progress=False, **options)
    np.testing.assert_allclose(parts.log_weight, whole.log_weight, rtol=1e-10)
    np.testing.assert_allclose(
        bound(given, x0, block_size=2, **options).elbo, bound(given, x0, **options).elbo, rtol=1e-10
    )


def test_all_bounds_agree_beside_a_context():
    """Three estimates of one ELBO, and bounds on both sides of the likelihood, each by its own way."""
    x0, c = made(7)
    options = {"params": PARAMS, "key": KEY, "context": c}
    by_terms = bound(given, x0, num_samples=4000, **options)
    by_consistency = consistency_bound(given, x0, num_samples=4000, **options)
    by_weights = log_likelihood(given, x0, num_particles=4000, progress=False, **options)
    for other, variance in (
        (by_consistency.elbo, by_consistency.elbo_variance),
        (by_weights.elbo, by_weights.log_weight.var(0)),
    ):
        error = np.sqrt((np.asarray(variance) + np.asarray(by_terms.elbo_variance)) / 4000)
        np.testing.assert_array_less(np.abs(np.asarray(other) - np.asarray(by_terms.elbo)), 4.5 * error)
    both = sandwich(given, params=PARAMS, key=KEY, num_data=7, num_particles=2000, context=c, progress=False)
    assert (both.gap > -0.1).all()
    assert (entropy_bounds(given, x0, **options).lower < entropy_bounds(given, x0, **options).upper).all()


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_svi_and_predictive(elbo):
    x0, c = made(T - 1)
    svi = SVI(dpm.subsample_steps(model, size=2), dpm.subsample_steps(guide, size=2), Adam(1e-2), elbo())
    state = svi.init(KEY, c, x0)
    state, loss = jax.jit(svi.update)(state, c, x0)
    assert np.isfinite(loss)
    drawn = Predictive(model, params=PARAMS, num_samples=4000)(KEY, c)["x"]
    states = jax.jit(lambda key: reverse_states(instantiate(given, PARAMS, context=c), key=key, num_samples=T - 1)[0])
    others = jax.vmap(states)(jax.random.split(KEY, 4000))
    error = np.sqrt((drawn.var(0) + others.var(0)) / 4000)
    np.testing.assert_array_less(np.abs(drawn.mean(0) - others.mean(0)), 4.5 * error)


@pytest.mark.filterwarnings("ignore:The posterior can NOT be trusted:UserWarning")  # of so few particles
@pytest.mark.parametrize(("sampler", "which"), [("widened", (0, 1, 2)), ("default", (2,)), ("perturbed", (0, 1, 2))])
def test_posteriors_of_a_datum_are_beside_its_context(sampler, which):
    _, c = made(3)
    y = jnp.array([0.3, -0.8])

    def observe(diffusion, y):
        x0 = dpm.reverse_chain("x", diffusion)
        numpyro.sample("y", dist.Normal(x0, 0.5).to_event(1), obs=y)

    def draw(program, *args):
        if sampler == "perturbed":
            return perturbed_chain(program, "x", params=PARAMS, num_samples=50)(KEY, *args)
        twist = widened() if sampler == "widened" else None
        posterior = smc(program, "x", params=PARAMS, num_particles=100, twist=twist)(KEY, *args)
        return posterior.samples, posterior.log_evidence

    for i in which:
        beside = draw(lambda y, c: observe(given(c), y), y, row(c, i))
        alone = draw(lambda y, i=i: observe(of_one(row(c, i)), y), y)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), beside, alone)


BITS = BernoulliOracle()
TABLE = BITS.params["table"]


def given_bits(c):
    """The enumerated chain, whose logits a context moves."""
    chain, table = BITS.diffusion(), numpyro.param("table", TABLE)
    place = np.array([4, 2, 1])
    reverse = lambda x, t, c: dist.Bernoulli(logits=table[t - 2, x @ place] + c).to_event(1)  # noqa: E731
    return dpm.Diffusion(chain.kernel, reverse, context=c)


@pytest.mark.parametrize("num_data", SIZES)
def test_bits_beside_a_context_are_enumerated(num_data):
    """Every reading's ELBO, the bound and the likelihood, against sums over all trajectories, one datum at a time."""
    rng = np.random.default_rng(num_data)
    which, c = rng.integers(8, size=num_data), jnp.asarray(1.5 * rng.normal(size=(num_data, 3)))
    x0 = jnp.asarray(STATES[which])

    def exact(c):
        """ELBO and log likelihood of each."""
        each = zip(np.asarray(c), which, strict=True)
        moved = [(TABLE + own, state) for own, state in each]
        return (
            np.array([BITS.elbos(table)[state] for table, state in moved]),
            np.array([jax.nn.logsumexp(BITS.log_model(table)[state]) for table, state in moved]),
        )

    def seen(c, x0=None):
        with numpyro.plate("data", len(c)):
            dpm.reverse_chain("x", given_bits(c), obs=x0)

    def drawn(c, x0):
        with numpyro.plate("data", len(c)):
            dpm.forward_chain("x", given_bits(c), x0)

    def loss(key, read):
        return TraceMeanField_ELBO().loss(key, BITS.params, read(seen), read(drawn), c, x0)

    readings = [lambda fn: fn, *(partial(dpm.subsample_steps, size=size) for size in (2, None))]
    every = jax.jit(lambda keys: jnp.stack([jax.lax.map(partial(loss, read=read), keys) for read in readings], -1))
    losses = every(jax.random.split(KEY, 2000))
    options = {"params": BITS.params, "key": KEY, "context": c}
    likelihood = log_likelihood(given_bits, x0, num_particles=4000, progress=False, **options)
    elbos, log_prob = exact(c)
    assert worst(-losses, elbos.sum()) < 3
    assert worst(likelihood.log_weight, elbos) < 3
    assert worst(np.exp(likelihood.log_weight), np.exp(log_prob)) < 3
    terms = bound(given_bits, x0, num_samples=500, **options)
    error = np.sqrt(np.asarray(terms.elbo_variance) / 500)
    np.testing.assert_array_less(np.abs(np.asarray(terms.elbo) - elbos), 4 * error + 1e-9)
    if num_data > 1:  # and beside another's they are others
        rolled = [values.sum() for values in exact(jnp.roll(c, 1, 0))]
        assert min(worst(-losses, rolled[0]), abs(rolled[1] - log_prob.sum()) / 0.02) > 5


def test_posteriors_of_bits_are_beside_their_context():
    """Evidence and marginals given a noisy reading, against enumeration."""
    c = jnp.asarray(1.5 * np.random.default_rng(3).normal(size=(3, 3)))
    y = jnp.array([1, 0, 1])

    def program(y, c):
        x0 = dpm.reverse_chain("x", given_bits(c))
        numpyro.sample("y", dist.Bernoulli(0.15 + 0.7 * x0).to_event(1), obs=y)

    run = smc(program, "x", params=BITS.params, num_particles=500)

    def one(key, c):
        posterior = run(key, y, c)
        return posterior.log_evidence, posterior.mean()

    every = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))
    log_evidence, means = every(jax.random.split(KEY, 30), c)
    log_r = dist.Bernoulli(0.15 + 0.7 * STATES).to_event(1).log_prob(y)
    for i in range(3):
        log_prior = jax.nn.logsumexp(BITS.log_model(TABLE + c[i]).reshape(8, -1), axis=-1)
        total = jax.nn.logsumexp(log_prior + log_r)
        assert worst(np.exp(log_evidence[:, i]), np.exp(total)) < 3
        assert worst(means[:, i], np.exp(log_prior + log_r - total) @ STATES) < 3.5


def test_two_plates():
    """Each element of a grid is scored beside its own context; one rolled along either plate is seen by every law."""
    rng = np.random.default_rng(4)
    x0 = jnp.asarray(rng.normal(size=(3, 2, 2)))
    c = jax.tree.map(jnp.asarray, {"shift": rng.normal(size=(3, 2, 1)), "level": rng.normal(size=(3, 2))})

    def grid(program):
        with numpyro.plate("outer", 3, dim=-2), numpyro.plate("inner", 2):
            program()

    def scores(c, chain):
        """Log densities of x^0 and of the trajectory, shape (3, 2) each."""
        fixed = {**PARAMS, "x_chain": chain}
        with handlers.seed(rng_seed=0), handlers.substitute(data=fixed), handlers.trace() as trace:
            grid(lambda: dpm.reverse_chain("x", given(c), obs=x0))
        return np.stack([trace[name]["fn"].log_prob(trace[name]["value"]) for name in ("x", "x_chain")])

    with handlers.seed(rng_seed=0), handlers.substitute(data=PARAMS), handlers.trace() as drawn:
        grid(lambda: dpm.forward_chain("x", given(c), x0))
    chain = drawn["x_chain"]["value"]
    own = scores(c, chain)
    for i, j in np.ndindex(3, 2):
        alone = instantiate(partial(of_one, row(row(c, i), j)), PARAMS)
        expected = alone.decode(chain[i, j, 0]).log_prob(x0[i, j]), ReverseChain(alone).log_prob(chain[i, j])
        np.testing.assert_allclose(own[:, i, j], expected, rtol=1e-12)
    for axis in (0, 1):
        rolled = scores(jax.tree.map(lambda leaf, axis=axis: jnp.roll(leaf, 1, axis), c), chain)
        assert np.abs(rolled - own).min() > 1e-3


class TestBadInput:
    def test_a_context_of_another_batch(self):
        x0, _ = made(3)
        _, c = made(4)
        message = r"leaves that begin with the batch shape \(3,\); got \(4,\) at \['level'\]"
        with pytest.raises(ValueError, match=message):
            bound(given, x0, params=PARAMS, key=KEY, context=c)
        with handlers.seed(rng_seed=0), pytest.raises(ValueError, match=message):
            guide(c, x0)

    def test_a_context_too_many_or_too_few(self):
        x0, c = made(3)
        with pytest.raises(TypeError, match="Give `context`, one for each datum"):
            bound(given, x0, params=PARAMS, key=KEY)
        with pytest.raises(TypeError, match="Leave `context` out"):
            bound(partial(of_one, row(c, 0)), x0, params=PARAMS, key=KEY, context=c)
        with pytest.raises(TypeError, match="a context that is closed over does not follow its data"):
            bound(lambda c: of_one(row(c, 0)), x0, params=PARAMS, key=KEY, context=c)

    @pytest.mark.parametrize("num_data", [2, 3, 5, 7])
    def test_closing_over_something_of_the_batch(self, num_data):
        _, c = made(num_data)
        with pytest.raises(ValueError, match="`context`"):
            instantiate(partial(of_one, c), PARAMS)

        def half_closed(c):
            reverse, decode = laws(0.4)
            closed = dpm.Diffusion(dpm.GaussianKernel(BETA, (2,)), lambda x, t, _: reverse(x, t, c), decode, context=c)
            return closed.of_batch((num_data,))

        with pytest.raises(ValueError, match="`context`"):
            half_closed(c)

    def test_values(self):
        _, c = made(3)
        with pytest.raises(ValueError, match=r"finite `context`; got NaN or infinity in a leaf of shape \(3,\)"):
            instantiate(given, PARAMS, context={**c, "level": c["level"].at[1].set(jnp.nan)})
        with pytest.raises(TypeError, match="pytree of arrays"):
            dpm.Diffusion(dpm.GaussianKernel(BETA, (2,)), *laws(0.4), context="label")
        with pytest.raises(TypeError, match="which holds none"):
            dpm.Diffusion(dpm.GaussianKernel(BETA, (2,)), *laws(0.4), context={})
