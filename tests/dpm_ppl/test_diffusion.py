"""The fixed last step, and every mistake that a Diffusion or its data can be made with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density

import dpm_ppl as dpm
from dpm_ppl.diffusion import require_data, require_laws
from dpm_ppl.programs import instantiate
from dpm_ppl.schedules import constant_fraction, linear
from dpm_ppl.tracing import trace_quietly

GAUSSIAN = dpm.GaussianKernel(linear(4, first=0.2, last=0.9), (2,))
BERNOULLI = dpm.BernoulliKernel(constant_fraction(4), (3,), 0.2)


def shrink(x, t):
    return dist.Normal(0.5 * x, 1.0).to_event(1)


# The last step


def test_the_default_last_step_undoes_the_first_of_a_stationary_chain():
    """p(x^0 | x^1) = q(x^1 | x^0) pi(x^0) / pi(x^1), MATH section 3: the fixed step that removes the edge effect."""
    rng = np.random.default_rng(0)
    x0, x1 = 1 + rng.normal(size=(5, 2)), rng.normal(size=(5, 2))

    def log_normal(x, mean, variance):
        return np.sum(-0.5 * (x - mean) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance), -1)

    forward = log_normal(x1, np.sqrt(0.8) * x0, 0.2)  # beta_1 = 0.2
    expected = forward + log_normal(x0, 0.0, 1.0) - log_normal(x1, 0.0, 1.0)
    np.testing.assert_allclose(dpm.Diffusion(GAUSSIAN, shrink).decode(x1).log_prob(x0), expected, rtol=1e-10)

    x0, x1 = rng.binomial(1, 0.5, (20, 3)), rng.binomial(1, 0.5, (20, 3))
    rate = 0.75 * x0 + 0.25 * 0.2  # beta_1 = 1/4

    def log_bernoulli(x, rate):
        return np.sum(np.log(np.where(x == 1, rate, 1 - rate)), -1)

    expected = log_bernoulli(x1, rate) + log_bernoulli(x0, 0.2) - log_bernoulli(x1, 0.2)
    diffusion = dpm.Diffusion(BERNOULLI, BERNOULLI.step)
    np.testing.assert_allclose(diffusion.decode(x1).log_prob(x0), expected, rtol=1e-10)


def test_a_last_step_of_ones_own():
    diffusion = dpm.Diffusion(GAUSSIAN, shrink, lambda x1: dist.Normal(x1 + 3, 0.1).to_event(1))
    np.testing.assert_array_equal(diffusion.decode(np.array([0.5, -1.0])).mean, [3.5, 2.0])
    np.testing.assert_array_equal(diffusion.reverse(np.array([0.5, -1.0]), 2).mean, [0.25, -0.5])
    assert (diffusion.num_steps, diffusion.event_shape) == (4, (2,))


def test_a_copy_with_another_kernel_has_the_last_step_of_that():
    other = dpm.GaussianKernel(linear(4, first=0.5, last=0.9), (2,))
    copied = dataclasses.replace(dpm.Diffusion(GAUSSIAN, shrink), kernel=other)
    assert copied.has_fixed_last_step
    np.testing.assert_allclose(copied.decode(np.array([0.4, -1.0])).mean, np.sqrt(0.5) * np.array([0.4, -1.0]))


# What a reverse step may be


@pytest.mark.parametrize(
    "reverse",
    [
        lambda x, t: dist.MultivariateNormal(x, jnp.eye(2)),
        lambda x, t: dist.StudentT(3.0, x, 1 / t[..., None]).to_event(1),
        lambda x, t: dist.TransformedDistribution(
            dist.Normal(x, 1.0).to_event(1), dist.transforms.AffineTransform(0.0, 2.0)
        ),
        lambda x, t: dist.MixtureSameFamily(
            dist.Categorical(jnp.ones(2) / 2),
            dist.Normal(jnp.stack([x, -x], -2), 1.0).to_event(1),
        ),
        lambda x, t: dist.Normal(0.0, 1.0).expand([*x.shape]).to_event(1),
    ],
    ids=["full", "heavy_tailed", "transformed", "mixture", "constant"],
)
def test_any_distribution_over_the_states_will_do(reverse):
    x, x1, t = np.array([[0.3, -0.2], [1.0, 0.4]]), np.array([[0.1, 0.2], [0.0, -1.0]]), np.array([2, 3])
    diffusion = dpm.Diffusion(GAUSSIAN, reverse)
    np.testing.assert_array_equal(diffusion.reverse(x, t).log_prob(x1), reverse(x, t).log_prob(x1))


def declares_a_parameter(x, t):
    return dist.Normal(numpyro.param("drift", 0.5) * x, 1.0).to_event(1)


def declares_a_site(x, t):
    return dist.Normal(x, numpyro.sample("width", dist.Gamma(2.0))).to_event(1)


def ignores_the_batch_of_t(x, t):
    return dist.Normal(x[0], 1.0).to_event(1)


@pytest.mark.parametrize("name", ["reverse", "decode"])
@pytest.mark.parametrize(
    ("kernel", "step", "error", "message"),
    [
        (GAUSSIAN, 3.0, TypeError, "to be a function; got float"),
        (GAUSSIAN, "shrink", TypeError, "to be a function; got str"),
        (GAUSSIAN, lambda x, t: 0.5 * x, TypeError, r"to return a NumPyro distribution; got \w*Tracer"),
        (GAUSSIAN, lambda x, t: None, TypeError, "to return a NumPyro distribution; got NoneType"),
        (
            GAUSSIAN,
            lambda x, t: dist.Normal(x, 1.0),
            ValueError,
            r"event shape \(2,\); got \(\) with batch shape \(3, 2, 2\) for x of .* \(3, 2\).*`\.to_event\(1\)`",
        ),
        (GAUSSIAN, lambda x, t: dist.Normal(x, 1.0).to_event(2), ValueError, r"event shape \(2,\); got \(2, 2\)"),
        (
            GAUSSIAN,
            lambda x, t: dist.Normal(x[..., :1], 1.0).to_event(1),
            ValueError,
            r"event shape \(2,\); got \(1,\)",
        ),
        (
            GAUSSIAN,
            ignores_the_batch_of_t,
            ValueError,
            r"batch shape \(3, 2\) for x .* got \(2,\).*t broadcast against it",
        ),
        (
            GAUSSIAN,
            lambda x, t: dist.Normal(jnp.zeros(2), 1.0).to_event(1),
            ValueError,
            r"batch shape \(3, 2\) .* got \(\)",
        ),
        (
            GAUSSIAN,
            lambda x, t: dist.Bernoulli(logits=x).to_event(1),
            ValueError,
            "a continuous distribution, as the kernel's states are; got the discrete",
        ),
        (
            BERNOULLI,
            lambda x, t: dist.Normal(x, 1.0).to_event(1),
            ValueError,
            "a discrete distribution, as the kernel's states are; got the continuous",
        ),
        (
            GAUSSIAN,
            lambda x, t: dist.LogNormal(x, 1.0).to_event(1),
            ValueError,
            r"states, Real\(\); got .* over Positive",
        ),
        (
            GAUSSIAN,
            lambda x, t: dist.Uniform(x - 1, x + 1).to_event(1),
            ValueError,
            r"over the kernel's states, Real\(\); got .* over Interval",
        ),
        (
            BERNOULLI,
            lambda x, t: dist.Poisson(jnp.exp(x)).to_event(1),
            ValueError,
            r"over the kernel's states, Boolean\(\); got .* over IntegerNonnegative",
        ),
        (
            GAUSSIAN,
            declares_a_parameter,
            ValueError,
            r"plain function .* declares the sites \['drift'\].*silently.*outside it",
        ),
        (GAUSSIAN, declares_a_site, ValueError, r"plain function .* declares the sites \['width'\]"),
    ],
)
def test_a_step_that_is_none(name, kernel, step, error, message):
    steps = {"reverse": kernel.step, name: step}
    if name == "decode" and callable(step):
        steps["decode"] = lambda x1: step(x1, None)
    with pytest.raises(error, match=f"Expected `{name}` .*{message}"):
        dpm.Diffusion(kernel, **steps)


def test_a_step_over_the_line_where_states_are_positive():
    """A normal would put half of its mass where no state is; a law within the states' support is taken."""

    class Positive:
        num_steps = 3
        event_shape = (2,)

        def stationary(self):
            return dist.Gamma(jnp.array([2.0, 0.7]), 1.0).to_event(1)

        def step(self, x, t):
            return dist.Gamma(2.0 + 0 * x, 1.0).to_event(1)

    message = r"`reverse` .* kernel's states, Positive.*; got the Independent over Real\(\)"
    with pytest.raises(ValueError, match=message):
        dpm.Diffusion(Positive(), shrink)
    for law in (dist.LogNormal, lambda x, scale: dist.TruncatedNormal(x, scale, low=0.5)):
        taken = dpm.Diffusion(Positive(), lambda x, t, law=law: law(x, 1.0).to_event(1))
        assert taken.reverse(jnp.ones(2), jnp.asarray(2)).log_prob(jnp.array([0.7, 1.2])) > -np.inf


