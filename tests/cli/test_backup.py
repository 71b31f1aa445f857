"""`lookalike backup` and `lookalike restore`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lookalike import Client
from lookalike.errors import (
    BackupError,
    BackupsDisabledError,
    CollectionNotFoundError,
    ConfigurationError,
)
from tests.servers import ADMIN_KEY, Server


def listed(lookalike: Any, data: Path | str) -> list[dict[str, Any]]:
    shown = lookalike("list", "--json", "--data-dir", str(data))
    assert shown.exit_code == 0, shown.output
    found: list[dict[str, Any]] = json.loads(shown.stdout)
    return found


@pytest.mark.parametrize("name", ["b.tar", "b.tar.gz", "folder"])
def test_what_is_backed_up_is_restored(lookalike, pictures, tmp_path, name):
    assert lookalike("index", str(pictures), "--folder-field", "label").exit_code == 0
    made = lookalike("backup", name)
    assert made.exit_code == 0, made.output
    assert "18 pictures in 1 collection, 18 originals" in made.stdout
    assert lookalike("backup", name).exit_code == 0
    done = lookalike("restore", name, "new")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("restored 18 pictures")
    assert "makes a new admin key" in done.stdout
    assert listed(lookalike, tmp_path / "new") == listed(lookalike, tmp_path / "data")


def test_a_service_is_backed_up_into_a_file_or_its_own_folder(
    lookalike, server, pictures, tmp_path
):
    there = ["--server", server.url, "--api-key", ADMIN_KEY]
    assert lookalike("index", str(pictures / "mug"), *there).exit_code == 0
    made = lookalike("backup", "b.tar", *there)
    assert made.exit_code == 0, made.output
    assert "bytes in b.tar" in made.stdout
    beside = lookalike("backup", "beside.tar", "--data-dir", str(server.data_dir))
    assert beside.exit_code == 0, beside.output
    for name in ("b.tar", "beside.tar"):
        assert lookalike("restore", name, f"new-{name}").exit_code == 0
        assert len(listed(lookalike, tmp_path / f"new-{name}")) == 6
    assert isinstance(lookalike("backup", *there).exception, BackupsDisabledError)
    assert isinstance(lookalike("backup", "folder", *there).exception, ConfigurationError)
    assert isinstance(lookalike("backup", "b.tar", "--keep", "3", *there).exception,
                      ConfigurationError)  # fmt: skip
    (tmp_path / "own").mkdir()
    own = Server(tmp_path / "own" / "data", backup_dir=tmp_path / "backups")
    try:
        done = lookalike("backup", "--server", own.url, "--api-key", ADMIN_KEY)
        assert done.exit_code == 0, done.output
        assert "is done: 0 pictures" in done.stdout
    finally:
        own.close()


def test_a_damaged_original_is_named_at_both_ends(lookalike, pictures, tmp_path):
    assert lookalike("index", str(pictures / "mug")).exit_code == 0
    assert lookalike("backup", "before").exit_code == 0
    bad = next((tmp_path / "data" / "images").rglob("*.jpg"))
    bad.write_bytes(b"x")
    made = lookalike("backup", "b.tar")
    assert made.exit_code == 1
    assert bad.name in made.stderr
    next((tmp_path / "before" / "images").rglob("*.jpg")).write_bytes(b"x")
    done = lookalike("restore", "before", "new")
    assert done.exit_code == 1
    assert "is damaged in the backup" in done.stderr
    assert len(listed(lookalike, tmp_path / "new")) == 6


def test_what_is_asked_wrongly(lookalike, pictures, tmp_path):
    assert isinstance(lookalike("backup", "b.tar").exception, ConfigurationError)  # nothing here
    assert lookalike("index", str(pictures / "mug")).exit_code == 0
    assert isinstance(lookalike("backup").exception, ConfigurationError)
    assert isinstance(lookalike("restore", "none.tar", "new").exception, ConfigurationError)
    assert lookalike("backup", "b.tar").exit_code == 0
    assert isinstance(lookalike("restore", "b.tar", "data").exception, ConfigurationError)
    (tmp_path / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:-5000])
    assert isinstance(lookalike("restore", "b.tar", "new").exception, BackupError)


@pytest.mark.parametrize("vectors", ["keep", "new"])
def test_a_collection_is_exported_and_imported(lookalike, pictures, tmp_path, vectors):
    assert lookalike("index", str(pictures), "--folder-field", "label").exit_code == 0
    done = lookalike("export", "default", "out")
    assert done.exit_code == 0, done.output
    assert "18 pictures, 18 originals in out" in done.stdout
    assert (
        lookalike("export", "default", "rows", "--format", "jsonl", "--no-originals").exit_code == 0
    )
    assert not (tmp_path / "rows" / "originals").exists()
    words = ["import", "out", "--data-dir", "new", "--vectors", vectors]
    made = lookalike(*words)
    assert made.exit_code == 0, made.output
    assert made.stdout == "18 created\n"
    assert lookalike(*words, "-c", "others").stdout == "18 created\n"
    assert lookalike(*words).stdout == "18 unchanged\n"
    with Client(tmp_path / "new", read_only=True) as client:
        assert client.audit(limit=1)[0].call == "import_collection"
    assert listed(lookalike, "new") == listed(lookalike, "data")
    assert isinstance(lookalike("export", "none", "x").exception, CollectionNotFoundError)
    assert isinstance(
        lookalike("import", "rows", "--data-dir", "new").exception, ConfigurationError
    )


def test_an_import_tells_what_failed(lookalike, pictures, tmp_path):
    assert lookalike("index", str(pictures / "mug")).exit_code == 0
    next((tmp_path / "data" / "images").rglob("*.jpg")).write_bytes(b"x")
    made = lookalike("export", "default", "out")
    assert made.exit_code == 1
    assert "is damaged, and was left out" in made.stderr
    done = lookalike("import", "out", "--data-dir", "new", "--vectors", "new")
    assert done.exit_code == 1
    assert set(done.stdout.strip().split(", ")) == {"5 created", "1 failed"}
    assert "Its original is not in the export" in done.stderr
