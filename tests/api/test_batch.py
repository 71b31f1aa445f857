"""POST /search/batch: many queries in one request, as JSON or with files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.conftest import picture

STORED = {f"{label}-{n}": picture(label, n) for label in ("mug", "fish") for n in range(3)}


@pytest.fixture
def filled(client, index):
    index(*[(f"{name}.png", data) for name, data in STORED.items()], ids=[*STORED])
    return client


def without_time(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "took_ms"}


def ask(client, queries: Any, *files: bytes, status: int = 200) -> dict[str, Any]:
    if not files:
        answer = client.post("/search/batch", json=queries)
    else:
        sent = [("file", (f"{n}.png", data)) for n, data in enumerate(files)]
        form = {"queries": json.dumps(queries)}
        answer = client.post("/search/batch", data=form, files=sent)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_each_query_is_answered_as_alone(filled):
    photos = [picture("mug", 8), picture("fish", 8)]
    queries = [
        {"parts": [{"file": 0}], "k": 2},
        {"parts": [{"file": 1, "weight": 2.5}, {"id": "mug-1", "weight": -0.5}], "combine": "any"},
        {"parts": [{"file": 1, "crop": [0, 0, 0.5, 1]}], "flip": True, "offset": 1},
        {"parts": [{"text": "red"}], "min_score": 0.5},
    ]
    alone: list[dict[str, Any]] = [
        {"file": photos[0], "k": "2"},
        {"file": photos[1], "file_weight": "2.5", "id": "mug-1", "id_weight": "-0.5"}
        | {"combine": "any"},
        {"file": photos[1], "crop": "0,0,0.5,1", "flip": "true", "offset": "1"},
        {"text": "red", "min_score": "0.5"},
    ]
    answer = ask(filled, {"queries": queries}, *photos)
    assert answer["failed"] == 0
    for form, result in zip(alone, answer["results"], strict=True):
        sent = {
            name: ("a.png", value) if name == "file" else (None, value)
            for name, value in form.items()
        }
        assert without_time(result) == without_time(filled.post("/search", files=sent).json())


def test_json_alone_for_what_needs_no_file(filled):
    queries = [{"parts": [{"id": name}], "k": 3} for name in STORED]
    answer = ask(filled, {"queries": queries})
    for name, result in zip(STORED, answer["results"], strict=True):
        similar = filled.get(f"/images/{name}/similar", params={"k": 3}).json()
        assert without_time(result) == without_time(similar)


def test_one_that_fails_harms_no_other(filled):
    queries = [
        {"parts": [{"id": "gone"}]},
        {"parts": [{"id": "mug-1"}], "k": 1},
        {"parts": [{"file": 0}]},
        {"parts": [{"file": 7}]},
        {"parts": [{"id": "mug-1", "weight": -1}]},
        {"parts": [{"id": "mug-1", "text": "red"}]},
        {"parts": [{"vector": [1, 2]}]},
        {"parts": [{"id": "mug-1"}], "filter": {"a": {"like": "b"}}},
        {"parts": [{"id": "mug-1"}], "k": 10, "offset": 9_999},
    ]
    answer = ask(filled, {"queries": queries}, b"no picture", status=207)
    codes = [one["error"]["code"] if "error" in one else None for one in answer["results"]]
    wrong = "invalid_parameter"
    assert codes == [
        *("image_not_found", None, "not_an_image"),
        *(wrong, wrong, wrong, wrong, "invalid_filter", wrong),
    ]
    assert answer["failed"] == 8


@pytest.mark.parametrize(
    ("queries", "said"),
    [
        ({}, "queries"),
        ({"queries": []}, "queries"),
        ([], "object"),
        ({"queries": [{"parts": []}]}, "parts"),
        ({"queries": [{"parts": [{"id": "a"}], "k": 0}]}, "k"),
        ({"queries": [{"parts": [{"id": "a"}], "kk": 3}]}, "kk"),
        ({"queries": [{"parts": [{"id": "a"}]}], "more": 1}, "more"),
        ({"queries": [{"parts": [{"id": "a"}]}] * 101}, "100"),
        ({"queries": [{"parts": [{"id": "a"}], "k": 1000}] * 11}, "10,000"),
        ({"queries": [{"parts": [{"text": "red"}] * 5}] * 13}, "64"),
        ({"queries": [{"parts": [{"id": "a"}] * 17}]}, "16"),
    ],
)
def test_what_is_no_batch(client, queries, said):
    answer = ask(client, queries, status=422)
    assert (answer["code"], said in answer["detail"]) == ("invalid_parameter", True), answer


def test_bodies_that_are_none(client):
    json_kind = {"Content-Type": "application/json"}
    broken = client.post("/search/batch", content=b"{", headers=json_kind)
    assert (broken.status_code, broken.json()["code"]) == (400, "malformed_request")
    odd = client.post("/search/batch", content=b"\xff\xfe", headers=json_kind)
    assert (odd.status_code, odd.json()["code"]) == (400, "malformed_request")
    large = client.post("/search/batch", content=b" " * 4_100_000, headers=json_kind)
    assert (large.status_code, large.json()["code"]) == (413, "request_too_large")
