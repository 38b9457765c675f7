"""The two statements as plain NumPyro programs: every stock algorithm and handler reads them as they are."""

from dataclasses import FrozenInstanceError, replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import Predictive, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from numpyro.infer.util import log_density
from numpyro.primitives import Messenger

import dpm_ppl as dpm
from tests.oracles import STATES, BernoulliOracle, GaussianOracle, data, estimates, worst

BITS = BernoulliOracle()
GAUSSIAN = GaussianOracle.exact(4).spoiled()
ORACLES = {"bits": BITS, "gaussian": GAUSSIAN}
X0 = data(4)


def expected(oracle, x0, params):
    """The exact loss: minus the sum of the data's ELBOs."""
    if oracle is BITS:
        return -BITS.elbos(params["table"])[x0 @ np.array([4, 2, 1])].sum()
    return -GAUSSIAN.elbos(x0, params).sum()


@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceMeanField_ELBO()], ids=["Trace_ELBO", "TraceMeanField_ELBO"])
@pytest.mark.parametrize("name", ORACLES)
def test_stock_elbos_and_their_gradients(name, elbo):
    oracle, x0 = ORACLES[name], jnp.asarray(STATES) if name == "bits" else X0
    loss, gradient = jax.value_and_grad(lambda params: expected(oracle, x0, params))(oracle.params)
    losses, gradients = estimates(elbo, *dpm.single_chain(oracle.diffusion), oracle.params, x0, num=4000)
    assert worst(losses, loss) < 3
    assert losses.std() < 12  # so it is sharp
    assert worst(gradients, gradient) < 3


@pytest.mark.parametrize("name", ORACLES)
def test_renyi_elbo_reaches_the_models_log_prob(name):
    oracle, x0 = ORACLES[name], jnp.asarray(STATES[5:6]) if name == "bits" else X0[:1]
    log_prob = BITS.log_prob()[5] if name == "bits" else GAUSSIAN.generated().log_prob(X0[0])
    model, guide = dpm.single_chain(oracle.diffusion)

    @jax.jit
    @jax.vmap
    def bound(key):
        return -RenyiELBO(alpha=0, num_particles=1000).loss(key, oracle.params, model, guide, x0)

    bounds = bound(jax.random.split(jax.random.key(0), 100))
    tight = 0.5 * np.var(bounds)  # what Jensen's inequality still costs with these particles
    assert worst(np.asarray(bounds), log_prob - tight) < 3
    assert tight < 0.005
    assert log_prob + expected(oracle, x0, oracle.params) > 0.1  # which the ELBO does not reach


def test_generated_data_follow_the_models_marginal():
    model, _ = dpm.single_chain(GAUSSIAN.diffusion)
    draws = Predictive(model, params=GAUSSIAN.params, num_samples=2)(jax.random.key(0), size=10_000)
    assert draws["x_chain"].shape == (2, 10_000, 4, 2)
    x0, truth = np.asarray(draws["x"]).reshape(-1, 2), GAUSSIAN.generated()
    off = x0 - truth.loc
    assert worst(x0, truth.loc) < 3
    assert worst(off[:, :, None] * off[:, None, :], truth.covariance_matrix) < 3
    model, _ = dpm.single_chain(BITS.diffusion)
    bits = Predictive(model, params=BITS.params, num_samples=1)(jax.random.key(1), size=20_000)["x"][0]
    frequency = np.eye(8)[np.asarray(bits) @ [4, 2, 1]]
    assert worst(frequency, np.exp(BITS.log_prob())) < 3


def trajectories(x0):
    """Some trajectory of bits for each datum."""
    return jnp.asarray(np.random.default_rng(2).integers(0, 2, (*x0.shape[:-1], 4, 3)))


def enumerated(x0, chain):
    """log p(x^0..x^4) of each datum, looked up."""
    place = np.array([4, 2, 1])
    return BITS.log_model()[(x0 @ place, *jnp.moveaxis(chain @ place, -1, 0))]


def test_log_density_is_the_enumerated_one():
    model, guide = dpm.single_chain(BITS.diffusion)
    x0 = jnp.asarray(STATES)
    values = BITS.params | {"x_chain": trajectories(x0)}
    np.testing.assert_allclose(
        log_density(model, (x0,), {}, values)[0], enumerated(x0, values["x_chain"]).sum(), rtol=1e-9
    )
    place = np.array([4, 2, 1])
    forward = BITS.log_joint[(x0 @ place, *jnp.moveaxis(values["x_chain"] @ place, -1, 0))]
    np.testing.assert_allclose(log_density(guide, (x0,), {}, values)[0], forward.sum(), rtol=1e-9)


