"""Queries of several things: pictures, texts, ids and vectors with weights, crops and pages."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from lookalike.models.color import ColorEncoder
from tests.api.conftest import ADMIN, ADMIN_KEY, picture, solid

ENCODER = ColorEncoder()
LABELS = ["mug", "fish", "car", "house"]
STORED = {f"{label}-{n}": picture(label, n) for label in LABELS for n in range(5)}
EACH = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def image_of(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def vector_of(item: Any) -> np.ndarray:
    """What the model makes of a picture's bytes, an image or a text: (dim,) float64."""
    item = image_of(item) if isinstance(item, bytes) else item
    return ENCODER.encode([ENCODER.prepare(item)])[0].astype(np.float64)


VECTORS = {name: vector_of(data) for name, data in STORED.items()}


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def filled(client, index):
    index(
        *[(f"{name}.png", data) for name, data in STORED.items()],
        ids=[*STORED],
        metadata=json.dumps([{"label": name.partition("-")[0]} for name in STORED]),
    )
    return client


def ask(client, *parts: tuple[str, Any], status: int = 200, **fields: Any) -> dict[str, Any]:
    """Searches with parts of a form in their order, always as multipart."""
    sent = [
        (name, (f"{name}.png", value) if isinstance(value, bytes) else (None, str(value)))
        for name, value in [*parts, *fields.items()]
    ]
    answer = client.post("/search", files=sent)
    assert answer.status_code == status, answer.text
    return answer.json()


def scores(answer: dict[str, Any]) -> dict[str, float]:
    return {match["id"]: match["score"] for match in answer["matches"]}


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def plain(kinds: list[tuple[np.ndarray, float]], combine: str) -> dict[str, float]:
    """The score of every stored picture, as the documentation says it, one step after another."""
    against = sum((weight * vector for vector, weight in kinds if weight < 0), np.zeros(48))
    likes = [weight * vector for vector, weight in kinds if weight > 0]
    sums = [sum(likes) + against] if combine == "mean" else [like + against for like in likes]
    return {
        name: max(float(unit(one) @ stored) for one in sums) for name, stored in VECTORS.items()
    }


def test_two_pictures_count_together(filled):
    both = ask(filled, ("file", picture("mug", 7)), ("file", picture("fish", 7)), k=20)
    vectors = [(vector_of(picture(label, 7)), 1.0) for label in ("mug", "fish")]
    assert scores(both) == pytest.approx(plain(vectors, "mean"), abs=1e-5)
    asked = both["query"]
    assert (asked["width"], asked["sha256"], asked["combine"]) == (None, None, "mean")
    assert [(one["kind"], one["width"], one["weight"]) for one in asked["parts"]] == [
        ("picture", 96, 1.0),
        ("picture", 96, 1.0),
    ]


weights = st.floats(0.05, 3).map(lambda one: round(one, 3))
parts = st.lists(
    st.tuples(
        st.sampled_from(["file", "id", "text", "vector"]),
        st.integers(0, 19),
        st.one_of(weights, weights.map(lambda one: -one)),
    ),
    min_size=1,
    max_size=6,
).filter(lambda chosen: any(weight > 0 for *_, weight in chosen))


@EACH
@given(chosen=parts, combine=st.sampled_from(["mean", "any"]))
def test_combinations_equal_plain_numpy(filled, chosen, combine):
    names, colors = [*STORED], ["red", "green", "blue", "white"]
    sent: list[tuple[str, Any]] = []
    vectors: list[tuple[np.ndarray, float]] = []
    for kind, number, weight in chosen:
        value: Any = {"id": names[number], "text": colors[number % 4]}.get(kind)
        vector = VECTORS[names[number]]
        if kind == "file":
            value = picture("leaf", number)
        if kind == "vector":
            vector = unit(np.random.default_rng(number).normal(size=48))
            value = json.dumps((5 * vector).tolist())
        if kind in {"file", "text"}:
            vector = vector_of(value)
        sent += [(kind, value), (f"{kind}_weight", weight)]
        vectors.append((vector, weight))
    expected = plain(vectors, combine)
    lengths = [np.linalg.norm(sum(w * v for v, w in vectors))]
    if min(lengths) < 0.01:  # nearly without a direction: rounding decides
        return
    answer = ask(filled, *sent, combine=combine, k=20)
    left_out = {names[number] for kind, number, _ in chosen if kind == "id"}
    found = scores(answer)
    assert set(found) == set(STORED) - left_out
    assert found == pytest.approx({name: expected[name] for name in found}, abs=2e-5)
    listed = [match["score"] for match in answer["matches"]]
    assert listed == sorted(listed, reverse=True)


