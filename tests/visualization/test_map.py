"""The files of a map, and their parts: colors, thumbnails, neighbors, the plot."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from lookalike.errors import InvalidParameterError
from lookalike.progress import Progress
from lookalike.visualization.drawing import (
    COLORS,
    OTHER_COLOR,
    classes_of,
    densest_places,
    missing_picture,
    read_thumbnails,
    sheet_columns,
    sprite_sheets,
    thumbnail_size,
    unit_square,
)
from lookalike.visualization.map import make_map, write_map
from lookalike.visualization.map_pictures import draw_scatter
from tests.visualization.drawn import drawn_set


def data_of(page: str) -> dict:
    (data,) = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(data)


def test_a_map_is_four_files(tmp_path):
    vectors = drawn_set(lost={4})
    calls = []
    layout = make_map(vectors, components=7, progress=Progress(lambda *call: calls.append(call)))
    files = write_map(
        layout, vectors, tmp_path / "out", progress=Progress(lambda *call: calls.append(call))
    )
    assert layout.pca.coordinates.shape == (45, 7)
    assert list(dict.fromkeys(call[0] for call in calls)) == ["PCA", "t-SNE", "pictures", "files"]
    assert all(done <= total for _, done, total in calls)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "grid.png",
        "map.html",
        "places.csv",
        "scatter.png",
    ]
    assert all(path.is_file() for path in files)
    rows = list(csv.DictReader(files.table.read_text().splitlines()))
    assert [row["id"] for row in rows] == vectors.ids
    assert [row["label"] for row in rows] == vectors.labels
    written = [(float(row["x"]), float(row["y"])) for row in rows]
    np.testing.assert_allclose(written, layout.places, atol=1e-4)
    with Image.open(files.scatter) as scatter, Image.open(files.grid) as grid:
        assert scatter.size == (1800, 1350)
        gray = (np.asarray(grid) == (0xD5, 0xD9, 0xDE)).all(axis=2)
        assert gray.sum() > 1_000  # the lost picture


def test_the_page_holds_everything(tmp_path):
    vectors = drawn_set(lost={4})
    files = write_map(make_map(vectors), vectors, tmp_path)
    page = files.page.read_text()
    assert not re.search(r"(src|href)=|https?://|@import|url\(", page)
    data = data_of(page)
    assert data["names"] == vectors.names
    assert data["ids"] == vectors.ids
    assert data["missing"] == [4]
    assert [entry[0] for entry in data["classes"]] == ["car", "leaf", "mug"]
    assert [data["classes"][number][0] for number in data["class"]] == vectors.labels
    cosines = vectors.vectors @ vectors.vectors.T
    np.fill_diagonal(cosines, -2)
    for position in range(len(vectors)):
        expected = np.argsort(-cosines[position], kind="stable")[:5]
        assert data["neighbors"][position] == expected.tolist()
        np.testing.assert_allclose(data["scores"][position], cosines[position, expected], atol=1e-4)


@pytest.mark.parametrize("instances", [1, 2])
def test_two_and_four_pictures_without_labels_make_a_map(tmp_path, instances):
    vectors = drawn_set(classes=("mug",), instances=instances, views=2, labels=False)
    files = write_map(make_map(vectors), vectors, tmp_path)
    data = data_of(files.page.read_text())
    assert data["classes"] == []
    assert len(data["neighbors"][0]) == 2 * instances - 1
    assert files.table.read_text().splitlines()[1].startswith("mug/mug-00-0.jpg,,")


def test_names_that_are_no_text_do_not_stop_a_map(tmp_path):
    drawn = drawn_set(classes=("mug",), instances=1, views=3)
    odd = ["\udcff.jpg", 'a,\n".jpg', "</script>.jpg"]
    vectors = dataclasses.replace(drawn, ids=odd, names=odd, labels=odd, name="\udcff")
    files = write_map(make_map(vectors), vectors, tmp_path)
    rows = list(csv.reader(io.StringIO(files.table.read_text(), newline="")))
    assert [row[0] for row in rows] == ["id", "\\udcff.jpg", *odd[1:]]
    data = data_of(files.page.read_text())
    assert data["names"] == ["\ufffd.jpg", 'a,\ufffd".jpg', "</script>.jpg"]


def test_bad_numbers_are_refused():
    one = drawn_set(classes=("mug",), instances=1, views=1)
    with pytest.raises(InvalidParameterError, match="at least 2 pictures"):
        make_map(one)
    two = drawn_set(classes=("mug",), instances=1, views=2)
    with pytest.raises(InvalidParameterError, match="components is 1"):
        make_map(two, components=1)
    for perplexity in (0.5, float("nan")):
        with pytest.raises(InvalidParameterError, match="perplexity"):
            make_map(two, perplexity=perplexity)


def test_up_to_twenty_classes_have_a_color_of_their_own():
    many = classes_of([f"c{n:02d}" for n in range(20)], count=20)
    assert many.colors == COLORS
    assert len(set(COLORS)) == 20
    labels = [f"c{n:02d}" for n in range(25) for _ in range(1 + (n >= 6))]
    more = classes_of(labels, count=len(labels))
    assert more.colored == 19
    assert more.names[:19] == tuple(f"c{n:02d}" for n in range(6, 25))
    assert more.colors[19:] == (OTHER_COLOR,) * 6
    assert [more.names[number] for number in more.index] == labels
    assert sum(more.counts) == len(labels)


def test_a_class_is_named_where_most_of_it_is():
    places = np.array([[0, 0]] * 8 + [[10, 10]] * 2 + [[10, 0]] * 4, dtype=np.float32)
    classes = classes_of(["a"] * 10 + ["b"] * 4, count=14)
    np.testing.assert_allclose(densest_places(places, classes), [[0, 0], [10, 0]])


def test_the_unit_square_takes_each_axis_alone():
    places = np.array([[0, 5], [2, 5], [8, 5]], dtype=np.float32)
    assert unit_square(places).tolist() == [[0, 0.5], [0.25, 0.5], [1, 0.5]]


@pytest.mark.parametrize("labels", [["$x^$", "_hidden", "日本", "\udcff"], None, "many"])
def test_the_plot_takes_any_label(labels):
    if labels == "many":
        labels = [f"class {n} with a name that is long" for n in range(60)]
    count = 4 if labels is None else len(labels)
    places = np.random.default_rng(0).random((count, 2)).astype(np.float32)
    drawn = draw_scatter(places, classes_of(labels, count=count), title="$a_$", caption="日本")
    with Image.open(io.BytesIO(drawn)) as image:
        pixels = np.asarray(image.convert("RGB"))
    color = COLORS[0] if labels else "#4a7ddb"
    rgb = np.array(tuple(bytes.fromhex(color[1:])))
    assert (np.abs(pixels.astype(int) - rgb).max(axis=2) < 40).sum() > 100


def top_of(pixels: np.ndarray, color: str) -> int:
    away = np.abs(pixels - np.array(tuple(bytes.fromhex(color[1:])))).max(axis=2)
    return int(np.argwhere(away[:, :1400] < 40)[0, 0])  # beside the legend


@pytest.mark.parametrize("extent", [0.0, 1e-15, 1e6])
def test_the_plot_takes_any_extent_and_y_points_down(extent):
    places = np.array([[n, n // 10] for n in range(20)], dtype=np.float32) * np.float32(extent)
    classes = classes_of(["upper"] * 10 + ["lower"] * 10, count=20)
    drawn = draw_scatter(places, classes, title="", caption="")
    with Image.open(io.BytesIO(drawn)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    if extent > 1:
        lower, upper = COLORS[:2]
        assert top_of(pixels, upper) < top_of(pixels, lower)


def test_thumbnails_lie_on_sheets_in_their_order(monkeypatch):
    monkeypatch.setattr("lookalike.visualization.drawing._SHEET_SIDE", 64)
    shades = [10, 60, 110, 160, 210, 250]

    def picture(position, *, size):
        assert size == 32
        return Image.new("RGB", (50, 200), (shades[position],) * 3)

    thumbnails = read_thumbnails(picture, 6, size=32)
    assert thumbnails.missing == frozenset()
    columns = sheet_columns(32)
    assert columns == 2
    found = []
    for address in sprite_sheets(thumbnails):
        with Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))) as sheet:
            found.append(np.asarray(sheet)[16::32, 16::32, 0].ravel().tolist())
    assert [len(sheet) for sheet in found] == [4, 2]
    np.testing.assert_allclose(np.concatenate(found), shades, atol=2)


def test_thumbnails_get_smaller_with_their_number():
    sizes = [thumbnail_size(count) for count in (1, 750, 2_000, 5_000, 10_000, 20_000, 1_000_000)]
    assert sizes == [128, 128, 96, 64, 48, 32, 16]
    assert missing_picture(16).size == (16, 16)
