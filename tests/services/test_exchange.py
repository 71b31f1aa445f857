"""Collections as files: what is written comes back, and what a stranger wrote is checked."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, fields, replace
from datetime import UTC
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lookalike import extras
from lookalike.bootstrap import Services, build_services
from lookalike.errors import (
    BackupError,
    CollectionNotFoundError,
    ConfigurationError,
    InvalidCollectionNameError,
    SpecMismatchError,
    UnreadableImageError,
)
from lookalike.files.data_folder import is_ours
from lookalike.media.sources import PictureSource
from lookalike.models.color import ColorEncoder
from lookalike.models.encoders import Encoders
from lookalike.records import (
    ImageRecord,
    NewImage,
    OnConflict,
    Place,
    PutStatus,
    sha256_of,
    utc_text,
)
from lookalike.services.exchange import (
    Exported,
    ExportForm,
    export_collection,
    import_collection,
    read_sidecar,
    write_sidecar,
)
from lookalike.services.indexing import IndexItem
from lookalike.services.parquet import ParquetExport
from lookalike.services.search import SearchOptions
from lookalike.store.base import Store, count_of, scan
from scripts.samples import write_samples
from tests.memory_store import MemoryStore
from tests.settings import make_settings
from tests.store.helpers import SPEC, new_image, unit_vectors

SHARED = [HealthCheck.function_scoped_fixture]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,20}", fullmatch=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXT
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
METADATA = st.dictionaries(TEXT, VALUES, max_size=4)


def apart(record: ImageRecord) -> ImageRecord:
    """The record without copies at its own place."""
    others = [place for place in record.others if place.location != record.places[0].location]
    return replace(record, others=tuple(others))


TIMES = st.datetimes(timezones=st.just(UTC)).map(utc_text)
PLACES = st.builds(Place, root=st.sampled_from(["/a", "/b", "x.zip", ""]), path=TEXT)
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
    created_at=TIMES,
    updated_at=TIMES,
    place=PLACES,
    others=st.lists(PLACES, max_size=3, unique_by=lambda place: place.location).map(tuple),
).map(apart)
ONE = ImageRecord(
    id="p1",
    sha256="a" * 64,
    filename="a.jpg",
    media_type="image/jpeg",
    width=1,
    height=1,
    bytes=1,
    collection="default",
    created_at="2026-01-31T12:00:00.000Z",
    updated_at="2026-01-31T12:00:00.250Z",
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
        ({"created_at": "soon"}, "created_at"),
        ({"updated_at": "9999-12-31T23:59:59-01:00"}, "updated_at"),
        ({"place": {"root": "a", "path": "\0"}}, "name"),
        ({"place": "a"}, "place"),
        ({"others": [{"root": "a"}]}, "others"),
    ],
)
def test_a_line_that_is_no_picture_is_named(tmp_path, change, match):
    good = asdict(ONE)
    (tmp_path / "s.jsonl").write_text(f"{json.dumps(good)}\n\n{json.dumps(good | change)}\n")
    read = read_sidecar(tmp_path / "s.jsonl")
    assert next(read) == ONE
    with pytest.raises(BackupError, match=rf"line 3: .*{match}"):
        next(read)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("2026-01-31", "2026-01-31T00:00:00.000Z"),
        ("2026-01-31T12:00:00", "2026-01-31T12:00:00.000Z"),
        ("2026-01-31 14:00:00.1239+02:00", "2026-01-31T12:00:00.123Z"),
    ],
)
def test_times_may_be_written_in_any_form_of_iso_8601(tmp_path, given, kept):
    (tmp_path / "s.jsonl").write_text(json.dumps(asdict(ONE) | {"created_at": given}))
    assert list(read_sidecar(tmp_path / "s.jsonl")) == [replace(ONE, created_at=kept)]


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


def build(folder: Path, store: Store | None = None) -> Services:
    settings = make_settings(data_dir=folder, max_batch=4)
    return build_services(settings, encoders=Encoders(ColorEncoder(), max_batch=4), store=store)


@contextmanager
def stores(top: Path) -> Iterator[tuple[Services, Services]]:
    """A service over a store that knows no files, and one over the local store."""
    with closing(build(top / "one", MemoryStore())) as one, closing(build(top / "two")) as two:
        yield one, two


def rows_of(services: Services, collection: str) -> list[tuple[Any, list[float]]]:
    rows = []
    for page in scan(services.store, collection):
        for record, vector in zip(page.records, page.vectors, strict=True):
            own = replace(record, source=None, collection="")
            rows.append((own, vector.tolist()))
    return rows


def export(services: Services, folder: Path, **options: Any) -> Exported:
    return export_collection(services.store, services.files, "default", folder, **options)


def imported(services: Services, source: Path, **options: Any) -> list[IndexItem]:
    return list(import_collection(services.indexing, source, **options))


@settings(max_examples=6, deadline=None)
@given(records=st.lists(RECORDS, min_size=1, max_size=5, unique_by=lambda one: one.id))
def test_rows_and_vectors_come_back_exactly(tmp_path_factory, records):
    top = tmp_path_factory.mktemp("round")
    with stores(top) as (one, two):
        spec = one.encoders.default.spec
        vectors = unit_vectors(len(records), dim=spec.dim, seed=len(records))
        images = [new_image_of(record) for record in records]
        one.store.upsert("default", images, vectors, spec=spec, provenance={"precision": "x"})
        for record in records:
            copies = [replace(new_image_of(record), place=place) for place in record.others]
            one.store.upsert_known("default", copies, on_conflict=OnConflict.REPLACE)
        assert export(one, top / "out").pictures == len(records)
        items = imported(two, top / "out", collection="others")
        assert {item.status for item in items} == {PutStatus.CREATED}
        assert rows_of(two, "others") == rows_of(one, "default")
        info = two.store.collection("others")
        assert info is not None
        assert info.provenance == {"precision": "x"}
        again = imported(two, top / "out", collection="others")
        assert {item.status for item in again} == {PutStatus.UNCHANGED}
        assert rows_of(two, "others") == rows_of(one, "default")
    shutil.rmtree(top)


def new_image_of(record: ImageRecord) -> NewImage:
    return NewImage(**{one.name: getattr(record, one.name) for one in fields(NewImage)})


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Services]:
    """A service over ten pictures."""
    paths = write_samples(tmp_path / "photos", classes=["mug"], instances=5, views=2, size=(64, 48))
    with closing(build(tmp_path / "data")) as services:
        sources = [
            PictureSource.from_path(path, id=path.stem, metadata={"view": path.stem[-1]})
            for path in paths
        ]
        assert all(item.status for item in services.indexing.index(sources))
        yield services


def search(services: Services, path: Path, collection: str) -> list[tuple[str, float]]:
    with path.open("rb") as file:
        found = services.search.search(file, SearchOptions(k=5, collection=collection))
    return [(match.record.id, match.score) for match in found.matches]


@pytest.mark.parametrize("form", ExportForm)
@pytest.mark.parametrize("embed", [False, True])
def test_a_collection_moves_to_another_folder(filled, tmp_path, form, embed):
    exported = export(filled, tmp_path / "out", form=form)
    assert (exported.pictures, exported.originals, exported.errors) == (10, 10, [])
    assert is_ours(tmp_path / "out")
    with closing(build(tmp_path / "new")) as new:
        if form is ExportForm.JSONL and not embed:
            with pytest.raises(ConfigurationError, match="--vectors new"):
                imported(new, tmp_path / "out")
            return
        items = imported(new, tmp_path / "out", embed=embed)
        assert [item.error for item in items] == [None] * 10
        photo = tmp_path / "photos" / "mug" / "mug-03-1.jpg"
        assert search(new, photo, "default") == search(filled, photo, "default")
        assert rows_of(new, "default") == rows_of(filled, "default")
        again = imported(new, tmp_path / "out", embed=embed)
        assert {item.status for item in again} == {PutStatus.UNCHANGED}
        assert rows_of(new, "default") == rows_of(filled, "default")
        for item in items:
            record, file = new.pictures.original("default", str(item.id))
            with file:
                assert sha256_of(file) == record.sha256


def test_an_export_is_written_again_over_itself(filled, tmp_path):
    export(filled, tmp_path / "out")
    filled.pictures.delete("default", "mug-00-0")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.jpg")}
    assert export(filled, tmp_path / "out").pictures == 9
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.jpg")} == before
    with closing(ParquetExport(tmp_path / "out" / "pictures.parquet")) as written:
        assert written.count == 9


def test_pictures_without_a_vector_are_told(filled, tmp_path):
    with closing(sqlite3.connect(tmp_path / "data" / "catalog.db")) as rows:
        rows.execute("DELETE FROM vectors WHERE seq IN (SELECT seq FROM images LIMIT 2)")
        rows.commit()
    exported = export(filled, tmp_path / "out")
    assert exported.pictures == 8
    assert "2 pictures have no vector" in exported.errors[0]
    assert export(filled, tmp_path / "rows", form=ExportForm.JSONL).errors == []


def test_other_programs_read_it(filled, tmp_path):
    export(filled, tmp_path / "out")
    table = pyarrow.parquet.read_table(tmp_path / "out" / "pictures.parquet").to_pydict()
    assert table["id"][0] == "mug-00-0"
    assert json.loads(table["metadata"][0]) == {"view": "0"}
    assert len(table["vector"][0]) == filled.encoders.default.spec.dim
    facts = json.loads(
        pyarrow.parquet.read_schema(tmp_path / "out" / "pictures.parquet").metadata[b"lookalike"]
    )
    assert facts["spec"]["model"] == "color"
    assert facts["collection"] == "default"


def test_originals_can_be_left_out_and_damaged_ones_are(filled, tmp_path):
    assert export(filled, tmp_path / "none", originals=False).originals == 0
    assert not (tmp_path / "none" / "originals").exists()
    bad, gone, *_ = (tmp_path / "data" / "images").rglob("*.jpg")
    bad.write_bytes(b"x")
    gone.unlink()
    exported = export(filled, tmp_path / "out")
    assert (exported.pictures, exported.originals, exported.missing) == (10, 8, 1)
    assert len(exported.errors) == 1
    with closing(build(tmp_path / "new")) as new:
        assert [item.error for item in imported(new, tmp_path / "out")] == [None] * 10
        found = imported(new, tmp_path / "out", collection="anew", embed=True)
        assert sum(isinstance(item.error, UnreadableImageError) for item in found) == 2
        assert count_of(new.store, "anew") == 8


def test_a_damaged_original_of_an_export_is_told(filled, tmp_path):
    export(filled, tmp_path / "out")
    bad = next((tmp_path / "out" / "originals").rglob("*.jpg"))
    bad.write_bytes(b"x")
    for embed in (False, True):
        with closing(build(tmp_path / f"new{embed}")) as new:
            items = imported(new, tmp_path / "out", embed=embed)
            (failed,) = [item for item in items if item.error is not None]
            assert "is damaged" in str(failed.error)
            assert count_of(new.store, "default") == (9 if embed else 10)


@contextmanager
def closed(kept: Path) -> Iterator[None]:
    """Has a file refuse to be opened, though the tests may run as root."""
    real = Path.open

    def refuse(path: Path, *mode: Any, **how: Any) -> Any:
        if path == kept:
            raise PermissionError(13, "Permission denied")
        return real(path, *mode, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        yield


@pytest.mark.parametrize("embed", [False, True])
def test_an_original_that_cannot_be_opened_is_told_and_the_rest_moved(filled, tmp_path, embed):
    record = filled.store.get("default", "mug-00-0")
    kept = filled.files.path(record.sha256, record.media_type)
    assert kept is not None
    with closed(kept):
        exported = export(filled, tmp_path / "out")
    assert (exported.pictures, exported.originals) == (10, 9)
    assert "mug-00-0" in exported.errors[0]
    assert "Permission denied" in exported.errors[0]
    export(filled, tmp_path / "out")
    with (
        closing(build(tmp_path / "new")) as new,
        closed(next((tmp_path / "out").rglob(kept.name))),
    ):
        items = imported(new, tmp_path / "out", embed=embed)
        failed = [item for item in items if item.error]
        assert [item.id for item in failed] == ["mug-00-0"]
        assert "cannot be read" in str(failed[0].error)
        assert count_of(new.store, "default") == 10 - embed


def test_vectors_of_another_model_are_refused(filled, tmp_path):
    export(filled, tmp_path / "out")
    with closing(build(tmp_path / "new")) as new:
        new.store.upsert("mine", [new_image("a")], unit_vectors(1), spec=SPEC, provenance={})
        with pytest.raises(SpecMismatchError, match="--vectors new"):
            imported(new, tmp_path / "out", collection="mine")
        assert count_of(new.store, "mine") == 1


def test_a_place_that_cannot_be_used_is_refused(filled, tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "photos", tmp_path / "file"):
        with pytest.raises(ConfigurationError):
            export(filled, folder)
    for source in (tmp_path / "none", tmp_path / "photos", tmp_path / "file"):
        with pytest.raises(ConfigurationError, match="is no export"):
            imported(filled, source)
    with pytest.raises(CollectionNotFoundError):
        export_collection(filled.store, filled.files, "none", tmp_path / "new")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_parquet_file_is_refused_or_read(filled, tmp_path, data):
    good = tmp_path / "good"
    if not good.exists():
        export(filled, good)
    content = bytearray((good / "pictures.parquet").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        imported(filled, bad, collection="bad")
    except (BackupError, InvalidCollectionNameError, SpecMismatchError):
        pass
    else:
        assert rows_of(filled, "bad") == rows_of(filled, "default")
        filled.store.drop("bad")


def test_files_that_are_no_export_are_named(filled, tmp_path):
    table = pyarrow.table({"id": ["a"], "vector": [[1.0]]})
    pyarrow.parquet.write_table(table, tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("id,vector")
    for name in ("other.parquet", "text.parquet"):
        with pytest.raises(BackupError, match="is no export of Lookalike"):
            imported(filled, tmp_path / name)


@pytest.mark.parametrize("vector", [[], [1.0], [float("nan")] * 48, None, "text"])
def test_vectors_that_cannot_be_are_refused(filled, tmp_path, vector):
    export(filled, tmp_path / "out", originals=False)
    path = tmp_path / "out" / "pictures.parquet"
    table = pyarrow.parquet.read_table(path)
    column = [vector if n == 3 else one for n, one in enumerate(table["vector"].to_pylist())]
    if vector == "text":
        column = ["text"] * 10
    changed = table.set_column(table.column_names.index("vector"), "vector", pyarrow.array(column))
    pyarrow.parquet.write_table(changed, path)
    with pytest.raises(BackupError):
        imported(filled, path, collection="bad")
    assert filled.store.collection("bad") is None


def test_originals_of_an_import_that_failed_can_be_swept(filled, tmp_path):
    export(filled, tmp_path / "out")
    path = tmp_path / "out" / "pictures.parquet"
    table = pyarrow.parquet.read_table(path)
    column = pyarrow.array([[1.0]] * 10)
    at = table.column_names.index("vector")
    pyarrow.parquet.write_table(table.set_column(at, "vector", column), path)
    with closing(build(tmp_path / "new")) as new:
        with pytest.raises(BackupError, match="vectors of the export"):
            imported(new, tmp_path / "out")
        copied = {original.stem for original in (tmp_path / "new" / "images").rglob("*.jpg")}
        assert copied
        assert copied <= set(new.store.noted())


def test_without_the_extra_an_error_names_it(filled, tmp_path, monkeypatch):
    monkeypatch.setitem(extras.MODULES, "parquet", ("a_module_that_is_not_there",))
    with pytest.raises(ConfigurationError, match=r'pip install "lookalike\[parquet\]"'):
        export(filled, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert export(filled, tmp_path / "out", form=ExportForm.JSONL).pictures == 10
