"""Figures show what they are given: counts, means, axes against the arrays; every kind of state is drawn."""

import io

import matplotlib.image
import numpy as np
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

import dpm_ppl as dpm
from dpm_ppl.reports.fit_figure import draw_loss, draw_step_bound, fit_figure, smoothed
from dpm_ppl.reports.samples import samples_figure

BITS = np.log(2)


RNG = np.random.default_rng(0)


def gaussian(event_shape, num_steps=6):
    kernel = dpm.GaussianKernel(dpm.schedules.linear(num_steps, first=0.1, last=0.5), event_shape)
    return dpm.Diffusion(kernel, lambda x, t: kernel.step(x, t))


def binary(event_shape, num_steps=6):
    kernel = dpm.BernoulliKernel(dpm.schedules.constant_fraction(num_steps), event_shape, rate=0.2)
    return dpm.Diffusion(kernel, lambda x, t: kernel.step(x, t))


def drawn(diffusion, x0, *, data=None, num_data=30):
    """The figure of a fit whose losses and trajectories are made up: `x0` in other orders."""
    times = {0, diffusion.num_steps // 2, diffusion.num_steps}
    return fit_figure(
        diffusion,
        forward={t: x0 if t == 0 else RNG.permutation(x0) for t in times},
        reverse={t: RNG.permutation(x0) for t in times},
        losses=3 + RNG.normal(size=200) ** 2,
        kl=RNG.gamma(2.0, size=(num_data, diffusion.num_steps - 1)),
        elbo=-2.5,
        null=-6.0,
        entropy_limit=-2.0,
        data=data,
        title="a fit",
    )


def pixels(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    assert file.getvalue()[:8] == b"\x89PNG\r\n\x1a\n"
    file.seek(0)
    return matplotlib.image.imread(file)


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


def assert_legible(figure):
    image = pixels(figure)
    assert len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 50
    for axes in figure.axes:
        assert axes.get_title()
        if axes.axison and axes.get_subplotspec().is_first_col() and axes.get_subplotspec().is_last_row():
            assert axes.get_xlabel()
            assert axes.get_ylabel()


@pytest.mark.parametrize(
    ("diffusion", "x0"),
    [
        (gaussian(()), RNG.normal(size=50)),
        (gaussian((1,)), RNG.normal(size=(50, 1))),
        (gaussian((3,)), RNG.normal(size=(50, 3))),
        (gaussian((4, 5)), RNG.normal(size=(7, 4, 5))),
        (gaussian((4, 4, 3)), RNG.normal(size=(80, 4, 4, 3))),
        (gaussian((2, 2, 2)), RNG.normal(size=(9, 2, 2, 2))),
        (binary((4,)), RNG.integers(0, 2, (50, 4))),
        (binary((3, 3, 1)), RNG.integers(0, 2, (50, 3, 3, 1))),
        (binary(()), RNG.integers(0, 2, 50)),
        (gaussian((2,), num_steps=1), RNG.normal(size=(20, 2))),
        (gaussian((2,), num_steps=2), RNG.normal(size=(20, 2))),
        (binary((4,), num_steps=600), RNG.integers(0, 2, (1, 4))),
    ],
    ids=lambda value: f"{value.event_shape}, T = {value.num_steps}" if isinstance(value, dpm.Diffusion) else "",
)
def test_every_kind_of_state_has_its_figures(diffusion, x0):
    figure = drawn(diffusion, x0)
    assert_legible(figure)
    assert {"Data, t = 0", "Samples, t = 0", "Training", "The bound, step by step"} <= set(titles(figure))
    support = diffusion.kernel.stationary().support
    assert_legible(samples_figure(x0, support=support, x0=x0 * 0, title="samples"))
    assert titles(samples_figure(x0, support=support)) == [f"{len(x0)} samples"]
    whole = samples_figure(x0, support=support, losses=np.linspace(3, 1, 50), elbo=-1.2)
    assert_legible(whole)
    assert titles(whole) == [f"{len(x0)} samples", "Training"]


def heartbeat_samples():
    data = dpm.Heartbeat(length=6, period=3)
    valid = np.asarray(data.enumerate_support())
    samples = np.concatenate([np.repeat(valid, [5, 0, 12], axis=0), np.ones((3, 6), int)])
    return data, RNG.permutation(samples)


@pytest.mark.parametrize("which", ["fit", "samples"])
def test_frequencies_drawn_are_the_counts(which):
    data, samples = heartbeat_samples()
    diffusion = binary((6,))
    if which == "fit":
        states = {t: samples for t in (0, 3, 6)}
        figure = fit_figure(
            diffusion,
            forward=states,
            reverse=states,
            losses=np.ones(9),
            kl=np.ones((4, 5)),
            elbo=-1.0,
            null=-2.0,
            data=data,
        )
    else:
        figure = samples_figure(samples, support=diffusion.kernel.stationary().support, data=data)
    assert_legible(figure)
    (axes,) = (axes for axes in figure.axes if "How often" in axes.get_title())
    (bars,) = (bars for bars in axes.containers if isinstance(bars, BarContainer))
    share = np.array([5, 0, 12, 3]) / 20
    np.testing.assert_allclose([bar.get_height() for bar in bars], share)
    ends = np.array([segment[:, 1] for segment in bars.errorbar.lines[2][0].get_segments()])
    np.testing.assert_allclose(ends[:, 1] - ends[:, 0], 2 * np.sqrt(share * (1 - share) / 20), atol=1e-12)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["100100", "010010", "001001", "invalid"]
    assert "15.0%" in {text.get_text() for text in axes.texts}
    lines = next(lines for lines in axes.collections if lines.get_label() == "data")
    np.testing.assert_allclose([segment[0, 1] for segment in lines.get_segments()], 1 / 3)


def test_bound_per_step_is_the_mean_and_its_error_in_bits():
    kl = RNG.gamma(2.0, size=(100, 7)) * np.arange(1, 8)
    axes = Figure().subplots()
    draw_step_bound(axes, kl)
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), np.arange(2, 9))
    np.testing.assert_allclose(line.get_ydata(), kl.mean(0) / BITS)
    band = axes.collections[0].get_paths()[0].vertices
    top = band[:, 1][band[:, 0] == 5].max()
    assert top == pytest.approx((kl[:, 3].mean() + 2 * kl[:, 3].std(ddof=1) / 10) / BITS)
    assert axes.get_yscale() == "linear"
    assert f"{kl.sum(1).mean() / BITS:.3f} bits" in line.get_label()