def test_words_find_what_they_name(filled, index):
    index(("red.png", solid((250, 10, 10))), ids="red", metadata='{"label": "color"}')
    answer = ask(filled, ("text", "red"), k=1)
    assert [match["id"] for match in answer["matches"]] == ["red"]
    assert answer["query"]["parts"][0]["text"] == "red"
    assert set(answer["took_ms"]) == {"embed", "search", "total"}


@EACH
@given(
    number=st.integers(0, 9),
    box=st.tuples(*[st.floats(0, 0.6)] * 2, *[st.floats(0.05, 0.4)] * 2),
)
def test_a_crop_is_what_cropping_the_file_first_gives(filled, number, box):
    data = picture("fish", number)
    left, top, width, height = box
    pixels = (left * 96, top * 72, (left + width) * 96, (top + height) * 72)
    x, y, right, bottom = map(round, pixels)
    if right <= x or bottom <= y:
        return
    cut = png(image_of(data).crop((x, y, right, bottom)))
    crop = ",".join(map(repr, box))
    cropped = ask(filled, ("file", data), crop=crop, k=20)
    assert scores(cropped) == scores(ask(filled, ("file", cut), k=20))
    (part,) = cropped["query"]["parts"]
    assert (part["width"], part["height"], part["crop"]) == (96, 72, pytest.approx(list(box)))


def test_the_smallest_crop_is_one_pixel(filled):
    image = image_of(picture("car"))
    answer = ask(filled, ("file", png(image)), crop="0.9999,0.9999,0.00001,0.00001", k=20)
    corner = png(image.crop((95, 71, 96, 72)))
    assert scores(answer) == scores(ask(filled, ("file", corner), k=20))


def test_each_picture_has_its_own_crop(filled):
    data = picture("mug", 3)
    half = png(image_of(data).crop((0, 0, 48, 72)))
    expected = scores(ask(filled, ("file", half), ("file", data), k=20))
    for crops in (["0,0,0.5,1", "0,0,1,1"], ["0,0,0.5,1", ""], ["0,0,0.5,1,0,0,1,1"]):
        sent = [("file", data), ("file", data), *(("crop", crop) for crop in crops)]
        assert scores(ask(filled, *sent, k=20)) == pytest.approx(expected, abs=1e-6)


@EACH
@given(number=st.integers(0, 30), label=st.sampled_from(LABELS))
def test_a_mirror_image_finds_the_same(filled, number, label):
    data = picture(label, number)
    mirrored = png(ImageOps.mirror(image_of(data)))
    found = scores(ask(filled, ("file", data), flip="true", k=20))
    other = scores(ask(filled, ("file", mirrored), flip="true", k=20))
    assert found == pytest.approx(other, abs=1e-3)
    middle = unit(vector_of(data) + vector_of(mirrored))
    expected = {name: float(middle @ vector) for name, vector in VECTORS.items()}
    assert found == pytest.approx(expected, abs=1e-5)


def test_stored_pictures_that_are_asked_for_are_no_matches(filled):
    one = ask(filled, ("id", "car-1"), k=20)
    similar = filled.get("/images/car-1/similar", params={"k": 20}).json()
    assert one["matches"] == similar["matches"]
    assert one["query"] == similar["query"]
    both = ask(filled, ("id", "car-1,car-2"), ("id", "fish-1"), ("id_weight", "1,1,-0.5"), k=20)
    assert set(scores(both)) == set(STORED) - {"car-1", "car-2", "fish-1"}


