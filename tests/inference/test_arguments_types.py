"""Data of any numeric type: an evaluation is that of the same numbers in the widest type, or the type is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import dpm_ppl as dpm
from dpm_ppl import inference
from dpm_ppl.inference.arguments import require_batch

BETA = np.array([0.1, 0.4, 0.6])
KEY = jax.random.key(0)
WHOLE = [bool, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
HALF = [np.float16, jnp.bfloat16]


def points():
    """Real numbers."""
    kernel, offset = dpm.GaussianKernel(BETA, (2,)), numpyro.param("offset", jnp.array([0.1, -0.2]))
    return dpm.Diffusion(kernel, lambda x, t: dist.Normal(0.8 * x + offset, 0.6).to_event(1))


def bits():
    """Bits."""
    kernel, offset = dpm.BernoulliKernel(BETA, (3,), rate=0.3), numpyro.param("offset", jnp.array([0.3, -0.4, 0.1]))
    return dpm.Diffusion(kernel, lambda x, t: dist.Bernoulli(logits=1.5 * x + offset).to_event(1))


def letters():
    """Three letters, of which the data have the first two."""
    kernel = dpm.CategoricalKernel(BETA, (3,), probs=[0.2, 0.3, 0.5])
    offset = numpyro.param("offset", jnp.array([0.3, -0.4, 0.1]))
    return dpm.Diffusion(kernel, lambda x, t: dist.Categorical(logits=2.0 * jax.nn.one_hot(x, 3) + offset).to_event(1))


DATA = {points: np.array([[0.5, -1.25], [2.0, 0.25]]), bits: np.array([[1, 0, 1], [0, 0, 1]])}
DATA[letters] = DATA[bits]


@pytest.mark.parametrize("dtype", [*WHOLE, *HALF, np.float32, np.float64])
@pytest.mark.parametrize("definition", DATA)
@pytest.mark.parametrize("double", [True, False])
def test_a_type_passes_without_loss_or_is_refused(definition, dtype, double):
    """Where every evaluation begins: nothing is left in a type too narrow to count states, or to sum terms."""
    x0 = np.abs(DATA[definition]).astype(dtype)
    with jax.enable_x64(new_val=double):
        kernel = inference.instantiate(definition, {"offset": jnp.zeros(len(x0[0]))}).kernel
        if definition is points and dtype in WHOLE:
            with pytest.raises(TypeError, match=rf"floating-point numbers, .*; got {jnp.asarray(x0).dtype}\."):
                require_batch(kernel, x0)
            return
        passed = require_batch(kernel, x0)
    assert passed.dtype.itemsize >= 4
    np.testing.assert_array_equal(np.asarray(passed, float), x0.astype(float))


def evaluations(definition, x0):
    """Everything that takes data, of the same key."""
    params = {"offset": np.linspace(-0.2, 0.3, len(x0[0]))}
    of = {"params": params, "key": KEY}
    pair = dpm.single_chain(definition)
    yield inference.log_likelihood(definition, x0, num_particles=50, progress=False, **of).log_weight
    yield inference.bound(definition, x0, num_samples=3, **of).elbo
    yield inference.entropy_bounds(definition, x0, **of).lower
    yield inference.importance_weights(*pair, x0, num_particles=5, progress=False, **of)
    fitted = inference.fit(
        *pair,
        x0,
        key=KEY,
        num_iterations=2,
        batch_size=2,
        num_steps_sampled=2,
        optimizer=optax.sgd(0.1),
        progress=False,
    )
    yield np.append(fitted.losses, fitted.params["offset"])


@pytest.mark.parametrize(("definition", "dtype"), [(points, jnp.bfloat16), (bits, bool), (letters, np.uint8)])
def test_an_evaluation_is_that_of_the_same_numbers(definition, dtype):
    widest = DATA[definition]
    for narrow, wide in zip(
        evaluations(definition, widest.astype(dtype)), evaluations(definition, widest), strict=True
    ):
        np.testing.assert_allclose(narrow, wide, rtol=1e-12)