@pytest.mark.parametrize("missing", ["num_steps", "event_shape", "stationary", "step"])
def test_a_kernel_that_lacks_a_part(missing):
    names = {"num_steps", "event_shape", "stationary", "step"} - {missing}
    parts = {name: getattr(GAUSSIAN, name) for name in names}
    kernel = type("OwnKernel", (), {name: staticmethod(p) if callable(p) else p for name, p in parts.items()})()
    with pytest.raises(TypeError, match=f"Expected a kernel with num_steps, .*; got no {missing}"):
        dpm.Diffusion(kernel, shrink)


@pytest.mark.parametrize("law", ["step", "marginal", "posterior"])
def test_a_law_of_a_kernel_that_declares_a_parameter(law):
    """What a bound would take the first value of, whatever is learned."""

    def declares(self, *arguments):
        numpyro.param("keep", 0.7)
        return getattr(dpm.GaussianKernel, law)(self, *arguments)

    kernel = type("Own", (dpm.GaussianKernel,), {law: declares})(GAUSSIAN.beta, (2,))
    message = rf"Expected `kernel.{law}` to be a plain function .* declares the sites \['keep'\].*outside it"
    with pytest.raises(ValueError, match=message):
        require_laws(kernel, "step", "marginal", "posterior")
    if law == "step":
        with pytest.raises(ValueError, match=message):
            dpm.Diffusion(kernel, shrink)
    require_laws(GAUSSIAN, "step", "marginal", "posterior")


