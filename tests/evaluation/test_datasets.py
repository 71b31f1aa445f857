"""Every reader on small files in its format, and the errors for what does not fit."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pickle
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.errors import ConfigurationError, UnreadableImageError
from lookalike.evaluation.datasets import Dataset, open_dataset, sample
from lookalike.media.decoder import ImageDecoder
from scripts.samples import write_samples
from tests.unreadable import refuse

FOLDER = "cifar-10-batches-py"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "pictures"
    write_samples(folder, classes=["mug", "car"], instances=2, views=2, size=(32, 24))
    return folder


def put_picture(path: Path, color: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), color).save(path)
    return path


def read(dataset, position: int) -> Image.Image:
    with dataset.source(position).open() as file:
        return ImageDecoder().decode(file, decode_size=8).image


def test_a_folder_for_each_class(drawn, tmp_path):
    dataset = open_dataset(str(drawn), cache_dir=tmp_path)
    files = sorted(path for path in drawn.rglob("*.jpg"))
    assert dataset.name == "pictures"
    assert len(dataset) == 8
    assert dataset.ids == [path.relative_to(drawn).as_posix() for path in files]
    assert dataset.labels == ["car"] * 4 + ["mug"] * 4
    assert dataset.source(5).path == files[5]
    facts = files[5].stat()
    assert dataset.stamp(5) == (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


def test_deeper_folders_belong_to_the_class_and_hidden_files_to_none(tmp_path):
    for name in ("b/x/1.png", "b/y.png", "a-b/1.png", "a/z.png", "a/.hidden.png", ".git/1.png"):
        put_picture(tmp_path / name)
    (tmp_path / "readme.txt").write_text("no picture")
    dataset = open_dataset(str(tmp_path), cache_dir=tmp_path)
    expected = {"a/z.png": "a", "a-b/1.png": "a-b", "b/x/1.png": "b", "b/y.png": "b"}
    assert list(zip(dataset.ids, dataset.labels or (), strict=True)) == list(expected.items())


def test_pictures_beside_the_class_folders_are_an_error_unless_labels_are_not_wanted(tmp_path):
    for name in ("a/1.png", "b/1.png", "stray.png"):
        put_picture(tmp_path / name)
    with pytest.raises(ConfigurationError, match=r"1 of 3 pictures .* stray.png .* flat"):
        open_dataset(str(tmp_path), cache_dir=tmp_path)
    flat = open_dataset(str(tmp_path), kind="flat", cache_dir=tmp_path)
    assert (flat.ids, flat.labels) == (["a/1.png", "b/1.png", "stray.png"], None)


def test_folders_that_cannot_be_read_are_left_out(tmp_path, monkeypatch, caplog):
    for name in ("cat/1.png", "dog/1.png", "secret/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    refuse(monkeypatch, tmp_path / "secret")
    assert open_dataset(str(tmp_path), cache_dir=tmp_path / "cache").ids == [
        "cat/1.png",
        "dog/1.png",
    ]
    assert "secret is left out" in caplog.text


def test_names_that_are_no_utf8_can_be_printed_and_read(tmp_path):
    for name in (b"a/\xff.png", b"b/\xfe.png"):
        put_picture(tmp_path / os.fsdecode(name))
    dataset = open_dataset(str(tmp_path), cache_dir=tmp_path)
    assert dataset.ids == ["a/\\xff.png", "b/\\xfe.png"]
    assert read(dataset, 0).size == (8, 8)


@pytest.mark.parametrize("nested", ["", "flickr30k_images", "flickr30k_images/flickr30k_images"])
def test_a_folder_without_labels(tmp_path, nested):
    top = tmp_path / "flickr30k_images"
    for number in (2, 1):
        put_picture(top / nested / f"{number}.png")
    (top / "results.csv").write_text("image_name| comment\n")
    dataset = open_dataset(str(top), cache_dir=tmp_path)
    assert dataset.ids == [str(Path(nested, "1.png")), str(Path(nested, "2.png"))]
    assert (dataset.name, dataset.labels) == ("flickr30k_images", None)


def test_the_copy_inside_of_flickr30k_is_taken_once(tmp_path):
    top = tmp_path / "flickr30k_images"
    for folder in (top, top / "flickr30k_images", top / "flickr30k_images/flickr30k_images"):
        put_picture(folder / "1.png")
        put_picture(folder / "other" / "1.png")
    put_picture(top / "flickr30k_images" / "2.png")
    dataset = open_dataset(str(top), kind="flat", cache_dir=tmp_path)
    assert dataset.ids == ["1.png", "flickr30k_images/2.png", "other/1.png"]


SOP = """image_id class_id super_class_id path
1 1 1 bicycle_final/111_0.JPG
2 1 1 bicycle_final/111_1.JPG
3 2 5 coffee_maker_final/222_0.JPG
"""


def test_stanford_online_products(tmp_path):
    top = tmp_path / "Stanford_Online_Products"
    for name in ("bicycle_final/111_0.JPG", "coffee_maker_final/222_0.JPG"):
        put_picture(top / name)
    (top / "Ebay_test.txt").write_text(SOP)
    (top / "Ebay_train.txt").write_text(SOP.splitlines()[0] + "\n9 9 9 sofa_final/9_0.JPG\n\n")
    dataset = open_dataset(str(top), cache_dir=tmp_path)
    assert dataset.ids[0] == "bicycle_final/111_0.JPG"
    assert dataset.labels == ["1", "1", "2"]
    kinds = open_dataset(str(top), label="super_class", cache_dir=tmp_path)
    assert kinds.labels == ["bicycle", "bicycle", "coffee_maker"]
    train = open_dataset(str(top), split="train", cache_dir=tmp_path)
    assert (train.ids, train.name) == (["sofa_final/9_0.JPG"], "Stanford_Online_Products train")
    assert read(dataset, 2).size == (8, 8)
    for missing in (dataset.source, dataset.stamp):
        with pytest.raises(UnreadableImageError, match=r"111_1\.JPG cannot be read"):
            missing(1)
    assert len({d.origin for d in (dataset, train)}) == 2
    assert kinds.origin == dataset.origin  # the same pictures


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "does not start with 'image_id"),
        ("1 1 1 bicycle_final/111_0.JPG\n", "does not start with 'image_id"),
        (SOP + "4 2 5\n", "line 5: 3 fields instead of 4"),
        (SOP.splitlines()[0], "lists no pictures"),
    ],
)
def test_a_list_that_is_not_in_the_format(tmp_path, text, error):
    (tmp_path / "Ebay_test.txt").write_text(text)
    with pytest.raises(ConfigurationError, match=error):
        open_dataset(str(tmp_path), cache_dir=tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("header", ["", "path,label\n", "Path, Label\r\n"])
def test_a_csv_file_with_labels(tmp_path, encoding, header):
    put_picture(tmp_path / "sub" / "Äpfel, rot.png")
    path = tmp_path / "list.csv"
    path.write_bytes(f'{header}"sub/Äpfel, rot.png",Obst\n\n./b.png,"a ""b"""\n'.encode(encoding))
    dataset = open_dataset(str(path), cache_dir=tmp_path)
    assert dataset.ids == ["sub/Äpfel, rot.png", "b.png"]
    assert dataset.labels == ["Obst", 'a "b"']
    assert dataset.name == "list"
    assert read(dataset, 0).size == (8, 8)


