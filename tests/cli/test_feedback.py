"""`lookalike feedback`, and what `lookalike train --from-feedback` learns from it."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from lookalike import Client
from lookalike.errors import (
    CalibrationError,
    ConfigurationError,
    ImageNotFoundError,
    JudgementNotFoundError,
)
from lookalike.models.head import load_head
from tests.servers import ADMIN_KEY


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


def test_matches_are_judged_listed_and_taken_back(
    lookalike: Any, place: list[str], pictures: Path
) -> None:
    listed = json.loads(lookalike("list", "--json", *place).stdout)
    first, second, third, *_ = (one["id"] for one in listed)
    said = lookalike("feedback", "add", second, "right", "--query", first, *place)
    assert said.exit_code == 0, said.exception
    assert said.stdout.endswith(f": {second} is right\n")
    outside = pictures.parent / "outside.png"
    outside.write_bytes(next(pictures.rglob("*.jpg")).read_bytes() + b"\0")
    wrong = lookalike("feedback", "add", third, "wrong", "--image", str(outside), *place)
    assert wrong.stdout.endswith(f": {third} is wrong\n")
    ids = [one.stdout.split(":")[0] for one in (said, wrong)]

    found = json.loads(lookalike("feedback", "list", "--json", *place).stdout)
    assert [(one["id"], one["query"], one["match"], one["right"]) for one in found] == [
        (ids[0], first, second, True),
        (ids[1], None, third, False),
    ]
    lines = lookalike("feedback", "list", *place).stdout.splitlines()
    (row,) = (line for line in lines if ids[0] in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][1:4] == [first, second, "right"]
    (row,) = (line for line in lines if ids[1] in line)
    assert f"({found[1]['query_sha256'][:12]})" in row
    assert " wrong " in row
    assert "There are more" not in lines[-1]
    cut = lookalike("feedback", "list", "--limit", "1", *place).stdout
    assert ids[1] not in cut
    assert "There are more; --limit shows more than 1." in cut

    changed = lookalike("feedback", "add", second, "wrong", "--query", first, *place)
    assert changed.stdout == f"{ids[0]}: {second} is wrong\n"
    assert lookalike("feedback", "delete", *ids, *place).stdout == "deleted 2\n"
    assert json.loads(lookalike("feedback", "list", "--json", *place).stdout) == []
    gone = lookalike("feedback", "delete", ids[0], *place)
    assert isinstance(gone.exception, JudgementNotFoundError)


def test_feedback_that_cannot_be(lookalike: Any, pictures: Path) -> None:
    assert lookalike("index", str(pictures)).exit_code == 0
    first, second, *_ = (one["id"] for one in json.loads(lookalike("list", "--json").stdout))
    for words, kind, text in (
        ((second, "maybe", "--query", first), ConfigurationError, "'maybe' is neither"),
        ((second, "right"), ConfigurationError, "Name the query"),
        (
            (second, "right", "--query", first, "--image", "x.jpg"),
            ConfigurationError,
            "Name the query",
        ),
        (("nothing", "right", "--query", first), ImageNotFoundError, "'nothing'"),
    ):
        error = lookalike("feedback", "add", *words).exception
        assert isinstance(error, kind), words
        assert text in str(error)


def test_a_head_is_trained_on_judgements(lookalike: Any, pictures: Path, tmp_path: Path) -> None:
    train = ("train", "--from-feedback", "--epochs", "2", "--out", "head")
    assert lookalike("index", str(pictures), "--folder-field", "label").exit_code == 0
    few = lookalike(*train, "--collection", "default").exception
    assert isinstance(few, CalibrationError)
    assert "0 right and 0 wrong" in str(few)
    with Client(tmp_path / "data") as client:
        images = list(client.list())
        for query, match in product(images[:8], images):
            if query.id != match.id:
                right = query.metadata["label"] == match.metadata["label"]
                client.judge(match.id, right=right, query=query.id)
    done = lookalike(*train, "--collection", "default")
    assert done.exit_code == 0, done.exception
    assert "default: 40 right and 96 wrong matches; 0 more cannot be used" in done.stdout
    assert "lookalike reembed -c default --head head/head.safetensors" in done.stdout
    metrics = json.loads((tmp_path / "head" / "metrics.json").read_text())
    counts = metrics["judgements"]
    assert (counts["right"], counts["wrong"]) == (40, 96)
    assert load_head(tmp_path / "head" / "head.safetensors").spec.dim_out == 48
    moved = lookalike("reembed", "-c", "default", "--head", "head/head.safetensors")
    assert moved.exit_code == 0, moved.exception
    back = lookalike("vectors", "rollback", "default")
    assert back.exit_code == 0, back.exception


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("pictures",), "belongs to a --collection"),
        (("--collection", "default", "--label-field", "label"), "do not go with"),
        (("--collection", "default", "--filter", "label=mug"), "do not go with"),
    ],
)
def test_what_does_not_go_with_feedback(
    lookalike: Any, pictures: Path, words: tuple[str, ...], text: str
) -> None:
    error = lookalike("train", *words, "--from-feedback", "--out", "head").exception
    assert isinstance(error, ConfigurationError)
    assert text in str(error)
    assert not Path("head").exists()
