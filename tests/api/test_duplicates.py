"""GET /duplicates over HTTP."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
from PIL import Image

from tests.api.conftest import ADMIN, picture
from tests.memory_store import MemoryStore
from tests.waiting import PATIENCE_S

MUG, FISH = picture("mug"), picture("fish", 3)


def jpeg(data: bytes, scale: float = 1.0) -> bytes:
    """The picture of a file, re-encoded."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    out = io.BytesIO()
    size = (round(image.width * scale), round(image.height * scale))
    image.resize(size).save(out, "JPEG", quality=90)
    return out.getvalue()


@pytest.fixture
def held(index):
    """Two mugs of the same bytes, one re-encoded at half the size, and a fish."""
    index(
        ("mug.png", MUG),
        ("copy.png", MUG),
        ("small.jpg", jpeg(MUG, 0.5)),
        ("fish.png", FISH),
        ids=["mug", "copy", "small", "fish"],
    )


def test_groups_say_what_to_keep_and_what_each_member_is(client, held):
    answer = client.get("/duplicates", params={"kind": "reencoded", "threshold": 0.9})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    small = len(jpeg(MUG, 0.5))
    assert {key: body[key] for key in body if key != "groups"} == {
        "state": "ready",
        "collection": "default",
        "kind": "reencoded",
        "threshold": 0.9,
        "total_groups": 1,
        "total_duplicates": 2,
        "total_copies": 0,
        "bytes_saved": small,
        "truncated": 0,
        "next_cursor": None,
    }
    (group,) = body["groups"]
    assert (group["kind"], group["bytes_saved"]) == ("reencoded", small)
    assert group["why"] == "most pixels"
    assert group["keep"]["id"] == "copy"  # as old and as large as the other: the lower id
    exact, reencoded = group["members"]
    assert (exact["id"], exact["kind"], exact["score"]) == ("mug", "exact", 1.0)
    assert (reencoded["id"], reencoded["kind"]) == ("small", "reencoded")
    assert 0.9 <= reencoded["score"] < 1
    assert (reencoded["width"], reencoded["height"], reencoded["bytes"]) == (48, 36, small)
    assert client.get(reencoded["image_url"]).content == jpeg(MUG, 0.5)
    assert client.get(reencoded["thumbnail_url"]).status_code == 200


def test_a_stricter_kind_finds_less_and_a_weaker_one_more(client, held):
    def members(**query):
        groups = client.get("/duplicates", params=query).json()["groups"]
        return {member["id"]: member["kind"] for group in groups for member in group["members"]}

    assert members(kind="exact") == {"mug": "exact"}
    assert members(kind="reencoded") == {"mug": "exact", "small": "reencoded"}
    # the fish has as many pixels and more bytes: it is kept, and all are like it
    near = members(kind="near", threshold=0.5)
    assert near == {"mug": "near", "copy": "near", "small": "near"}


def test_detailed_pictures_are_compared_by_whole_thumbnails(client, index):
    rough = np.random.default_rng(0).integers(0, 256, (16, 22, 3), dtype=np.uint8)
    image = Image.fromarray(rough).resize((300, 216), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, "PNG")
    files = {"whole": out.getvalue(), "half": jpeg(out.getvalue(), 0.5)}
    index(*files.items(), ids=list(files))
    (group,) = client.get("/duplicates").json()["groups"]
    assert (group["keep"]["id"], group["kind"]) == ("whole", "reencoded")


def test_pages(client, index):
    files = [(f"{n}.png", picture("mug", n // 2)) for n in range(6)]
    index(*files, ids=[f"p{n}" for n in range(6)])
    first = client.get("/duplicates", params={"kind": "exact", "limit": 2}).json()
    assert (len(first["groups"]), first["total_groups"]) == (2, 3)
    query = {"kind": "exact", "limit": 2, "cursor": first["next_cursor"]}
    second = client.get("/duplicates", params=query).json()
    assert [group["keep"]["id"] for group in first["groups"] + second["groups"]] == [
        "p0",
        "p2",
        "p4",
    ]
    assert second["next_cursor"] is None


@pytest.mark.parametrize(
    "query", [{"cursor": "c1"}, {"threshold": 0.1}, {"kind": "twins"}, {"limit": 0}]
)
def test_wrong_parameters(client, query):
    answer = client.get("/duplicates", params=query)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")


def test_an_unknown_collection_is_404_and_the_default_one_is_empty(client):
    answer = client.get("/duplicates", params={"collection": "shoes"})
    assert (answer.status_code, answer.json()["code"]) == (404, "collection_not_found")
    assert client.get("/duplicates").json()["groups"] == []


class Gated(MemoryStore):
    """Answers no search for many matches until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def search(self, *args, **options):
        assert self.gate.wait(PATIENCE_S)
        return super().search(*args, **options)


def test_a_search_that_takes_long_is_answered_202_until_it_is_done(clients, settings):
    store = Gated()
    client = clients(settings, store=store)
    client.app.state.parts.services.duplicates._wait_s = 0.1
    files = [("files", ("a.png", MUG)), ("files", ("b.jpg", jpeg(MUG)))]
    assert client.post("/index", headers=ADMIN, files=files).status_code == 201
    answer = client.get("/duplicates")
    assert answer.status_code == 202
    assert answer.json() == {"state": "running", "done": 0, "total": 2}
    assert int(answer.headers["retry-after"]) >= 1
    store.gate.set()
    while (answer := client.get("/duplicates")).status_code == 202:
        pass
    assert answer.json()["total_groups"] == 1


def test_a_read_key_guards_it(clients, settings):
    client = clients(settings.model_copy(update={"read_key": settings.admin_key}))
    assert client.get("/duplicates").status_code == 401
    assert client.get("/duplicates", headers=ADMIN).status_code == 200


def test_a_misspelt_parameter_is_refused(client):
    answer = client.get("/duplicates", params={"kinds": "exact"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")
    wanted = "kinds: no such parameter; did you mean kind? This call takes collection, kind"
    assert wanted in answer.json()["detail"]
