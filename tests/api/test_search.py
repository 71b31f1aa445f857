"""POST /search and GET /images/{id}/similar."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pytest

from lookalike.models.color import ColorEncoder
from scripts.samples import Sample, draw
from tests.api.conftest import picture, solid

LABELS = ["mug", "fish", "car", "house", "leaf"]


@pytest.fixture
def filled(client, index):
    """Twenty pictures: five classes, four things of each, with a label, a price and a rank."""
    for row, label in enumerate(LABELS):
        index(
            *[(f"{label}-{n}.png", picture(label, n)) for n in range(4)],
            ids=[f"{label}-{n}" for n in range(4)],
            metadata=json.dumps([{"label": label, "price": 10 * row + n} for n in range(4)]),
        )
    return client


def test_the_answer_has_exactly_the_documented_json(client, index):
    index(("cat.png", picture()), metadata='{"label": "cat"}')
    digest = hashlib.sha256(picture()).hexdigest()
    body = client.post("/search", files={"file": ("query.png", picture())}).json()
    took = body.pop("took_ms")
    assert set(took) == {"decode", "embed", "search", "total"}
    assert took["total"] >= max(took["decode"], took["embed"], took["search"])
    assert body["matches"][0].pop("score") == pytest.approx(1.0, abs=1e-6)
    assert body["matches"][0].pop("distance") == pytest.approx(0.0, abs=1e-3)
    links = f"collection=default&v={digest[:16]}"
    assert body == {
        "collection": "default",
        "model": {"name": "color", "weights": "none", "head": None, "dim": ColorEncoder().spec.dim},
        "query": {
            "width": 96,
            "height": 72,
            "sha256": digest,
            "parts": [
                {
                    "kind": "picture",
                    "weight": 1.0,
                    "text": None,
                    "id": None,
                    "crop": None,
                    "width": 96,
                    "height": 72,
                    "sha256": digest,
                }
            ],
            "combine": "mean",
            "flip": False,
        },
        "offset": 0,
        "warnings": [],
        "verdict": None,
        "matches": [
            {
                "rank": 1,
                "id": digest[:16],
                "filename": "cat.png",
                "path": None,
                "copies": [],
                "copy_probability": None,
                "metadata": {"label": "cat"},
                "image_url": f"/images/{digest[:16]}/file?{links}",
                "thumbnail_url": f"/images/{digest[:16]}/thumbnail?{links}",
            }
        ],
    }
    for url in ("image_url", "thumbnail_url"):
        assert client.get(body["matches"][0][url]).status_code == 200


def test_scores_equal_numpy_on_the_encoders_own_vectors(filled):
    encoder = ColorEncoder()

    def vector(label: str, n: int) -> np.ndarray:
        image = draw(Sample(label, n, 0), size=(96, 72))
        return encoder.encode([encoder.prepare(image)])[0]

    query = vector("fish", 9)
    expected = {
        f"{label}-{n}": float(vector(label, n) @ query) for label in LABELS for n in range(4)
    }
    answer = filled.post("/search", files={"file": picture("fish", 9)}, data={"k": 20}).json()
    assert [match["rank"] for match in answer["matches"]] == list(range(1, 21))
    for match in answer["matches"]:
        assert match["score"] == pytest.approx(expected[match["id"]], abs=1e-5)
        assert match["distance"] == pytest.approx(
            math.sqrt(max(0, 2 - 2 * match["score"])), abs=1e-6
        )
    scores = [match["score"] for match in answer["matches"]]
    assert scores == sorted(scores, reverse=True)


def test_every_stored_picture_finds_itself_first(filled):
    for label in LABELS:
        for n in range(4):
            answer = filled.post("/search", files={"file": picture(label, n)}, data={"k": 1})
            assert answer.json()["matches"][0]["id"] == f"{label}-{n}"


def test_k_is_how_many(filled):
    found = filled.post("/search", files={"file": picture()}, data={"k": 7}).json()["matches"]
    assert len(found) == 7
    default = filled.post("/search", files={"file": picture()}).json()["matches"]
    assert len(default) == 10


@pytest.mark.parametrize("k", ["0", "-1", "1001", "abc", "1.5", "1e3", " "])
def test_k_out_of_range(client, k):
    answer = client.post("/search", files={"file": picture()}, data={"k": k})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")
    assert "k" in answer.json()["detail"]


def test_k_of_a_thousand_is_allowed(filled):
    answer = filled.post("/search", files={"file": picture()}, data={"k": 1000})
    assert len(answer.json()["matches"]) == 20


def test_a_filter_goes_before_the_ranking_and_always_gives_k(filled):
    for label in LABELS:
        answer = filled.post(
            "/search",
            files={"file": picture("mug")},
            data={"k": 4, "filter": json.dumps({"label": label})},
        )
        assert [match["metadata"]["label"] for match in answer.json()["matches"]] == [label] * 4


def test_conditions_of_a_filter_hold_together(filled):
    where = {"price": {"gte": 10, "lt": 40}, "label": {"in": ["mug", "car", "leaf"]}}
    answer = filled.post(
        "/search", files={"file": picture()}, data={"k": 100, "filter": json.dumps(where)}
    )
    assert {match["id"] for match in answer.json()["matches"]} == {f"car-{n}" for n in range(4)}


@pytest.mark.parametrize(
    "where",
    ["{", "cat", "[1]", "3", '{"label": {"like": "c"}}', '{"a": {}}', '{"a": [1]}', "[" * 50_000],
)
def test_a_filter_that_is_none(client, where):
    answer = client.post("/search", files={"file": picture()}, data={"filter": where})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_filter")


def test_min_score_leaves_out_what_is_below(filled):
    every = filled.post("/search", files={"file": picture()}, data={"k": 20}).json()["matches"]
    bound = every[5]["score"]
    some = filled.post(
        "/search", files={"file": picture()}, data={"k": 20, "min_score": bound}
    ).json()["matches"]
    assert [match["id"] for match in some] == [
        match["id"] for match in every if match["score"] >= bound
    ]


@pytest.mark.parametrize("bad", ["2", "-1.5", "nan", "high"])
def test_min_score_out_of_range(client, bad):
    answer = client.post("/search", files={"file": picture()}, data={"min_score": bad})
    assert answer.status_code == 422


def test_group_by_gives_the_best_of_each_value(filled):
    every = filled.post("/search", files={"file": picture()}, data={"k": 20}).json()["matches"]
    best: dict[str, str] = {}
    for match in every:
        best.setdefault(match["metadata"]["label"], match["id"])
    answer = filled.post("/search", files={"file": picture()}, data={"k": 5, "group_by": "label"})
    assert [match["id"] for match in answer.json()["matches"]] == list(best.values())
    assert [match["rank"] for match in answer.json()["matches"]] == [1, 2, 3, 4, 5]


def test_similar_gives_the_same_scores_without_the_picture_itself(filled):
    searched = filled.post("/search", files={"file": picture("car", 2)}, data={"k": 6}).json()
    similar = filled.get("/images/car-2/similar", params={"k": 5}).json()
    assert searched["matches"][0]["id"] == "car-2"
    assert [match["id"] for match in similar["matches"]] == [
        match["id"] for match in searched["matches"][1:]
    ]
    assert similar["query"]["sha256"] == hashlib.sha256(picture("car", 2)).hexdigest()


def test_searching_an_empty_service_finds_nothing(client):
    answer = client.post("/search", files={"file": picture()})
    assert (answer.status_code, answer.json()["matches"]) == (200, [])


def test_an_unknown_collection_is_404(client):
    answer = client.post("/search", files={"file": picture()}, data={"collection": "shoes"})
    assert (answer.status_code, answer.json()["code"]) == (404, "collection_not_found")


def test_collections_are_apart(client, index):
    index(("red.png", solid((255, 0, 0))), ids="a", collection="reds")
    index(("blue.png", solid((0, 0, 255))), ids="a", collection="blues")
    answer = client.post(
        "/search", files={"file": solid((255, 0, 0))}, data={"collection": "blues"}
    )
    assert [match["filename"] for match in answer.json()["matches"]] == ["blue.png"]
    assert "collection=blues" in answer.json()["matches"][0]["image_url"]


def test_parameters_in_the_address_are_refused_rather_than_ignored(client):
    answer = client.post("/search?k=3", files={"file": picture()})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")


def test_no_file_and_a_text_instead_of_a_file(client):
    nothing = client.post("/search", files={"other": b"x"})
    assert nothing.status_code == 422
    text = client.post("/search", files={"file": (None, "photo.jpg")})
    assert (text.status_code, text.json()["code"]) == (422, "invalid_parameter")
    assert "@" in text.json()["detail"]


def test_a_body_that_is_no_form(client):
    for kind in ("application/json", "application/x-www-form-urlencoded", ""):
        answer = client.post("/search", content=b"{}", headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
    broken = client.post(
        "/search", content=b"no parts", headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert (broken.status_code, broken.json()["code"]) == (400, "malformed_request")
