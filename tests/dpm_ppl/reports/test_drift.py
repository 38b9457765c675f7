"""Drift arrows are the mean step where it starts, and say where something was learned."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

import dpm_ppl as dpm
from dpm_ppl.reports.drift import draw_drift
from tests.dpm_ppl.reports.test_fit_figure import RNG, gaussian


def test_drift_arrows_point_along_the_mean_step():
    """The reverse step x -> (0.9 x_1 + 0.2, 1.2 x_2), not symmetric in any way."""
    kernel = gaussian((2,)).kernel
    diffusion = dpm.Diffusion(
        kernel, lambda x, t: dist.Normal(x * jnp.array([0.9, 1.2]) + jnp.array([0.2, 0.0])).to_event(1)
    )
    axes = Figure().subplots()
    behind = RNG.normal(size=(200, 2))
    draw_drift(axes, diffusion, 4, scale=(-3.0, 3.0), behind=behind)
    arrows = [child for child in axes.get_children() if isinstance(child, Quiver)]
    assert len(arrows) == 2  # where something was learned, and elsewhere
    assert sum(len(quiver.U) for quiver in arrows) == 25**2
    full = 0.0
    for quiver in arrows:
        at, arrow = quiver.XY, np.stack([quiver.U, quiver.V], 1)
        step = at * [-0.1, 0.2] + [0.2, 0.0]
        share = np.linalg.norm(arrow, axis=1) / np.linalg.norm(step, axis=1)
        np.testing.assert_allclose(arrow, share[:, None] * step, atol=1e-6)
        assert share.max() <= 1 + 1e-6
        full += (share > 1 - 1e-6).sum()
    assert full > 200  # only long ones are cut
    strong = arrows[1].XY
    assert (np.linalg.norm(strong[:, None] - behind, axis=-1).min(1) < 0.25).all()
