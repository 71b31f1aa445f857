"""How hard a search looks, by request; and the recall of what is found, measured meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lookalike.records import LIMITS, CollectionInfo, Effort
from tests.api.conftest import ADMIN, ADMIN_KEY, picture
from tests.memory_store import MemoryStore
from tests.waiting import wait_for
from tests.web import Web, page_of


class Approximate(MemoryStore):
    """Misses `missed` unless every picture is to be scored; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.missed = ""
        self.asked: list[Effort | None] = []

    def collection(self, name: str) -> CollectionInfo | None:
        found = super().collection(name)
        return replace(found, exact=False) if found else None

    def search(self, collection, queries, *, exclude=(), effort=None, **options):
        self.asked.append(effort)
        missed = () if effort is not None and effort.exact else (self.missed,)
        return super().search(collection, queries, exclude=[*exclude, *missed], **options)


@pytest.fixture
def web():
    made = Web()
    made.pages["/mug.png"] = page_of(picture("mug"))
    yield made
    made.close()


@pytest.fixture
def store() -> Approximate:
    return Approximate()


@pytest.fixture
def client(clients, settings, store, web):
    fetching = {"fetch_urls": True, "fetch_allow": "127.0.0.1", "fetch_ports": str(web.port)}
    made = clients(settings.model_copy(update={"recall_sample": 0.0, **fetching}), store=store)
    for n in range(4):
        answer = made.post(
            "/index",
            headers=ADMIN,
            files={"files": (f"{n}.png", picture("mug", n))},
            data={"ids": f"m{n}"},
        )
        assert answer.status_code == 201
    return made


Door = Callable[..., Any]


@pytest.fixture(params=["form", "json", "address"])
def door(request, client, web) -> Door:
    """The three calls that search; each of them with the parameters given."""

    def ask(**given: Any) -> Any:
        if request.param == "form":
            files = {"file": ("q.png", picture("mug"))}
            return client.post("/search", files=files, data={k: str(v) for k, v in given.items()})
        if request.param == "json":
            return client.post("/search/url", json={"url": f"{web.url}/mug.png", **given})
        return client.get("/images/m0/similar", params=given)

    return ask


def found(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [match["id"] for match in answer.json()["matches"]]


def test_parameters_reach_the_store(door, store):
    found(door())
    found(door(nprobe=7, ef_search=33, k_factor=5))
    found(door(exact=True))
    assert store.asked == [
        None,  # so that it may share a call with others
        Effort(nprobe=7, ef_search=33, k_factor=5),
        Effort(exact=True),
    ]


def test_an_exact_search_finds_what_the_index_misses(door, store):
    store.missed = "m2"
    assert "m2" not in found(door())
    assert "m2" in found(door(exact=True))


@pytest.mark.parametrize("name", LIMITS)
def test_parameters_out_of_their_range_are_refused(door, name):
    for value in (0, LIMITS[name] + 1, -1):
        answer = door(**{name: value})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")
        assert name in answer.json()["detail"]
    assert found(door(**{name: LIMITS[name]}))


def test_grouped_searches_look_as_hard(client, store):
    form = {"group_by": "label", "nprobe": "3"}
    client.post("/search", files={"file": ("q.png", picture())}, data=form)
    assert store.asked[-1] == Effort(nprobe=3)


def measured(client, count: int) -> dict[str, Any]:
    def look() -> dict[str, Any]:
        found: dict[str, Any] = client.get("/info").json()["recall"].get("default", {})
        return found if found.get("samples") == count else {}

    return wait_for(look)


def test_recall_is_measured_on_real_searches(clients, settings, store):
    client = clients(settings.model_copy(update={"recall_sample": 1.0}), store=store)
    for n in range(4):
        client.post(
            "/index",
            headers=ADMIN,
            files={"files": (f"{n}.png", picture("mug", n))},
            data={"ids": f"m{n}"},
        )
    assert client.get("/health/ready").status_code == 200  # searches too, and is no sample
    assert client.get("/info").json()["recall"] == {}
    assert "lookalike_ann_recall_at_k{" not in client.get("/metrics").text
    store.missed = "m1"
    client.post("/search", files={"file": ("q.png", picture("mug"))})
    wanted = {"samples": 1, "mean": 0.75, "dropped": 0, "skipped": 0}
    assert measured(client, 1) == wanted
    store.missed = ""
    client.get("/images/m0/similar")
    assert measured(client, 2)["mean"] == pytest.approx(0.875)
    text = client.get("/metrics").text
    assert 'lookalike_ann_recall_at_k{collection="default"} 0.875' in text
    for outcome, count in (("measured", 2), ("dropped", 0), ("skipped", 0)):
        line = f'collection="default",outcome="{outcome}"}} {count}.0'
        assert "lookalike_ann_recall_samples_total{" + line in text
    client.delete("/collections/default", headers={"X-API-Key": ADMIN_KEY})
    assert client.get("/info").json()["recall"] == {}


def test_an_exact_index_is_not_measured(clients, settings):
    client = clients(settings.model_copy(update={"recall_sample": 1.0}))
    client.post("/index", headers=ADMIN, files={"files": picture()})
    assert client.post("/search", files={"file": picture()}).status_code == 200
    assert client.get("/info").json()["recall"] == {}
    assert "lookalike_ann_recall_at_k{" not in client.get("/metrics").text
