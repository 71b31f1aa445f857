"""`lookalike duplicates` on a data folder and on a running service."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from lookalike.errors import CollectionNotFoundError, ServerError
from tests.servers import ADMIN_KEY


@pytest.fixture(params=["folder", "server"])
def place(request, tmp_path):
    if request.param == "folder":
        return ["--data-dir", str(tmp_path / "data"), "--collection", "things"]
    server = request.getfixturevalue("server")
    server.http.delete("/collections/things")
    return ["--server", server.url, "--api-key", ADMIN_KEY, "--collection", "things"]


@pytest.fixture
def doubled(lookalike, place, pictures):
    """Eighteen pictures, and one of them in other formats and sizes."""
    image = Image.open(pictures / "mug" / "mug-00-0.jpg")
    image.save(pictures / "again.png")
    image.resize((48, 36)).save(pictures / "small.jpg", quality=90)
    assert lookalike("index", str(pictures), *place).exit_code == 0


def test_the_ids_can_be_deleted(lookalike, place, doubled):
    words = ["--kind", "reencoded", "--threshold", "0.9", "--json", *place]
    found = json.loads(lookalike("duplicates", *words).stdout)
    assert (found["total_groups"], found["total_duplicates"]) == (1, 2)
    (group,) = found["groups"]
    names = [group["keep"]["filename"], *(one["filename"] for one in group["members"])]
    assert sorted(names) == ["again.png", "mug-00-0.jpg", "small.jpg"]
    assert lookalike("delete", *(one["id"] for one in group["members"]), *place).exit_code == 0
    assert json.loads(lookalike("duplicates", *words).stdout)["groups"] == []
    assert "No duplicates" in lookalike("duplicates", *words[: -len(place) - 1], *place).stdout


def test_the_table_marks_what_to_keep(lookalike, place, doubled):
    shown = lookalike("duplicates", "--kind", "reencoded", "--threshold", "0.9", *place).stdout
    (keep,) = [line for line in shown.splitlines() if "keep  " in line]
    assert "mug-00-0.jpg" in keep  # the PNG file has more bytes, but was made of it
    assert "not saved again" in keep
    assert "small.jpg" in shown
    assert "48x36" in shown
    assert "1 group with 2 pictures" in shown


def test_a_page_is_written(lookalike, place, doubled, tmp_path):
    words = ["--kind", "reencoded", "--threshold", "0.9", "--html", str(tmp_path / "page.html")]
    assert lookalike("duplicates", *words, *place).exit_code == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3
    assert "keep: not saved again" in page
    assert "small.jpg" in page


def test_copies_are_shown_and_no_pipe_deletes_what_is_kept(lookalike, place, pictures, tmp_path):
    original = pictures / "mug" / "mug-00-0.jpg"
    (pictures / "again.jpg").write_bytes(original.read_bytes())
    assert lookalike("index", str(pictures), *place).exit_code == 0
    page = tmp_path / "page.html"
    words = ["--kind", "exact", "--html", str(page), *place]
    found = json.loads(lookalike("duplicates", *words, "--json").stdout)
    assert (found["total_groups"], found["total_duplicates"], found["total_copies"]) == (1, 0, 1)
    (group,) = found["groups"]
    keep = group["keep"]
    assert sorted([keep["path"], *keep["copies"]]) == ["again.jpg", "mug/mug-00-0.jpg"]
    assert (group["members"], group["kind"], group["total_copies"]) == ([], "exact", 1)
    shown = lookalike("duplicates", *words).stdout
    for text in (shown, page.read_text()):
        assert "again.jpg" in text
        assert "mug/mug-00-0.jpg" in text
    assert "1 more path with the same bytes" in shown


def test_all_pages_are_joined(lookalike, doubled, place, monkeypatch):
    from lookalike.client import local

    monkeypatch.setattr(local, "MAX_LIMIT", 1)
    words = ["--threshold", "0.99", "--json", *place]
    found = json.loads(lookalike("duplicates", *words).stdout)
    assert len(found["groups"]) == found["total_groups"] > 1
    assert found["next_cursor"] is None


def test_an_unknown_collection(lookalike, doubled, place):
    done = lookalike("duplicates", *place[:-1], "shoes")
    assert isinstance(done.exception, CollectionNotFoundError | ServerError)
