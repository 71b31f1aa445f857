"""Feeds of pictures: their order stays, so that a later reading goes on behind any place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.media.sources import Found, readable, walk
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.services.feeds import Cursor, FolderFeed, ImportOptions
from lookalike.services.importing import Checkpoint
from lookalike.services.jobs import CanceledError
from tests.unreadable import refuse

PART = st.sampled_from(["a", "B", "b.jpg", "a-1", "a 1", "é", "z"])
PATHS = st.lists(st.lists(PART, min_size=1, max_size=3), min_size=1, max_size=12)


def feed(top: Path) -> FolderFeed:
    return FolderFeed(top, inside=[top], options=ImportOptions())


def places(top: Path, after: Cursor | None = None) -> list[Cursor]:
    return [picture.cursor for picture in feed(top).pictures(after)]


def write(top: Path, paths: Sequence[Sequence[str]]) -> None:
    for *folders, name in paths:
        inside = top.joinpath(*(f"{folder}.d" for folder in folders))
        inside.mkdir(parents=True, exist_ok=True)
        (inside / f"{name}.png").write_bytes(b"x")


@given(before=PATHS, gone=st.integers(0, 11), later=PATHS, at=st.integers(0, 11))
@settings(max_examples=60, deadline=None)
def test_a_folder_is_gone_on_with_though_it_changed(
    before: list[list[str]], gone: int, later: list[list[str]], at: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder).resolve()
        write(top, before)
        first = places(top)
        assert first == [found.path.relative_to(top).as_posix() for found in walk([top])]
        assert feed(top).count(NO_PROGRESS) == len(first)
        place = first[at % len(first)]
        rest = first[at % len(first) + 1 :]
        assert places(top, place) == rest
        (top / str(first[gone % len(first)])).unlink()
        write(top, later)
        again = places(top, place)
        assert set(again).isdisjoint(set(first) - set(rest))
        assert set(rest) & set(places(top)) <= set(again)


def test_folders_that_cannot_be_read_stand_where_their_pictures_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [["z"], ["a", "1"], ["b", "1"], ["b", "x", "1"], ["c", "1"], ["d", "1"]])
    refuse(monkeypatch, tmp_path / "a.d", tmp_path / "b.d" / "x.d", tmp_path / "d.d")
    expected = ["z.png", "a.d/", "b.d/1.png", "b.d/x.d/", "c.d/1.png", "d.d/"]
    assert places(tmp_path) == expected
    assert feed(tmp_path).count(NO_PROGRESS) == len(expected)
    for at, place in enumerate(expected):
        assert places(tmp_path, place) == expected[at + 1 :]
    refused = [one for one in feed(tmp_path).pictures(None) if one.source.error is not None]
    assert [one.name for one in refused] == ["a.d", "b.d/x.d", "d.d"]
    assert "cannot be read: Permission denied; make it readable" in str(refused[0].source.error)


def test_a_top_that_cannot_be_read_and_what_is_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, [["z"], ["a", "1"]])
    with monkeypatch.context() as patch:
        refuse(patch, tmp_path)
        (found,) = feed(tmp_path).pictures(None)
        assert (found.cursor, found.name) == ("", ".")
        assert places(tmp_path, "") == []
    assert places(tmp_path, "") == ["z.png", "a.d/1.png"]
    refuse(monkeypatch, tmp_path / "a.d")
    assert [one.path.name for one in readable(walk([tmp_path]))] == ["z.png"]
    assert f"{tmp_path}/a.d is left out" in caplog.text


def test_a_folder_that_goes_while_it_is_walked(tmp_path: Path) -> None:
    write(tmp_path, [["z"], ["a", "1"], ["b", "1"]])
    found: list[Found] = []
    for one in walk([tmp_path]):
        found.append(one)
        if one.path.name == "z.png":
            shutil.rmtree(tmp_path / "a.d")
    assert [one.path.name for one in found] == ["z.png", "a.d", "1.png"]
    assert "No such file" in str(found[1].error)


def test_the_work_can_be_ended_in_every_folder(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"empty-{number}").mkdir()
    write(tmp_path, [["z", "1"]])
    for at in range(11):

        class Ending(Progress):
            left = iter(range(at))

            def check(self) -> None:
                if next(self.left, None) is None:
                    raise CanceledError

        with pytest.raises(CanceledError):
            feed(tmp_path).count(Ending())
        with pytest.raises(CanceledError):
            list(feed(tmp_path).pictures(None, Ending()))


@contextmanager
def as_somebody() -> Iterator[None]:
    """Without the rights of root, where the tests have them."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_permissions_are_felt() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        top = Path(folder).resolve()
        top.chmod(0o755)
        write(top, [["z"], ["a", "1"]])
        (top / "a.d").chmod(0)
        try:
            with as_somebody():
                assert places(top) == ["z.png", "a.d/"]
        finally:
            (top / "a.d").chmod(0o755)


def test_a_journal_that_is_gone_or_broken_stands_for_the_start(tmp_path: Path) -> None:
    journal = tmp_path / "x.journal"
    assert Checkpoint.read(journal) == Checkpoint()
    checkpoint = Checkpoint(total=9, cursor="a/\udce9.png")
    checkpoint.counts["created"] += 2
    checkpoint.failed("b: broken")
    checkpoint.write(journal)
    assert Checkpoint.read(journal) == checkpoint
    assert (checkpoint.counts.total(), checkpoint.errors) == (3, ["b: broken"])
    newer = journal.read_text().replace("2", "3", 1)
    for text in ("", "{", "[]", '{"total": 1}', newer):
        journal.write_text(text)
        assert Checkpoint.read(journal) == Checkpoint()
    assert list(tmp_path.iterdir()) == [journal], "and nothing else is left"
