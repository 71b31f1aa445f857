"""What a manifest's rows are read as, and what is said of those that are broken."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from lookalike.errors import InvalidParameterError, MissingFileError
from lookalike.media.manifests import Manifest, Row, is_manifest


def rows(folder: Path, text: str | bytes, name: str = "shop.csv") -> list[Row]:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(Manifest(file).rows())


def said(row: Row) -> str:
    return str(row.error)


def test_columns_become_paths_addresses_ids_and_metadata(tmp_path: Path) -> None:
    text = "id,path,brand,price\na-1,pics/1.jpg,Acme,12.50\nb-2,https://x.org/2.jpg,,9\n"
    first, second = rows(tmp_path, text)
    assert first == Row(
        line=2,
        given="pics/1.jpg",
        name="pics/1.jpg",
        path=tmp_path / "pics/1.jpg",
        id="a-1",
        metadata={"brand": "Acme", "price": 12.5},
    )
    assert (second.url, second.path, second.metadata) == ("https://x.org/2.jpg", None, {"price": 9})


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "-2.5", ""], [1, -2.5, None]),
        (["1", "two"], ["1", "two"]),
        (["007", "8"], ["007", "8"]),
        (["1e5", "2"], ["1e5", "2"]),
        (["12345678901234567890", "2"], ["12345678901234567890", "2"]),
        (["true", "FALSE"], [True, False]),
        (["true", "1"], ["true", "1"]),
    ],
)
def test_a_column_is_of_one_kind(tmp_path: Path, cells: list[str], values: list[Any]) -> None:
    lines = [f"{number}.jpg,{cell}" for number, cell in enumerate(cells)]
    found = rows(tmp_path, "\n".join(["path,it", *lines]))
    assert [(row.metadata or {}).get("it") for row in found] == values


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfPath;ID;note\r\na.jpg;1;\"two\r\nlines; and 'all'\"\r\n;;\r\nb.jpg;2;x\r\n",
        b"path\tid\tnote\na.jpg\t1\t\"two\r\nlines; and 'all'\"\n\nb.jpg\t2\tx\n",
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path: Path, text: bytes) -> None:
    first, second = rows(tmp_path, text)
    assert (first.given, first.id) == ("a.jpg", "1")
    assert first.metadata == {"note": "two\r\nlines; and 'all'"}
    assert (second.line, second.given) == (5, "b.jpg")


def test_lines_of_json(tmp_path: Path) -> None:
    lines = [
        {"path": "a.jpg", "id": 7, "size": {"w": 3}, "metadata": {"tags": ["x"]}},
        {"url": "HTTPS://x.org/b.jpg"},
    ]
    text = "\n\n".join(map(json.dumps, lines))
    first, second = rows(tmp_path, text, "shop.JSONL")
    assert (first.id, first.metadata) == ("7", {"size": {"w": 3}, "tags": ["x"]})
    assert (second.line, second.url, second.metadata) == (3, "HTTPS://x.org/b.jpg", None)


def test_metadata_of_a_table_may_be_json_and_may_be_emptied(tmp_path: Path) -> None:
    text = 'path,metadata\na.jpg,"{""size"": {""w"": 3}}"\nb.jpg,\nc.jpg,[1]\nd.jpg,{\n'
    found = rows(tmp_path, text)
    assert [row.metadata for row in found[:2]] == [{"size": {"w": 3}}, {}]
    assert "JSON object" in said(found[2])
    assert "no JSON" in said(found[3])
    (alone,) = rows(tmp_path, "path,id\na.jpg,a\n")
    assert alone.metadata is None, "what is stored stays"


def test_each_broken_row_says_why_and_harms_no_other(tmp_path: Path) -> None:
    text = (
        "id,path,url\na,1.jpg,\nb,,\nc,1.jpg,https://x.org\nd,,ftp://x.org/1.jpg\ne,2.jpg\n"
        'a,3.jpg,\nf,"4"x.jpg,\ng,5.jpg,\n'
    )
    found = rows(tmp_path, text)
    assert [row.line for row in found] == list(range(2, 10))
    good = [row.id for row in found if row.error is None]
    assert good == ["a", "g"]
    reasons = [said(row) for row in found if row.error is not None]
    parts = ["one path or one url", "one path or one url", "no address", "2 cells", "line 2"]
    for reason, part in zip(reasons, [*parts, "no CSV"], strict=True):
        assert part in reason


def test_broken_lines_of_json(tmp_path: Path) -> None:
    lines = ["{", "[1]", "5", '{"path": 5}', '{"path": "a\\ud800.jpg"}', '{"path": "a\\u0000"}']
    lines += ['{"path": "a.jpg", "id": [1]}', '{"path": "a.jpg", "metadata": 1}', "[" * 100_000]
    found = rows(tmp_path, "\n".join([*lines, '{"path": "ok.jpg"}']), "shop.jsonl")
    assert [row.error is None for row in found] == [False] * len(lines) + [True]


def test_one_picture_may_be_of_several_products(tmp_path: Path) -> None:
    found = rows(tmp_path, "id,path\na,1.jpg\nb,1.jpg\n,1.jpg\n")
    assert [row.name for row in found] == ["1.jpg", "1.jpg#b", "1.jpg"]
    assert "line 2" in said(found[2])
    written = unicodedata.normalize("NFD", "é.jpg")  # as macOS names it
    found = rows(tmp_path, f"id,path\n,{written}\n,{written}\n")
    assert "line 2" in said(found[1])


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"a,b\n1,2\n",
        b"path,a,a\n1,2,3\n",
        b"path,\n1,2\n",
        b"path,a\n1,\xe9\n",
        b'"path"s,a\n1,2\n',
        b'path,"a\n1,2\n',
    ],
)
def test_a_table_that_cannot_be_read_says_what_to_do(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(InvalidParameterError, match=r"header|UTF-8"):
        rows(tmp_path, text)


def test_other_files_are_no_manifests(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    assert not is_manifest(tmp_path / "folder.csv")
    assert not is_manifest(tmp_path / "a.txt")
    with pytest.raises(InvalidParameterError, match=r"must end in"):
        rows(tmp_path, "path\n", "a.txt")
    with pytest.raises(MissingFileError):
        Manifest(tmp_path / "none.csv")
