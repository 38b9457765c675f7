"""Figures show what they are given: counts, means, axes against the arrays; every kind of state is drawn."""

import io

import matplotlib.image
import numpy as np
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from numpyro.distributions import constraints

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
    """Of panels, and of groups of panels, in order."""
    found = [axes.get_title() or axes.figure.get_suptitle() for axes in figure.axes]
    return [title for i, title in enumerate(found) if title not in found[:i]]


def assert_legible(figure):
    image = pixels(figure)
    assert len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 50
    for axes in figure.axes:
        assert axes.get_title() or axes.figure.get_suptitle()
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


def test_one_costly_step_does_not_hide_the_rest_nor_their_band():
    """The mean of most steps is less than two standard errors above zero, where a logarithm has no place."""
    kl = RNG.gamma(0.05, size=(30, 9)) * np.array([3000.0] + [1.0] * 8) / BITS
    axes = Figure().subplots()
    draw_step_bound(axes, kl)
    assert axes.get_yscale() == "log"
    low, high = axes.get_ylim()
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert low == band.min()
    assert band.max() < high
    assert low < axes.lines[0].get_ydata().min()
    error = (kl.std(0, ddof=1) / BITS / 30**0.5).max()
    assert axes.collections[0].get_label() == f"± 2 standard errors, at most {2 * error:.2g}"


def test_rows_are_of_one_size_and_say_what_their_colours_mean():
    figure = drawn(gaussian((2,)), RNG.normal(size=(60, 2)))
    figure.draw_without_rendering()
    sizes = [axes.get_window_extent().size for axes in figure.axes[:9]]
    np.testing.assert_allclose(sizes, np.tile(sizes[0], (9, 1)), rtol=1e-6)
    words = " ".join(figure.subfigs[0].get_supxlabel().split())
    assert "Colour: how far a point is from the centre" in words
    assert "pale where it does not" in words
    box = figure.bbox
    for axes in figure.axes[-2:]:  # labels lie within the figure, and beside their own axis
        label = axes.yaxis.label.get_window_extent()
        assert box.y0 <= label.y0
        assert box.x0 <= label.x0
        assert label.height < 1.1 * axes.get_window_extent().height
        legend = axes.get_legend().get_window_extent()
        assert box.x0 <= legend.x0 < legend.x1 <= box.x1
        assert axes.get_window_extent().width > 0.35 * box.width  # a legend that is too wide would narrow it


def test_the_layout_has_settled_when_the_figure_is_saved():
    """The first drawing may cut off labels, for which there is room at the second."""
    figure = drawn(gaussian((2,)), RNG.normal(size=(60, 2)))
    pixels(figure)
    first = [axes.get_position().bounds for axes in figure.axes]
    pixels(figure)
    np.testing.assert_allclose([axes.get_position().bounds for axes in figure.axes], first, atol=2e-3)


def test_three_dimensions_are_pairs_of_samples_on_data():
    x0 = RNG.normal(size=(60, 3))
    figure = drawn(gaussian((3,)), x0)
    np.testing.assert_allclose(figure.axes[0].collections[0].get_offsets(), x0[:, :2])
    below = figure.subfigs[1]
    assert below.get_suptitle() == "Samples on data"
    pairs = [axes for axes in below.axes if axes.collections]
    assert len(pairs) == 3
    np.testing.assert_allclose(pairs[-1].collections[0].get_offsets(), x0[:, 1:])
    figure = samples_figure(x0 + 1, support=constraints.real_vector, x0=x0)
    shown = [cloud.get_offsets() for cloud in figure.subfigs[0].axes[1].collections]
    np.testing.assert_allclose(shown, [x0[:, :2], x0[:, :2] + 1])  # the data, and samples on them


def test_words_that_no_law_lists_are_counted():
    words = np.array([[2, 0, 1], [0, 3, 2]])
    x0 = RNG.permutation(np.repeat(words, [40, 20], axis=0))
    kernel = dpm.CategoricalKernel(dpm.schedules.constant_fraction(6), (3,), (0.25,) * 4)
    figure = drawn(dpm.Diffusion(kernel, lambda x, t: kernel.step(x, t)), x0, data=x0)
    assert "How often each sequence of the data is sampled" in titles(figure)
    assert_legible(figure)


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
    draw_loss(axes, np.full(1000, 3.0), elbo=-2.5, null=-3.2, entropy_limit=-2.0)
    heights = {line.get_label().split(",")[0]: line.get_ydata()[0] for line in axes.lines}
    expected = {
        "training estimate": -3.0,
        "entropy limit of the data": -2.0,
        "at the end": -2.5,
        "nothing learned (L_null)": -3.2,
    }
    assert heights == pytest.approx({name: value / BITS for name, value in expected.items()})
    assert axes.get_ylim()[0] < -3.2 / BITS
    assert axes.get_ylim()[1] > -2 / BITS
    assert "bits per datum" in axes.get_ylabel()


def test_the_end_of_training_fills_its_panel():
    """A fit that learns nearly all in its first 90 iterations of 6000, 12 bits; the rest is a tenth of a bit."""
    iteration = np.arange(1, 6001)
    losses = BITS * (2.4 + 12 * np.exp(-iteration / 20) + 0.1 / (1 + iteration / 300))
    axes = Figure().subplots()
    draw_loss(axes, losses, elbo=-2.4 * BITS, null=-14.4 * BITS, entropy_limit=-2.35 * BITS)
    low, high = axes.get_ylim()
    assert -2.4 - (-losses[89] / BITS) > 0.1 * (high - low)
    assert high - low < 1
    labels = {line.get_label(): line for line in axes.lines}
    (cut,) = (label for label in labels if "below the axis before iteration" in label)
    first = int(cut.split()[-1])
    assert -losses[first // 2] / BITS < low < -losses[2 * first] / BITS
    null = labels["nothing learned (L_null), -14.400: below the axis"]
    assert null.get_ydata() == [0.0]  # a marker on the lower edge
    assert null.get_transform() == axes.transAxes


def test_a_bound_below_what_no_learning_gives_is_in_the_panel():
    axes = Figure().subplots()
    draw_loss(axes, np.full(1000, 9.3 * BITS), elbo=-51.7 * BITS, null=-6.1 * BITS)
    low, high = axes.get_ylim()
    assert low < -51.7 < high


def test_training_curve_of_a_program_without_a_null_or_limit():
    axes = Figure().subplots()
    draw_loss(axes, np.linspace(9.0, 1.0, 1000), elbo=-0.5)
    assert [line.get_label().split(",")[0] for line in axes.lines] == ["training estimate", "at the end"]
    low, high = axes.get_ylim()
    assert low < -8.0 / BITS < -0.5 / BITS < high


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