def test_condition_substitute_replay_trace_and_block():
    model, _ = dpm.single_chain(BITS.diffusion)
    x0 = jnp.asarray(STATES)
    chain = trajectories(x0)
    expected_log_prob = enumerated(x0, chain).sum()
    conditioned = handlers.condition(lambda: model(size=8), {"x": x0, "x_chain": chain})
    np.testing.assert_allclose(log_density(conditioned, (), {}, BITS.params)[0], expected_log_prob, rtol=1e-9)

    substituted = handlers.substitute(handlers.seed(lambda: model(x0), 0), {"x_chain": chain} | BITS.params)
    trace = handlers.trace(substituted).get_trace()
    sites = {name for name, site in trace.items() if site["type"] == "sample"}
    assert sites == {"x_chain", "x"}
    assert trace["x"]["is_observed"]
    total = sum(site["fn"].log_prob(site["value"]).sum() for name, site in trace.items() if name in sites)
    np.testing.assert_allclose(total, expected_log_prob, rtol=1e-9)

    first = handlers.trace(handlers.seed(lambda: model(size=8), 1)).get_trace()
    again = handlers.trace(handlers.replay(handlers.seed(lambda: model(size=8), 2), first)).get_trace()
    for name in sites:
        np.testing.assert_array_equal(first[name]["value"], again[name]["value"])
    assert (first["x_chain"]["value"] != chain).any()

    hidden = handlers.block(handlers.seed(lambda: model(size=8), 1), hide=["x_chain"])
    blocked = handlers.trace(hidden).get_trace()
    assert "x_chain" not in blocked
    np.testing.assert_array_equal(blocked["x"]["value"], first["x"]["value"])


def test_condition_on_the_datum_gives_the_same_elbo():
    model, guide = dpm.single_chain(GAUSSIAN.diffusion)

    def conditioned(x0):
        handlers.condition(lambda: model(size=len(x0)), {"x": x0})()

    @jax.jit
    def losses(key):
        return [Trace_ELBO().loss(key, GAUSSIAN.params, program, guide, X0) for program in (model, conditioned)]

    plain, other = losses(jax.random.key(4))
    np.testing.assert_allclose(plain, other, rtol=1e-12)


@pytest.mark.parametrize("num_plates", [0, 1, 2])
def test_plates_around_or_a_batch_without_any(num_plates):
    def program(x0):
        chain = BITS.diffusion()
        if num_plates == 0:
            dpm.reverse_chain("x", chain, obs=x0)
        elif num_plates == 1:
            with numpyro.plate("a", 8):
                dpm.reverse_chain("x", chain, obs=x0)
        else:
            with numpyro.plate("a", 4, dim=-2), numpyro.plate("b", 2, dim=-1):
                dpm.reverse_chain("x", chain, obs=x0)

    x0 = jnp.asarray(STATES).reshape((4, 2, 3) if num_plates == 2 else (8, 3))
    values = BITS.params | {"x_chain": trajectories(x0)}
    got = log_density(program, (x0,), {}, values)[0]
    np.testing.assert_allclose(got, enumerated(x0, values["x_chain"]).sum(), rtol=1e-9)


def test_a_subsampled_plate_scales_both_sites():
    def program(x0):
        chain = BITS.diffusion()
        with numpyro.plate("data", 100, subsample_size=8):
            dpm.reverse_chain("x", chain, obs=x0)

    x0 = jnp.asarray(STATES)
    values = BITS.params | {"x_chain": trajectories(x0)}
    got = log_density(handlers.seed(program, 0), (x0,), {}, values)[0]
    np.testing.assert_allclose(got, 12.5 * enumerated(x0, values["x_chain"]).sum(), rtol=1e-9)


def test_a_chain_without_any_batch():
    def program():
        return dpm.reverse_chain("x", BITS.diffusion())

    chain = trajectories(jnp.asarray(STATES[:1]))[0]
    values = BITS.params | {"x_chain": chain, "x": jnp.array([1, 0, 1])}
    np.testing.assert_allclose(log_density(program, (), {}, values)[0], enumerated(values["x"], chain), rtol=1e-9)


