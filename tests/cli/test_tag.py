"""`lookalike tag` on a data folder and on a running service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lookalike.errors import (
    CollectionNotFoundError,
    ConfigurationError,
    InvalidParameterError,
    MissingFileError,
)
from tests.servers import ADMIN_KEY


@pytest.fixture
def labels(tmp_path: Path) -> str:
    path = tmp_path / "labels.txt"
    path.write_bytes(b"\xef\xbb\xbfred\r\n\r\n  #00ff00 \nred\nblue\n")
    return str(path)


@pytest.fixture(params=["folder", "service"])
def place(request: pytest.FixtureRequest, lookalike: Any, pictures: Path) -> list[str]:
    """Flags of a place that holds the pictures."""
    flags: list[str] = []
    if request.param == "service":
        server = request.getfixturevalue("server")
        server.http.delete("/collections/default")
        flags = ["--server", server.url, "--api-key", ADMIN_KEY]
    assert lookalike("index", str(pictures), *flags).exit_code == 0
    return flags


def test_labels_are_written(lookalike: Any, place: list[str], labels: str) -> None:
    watch = ["--watch"] if place else []
    done = lookalike("tag", "--labels", labels, "--k", "2", *place, *watch)
    assert done.exit_code == 0, done.output
    assert "18 pictures of 'default' were labeled in 'tags', 18 of them changed" in done.stdout
    listed = json.loads(lookalike("list", "--json", *place).stdout)
    for one in listed:
        tags = one["metadata"]["tags"]
        assert set(tags["labels"]) < {"red", "#00ff00", "blue"}
        assert len(tags["scores"]) == 2
    by_template = ["--template", "dark {}", "--min-score", "1", "--field", "dark"]
    red = Path(labels).with_name("red.txt")
    red.write_text("red")
    said = lookalike("tag", "--labels", str(red), *by_template, *place, *watch)
    assert "18 without a label" in said.stdout


def test_errors_say_what_is_wrong(lookalike: Any, place: list[str], labels: str) -> None:
    wrong = lookalike("tag", "--labels", "nothing.txt", *place)
    assert isinstance(wrong.exception, MissingFileError)
    Path("binary.txt").write_bytes(b"\xff\xfe\xff")
    assert isinstance(
        lookalike("tag", "--labels", "binary.txt", *place).exception, ConfigurationError
    )
    Path("empty.txt").write_text("\n \n")
    Path("cars.txt").write_text("red\nred car")
    for file, text in (("empty.txt", "0 labels"), ("cars.txt", "'red car'")):
        error = lookalike("tag", "--labels", file, *place).exception
        if not place:
            assert isinstance(error, InvalidParameterError)
        if file == "cars.txt" or not place:
            assert text in str(error)
        assert error is not None
    missing = lookalike("tag", "--labels", labels, "--collection", "shoes", *place).exception
    assert isinstance(missing, CollectionNotFoundError) or "shoes" in str(missing)
