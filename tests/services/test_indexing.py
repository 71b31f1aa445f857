"""The pipeline of indexing, and what becomes of files, without HTTP."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest

from app.bootstrap import build_services
from app.config import Settings
from app.embedding.color_extractor import ColorExtractor
from app.embedding.extractors import Extractors
from app.errors import EmbeddingFailedError, UnreadableImageError
from app.records import PutStatus
from app.samples import write_samples
from app.services.search import SearchOptions, group_key
from app.services.sources import PictureSource
from app.store.memory_store import MemoryStore


class Counting(ColorExtractor):
    """Counts the pictures that went through it; fails on those that are all black."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def extract(self, batch):
        if not batch.reshape(len(batch), -1).any(axis=1).all():
            raise RuntimeError("planted")
        self.count += len(batch)
        return super().extract(batch)


@pytest.fixture
def extractor():
    return Counting()


@pytest.fixture(params=["memory", "local"])
def services(request, tmp_path, extractor):
    settings = Settings(data_dir=tmp_path / "data", max_batch=4, queue_size=8, _env_file=None)
    store = MemoryStore() if request.param == "memory" else None
    built = build_services(settings, extractors=Extractors(extractor, max_batch=4), store=store)
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


def test_what_is_there_costs_no_embedding(services, paths, extractor):
    list(services.indexing.index(sources(paths)))
    before = extractor.count
    again = list(services.indexing.index(sources(paths)))
    assert {item.status for item in again} == {PutStatus.UNCHANGED}
    assert extractor.count == before


def test_a_lost_original_is_kept_again_when_it_is_sent_again(services, paths):
    list(services.indexing.index(sources(paths[:1])))
    record, kept = services.pictures.original("default", paths[0].stem)
    kept.unlink()
    list(services.indexing.index(sources(paths[:1])))
    assert services.pictures.original("default", record.id)[1].read_bytes() == paths[0].read_bytes()


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
    assert services.store.count("default") == 10


def test_a_stream_that_is_left_stops_its_work(services, paths):
    items = services.indexing.index(sources(paths * 10))
    next(items)
    items.close()
    assert services.store.count("default") <= len(paths)
    assert len(list(services.indexing.index(sources(paths)))) == len(paths)


def test_several_streams_at_once(services, paths):
    def run(part: int) -> None:
        list(services.indexing.index(sources(paths[part::4])))

    threads = [threading.Thread(target=run, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert services.store.count("default") == len(paths)


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
    assert item.failed
    assert services.store.count("default") == 0


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [(1, 1.0, True), (1, True, False), ("1", 1, False), ([1], [1], True), (None, False, False)],
)
def test_group_keys_compare_as_filters_do(one, other, equal):
    assert (group_key(one) == group_key(other)) is equal
