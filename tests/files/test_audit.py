"""The audit log's files: order, pages, bounds, several processes, disks that refuse."""

from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lookalike.errors import ConflictError, InvalidParameterError
from lookalike.files import audit
from lookalike.files.audit import AuditLog

CHILD = """
import sys
from pathlib import Path
from lookalike.files.audit import AuditLog
log = AuditLog(Path(sys.argv[1]), max_bytes=100_000_000)
for number in range(500):
    log.append("child", who=sys.argv[2], details={"number": number})
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AuditLog:
    """A log whose files hold a few entries each, and of which five are kept."""
    monkeypatch.setattr(audit, "FILE_BYTES", 1000)
    return AuditLog(tmp_path / "audit", max_bytes=5000)


def numbers(log: AuditLog, limit: int) -> list[int]:
    """All entries' numbers, read a page at a time."""
    found: list[int] = []
    cursor = None
    while True:
        entries, cursor = log.page(cursor=cursor, limit=limit)
        assert len(entries) <= limit
        found += [entry["details"]["number"] for entry in entries]
        if cursor is None:
            return found


def fill(log: AuditLog, count: int) -> None:
    for number in range(count):
        log.append("test", who="me", details={"number": number})


@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
def test_pages_give_every_entry_once_the_newest_first(small: AuditLog, limit: int) -> None:
    fill(small, 30)
    assert numbers(small, limit) == list(range(29, -1, -1))


def test_an_empty_log_has_one_empty_page(small: AuditLog) -> None:
    assert small.page() == ([], None)
    with pytest.raises(InvalidParameterError):
        small.page(cursor="x")


def test_the_oldest_entries_go(small: AuditLog, tmp_path: Path) -> None:
    fill(small, 300)
    files = list((tmp_path / "audit").iterdir())
    assert len(files) == 5
    assert sum(path.stat().st_size for path in files) < 7000
    left = numbers(small, 10)
    assert 0 < len(left) < 60
    assert left == list(range(299, 299 - len(left), -1))


def test_a_cursor_into_a_file_that_went_goes_on_behind_it(small: AuditLog) -> None:
    fill(small, 20)
    _, cursor = small.page(limit=10)
    fill(small, 300)
    assert small.page(cursor=cursor) == ([], None)


def test_a_line_that_was_cut_short_costs_itself_alone(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    fill(AuditLog(folder, max_bytes=10**6), 3)
    with (folder / "00000001.jsonl").open("ab") as file:
        file.write(b'{"at": "2026-')
    again = AuditLog(folder, max_bytes=10**7)
    again.append("test", who="me", details={"number": 3})
    assert numbers(again, 2) == [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"at"', b'"au"'),
        (b'"who"', b'"who "'),
        (b'"key"', b'"at"'),
        (b'"details":{', b'"more":1,"details":{'),
        (b'"local"', b"7"),
        (b'"n":1', b'"n":NaN'),
        (b'"n":1', b'"n":"\\ud800"'),
        (b'{"n":1}', b"[1]"),
    ],
)
def test_a_line_that_was_changed_costs_itself_alone(tmp_path: Path, old: bytes, new: bytes) -> None:
    audit = AuditLog(tmp_path, max_bytes=10**6)
    for number in range(3):
        audit.append("index", who="local", details={"n": number})
    (path,) = tmp_path.iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    assert old in lines[1]
    path.write_bytes(lines[0] + lines[1].replace(old, new) + lines[2])
    assert [one["details"]["n"] for one in audit.page()[0]] == [2, 0]


def test_threads_and_processes_write_into_one_log(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, str(folder), who]) for who in ("a", "b")
    ]
    log = AuditLog(folder, max_bytes=10**8)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: fill(log, 100), range(4)))
    assert [child.wait() for child in children] == [0, 0]
    entries, _ = log.page(limit=10_000)
    assert len(entries) == 1400
    for who in ("a", "b"):
        own = [one["details"]["number"] for one in entries if one["who"] == who]
        assert own == list(range(499, -1, -1))


def test_a_disk_that_refuses_is_logged_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    (tmp_path / "audit").write_text("a file where the folder belongs")
    log = AuditLog(tmp_path / "audit", max_bytes=10**6)
    fill(log, 50)
    (line,) = caplog.messages
    assert "this change is not in it" in line
    (tmp_path / "audit").unlink()
    fill(log, 1)
    assert numbers(log, 10) == [0]


def test_a_block_is_noted_however_it_ends(small: AuditLog) -> None:
    def outcome_of(error: BaseException | None, **details: Any) -> str:
        try:
            with small.noting("call", **details) as noted:
                noted["more"] = 1
                if error is not None:
                    raise error
        except (ConflictError, KeyboardInterrupt):
            pass
        (entry,), _ = small.page(limit=1)
        entry["details"].pop("user", None)
        assert entry["details"] == {**details, "more": 1}
        return str(entry["outcome"])

    assert outcome_of(None, of="x") == "done"
    assert outcome_of(ConflictError("taken")) == "conflict"
    assert outcome_of(KeyboardInterrupt()) == "interrupted"


def test_long_work_is_noted_at_its_beginning_too(small: AuditLog) -> None:
    with small.noting_long("index", collection="x"):
        (begun,), _ = small.page()
    (done, first), _ = small.page()
    assert first == begun
    assert (begun["outcome"], done["outcome"]) == ("begun", "done")
    assert begun["details"]["collection"] == done["details"]["collection"] == "x"


def test_a_key_in_the_details_is_hidden(small: AuditLog, tmp_path: Path) -> None:
    key = "lk_0123abcd_" + "s" * 43
    small.append("revoke_key", who="me", details={"key": key})
    (entry,), _ = small.page()
    assert entry["details"]["key"] == "lk_0123abcd_..."
    assert not [path for path in (tmp_path / "audit").iterdir() if key in path.read_text()]


def test_a_file_that_cannot_be_begun_closes_no_other(
    small: AuditLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(small, 5)
    while (tmp_path / "audit/00000001.jsonl").stat().st_size < audit.FILE_BYTES:
        fill(small, 1)
    (tmp_path / "audit/00000002.jsonl").mkdir()
    fill(small, 1)
    assert "Is a directory" in caplog.text
    assert "Bad file descriptor" not in caplog.text
