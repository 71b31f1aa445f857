"""Collections as files that other programs read: written, and taken back.

`parquet` says what a Parquet file holds.

The sidecar holds one JSON object a line, for each picture one, oldest first, in UTF-8:

```
{"collection": "default", "id": "p1", "sha256": "9f86...", "filename": "a.jpg",
 "media_type": "image/jpeg", "width": 640, "height": 480, "bytes": 52114,
 "metadata": {"label": "cat"}, "source": null,
 "place": {"root": "/mnt/photos", "path": "cat/a.jpg"}, "others": [],
 "created_at": "2026-01-31T12:00:00.000Z", "updated_at": "2026-01-31T12:00:00.000Z"}
```

These are the fields of `ImageRecord`, with all places of its bytes. A reader takes those that it
knows; one with a default may be missing.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter, ValidationError

from lookalike.errors import (
    BackupError,
    ConfigurationError,
    LookalikeError,
    OriginalDamagedError,
    SpecMismatchError,
    StorageError,
    UnreadableImageError,
)
from lookalike.extras import require_extra
from lookalike.files.data_folder import folder_kind, mark_folder
from lookalike.files.disk import atomic_write, disk_errors, extension_of, make_folders
from lookalike.media.decode import MEDIA_TYPES
from lookalike.media.sources import PictureSource
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.records import (
    MAX_COPIES,
    CollectionInfo,
    ImageRecord,
    ModelSpec,
    NewImage,
    OnConflict,
    check_collection_name,
    check_id,
    is_digest,
    read_utc,
    sha256_of,
    utc_now,
)
from lookalike.services.feedback import read_judgements, write_judgements
from lookalike.services.feeds import ImportOptions, Picture
from lookalike.services.importing import index_feed
from lookalike.services.indexing import IndexingService, IndexItem, Originals, settle
from lookalike.services.parquet import ParquetExport, write_parquet
from lookalike.services.pipeline import reading
from lookalike.services.scores import ScoreCalibration
from lookalike.store.base import (
    BlobStore,
    Page,
    Store,
    Vectors,
    require_same_spec,
    scan,
    spec_of,
    unknown_collection,
)
from lookalike.store.filters import check_metadata, storable_text

ORIGINALS = "originals"
"""The folder beside the rows with the files of the pictures."""

_PAGE = 1000
_SHOWN = 20
_ORIGINAL = "Its original in the export"
_MAX_METADATA = 1_000_000  # bytes; the highest that the setting allows
_MAX_LINE = 64_000_000  # bytes; a picture may have been seen at many places
_MAX_NUMBER = 2**53
_RECORDS = TypeAdapter(ImageRecord)


def write_sidecar(records: Iterable[ImageRecord], file: BinaryIO) -> int:
    """Writes one line for each picture; returns how many."""
    count = 0
    for count, record in enumerate(records, start=1):  # noqa: B007 - the last is the answer
        file.write(json.dumps(asdict(record), ensure_ascii=False).encode() + b"\n")
    return count


def read_sidecar(path: Path) -> Iterator[ImageRecord]:
    """The pictures of a sidecar, in its order; a line is checked before it is given.

    Raises:
        BackupError: A line is no picture; the text names it.
        StorageError: The file cannot be read.
    """
    with disk_errors(f"read {path}"), path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), start=1):
            if line.strip():
                with _row_errors(f"{path}, line {number}"):
                    record = read_record(json.loads(line))
                yield record


def read_rows(source: Path) -> Iterator[ImageRecord]:
    """The pictures of an export, its folder or its file with the rows; of any sidecar.

    Raises as `read_sidecar`, and `ConfigurationError` for a folder that is no export.
    """
    path = _rows_of(source) if source.is_dir() else source
    if path.suffix != ".parquet":
        yield from read_sidecar(path)
        return
    with closing(_Reader(path)) as reader:
        yield from reader.records()


@contextmanager
def _row_errors(where: str) -> Iterator[None]:
    """What is wrong with a row becomes a `BackupError` that says where it is."""
    try:
        yield
    except (ValueError, RecursionError, LookalikeError) as exc:
        raise BackupError(f"{where}: {exc}") from exc


def read_record(values: Any) -> ImageRecord:
    """One picture from JSON that a stranger may have written.

    Raises:
        BackupError: A field is missing, of another type, or out of its range.
        LookalikeError: The id, the collection or the metadata cannot be stored.
    """
    try:
        record = _RECORDS.validate_python(values)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the line"
        raise BackupError(f"{field}: {first['msg']}") from exc
    check_id(record.id)
    check_collection_name(record.collection)
    check_metadata(dict(record.metadata), max_bytes=_MAX_METADATA)
    if not is_digest(record.sha256):
        raise BackupError("sha256 is no SHA-256 in lower-case hex")
    if record.media_type not in MEDIA_TYPES.values():
        raise BackupError(f"{record.media_type[:80]!r} is no type of pictures that are read here")
    names = [record.filename, record.source or ""]
    names += [name for place in record.places for name in (place.root, place.path)]
    if not all(map(storable_text, names)):
        raise BackupError("a name holds characters that cannot be stored")
    sizes = (record.width, record.height, record.bytes)
    if not 1 <= min(sizes) <= max(sizes) < _MAX_NUMBER:
        raise BackupError("width, height or bytes are out of range")
    try:
        created_at, updated_at = read_utc(record.created_at), read_utc(record.updated_at)
    except ValueError as exc:
        raise BackupError(
            "created_at or updated_at is no time, such as 2026-01-31T12:00:00.000Z"
        ) from exc
    return replace(record, created_at=created_at, updated_at=updated_at)


# A collection in a folder


@dataclass(kw_only=True)
class Exported:
    """What an export wrote."""

    pictures: int = 0
    originals: int = 0
    missing: int = 0  # pictures whose original is not here
    errors: list[str] = field(default_factory=list)  # what is not in it, the first few


class ExportForm(StrEnum):
    """How rows are written: with vectors, or as a sidecar without them."""

    PARQUET = "parquet"
    JSONL = "jsonl"

    @property
    def filename(self) -> str:
        """The name of the file with the rows."""
        return f"pictures.{self.value}"


def export_collection(
    store: Store,
    files: BlobStore,
    collection: str,
    folder: Path,
    *,
    form: ExportForm = ExportForm.PARQUET,
    originals: bool = True,
    progress: Progress = NO_PROGRESS,
) -> Exported:
    """Writes a collection into a new folder, or over an earlier export; a service may change it.

    ```
    pictures.parquet or pictures.jsonl    written last
    feedback.jsonl    if there is feedback
    originals/ab/<sha256>.<ext>
    ```

    Raises:
        CollectionNotFoundError: There is no such collection.
        ConfigurationError: The folder holds something else, or the extra is not installed.
        StorageError: The disk refuses.
    """
    info = store.collection(check_collection_name(collection))
    if info is None:
        raise unknown_collection(collection)
    if form is ExportForm.PARQUET:
        require_extra("parquet", "an export as Parquet")
    exported = Exported()
    with disk_errors(f"write the export {folder}"):
        _claim(folder)
        copier = _Copier(files, folder / ORIGINALS, exported) if originals else None
        with atomic_write(folder / form.filename) as file:
            pages = _told(store, info, exported, progress, form=form, copier=copier)
            if form is ExportForm.PARQUET:
                write_parquet(file, pages, _facts(store, info))
            else:
                write_sidecar((record for page in pages for record in page.records), file)
            write_judgements(store, info, folder)
            os.sync()  # the originals, before the rows that name them
    if form is ExportForm.PARQUET and (lacking := _without_vector(store, info)):
        text = (
            f"{lacking:,} pictures have no vector and are not in it: make their vectors with "
            "lookalike check --repair, or export with --format jsonl"
        )
        exported.errors.insert(0, text)
        progress.error(text)
    return exported


def _without_vector(store: Store, info: CollectionInfo) -> int:
    """How many pictures an export with vectors leaves out."""
    count, cursor = 0, None
    while True:
        missing = store.spaces.missing(info.name, info.spec, limit=_PAGE, cursor=cursor)
        if not missing.records:
            return count
        count, cursor = count + len(missing.records), missing.cursor


def _claim(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"{folder} is a file; name an empty folder, or a new one")
    if folder.is_dir() and any(folder.iterdir()) and folder_kind(folder) != "output":
        raise ConfigurationError(f"{folder} is not empty; name an empty folder, or a new one")
    make_folders(folder.absolute())
    mark_folder(folder, "output")


def _with_all_places(store: Store, collection: str, page: Page) -> Page:
    """The same page; records list only so many places."""
    short = [one.id for one in page.records if len(one.others) >= MAX_COPIES]
    if not short:
        return page
    places = store.places(collection, short)
    records = [
        replace(one, others=tuple(places[one.id][1:])) if one.id in places else one
        for one in page.records
    ]
    return replace(page, records=records)


def _told(
    store: Store,
    info: CollectionInfo,
    exported: Exported,
    progress: Progress,
    *,
    form: ExportForm,
    copier: _Copier | None,
) -> Iterator[Page]:
    """The pages of a collection, each once the originals of its pictures are copied."""
    for page in scan(store, info.name, vectors=form is ExportForm.PARQUET):
        for record in page.records:
            progress.check()
            if copier is not None:
                copier.copy(record, progress)
        exported.pictures += len(page.records)
        progress.report(min(exported.pictures, info.count), info.count)
        yield _with_all_places(store, info.name, page)


def _facts(store: Store, info: CollectionInfo) -> dict[str, Any]:
    active = next(one for one in store.spaces.all(info.name) if one.active)
    return {
        "collection": info.name,
        "spec": info.spec.to_dict(),
        "provenance": dict(info.provenance),
        "recipe": None if active.recipe is None else dict(active.recipe),
        "calibration": store.spaces.calibration(info.name, info.spec),
        "exported_at": utc_now(),
    }


@dataclass(eq=False)
class _Copier:
    """Copies originals, each once."""

    files: BlobStore
    folder: Path
    exported: Exported

    def copy(self, record: ImageRecord, progress: Progress) -> None:
        target = original_in(self.folder, record)
        if target.is_file() and target.stat().st_size == record.bytes:
            self.exported.originals += 1
            return
        try:
            source = self.files.open(record)
        except (OriginalDamagedError, StorageError) as exc:
            why = "is damaged," if isinstance(exc, OriginalDamagedError) else f"({exc})"
            text = f"The original of {record.id} {why} and was left out"
            self.exported.errors = [*self.exported.errors, text][:_SHOWN]
            progress.error(text)
            return
        if source is None:
            self.exported.missing += 1
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        with source, part.open("wb") as out:
            shutil.copyfileobj(source, out, 2**20)
        part.replace(target)
        self.exported.originals += 1


def original_in(folder: Path, record: NewImage) -> Path:
    """Where an export's folder of originals has that of a picture, if it has it."""
    return folder / record.sha256[:2] / f"{record.sha256}.{extension_of(record.media_type)}"


