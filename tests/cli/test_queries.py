"""`lookalike search` for several things: pictures, words, ids, with weights, crops and pages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from PIL import Image

from lookalike import Client, HttpClient, Part
from lookalike.errors import (
    ImageNotFoundError,
    InvalidParameterError,
    LookalikeError,
    MissingFileError,
)
from lookalike.schemas import SearchOut
from tests.servers import ADMIN_KEY


@pytest.fixture(params=["folder", "service"])
def place(request, lookalike, pictures) -> list[str]:
    """Where the pictures are."""
    flags: list[str] = []
    if request.param == "service":
        flags = ["--server", request.getfixturevalue("server").url, "--api-key", ADMIN_KEY]
    assert lookalike("index", str(pictures), *flags).exit_code == 0
    return flags


def test_pictures_words_and_ids(lookalike, place, pictures):
    mug, fish = (str(pictures / one / f"{one}-01-1.jpg") for one in ("mug", "fish"))

    def found(*words: str) -> dict[str, Any]:
        done = lookalike("search", *words, "--json", *place)
        assert done.exit_code == 0, done.output
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def asked(answer: dict[str, Any]) -> list[tuple[str, float]]:
        return [(part["kind"], part["weight"]) for part in answer["query"]["parts"]]

    alone = found(mug, "-k", "18")
    stored = alone["matches"][0]["id"]
    assert asked(found(mug, "--not", fish)) == [("picture", 1), ("picture", -0.25)]
    assert asked(found(mug, fish, "--weight", "2", "--weight", "0.5")) == [
        ("picture", 2),
        ("picture", 0.5),
    ]
    words = found("red", "--id", stored, "--text", "blue", "--not", "#00ff00", "--not-weight", "1")
    kinds = [("text", 1), ("text", 1), ("text", -1), ("id", 1)]
    assert sorted(asked(words)) == sorted(kinds)
    assert stored not in [match["id"] for match in words["matches"]]
    half = found(mug, "--crop", "0,0,0.5,1", "--flip", "--combine", "any")["query"]
    assert (half["flip"], half["combine"]) == (True, "any")
    assert half["parts"][0]["crop"] == [0, 0, 0.5, 1]
    rest = found(mug, "-k", "8", "--offset", "10")
    assert (rest["offset"], rest["matches"]) == (10, alone["matches"][10:])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "what to search for"),
        (["missing.jpg"], "missing.jpg"),
        (["no such color"], "names of colors"),
        (["red", "--weight", "1", "--weight", "2"], "2 weights"),
        (["red", "--crop", "0,0,1,1"], "1 crop"),
        (["red", "--flip"], "mirror"),
        (["--not", "red"], "above 0"),
        (["http://example.com/a.jpg", "red"], "address"),
        (["--id", "gone"], "gone"),
    ],
)
def test_what_cannot_be_asked(lookalike, pictures, words, said):
    assert lookalike("index", str(pictures / "mug")).exit_code == 0
    done = lookalike("search", *words)
    assert isinstance(done.exception, LookalikeError)
    assert said in str(done.exception)


def test_a_sheet_of_several_pictures_and_of_words(lookalike, pictures, tmp_path):
    assert lookalike("index", str(pictures / "mug")).exit_code == 0
    mug = str(pictures / "mug" / "mug-00-0.jpg")
    for number, words in enumerate(([mug, mug], ["red"], ["red", mug])):
        sheet = tmp_path / f"{number}.png"
        done = lookalike("search", *words, "--save", str(sheet))
        assert done.exit_code == 0, done.output
        with Image.open(sheet) as image:
            assert image.width > 300


@pytest.mark.parametrize("kind", ["folder", "service"])
def test_both_clients_take_the_same(lookalike, pictures, server, kind):
    mug, fish = (pictures / one / f"{one}-01-1.jpg" for one in ("mug", "fish"))
    made = Client(model="color") if kind == "folder" else HttpClient(server.url, ADMIN_KEY)
    with made as client:
        client.index(pictures, collection="both")
        one = client.search(mug, collection="both")
        assert one.query.width == 96
        vector = [float(number) for number in range(1, 49)]
        parts = [
            Part(picture=fish, weight=0.5, crop=(0, 0, 1, 0.5)),
            Part(text="red", weight=-0.25),
            Part(id=one.matches[0].id),
            Part(vector=vector),
        ]
        several = client.search(mug, *parts, combine="any", flip=True, k=3, collection="both")
        assert {part.kind: part.weight for part in several.query.parts} == {
            "picture": 0.5,
            "text": -0.25,
            "id": 1,
            "vector": 1,
        }
        assert [part.crop for part in several.query.parts[:2]] == [None, [0, 0, 1, 0.5]]
        assert len(several.matches) == 3
        pages = [
            match
            for offset in range(0, 18, 5)
            for match in client.search(mug, k=5, offset=offset, collection="both").matches
        ]
        assert pages == client.search(mug, k=18, collection="both").matches
        with pytest.raises(InvalidParameterError, match="9,990"):
            client.search(mug, offset=9_999, collection="both")
        with pytest.raises(InvalidParameterError, match="combine"):
            client.search(mug, combine="all", collection="both")
        with pytest.raises(ImageNotFoundError, match="gone"):
            client.search(Part(id="gone"), collection="both")
        each: list[list[str | Part]] = [[str(mug)], [Part(id="gone")], [str(fish), *parts[1:3]]]
        many = client.search_batch(each, k=3, collection="both", combine="any")
        assert isinstance(many[1], ImageNotFoundError)
        alone = client.search(*each[2], k=3, collection="both", combine="any")
        assert isinstance(many[2], SearchOut)
        assert many[2].matches == alone.matches
        with pytest.raises(MissingFileError):
            client.search_batch([["missing.jpg"]])
        client.drop("both")
