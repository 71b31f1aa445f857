"""Vectors are right, made once, kept whole, and found again whatever happened in between."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lookalike.errors import (
    ConfigurationError,
    EmbeddingFailedError,
    InvalidImageError,
    StorageError,
    StorageFullError,
)
from lookalike.evaluation import vector_cache
from lookalike.evaluation.datasets import Dataset, open_dataset, sample
from lookalike.evaluation.extraction import extract_vectors
from lookalike.media.decode import ImageLimits
from lookalike.media.decoder import ImageDecoder
from lookalike.models.base import normalize
from lookalike.models.color import ColorEncoder
from lookalike.models.encoders import Encoders
from lookalike.progress import Progress
from lookalike.services.vector_set import VectorSet
from scripts.samples import write_samples


class Counting(ColorEncoder):
    """Counts what goes through it, and can be told to be another network, or to be slow."""

    def __init__(self, *, weights: str = "", precision: str = "float32", slow: float = 0) -> None:
        super().__init__()
        digest = hashlib.sha256(weights.encode()).hexdigest()
        self.spec = replace(self.spec, weights_sha256=digest)
        self.provenance["precision"] = precision
        self._slow = slow
        self.prepared = 0
        self.embedded = 0
        self._counting = threading.Lock()

    def prepare(self, image):
        with self._counting:
            self.prepared += 1
        return super().prepare(image)

    def encode(self, batch):
        time.sleep(self._slow)
        self.embedded += len(batch)
        return super().encode(batch)


def extract(dataset, cache: Path | None, *, encoder=None, limits=None, **options) -> VectorSet:
    encoders = Encoders(encoder or Counting(), max_batch=4, queue_size=8)
    try:
        return extract_vectors(
            dataset,
            encoders.default,
            ImageDecoder(limits, slots=2),
            cache=cache,
            cores=2,
            **options,
        )
    finally:
        encoders.close()


def made(dataset, cache: Path | None, **options) -> tuple[VectorSet, int]:
    """The set, and how many pictures went through the network for it."""
    encoder = options.setdefault("encoder", Counting())
    found = extract(dataset, cache, **options)
    assert encoder.prepared == encoder.embedded
    return found, encoder.embedded


def opened(folder: Path):
    return open_dataset(str(folder), kind="folder", cache_dir=folder)


def check(found: VectorSet, dataset, *, without: tuple[str, ...] = ()) -> None:
    """Compares with the encoder called on each picture by itself."""
    expected = [position for position, id_ in enumerate(dataset.ids) if id_ not in without]
    assert list(found.ids) == [dataset.ids[position] for position in expected]
    assert list(found.labels or ()) == [dataset.labels[position] for position in expected]
    assert [skipped.name for skipped in found.skipped] == sorted(without)
    plain = ColorEncoder()
    for row, position in enumerate(expected):
        data = dataset.paths[position].read_bytes()
        image = ImageDecoder().decode(data, decode_size=plain.decode_size).image
        vector = plain.encode([plain.prepare(image)])[0]
        assert np.array_equal(found.vectors[row], vector)
        assert found.sha256s[row] == hashlib.sha256(data).hexdigest()
        assert found.names[row] == dataset.paths[position].name


def folder_of(cache: Path) -> Path:
    (manifest,) = cache.rglob("manifest.json")
    return manifest.parent


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "set"
    write_samples(folder, classes=["mug", "car", "fish"], instances=4, views=2, size=(64, 48))
    return folder


@pytest.fixture
def pictures(drawn, tmp_path) -> Path:
    """24 pictures of 3 classes, to be changed at will."""
    return Path(shutil.copytree(drawn, tmp_path / "set"))


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(params=["disk", "memory"])
def any_cache(request, cache) -> Path | None:
    return cache if request.param == "disk" else None


def test_vectors_are_those_of_the_encoder(drawn, any_cache):
    dataset = opened(drawn)
    found, embedded = made(dataset, any_cache)
    check(found, dataset)
    assert (embedded, found.name, found.vectors.dtype) == (24, "set", np.dtype("float32"))
    assert found.spec.digest == Counting().spec.digest
    assert found.provenance["precision"] == "float32"


def test_the_set_opens_its_pictures(pictures, any_cache):
    broken = pictures / "car" / "car-00-0.jpg"
    broken.write_bytes(b"no picture")
    found = extract(opened(pictures), any_cache)
    picture = found.picture(0, size=8)
    with Image.open(pictures / found.ids[0]) as image:
        image.draft(None, (8, 8))
        assert picture.size == image.size
    assert found.picture(0, size=64).size == (64, 48)
    (pictures / found.ids[3]).unlink()
    with pytest.raises(InvalidImageError, match="cannot be read"):
        found.picture(3, size=8)


def test_what_others_read(drawn, cache):
    found = extract(opened(drawn), cache)
    folder = folder_of(cache)
    assert sorted(path.name for path in folder.iterdir()) == [
        "lock",
        "manifest.json",
        "vectors.npy",
    ]
    assert isinstance(found.vectors, np.memmap)
    assert not found.vectors.flags.writeable
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    assert np.array_equal(vectors, found.vectors)
    text = (folder / "manifest.json").read_bytes()
    manifest = json.loads(text)
    stat = (drawn / found.ids[5]).stat()
    assert manifest["pictures"][5] == {
        "id": found.ids[5],
        "label": "car",
        "sha256": found.sha256s[5],
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
    }
    assert (manifest["version"], manifest["dataset"], manifest["skipped"]) == (1, "set", [])
    assert manifest["passport"]["model"] == "color"
    assert manifest["vectors"]["sha256"] == hashlib.sha256(vectors.tobytes()).hexdigest()
    before, _, _ = text.rpartition(b', "checksum"')
    assert manifest["checksum"] == hashlib.sha256(before).hexdigest()


def test_the_second_run_does_nothing(drawn, cache, monkeypatch):
    dataset = opened(drawn)
    first = extract(dataset, cache)
    monkeypatch.setattr(Dataset, "source", None)  # no file is opened
    before = {path: path.stat().st_mtime_ns for path in folder_of(cache).iterdir()}
    told = []
    encoder = Counting()
    again = extract(
        dataset, cache, encoder=encoder, progress=Progress(lambda _, *a: told.append(a))
    )
    assert (encoder.prepared, encoder.embedded, told) == (0, 0, [(24, 24)])
    assert np.array_equal(first.vectors, again.vectors)
    assert (first.ids, first.labels, first.sha256s) == (again.ids, again.labels, again.sha256s)
    before.pop(folder_of(cache) / "lock")
    assert before == {path: path.stat().st_mtime_ns for path in before}


class Elsewhere(Counting):
    def __init__(self) -> None:
        super().__init__()
        self.provenance["device"] = "elsewhere"


def test_provenance_is_of_the_run_that_made_the_vectors(pictures, cache):
    extract(opened(pictures), cache)
    assert extract(opened(pictures), cache, encoder=Elsewhere()).provenance["device"] == "cpu"
    Image.new("RGB", (50, 50), "green").save(pictures / "fish" / "new.png")
    later = extract(opened(pictures), cache, encoder=Elsewhere())
    assert later.provenance["device"] == "elsewhere"


def test_one_changed_file_is_one_embedded(pictures, cache):
    first = extract(opened(pictures), cache)
    changed = pictures / "fish" / "fish-01-0.jpg"
    Image.new("RGB", (50, 50), "green").save(changed)
    dataset = opened(pictures)
    found, embedded = made(dataset, cache)
    assert embedded == 1
    check(found, dataset)
    row = found.ids.index("fish/fish-01-0.jpg")
    assert not np.array_equal(first.vectors[row], found.vectors[row])  # the old map still stands


def test_files_that_come_go_and_move(pictures, cache):
    extract(opened(pictures), cache)
    (pictures / "car" / "car-00-0.jpg").unlink()
    (pictures / "car" / "car-00-1.jpg").rename(pictures / "mug" / "aaa.jpg")
    Image.new("RGB", (50, 50), "green").save(pictures / "car" / "zzz.png")
    dataset = opened(pictures)
    found, embedded = made(dataset, cache)
    assert embedded == 1
    check(found, dataset)
    assert made(opened(pictures), cache)[1] == 0


def test_a_file_that_was_only_touched_is_read_again_and_not_embedded(pictures, cache):
    extract(opened(pictures), cache)
    os.utime(pictures / "car" / "car-00-0.jpg", ns=(1, 1))
    dataset = opened(pictures)
    found, embedded = made(dataset, cache)
    assert embedded == 0
    check(found, dataset)
    manifest = json.loads((folder_of(cache) / "manifest.json").read_text())
    assert manifest["pictures"][0]["mtime_ns"] == 1


def test_files_that_change_places_keep_no_old_vectors(tmp_path, cache):
    """Same size, same time of change, as `cp -p`, tar or rsync leave them."""
    for name, color in (("a", "red"), ("b", "blue")):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), color).save(tmp_path / "set" / name / "0.bmp")
        os.utime(tmp_path / "set" / name / "0.bmp", (1e9, 1e9))
    dataset = opened(tmp_path / "set")
    extract(dataset, cache)
    one, other = dataset.paths
    shutil.copy2(one, tmp_path / "spare.bmp")
    shutil.copy2(other, one)
    shutil.copy2(tmp_path / "spare.bmp", other)
    assert one.stat().st_mtime == other.stat().st_mtime == 1e9
    found, embedded = made(opened(tmp_path / "set"), cache)
    check(found, dataset)
    assert embedded == 0, "both contents are known"


def test_identical_pictures_are_embedded_once(pictures, any_cache):
    for number in range(9):
        shutil.copy(pictures / "car/car-00-0.jpg", pictures / f"mug/copy-{number}.jpg")
        shutil.copy(pictures / "mug/mug-03-1.jpg", pictures / f"car/copy-{number}.jpg")
        (pictures / f"car/broken-{number}.jpg").write_bytes(b"\xff\xd8\xff broken")
    dataset = opened(pictures)
    found, embedded = made(dataset, any_cache)
    assert embedded == 24
    check(found, dataset, without=tuple(f"car/broken-{number}.jpg" for number in range(9)))
    assert len({skipped.reason for skipped in found.skipped}) == 1


def test_pictures_that_cannot_be_read_are_counted(pictures, any_cache):
    (pictures / "car" / "car-00-0.jpg").write_bytes(b"no picture")
    (pictures / "car" / "car-02-1.jpg").write_bytes(b"")
    cut = pictures / "mug" / "mug-01-0.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    dataset = opened(pictures)
    (pictures / "fish" / "fish-03-1.jpg").unlink()
    bad = ("car/car-00-0.jpg", "car/car-02-1.jpg", "fish/fish-03-1.jpg", "mug/mug-01-0.jpg")
    for _ in range(2):
        found, embedded = made(dataset, any_cache)
        check(found, dataset, without=bad)
        reasons = [skipped.reason for skipped in found.skipped]
        for reason, part in zip(reasons, ("not a picture", "empty", "No such", "de"), strict=True):
            assert part in reason
    assert embedded == (0 if any_cache else 20)


def test_a_skipped_picture_is_tried_again(pictures, cache):
    dataset = opened(pictures)
    largest = max(path.stat().st_size for path in dataset.paths)
    found, embedded = made(dataset, cache, limits=ImageLimits(max_bytes=largest - 1))
    assert len(found.skipped) == 24 - embedded > 0
    assert "bytes" in found.skipped[0].reason
    found, embedded = made(dataset, cache)
    check(found, dataset)
    assert embedded > 0


def test_a_file_larger_than_the_memory_is_refused_unread(pictures, any_cache):
    os.truncate(pictures / "car" / "car-00-0.jpg", 2**42)
    dataset = opened(pictures)
    found, _ = made(dataset, any_cache)
    assert [skipped.name for skipped in found.skipped] == ["car/car-00-0.jpg"]
    assert "4,398,046,511,104 bytes and the limit is" in found.skipped[0].reason


def test_nothing_to_extract(pictures, any_cache):
    empty = Dataset(name="void", origin="void", ids=[], labels=None, paths=[])
    with pytest.raises(ConfigurationError, match="void is empty"):
        extract(empty, any_cache)
    dataset = opened(pictures)
    for path in dataset.paths:
        path.write_bytes(b"no picture")
    with pytest.raises(ConfigurationError, match=r"None of the 24 .* car/car-00-0.jpg: The file"):
        extract(dataset, any_cache)


def test_that_no_file_is_there_today_costs_no_vectors(pictures, cache, tmp_path):
    dataset = opened(pictures)
    extract(dataset, cache)
    pictures.rename(tmp_path / "away")
    with pytest.raises(ConfigurationError, match=r"None of the 24 .* No such file"):
        extract(dataset, cache)
    (tmp_path / "away").rename(pictures)
    assert made(dataset, cache)[1] == 0


def test_other_weights_or_precision_are_another_entry(drawn, cache):
    dataset = opened(drawn)
    settings: list[dict[str, Any]] = [{}, {"weights": "other"}, {"precision": "bfloat16"}]
    for _ in range(2):
        counts = [made(dataset, cache, encoder=Counting(**s))[1] for s in settings]
    assert counts == [0, 0, 0]
    assert len(list(cache.rglob("vectors.npy"))) == 3


def test_datasets_of_one_name_share_contents_and_nothing_else(drawn, pictures, cache):
    one, other = opened(drawn), opened(pictures)
    assert one.name == other.name
    assert made(one, cache)[1] == 24
    found, embedded = made(other, cache)
    assert embedded == 0
    check(found, other)
    assert len(list(cache.rglob("vectors.npy"))) == 2
    part, embedded = made(sample(one, count=7, seed=0), cache)
    assert (embedded, len(part)) == (0, 7)
    for id_, vector in zip(part.ids, part.vectors, strict=True):
        assert np.array_equal(vector, found.vectors[found.ids.index(id_)])
    assert made(one, cache)[1] == 0  # the sample took nothing away


def test_labels_may_change_alone(drawn, cache):
    dataset = opened(drawn)
    extract(dataset, cache)
    other = replace(dataset, labels=["same"] * 24)
    found, embedded = made(other, cache)
    assert embedded == 0
    assert set(found.labels or ()) == {"same"}
    assert "same" in (folder_of(cache) / "manifest.json").read_text()
    assert made(replace(dataset, labels=None), cache)[0].labels is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def shuffle(path: Path) -> None:
    """The same size, and the checksums of whoever wrote it are not there."""
    path.write_bytes(bytes(reversed(path.read_bytes())))


@pytest.mark.parametrize("name", ["vectors.npy", "manifest.json"])
@pytest.mark.parametrize("damage", [cut, flip, lengthen, empty, shuffle, Path.unlink])
def test_a_damaged_cache_is_made_again(drawn, cache, caplog, name, damage):
    dataset = opened(drawn)
    extract(dataset, cache)
    damage(folder_of(cache) / name)
    with caplog.at_level(logging.WARNING):
        found, embedded = made(dataset, cache)
    assert embedded == 24
    check(found, dataset)
    assert ("made again" in caplog.text) is (name == "vectors.npy" or damage is not Path.unlink)
    assert made(dataset, cache)[1] == 0


def test_a_copied_cache_is_believed_by_its_checksum(drawn, cache, tmp_path):
    dataset = opened(drawn)
    extract(dataset, cache)
    copy = tmp_path / "copy"
    shutil.copytree(cache, copy, copy_function=shutil.copyfile)
    os.utime(folder_of(copy) / "vectors.npy", ns=(5, 5))
    found, embedded = made(dataset, copy)
    assert embedded == 0
    check(found, dataset)


def test_a_newer_version_is_not_read(drawn, cache):
    dataset = opened(drawn)
    extract(dataset, cache)
    path = folder_of(cache) / "manifest.json"
    body = (
        path.read_bytes().replace(b'"version": 1', b'"version": 2').rpartition(b', "checksum"')[0]
    )
    seal = f', "checksum": "{hashlib.sha256(body).hexdigest()}"}}\n'
    path.write_bytes(body + seal.encode())
    assert made(dataset, cache)[1] == 24


class StopError(Exception):
    pass


def stop_after(count: int):
    def told(_: str, done: int, total: int) -> None:
        if done >= count:
            raise StopError

    return told


@contextmanager
def stopped(dataset, cache: Path, *, after: int):
    with pytest.raises(StopError):
        extract(dataset, cache, progress=Progress(stop_after(after)))
    (pending,) = cache.rglob("pending.vectors")
    yield pending.parent


def test_an_interrupted_run_goes_on(drawn, cache):
    dataset = opened(drawn)
    with stopped(dataset, cache, after=10):
        pass
    told = []
    found, embedded = made(dataset, cache, progress=Progress(lambda _, *a: told.append(a)))
    assert embedded == 14
    check(found, dataset)
    assert told == [(done, 24) for done in range(10, 25)]


def test_a_resumed_run_reads_no_finished_file_again(drawn, cache, monkeypatch):
    dataset = opened(drawn)
    with stopped(dataset, cache, after=10):
        pass
    opened_again = []
    source = Dataset.source
    monkeypatch.setattr(
        Dataset, "source", lambda self, p: opened_again.append(p) or source(self, p)
    )
    extract(dataset, cache)
    assert sorted(opened_again) == list(range(10, 24))


@pytest.mark.parametrize("name", ["pending.vectors", "pending.jsonl"])
@pytest.mark.parametrize(("damage", "lost"), [(cut, 1), (flip, 1), (empty, 10), (Path.unlink, 10)])
def test_what_is_torn_or_damaged_is_embedded_again(drawn, cache, name, damage, lost):
    dataset = opened(drawn)
    with stopped(dataset, cache, after=10) as folder:
        damage(folder / name)
    found, embedded = made(dataset, cache)
    assert 14 <= embedded <= 14 + lost
    assert embedded == 14 + lost or name == "pending.jsonl"  # a flipped digit of a time harms none
    check(found, dataset)


def test_a_content_whose_vector_was_lost_is_embedded_again(pictures, cache):
    for number in range(5):
        shutil.copy(pictures / "car/car-00-0.jpg", pictures / f"car/car-00-0-{number}.jpg")
    dataset = opened(pictures)
    with stopped(dataset, cache, after=10) as folder:
        lines = [json.loads(line) for line in (folder / "pending.jsonl").read_text().splitlines()]
        empty(folder / "pending.vectors")
    for line in lines:
        if "car-00-0" in line["id"] and line["row"] is not None:
            (pictures / line["id"]).unlink()  # the one of six that was embedded for all
    dataset = opened(pictures)
    found, embedded = made(dataset, cache)
    assert (len(found), embedded) == (28, 24)
    check(found, dataset)


def test_lines_of_nonsense_are_passed_over(drawn, cache):
    dataset = opened(drawn)
    nonsense = [b"[]", b"\xff", b"{}", b'{"sha256": "", "row": -1, "crc32": 0}']
    nonsense += [b'{"sha256": 1, "row": "x", "crc32": 0}', b'{"id": "torn']
    with stopped(dataset, cache, after=10) as folder:
        lines = (folder / "pending.jsonl").read_bytes()
        (folder / "pending.jsonl").write_bytes(lines + b"\n".join(nonsense))
    found, embedded = made(dataset, cache)
    assert embedded == 14
    check(found, dataset)


def test_a_line_that_was_cut_short_spoils_none_behind_it(drawn, cache):
    dataset = opened(drawn)
    with stopped(dataset, cache, after=10) as folder:
        cut(folder / "pending.jsonl")
        cut(folder / "pending.jsonl")
    with stopped(dataset, cache, after=15):
        pass
    found, embedded = made(dataset, cache)
    assert embedded == 9
    check(found, dataset)


@pytest.mark.parametrize("renamed", [False, True])
def test_a_save_that_was_cut_off_between_its_renames(drawn, pictures, cache, renamed):
    dataset = opened(pictures)
    extract(dataset, cache)
    folder = folder_of(cache)
    old = {name: (folder / name).read_bytes() for name in ("vectors.npy", "manifest.json")}
    facts = (folder / "vectors.npy").stat()
    (pictures / "car" / "car-00-0.jpg").unlink()
    extract(opened(pictures), cache)
    (folder / "manifest.json").rename(folder / "manifest.next.json")
    (folder / "manifest.json").write_bytes(old["manifest.json"])
    if not renamed:
        (folder / "vectors.npy").write_bytes(old["vectors.npy"])
        os.utime(folder / "vectors.npy", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    dataset = opened(pictures)
    found, embedded = made(dataset, cache)
    assert embedded == 0
    check(found, dataset)
    assert not (folder / "manifest.next.json").exists()


CHILD = """
import sys
from pathlib import Path
from lookalike.progress import Progress
from tests.evaluation.test_extraction import Counting, extract, opened
told = Progress(lambda _, done, total: print(done, flush=True))
pictures, cache, slow = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
extract(opened(pictures), cache, encoder=Counting(slow=slow), progress=told)
"""


def child(pictures: Path, cache: Path, *, slow: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(pictures), str(cache), str(slow)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_kill_9_in_the_middle(drawn, cache, tmp_path):
    with child(drawn, cache, slow=0.1) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 9:
            pass
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
    assert process.returncode == -signal.SIGKILL
    acknowledged = int(rest[-1]) if rest else 9
    assert acknowledged < 24
    dataset = opened(drawn)
    found, embedded = made(dataset, cache)
    # One more may have been written down, and not yet told.
    assert 24 - acknowledged - 1 <= embedded <= 24 - acknowledged
    whole = extract(dataset, tmp_path / "uninterrupted")
    assert found.vectors.tobytes() == whole.vectors.tobytes()
    assert list(found.ids) == list(whole.ids)


def test_two_processes_at_once(drawn, cache):
    with child(drawn, cache, slow=0.02) as one, child(drawn, cache, slow=0.02) as other:
        lines = [process.communicate()[0].split() for process in (one, other)]
    assert (one.returncode, other.returncode) == (0, 0)
    assert sorted(line[0] for line in lines) == ["0", "24"]  # the second found all of it
    dataset = opened(drawn)
    found, embedded = made(dataset, cache)
    assert embedded == 0
    check(found, dataset)


class Watched:
    """A dataset that counts the pictures that were opened."""

    def __init__(self, dataset) -> None:
        self._dataset = dataset
        self.opened = 0
        self._counting = threading.Lock()

    def __getattr__(self, name):
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def source(self, position):
        with self._counting:
            self.opened += 1
        return self._dataset.source(position)


def test_pictures_in_flight_are_bounded(tmp_path, any_cache):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(80):
        Image.new("RGB", (8, 8), (number, 2 * number, 0)).save(folder / f"{number:02d}.png")
    dataset = Watched(open_dataset(str(folder), cache_dir=tmp_path))
    ahead = []

    def told(_: str, done: int, total: int) -> None:
        if done == 1:
            time.sleep(0.5)  # a slow reader: what can run ahead does
        ahead.append(dataset.opened - done)

    found, _ = made(dataset, any_cache, progress=Progress(told))
    assert len(found) == 80
    assert 4 <= max(ahead) <= 8 + 2  # queue_size + cores


def test_progress_is_told_in_order(drawn, any_cache):
    told = []
    extract(opened(drawn), any_cache, progress=Progress(lambda _, *a: told.append(a)))
    assert told == [(done, 24) for done in range(25)]


class Failing(Counting):
    def encode(self, batch):
        if self.embedded >= 8:
            raise RuntimeError("planted")
        return super().encode(batch)


def test_a_network_that_fails_ends_the_run_and_what_was_made_is_kept(drawn, cache):
    dataset = opened(drawn)
    failing = Failing()
    with pytest.raises(EmbeddingFailedError, match=r"\.jpg: .*planted"):
        extract(dataset, cache, encoder=failing)
    found, embedded = made(dataset, cache)
    assert 24 - failing.embedded <= embedded < 24  # what was embedded out of turn is not kept
    check(found, dataset)


class Wide(Counting):
    """As many numbers as a flattened ResNet-50."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(self.spec, dim=100_352)

    def encode(self, batch):
        self.embedded += len(batch)
        return normalize(np.tile(ColorEncoder().encode(batch), (1, 2091))[:, : self.spec.dim])