def import_collection(
    indexing: IndexingService,
    source: Path,
    *,
    collection: str | None = None,
    embed: bool = False,
    on_conflict: OnConflict = OnConflict.REPLACE,
    progress: Progress = NO_PROGRESS,
) -> Iterator[IndexItem]:
    """Adds the pictures of an export, a folder or its file with rows; yields what became of each.

    Originals are copied from the folder `originals` beside the file. Vectors are taken over, or
    made anew with `embed`. `collection` is the name that the export has, if None. Pictures that are
    new here keep the times of the export. Files that rows refer to in place are not looked at.

    Raises:
        BackupError: It is no export, or it is damaged.
        SpecMismatchError: The vectors are of another model than the collection's, or the
            service's if the collection is new.
        ConfigurationError: There is no such file, or the extra is not installed.
        StorageError: The disk refuses.
    """
    path = _rows_of(source)
    if path.suffix == ".jsonl" and not embed:
        raise ConfigurationError(
            f"{path} holds no vectors: have them made with --vectors new, or import a Parquet file"
        )
    with closing(_Reader(path)) as reader:
        name = check_collection_name(collection or reader.collection)
        originals = path.parent / ORIGINALS
        if embed:
            items = _embedded(indexing, reader, name, originals, on_conflict)
        else:
            items = _taken_over(indexing, reader, name, originals, on_conflict)
        for done, item in enumerate(items, start=1):
            yield item
            progress.report(done, max(done, reader.count))
            progress.check()
        read_judgements(indexing.store, name, path.parent)
        if not embed:
            _take_calibration(indexing.store, name, reader)