@pytest.mark.parametrize("text", ["path\na.png\nb.png", "a.png\nb.png\n"])
def test_a_csv_file_without_labels(tmp_path, text):
    path = tmp_path / "list.txt"
    path.write_text(text)
    dataset = open_dataset(str(path), cache_dir=tmp_path)
    assert (dataset.ids, dataset.labels) == (["a.png", "b.png"], None)


def test_the_columns_may_come_in_the_other_order(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("label,path\ncat,a.png\n")
    dataset = open_dataset(str(path), cache_dir=tmp_path)
    assert (dataset.ids, dataset.labels) == (["a.png"], ["cat"])


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "lists no pictures"),
        (b"path,label\n", "lists no pictures"),
        (b"a.png,x\nb.png\n", "line 2: 1 fields instead of 2"),
        (b"a.png\nb.png,x\n", "line 2: 2 fields instead of 1"),
        (b"a.png,x,y\n", "line 1: 3 fields instead of 2"),
        (b'a.png,x\n"b\nb.png",x\nc.png,x,y\n', "line 4: 3 fields instead of 2"),
        (b'a.png,x\n"b.png"c,x\n', "line 2: "),
        (b"path,label\na.png,x\n./a.png,y\n", "line 3: a.png stands on line 2 already"),
        (b"a.png,x\n ,y\n", "line 2: the path is empty"),
        (b"a.png,x\nb\0.png,y\n", "line 2: the path is empty or broken"),
        (b"a.png,x\nb.png, \n", "line 2: the label of b.png is empty"),
        (b"a.png,\xff\n", "not UTF-8"),
    ],
)
def test_a_csv_file_that_is_not_in_the_format(tmp_path, data, error):
    path = tmp_path / "list.csv"
    path.write_bytes(data)
    with pytest.raises(ConfigurationError, match=error):
        open_dataset(str(path), cache_dir=tmp_path)


