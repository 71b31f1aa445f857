"""Pictures that are referred to in place: moved files, twins, and names that are no text."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lookalike.bootstrap import Services, build_services
from lookalike.errors import OriginalNotKeptError, UnreadableImageError
from lookalike.media.sources import PictureSource
from lookalike.models.color import ColorEncoder
from lookalike.models.encoders import Encoders
from lookalike.records import OnConflict, PutStatus
from lookalike.services.indexing import IndexItem
from lookalike.store.base import count_of
from scripts.samples import write_samples
from tests.memory_store import MemoryStore
from tests.settings import make_settings


def built(tmp_path: Path, *, memory: bool = False, originals: str = "reference") -> Services:
    settings = make_settings(
        data_dir=tmp_path / "data",
        originals=originals,
    )
    store = MemoryStore() if memory else None
    return build_services(settings, encoders=Encoders(ColorEncoder()), store=store)


@pytest.fixture(params=["memory", "local"])
def services(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Services]:
    made = built(tmp_path, memory=request.param == "memory")
    yield made
    made.close()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return write_samples(tmp_path / "pictures", instances=1, views=1, size=(64, 48))[0].resolve()


def index(services: Services, *paths: Path, **options: OnConflict) -> list[IndexItem]:
    sources = [PictureSource.from_path(path) for path in paths]
    return list(services.indexing.index(sources, **options))


def one(services: Services, path: Path, **options: OnConflict) -> IndexItem:
    (item,) = index(services, path, **options)
    return item


def place(services: Services, item: IndexItem) -> Path:
    assert item.id is not None
    with services.pictures.original("default", item.id)[1] as file:
        return Path(file.name)


def moved(path: Path) -> Path:
    to = path.parent.parent / "elsewhere" / f"new-{path.name}"
    to.parent.mkdir(exist_ok=True)
    return path.rename(to)


@pytest.mark.parametrize("on_conflict", list(OnConflict))
def test_a_moved_file_is_found_again_once_it_is_indexed_where_it_is(
    services: Services, photo: Path, on_conflict: OnConflict
) -> None:
    item = one(services, photo)
    assert item.id is not None
    before = services.store.get("default", item.id)
    there = moved(photo)
    with pytest.raises(OriginalNotKeptError, match="Index the picture again"):
        place(services, item)
    again = one(services, there, on_conflict=on_conflict)
    skips = on_conflict is OnConflict.SKIP
    assert again.status is (PutStatus.SKIPPED if skips else PutStatus.UNCHANGED)
    assert again.id == item.id
    assert place(services, item) == there
    after = services.store.get("default", item.id)
    assert (after.updated_at, after.filename) == (before.updated_at, before.filename)


def test_a_file_that_was_changed_in_place_is_found_where_its_bytes_are(
    services: Services, photo: Path
) -> None:
    copy = photo.with_name("copy.jpg")
    shutil.copy(photo, copy)
    item = one(services, photo)
    photo.write_bytes(bytes(photo.stat().st_size))
    assert one(services, copy).status is PutStatus.UNCHANGED
    assert place(services, item) == copy


def test_of_twins_the_one_that_was_first_is_referred_to_as_long_as_it_is_there(
    services: Services, photo: Path
) -> None:
    twin = photo.with_name("twin.jpg")
    shutil.copy(photo, twin)
    first, second = index(services, photo, twin)
    assert (first.id, first.status) == (second.id, PutStatus.CREATED)
    for paths in ((photo, twin), (twin, photo), (twin,)):
        assert {item.status for item in index(services, *paths)} == {PutStatus.UNCHANGED}
        assert place(services, first) == photo
    photo.unlink()
    one(services, twin)
    assert place(services, first) == twin
    shutil.copy(twin, photo)
    one(services, photo)
    assert place(services, first) == twin


def test_of_new_twins_the_first_is_referred_to(services: Services, photo: Path) -> None:
    item = one(services, photo)
    there = moved(photo)
    twin = there.with_name("twin.jpg")
    shutil.copy(there, twin)
    index(services, there, twin)
    assert place(services, item) == there


def test_other_bytes_from_the_new_place_do_not_take_the_id_under_skip(
    services: Services, photo: Path, tmp_path: Path
) -> None:
    (item,) = services.indexing.index([PictureSource.from_path(photo, id="a")])
    other = write_samples(tmp_path / "more", instances=2, views=1, size=(64, 48))[1]
    photo.unlink()
    source = PictureSource.from_path(other, id="a")
    (again,) = services.indexing.index([source], on_conflict=OnConflict.SKIP)
    assert again.status is PutStatus.SKIPPED
    assert services.store.get("default", "a").source == str(photo)
    with pytest.raises(OriginalNotKeptError):
        place(services, item)


def test_metadata_comes_with_the_new_place(services: Services, photo: Path) -> None:
    item = one(services, photo)
    there = moved(photo)
    source = PictureSource.from_path(there, metadata={"n": 1})
    (again,) = services.indexing.index([source])
    assert again.status is PutStatus.UPDATED
    assert place(services, item) == there
    assert services.pictures.get("default", str(item.id)).metadata == {"n": 1}


def test_a_copy_that_is_kept_needs_no_other_place(tmp_path: Path, photo: Path) -> None:
    keeping = built(tmp_path, originals="keep")
    item = one(keeping, photo)
    kept = place(keeping, item)
    keeping.close()
    referring = built(tmp_path)
    try:
        one(referring, photo)
        assert place(referring, item) == kept
        kept.unlink()
        one(referring, photo)
        assert place(referring, item) == photo
    finally:
        referring.close()


def test_a_place_that_cannot_be_looked_at_counts_as_gone(
    services: Services, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = photo.with_name("copy.jpg")
    shutil.copy(photo, copy)
    item = one(services, photo)
    stat = Path.stat

    def refusing(self: Path, **options: bool) -> os.stat_result:
        if self == photo:
            raise PermissionError(13, "Permission denied", str(self))
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", refusing)
    with pytest.raises(OriginalNotKeptError):
        place(services, item)
    one(services, copy)
    assert place(services, item) == copy


def odd(photo: Path, *, folder: bool) -> Path:
    """A copy whose name, or its folder's, is no UTF-8."""
    below = photo.parent / os.fsdecode(b"caf\xe9") if folder else photo.parent
    below.mkdir(exist_ok=True)
    path = below / (photo.name if folder else os.fsdecode(b"\xe9.jpg"))
    path.write_bytes(photo.read_bytes())
    return path


