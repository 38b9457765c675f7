"""A pair plot shows every two coordinates, each cloud where it is."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from dpm_ppl.reports.pairs import pair_plot

RNG = np.random.default_rng(0)


def helix(num):
    angle = RNG.uniform(0, 4 * np.pi, num)
    return np.stack([np.cos(angle), np.sin(angle), 0.2 * angle + 3], -1)


def test_every_two_coordinates_of_every_cloud():
    below, above = helix(400), helix(300) + 0.1
    grid = pair_plot(Figure(), {"data": (below, "blue"), "samples": (above, "red")})
    assert set(grid) == {(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)}
    for (row, column), axes in grid.items():
        if row != column:
            for cloud, x in zip(axes.collections, (below, above), strict=True):  # samples lie on the data
                np.testing.assert_allclose(cloud.get_offsets(), x[:, [column, row]])
            low, high = axes.get_ylim()
            assert np.mean((above[:, row] > low) & (above[:, row] < high)) > 0.99
        low, high = axes.get_xlim()
        assert np.mean((below[:, column] > low) & (below[:, column] < high)) > 0.99
    assert [grid[2, column].get_xlabel() for column in range(3)] == ["$x_1$", "$x_2$", "$x_3$"]
    assert [grid[row, 0].get_ylabel() for row in (1, 2)] == ["$x_2$", "$x_3$"]


def test_a_cloud_hides_none_below_it():
    """Of 300 samples on 20 data 20 are drawn; a prior behind a posterior keeps its points."""
    for below, above, drawn, told in ((20, 300, 20, "20 points of 300 samples"), (300, 20, 20, "")):
        figure = Figure()
        x = {"data": (helix(below), "blue"), "samples": (helix(above), "red")}
        clouds = pair_plot(figure, x)[1, 0].collections
        assert [len(cloud.get_offsets()) for cloud in clouds] == [below, drawn]
        np.testing.assert_allclose(clouds[1].get_offsets(), x["samples"][0][:drawn, :2])
        assert figure.legends[0].get_title().get_text() == told
    grid = pair_plot(Figure(), {"data": (helix(20), "blue"), "samples": (helix(4000), "red")})
    outline = grid[0, 0].patches[1].get_path().vertices
    assert len(np.unique(outline[:, 1])) > 30  # the density is of all


def test_the_diagonal_is_the_density_of_a_coordinate():
    x = helix(4000)
    grid = pair_plot(Figure(), {"data": (x, "blue")})
    outline = grid[2, 2].patches[0].get_path().vertices
    assert abs(np.trapezoid(outline[:, 1], outline[:, 0])) == pytest.approx(1, abs=0.02)
    middle = np.average(outline[:, 0], weights=outline[:, 1])
    assert abs(middle - x[:, 2].mean()) < 0.1


def test_more_coordinates_than_have_room_are_counted():
    figure = Figure()
    x = RNG.normal(size=(50, 2, 3, 1))
    grid = pair_plot(figure, {"data": (x, "blue")})
    assert len(grid) == 10
    np.testing.assert_allclose(grid[3, 2].collections[0].get_offsets(), x.reshape(50, 6)[:, [2, 3]])
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "coordinates 1 to 4 of 6"