class _Averages:
    """What BatchNorm keeps: a running mean, which every call reads and writes; imitates a network with state."""

    def __init__(self):
        self.mean = jnp.zeros(2)

    def __call__(self, x):
        self.mean = 0.9 * self.mean + 0.1 * jnp.mean(x, tuple(range(x.ndim - 1)))
        return x - self.mean


def _with_dropout(x, t=None):
    kept = jax.random.bernoulli(numpyro.prng_key(), 0.9, x.shape)
    return dist.Normal(x * kept, 1.0).to_event(1)


def _declared(law, name):
    """The mistake `law` as `reverse`, `decode` or a law of the kernel: a function that builds the Diffusion."""
    if not name.startswith("kernel."):
        steps = {"reverse": shrink, name: law if name == "reverse" else lambda x1: law(x1, None)}
        return lambda: dpm.Diffusion(GAUSSIAN, **steps)
    wrapped = {name.removeprefix("kernel."): lambda self, x, t: law(x, t)}
    kernel = type("Own", (dpm.GaussianKernel,), wrapped)(GAUSSIAN.beta, (2,))
    return lambda: dpm.Diffusion(kernel, shrink)


LAWS = ["reverse", "decode", "kernel.step"]


@pytest.mark.parametrize("name", LAWS)
def test_a_key_drawn_inside_a_law(name):
    """It was UnexpectedTracerError, and that in `Predictive` alone, after a good fit."""
    declare = _declared(_with_dropout, name)
    message = f"Expected `{name}` to be a plain function .* draws a key .*Draw it where the Diffusion is made.*fold_in"
    with pytest.raises(ValueError, match=message):
        declare()
    with numpyro.handlers.seed(rng_seed=0), pytest.raises(ValueError, match=message):
        declare()


