"""Heat over pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lookalike.visualization.contact_sheet import Tile
from lookalike.visualization.heat import Scale, explained_sheet, heat, legend

WHOLE = (0.0, 0.0, 1.0, 1.0)


def light(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"), dtype=float)


def test_a_hot_position_is_light_where_it_lies() -> None:
    image = Image.new("RGB", (120, 60), "gray")
    shares = [[0.0, 0.0], [1.0, 0.0]]  # below, at the left
    drawn = light(heat(image, shares, WHOLE, scale=Scale.of(shares)))
    assert drawn.shape == (60, 120)
    quarters = [drawn[y : y + 30, x : x + 60].mean() for y in (0, 30) for x in (0, 60)]
    assert max(range(4), key=quarters.__getitem__) == 2


def test_what_was_not_seen_is_pale_and_the_heat_lies_where_it_was() -> None:
    image = Image.new("RGB", (120, 60), "black")
    shares = [[1.0, 0.0], [0.0, 0.0]]
    seen = (0.25, 0.0, 0.75, 1.0)  # the square in the middle
    drawn = light(heat(image, shares, seen, scale=Scale.of(shares)))
    assert (drawn[:, :30] > 200).all()
    assert (drawn[:, 90:] > 200).all()
    middle = drawn[:, 30:90]
    assert middle.max() < 200
    assert max(divmod(int(middle.argmax()), 60)) < 20


def test_a_part_that_reaches_beyond_the_picture() -> None:
    image = Image.new("RGB", (40, 80), "black")
    shares = np.arange(9.0).reshape(3, 3)
    drawn = light(heat(image, shares, (-0.5, 0.0, 1.5, 1.0), scale=Scale.of(shares)))
    assert drawn.shape == (80, 40)
    assert drawn[70:].mean() > drawn[:10].mean()


def test_the_scale_begins_at_zero_and_its_legend_names_the_mean() -> None:
    scale = Scale.of([[0.1, 0.3]], [[0.2, 0.2]])
    assert [scale.low, scale.high, scale.mean] == pytest.approx([0.0, 0.3, 0.2])
    assert scale.text == "share of the score, 0.0 to 1.5 times the mean"
    assert Scale.of([[-0.1, 0.3]]).low == -0.1
    assert "-0.3000 to -0.1000" in Scale.of([[-0.3, -0.1]]).text
    assert Scale.of([[0.0]]).high > 0
    assert legend(scale, width=400).width == 400


def test_light_grows_with_each_step_for_those_who_see_no_hue() -> None:
    (row, *_) = light(legend(Scale.of([[1.0]]), width=180))
    assert (np.diff(row) >= 0).all()
    assert row[-1] - row[0] > 150


def test_a_sheet_shows_the_query_and_a_pair_for_each_match() -> None:
    image = Image.new("RGB", (60, 40), "gray")
    asked = Tile(image=image, name="query.jpg")
    pair = (([[0.1, 0.2]], WHOLE), ([[0.3, 0.0]], WHOLE))
    tiles = [(Tile(image=image, name=f"{n}.jpg", rank=n, score=0.9), pair) for n in (1, 2, 3)]
    gone = (Tile(image=None, name="gone.jpg", rank=4, score=0.1), pair)
    sheet = explained_sheet(asked, [*tiles, gone], title="model")
    alone = explained_sheet(asked, [], title="model")
    assert sheet.width > 4 * 160
    assert sheet.height > alone.height
    assert light(sheet)[-30:, 24:200].min() < 60  # the legend's first color
