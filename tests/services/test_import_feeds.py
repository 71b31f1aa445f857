"""Feeds of pictures: their order stays, so that a later reading goes on behind any place."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from app.services.import_feeds import FolderFeed, Place
from app.services.import_journal import Journal, Progress
from app.services.walk import walk

PART = st.sampled_from(["a", "B", "b.jpg", "a-1", "a 1", "é", "z"])
PATHS = st.lists(st.lists(PART, min_size=1, max_size=3), min_size=1, max_size=12)


def feed(top: Path) -> FolderFeed:
    return FolderFeed(top, inside=[top], describe=lambda _: None)


def places(top: Path, after: Place | None = None) -> list[Place]:
    return [picture.place for picture in feed(top).pictures(after)]


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
        assert feed(top).count(lambda: None) == len(first)
        place = first[at % len(first)]
        rest = first[at % len(first) + 1 :]
        assert places(top, place) == rest
        (top / str(first[gone % len(first)])).unlink()
        write(top, later)
        again = places(top, place)
        assert set(again).isdisjoint(set(first) - set(rest))
        assert set(rest) & set(places(top)) <= set(again)


def test_a_journal_that_is_gone_or_broken_stands_for_the_start(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "x.journal")
    assert journal.read() == Progress()
    progress = Progress(total=9, place="a/\udce9.png")
    progress.counts["created"] += 2
    progress.failed("b: broken")
    journal.write(progress)
    assert journal.read() == progress
    assert (progress.done, progress.errors) == (3, ["b: broken"])
    for text in ("", "{", "[]", '{"total": 1}'):
        (tmp_path / "x.journal").write_text(text)
        assert journal.read() == Progress()
    journal.remove()
    assert list(tmp_path.iterdir()) == []
