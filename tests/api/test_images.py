"""Everything under /images and /collections."""

from __future__ import annotations

import asyncio
import io
import json

import pytest
from PIL import Image
from starlette.requests import ClientDisconnect, Request

from lookalike.api.routers.images import BlobResponse
from tests.api.conftest import ADMIN, picture, solid


def test_a_record_says_what_is_stored(client, index):
    index(("große Katze.png", picture()), ids="cat-1", metadata='{"label": "cat"}')
    record = client.get("/images/cat-1").json()
    assert record["filename"] == "große Katze.png"
    assert (record["width"], record["height"], record["media_type"]) == (96, 72, "image/png")
    assert record["bytes"] == len(picture())
    assert record["metadata"] == {"label": "cat"}
    assert record["created_at"] <= record["updated_at"]
    assert "source" not in record


def test_the_file_comes_back_to_the_byte(client, index):
    index(("cat.png", picture()), ids="cat")
    answer = client.get("/images/cat/file")
    assert answer.content == picture()
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-9", 0, 9),
        ("bytes=5-5", 5, 5),
        ("bytes=90-", 90, None),
        ("bytes=-7", -7, None),
        ("bytes=10-99999999", 10, None),
    ],
)
def test_a_range_of_the_file_comes_alone(client, index, asked, first, last):
    index(("cat.png", picture()), ids="cat")
    answer = client.get("/images/cat/file", headers={"Range": asked})
    wanted = picture()[first:] if last is None else picture()[first : last + 1]
    assert (answer.status_code, answer.content) == (206, wanted)
    start = first % len(picture())
    assert answer.headers["content-range"] == (
        f"bytes {start}-{start + len(wanted) - 1}/{len(picture())}"
    )


def test_ranges_that_are_unreadable_or_of_another_file_are_ignored(client, index):
    index(("cat.png", picture()), ids="cat")
    etag = client.get("/images/cat/file").headers["etag"]
    for headers in (
        {"Range": "bytes=9-3"},
        {"Range": "lines=0-3"},
        {"Range": "bytes=-"},
        {"Range": f"bytes=0-{'9' * 5000}"},
        {"Range": "bytes=0-3", "If-Range": '"other"'},
    ):
        answer = client.get("/images/cat/file", headers=headers)
        assert (answer.status_code, answer.content) == (200, picture())
    answer = client.get("/images/cat/file", headers={"Range": "bytes=0-3", "If-Range": etag})
    assert (answer.status_code, answer.content) == (206, picture()[:4])
    for asked in (f"bytes={len(picture())}-", "bytes=999999-", "bytes=999999-9999999", "bytes=-0"):
        answer = client.get("/images/cat/file", headers={"Range": asked})
        assert (answer.status_code, answer.content) == (416, b""), asked
        assert answer.headers["content-range"] == f"bytes */{len(picture())}"
    etag = client.get("/images/cat/thumbnail").headers["etag"]
    answer = client.get("/images/cat/thumbnail", headers={"Range": "Bytes=0-1", "If-Range": etag})
    assert (answer.status_code, answer.content) == (206, b"\xff\xd8")


@pytest.mark.parametrize("started", [False, True])
def test_a_client_that_goes_away_leaves_no_file_open(started):
    file, sent = io.BytesIO(bytes(2**20)), []

    async def receive():
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)
        if len(sent) > started:
            raise OSError("connection lost")

    request = Request({"type": "http", "headers": []})
    answer = BlobResponse(request, file, media_type="image/png", headers={"ETag": '"x"'})
    with pytest.raises(ClientDisconnect):
        asyncio.run(answer({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send))
    assert file.closed


def test_the_thumbnail_is_a_small_jpeg_and_is_made_again_when_it_is_lost(client, index, settings):
    out = io.BytesIO()
    Image.new("RGB", (800, 400), (10, 200, 30)).save(out, "PNG")
    index(("wide.png", out.getvalue()), ids="wide")
    for round_ in range(2):
        answer = client.get("/images/wide/thumbnail")
        assert answer.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(answer.content)).size == (256, 128)
        if round_ == 0:
            (lost,) = (settings.data_dir / "thumbnails").rglob("*.jpg")
            lost.unlink()