@pytest.mark.parametrize("name", LAWS)
def test_state_written_inside_a_law(name):
    net = _Averages()
    declare = _declared(lambda x, t: dist.Normal(net(x), 1.0).to_event(1), name)
    with pytest.raises(ValueError, match=f"Expected `{name}` to be a plain function .*BatchNorm.*where the Diffusion"):
        declare()


@pytest.mark.parametrize("name", LAWS)
def test_state_that_stays_as_it_is(name):
    """NumPyro's wrappers of Flax write it back all the same; declared as the error says it is none."""
    variables = {"params": {"scale": jnp.array([0.5, 2.0])}, "batch_stats": {"mean": jnp.array([1.0, -1.0])}}
    holder = {"state": variables["batch_stats"]}

    def apply(variables, x):
        return (x - variables["batch_stats"]["mean"]) * variables["params"]["scale"]

    def wrapped(x, t):
        y = apply({"params": variables["params"], "batch_stats": holder["state"]}, x)
        holder["state"] = jax.lax.stop_gradient(holder["state"])
        return dist.Normal(y, 1.0).to_event(1)

    advice = r"numpyro.param\('net', variables\['params'\]\), and net.apply\({\*\*variables, 'params': params}, x\)"
    with pytest.raises(ValueError, match=f"Expected `{name}` to be a plain function .*{advice}.*nnx.merge"):
        _declared(wrapped, name)()

    def definition():
        params = numpyro.param("net", variables["params"])
        return _declared(lambda x, t: dist.Normal(apply({**variables, "params": params}, x), 1.0).to_event(1), name)()

    found = instantiate(definition, {"net": {"scale": jnp.array([3.0, 4.0])}})
    law = {"reverse": found.reverse, "decode": lambda x, t: found.decode(x), "kernel.step": found.kernel.step}[name]
    np.testing.assert_array_equal(law(jnp.array([2.0, 2.0]), jnp.asarray(2)).mean, [3.0, 12.0])


def test_what_a_law_closes_over_is_no_state():
    """Parameters of a program that is traced itself, on shapes or under jit, once and again."""

    def definition():
        keep = numpyro.param("keep", jnp.array([0.5, 0.3]))
        return dpm.Diffusion(GAUSSIAN, lambda x, t: dist.Normal(keep * x, 1.0).to_event(1))

    def mean(keep):
        return instantiate(definition, {"keep": keep}).reverse(jnp.array([1.0, -2.0]), jnp.asarray(2)).mean

    for _ in range(2):
        np.testing.assert_array_equal(jax.jit(mean)(jnp.array([0.25, 4.0])), [0.25, -8.0])


def test_state_that_one_law_writes_and_another_reads():
    kept = {}

    def reverse(x, t):
        kept["scale"] = jnp.exp(x.mean())
        return shrink(x, t)

    with pytest.raises(ValueError, match="Expected `decode` to be a plain function .* earlier call"):
        dpm.Diffusion(GAUSSIAN, reverse, lambda x1: dist.Normal(x1, kept["scale"]).to_event(1))


def test_a_key_drawn_where_the_diffusion_is_made():
    """What the error advises: dropout that is another mask at every step, in a program that is fitted and sampled."""

    def diffusion():
        key = numpyro.prng_key()

        def reverse(x, t):
            masks = jax.vmap(lambda t: jax.random.bernoulli(jax.random.fold_in(key, t), 0.5, (2,)))
            return dist.Normal(x * masks(jnp.ravel(t)).reshape(*jnp.shape(t), 2), 1e-9).to_event(1)

        return dpm.Diffusion(GAUSSIAN, reverse)

    with numpyro.handlers.seed(rng_seed=5), numpyro.handlers.trace() as trace:
        dpm.reverse_chain("x", diffusion())
    states = trace["x_chain"]["value"]
    masks = [
        jax.random.bernoulli(jax.random.fold_in(numpyro.handlers.seed(numpyro.prng_key, 5)(), t), 0.5, (2,))
        for t in (2, 3, 4)
    ]
    for t, mask in zip((2, 3, 4), masks, strict=True):
        np.testing.assert_allclose(states[t - 2], states[t - 1] * mask, atol=1e-7)
    assert len({tuple(np.asarray(mask)) for mask in masks}) > 1


