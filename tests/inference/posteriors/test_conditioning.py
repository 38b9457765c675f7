"""What of a program can be conditioned on: r is the rest of it, and everything else is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import dpm_ppl as dpm
from dpm_ppl.inference import denoised, smc, unguided, widened
from dpm_ppl.inference.posteriors.conditioning import Conditioned
from tests.oracles import GaussianOracle

ORACLE = GaussianOracle.exact(3)
SCOPED = {f"a/{name}": value for name, value in ORACLE.params.items()}
X = jnp.array([0.4, -1.3])


def chain(name="x"):
    return dpm.reverse_chain(name, ORACLE.diffusion())


# What is refused and what is answered shows with few particles.
pytestmark = pytest.mark.filterwarnings("ignore:The posterior can NOT be trusted:UserWarning")


def run(program, *args, params=ORACLE.params, site="x", twist=widened, **options):
    return smc(program, site, params=params, num_particles=20, twist=twist, **options)(jax.random.key(0), *args)


def test_r_is_all_that_the_rest_of_the_program_observes():
    def program():
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        numpyro.sample("before", dist.Normal(scale, 1.0), obs=0.3)
        x = chain()
        numpyro.deterministic("sum", x.sum())
        with handlers.scale(scale=2.5):
            numpyro.sample("scaled", dist.Normal(x[0], scale), obs=0.1)
        with numpyro.plate("three", 3), handlers.mask(mask=jnp.array([True, False, True])):
            numpyro.sample("masked", dist.Normal(x[1], 0.5), obs=jnp.arange(3.0))
        numpyro.factor("r", -(x[0] ** 4))

    target = Conditioned(program, "x", ORACLE.params).target({"scale": jnp.asarray(1.7)})

    def log_normal(y, mean, scale):
        return -0.5 * ((y - mean) / scale) ** 2 - np.log(scale * np.sqrt(2 * np.pi))

    expected = log_normal(0.3, 1.7, 1.0) + 2.5 * log_normal(0.1, 0.4, 1.7) - 0.4**4
    expected += log_normal(0.0, -1.3, 0.5) + log_normal(2.0, -1.3, 0.5)
    np.testing.assert_allclose(target.log_r(X), expected, rtol=1e-12)
    assert target.known is None
    assert target.diffusion.num_steps == 3


def test_latents_are_drawn_from_their_prior_and_parameters_put_in():
    def program():
        numpyro.sample("scale", dist.LogNormal(numpyro.param("location", 5.0), 0.1))
        numpyro.sample("y", dist.Normal(chain(), 1.0).to_event(1), obs=X)

    conditioned = Conditioned(program, "x", ORACLE.params | {"location": jnp.asarray(-1.0)})
    drawn = jax.vmap(conditioned.latents)(jax.random.split(jax.random.key(0), 400))
    assert set(drawn) == {"scale"}
    assert abs(float(jnp.log(drawn["scale"]).mean()) + 1.0) < 4 * 0.1 / 20


def noisy(y):
    numpyro.sample("y", dist.Normal(chain(), 1.0).to_event(1), obs=y)


def ordinary(y):
    numpyro.sample("z", dist.Normal(0.0, 1.0))
    noisy(y)


def two_chains(y):
    chain("a")
    chain("b")
    numpyro.factor("r", y)


def unobserved():
    chain()


def chain_observed(y):
    numpyro.sample("y", dist.Normal(dpm.reverse_chain("x", ORACLE.diffusion(), obs=y), 1.0).to_event(1), obs=y)


def in_a_plate(y):
    with numpyro.plate("data", 4):
        noisy(y)


def late(y):
    x = chain()
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(x, scale).to_event(1), obs=y)


def masked(mask):
    numpyro.sample("known", dist.Delta(chain()).mask(mask).to_event(1), obs=X)


def subsampled(y):
    x = chain()
    with numpyro.plate("n", 50, subsample_size=5):
        numpyro.sample("y", dist.Normal(x[0], 1.0), obs=y)


def repeated(y):
    x = chain()
    with numpyro.plate("three", 3):
        numpyro.sample("y", dist.Delta(x).to_event(1), obs=y)


def observing(law):
    """A program that observes a law of the chain's value at what it would be at X."""

    def program():
        numpyro.sample("y", law(chain()), obs=jnp.asarray(law(X).mean))

    return program


def scaled_knowledge():
    x = chain()
    with handlers.scale(scale=2.0):
        numpyro.sample("y", dist.Delta(x).to_event(1), obs=X)


def under(handler, program=noisy):
    """A program under a handler, its chain included."""

    def handled(*args):
        with handler:
            program(*args)

    return handled