def _take_calibration(store: Store, collection: str, reader: _Reader) -> None:
    """Keeps what the scores of the export mean, unless that is known here."""
    assert reader.parquet is not None
    content = reader.parquet.facts.get("calibration")
    made = ScoreCalibration.of_json(content) if isinstance(content, dict) else None
    if made is not None and store.spaces.calibration(collection, reader.spec) is None:
        store.spaces.calibrate(collection, reader.spec, made.to_json())


def _rows_of(source: Path) -> Path:
    forms = [source / form.filename for form in ExportForm] if source.is_dir() else [source]
    found = next((path for path in forms if path.is_file()), None)
    if found is None or found.suffix not in {f".{form.value}" for form in ExportForm}:
        raise ConfigurationError(
            f"{source} is no export: name a folder that lookalike export wrote, or its "
            "pictures.parquet or pictures.jsonl"
        )
    return found


class _Reader:
    """The rows of an export, in both forms."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.parquet = ParquetExport(path) if path.suffix == ".parquet" else None
        if self.parquet is not None:
            self.count, self.collection = self.parquet.count, str(self.parquet.facts["collection"])
        else:
            self.count = sum(1 for _ in read_sidecar(path))  # and every line is checked
            self.collection = next((one.collection for one in read_sidecar(path)), "default")

    def close(self) -> None:
        if self.parquet is not None:
            self.parquet.close()

    @property
    def spec(self) -> ModelSpec:
        """What made the vectors."""
        assert self.parquet is not None
        try:
            return ModelSpec.from_dict(self.parquet.facts["spec"])
        except (KeyError, TypeError, ValueError) as exc:
            raise BackupError(f"{self._path} does not say what made its vectors") from exc

    def records(self) -> Iterator[ImageRecord]:
        if self.parquet is None:
            yield from read_sidecar(self._path)
            return
        for records, _ in self.batches():
            yield from records

    def batches(self) -> Iterator[tuple[list[ImageRecord], Vectors]]:
        assert self.parquet is not None
        first = 1
        for rows, vectors in self.parquet.rows():
            records = []
            for number, row in enumerate(rows, start=first):
                with _row_errors(f"{self._path}, row {number}"):
                    records.append(read_record(row))
            first += len(rows)
            yield records, vectors


def _taken_over(
    indexing: IndexingService,
    reader: _Reader,
    collection: str,
    originals: Path,
    on_conflict: OnConflict,
) -> Iterator[IndexItem]:
    assert reader.parquet is not None
    spec = spec_of(indexing.store, collection) or indexing.encoders.default.spec
    try:
        require_same_spec(collection, spec, reader.spec)
    except SpecMismatchError as exc:
        raise SpecMismatchError(
            f"The vectors of the export are not of the model of {collection!r}. {exc}; or have "
            "vectors made from the originals with --vectors new"
        ) from exc
    provenance = {str(k): str(v) for k, v in dict(reader.parquet.facts["provenance"]).items()}
    for records, vectors in reader.batches():
        failed = {one.id: _keep_original(indexing, originals, one) for one in records}
        images = [_new_image(record) for record in records]
        try:
            with indexing.gate.passing(collection):
                outcomes = indexing.store.upsert(
                    collection,
                    images,
                    vectors,
                    spec=spec,
                    provenance=provenance,
                    on_conflict=on_conflict,
                )
        except ValueError as exc:
            raise BackupError(f"The vectors of the export cannot be used: {exc}") from exc
        for record in records:
            _note_copies(indexing.store, collection, record)
        for image, outcome in zip(images, outcomes, strict=True):
            source = PictureSource(filename=image.filename, size=image.bytes)
            item = IndexItem(source=source, id=image.id)
            settle(item, outcome)
            item.error = item.error or failed[image.id]
            yield item


def _note_copies(store: Store, collection: str, record: ImageRecord) -> None:
    """Notes where else a picture's bytes were seen, if it is stored with these bytes."""
    image = replace(_new_image(record), metadata=None)
    copies = [replace(image, place=place) for place in record.others]
    if copies:
        store.upsert_known(collection, copies, on_conflict=OnConflict.REPLACE)


