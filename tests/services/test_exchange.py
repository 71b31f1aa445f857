"""Collections as files: what is written comes back, and what a stranger wrote is checked."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.errors import BackupError
from lookalike.records import ImageRecord
from lookalike.services.exchange import read_sidecar, write_sidecar

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,20}", fullmatch=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXT
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
METADATA = st.dictionaries(TEXT, VALUES, max_size=4)
RECORDS = st.builds(
    ImageRecord,
    id=IDS,
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    filename=TEXT,
    media_type=st.sampled_from(["image/jpeg", "image/png"]),
    width=st.integers(1, 10**6),
    height=st.integers(1, 10**6),
    bytes=st.integers(1, 10**12),
    metadata=METADATA,
    source=st.none() | TEXT,
    collection=st.from_regex(r"[a-z][a-z0-9_]{0,62}", fullmatch=True),
    created_at=TEXT,
    updated_at=TEXT,
)
ONE = ImageRecord(
    id="p1",
    sha256="a" * 64,
    filename="a.jpg",
    media_type="image/jpeg",
    width=1,
    height=1,
    bytes=1,
    collection="default",
    created_at="",
    updated_at="",
)


@given(records=st.lists(RECORDS, max_size=4))
def test_a_sidecar_gives_back_what_was_written(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("sidecar") / "pictures.jsonl"
    with path.open("wb") as file:
        assert write_sidecar(records, file) == len(records)
    assert list(read_sidecar(path)) == records


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sha256": "A" * 64}, "sha256"),
        ({"id": "../x"}, "is no id"),
        ({"id": 7}, "id: "),
        ({"collection": "A"}, "collection"),
        ({"media_type": "text/html"}, "text/html"),
        ({"metadata": [1]}, "metadata"),
        ({"metadata": {"a": "\ud800"}}, "surrogate"),
        ({"width": 0}, "width"),
        ({"bytes": 2**70}, "bytes"),
        ({"filename": "a\0b"}, "name"),
        ({"created_at": None}, "created_at"),
    ],
)
def test_a_line_that_is_no_picture_is_named(tmp_path, change, match):
    good = asdict(ONE)
    (tmp_path / "s.jsonl").write_text(f"{json.dumps(good)}\n\n{json.dumps(good | change)}\n")
    read = read_sidecar(tmp_path / "s.jsonl")
    assert next(read) == ONE
    with pytest.raises(BackupError, match=rf"line 3: .*{match}"):
        next(read)


@pytest.mark.parametrize("line", [b"{", b"[" * 100_000, b"\xff\xfe", b"null", b"{}"])
def test_a_line_that_is_no_json_object_is_named(tmp_path, line):
    (tmp_path / "s.jsonl").write_bytes(line)
    with pytest.raises(BackupError, match="line 1: "):
        list(read_sidecar(tmp_path / "s.jsonl"))


def test_fields_that_are_not_known_are_passed_over(tmp_path):
    (tmp_path / "s.jsonl").write_text(json.dumps(asdict(ONE) | {"later": [1]}))
    assert list(read_sidecar(tmp_path / "s.jsonl")) == [ONE]
    (tmp_path / "s.jsonl").write_text(
        json.dumps({k: v for k, v in asdict(ONE).items() if k != "source"})
    )
    assert list(read_sidecar(tmp_path / "s.jsonl")) == [replace(ONE, source=None)]