def test_many_steps_are_averaged_with_their_neighbours():
    kl = RNG.gamma(2.0, size=(20, 1999))
    axes = Figure().subplots()
    draw_step_bound(axes, kl)
    (line,) = axes.lines
    assert len(line.get_xdata()) == 250
    np.testing.assert_allclose(line.get_xdata()[:2], [5.5, 13.5])  # t = 2..9 and 10..17
    np.testing.assert_allclose(line.get_ydata()[1], kl[:, 8:16].mean() / BITS)
    np.testing.assert_allclose(line.get_ydata()[-1], kl[:, 1992:].mean() / BITS)


def test_one_costly_step_does_not_hide_the_rest():
    axes = Figure().subplots()
    draw_step_bound(axes, np.ones((10, 9)) * np.array([100.0] + [1.0] * 8))
    assert axes.get_yscale() == "log"


def test_smoothing_averages_windows_that_grow():
    values = RNG.normal(size=5000)
    iterations, mean, low, high = smoothed(values)
    assert iterations[0] == 1
    assert mean[0] == low[0] == high[0] == values[0]
    assert len(mean) <= 120
    assert np.all(np.diff(iterations) > 0)
    last = int(round(5001 / 5001 ** (1 / 120)))  # the last window begins here
    np.testing.assert_allclose(mean[-1], values[last - 1 :].mean())
    np.testing.assert_allclose(high[-1], np.quantile(values[last - 1 :], 0.9))


def test_smoothing_of_one_iteration():
    iterations, mean, *_ = smoothed(np.array([3.0]))
    assert iterations.tolist() == [1.0]
    assert mean.tolist() == [3.0]


def test_training_curve_is_the_bound_in_bits():
    axes = Figure().subplots()
    draw_loss(axes, np.full(1000, 3.0), elbo=-2.5, null=-6.0, entropy_limit=-2.0)
    heights = {line.get_label().split(",")[0]: line.get_ydata()[0] for line in axes.lines}
    expected = {"training estimate": -3.0, "entropy limit": -2.0, "at the end": -2.5, "nothing learned": -6.0}
    assert heights == pytest.approx({name: value / BITS for name, value in expected.items()})
    assert axes.get_ylim()[0] < -6 / BITS
    assert axes.get_ylim()[1] > -2 / BITS
    assert "bits per datum" in axes.get_ylabel()


def test_training_curve_of_a_program_without_a_null_or_limit_shows_all_of_it():
    axes = Figure().subplots()
    draw_loss(axes, np.linspace(9.0, 1.0, 1000), elbo=-0.5)
    assert [line.get_label().split(",")[0] for line in axes.lines] == ["training estimate", "at the end"]
    low, high = axes.get_ylim()
    assert low < -8.9 / BITS < -0.5 / BITS < high


def test_states_at_other_times_are_refused():
    with pytest.raises(ValueError, match=r"same times, 0 among them; got \[0, 6\] and \[0, 3\]"):
        fit_figure(
            gaussian((2,)),
            forward={0: np.zeros((3, 2)), 6: np.zeros((3, 2))},
            reverse={0: np.zeros((3, 2)), 3: np.zeros((3, 2))},
            losses=np.ones(3),
            kl=np.ones((2, 5)),
            elbo=0.0,
            null=0.0,
        )