def test_vectors_of_a_hundred_thousand_numbers(drawn, any_cache):
    dataset = opened(drawn)
    found = extract(dataset, any_cache, encoder=Wide())
    assert found.vectors.shape == (24, 100_352)
    narrow = extract(dataset, None)
    for row in (0, 23):
        tiled = normalize(np.tile(narrow.vectors[row], (1, 2091))[:, :100_352])[0]
        assert np.allclose(found.vectors[row], tiled, atol=1e-7)


@pytest.fixture
def small_disk(tmp_path: Path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount") or "mount"
    command = [mount, "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run([shutil.which("umount") or "umount", str(folder)], check=True)


def test_a_full_disk_says_what_to_do_and_the_next_run_goes_on(drawn, small_disk, tmp_path):
    dataset = opened(drawn)
    with pytest.raises(StorageFullError, match="make room") as caught:
        extract(dataset, small_disk, encoder=Wide())
    assert "LOOKALIKE_CACHE_DIR" in str(caught.value)
    larger = tmp_path / "larger"
    shutil.copytree(small_disk, larger)
    resumed = Wide()
    found = extract(dataset, larger, encoder=resumed)
    assert 0 < resumed.embedded < 24
    assert np.array_equal(found.vectors, extract(dataset, None, encoder=Wide()).vectors)


def test_no_room_for_the_whole_leaves_what_is_pending(drawn, cache, monkeypatch):
    dataset = opened(drawn)

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(vector_cache, "atomic_write", full)
        with pytest.raises(StorageFullError):
            extract(dataset, cache)
    (folder,) = (path.parent for path in cache.rglob("pending.vectors"))
    assert sorted(path.name for path in folder.iterdir()) == [
        "lock",
        "pending.jsonl",
        "pending.vectors",
    ]
    assert made(dataset, cache)[1] == 0


def test_a_cache_that_cannot_be_used(drawn, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match="LOOKALIKE_CACHE_DIR"):
        extract(opened(drawn), tmp_path / "file" / "cache")