class Cifar:
    """Small batches as the archive holds them, written by an old NumPy under Python 2."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.pixels = {
            name: np.random.default_rng(seed).integers(0, 256, (3, 3072), dtype=np.uint8)
            for seed, name in enumerate(
                ["test_batch", *(f"data_batch_{number}" for number in range(1, 6))]
            )
        }
        for name, data in self.pixels.items():
            self._write(name, {"data": data, "labels": [2, 0, 1], "batch_label": name})
        self._write("batches.meta", {"label_names": ["airplane", "automobile", "bird"]})

    def _write(self, name: str, entry: object) -> None:
        path = self.top / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        new = pickle.dumps(entry, protocol=2)
        path.write_bytes(new.replace(b"\x89\x88\x87", b"K\x00K\x01\x87"))  # align=0, copy=1

    def md5(self, name: str) -> str:
        data = (self.top / FOLDER / name).read_bytes()
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    def pictures(self, *names: str) -> np.ndarray:
        rows = np.concatenate([self.pixels[name] for name in names])
        return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


@pytest.fixture
def cifar(tmp_path, monkeypatch) -> Cifar:
    """CIFAR-10 files whose checksums torchvision is told."""
    from torchvision.datasets import CIFAR10

    made = Cifar(tmp_path / "downloads")
    batches = [[f"data_batch_{n}", made.md5(f"data_batch_{n}")] for n in range(1, 6)]
    monkeypatch.setattr(CIFAR10, "train_list", batches)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", made.md5("test_batch")]])
    meta = CIFAR10.meta | {"md5": made.md5("batches.meta")}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return made


@pytest.mark.parametrize("inside", [False, True])
def test_cifar10(cifar, inside):
    spec = cifar.top / FOLDER if inside else cifar.top
    dataset = open_dataset(str(spec), cache_dir=cifar.top / "none")
    assert (dataset.name, dataset.labels) == ("CIFAR-10 test", ["bird", "airplane", "automobile"])
    assert dataset.ids == ["test/00000.png", "test/00001.png", "test/00002.png"]
    assert dataset.source(2).filename == "00002.png"
    for position, pixels in enumerate(cifar.pictures("test_batch")):
        assert (np.asarray(read(dataset, position)) == pixels).all()
    batch = (cifar.top / FOLDER / "test_batch").stat()
    assert dataset.stamp(1) == (batch.st_size, batch.st_mtime_ns, batch.st_ctime_ns)


def test_cifar10s_training_split(cifar):
    dataset = open_dataset(str(cifar.top), split="train", cache_dir=cifar.top / "none")
    pictures = cifar.pictures(*(f"data_batch_{number}" for number in range(1, 6)))
    assert len(dataset) == len(pictures) == len(set(dataset.ids)) == 15
    assert (np.asarray(read(dataset, 14)) == pictures[14]).all()
    assert (dataset.labels or ())[12:] == ["bird", "airplane", "automobile"]


@pytest.mark.parametrize("name", ["test_batch", "batches.meta", "data_batch_3"])
def test_damaged_batches_are_an_error_that_names_the_folder(cifar, name):
    path = cifar.top / FOLDER / name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigurationError, match=f"{FOLDER} is incomplete .*python.tar.gz"):
        open_dataset(str(cifar.top), cache_dir=cifar.top)


def test_the_bare_word_is_downloaded_once(cifar, tmp_path, monkeypatch, capfd):
    from torchvision.datasets import CIFAR10

    archive = cifar.top / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(cifar.top / FOLDER, FOLDER)
    md5 = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=cifar.top)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        url = f"http://127.0.0.1:{server.server_port}/{CIFAR10.filename}"
        monkeypatch.setattr(CIFAR10, "url", url)
        dataset = open_dataset("cifar10", cache_dir=tmp_path / "cache")
        server.shutdown()
        serving.join()
    again = open_dataset("cifar10", kind="cifar10", cache_dir=tmp_path / "cache")
    assert len(dataset) == len(again) == 3
    assert (tmp_path / "cache" / "cifar10" / FOLDER / "test_batch").is_file()
    capfd.readouterr()  # the server's log, the download's progress


def test_a_download_that_fails_names_the_folder_and_the_file(cifar, tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(ConfigurationError) as caught:
        open_dataset("cifar10", cache_dir=tmp_path / "cache")
    for part in ("cifar-10-python.tar.gz", str(tmp_path / "cache" / "cifar10"), "refused"):
        assert part in str(caught.value)


@pytest.mark.parametrize("spec", ["nowhere", ""])
def test_what_is_not_there(tmp_path, spec):
    with pytest.raises(ConfigurationError, match="does not exist: name a folder"):
        open_dataset(spec, cache_dir=tmp_path)


@pytest.mark.parametrize("kind", ["auto", "folder", "flat"])
def test_an_empty_folder_says_what_was_looked_for(tmp_path, kind):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigurationError, match=r"neither pictures .* nor Ebay_test"):
        open_dataset(str(tmp_path), kind=kind, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"kind": "sop"}, "Ebay_test.txt does not exist"),
        ({"kind": "cifar10"}, "incomplete or damaged"),
        ({"kind": "csv"}, "is a folder"),
        ({"kind": "zip"}, "kind 'zip' is not known; choose one of auto, folder"),
        ({"split": "valid"}, "split 'valid' is not known; choose one of test, train"),
        ({"label": "breed"}, "label 'breed' is not known"),
        ({"split": "train"}, "has no splits"),
        ({"label": "super_class"}, "has one kind of label"),
    ],
)
def test_options_that_do_not_fit(drawn, tmp_path, options, error):
    with pytest.raises(ConfigurationError, match=error):
        open_dataset(str(drawn), **options, cache_dir=tmp_path)


@pytest.mark.parametrize("kind", ["folder", "flat", "cifar10", "sop"])
def test_a_file_is_no_folder(tmp_path, kind):
    path = tmp_path / "list.csv"
    path.write_text("a.png\n")
    with pytest.raises(ConfigurationError, match=f"is a file; the kind {kind} needs a folder"):
        open_dataset(str(path), kind=kind, cache_dir=tmp_path)


def test_one_class_folder_is_a_class_where_that_is_asked_for(tmp_path):
    put_picture(tmp_path / "cat" / "1.png")
    assert open_dataset(str(tmp_path), cache_dir=tmp_path).labels is None
    assert open_dataset(str(tmp_path), kind="folder", cache_dir=tmp_path).labels == ["cat"]


def numbered(count: int) -> Dataset:
    return Dataset(
        name="numbers",
        origin="test",
        ids=[str(n) for n in range(count)],
        labels=[f"label {n}" for n in range(count)],
        paths=[Path(f"/nowhere/{n}") for n in range(count)],
    )


def test_a_sample_keeps_order_labels_and_sources():
    whole = numbered(1000)
    part = sample(whole, count=50, seed=3)
    numbers = [int(picture_id) for picture_id in part.ids]
    assert len(part) == len(set(numbers)) == 50
    assert numbers == sorted(numbers)
    assert part.labels == [f"label {n}" for n in numbers]
    assert part.name == whole.name
    with pytest.raises(UnreadableImageError, match=f"/nowhere/{numbers[7]} "):
        part.source(7)
    with pytest.raises(UnreadableImageError, match=f"/nowhere/{numbers[7]} "):
        part.stamp(7)
    assert max(numbers) > 900
    assert min(numbers) < 100


def test_a_sample_follows_its_seed_alone():
    whole = numbered(100)
    first, same, other = (sample(whole, count=9, seed=seed) for seed in (1, 1, 2))
    assert (first.ids, first.origin) == (same.ids, same.origin)
    assert first.ids != other.ids
    assert len({first.origin, other.origin, whole.origin}) == 3


def test_a_sample_of_more_than_there_is_is_the_whole():
    whole = numbered(3)
    assert sample(whole, count=3, seed=0) is whole
    assert sample(whole, count=4, seed=0) is whole
    for count, seed in ((0, 0), (1, -1)):
        with pytest.raises(ConfigurationError, match="the count starts at 1"):
            sample(whole, count=count, seed=seed)


def test_a_dataset_whose_parts_do_not_fit():
    with pytest.raises(ValueError, match="ids repeat"):
        Dataset(name="", origin="", ids=["a", "a"], labels=None, paths=[Path(), Path()])


def test_pictures_of_cifar10_are_png_files(cifar):
    dataset = open_dataset(str(cifar.top), cache_dir=cifar.top)
    source = dataset.source(0)
    with source.open() as file:
        data = file.read()
    assert len(data) == source.size
    assert Image.open(io.BytesIO(data)).format == "PNG"