@pytest.mark.parametrize("folder", [True, False])
def test_a_name_that_is_no_text_cannot_be_referred_to_and_harms_no_other(
    services: Services, photo: Path, tmp_path: Path, folder: bool
) -> None:
    bad = odd(photo, folder=folder)
    good = write_samples(tmp_path / "more", instances=3, views=1, size=(64, 48))[1:]
    failed, *rest = index(services, bad, *good)
    assert {item.status for item in rest} == {PutStatus.CREATED}
    assert isinstance(failed.error, UnreadableImageError)
    text = str(failed.error)
    assert text.isascii()
    for part in ("\\xe9", "rename it", "LOOKALIKE_ORIGINALS=keep"):
        assert part in text
    assert count_of(services.store, "default") == len(good)


def test_a_name_that_is_no_text_is_no_matter_where_the_picture_is_found(
    services: Services, photo: Path
) -> None:
    item = one(services, photo)
    bad = odd(photo, folder=False)
    assert one(services, bad).status is PutStatus.UNCHANGED
    photo.unlink()
    assert isinstance(one(services, bad).error, UnreadableImageError)
    with pytest.raises(OriginalNotKeptError):
        place(services, item)


def test_a_link_stands_for_what_it_leads_to(services: Services, photo: Path) -> None:
    link = photo.with_name("link.jpg")
    link.symlink_to(odd(photo, folder=True))
    assert isinstance(one(services, link).error, UnreadableImageError)