def test_a_reverse_step_is_checked_without_being_run():
    """On shapes alone: no array is made, whatever the network costs."""
    seen = []

    def reverse(x, t):
        seen.append((type(x), x.shape, t.shape))
        return shrink(x, t)

    dpm.Diffusion(GAUSSIAN, reverse)
    assert all(issubclass(kind, jax.core.Tracer) for kind, _, _ in seen)
    # a chain of one step has no reverse step to check
    dpm.Diffusion(dpm.GaussianKernel(np.array([0.5]), (2,)), lambda x, t: None)


# Data


@pytest.mark.parametrize(
    ("kernel", "x0"),
    [
        (GAUSSIAN, np.array([[0.5, -1.0], [2.0, 0.0]])),
        (GAUSSIAN, [0.5, -1.0]),
        (GAUSSIAN, np.ones((2, 3, 2), np.float32)),
        (BERNOULLI, np.array([0, 1, 1])),
        (BERNOULLI, np.array([[0.0, 1.0, 1.0]])),
        (BERNOULLI, np.array([False, True, True])),
    ],
)
def test_good_data_pass_as_they_are(kernel, x0):
    np.testing.assert_array_equal(require_data(kernel, x0), x0)


@pytest.mark.parametrize(
    ("kernel", "x0", "error", "message"),
    [
        (GAUSSIAN, "swiss roll", TypeError, "a numeric array; got str"),
        (GAUSSIAN, None, TypeError, "a numeric array; got NoneType"),
        (GAUSSIAN, np.array(["a", "b"]), TypeError, "a numeric array; got ndarray"),
        (GAUSSIAN, np.ones((3, 2), int), TypeError, "floating-point numbers.*got int64. Convert it"),
        (GAUSSIAN, np.ones((3, 2), bool), TypeError, "floating-point numbers.*got bool"),
        (GAUSSIAN, np.ones((3, 2), complex), TypeError, "floating-point numbers.*got complex128"),
        (BERNOULLI, np.ones((2, 3), complex), TypeError, "got complex128"),
        (GAUSSIAN, np.ones((2, 3)), ValueError, r"event shape \(2,\); got \(2, 3\)"),
        (GAUSSIAN, 1.0, ValueError, r"event shape \(2,\); got \(\)"),
        (GAUSSIAN, np.ones((3, 2, 1)), ValueError, r"event shape \(2,\); got \(3, 2, 1\)"),
        (BERNOULLI, np.ones((3, 2), int), ValueError, r"event shape \(3,\); got \(3, 2\)"),
        (GAUSSIAN, np.ones((0, 2)), ValueError, r"at least one datum in `x0`; got shape \(0, 2\)"),
        (GAUSSIAN, np.array([[1.0, np.nan], [np.inf, 0.0]]), ValueError, "to be finite; got 2 NaN or infinite values"),
        (BERNOULLI, np.array([0.0, 1.0, np.nan]), ValueError, "to be finite; got 1 NaN"),
        (BERNOULLI, np.array([0, 1, 2]), ValueError, "within the support .*Boolean.*got values from 0 to 2"),
        (BERNOULLI, np.array([0.0, 0.5, 1.0]), ValueError, "within the support .*got values from 0.0 to 1.0"),
        (BERNOULLI, np.array([-1, 1, 1]), ValueError, "within the support .*got values from -1 to 1"),
    ],
)
def test_bad_data(kernel, x0, error, message):
    diffusion = dpm.Diffusion(kernel, kernel.step)
    with pytest.raises(error, match=message):
        require_data(kernel, x0)
    with numpyro.handlers.seed(rng_seed=0), pytest.raises(error, match=message):
        dpm.forward_chain("x", diffusion, x0)
    if x0 is not None:
        with numpyro.handlers.seed(rng_seed=0), pytest.raises(error, match=message):
            dpm.reverse_chain("x", diffusion, obs=x0)


def test_under_jit_shapes_are_checked_and_values_pass():
    np.testing.assert_array_equal(
        jax.jit(lambda x0: require_data(GAUSSIAN, x0))(np.array([np.nan, 1.0])), [np.nan, 1.0]
    )
    with pytest.raises(ValueError, match=r"event shape \(2,\); got \(3,\)"):
        jax.jit(lambda x0: require_data(GAUSSIAN, x0))(np.ones(3))
    with pytest.raises(ValueError, match="to be finite"):  # data closed over are known even while a program is traced
        jax.jit(lambda: require_data(GAUSSIAN, np.array([np.nan, 1.0])))()


