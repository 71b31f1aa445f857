"""Metadata, ids, collection names: what can be stored."""

from __future__ import annotations

from typing import Any

import pytest

from lookalike.errors import (
    InvalidCollectionNameError,
    InvalidIdError,
    InvalidMetadataError,
    MetadataTooLargeError,
)
from lookalike.records import (
    canonical_json,
    check_collection_name,
    check_id,
    decode_cursor,
    encode_cursor,
)
from lookalike.store.filters import check_metadata, merge_patch


def nested(levels: int) -> dict[str, Any]:
    return {"a": nested(levels - 1)} if levels > 1 else {}


@pytest.mark.parametrize(
    "value",
    [{}, {"a": [1, -(2**63), 2**63 - 1, 0.5, True, None, "é\U0001f600", {"b": []}]}, nested(16)],
)
def test_metadata_that_can_be_stored(value: Any) -> None:
    assert check_metadata(value, 1000) == value


@pytest.mark.parametrize(
    "value",
    [
        [],
        "text",
        None,
        {1: "x"},
        {"a": 2**63},
        {"a": -(2**63) - 1},
        {"a": float("nan")},
        {"a": [float("inf")]},
        {"a": "\0"},
        {"a": {"b": "\udcff"}},
        {"a\0": 1},
        {"\ud800": 1},
        {"a": b"bytes"},
        {"a": (1,)},
        nested(17),
    ],
)
def test_metadata_that_cannot_be_stored(value: Any) -> None:
    with pytest.raises(InvalidMetadataError):
        check_metadata(value, 1000)


def test_the_size_of_metadata_is_counted_in_bytes() -> None:
    assert check_metadata({"a": "é"}, 10) == {"a": "é"}
    with pytest.raises(MetadataTooLargeError, match="10 bytes; at most 9"):
        check_metadata({"a": "é"}, 9)


def test_canonical_json_tells_true_from_one() -> None:
    assert canonical_json({"b": 1, "a": {"d": 1, "c": "é"}}) == '{"a":{"c":"é","d":1},"b":1}'
    assert canonical_json({"a": True}) != canonical_json({"a": 1})


@pytest.mark.parametrize(
    ("target", "patch", "merged"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_as_in_rfc_7396(target: Any, patch: Any, merged: Any) -> None:
    assert merge_patch(target, patch) == merged


@pytest.mark.parametrize("value", ["a", "0", "A.b_c~d-e", "x" * 128])
def test_ids(value: str) -> None:
    assert check_id(value) == value


@pytest.mark.parametrize("value", ["", ".a", "-a", "a/b", "a b", "é", "a\n", "x" * 129, None])
def test_no_ids(value: Any) -> None:
    with pytest.raises(InvalidIdError, match="is no id"):
        check_id(value)


@pytest.mark.parametrize("value", ["a", "default", "a_1", "x" * 63])
def test_collection_names(value: str) -> None:
    assert check_collection_name(value) == value


@pytest.mark.parametrize("value", ["", "A", "1a", "_a", "a-b", "a.b", "a\n", "x" * 64, 7])
def test_no_collection_names(value: Any) -> None:
    with pytest.raises(InvalidCollectionNameError, match="is no collection name"):
        check_collection_name(value)


def test_cursors_go_there_and_back() -> None:
    assert decode_cursor(None) == 0
    for seq in (1, 255, 2**63 - 1):
        assert decode_cursor(encode_cursor(seq)) == seq