@pytest.mark.parametrize(
    ("program", "args", "options", "message"),
    [
        (noisy, (X,), {"site": "w"}, "got 'w': its chains are 'x'"),
        (two_chains, (0.0,), {"site": "x"}, "got 'x': its chains are 'a', 'b'"),
        (ordinary, (X,), {"site": "z"}, "got 'z' is a site, but no chain: its chains are 'x'"),
        (lambda: numpyro.factor("r", 0.0), (), {}, "got 'x': it has no reverse_chain"),
        (unobserved, (), {}, "observes something of 'x'.*it observes nothing.*Predictive"),
        (chain_observed, (X,), {}, "Expected the chain 'x' to be latent.*Leave that out"),
        (in_a_plate, (jnp.zeros((4, 2)),), {}, "stands in the plate 'data'.*jax.vmap"),
        (late, (X,), {}, "declared before it.*got scale after it. Move them up"),
        (noisy, (jnp.zeros((3, 2)),), {}, r"observation 'y' of shape \(2,\).*got \(3, 2\)"),
        (masked, (jnp.ones((3, 2), bool),), {}, r"observation 'known' of shape \(3, 2\).*got \(2,\)"),
        (masked, (jnp.ones(3, bool),), {}, r"Expected the shapes of masks.*\(3,\).*A mask goes with the batch"),
        (subsampled, (jnp.zeros(5),), {}, "the plate 'n' to be whole; it takes 5 of 50.*subsample_size"),
        (repeated, (X,), {}, "observation 'y' of shape"),
        (repeated, (jnp.zeros((3, 2)),), {}, "observed Delta 'y' to be of the chain's value 'x' itself, and whole"),
        (observing(lambda x: dist.Delta(x[:1]).to_event(1)), (), {}, "Delta 'y'.*no particle would ever meet"),
        (observing(lambda x: dist.Delta(2 * x).to_event(1)), (), {}, "Delta 'y'.*no particle would ever meet"),
        (scaled_knowledge, (), {}, "Delta 'y' without a scale"),
        (handlers.condition(noisy, {"x": X}), (X,), {}, "'x' to be latent.*condition, substitute"),
        (handlers.condition(noisy, {"x_chain": jnp.zeros((3, 2))}), (X,), {}, "'x' to be latent.*condition"),
        (handlers.substitute(noisy, {"x": X}), (X,), {}, "'x' to be latent.*condition, substitute"),
        (under(handlers.scale(scale=100.0)), (X,), {}, "'x' neither scaled nor masked, as it is the prior"),
        (under(handlers.mask(mask=False)), (X,), {}, "'x' neither scaled nor masked, as it is the prior"),
        (under(handlers.scope(prefix="a")), (X,), {"params": SCOPED}, "'x' under its own name.*scope"),
        (ordinary, (X,), {"params": ORACLE.params | {"z": 0.3}}, "drawn from their prior; z would be fixed"),
        (handlers.substitute(ordinary, {"z": 0.3}), (X,), {}, "drawn from their prior; z would be fixed"),
        (noisy, (X,), {"params": {"map": 0.0}}, "Expected a value for every parameter of the model; got none for"),
        (noisy, (X,), {"params": ORACLE.params | {"map": jnp.zeros(3)}}, "parameter 'map' of shape"),
    ],
)
def test_what_cannot_be_conditioned_is_refused_by_name(program, args, options, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        run(program, *args, **options)


def test_options_are_checked():
    for num, error in ((1, ValueError), (2.0, TypeError)):
        with pytest.raises(error, match="num_particles"):
            smc(noisy, "x", params={}, num_particles=num)
    with pytest.raises(ValueError, match=r"Expected `threshold`.*got 1.5"):
        smc(noisy, "x", params={}, num_particles=2, threshold=1.5)
    with pytest.raises(TypeError, match="Expected `twist` to be an object such as widened.*got 'widened'"):
        smc(noisy, "x", params={}, num_particles=2, twist="widened")
    with pytest.raises(TypeError, match="Expected `model` to be a NumPyro program; got GaussianOracle"):
        smc(ORACLE, "x", params={}, num_particles=2)


def factor(log_r):
    def program():
        numpyro.factor("r", log_r(chain()))

    return program


def callback(x):
    return jax.pure_callback(lambda x: np.sin(x).sum(), jax.ShapeDtypeStruct((), x.dtype), x, vmap_method="sequential")


def loop(x):
    return jax.lax.while_loop(lambda state: state[0] < 3, lambda state: (state[0] + 1, state[1] * x[0]), (0, x[1]))[1]


@pytest.mark.parametrize("log_r", [callback, loop])
@pytest.mark.parametrize("twist", [widened, denoised])
def test_an_r_without_derivative_is_refused_by_twists_that_need_one(log_r, twist):
    with pytest.raises(TypeError, match=r"(?s)Expected an r that JAX can differentiate.*or take unguided\(\)"):
        run(factor(log_r), twist=twist)


def test_an_r_without_derivative_has_an_answer_by_default():
    given = [
        smc(factor(callback), "x", params=ORACLE.params, num_particles=400, twist=twist)(jax.random.key(0))
        for twist in (None, unguided)
    ]
    off = given[0].log_evidence - given[1].log_evidence
    assert abs(off) < 4 * np.hypot(given[0].log_evidence_se, given[1].log_evidence_se)


def test_an_r_that_is_zero_everywhere_or_nan_names_the_step():
    with pytest.raises(ValueError, match="all weights are zero at t = 0 of 3.*soften it"):
        run(factor(lambda x: jnp.where(x[0] > 1e3, 0.0, -jnp.inf)))
    flat = factor(lambda x: -jnp.sqrt(jnp.maximum(x[0] - 1e3, 0.0)))  # 0, but its gradient is 0 * inf
    with pytest.raises(ValueError, match=r"particles have NaN at t = \d of 3"):
        run(flat)
    assert run(flat, twist=None).log_evidence == pytest.approx(0, abs=0.01)
    with pytest.raises(ValueError, match="20 of 20 particles have NaN"):
        run(factor(lambda x: jnp.log(-jnp.abs(x[0]) - 1)), twist=None)


def test_a_posterior_is_beside_one_context_its_own():
    def diffusion(c):
        def reverse(x, t, c):
            return dist.Normal(0.8 * x + 0.1 * c, 0.5).to_event(1)

        return dpm.Diffusion(dpm.GaussianKernel([0.1, 0.3, 0.6], (2,)), reverse, context=c)

    def program(y, c, of_others):
        x = dpm.reverse_chain("x", diffusion(c))
        numpyro.sample("y", dist.Normal(x + of_others, 0.5).to_event(1), obs=y)

    contexts, y = np.arange(14.0).reshape(7, 2), np.zeros(2)
    run = smc(program, "x", params={}, num_particles=20, twist=widened())
    with pytest.raises(ValueError, match=r"of batch shape \(\); .* batch shape \(7,\): data would see.*jax.vmap over"):
        run(jax.random.key(0), y, contexts, 0.0)
    with pytest.raises(ValueError, match=r"Expected the observation 'y' of shape \(7, 2\).*got \(2,\)"):
        run(jax.random.key(0), y, contexts[0], contexts)
    with pytest.raises(ValueError, match="particles have NaN at t = 3"):
        run(jax.random.key(0), y, np.array([0.0, np.nan]), 0.0)


def test_a_step_function_needs_no_gradient():
    p = run(factor(lambda x: jnp.where(x[0] > 0.7, 0.0, -jnp.inf)), twist=None)
    assert (p.samples[p.weight > 0, 0] > 0.7).all()


def test_exact_knowledge_wants_a_step_that_can_be_conditioned():
    with pytest.raises(ValueError, match=r"Expected twist=widened\(\) for coordinates that are known exactly"):
        run(masked, jnp.array([True, False]), twist=denoised)

    def heavy():
        diffusion = ORACLE.diffusion()
        tailed = dpm.Diffusion(diffusion.kernel, diffusion.reverse, lambda x: dist.StudentT(4.0, x, 0.1).to_event(1))
        numpyro.sample("known", dist.Delta(dpm.reverse_chain("x", tailed)).to_event(1), obs=X)

    with pytest.raises(ValueError, match="whose last step can be conditioned.*Observe them with a little noise"):
        run(heavy, twist=widened)


def known_half(size, full_covariance):
    """The first half of a standard normal of `size` coordinates is known to be 0.3."""
    kernel = dpm.GaussianKernel([0.1, 0.3, 0.6], (size,))

    def decode(x1):
        mean = jnp.sqrt(0.9) * x1
        return dist.MultivariateNormal(mean, scale_tril=jnp.sqrt(0.1) * jnp.eye(size)) if full_covariance else None

    diffusion = dpm.Diffusion(kernel, kernel.step, decode if full_covariance else None)
    known = dist.Delta(dpm.reverse_chain("x", diffusion)).mask(jnp.arange(size) < size // 2)
    numpyro.sample("known", known.to_event(1), obs=jnp.full(size, 0.3))


def test_a_full_last_step_of_many_known_coordinates_wants_its_covariance_kept():
    given = {"params": {}, "num_particles": 500}
    with pytest.raises(ValueError, match=r"twist=widened\(full=True\), for known coordinates of 18"):
        smc(lambda: known_half(18, True), "x", **given)(jax.random.key(0))
    log_evidence = 9 * (-0.5 * 0.3**2 - 0.5 * np.log(2 * np.pi))
    for full_covariance, twist in ((True, widened(full=True)), (False, None)):
        p = smc(lambda full=full_covariance: known_half(18, full), "x", **given, twist=twist)(jax.random.key(0))
        assert abs(p.log_evidence - log_evidence) < 4 * p.log_evidence_se < 0.2
        assert (p.samples[:, :9] == 0.3).all()
