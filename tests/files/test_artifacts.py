"""Artifact folders: whole or not there, and never read where they are damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lookalike.files.artifacts import (
    MANIFEST,
    Artifact,
    BrokenArtifactError,
    read_artifact,
    remove_artifact,
    save_artifact,
)
from lookalike.files.disk import atomic_write

FILES = {"a.bin": b"first", "b.bin": b"second file"}


def save(folder: Path, files: dict[str, bytes] = FILES, **facts: object) -> Artifact:
    def write(content: Path) -> None:
        for name, data in files.items():
            (content / name).write_bytes(data)

    return save_artifact(folder, kind="toy", version=3, facts=facts, write=write)


def read(folder: Path, kind: str = "toy", version: int = 3) -> Artifact | None:
    found = read_artifact(folder, kind=kind, version=version)
    if found is not None:
        for name in found.files:
            found.verify(name)
    return found


def contents(artifact: Artifact | None) -> dict[str, bytes]:
    assert artifact is not None
    return {name: artifact.path(name).read_bytes() for name in artifact.files}


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    assert read(tmp_path / "one") is None
    saved = save(tmp_path / "one", n=1)
    found = read(tmp_path / "one")
    assert found == saved
    assert contents(found) == FILES
    assert saved.facts == {"n": 1}
    with pytest.raises(BrokenArtifactError, match=r"no file c\.bin"):
        saved.path("c.bin")


def test_a_second_save_replaces_the_first(tmp_path: Path) -> None:
    first = save(tmp_path, n=1)
    save(tmp_path, {"c.bin": b"third"}, n=2)
    found = read(tmp_path)
    assert contents(found) == {"c.bin": b"third"}
    assert found is not None
    assert found.facts == {"n": 2}
    # A reader of the old manifest may still be opening the old files.
    assert first.content.is_dir()
    old = time.time() - 4000
    os.utime(first.content, (old, old))
    save(tmp_path, n=3)
    assert not first.content.exists()


def test_a_failed_save_leaves_the_old_artifact(tmp_path: Path) -> None:
    save(tmp_path, n=1)
    before = sorted(tmp_path.iterdir())

    def fail(content: Path) -> None:
        (content / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        save_artifact(tmp_path, kind="toy", version=3, facts={}, write=fail)
    assert sorted(tmp_path.iterdir()) == before
    assert contents(read(tmp_path)) == FILES


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=st.sampled_from(sorted(FILES)), data=st.data())
def test_a_changed_byte_is_seen(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("artifact")
    path = save(folder).path(name)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(BrokenArtifactError, match=f"checksum of {name}"):
        read(folder)
    unchecked = read_artifact(folder, kind="toy", version=3)
    assert unchecked is not None
    with pytest.raises(BrokenArtifactError):
        unchecked.verify(name)


def test_what_is_missing_or_of_another_kind_is_broken(tmp_path: Path) -> None:
    saved = save(tmp_path)
    with pytest.raises(BrokenArtifactError, match="a toy of version 3, not a toy of version 4"):
        read(tmp_path, version=4)
    with pytest.raises(BrokenArtifactError, match="not a car"):
        read(tmp_path, kind="car")
    saved.path("a.bin").unlink()
    with pytest.raises(BrokenArtifactError, match=r"a\.bin is missing"):
        read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document | {"content": ".."},
        lambda document: document | {"files": {"../../x": {"sha256": "0", "bytes": 1}}},
        lambda document: document | {"files": [1]},
        lambda document: document | {"facts": None},
        lambda document: {"kind": "toy", "version": 3},
        lambda _: "no object",
    ],
)
def test_a_manifest_that_says_nonsense_is_broken(tmp_path: Path, change) -> None:
    save(tmp_path)
    path = tmp_path / MANIFEST
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(BrokenArtifactError, match="manifest is damaged"):
        read(tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(BrokenArtifactError, match="manifest is damaged"):
        read(tmp_path)


def test_a_removed_artifact_is_gone(tmp_path: Path) -> None:
    save(tmp_path / "one")
    remove_artifact(tmp_path / "one")
    assert not (tmp_path / "one").exists()
    remove_artifact(tmp_path / "one")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with atomic_write(path) as file:
        file.write(b"old")

    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"half of the new")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    assert [one.name for one in path.parent.iterdir()] == ["file"]


_WRITER = """
import itertools, sys
from pathlib import Path
from lookalike.files.artifacts import save_artifact
for n in itertools.count():
    def write(content):
        for name in "ab":
            (content / name).write_bytes(str(n).encode() * 50_000)
    save_artifact(Path(sys.argv[1]), kind="toy", version=3, facts={"n": n}, write=write)
    print(n, flush=True)
"""


def test_kill_9_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    for after in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(3 + 5 * after):
            told = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        rest = writer.communicate()[0].split()
        told = int(rest[-1]) if rest else told
        found = read(tmp_path)
        assert found is not None
        assert found.facts["n"] in {told, told + 1}
        assert set(contents(found).values()) == {str(found.facts["n"]).encode() * 50_000}
