"""Contact sheets: frames, marks, proportions, names, files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lookalike.errors import ConfigurationError
from lookalike.visualization.contact_sheet import Tile, contact_sheet, picture_sheet, save_picture
from lookalike.visualization.drawing import load_font, printable, shorten

RIGHT, WRONG, ACCENT = (0x16, 0x80, 0x3C), (0xC6, 0x28, 0x28), (0x24, 0x57, 0xD6)


def plain(color: str, size=(40, 40)) -> Image.Image:
    return Image.new("RGB", size, color)


def box(sheet: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of all pixels of one color."""
    at = np.argwhere((np.asarray(sheet) == color).all(axis=2))
    if not len(at):
        return None
    (top, left), (bottom, right) = at.min(axis=0), at.max(axis=0)
    return int(left), int(top), int(right), int(bottom)


def found_box(sheet: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    found = box(sheet, color)
    assert found is not None
    return found


def match(color: str, *, right: bool | None = None, size=(40, 40)) -> Tile:
    return Tile(image=plain(color, size), name="match.jpg", rank=1, score=0.5, right=right)


def test_frames_and_marks_say_what_is_right():
    query = Tile(image=plain("#00ffff"), name="query.jpg")
    right = contact_sheet(query, [match("#ff00ff", right=True)])
    wrong = contact_sheet(query, [match("#ff00ff", right=False)])
    unknown = contact_sheet(query, [match("#ff00ff")])
    assert box(right, RIGHT)
    assert not box(right, WRONG)
    assert box(wrong, WRONG)
    assert not box(wrong, RIGHT)
    assert not box(unknown, RIGHT)
    assert not box(unknown, WRONG)
    marks = []
    for sheet, color in ((right, RIGHT), (wrong, WRONG)):
        _, top, edge, _ = found_box(sheet, color)
        corner = sheet.crop((edge - 20, top + 1, edge, top + 21))
        marks.append((np.asarray(corner) > 200).all(axis=2))
        assert marks[-1].any()
    assert not np.array_equal(marks[0], marks[1])  # a check is no cross, whatever the color


def test_the_query_stands_apart_at_the_left():
    query = Tile(image=plain("#00ffff"), name="query.jpg")
    sheet = contact_sheet(query, [match("#ff00ff")] * 7, columns=3)
    asked, found = found_box(sheet, (0, 255, 255)), found_box(sheet, (255, 0, 255))
    assert asked[2] + 32 < found[0]
    assert asked[1] == found[1]
    assert found_box(sheet, ACCENT)[:2] < asked[:2]
    assert found[3] - found[1] > 2 * (asked[3] - asked[1])  # three rows


def test_proportions_are_kept():
    sheet = contact_sheet(
        Tile(image=plain("#00ffff", (400, 100)), name="wide"),
        [match("#ff00ff", size=(10, 50))],
        tile_size=100,
    )
    left, top, right, bottom = found_box(sheet, (0, 255, 255))
    assert (right - left + 1, bottom - top + 1) == (100, 25)
    left, top, right, bottom = found_box(sheet, (255, 0, 255))
    assert (right - left + 1, bottom - top + 1) == (20, 100)


def test_a_thousand_matches_wrap_to_rows_of_the_same_height():
    query = Tile(image=plain("#00ffff"), name="query.jpg")
    heights = [
        contact_sheet(query, [match("#ff00ff")] * count, columns=10, tile_size=16).height
        for count in (10, 20, 1000)
    ]
    assert (heights[2] - heights[0]) == 99 * (heights[1] - heights[0])


def test_what_is_missing_is_gray_and_nothing_found_is_said():
    gone = contact_sheet(Tile(image=None, name="gone.jpg"), [])
    assert box(gone, (0xD5, 0xD9, 0xDE))
    empty = picture_sheet("group 3: 0 pictures", [])
    assert empty.width > 100


@pytest.mark.parametrize(
    "name", ["Żółć.jpg", "日本語.png", "a\nb\tc", "\udcff\x00.jpg", "\u202e", "", "x" * 5000, "🐈"]
)
def test_no_name_breaks_a_sheet(name):
    tile = Tile(image=plain("#ff00ff"), name=name, rank=1000, score=-1.0, right=True)
    sheet = contact_sheet(tile, [tile, tile], title=name, tile_size=64)
    group = picture_sheet(name, [tile] * 3)
    assert sheet.mode == group.mode == "RGB"


def test_names_that_are_too_long_lose_their_middle():
    font = load_font(12)
    short = shorten("IMG_20240101_123456_holiday.jpeg", font=font, width=120)
    assert short.startswith("IMG_")
    assert short.endswith(".jpeg")
    assert "…" in short
    assert font.getlength(short) <= 120
    assert shorten("cat.jpg", font=font, width=120) == "cat.jpg"
    assert shorten("cat.jpg", font=font, width=1) == ""
    assert printable("a\nb\udcffc") == "a\ufffdb\ufffdc"


def test_letters_beyond_ascii_are_drawn():
    font = load_font(20)
    drawn = [bytes(font.getmask(letter)) for letter in "żЖα\uffff"]
    assert len(set(drawn)) == 4  # not the box of a missing letter


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".webp"])
def test_a_picture_is_saved_by_its_suffix(tmp_path, suffix):
    path = tmp_path / "made" / f"sheet{suffix}"
    image = plain("#3366cc")
    ImageDraw.Draw(image).rectangle((0, 0, 20, 20), fill="white")
    save_picture(image, path)
    with Image.open(path) as opened:
        assert opened.format == {".png": "PNG", ".webp": "WEBP"}.get(suffix, "JPEG")
        assert np.abs(np.asarray(opened.convert("RGB")).astype(int) - np.asarray(image)).mean() < 12
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_saved_is_explained(tmp_path):
    with pytest.raises(ConfigurationError, match=r"\.png, \.jpg, \.jpeg, \.webp"):
        save_picture(plain("white"), tmp_path / "sheet.xyz")
    with pytest.raises(ConfigurationError, match=r"fewer pictures"):
        save_picture(plain("white", (1, 20_000)), tmp_path / "sheet.webp")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        save_picture(plain("white"), tmp_path / "file" / "sheet.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