def bad(statement, *args, **kwargs):
    """Runs a statement by itself."""
    with handlers.seed(rng_seed=0):
        statement(*args, **kwargs)


@pytest.mark.parametrize("statement", [dpm.forward_chain, dpm.reverse_chain])
@pytest.mark.parametrize(
    ("oracle", "x0", "error", "message"),
    [
        (GAUSSIAN, np.zeros((4, 3)), ValueError, r"event shape \(2,\); got \(4, 3\)"),
        (GAUSSIAN, np.zeros(()), ValueError, r"event shape \(2,\); got \(\)"),
        (GAUSSIAN, np.zeros((0, 2)), ValueError, r"at least one datum in `x0`; got shape \(0, 2\)"),
        (
            GAUSSIAN,
            np.zeros((4, 2), int),
            TypeError,
            "floating-point numbers, as the kernel's states are continuous; got int",
        ),
        (GAUSSIAN, np.zeros((4, 2), complex), TypeError, "floating-point numbers.*got complex"),
        (GAUSSIAN, np.array([["x", "y"]]), TypeError, "numeric array; got ndarray"),
        (GAUSSIAN, np.array([[0.0, np.nan], [np.inf, 0.0]]), ValueError, "finite; got 2 NaN or infinite"),
        (BITS, np.full((4, 3), 2), ValueError, "within the support of the kernel's states.*got values from 2 to 2"),
        (BITS, np.full((4, 3), 0.5), ValueError, "within the support of the kernel's states.*got values from 0.5"),
    ],
)
def test_bad_data(statement, oracle, x0, error, message):
    with pytest.raises(error, match=message):
        bad(statement, "x", handlers.seed(oracle.diffusion, 0)(), x0)


@pytest.mark.parametrize(
    ("reverse", "error", "message"),
    [
        (lambda x, t: x, TypeError, "`reverse` to return a NumPyro distribution; got"),
        (
            lambda x, t: dist.Normal(x, 1),
            ValueError,
            r"`reverse` to return event shape \(2,\); got \(\).*to_event\(1\)",
        ),
        (lambda x, t: dist.Normal(x, 1).to_event(2), ValueError, r"event shape \(2,\); got \(2, 2\)"),
        (lambda x, t: dist.Normal(x[0], 1).to_event(1), ValueError, r"batch shape \(3, 2\).*got \(2,\)"),
        (
            lambda x, t: dist.Bernoulli(logits=x).to_event(1),
            ValueError,
            "continuous distribution.*discrete Independent",
        ),
        (
            lambda x, t: dist.Normal(x, numpyro.param("scale", 1.0)).to_event(1),
            ValueError,
            r"declares the sites \['scale'\].*outside it",
        ),
        (
            lambda x, t: dist.Normal(x, numpyro.sample("scale", dist.LogNormal())).to_event(1),
            ValueError,
            r"declares the sites \['scale'\]",
        ),
        (None, TypeError, "`reverse` to be a function; got NoneType"),
    ],
)
def test_bad_reverse(reverse, error, message):
    kernel = dpm.GaussianKernel(dpm.schedules.constant_fraction(4), (2,))
    with pytest.raises(error, match=message):
        dpm.Diffusion(kernel, reverse)
    if reverse is not None:
        with pytest.raises(error, match=message.replace("reverse", "decode")):
            dpm.Diffusion(kernel, lambda x, t: dist.Normal(x, 1).to_event(1), lambda x: reverse(x, None))


def test_bad_names_and_diffusions():
    diffusion = handlers.seed(GAUSSIAN.diffusion, 0)()
    with pytest.raises(TypeError, match="name of a chain to be a string; got 3"):
        bad(dpm.forward_chain, 3, diffusion, X0)
    with pytest.raises(TypeError, match="name of a chain to be a string; got ''"):
        bad(dpm.reverse_chain, "", diffusion)
    with pytest.raises(TypeError, match="Expected a dpm_ppl.Diffusion; got method"):
        bad(dpm.reverse_chain, "x", GAUSSIAN.diffusion)

    def twice():
        dpm.reverse_chain("x", diffusion)
        dpm.reverse_chain("x", diffusion)

    with pytest.raises(AssertionError, match="unique names but got `x_chain` duplicated"):  # NumPyro's own
        handlers.trace(handlers.seed(twice, 0)).get_trace()


