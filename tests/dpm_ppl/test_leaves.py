"""Objects as pytrees of their arrays."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dpm_ppl as dpm
from dpm_ppl.kernels import BernoulliKernel, CategoricalKernel, GaussianKernel

BETA = np.array([0.2, 0.5, 0.9])
KERNELS = {
    "gaussian": GaussianKernel(BETA, (2,)),
    "bernoulli": BernoulliKernel(BETA, (2,), rate=0.3),
    "categorical": CategoricalKernel(BETA, (2,), probs=(0.2, 0.5, 0.3)),
}


class Own(GaussianKernel):
    """A subclass is a pytree too, without being told so."""


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_comes_back(name):
    """What it says is the same bit for bit; its shape and rate are no arrays."""
    kernel = KERNELS[name]
    assert all(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(kernel))
    back = jax.jit(lambda kernel: kernel)(kernel)
    assert (type(back), back.event_shape, back.num_steps) == (type(kernel), (2,), 3)
    x, t = jnp.array([1, 0]), jnp.array([1, 2, 3])
    before, after = (k.posterior(x, x, t).log_prob(x) for k in (kernel, back))
    np.testing.assert_array_equal(before, after)


def test_a_subclass():
    own = jax.vmap(lambda beta: Own(beta, (2,)))(jnp.stack([BETA, BETA / 2]))
    assert isinstance(own, Own)
    np.testing.assert_array_equal(own.beta, [BETA, BETA / 2])


def step(x, t):
    return KERNELS["gaussian"].step(x, t)


def test_vmap_over_diffusions():
    """Of the context and the rates at once: what each alone makes."""

    def made(scale):
        return dpm.Diffusion(
            GaussianKernel(BETA * scale, (2,)), lambda x, t, c: step(x * c[..., None], t), context=scale
        )

    scales, x = jnp.array([0.5, 1.0]), jnp.array([0.3, -2.0])
    together = jax.vmap(made)(scales)
    came = jax.vmap(lambda of: of.decode(x).log_prob(x) + of.reverse(x, jnp.asarray(2)).log_prob(x))(together)
    alone = [made(scale) for scale in scales]
    expected = [of.decode(x).log_prob(x) + of.reverse(x, jnp.asarray(2)).log_prob(x) for of in alone]
    np.testing.assert_allclose(came, expected, rtol=1e-12)
    assert together.has_fixed_last_step


RATES = jnp.stack([BETA, BETA / 2])


def scanned(made):
    """The mean of a step of each of two diffusions that a vmap made."""
    x, t = jnp.array([[1.0, -2.0], [0.5, 3.0]]), jnp.array([2, 3])
    return jax.lax.scan(lambda carry, of: (carry, of.reverse(x, t).mean), 0, jax.vmap(made)(RATES))[1]


@pytest.mark.parametrize("law", ["a method", "a partial"])
def test_a_law_that_is_a_pytree_outlives_what_made_it(law):
    def made(beta):
        kernel = GaussianKernel(beta, (2,))
        reverse = jax.tree_util.Partial(lambda kernel, x, t: kernel.step(x, t), kernel)
        return dpm.Diffusion(kernel, kernel.step if law == "a method" else reverse)

    x, t = np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([2, 3])
    expected = [np.sqrt(1 - np.asarray(beta)[t - 1])[:, None] * x for beta in RATES]
    np.testing.assert_allclose(scanned(made), expected, rtol=1e-12)
    first, second = (jax.tree.structure(made(jnp.asarray(BETA))) for _ in range(2))
    assert law == "a partial" or first == second  # a method is another object each time it is named


def test_a_law_that_closes_over_what_is_gone():
    """It was JAX's error, that something leaked."""

    def made(beta):
        return dpm.Diffusion(GaussianKernel(beta, (2,)), lambda x, t: GaussianKernel(beta, (2,)).step(x, t))

    lost = "holds all that its laws depend on.*such as jax.vmap or jit.*the value is lost.*context.*Partial"
    with pytest.raises(ValueError, match=lost):
        scanned(made)
    with pytest.raises(ValueError, match=lost):
        jax.jit(made)(RATES[0]).reverse(jnp.ones((1, 2)), jnp.array([2]))
    inside = jax.vmap(lambda beta: made(beta).reverse(jnp.ones((1, 2)), jnp.array([2])).mean)(RATES)
    np.testing.assert_allclose(inside[:, 0, 0], np.sqrt(1 - np.asarray(RATES)[:, 1]), rtol=1e-12)


def test_what_is_no_array_tells_objects_apart():
    """The same function and numbers make the same kind of object; others another, which JAX then compiles anew."""
    kernel = KERNELS["gaussian"]
    kinds = [
        jax.tree.structure(dpm.Diffusion(of, reverse))
        for of, reverse in [(kernel, step), (GaussianKernel(BETA / 2, (2,)), step), (kernel, lambda x, t: step(x, t))]
    ]
    assert (kinds[0] == kinds[1], kinds[0] == kinds[2]) == (True, False)
    assert hash(kinds[0]) == hash(kinds[1])
    assert jax.tree.structure(BernoulliKernel(BETA, (2,), rate=0.4)) != jax.tree.structure(KERNELS["bernoulli"])
    single = [jax.tree.structure(BernoulliKernel(BETA, (2,), rate=np.float32(0.3))) for _ in range(2)]
    assert single[0] == single[1]


def test_a_changed_copy_of_what_came_back_is_another():
    """Also where its arrays lie as they did: its numbers are its own."""
    kernel = jax.jit(lambda kernel: kernel)(KERNELS["bernoulli"])
    other = copy.copy(kernel)
    object.__setattr__(other, "rate", 0.4)
    assert (jax.jit(lambda of: of)(other).rate, jax.jit(lambda of: of)(kernel).rate) == (0.4, 0.3)
    three = dpm.Diffusion(KERNELS["gaussian"], lambda x, t, c: step(x, t), context=jnp.ones(3)).of_batch((3,))
    five = jax.tree.map(lambda leaf: leaf, three).beside(jnp.ones(5), (5,))
    assert jax.tree.map(lambda leaf: leaf, five).batch_shape == (5,)


def test_a_kernel_that_is_no_pytree_goes_along_as_it_is():
    class Plain:
        num_steps, event_shape = 3, (2,)
        stationary, step = KERNELS["gaussian"].stationary, KERNELS["gaussian"].step

    kernel = Plain()
    diffusion = dpm.Diffusion(kernel, step, context=None)
    assert jax.tree.leaves(diffusion) == []
    assert jax.jit(lambda of: of)(diffusion).kernel is kernel


def test_placeholders_in_place_of_arrays():
    """JAX takes apart what it has filled with something else; and a number in the place of an array stays a leaf."""
    diffusion = dpm.Diffusion(KERNELS["gaussian"], lambda x, t, c: step(x, t), context={"c": jnp.ones(3)})
    structure = jax.tree.structure(diffusion)
    assert structure.num_leaves == 3  # rates, what they leave, context
    assert jax.tree.structure(jax.tree.unflatten(structure, [object()] * 3)) == structure
    axes = jax.tree.map(lambda leaf: 0, diffusion)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), diffusion)
    sums = jax.vmap(lambda of: of.kernel.beta.sum() + of.context["c"].sum(), in_axes=(axes,))(stacked)
    np.testing.assert_allclose(sums, [4.6, 9.2], rtol=1e-12)