def test_originals_none_keeps_no_file_but_a_thumbnail(clients, settings):
    client = clients(settings.model_copy(update={"originals": "none"}))
    client.post("/index", headers=ADMIN, files={"files": ("a.png", picture())}, data={"ids": "a"})
    answer = client.get("/images/a/file")
    assert (answer.status_code, answer.json()["code"]) == (404, "original_not_kept")
    assert client.get("/images/a/thumbnail").status_code == 200


def test_listing_goes_by_cursor_and_sees_each_picture_once(client, index):
    ids = [f"p{n}" for n in range(7)]
    index(*[(f"{n}.png", solid((n * 30, 9, 99))) for n in range(7)], ids=ids)
    seen, cursor = [], None
    while True:
        query = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        page = client.get("/images", params=query).json()
        seen += [image["id"] for image in page["images"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert seen == ids


def test_listing_with_a_filter(client, index):
    index(
        ("a.png", solid((1, 2, 3))),
        ("b.png", solid((200, 2, 3))),
        ids=["a", "b"],
        metadata='[{"n": 1}, {"n": 2}]',
    )
    page = client.get("/images", params={"filter": '{"n": {"gt": 1}}'}).json()
    assert [image["id"] for image in page["images"]] == ["b"]
    assert page["warnings"] == []
    page = client.get("/images", params={"filter": '{"or": [{"m": 1}, {"n": {"in": [1, "2"]}}]}'})
    assert [image["id"] for image in page.json()["images"]] == ["a"]
    missing, mismatched = page.json()["warnings"]
    assert missing == "No picture has the field 'm'"
    assert mismatched.startswith("'n' is compared with text, but holds numbers alone")


def test_counts_and_facets(client, index):
    assert client.get("/collections/default/count").json() == {
        "collection": "default",
        "count": 0,
        "warnings": [],
    }
    assert client.get("/collections/default/facets").json()["facets"] == []
    metadata = [{"label": "cat", "n": 2.0, "day": "2026-01-31"}, {"label": "cat", "n": 2.5}]
    pictures = [("a.png", solid((1, 2, 3))), ("b.png", solid((200, 2, 3)))]
    index(*pictures, ids=["a", "b"], metadata=json.dumps(metadata))
    where = {"filter": '{"n": {"gt": 2}}'}
    assert client.get("/collections/default/count", params=where).json()["count"] == 1
    body = client.get("/collections/default/facets", params={"field": ["n", "label", "day"]}).json()
    assert body == {
        "collection": "default",
        "count": 2,
        "total_fields": 3,
        "facets": [
            {
                "field": "n",
                "count": 2,
                "distinct": 2,
                "values": [{"value": 2, "count": 1}, {"value": 2.5, "count": 1}],
                "numbers": {"min": 2, "max": 2.5},
                "dates": None,
            },
            {
                "field": "label",
                "count": 2,
                "distinct": 1,
                "values": [{"value": "cat", "count": 2}],
                "numbers": None,
                "dates": None,
            },
            {
                "field": "day",
                "count": 1,
                "distinct": 1,
                "values": [{"value": "2026-01-31", "count": 1}],
                "numbers": None,
                "dates": {"min": "2026-01-31", "max": "2026-01-31"},
            },
        ],
        "warnings": [],
    }


@pytest.mark.parametrize(
    ("path", "query", "code"),
    [
        ("default/count", {"filter": '{"or": {}}'}, "invalid_filter"),
        ("default/facets", {"filter": '{"a": 1, "a": 2}'}, "invalid_filter"),
        ("default/facets", {"limit": 101}, "invalid_parameter"),
        ("default/facets", {"field": ["x"] * 65}, "invalid_parameter"),
        ("default/facets", {"field": "\0fields"}, "invalid_filter"),
        ("shoes/facets", {}, "collection_not_found"),
        ("shoes/count", {}, "collection_not_found"),
    ],
)
def test_counting_wrongly(client, path, query, code):
    answer = client.get(f"/collections/{path}", params=query)
    assert answer.json()["code"] == code


def test_listing_an_unknown_collection_is_404_and_the_default_one_is_empty(client):
    answer = client.get("/images", params={"collection": "shoes"})
    assert (answer.status_code, answer.json()["code"]) == (404, "collection_not_found")
    assert client.get("/images").json()["images"] == []


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 1001}, {"cursor": "x"}, {"limit": "x"}])
def test_listing_wrongly(client, query):
    assert client.get("/images", params=query).status_code == 422


