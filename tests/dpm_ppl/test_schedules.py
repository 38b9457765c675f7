"""Each schedule against its formula; the learned one against what it promises whatever is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.distributions.kl import kl_divergence

import dpm_ppl as dpm
from dpm_ppl.schedules import LearnedRates, constant_fraction, cosine, learned, learned_log_snr, linear, log_snr

FIXED = [constant_fraction, linear, cosine, log_snr]


def signal(beta):
    """alpha_bar_1..T, by the product itself."""
    return np.cumprod(1 - np.asarray(beta))


def with_parameter(value, num_steps, **options):
    """The rates that a value of the parameter gives."""
    return handlers.substitute(handlers.seed(learned, 0), data={"beta": value})("beta", num_steps, **options)


def at_start(num_steps, **options):
    with handlers.seed(rng_seed=0):
        return np.asarray(learned("beta", num_steps, **options))


# Formulas


@pytest.mark.parametrize("num_steps", [1, 2, 7, 2000])
def test_constant_fraction_erases_the_same_share_of_the_signal_each_step(num_steps):
    beta = constant_fraction(num_steps)
    np.testing.assert_allclose(signal(beta), 1 - np.arange(1, num_steps + 1) / num_steps, rtol=1e-10, atol=1e-15)
    assert beta[-1] == 1


def test_cosine_follows_its_curve_until_it_is_clipped():
    def f(t):
        return np.cos((t / 50 + 0.02) / 1.02 * np.pi / 2) ** 2

    beta = cosine(50, offset=0.02, largest=0.9)
    clipped = 1 - f(np.arange(1, 51)) / f(np.arange(50)) > 0.9
    assert 0 < clipped.sum() < 5
    t = np.arange(1, 51)[~clipped]
    np.testing.assert_allclose(signal(beta)[~clipped], f(t) / f(0), rtol=1e-10)
    np.testing.assert_array_equal(beta[clipped], 0.9)


def test_cosine_starts_as_in_the_paper():
    """Nichol and Dhariwal 2021, s = 0.008, clipped at 0.999."""
    beta = cosine(1000)
    f0, f1 = (np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2 for t in (0, 1))
    np.testing.assert_allclose(beta[[0, -1]], [1 - f1 / f0, 0.999], rtol=1e-12)


def test_log_snr_is_evenly_spaced():
    after = signal(log_snr(9, first=3.0, last=-5.0))
    np.testing.assert_allclose(np.log(after / (1 - after)), np.linspace(3.0, -5.0, 9), atol=1e-12)


def test_linear_is_evenly_spaced():
    np.testing.assert_allclose(linear(4, first=0.1, last=0.7), [0.1, 0.3, 0.5, 0.7], rtol=1e-12)
    np.testing.assert_allclose(linear(1000)[[0, 1, -1]], [1e-4, 1e-4 + 0.0199 / 999, 0.02], rtol=1e-12)  # Ho et al.


@pytest.mark.parametrize("schedule", FIXED)
@pytest.mark.parametrize("num_steps", [1, 2, 1000])
def test_every_rate_is_one_that_a_kernel_takes(schedule, num_steps):
    beta = schedule(num_steps)
    assert isinstance(beta, np.ndarray)  # known while a program is traced
    assert dpm.GaussianKernel(beta, ()).num_steps == num_steps
    assert ((beta > 0) & (beta <= 1)).all()


@pytest.mark.parametrize(
    "schedule",
    [*FIXED, lambda num_steps: learned("beta", num_steps), lambda num_steps: learned_log_snr("beta", num_steps)],
)
class TestBadNumberOfSteps:
    @pytest.mark.parametrize("num_steps", [2.0, "2", None, True, np.array([2, 3])])
    def test_kind(self, schedule, num_steps):
        with pytest.raises(TypeError, match="Expected `num_steps` to be an integer; got"):
            schedule(num_steps)

    @pytest.mark.parametrize("num_steps", [0, -3])
    def test_value(self, schedule, num_steps):
        with pytest.raises(ValueError, match=f"Expected `num_steps` to be at least [12]; got {num_steps}"):
            schedule(num_steps)

    def test_numpy_integer(self, schedule):
        with handlers.seed(rng_seed=0):
            np.testing.assert_array_equal(schedule(np.int64(3)), schedule(3))


def test_a_log_snr_that_rises_is_refused():
    with pytest.raises(ValueError, match="Expected the log-SNR to fall, first > last; got first=-2.0, last=3.0"):
        log_snr(5, first=-2.0, last=3.0)


# The learned schedule


@pytest.mark.parametrize(
    "parameter", [[0.3, -1.2, 2.0, 0.0], [40.0, -40, 0, 7], [-2e3, 0, 0, 2e3], [1e6, 1e6, 1e6, 1e6]]
)
@pytest.mark.parametrize(("beta_1", "alpha_bar_T"), [(1e-3, 1e-3), (0.2, 0.05)])
def test_whatever_is_learned(parameter, beta_1, alpha_bar_T):
    beta = with_parameter(jnp.array(parameter), 5, beta_1=beta_1, alpha_bar_T=alpha_bar_T)
    assert beta[0] == beta_1
    assert ((beta > 0) & (beta < 1)).all()
    np.testing.assert_allclose(signal(beta)[-1], alpha_bar_T, rtol=1e-9)


@pytest.mark.parametrize("parameter", [[0.3, -1.2, 2.0, 0.0], [90.0, -90, 0, 7]])
def test_whatever_is_learned_in_single_precision(parameter):
    with jax.enable_x64(False):
        beta = with_parameter(jnp.array(parameter), 5)
        assert beta.dtype == jnp.float32
        assert ((beta > 0) & (beta < 1)).all()
        np.testing.assert_allclose(np.prod(1 - np.asarray(beta)), 1e-3, rtol=1e-3)
        kernel = dpm.GaussianKernel(beta, ())
        assert all(np.isfinite(c).all() for c in kernel.posterior_coefficients(np.arange(2, 6)))


def test_shares_are_those_of_the_parameter():
    """-log(1 - beta_t) = share_t log((1 - beta_1) / alpha_bar_T), t >= 2: asymmetric shares show a reversed order."""
    shares = np.array([0.1, 0.2, 0.3, 0.4])
    beta = with_parameter(jnp.log(3 * shares), 5, beta_1=0.01, alpha_bar_T=0.002)
    np.testing.assert_allclose(-np.log1p(-beta[1:]), shares * np.log(0.99 / 0.002), rtol=1e-12)


def test_starts_at_constant_fraction():
    """Every step of it, but for the first, which is fixed, and the last, which would leave no signal at all."""
    beta = at_start(40)
    np.testing.assert_allclose(beta[1:-1], constant_fraction(40)[1:-1], rtol=1e-12)
    np.testing.assert_allclose(beta[-1], 1 - 1e-3 / np.prod(1 - beta[:-1]), rtol=1e-10)


@pytest.mark.parametrize(
    "start", [linear(6, first=0.05, last=0.3), log_snr(5, first=2.0, last=-3.0), linear(2, first=0.3, last=0.2)]
)
def test_starts_at_another_schedule_in_proportion(start):
    """Noise -log(1 - beta) in proportion to the start's; and the start itself where its end is the one asked for."""
    noise, kept = -np.log1p(-at_start(len(start), start=start)[1:]), -np.log1p(-start[1:])
    np.testing.assert_allclose(noise / noise.sum(), kept / kept.sum(), rtol=1e-10)
    same = at_start(len(start), start=start, beta_1=start[0], alpha_bar_T=signal(start)[-1])
    np.testing.assert_allclose(same, start, rtol=1e-10)


