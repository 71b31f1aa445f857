"""The pipeline of indexing, and what becomes of files, without HTTP."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import pytest

from lookalike.bootstrap import build_services
from lookalike.errors import EmbeddingFailedError, OriginalNotKeptError, UnreadableImageError
from lookalike.media.decoder import ImageDecoder
from lookalike.media.sources import PictureSource
from lookalike.models.color import ColorEncoder
from lookalike.models.encoders import Encoders
from lookalike.records import Match, PutStatus
from lookalike.services.search import SearchOptions, SearchService, group_key
from lookalike.store.base import count_of
from lookalike.store.filters import Filter
from scripts.samples import write_samples
from tests.memory_store import MemoryStore
from tests.settings import make_settings


class Counting(ColorEncoder):
    """Counts the pictures that went through it; fails on those that are all black."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def encode(self, batch):
        if not all(picture.any() for picture in batch):
            raise RuntimeError("planted")
        self.count += len(batch)
        return super().encode(batch)


@pytest.fixture
def encoder():
    return Counting()


@pytest.fixture(params=["memory", "local"])
def services(request, tmp_path, encoder):
    settings = make_settings(
        data_dir=tmp_path / "data",
        max_batch=4,
        queue_size=8,
    )
    store = MemoryStore() if request.param == "memory" else None
    built = build_services(settings, encoders=Encoders(encoder, max_batch=4), store=store)
    yield built
    built.close()


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return write_samples(tmp_path / "pictures", instances=3, views=1, size=(64, 48))


def sources(paths: list[Path]) -> list[PictureSource]:
    return [PictureSource.from_path(path, id=path.stem) for path in paths]


def test_more_pictures_than_the_window_come_out_in_order(services, paths):
    items = list(services.indexing.index(sources(paths)))
    assert [item.id for item in items] == [path.stem for path in paths]
    assert {item.status for item in items} == {PutStatus.CREATED}
    for path in paths[::7]:
        with path.open("rb") as file:
            found = services.search.search(file, SearchOptions(k=1))
        assert found.matches[0].record.id == path.stem


def test_what_is_there_costs_no_embedding(services, paths, encoder):
    list(services.indexing.index(sources(paths)))
    before = encoder.count
    again = list(services.indexing.index(sources(paths)))
    assert {item.status for item in again} == {PutStatus.UNCHANGED}
    assert encoder.count == before


def original(services, image_id):
    with services.pictures.original("default", image_id)[1] as file:
        return file.read()


def test_a_lost_original_is_kept_again_when_it_is_sent_again(services, paths):
    list(services.indexing.index(sources(paths[:1])))
    record, kept = services.pictures.original("default", paths[0].stem)
    with kept:
        Path(kept.name).unlink()
    list(services.indexing.index(sources(paths[:1])))
    assert original(services, record.id) == paths[0].read_bytes()


def test_a_thumbnail_made_again_is_kept_under_the_bytes_it_shows(services, paths, monkeypatch):
    def sent(path):
        return [PictureSource.from_path(path, id="x")]

    list(services.indexing.index(sent(paths[0])))
    before = services.store.get("default", "x")
    for lost in (services.settings.data_dir / "thumbnails").rglob("*.jpg"):
        lost.unlink()
    look = services.files.open_thumbnail

    def replaced_meanwhile(sha256):
        monkeypatch.setattr(services.files, "open_thumbnail", look)
        list(services.indexing.index(sent(paths[1])))

    monkeypatch.setattr(services.files, "open_thumbnail", replaced_meanwhile)
    record, file = services.pictures.thumbnail("default", "x")
    with file:
        assert file.read(2) == b"\xff\xd8"
    assert record == services.store.get("default", "x")
    assert record.sha256 != before.sha256
    assert services.files.open_thumbnail(before.sha256) is None


def test_bad_files_among_good_ones(services, paths, tmp_path):
    black = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (32, 32)).save(black, "PNG")
    gone = PictureSource(filename="gone.jpg", size=1, path=tmp_path / "gone.jpg", id="gone")
    dark = PictureSource(filename="black.png", size=len(black.getvalue()), file=black, id="black")
    mixed = [*sources(paths[:5]), gone, dark, *sources(paths[5:10])]
    items = {item.id: item for item in services.indexing.index(mixed)}
    assert isinstance(items["gone"].error, UnreadableImageError)
    assert isinstance(items["black"].error, EmbeddingFailedError)
    assert sum(item.status is PutStatus.CREATED for item in items.values()) == 10
    assert count_of(services.store, "default") == 10