def test_patch_merges_and_null_removes(client, index):
    index(("a.png", picture()), ids="a", metadata='{"label": "cat", "old": true, "n": {"x": 1}}')
    answer = client.patch(
        "/images/a",
        headers=ADMIN,
        json={"metadata": {"old": None, "n": {"y": 2}, "new": [1]}},
    )
    assert answer.json()["metadata"] == {"label": "cat", "n": {"x": 1, "y": 2}, "new": [1]}
    assert client.get("/images/a").json()["metadata"] == answer.json()["metadata"]


def test_patches_cannot_pile_up_beyond_the_limit(client, index):
    index(("a.png", picture()), ids="a")
    for key in ("x", "y"):
        answer = client.patch("/images/a", headers=ADMIN, json={"metadata": {key: "t" * 10_000}})
    assert (answer.status_code, answer.json()["code"]) == (413, "metadata_too_large")
    assert set(client.get("/images/a").json()["metadata"]) == {"x"}


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"[]", 422), (b'{"metadata": 3}', 422), (b'{"meta": {}}', 422)],
)
def test_patching_wrongly(client, index, body, status):
    index(("a.png", picture()), ids="a")
    headers = {**ADMIN, "Content-Type": "application/json"}
    assert client.patch("/images/a", headers=headers, content=body).status_code == status


def test_a_deleted_picture_is_never_found_again(client, index):
    index(("a.png", picture("mug")), ("b.png", picture("fish")), ids=["a", "b"])
    assert client.delete("/images/a", headers=ADMIN).status_code == 204
    found = client.post("/search", files={"file": picture("mug")}).json()["matches"]
    assert [match["id"] for match in found] == ["b"]
    for path in ("/images/a", "/images/a/file", "/images/a/thumbnail", "/images/a/similar"):
        assert (client.get(path).status_code, client.get(path).json()["code"]) == (
            404,
            "image_not_found",
        )
    assert client.delete("/images/a", headers=ADMIN).status_code == 404
    assert client.patch("/images/a", headers=ADMIN, json={"metadata": {}}).status_code == 404


def test_a_deleted_picture_can_come_back(client, index):
    index(("a.png", picture()), ids="a")
    client.delete("/images/a", headers=ADMIN)
    assert index(("a.png", picture()), ids="a")["created"] == 1
    assert client.get("/images/a/file").status_code == 200


@pytest.mark.parametrize("bad", ["ü", "a" * 300, "..%2F..%2Fetc%2Fpasswd", "a%00", "-x"])
def test_paths_with_ids_that_are_none(client, bad):
    answer = client.get(f"/images/{bad}")
    assert answer.status_code in {404, 422}
    assert answer.headers["content-type"] == "application/problem+json"


def test_collections_are_listed_and_deleted(client, index):
    index(("a.png", picture()), collection="shoes")
    (shoes,) = client.get("/collections").json()["collections"]
    assert (shoes["name"], shoes["count"], shoes["searchable"]) == ("shoes", 1, True)
    assert shoes["passport"]["model"] == "color"
    assert client.delete("/collections/shoes", headers=ADMIN).status_code == 204
    assert client.get("/collections").json()["collections"] == []
    assert client.delete("/collections/shoes", headers=ADMIN).status_code == 404
    assert client.delete("/collections/SHOES", headers=ADMIN).status_code == 422