@pytest.mark.parametrize("start", [constant_fraction(2000), linear(1000), cosine(1000), constant_fraction(2)])
def test_a_start_with_more_noise_than_asked_for_keeps_its_shape(start):
    """All noise is scaled down together, the last step's no less than the one before."""
    noise = -np.log1p(-at_start(len(start), start=start)[1:])
    assert (np.diff(noise) > -1e-15).all()
    expected = -np.log1p(-start[1:-1])
    np.testing.assert_allclose(noise[:-1] / noise[:-1].sum(), expected / expected.sum(), rtol=1e-9)
    np.testing.assert_allclose(noise.sum(), np.log(0.999 / 1e-3), rtol=1e-9)


def test_gradient_through_the_schedule():
    """A KL sum and a likelihood, through the rates, against central differences: the path that SVI learns by."""
    x0, noise = np.array([1.3, -0.4]), np.array([[0.2, -1.0], [1.1, 0.3], [-0.7, 0.8], [0.4, 0.1]])

    @jax.jit
    def objective(parameter):
        beta, t = with_parameter(parameter, 5, beta_1=0.05, alpha_bar_T=0.02), np.arange(2, 6)
        kernel = dpm.GaussianKernel(beta, (2,))
        marginal = kernel.marginal(x0, t).base_dist
        xt = marginal.loc + marginal.scale * noise
        divergences = kl_divergence(kernel.posterior(x0, xt, t), kernel.step(xt, t))
        return divergences.sum() + kernel.marginal(x0, 3).log_prob(x0)

    parameter = jnp.array([0.3, -0.5, 0.8, 0.1])
    differences = [(objective(parameter + e) - objective(parameter - e)) / 2e-5 for e in 1e-5 * np.eye(4)]
    gradient = jax.grad(objective)(parameter)
    np.testing.assert_allclose(gradient, differences, rtol=1e-6)
    assert (abs(gradient) > 1e-2).all()
    np.testing.assert_allclose(gradient.sum(), 0.0, atol=1e-9)  # adding a constant to the logits changes nothing


