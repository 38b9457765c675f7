"""Strips show a datum, what noise makes of it, and a sample, on the data's own range."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

import dpm_ppl as dpm
from dpm_ppl.programs import Program
from dpm_ppl.reports.strips import strips, strips_figure

RNG = np.random.default_rng(0)


def program(path, data, *, num_steps=20):
    def diffusion():
        kernel = dpm.GaussianKernel(dpm.schedules.linear(num_steps, first=0.01, last=0.9), data.shape[1:])
        level = numpyro.param("level", jnp.zeros(()))

        def law(x):
            return dist.Normal(level + 0 * x, 0.5).to_event(data.ndim - 1)

        return dpm.Diffusion(kernel, lambda x, t: law(x), law)

    model, guide = dpm.single_chain(diffusion)
    return Program("p", path, "", model, guide, lambda: data, diffusion)


def images_of(figure):
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


@pytest.mark.parametrize("shape", [(4, 6), (4, 4, 1), (4, 4, 3)])
def test_strips_begin_with_a_datum_and_end_with_a_sample(tmp_path, shape):
    """In between a forward trajectory, which forgets the datum; of a model whose samples lie far from the data."""
    data = RNG.uniform(-1, 3, (30, *shape)).astype(np.float32)
    figure = strips(program(tmp_path / "mine.py", data), data, {"level": jnp.asarray(50.0)}, key=jax.random.key(0))
    assert_legible_strips(figure)
    titles = [axes.get_title() for axes in figure.axes[:11]]
    assert titles == ["data", *(f"t = {t}" for t in range(2, 21, 2))]
    shown = images_of(figure)
    low, high = data.min(), data.max()
    scaled = np.clip((data - low) / (high - low), 0, 1) if shape[-1] == 3 else data
    flat, rows = scaled.reshape(30, -1), [image.reshape(-1) for image in shown[:11]]
    (datum,) = np.flatnonzero(np.abs(flat - rows[0]).max(1) < 1e-6)
    likeness = [np.corrcoef(flat[datum], row)[0, 1] for row in rows]
    assert likeness[1] > 0.95  # noise of variance 0.03 on a datum of variance 4/3
    assert abs(likeness[-1]) < 0.7
    for axes, image in zip(figure.axes[11:], shown[11:], strict=True):
        if shape[-1] == 3:
            assert (image == 1).mean() > 0.9 or axes is figure.axes[-1]  # white: beyond the data's range
        else:
            assert axes.images[0].get_clim() == pytest.approx((low, high))
    sample = shown[11]
    assert sample.min() == 1 if shape[-1] == 3 else sample.min() > 45


def assert_legible_strips(figure):
    figure.draw_without_rendering()
    assert [axes.get_ylabel() for axes in (figure.axes[0], figure.axes[11])] == ["Forward →", "← Reverse"]


def test_all_panels_have_the_range_that_is_given():
    states = {t: RNG.normal(size=(3, 3)) * (1 + t) for t in (0, 2, 5)}
    figure = strips_figure(states, states, support=constraints.real, scale=(-1.5, 2.0), title="p")
    assert {axes.images[0].get_clim() for axes in figure.axes} == {(-1.5, 2.0)}
    for axes, t in zip(figure.axes, (0, 2, 5, 0, 2, 5), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), states[t])


def test_few_steps_are_all_shown(tmp_path):
    data = RNG.integers(0, 2, (9, 3, 3)).astype(np.float32)
    figure = strips(
        program(tmp_path / "p.py", data, num_steps=1), data, {"level": jnp.zeros(())}, key=jax.random.key(1)
    )
    assert len(figure.axes) == 4


def test_strips_at_other_times_are_refused():
    one = {0: np.zeros((2, 2)), 3: np.zeros((2, 2))}
    with pytest.raises(ValueError, match=r"got \[0, 3\] and \[0, 4\]"):
        strips_figure(one, {0: one[0], 4: one[3]}, support=constraints.real, scale=(0.0, 1.0))
