"""POST /index: what becomes of pictures that are sent."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests.api.conftest import ADMIN, picture, solid


def test_the_answer_has_exactly_the_documented_json(client):
    mug, fish = picture("mug"), picture("fish")
    client.post("/index", headers=ADMIN, files=[("files", ("b.png", fish))])
    answer = client.post(
        "/index",
        headers=ADMIN,
        files=[
            ("files", ("a.png", mug)),
            ("files", ("b.png", fish)),
            ("files", ("notes.txt", b"hello, this is text")),
        ],
    )
    assert answer.status_code == 207
    body = answer.json()
    detail = body["items"][2]["error"].pop("detail")
    assert detail
    assert body == {
        "collection": "default",
        "created": 1,
        "replaced": 0,
        "updated": 0,
        "unchanged": 1,
        "skipped": 0,
        "failed": 1,
        "copies": 0,
        "conflicts": 0,
        "items": [
            {"filename": "a.png", "status": "created", "id": hashlib.sha256(mug).hexdigest()[:16]},
            {
                "filename": "b.png",
                "status": "unchanged",
                "id": hashlib.sha256(fish).hexdigest()[:16],
            },
            {"filename": "notes.txt", "status": "failed", "error": {"code": "not_an_image"}},
        ],
    }


def test_new_pictures_answer_201_and_nothing_new_answers_200(client):
    send = {"headers": ADMIN, "files": {"files": ("a.png", picture())}}
    assert client.post("/index", **send).status_code == 201
    assert client.post("/index", **send).status_code == 200


def test_one_failing_picture_alone_answers_with_its_own_error(client):
    answer = client.post("/index", headers=ADMIN, files={"files": ("notes.jpg", b"some text")})
    assert answer.status_code == 415
    assert answer.json()["code"] == "not_an_image"


def test_when_every_one_of_several_fails_the_items_still_say_why(client):
    files = [("files", ("a.jpg", b"text")), ("files", ("b.jpg", b""))]
    answer = client.post("/index", headers=ADMIN, files=files)
    assert answer.status_code == 415
    assert [item["status"] for item in answer.json()["items"]] == ["failed", "failed"]


def test_same_bytes_with_other_metadata_are_updated_without_an_embedding(client, index):
    index(("a.png", picture()), ids="a", metadata='{"label": "cat"}')
    before = client.get("/metrics").text
    body = index(("a.png", picture()), ids="a", metadata='{"label": "dog"}')
    assert body["updated"] == 1
    assert client.get("/images/a").json()["metadata"] == {"label": "dog"}
    count = "lookalike_batch_size_count"
    assert [line for line in before.splitlines() if line.startswith(count)] == [
        line for line in client.get("/metrics").text.splitlines() if line.startswith(count)
    ]


def test_sending_no_metadata_keeps_what_is_stored(client, index):
    index(("a.png", picture()), ids="a", metadata='{"label": "cat"}')
    assert index(("a.png", picture()), ids="a")["unchanged"] == 1
    assert index(("a.png", picture("fish")), ids="a")["replaced"] == 1
    assert client.get("/images/a").json()["metadata"] == {"label": "cat"}


def test_replace_is_the_default_and_the_old_picture_is_gone(client, index):
    index(("red.png", solid((255, 0, 0))), ids="x")
    assert index(("blue.png", solid((0, 0, 255))), ids="x")["replaced"] == 1
    matches = client.post("/search", files={"file": solid((255, 0, 0))}).json()["matches"]
    assert [(match["id"], match["filename"]) for match in matches] == [("x", "blue.png")]


def test_skip_leaves_an_existing_id_alone(client, index):
    index(("red.png", solid((255, 0, 0))), ids="x")
    assert index(("blue.png", solid((0, 0, 255))), ids="x", on_conflict="skip")["skipped"] == 1
    assert client.get("/images/x").json()["filename"] == "red.png"


def test_error_refuses_an_existing_id_but_not_the_very_same_again(client, index):
    index(("red.png", solid((255, 0, 0))), ids="x")
    form = {"ids": "x", "on_conflict": "error"}
    again = client.post("/index", headers=ADMIN, data=form, files={"files": solid((255, 0, 0))})
    assert again.status_code == 200
    other = client.post("/index", headers=ADMIN, data=form, files={"files": solid((0, 0, 255))})
    assert (other.status_code, other.json()["code"]) == (409, "image_exists")


def test_metadata_as_a_list_goes_to_the_pictures_in_order(client, index):
    index(
        ("a.png", picture("mug")),
        ("b.png", picture("fish")),
        ids=["a", "b"],
        metadata=json.dumps([{"label": "mug"}, {"label": "fish"}]),
    )
    assert client.get("/images/b").json()["metadata"] == {"label": "fish"}


def test_ids_as_one_json_list(client, index):
    body = index(("a.png", picture("mug")), ("b.png", picture("fish")), ids='["a", "b"]')
    assert [item["id"] for item in body["items"]] == ["a", "b"]


def test_the_same_id_twice_in_one_request_is_handled_in_order(client, index):
    body = index(
        ("red.png", solid((255, 0, 0))),
        ("blue.png", solid((0, 0, 255))),
        ("blue.png", solid((0, 0, 255))),
        ids=["x", "x", "x"],
    )
    assert [item["status"] for item in body["items"]] == ["created", "replaced", "unchanged"]
    assert client.get("/images/x").json()["filename"] == "blue.png"


def test_an_id_that_exists_twice_in_one_request_ends_as_two_calls_would(client, index):
    index(("red.png", solid((255, 0, 0))), ids="x", metadata='{"n": 1}')
    body = index(
        ("blue.png", solid((0, 0, 255))),
        ("red.png", solid((255, 0, 0))),
        ids=["x", "x"],
    )
    assert [item["status"] for item in body["items"]] == ["replaced", "replaced"]
    assert client.get("/images/x").json()["filename"] == "red.png"
    assert client.get("/images/x/file").content == solid((255, 0, 0))


def test_null_in_the_list_of_ids_is_an_id_from_the_content(client, index):
    red, blue = solid((255, 0, 0)), solid((0, 0, 255))
    body = index(("red.png", red), ("blue.png", blue), ids='[null, "b"]')
    assert [item["id"] for item in body["items"]] == [hashlib.sha256(red).hexdigest()[:16], "b"]
    for ids in ("[true]", "[1]", '[{"a": 1}]', "[[]]"):
        answer = client.post(
            "/index", headers=ADMIN, data={"ids": ids}, files={"files": ("r.png", red)}
        )
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_id")


def test_one_file_beyond_the_limit_ends_the_request_and_nothing_is_stored(clients, settings):
    client = clients(settings.model_copy(update={"max_file_bytes": 50_000}))
    files = [("files", ("a.png", picture())), ("files", ("big.png", picture() + b"x" * 50_000))]
    answer = client.post("/index", headers=ADMIN, files=files)
    assert (answer.status_code, answer.json()["code"]) == (413, "image_too_large")
    assert "big.png" in answer.json()["detail"]
    assert client.get("/images").json()["images"] == []


def test_a_request_may_hold_as_many_files_as_the_limit(client, settings):
    files = [("files", (f"{n}.png", solid((n, 2 * n, 255 - n)))) for n in range(settings.max_files)]
    ids = [f"id-{n}" for n in range(settings.max_files)]
    full = client.post("/index", headers=ADMIN, files=files, data={"ids": ids})
    assert full.json()["created"] == settings.max_files
    answer = client.post("/index", headers=ADMIN, files=[*files, files[0]])
    assert (answer.status_code, answer.json()["code"]) == (413, "too_many_files")


@pytest.mark.parametrize(
    "bad_id", ["../etc/passwd", "a/b", "ü", "a" * 300, ".hidden", "a b", "-", "\n", "a\x00b"]
)
def test_ids_that_are_none(client, bad_id):
    answer = client.post(
        "/index", headers=ADMIN, data={"ids": bad_id}, files={"files": ("a.png", picture())}
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_id")
    assert client.get("/images").json()["images"] == []


@pytest.mark.parametrize(
    ("metadata", "status", "code"),
    [
        ("{", 422, "invalid_metadata"),
        ('"text"', 422, "invalid_metadata"),
        ("[1]", 422, "invalid_metadata"),
        ("[{}, {}]", 422, "invalid_metadata"),
        ('{"a": NaN}', 422, "invalid_metadata"),
        ('{"a": 99999999999999999999}', 422, "invalid_metadata"),
        ('{"a": "\\ud800"}', 422, "invalid_metadata"),
        ("[" * 100_000, 422, "invalid_metadata"),
        (json.dumps({"text": "x" * 20_000}), 413, "metadata_too_large"),
        (json.dumps({"text": "x" * 1_000_000}), 413, "metadata_too_large"),
        (json.dumps({"text": "x" * 3_000_000}), 413, "metadata_too_large"),
    ],
)
def test_metadata_that_is_none(client, metadata, status, code):
    answer = client.post(
        "/index", headers=ADMIN, data={"metadata": metadata}, files={"files": ("a.png", picture())}
    )
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert client.get("/images").json()["images"] == []


@pytest.mark.parametrize("name", ["Upper", "1st", "a-b", "", "x" * 64, "ä", "a/b", "a\n"])
def test_collection_names_that_are_none(client, name):
    answer = client.post(
        "/index", headers=ADMIN, data={"collection": name}, files={"files": ("a.png", picture())}
    )
    if name == "":
        assert answer.json()["collection"] == "default"
    else:
        assert answer.status_code == 422


def test_a_field_nobody_reads_is_refused_rather_than_ignored(client):
    answer = client.post(
        "/index", headers=ADMIN, data={"meta": "{}"}, files={"files": ("a.png", picture())}
    )
    assert answer.status_code == 422
    assert "metadata" in answer.json()["detail"]


def test_what_was_indexed_is_there_after_a_restart(clients, settings):
    first = clients(settings)
    first.post("/index", headers=ADMIN, files={"files": ("a.png", picture())}, data={"ids": "a"})
    clients.stop(first)
    matches = clients(settings).post("/search", files={"file": picture()}).json()["matches"]
    assert [match["id"] for match in matches] == ["a"]