def test_a_stream_that_is_left_stops_its_work(services, paths):
    taken: list[Path] = []

    def endless():
        for path in paths * 1000:
            taken.append(path)
            yield PictureSource.from_path(path, id=path.stem)

    items = services.indexing.index(endless())
    next(items)
    items.close()
    assert len(taken) < len(paths)
    assert len(list(services.indexing.index(sources(paths)))) == len(paths)


def between(monkeypatch, store, happens) -> None:
    """Lets something happen right after the next look at what is stored."""
    find = store.find

    def find_then(*args):
        found = find(*args)
        monkeypatch.setattr(store, "find", find)
        happens()
        return found

    monkeypatch.setattr(store, "find", find_then)


def described(path: Path, metadata: dict) -> PictureSource:
    return PictureSource.from_path(path, id="x", metadata=metadata)


def test_a_picture_replaced_meanwhile_keeps_its_own_metadata(services, paths, monkeypatch):
    index = services.indexing.index
    list(index([described(paths[0], {"of": 0})]))
    between(monkeypatch, services.store, lambda: list(index([described(paths[1], {"of": 1})])))
    (item,) = index([described(paths[0], {"of": 0, "new": True})])
    record = services.store.get("default", "x")
    assert item.status is PutStatus.REPLACED
    assert record.metadata == {"of": 0, "new": True}
    assert original(services, "x") == paths[0].read_bytes()


def test_a_picture_deleted_meanwhile_is_stored_again(services, paths, monkeypatch):
    index = services.indexing.index
    for metadata in ({"of": 0}, {"of": 1}):
        list(index([described(paths[0], {"of": 0})]))
        between(monkeypatch, services.store, lambda: services.store.delete("default", "x"))
        (item,) = index([described(paths[0], metadata)])
        assert item.status is PutStatus.CREATED
        assert services.store.get("default", "x").metadata == metadata


def test_what_is_no_file_or_cannot_be_read_fails_alone(services, paths, tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UnreadableImageError):
        PictureSource.from_path(tmp_path / "pipe.jpg")
    unreadable = PictureSource(filename="mem", size=9, path=Path("/proc/self/mem"))
    items = list(services.indexing.index([unreadable, *sources(paths[:2])]))
    assert isinstance(items[0].error, UnreadableImageError)
    assert [item.status for item in items[1:]] == [PutStatus.CREATED] * 2


def test_a_name_that_is_no_text_is_made_one(services, paths, tmp_path):
    import os

    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/x\xff.jpg"))
    odd.write_bytes(paths[0].read_bytes())
    (item,) = services.indexing.index([PictureSource.from_path(odd)])
    assert services.store.get("default", item.id).filename == "x\ufffd.jpg"


def test_a_file_changed_in_place_is_no_longer_served(tmp_path, encoder, paths):
    settings = make_settings(
        data_dir=tmp_path / "data",
        originals="reference",
    )
    built = build_services(settings, encoders=Encoders(encoder))
    try:
        (item,) = built.indexing.index(sources(paths[:1]))
        with built.pictures.original("default", str(item.id))[1] as file:
            assert file.name == str(paths[0].resolve())
        paths[0].write_bytes(b"\0" * paths[0].stat().st_size)
        with pytest.raises(OriginalNotKeptError):
            built.pictures.original("default", str(item.id))
    finally:
        built.close()


def test_groups_are_found_however_far_down_they_are(services, paths):
    many = [
        PictureSource.from_path(path, id=path.stem, metadata={"group": "one"}) for path in paths
    ]
    list(services.indexing.index(many))
    services.store.update_metadata("default", paths[-1].stem, {"group": "two"})
    with paths[0].open("rb") as file:
        found = services.search.search(file, SearchOptions(k=2, group_by="group"))
    assert [match.record.metadata["group"] for match in found.matches] == ["one", "two"]


@pytest.fixture
def grouped(services, paths):
    """One large group, pictures without the field, and small groups."""
    metadata: list[dict[str, Any]] = (
        [{"group": 1.5}] * 14 + [{}] * 4 + [{"group": [1]}, {"group": None}, {"group": "b"}]
    )
    given = [
        PictureSource.from_path(path, id=f"i{n}", metadata=one)
        for n, (path, one) in enumerate(zip(paths, metadata, strict=False))
    ]
    assert len(given) == len(metadata)
    list(services.indexing.index(given))
    return services


def searched(services, picture: Path, **options) -> list[Match]:
    with picture.open("rb") as file:
        return services.search.search(file, SearchOptions(**options)).matches


