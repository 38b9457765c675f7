"""JAX's switches for debugging: a right program does under each what it does without."""

from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import dpm_ppl as dpm
from dpm_ppl.inference import bound, fit, smc, unguided

X0 = np.array([[0.7, -1.2], [0.1, 0.4]])
PARAMS = {"keep": jnp.array([0.4, 0.2])}


def numbers():
    """A fit, a bound and a posterior, of a program of its own: nothing is taken from JAX's caches."""

    def diffusion():
        keep = numpyro.param("keep", jnp.array([0.5, 0.3]))
        kernel = dpm.GaussianKernel(np.array([0.2, 0.9]), (2,))
        return dpm.Diffusion(kernel, lambda x, t: dist.Normal(keep * x, 0.8).to_event(1))

    def denoise(y):
        x0 = dpm.reverse_chain("x", diffusion())
        numpyro.sample("y", dist.Normal(x0, 0.1).to_event(1), obs=y)

    options = {"num_iterations": 1, "batch_size": 2, "num_steps_sampled": 1, "progress": False}
    fitted = fit(*dpm.single_chain(diffusion), X0, key=jax.random.key(0), **options)
    starts = fit(*dpm.single_chain(diffusion), X0, key=jax.random.key(0), num_starts=2, **options)
    terms = bound(diffusion, X0[:1], params=PARAMS, key=jax.random.key(1))
    with pytest.warns(UserWarning, match="NOT be trusted"):
        posterior = smc(denoise, "x", params=PARAMS, num_particles=4, twist=unguided())(jax.random.key(4), X0[0])
    assert np.isnan(terms.elbo_variance).all()
    return {
        "fit": fitted.params["keep"],
        "starts": starts.params["keep"],
        "bound": terms.elbo,
        "summary": np.array(list(terms.summary().values())),
        "evidence": posterior.log_evidence,
    }


@pytest.fixture(scope="module")
def expected():
    return numbers()


@contextmanager
def switched(name):
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, False)


@pytest.mark.parametrize(
    "switch",
    ["jax_debug_nans", "jax_check_tracer_leaks", pytest.param("jax_disable_jit", marks=pytest.mark.slow)],
)
def test_a_fit_a_bound_and_a_posterior(switch, expected):
    with switched(switch):
        came = numbers()
    assert came.keys() == expected.keys()
    for name, value in came.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-9, err_msg=name)
