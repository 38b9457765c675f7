"""The figure of the bound's two forms: what each costs in variance as T grows, and what a misprint costs in bits."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpm_ppl.reports.panels import DATA, LIMIT, MODEL, QUIET

_COLOURS, _STYLES = (MODEL, DATA, LIMIT, QUIET), ("-", "--", ":")

Lines = Mapping[str, Mapping[str, Sequence[float]]]


def bound_forms_figure(num_steps: Sequence[int], variances: Lines, bounds: Lines, *, title: str = "") -> Figure:
    """Variances of estimates of the bound against T, and the bounds themselves.

    Args:
        num_steps: Numbers of steps T, shape (num,), rising.
        variances: Variance of one estimate for a datum, in nats^2, by model, a style of line each, and by form of the
            bound, a colour each; of shape (num,).
        bounds: The bounds, in nats per datum, by the same.
        title: Heading.

    Returns:
        A figure that belongs to no window; save it with `savefig`.

    Raises:
        ValueError: a line is of another length than num_steps.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    _draw(left, num_steps, variances, unit=1.0)
    left.set(yscale="log", ylabel="variance of one estimate (nats²)")
    _draw(right, num_steps, bounds, unit=np.log(2))
    right.set_yscale("symlog", linthresh=10)
    right.set_ylabel("bound (bits per datum)")
    return figure


def _draw(axes: Axes, num_steps: Sequence[int], lines: Lines, *, unit: float) -> None:
    for i, (model, forms) in enumerate(lines.items()):
        for j, (form, values) in enumerate(forms.items()):
            if np.shape(values) != np.shape(num_steps):
                raise ValueError(
                    f"Expected {form!r} of shape {np.shape(num_steps)}, one value for each of num_steps; "
                    f"got {np.shape(values)}."
                )
            style, colour = _STYLES[i % len(_STYLES)], _COLOURS[j % len(_COLOURS)]
            scaled = np.asarray(values) / unit
            axes.plot(np.asarray(num_steps), scaled, style, marker="o", color=colour, label=f"{form}, {model}")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("number of steps T")
    axes.legend(frameon=False)
