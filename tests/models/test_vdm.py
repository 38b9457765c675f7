"""The variational diffusion model on Gaussian data with the exact denoiser, where all of the paper is closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import TraceMeanField_ELBO

import dpm_ppl as dpm
from dpm_ppl.inference import bound, fit
from dpm_ppl.models import vdm
from tests.oracles import COV, MEAN, data, worst

FIRST, LAST = 5.0, -4.0
VARIANCE, AXES = np.linalg.eigh(COV)
CURVE = {"log_snr": jnp.array([0.7, -0.9, 0.2, 1.1])}
KEY = jax.random.key(0)


def definition(num_steps, num_segments=4, shift=None):
    """Reverse steps are the posterior at E[x^0 | x^t]; `shift` spoils it by a parameter."""

    def program():
        ends = {"first": FIRST, "last": LAST, "num_segments": num_segments}
        kernel = dpm.GaussianKernel(dpm.schedules.learned_log_snr("log_snr", num_steps, **ends), (2,))
        off = 0.0 if shift is None else numpyro.param("shift", jnp.asarray(shift))

        def reverse(x, t):
            signal = kernel.alpha_bar[t][..., None]
            gain = jnp.sqrt(signal) * VARIANCE / (signal * VARIANCE + 1 - signal)
            x0 = MEAN + off + ((x - jnp.sqrt(signal) * MEAN) @ AXES * gain) @ AXES.T
            return dpm.outputs.data_normal(kernel, x, t, x0)

        return dpm.Diffusion(kernel, reverse)

    return program


def snr(num_steps, log_snr):
    """Signal-to-noise ratio after each step, shape (T,)."""
    share = np.exp(log_snr) / np.exp(log_snr).sum()
    knots = FIRST - (FIRST - LAST) * np.append(0, np.cumsum(share))
    return np.exp(np.interp(np.linspace(0, 1, num_steps), np.linspace(0, 1, len(knots)), knots))


def errors(snr):
    """Variances of x^0 given x^t along the axes of the data, shape (T, 2)."""
    return VARIANCE / (1 + snr[:, None] * VARIANCE)


def terms(num_steps, log_snr):
    """E KL of each step t = 2..T: half the fall of the ratio times the error of denoising (Kingma et al., eq. 13)."""
    ratio = snr(num_steps, log_snr)
    return -0.5 * np.diff(ratio) * errors(ratio)[1:].sum(-1)


LIMIT = (
    0.5 * np.log((1 + np.exp(FIRST) * VARIANCE) / (1 + np.exp(LAST) * VARIANCE)).sum()
)  # of their sum, T to infinity


def test_terms_are_the_closed_forms_and_only_the_diffusions_depends_on_the_curve():
    x0, results = data(8000), {}
    for name, log_snr in (("curve", CURVE["log_snr"]), ("straight", jnp.zeros(4))):
        results[name] = bound(definition(12), x0, params={"log_snr": log_snr}, key=KEY)
        assert worst(np.asarray(results[name].kl), terms(12, np.asarray(log_snr))) < 3
    for name in ("reconstruction", "prior_matching"):  # the ends, exactly
        np.testing.assert_allclose(*(getattr(result, name) for result in results.values()), rtol=1e-9)
    gain = np.asarray(results["curve"].kl.sum(-1) - results["straight"].kl.sum(-1))
    assert abs(gain.mean()) > 5 * gain.std() / np.sqrt(len(gain))  # at 12 steps the curve matters


def test_the_bound_converges_to_continuous_time_as_num_steps_doubles():
    """From below, its distance halving, to a limit that no curve changes; Kingma et al. 2021, eqs. 14 and 18."""
    x0 = data(4000)
    for log_snr in (np.asarray(CURVE["log_snr"]), np.zeros(4)):
        exact = [terms(num_steps, log_snr).sum() - LIMIT for num_steps in (50, 100, 200, 400)]
        np.testing.assert_allclose(np.array(exact[:-1]) / exact[1:], 2, rtol=0.05)
        for num_steps, distance in zip((50, 200), exact[::2], strict=True):
            result = bound(definition(num_steps), x0, params={"log_snr": jnp.asarray(log_snr)}, key=KEY)
            kl = np.asarray(result.kl.sum(-1))
            assert abs(kl.mean() - LIMIT - distance) < 3 * kl.std() / np.sqrt(len(kl))
            assert kl.std() / np.sqrt(len(kl)) < 0.1 * LIMIT


@pytest.mark.parametrize("size", [1, 3])
def test_gradients_of_the_loss_are_the_bounds_and_for_the_schedule_that_of_its_variance(size):
    x0, params = data(7), {**CURVE, "shift": jnp.array([0.2, -0.1])}
    pair = tuple(dpm.subsample_steps(f, size=size) for f in dpm.single_chain(definition(9, shift=[0.2, -0.1])))

    @jax.jit
    def each(params):
        """-ELBO of every datum alone."""
        one = lambda key_and_x: TraceMeanField_ELBO().loss(key_and_x[0], params, *pair, key_and_x[1][None])  # noqa: E731
        return jax.lax.map(one, (jax.random.split(KEY, len(x0)), x0))

    def half_log_variance(log_snr):
        return float(0.5 * len(x0) * jnp.log(jnp.var(each({**params, "log_snr": log_snr}))))

    loss, gradient = jax.jit(jax.value_and_grad(lambda p: vdm.LowVarianceELBO().loss(KEY, p, *pair, x0)))(params)
    plain = jax.grad(lambda params: each(params).sum())(params)
    np.testing.assert_allclose(loss, each(params).sum(), rtol=1e-10)
    np.testing.assert_allclose(gradient["shift"], plain["shift"], rtol=1e-9)
    start, step = params["log_snr"], 1e-5 * jnp.eye(4)
    differences = [(half_log_variance(start + e) - half_log_variance(start - e)) / 2e-5 for e in step]
    np.testing.assert_allclose(gradient["log_snr"], differences, rtol=1e-5)
    assert np.abs(gradient["log_snr"] - plain["log_snr"]).max() > 0.1


def test_a_learned_curve_lowers_the_variance_to_near_its_least_and_does_not_lower_the_bound():
    """E KL_t^2 is known, and by Cauchy and Schwarz the least that its mean over t can be, given the ends."""

    def second_moment(ratio):
        """E (KL_t (T - 1))^2 for t drawn at random: the part of the variance that the curve decides."""
        error, fall = errors(ratio)[1:], -0.5 * np.diff(ratio)
        return len(fall) * np.sum(fall**2 * (error.sum(-1) ** 2 + 2 * (error**2).sum(-1)))

    num_steps = 100
    model, guide = dpm.single_chain(definition(num_steps, 8))
    learned = fit(
        model,
        guide,
        dist.MultivariateNormal(MEAN, COV),
        key=KEY,
        num_iterations=500,
        batch_size=256,
        num_steps_sampled=1,
        learning_rate=0.1,
        loss=vdm.LowVarianceELBO(),
        progress=False,
    ).params["log_snr"]
    fine = np.exp(np.linspace(FIRST, LAST, 20_000))
    error = errors(fine)[1:]
    least = np.sum(-0.5 * np.diff(fine) * np.sqrt(error.sum(-1) ** 2 + 2 * (error**2).sum(-1))) ** 2
    before, after = (second_moment(snr(num_steps, np.asarray(curve))) for curve in (np.zeros(8), learned))
    assert least < after < least + 0.2 * (before - least)
    assert terms(num_steps, np.asarray(learned)).sum() <= terms(num_steps, np.zeros(8)).sum()
