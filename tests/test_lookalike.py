"""The Python interface, as the README shows it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike import Client
from lookalike.errors import (
    ConfigurationError,
    DataFolderInUseError,
    InvalidParameterError,
    StorageError,
)
from lookalike.records import Effort
from scripts.samples import write_samples
from tests.unreadable import refuse

README = Path(__file__).parent.parent / "README.md"
GREEN, RED = (22, 128, 60), (198, 40, 40)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_samples(tmp_path / "photos", classes=["mug", "fish"], instances=3, views=2, size=(96, 72))
    return tmp_path / "photos"


@pytest.fixture
def lookalike(tmp_path: Path, photos: Path) -> Iterator[Client]:
    with Client(tmp_path / "data", model="color") as made:
        items = made.index(photos, folder_field="label")
        assert [item.status for item in items] == ["created"] * 12
        yield made


def test_every_kind_of_query_finds_itself(lookalike: Client, photos: Path) -> None:
    path = photos / "fish" / "fish-01-0.jpg"
    for query in (path, str(path), path.read_bytes(), Image.open(path)):
        (best,) = lookalike.search(query, k=1).matches
        assert best.filename == path.name
        assert best.score == pytest.approx(1.0, abs=1e-6)
    filtered = lookalike.search(path, filter={"label": "mug"}).matches
    assert {match.metadata["label"] for match in filtered} == {"mug"}
    assert len(filtered) == 6
    assert len(lookalike.search(path, group_by="label").matches) == 2
    assert not lookalike.search(path, k=3, min_score=1.0, filter={"label": "mug"}).matches


def test_a_folder_that_cannot_be_read_is_an_item(
    lookalike: Client, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, photos / "fish")
    items = lookalike.index(photos, metadata=lambda path: {"bytes": path.stat().st_size})
    assert [item.path for item in items if item.failed] == [photos / "fish"]
    assert len(items) == 7


def test_how_hard_to_look_may_be_said(lookalike: Client, photos: Path) -> None:
    path = photos / "fish" / "fish-01-0.jpg"
    own, exact, hard = (
        [match.id for match in lookalike.search(path, effort=effort).matches]
        for effort in (None, Effort(exact=True), Effort(nprobe=9))
    )
    assert own == exact == hard
    with pytest.raises(InvalidParameterError, match="nprobe"):
        lookalike.search(path, effort=Effort(nprobe=0))


def test_metadata_is_made_by_a_function(lookalike: Client, photos: Path) -> None:
    lookalike.index(photos / "mug", collection="own", metadata=lambda path: {"stem": path.stem})
    found = lookalike.search(photos / "mug" / "mug-00-0.jpg", k=1, collection="own").matches
    assert found[0].metadata == {"stem": "mug-00-0"}


def test_a_function_of_metadata_that_fails_stores_nothing(photos: Path, tmp_path: Path) -> None:
    last = max(photos.rglob("*.jpg"))
    with Client(tmp_path / "other", model="color", max_batch=2) as client:
        with pytest.raises(ZeroDivisionError):
            client.index(photos, metadata=lambda path: {"n": 1 / (path != last)})
        assert client.collections() == []


def test_a_file_that_fails_harms_no_other(lookalike: Client, photos: Path) -> None:
    (photos / "mug" / "notes.jpg").write_text("no picture")
    items = lookalike.index(photos)
    assert [item.id for item in items if item.failed] == [None]
    assert sum(item.status == "unchanged" for item in items) == 12


def test_what_is_no_file_harms_no_other(lookalike: Client, photos: Path) -> None:
    os.mkfifo(photos / "mug" / "pipe.jpg")
    (photos / "gone.jpg").symlink_to(photos / "nowhere.jpg")
    items = lookalike.index(photos, collection="other")
    reasons = sorted(str(item.error) for item in items if item.failed)
    assert len(reasons) == 2
    assert reasons[1].endswith("it is no regular file")
    assert sum(item.status == "created" for item in items) == 12


def test_an_open_picture_is_the_query_that_its_file_is(
    lookalike: Client, photos: Path, tmp_path: Path
) -> None:
    upright = Image.open(photos / "fish" / "fish-00-0.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned
    upright.save(tmp_path / "turned.jpg", exif=exif)
    upright.convert("CMYK").save(tmp_path / "cmyk.jpg")
    upright.convert("I;16").save(tmp_path / "deep.png")
    for name in ("turned.jpg", "cmyk.jpg", "deep.png"):
        by_file = lookalike.search(tmp_path / name, k=3).matches
        with Image.open(tmp_path / name) as opened:
            by_picture = lookalike.search(opened, k=3).matches
        assert [match.id for match in by_file] == [m.id for m in by_picture]
        assert by_picture[0].score == pytest.approx(by_file[0].score, abs=2e-3)


def test_settings_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no setting 'modle'; did you mean model\?"):
        Client(tmp_path / "data", modle="color")
    with pytest.raises(ConfigurationError, match="index pictures first"):
        Client(tmp_path / "nothing", read_only=True, model="color")
    assert list(tmp_path.iterdir()) == []


def colors(image: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(color) for color in np.unique(np.asarray(image).reshape(-1, 3), axis=0)}


def test_the_figure_frames_right_and_wrong_ones(lookalike: Client, photos: Path) -> None:
    path = photos / "fish" / "fish-01-0.jpg"
    plain = colors(lookalike.show(path, k=12))
    assert not {GREEN, RED} & plain
    judged = colors(lookalike.show(path, k=12, label_field="label", label="fish"))
    assert {GREEN, RED} <= judged
    right = colors(lookalike.show(path, k=1, label_field="label", label="fish"))
    assert GREEN in right
    assert RED not in right


def test_vectors_are_those_that_are_stored(lookalike: Client) -> None:
    found = lookalike.vector_set(label_field="label")
    assert sorted(found.labels or []) == ["fish"] * 6 + ["mug"] * 6
    assert found.picture(0, size=64).mode == "RGB"


def test_a_query_that_is_not_there(lookalike: Client) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg cannot be read"):
        lookalike.search("nowhere.jpg")


def test_a_second_one_reads(lookalike: Client, tmp_path: Path, photos: Path) -> None:
    with pytest.raises(DataFolderInUseError):
        Client(tmp_path / "data", model="color")
    with Client(tmp_path / "data", model="color", read_only=True) as reader:
        assert len(reader.search(photos / "mug" / "mug-00-0.jpg").matches) == 10
        (photos / "new.jpg").write_bytes((photos / "mug" / "mug-00-0.jpg").read_bytes() + b" ")
        (item,) = reader.index(photos / "new.jpg")
        assert isinstance(item.error, StorageError)


def test_the_readme_example_runs(
    tmp_path: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(example.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOOKALIKE_MODEL", "color")
    (tmp_path / "query.jpg").write_bytes((photos / "mug" / "mug-00-0.jpg").read_bytes())
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[0].split()[:2] == ["1", "1.0000"]
    with Image.open(tmp_path / "matches.png") as figure:
        assert figure.width > 500