class Seen(Messenger):
    """Keeps what the message of a statement carries."""

    def __enter__(self):
        super().__enter__()
        return self

    def process_message(self, msg):
        if msg["type"] in ("forward_chain", "reverse_chain"):
            self.found = msg["type"], msg["statement"]


def test_a_handler_reads_the_record_and_replaces_it_or_its_reading():
    diffusion, x0 = handlers.seed(GAUSSIAN.diffusion, 0)(), jnp.asarray(X0)
    for statement, kind, given in (
        (lambda: dpm.forward_chain("a", diffusion, x0), "forward_chain", x0),
        (lambda: dpm.reverse_chain("a", diffusion, obs=x0), "reverse_chain", x0),
        (lambda: dpm.reverse_chain("a", diffusion), "reverse_chain", None),
    ):
        with Seen() as seen, handlers.seed(rng_seed=0):
            statement()
        found, record = seen.found
        assert (found, record.name) == (kind, "a")
        assert record.diffusion is diffusion
        assert record.x0 is given
    with pytest.raises(FrozenInstanceError):
        record.name = "b"
    with pytest.raises(ValueError, match=r"event shape \(2,\); got \(4, 3\)"):
        replace(record, x0=np.zeros((4, 3)))

    class Other(Messenger):
        def process_message(self, msg):
            if msg["type"] == "reverse_chain":
                msg["statement"] = replace(msg["statement"], name="b")

    class Doubled(Messenger):
        def process_message(self, msg):
            if msg["type"] == "reverse_chain":
                plain = msg["fn"]
                msg["fn"] = lambda statement: 2 * plain(statement)

    program = handlers.trace(handlers.seed(Doubled(Other(lambda: dpm.reverse_chain("a", diffusion))), 0))
    np.testing.assert_array_equal(program(), 2 * program.trace["b"]["value"])
    assert set(program.trace) == {"b_chain", "b"}


def test_different_diffusions_in_model_and_guide():
    longer = GaussianOracle.exact(6)
    model, guide = dpm.single_chain(GAUSSIAN.diffusion)[0], dpm.single_chain(longer.diffusion)[1]
    with pytest.raises(ValueError, match=r"disagree at site: .x_chain.: \(4, 4, 2\) vs \(4, 6, 2\)"):
        jax.eval_shape(lambda key: Trace_ELBO().loss(key, {}, model, guide, X0), jax.random.key(0))


Y = jnp.array([[0.3, -0.8], [1.1, 0.2]])


def with_prior():
    """A chain as the prior of a latent datum, which its guide draws before the chain."""

    def model():
        with numpyro.plate("data", 2):
            x0 = dpm.reverse_chain("x", GAUSSIAN.diffusion())
            numpyro.sample("y", dist.Normal(x0, 0.4).to_event(1), obs=Y)

    def guide():
        with numpyro.plate("data", 2):
            dpm.forward_chain("x", GAUSSIAN.diffusion(), numpyro.sample("x", dist.Normal(0.5 * Y, 0.7).to_event(1)))

    return model, guide


def test_a_latent_datum_in_its_guide_s_order():
    """NumPyro warns of no other order (warnings are errors), and no divergence is taken: both ELBOs are one number."""
    pair = with_prior()
    mean_field, plain = (
        jax.jit(lambda key, elbo=elbo: elbo.loss(key, GAUSSIAN.params, *pair))(jax.random.key(3))
        for elbo in (TraceMeanField_ELBO(), Trace_ELBO())
    )
    np.testing.assert_allclose(mean_field, plain, rtol=1e-12)
    sites = [name for name in handlers.trace(handlers.seed(substituted(pair[0]), 0)).get_trace() if name[0] in "xy"]
    assert sites == ["x_chain", "x", "y"]  # without a guide


def substituted(program):
    return handlers.substitute(program, data=GAUSSIAN.params)


def test_a_guide_whose_trajectory_is_not_taken():
    """The datum was scored by the guide's trajectory: another in its place is refused."""
    model, guide = with_prior()
    drawn = handlers.trace(handlers.seed(substituted(guide), 0)).get_trace()
    replayed = handlers.replay(substituted(model), trace=drawn)
    other = handlers.substitute(replayed, data={"x_chain": drawn["x_chain"]["value"] + 1})
    with pytest.raises(ValueError, match="the guide's draws at site 'x_chain'.*Put it around the guide"):
        handlers.seed(other, 0)()
