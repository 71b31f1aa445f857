"""Every picture in one cell; neighbors beside each other; the drawing within its bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lookalike.visualization import map_pictures as module
from lookalike.visualization.drawing import Thumbnails, classes_of
from lookalike.visualization.map_pictures import Grid, draw_grid, lay_grid

PLACES = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 60), st.just(2)),
    elements=st.floats(-100, 100, width=32) | st.sampled_from([0.0, 1.0]),
)


@settings(max_examples=60, deadline=None)
@given(PLACES)
def test_every_picture_is_in_exactly_one_cell(places):
    grid = lay_grid(places)
    filled = grid.cells[grid.cells >= 0]
    assert sorted(filled.tolist()) == list(range(len(places)))
    assert grid.cells.size - len(places) < grid.cells.shape[1]  # no row is empty
    np.testing.assert_array_equal(grid.counts, grid.cells >= 0)


@settings(max_examples=60, deadline=None)
@given(PLACES)
def test_a_cell_shows_one_of_its_own_and_all_are_counted(places):
    grid = module._represented(places, module.MOST_ASSIGNED)
    rows, columns = grid.cells.shape
    assert grid.counts.sum() == len(places)
    low, extent = places.min(axis=0).astype(float), np.ptp(places, axis=0).astype(float)
    for row, column in np.argwhere(grid.counts > 0):
        scaled = []
        for place in places.astype(float):  # the definition, picture by picture
            at = [(p - a) / e if e > 0 else 0.5 for p, a, e in zip(place, low, extent, strict=True)]
            scaled.append((at[0] * columns, at[1] * rows))
        inside = [
            i
            for i, (x, y) in enumerate(scaled)
            if (min(int(x), columns - 1), min(int(y), rows - 1)) == (column, row)
        ]
        assert len(inside) == grid.counts[row, column]
        away = [np.hypot(scaled[i][0] - column - 0.5, scaled[i][1] - row - 0.5) for i in inside]
        shown = grid.cells[row, column]
        assert away[inside.index(shown)] == pytest.approx(min(away))
    np.testing.assert_array_equal(grid.cells >= 0, grid.counts > 0)


def test_places_on_a_grid_stay_as_they_are():
    x, y = np.meshgrid(np.arange(6), np.arange(4))
    order = np.random.default_rng(0).permutation(24)
    places = np.column_stack([x.ravel(), y.ravel()]).astype(np.float32)[order]
    grid = lay_grid(places + 0.01 * np.roll(places, 1, axis=1))
    assert grid.cells.shape == (4, 6)
    found = places[grid.cells.ravel()].reshape(*grid.cells.shape, 2)
    assert (np.diff(found[..., 0], axis=1) > 0).all()
    assert (np.diff(found[..., 1], axis=0) > 0).all()


def test_above_the_limit_cells_stand_for_several():
    places = np.random.default_rng(0).random((200, 2)).astype(np.float32)
    grid = lay_grid(places, most=16)
    assert grid.counts.sum() == 200
    assert grid.cells.size == 16


@pytest.mark.parametrize(("shape", "side"), [((1, 1), 64), ((50, 50), 64), ((30, 90), 41)])
def test_the_drawing_stays_below_4000_pixels(shape, side):
    cells = np.full(shape, -1, dtype=np.int64)
    cells[-1, -1] = 0
    tiles = np.full((1, 64, 64, 3), (0, 255, 0), dtype=np.uint8)
    drawn = draw_grid(
        Grid(cells, np.where(cells >= 0, 7, 0)),
        Thumbnails(tiles, frozenset()),
        title="a title",
        classes=classes_of(["mug"], count=1),
    )
    assert max(drawn.size) <= 4_000
    pixels = np.asarray(drawn)
    green = np.argwhere((pixels == (0, 255, 0)).all(axis=2))
    bottom, right = green.max(axis=0)
    top, left = green.min(axis=0)
    assert (bottom - top + 5, right - left + 5) == (side, side)  # with the frame
    assert tuple(pixels[top - 1, left]) == (0x1F, 0x77, 0xB4)
    assert np.all(pixels[bottom, right - 1] < 255)  # the count