# The learned log-SNR


def log_snr_with(parameter, num_steps, **options):
    """The rates that a value of the parameter of `learned_log_snr` gives."""
    program = handlers.substitute(handlers.seed(learned_log_snr, 0), data={"beta": jnp.asarray(parameter)})
    return program("beta", num_steps, num_segments=len(parameter), **options)


def after(beta):
    """Log-SNR after each step, by the product of what is kept."""
    kept = signal(beta)
    return np.log(kept) - np.log1p(-kept)


@pytest.mark.parametrize("num_steps", [2, 3, 12, 500])
def test_learned_log_snr_interpolates_between_its_shares(num_steps):
    """Shares that fall and rise, asymmetric, at steps that do and do not meet the ends of segments."""
    shares = np.array([0.4, 0.1, 0.3, 0.2])
    beta = log_snr_with(np.log(2.5 * shares), num_steps, first=5.0, last=-3.0)
    knots = 5 - 8 * np.append(0, np.cumsum(shares))
    at = np.arange(num_steps) / (num_steps - 1)
    np.testing.assert_allclose(after(beta), np.interp(at, np.linspace(0, 1, 5), knots), rtol=1e-9, atol=1e-9)


def test_learned_log_snr_starts_evenly_spaced():
    with handlers.seed(rng_seed=0):
        beta = learned_log_snr("beta", 30, first=7.0, last=-4.0)
    np.testing.assert_allclose(beta, log_snr(30, first=7.0, last=-4.0), rtol=1e-9)


@pytest.mark.parametrize("parameter", [[0.3, -1.2, 2.0], [40.0, -40, 7], [-2e3, 0, 2e3], [1e6, 1e6, 1e6]])
@pytest.mark.parametrize(("first", "last"), [(13.0, -5.0), (1.0, -12.0)])
def test_ends_of_the_log_snr_stay_whatever_is_learned(parameter, first, last):
    beta = log_snr_with(parameter, 7, first=first, last=last)
    assert ((beta > 0) & (beta < 1)).all()
    np.testing.assert_allclose(beta[0], 1 / (1 + np.exp(first)), rtol=1e-12)
    np.testing.assert_allclose(signal(beta)[-1], 1 / (1 + np.exp(-last)), rtol=1e-9)


def test_learned_log_snr_in_single_precision_at_many_steps():
    """Rates from differences of log-SNR, each as exact as its own digits, where those of alpha_bar have none left."""
    parameter, options = np.array([0.3, -0.5, 0.8]), {"first": 13.0, "last": -7.0}
    exact = log_snr_with(parameter, 20_000, **options)
    with jax.enable_x64(False):
        beta = log_snr_with(parameter.astype(np.float32), 20_000, **options)
        assert beta.dtype == jnp.float32
        np.testing.assert_allclose(beta, exact, rtol=2e-4)
        np.testing.assert_allclose(jnp.sum(jnp.log1p(-beta)), jnp.log(1 / (1 + np.exp(7.0))), rtol=1e-3)


