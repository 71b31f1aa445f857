"""POST /embed and POST /v1/embeddings: vectors of pictures and texts."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from lookalike import Client, HttpClient, Part
from lookalike.errors import InvalidParameterError
from lookalike.models.color import ColorEncoder
from tests.api.conftest import ADMIN, picture
from tests.api.test_queries import vector_of
from tests.servers import ADMIN_KEY, Server

PICTURES = [picture("mug", 1), picture("fish", 2)]
EXPECTED = np.stack([*map(vector_of, PICTURES), vector_of("red"), vector_of("#00f")])
SENT = [
    ("text", (None, "red")),
    *(("file", (f"{n}.png", one)) for n, one in enumerate(PICTURES)),
    ("text", (None, "#00f")),
]


def unpacked(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


def test_vectors_as_numbers_and_packed(client):
    plain = client.post("/embed", files=SENT).json()
    packed = client.post("/embed", files=[*SENT, ("encoding", (None, "base64"))]).json()
    assert (plain["encoding"], packed["encoding"]) == ("float", "base64")
    assert plain["model"]["name"] == "color"
    assert plain["collection"] == "default"
    assert np.allclose(plain["vectors"], EXPECTED, atol=1e-6)
    rows = np.stack([unpacked(one) for one in packed["vectors"]])
    assert np.array_equal(rows, np.array(plain["vectors"], np.float32))


def test_a_vector_searches_as_its_picture_does(client, index):
    index(("a.png", PICTURES[0]), ("b.png", PICTURES[1]), ids=["a", "b"])
    files = {"file": PICTURES[0]}
    (packed,) = client.post("/embed", files=files, data={"encoding": "base64"}).json()["vectors"]
    by_vector = client.post("/search", files={"vector": (None, packed)}).json()["matches"]
    assert by_vector == client.post("/search", files=files).json()["matches"]


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        ([("encoding", (None, "float"))], 422, "Nothing to embed"),
        ([("text", (None, "no color"))], 422, "names of colors"),
        ([("file", ("a.png", PICTURES[0])), ("file", ("b.png", b"x"))], 415, "Picture 2"),
        ([("text", (None, "red")), ("collection", (None, "shoes"))], 404, "shoes"),
        ([("text", (None, "red")), ("encoding", (None, "hex"))], 422, "encoding"),
        ([("text", (None, "red")), ("weight", (None, "1"))], 422, "no such field"),
    ],
)
def test_what_cannot_be_embedded(client, sent, status, said):
    answer = client.post("/embed", files=sent)
    assert (answer.status_code, said in answer.json()["detail"]) == (status, True), answer.text


def test_what_openai_has(client):
    asked = {"input": ["red", "#00f"], "model": "color", "dimensions": 48, "user": "me"}
    plain = client.post("/v1/embeddings", json=asked).json()
    assert [one["index"] for one in plain["data"]] == [0, 1]
    assert np.allclose([one["embedding"] for one in plain["data"]], EXPECTED[2:], atol=1e-6)
    assert (plain["object"], plain["model"]) == ("list", "color")
    assert plain["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
    one = client.post("/v1/embeddings", json={"input": "red", "encoding_format": "base64"}).json()
    assert np.allclose(unpacked(one["data"][0]["embedding"]), EXPECTED[2], atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"input": []}, "input"),
        ({"input": [1, 2]}, "input"),
        ({"input": "red", "model": "text-embedding-3-small"}, "'color'"),
        ({"input": "red", "dimensions": 256}, "48"),
        ({"input": ["red"] * 257}, "input"),
        ({"input": " "}, "empty"),
        ({}, "input"),
    ],
)
def test_what_openai_has_and_cannot_be_done(client, asked, said):
    answer = client.post("/v1/embeddings", json=asked)
    assert (answer.status_code, said in answer.json()["detail"]) == (422, True), answer.text


def test_the_model_is_that_of_the_collection(clients, settings):
    named = {"model": "resnet18", "weights": "random", "input_size": 32}
    files: dict[str, Any] = {"files": ("a.png", PICTURES[0])}
    first = clients(settings)
    assert first.post("/index", headers=ADMIN, files=files).status_code == 201
    clients.stop(first)
    client = clients(settings.model_copy(update=named))
    answer = client.post("/embed", files={"file": PICTURES[0]})
    assert (answer.status_code, answer.json()["code"]) == (409, "passport_mismatch")
    files["collection"] = (None, "new")
    assert client.post("/index", headers=ADMIN, files=files).status_code == 201
    answer = client.post("/embed", files={"file": PICTURES[0], "collection": (None, "new")})
    assert answer.json()["model"]["dim"] == 512


@pytest.mark.parametrize("kind", ["folder", "service"])
def test_both_clients_and_the_command(kind, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from lookalike.cli.main import app

    monkeypatch.setenv("LOOKALIKE_MODEL", "color")
    server = Server(tmp_path / "data") if kind == "service" else None
    client = HttpClient(server.url, ADMIN_KEY) if server else Client(tmp_path / "data")
    with client:
        parts: list[Part | bytes] = [
            Part(text="red"),
            PICTURES[0],
            Part(text="#00f"),
            PICTURES[1],
        ] * 5
        vectors = client.embed(*parts)
        assert vectors.shape == (20, ColorEncoder().spec.dim)
        assert vectors.dtype == np.float32
        assert np.allclose(vectors, EXPECTED[[2, 0, 3, 1] * 5], atol=1e-6)
        with pytest.raises(InvalidParameterError):
            client.embed(Part(id="a"))
        photo = tmp_path / "photo.png"
        photo.write_bytes(PICTURES[0])
        client.index(photo)
    place = ["--server", server.url] if server else ["--data-dir", str(tmp_path / "data")]
    words = ["embed", str(photo), "red", *place]
    lines = CliRunner().invoke(app, words).stdout.splitlines()
    assert np.allclose([json.loads(line)["vector"] for line in lines], EXPECTED[[0, 2]], atol=1e-6)
    saved = tmp_path / "made" / "vectors.npy"
    assert CliRunner().invoke(app, [*words, "--save", str(saved)]).exit_code == 0
    assert np.allclose(np.load(saved), EXPECTED[[0, 2]], atol=1e-6)
    if server:
        server.close()
