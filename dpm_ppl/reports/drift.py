"""The drift panel: what a reverse step does on average to points of the plane, as arrows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes

from dpm_ppl.diffusion import Diffusion
from dpm_ppl.reports.panels import MODEL, NUM_POINTS, QUIET

CAPTION = (  # what the panel does not say itself
    "Arrows: from where a reverse step starts toward its mean, cut at the length in the title; strong where the "
    "forward chain comes (grey points), pale where it does not, so that nothing was learned."
)


def has_drift(diffusion: Diffusion) -> bool:
    """Whether steps have a mean that all data share: a wrapped normal has none, and beside a context each has its own.

    Nothing is computed.
    """
    if diffusion.context is not None:
        return False
    x = jax.ShapeDtypeStruct((1, *diffusion.event_shape), jnp.result_type(float))
    t = jax.ShapeDtypeStruct((), jnp.int32)
    try:
        jax.eval_shape(lambda x, t: (diffusion.decode(x).mean, diffusion.reverse(x, t).mean), x, t)
    except NotImplementedError:
        return False
    return True


def draw_drift(axes: Axes, diffusion: Diffusion, t: int, *, scale: tuple[float, float], behind: ArrayLike) -> None:
    """Draws what a reverse step does on average, E[x^(t-1) | x^t] - x^t, as arrows over the plane.

    Arrows are strong where the forward chain comes, so that something was learned, and pale elsewhere; long ones are
    cut at the length in the title.

    Args:
        axes: Where to draw.
        diffusion: The diffusion, of event shape (2,).
        t: Step, 1 <= t <= T.
        scale: Least and greatest coordinate of the panel.
        behind: States x^t of forward trajectories, shape (num_states, 2), drawn in grey.
    """
    behind = np.asarray(behind)[:NUM_POINTS]
    line = np.linspace(*scale, 27)[1:-1]
    spacing = float(line[1] - line[0])
    at = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    mean = jax.jit(lambda x: (diffusion.reverse(x, jnp.asarray(t)) if t > 1 else diffusion.decode(x)).mean)
    arrow = np.asarray(mean(jnp.asarray(at))) - at
    length = np.maximum(np.linalg.norm(arrow, axis=-1), 1e-12)
    visited = (np.linalg.norm(at[:, None] - behind[None], axis=-1) < spacing).sum(-1) >= 3
    unit = float(np.quantile(length[visited] if visited.any() else length, 0.9))  # drawn as one and a half spacings
    arrow = arrow * np.minimum(1, 1.3 * unit / length)[:, None]
    axes.scatter(behind[:, 0], behind[:, 1], s=3, color=QUIET, alpha=0.35, linewidths=0, rasterized=True)
    for shown, alpha in ((~visited, 0.3), (visited, 1.0)):
        style: Any = {"angles": "xy", "scale_units": "xy", "scale": unit / (1.5 * spacing), "width": 0.004}
        if shown.any():
            axes.quiver(*at[shown].T, *arrow[shown].T, color=MODEL, alpha=alpha, **style)
    axes.set(xlim=scale, ylim=scale, aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
    axes.set_title(f"Drift, t = {t}; arrows up to {1.3 * unit:.2g}")