def _new_image(record: ImageRecord) -> NewImage:
    values = {one.name: getattr(record, one.name) for one in fields(NewImage)}
    return NewImage(**values | {"source": None})


def _keep_original(
    indexing: IndexingService, folder: Path, record: ImageRecord
) -> LookalikeError | None:
    """Copies an original that is in the export; gives why it cannot be."""
    path = original_in(folder, record)
    if indexing.originals is Originals.NONE or not path.is_file():
        return None
    try:
        with reading(_ORIGINAL), path.open("rb") as file:
            indexing.keep(record, file)
    except UnreadableImageError:
        return UnreadableImageError(
            f"{_ORIGINAL} is damaged or cannot be read, and was left out; the row is stored"
        )
    return None


def _embedded(
    indexing: IndexingService,
    reader: _Reader,
    collection: str,
    originals: Path,
    on_conflict: OnConflict,
) -> Iterator[IndexItem]:
    options = ImportOptions(collection=collection, on_conflict=on_conflict)
    pictures = (
        Picture(number, record.filename, _source(originals, record))
        for number, record in enumerate(reader.records())
    )
    groups = index_feed(indexing, pictures, options)
    with closing(groups):
        for group in groups:
            yield from (item for _, item in group)
    for record in reader.records():
        _note_copies(indexing.store, collection, record)


def _source(folder: Path, record: ImageRecord) -> PictureSource:
    """The original of a picture, to be indexed under its id; or why it cannot be."""
    shared: dict[str, Any] = {"filename": record.filename, "id": record.id}
    shared |= {"metadata": dict(record.metadata), "place": record.place}
    shared |= {"created_at": record.created_at, "updated_at": record.updated_at}
    path = original_in(folder, record)
    error: LookalikeError = UnreadableImageError("Its original is not in the export")
    if path.is_file():
        try:
            with reading(_ORIGINAL):
                file = path.open("rb")
                if sha256_of(file) == record.sha256:
                    return PictureSource(**shared, size=file.tell(), file=file)
                file.close()
            error = UnreadableImageError(f"{_ORIGINAL} is damaged")
        except LookalikeError as exc:
            error = exc
    return PictureSource(**shared, size=0, error=error)