def test_gradient_through_the_learned_log_snr():
    parameter = jnp.array([0.3, -0.5, 0.8])

    def objective(parameter):
        beta = log_snr_with(parameter, 6, first=4.0, last=-3.0)
        return jnp.sum(jnp.log(beta) * jnp.arange(6) ** 2)

    differences = [(objective(parameter + e) - objective(parameter - e)) / 2e-5 for e in 1e-5 * np.eye(3)]
    np.testing.assert_allclose(jax.grad(objective)(parameter), differences, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"first": -2.0, "last": 3.0}, ValueError, "log-SNR to fall, .*got first=-2.0, last=3.0"),
        ({"first": np.inf}, ValueError, "both finite; got first=inf"),
        ({"last": np.nan}, ValueError, "got first=6.0, last=nan"),
        ({"num_segments": 0}, ValueError, "`num_segments` to be at least 1; got 0"),
        ({"num_segments": 2.0}, TypeError, "`num_segments` to be an integer; got 2.0"),
    ],
)
def test_bad_options_of_the_learned_log_snr(options, error, message):
    with handlers.seed(rng_seed=0), pytest.raises(error, match=message):
        learned_log_snr("beta", 4, **options)


def test_learned_rates_are_known_by_their_type_and_stay_so_under_arithmetic():
    with handlers.seed(rng_seed=0):
        beta, rates = learned("beta", 3), learned_log_snr("log_snr", 3)
    assert isinstance(rates, LearnedRates)
    numbers = np.array(beta)
    for changed, expected in (
        (beta + 0.0, numbers),
        (1.0 * beta, numbers),
        (np.array([0.5, 1.0, 0.5]) * beta, numbers * [0.5, 1.0, 0.5]),
        (1 - beta, 1 - numbers),
        (beta / 3, numbers / 3),
        (2 / beta, 2 / numbers),
        (beta**2, numbers**2),
        (0.5**beta, 0.5**numbers),
        (-beta, -numbers),
        (beta - rates, numbers - np.array(rates)),
        (beta[::-1], numbers[::-1]),
    ):
        assert isinstance(changed, LearnedRates)
        np.testing.assert_allclose(np.array(changed), expected, rtol=1e-12)
    assert not any(isinstance(other, LearnedRates) for other in (constant_fraction(3), np.array(beta), None))
    assert jax.jit(lambda: jnp.array(isinstance(1.0 * handlers.seed(learned, 0)("beta", 3), LearnedRates)))()
    assert isinstance(jax.jit(lambda beta: beta)(beta), LearnedRates)  # a pytree
    np.testing.assert_array_equal(jnp.cumsum(beta), jnp.cumsum(beta.rates))
    assert beta.sum() == beta.rates.sum()
    assert len(beta) == beta.shape[0] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta_1": 0.0}, "0 < beta_1 < 1 .*got 0.0 and 0.001"),
        ({"beta_1": 1.0}, "0 < beta_1 < 1 .*got 1.0 and 0.001"),
        ({"beta_1": np.nan}, "0 < beta_1 < 1 .*got nan"),
        ({"alpha_bar_T": 0.0}, "0 < alpha_bar_T < 1 - beta_1; got 0.001 and 0.0"),
        ({"beta_1": 0.5, "alpha_bar_T": 0.5}, "0 < alpha_bar_T < 1 - beta_1; got 0.5 and 0.5"),
        ({"start": constant_fraction(3)}, r"Expected `start` to hold 4 rates in \(0, 1\]; got shape \(3,\)"),
        ({"start": np.ones((4, 1))}, r"Expected `start` to hold 4 rates in \(0, 1\]; got shape \(4, 1\)"),
        ({"start": np.array([0.1, 0.0, 0.1, 0.1])}, r"Expected `start` to hold 4 rates in \(0, 1\]"),
        ({"start": np.array([0.1, np.nan, 0.1, 0.1])}, r"Expected `start` to hold 4 rates in \(0, 1\]"),
    ],
)
def test_bad_options_of_the_learned_schedule(options, message):
    with handlers.seed(rng_seed=0), pytest.raises(ValueError, match=message):
        learned("beta", 4, **options)