def test_vectors_as_json_and_as_base64(filled):
    vector = VECTORS["house-2"].astype("<f4")
    packed = base64.b64encode(vector.tobytes()).decode()
    for text in (json.dumps(vector.tolist()), packed, json.dumps((1e30 * vector).tolist())):
        answer = ask(filled, ("vector", text), k=1)
        assert answer["matches"][0]["id"] == "house-2"
        assert answer["matches"][0]["score"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("extra", [{}, {"filter": '{"label": {"ne": "fish"}}'}])
@pytest.mark.parametrize("group", ["", "label", "n"])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_pages_are_one_large_answer(filled, extra, group, size):
    for n, name in enumerate(STORED):
        patch = {"metadata": {"n": [n // 2]}}
        assert filled.patch(f"/images/{name}", headers=ADMIN, json=patch).status_code == 200
    query = [("file", picture("mug", 8)), ("file", picture("fish", 8)), ("combine", "any")]
    extra = extra | {"group_by": group}
    whole = ask(filled, *query, k=100, **extra)["matches"]
    pages = []
    for offset in range(0, len(whole) + 2 * size, size):
        page = ask(filled, *query, k=size, offset=offset, **extra)
        assert page["offset"] == offset
        pages += page["matches"]
    assert pages == whole
    assert [match["rank"] for match in pages] == list(range(1, len(whole) + 1))


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ([("k", "3")], "0 parts"),
        ([("text", " "), ("id", "")], "0 parts"),
        ([("id", "car-1")] * 17, "17 parts"),
        ([("id", "car-1"), ("id_weight", "-1")], "above 0"),
        ([("id", "car-1"), ("id_weight", "0")], "above 0"),
        ([("id", "car-1"), ("id_weight", "nan")], "-100 to 100"),
        ([("id", "car-1"), ("id_weight", "101")], "-100 to 100"),
        ([("id", "car-1"), ("id_weight", "much")], "number"),
        ([("id", "car-1"), ("id_weight", "1,2")], "2 numbers"),
        ([("id", "car-1"), ("file_weight", "1")], "file_weight"),
        ([("id", "car-1,car-1"), ("id_weight", "1,-1")], "cancel"),
        ([("id", "../car")], "id"),
        ([("id", "car-1"), ("flip", "true")], "mirror"),
        ([("id", "car-1"), ("crop", "0,0,1,1")], "0 files"),
        ([("file", STORED["car-1"]), ("crop", "0,0,1")], "3 numbers"),
        ([("file", STORED["car-1"]), ("crop", "0.5,0,0.6,1")], "no part"),
        ([("file", STORED["car-1"]), ("crop", "0,0,0,1")], "no part"),
        ([("file", STORED["car-1"]), ("crop", "-0.1,0,1,1")], "no part"),
        ([("file", STORED["car-1"]), ("crop", "nan,0,1,1")], "no part"),
        ([("file", STORED["car-1"])] * 2 + [("crop", "0,0,1,1")], "1 crop for 2 files"),
        ([("text", "a colour without a name")], "names of colors"),
        ([("vector", "[1, 2]")], "2 numbers"),
        ([("vector", "[]")], "finite"),
        ([("vector", "[NaN]")], "finite"),
        ([("vector", "[1e999]")], "finite"),
        ([("vector", "[[1]]")], "finite"),
        ([("vector", '["a"]')], "numbers"),
        ([("vector", "[" * 9000)], "JSON"),
        ([("vector", "[1,")], "JSON"),
        ([("vector", "not base64!")], "base64"),
        ([("vector", "AAAA")], "base64"),
        ([("vector", json.dumps([0] * 48))], "direction"),
        ([("combine", "all"), ("id", "car-1")], "combine"),
        ([("offset", "9995"), ("k", "10"), ("id", "car-1")], "9,990"),
        ([("offset", "-1"), ("id", "car-1")], "offset"),
        ([("colour", "red")], "no such field"),
    ],
)
def test_what_cannot_be_asked(filled, sent, said):
    answer = ask(filled, *sent, status=422)
    assert answer["code"] == "invalid_parameter" or sent == [("id", "../car")]
    assert said in answer["detail"]


def test_an_id_that_does_not_exist_is_named(filled):
    answer = ask(filled, ("id", "car-1"), ("id", "gone"), status=404)
    assert (answer["code"], "gone" in answer["detail"]) == ("image_not_found", True)
    empty = ask(filled, ("id", "car-1"), collection="shoes", status=404)
    assert empty["code"] in {"collection_not_found", "image_not_found"}


def test_the_picture_that_cannot_be_read_is_named(filled):
    sent = [("file", picture()), ("file", b"no picture")]
    answer = ask(filled, *sent, status=415)
    assert (answer["code"], "Picture 2" in answer["detail"]) == ("not_an_image", True)


def test_a_model_without_words_names_those_with_some(clients, settings):
    named = {"model": "resnet18", "weights": "random", "input_size": 32}
    client = clients(settings.model_copy(update=named))
    answer = ask(client, ("text", "red car"), status=422)
    assert answer["code"] == "invalid_parameter"
    assert "color" in answer["detail"]


def test_many_pictures_take_many_places(clients, settings):
    client = clients(settings.model_copy(update={"queue_size": 4}))
    for count in (1, 2, 16):  # more than one may have is all that one may have
        assert ask(client, *[("file", picture())] * count)["matches"] == []
    ask(client, *[("file", picture())] * 17, status=413)
    parts = client.app.state.parts
    with parts.admission.place(None, 2), parts.admission.place(None, 1):
        assert ask(client, ("file", picture()))["matches"] == []
        answer = ask(client, ("file", picture()), ("file", picture()), status=503)
        assert answer["code"] == "queue_full"
    assert ask(client, ("file", picture()), ("file", picture()))["matches"] == []


def test_pictures_have_a_bound_together(clients, settings):
    client = clients(settings.model_copy(update={"max_file_bytes": 40_000}))
    large = png(Image.effect_noise((120, 120), 90).convert("RGB"))
    assert 25_000 < len(large) < 40_000
    assert ask(client, *[("file", large)] * 2)["matches"] == []
    answer = client.post(
        "/search", files=[("file", ("a.png", large))] * 2, headers={"Content-Length": "9999999"}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "request_too_large")
    assert ADMIN_KEY not in answer.text