@pytest.mark.parametrize("place", [0, 15, 18, 20])
def test_the_best_of_each_group(grouped, paths, place):
    best: dict[Any, str] = {}
    for match in searched(grouped, paths[place], k=1000):
        if "group" in match.record.metadata:
            best.setdefault(group_key(match.record.metadata["group"]), match.record.id)
    assert len(best) == 4
    for k in range(1, 7):
        found = searched(grouped, paths[place], k=k, group_by="group")
        assert [match.record.id for match in found] == list(best.values())[:k]
        assert [match.rank for match in found] == list(range(1, min(k, 4) + 1))
    where = Filter.parse({"group": {"ne": "b"}})
    found = searched(grouped, paths[place], k=3, group_by="group", where=where)
    assert {match.record.id for match in found} == set(best.values()) - {"i20"}


def test_what_cannot_be_left_out_is_looked_for_within_a_bound(grouped, paths, monkeypatch):
    """Lists cannot be filtered away: only the nearest are looked at."""
    for n in range(14):
        grouped.store.update_metadata("default", f"i{n}", {"group": ["same"]})
    asked = asked_of(grouped, monkeypatch)
    assert len(searched(grouped, paths[0], k=4, group_by="group")) == 4
    assert [k for k, _ in asked] == [16, 64]
    asked.clear()
    bounded = SearchService(grouped.encoders, grouped.store, ImageDecoder(), most_grouped=14)
    with paths[0].open("rb") as file:
        found = bounded.search(file, SearchOptions(k=3, group_by="group")).matches
    assert [k for k, _ in asked] == [12, 14]
    assert ["same"] in [match.record.metadata["group"] for match in found]


def test_groups_end_where_scores_do(grouped, paths, monkeypatch):
    best = searched(grouped, paths[0], k=21)
    bound = best[9].score
    above = [match.record.metadata for match in best if match.score >= bound]
    asked = asked_of(grouped, monkeypatch)
    found = searched(grouped, paths[0], k=4, group_by="group", min_score=bound)
    assert len(asked) == 1
    assert {group_key(match.record.metadata["group"]) for match in found} == {
        group_key(metadata["group"]) for metadata in above if "group" in metadata
    }


def asked_of(services, monkeypatch) -> list[tuple[int, int]]:
    """How many matches each search from now on asks for, and gets."""
    asked = []
    search = services.store.search

    def counted(*args, **named):
        found = search(*args, **named)
        asked.append((named["k"], len(found[0])))
        return found

    monkeypatch.setattr(services.store, "search", counted)
    return asked


def test_groups_are_found_without_reading_everything(grouped, paths, monkeypatch):
    asked = asked_of(grouped, monkeypatch)
    assert searched(grouped, paths[0], k=2, group_by="no such field") == []
    assert asked == [(8, 8), (32, 0)]
    asked.clear()
    where = Filter.parse({"group": {"in": [1.5, "b"]}})
    assert len(searched(grouped, paths[0], k=2, group_by="group", where=where)) == 2
    assert sum(found for _, found in asked) <= 9, "the rest of the large group is not looked at"


def test_indexes_are_loaded_when_the_service_starts(tmp_path, paths):
    settings = make_settings(
        data_dir=tmp_path / "data",
    )
    for start in range(2):
        built = build_services(settings, encoders=Encoders(Counting()))
        if start == 0:
            list(built.indexing.index(sources(paths)))
        else:
            assert built.store.describe()["collections"]["default"]["bytes"] > 0
        built.close()


def test_several_streams_at_once(services, paths):
    def run(part: int) -> None:
        list(services.indexing.index(sources(paths[part::4])))

    threads = [threading.Thread(target=run, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count_of(services.store, "default") == len(paths)


def test_a_file_that_changes_between_hashing_and_keeping_is_refused(services, tmp_path, paths):
    class Changing(PictureSource):
        def sha256(self) -> str:
            digest = super().sha256()
            assert self.path is not None
            self.path.write_bytes(paths[1].read_bytes())
            return digest

    path = tmp_path / "changing.jpg"
    path.write_bytes(paths[0].read_bytes())
    source = Changing(filename="changing.jpg", size=path.stat().st_size, path=path, id="x")
    (item,) = services.indexing.index([source])
    assert item.error is not None
    assert count_of(services.store, "default") == 0


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [(1, 1.0, True), (1, True, False), ("1", 1, False), ([1], [1], True), (None, False, False)],
)
def test_group_keys_compare_as_filters_do(one, other, equal):
    assert (group_key(one) == group_key(other)) is equal