# Events of several parts


ONE = "An event is one array: put its parts side by side in one"


def in_parts(parts, shape):
    """A kernel on a vector and bits, its laws in parts."""

    class Parts:
        num_steps, event_shape = 4, shape

        def stationary(self):
            return parts(GAUSSIAN.stationary(), BERNOULLI.stationary())

        def step(self, x, t):
            return parts(GAUSSIAN.step(x, t), BERNOULLI.step(x, t))

    return Parts()


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (in_parts(lambda a, b: {"a": a, "b": b}, {"a": (2,), "b": (3,)}), f"got {{'a': .*{ONE}"),
        (in_parts(lambda a, b: (a, b), ((2,), (3,))), rf"got \(\(2,\), \(3,\)\).*{ONE}"),
        (
            in_parts(lambda a, b: (a, b), (2,)),
            f"`kernel.stationary` to return a NumPyro distribution; got tuple.*{ONE}",
        ),
        (
            (GAUSSIAN, BERNOULLI),
            f"Expected a kernel .*; got a tuple. {ONE}.*a chain each: two statements in one program",
        ),
        ({"a": GAUSSIAN, "b": BERNOULLI}, f"Expected a kernel .*; got a dict. {ONE}"),
    ],
)
def test_a_kernel_on_several_arrays(kernel, message):
    with pytest.raises(TypeError, match=message):
        dpm.Diffusion(kernel, getattr(kernel, "step", shrink))


def test_states_in_several_arrays():
    chain = dpm.Diffusion(GAUSSIAN, shrink)
    for x0 in (
        {"a": np.ones((3, 2))},
        (np.ones((3, 2)), np.ones((3, 3))),
        (np.ones((3, 2)), jnp.ones((3, 2))),  # no batch of two
        [np.ones((3, 2)), np.ones((3, 3))],
    ):
        for statement in (dpm.forward_chain, dpm.reverse_chain):
            with pytest.raises(TypeError, match=f"numeric array; got {type(x0).__name__}.*{ONE}.*two statements"):
                statement("x", chain, x0)
    with pytest.raises(TypeError, match=f"`reverse` to return a NumPyro distribution; got tuple.*{ONE}"):
        dpm.Diffusion(GAUSSIAN, lambda x, t: (shrink(x, t), shrink(x, t)))


def test_parts_with_a_kernel_each_are_two_statements():
    """As the errors advise: bits given a vector, whose density is the sum of that of the two chains."""

    def bits(c):
        def reverse(x, t, c):
            return dist.Bernoulli(jax.nn.sigmoid(x + c[..., :1])).to_event(1)

        return dpm.Diffusion(BERNOULLI, reverse, context=c)

    def model(a, b):
        with numpyro.plate("data", 3):
            vector = dpm.reverse_chain("a", dpm.Diffusion(GAUSSIAN, shrink), obs=a)
            dpm.reverse_chain("b", bits(vector), obs=b)

    def guide(a, b):
        with numpyro.plate("data", 3):
            dpm.forward_chain("a", dpm.Diffusion(GAUSSIAN, shrink), a)
            dpm.forward_chain("b", bits(a), b)

    a, b = np.linspace(-1, 1, 6).reshape(3, 2), np.array([[0, 1, 1], [1, 0, 0], [1, 1, 1]])
    _, drawn = trace_quietly(guide, a, b)
    whole = log_density(handlers.replay(model, trace=drawn), (a, b), {}, {})[0]
    state, code = drawn["a_chain"]["value"], drawn["b_chain"]["value"]
    alone = (
        dpm.ReverseChain(dpm.Diffusion(GAUSSIAN, shrink)).log_prob(state).sum()
        + dpm.ReverseChain(bits(a).of_batch((3,))).log_prob(code).sum()
        + GAUSSIAN.step(state[:, 0], 1).log_prob(a).sum()
        + BERNOULLI.step(code[:, 0], 1).log_prob(b).sum()
    )
    np.testing.assert_allclose(whole, alone, rtol=1e-6)
