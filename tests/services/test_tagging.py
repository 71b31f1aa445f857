"""Labels by texts: the best ones by hand, work that is interrupted, and models without words."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lookalike
from lookalike.bootstrap import build_services, move_request
from lookalike.errors import (
    CollectionNotFoundError,
    InvalidParameterError,
    MetadataTooLargeError,
)
from lookalike.media.sources import PictureSource
from lookalike.progress import NO_PROGRESS, TaskEndedError
from lookalike.services import tagging
from lookalike.services.search import SearchOptions
from lookalike.services.tagging import Tagging, TaggingService
from tests.memory_store import MemoryStore
from tests.models.test_onnx import write
from tests.services.moving import HEADED, Watched, World, make, sources
from tests.settings import make_settings

COLORS = {"r": "red", "g": "#00ff00", "b": "blue", "p": "#ff4060"}
LABELS = ("red", "lime", "blue")


def solid(color: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (24, 24), color).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(MemoryStore(), tmp_path / "data")
    made.index({name: solid(color) for name, color in COLORS.items()})
    yield made
    made.close()


def service(world: World, most: int = 16_384) -> TaggingService:
    return TaggingService(world.encoders, world.store, max_metadata_bytes=most)


def tags(world: World, field: str = "tags") -> dict[str, Any]:
    found = world.store.find("default", list(COLORS))
    return {key: record.metadata.get(field) for key, record in sorted(found.items())}


def test_each_picture_gets_its_best_labels(world: World) -> None:
    watched = Watched()
    said = service(world).run(Tagging(labels=LABELS), watched)
    assert said.startswith(
        "4 pictures of 'default' were labeled in 'tags', 4 of them changed: red 2"
    )
    found = tags(world)
    assert {key: one["labels"] for key, one in found.items()} == {
        "b": ["blue"],
        "g": ["lime"],
        "p": ["red"],
        "r": ["red"],
    }
    assert found["r"]["scores"] == [1.0]
    pink, red = (np.array(one) + 1.0 for one in ((255, 64, 96), (255, 0, 0)))
    cosine = pink @ red / np.linalg.norm(pink) / np.linalg.norm(red)
    assert found["p"]["scores"] == [pytest.approx(cosine, abs=2e-4)]
    assert watched.told[-1] == (4, 4)
    assert watched.errors == []


def test_several_labels_a_field_and_a_least_score(world: World) -> None:
    asked: dict[str, Any] = {"labels": LABELS, "k": 3, "field": "colors"}
    service(world).run(Tagging(**asked), NO_PROGRESS)
    for one in tags(world, "colors").values():
        assert sorted(one["labels"]) == sorted(LABELS)
        assert one["scores"] == sorted(one["scores"], reverse=True)
    said = service(world).run(Tagging(**asked, min_score=0.999), NO_PROGRESS)
    assert said.endswith("; 1 without a label")
    assert tags(world, "colors")["p"] is None
    assert "colors" not in world.store.get("default", "p").metadata
    assert tags(world, "colors")["r"] == {"labels": ["red"], "scores": [1.0]}


def test_the_vector_of_a_label_is_the_mean_over_the_templates(world: World) -> None:
    templates = ["{}", "dark{}"]
    service(world).run(Tagging(labels=["red", "blue"], templates=templates, k=2), NO_PROGRESS)
    encoder = world.encoders.default.encoder
    texts = ["red", "darkred", "blue", "darkblue"]
    vectors = encoder.encode([encoder.prepare(text) for text in texts])
    means = vectors.reshape(2, 2, -1).mean(axis=1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    red = encoder.encode([encoder.prepare("red")])[0]
    assert tags(world)["r"]["scores"] == [pytest.approx(one, abs=1e-4) for one in means @ red]


def test_what_is_written_already_is_left_alone(world: World) -> None:
    service(world).run(Tagging(labels=LABELS), NO_PROGRESS)
    before = {one: world.store.get("default", one).updated_at for one in COLORS}
    assert ", 0 of them changed" in service(world).run(Tagging(labels=LABELS), NO_PROGRESS)
    assert {one: world.store.get("default", one).updated_at for one in COLORS} == before


def test_canceled_and_begun_again_it_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tagging, "_GROUP", 1)
    left = iter([None, None, None])

    def step() -> None:
        if next(left, TaskEndedError) is TaskEndedError:
            raise TaskEndedError

    with pytest.raises(TaskEndedError):
        service(world).run(Tagging(labels=LABELS), Watched(step))
    assert sum(one is not None for one in tags(world).values()) == 2
    assert ", 2 of them changed" in service(world).run(Tagging(labels=LABELS), NO_PROGRESS)
    assert None not in tags(world).values()


def test_a_collection_that_moves_meanwhile_is_labeled_by_its_new_model(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tagging, "_GROUP", 1)
    service(world).run(Tagging(labels=LABELS, field="old"), NO_PROGRESS)
    steps = iter(range(100))

    def step() -> None:
        if next(steps) == 2:
            world.move(HEADED)

    said = service(world).run(Tagging(labels=LABELS), Watched(step))
    assert said.startswith("4 pictures of 'default'")
    encoder = make(HEADED)
    pink, *labels = encoder.encode(
        [
            encoder.prepare(Image.new("RGB", (24, 24), COLORS["p"])),
            *(encoder.prepare(label) for label in LABELS),
        ]
    )
    scores = [float(pink @ label) for label in labels]
    found = tags(world)["p"]
    assert found != tags(world, "old")["p"]
    assert found == {
        "labels": [LABELS[int(np.argmax(scores))]],
        "scores": [pytest.approx(max(scores), abs=1e-4)],
    }


def test_an_alias_that_moves_meanwhile_is_not_followed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tagging, "_GROUP", 1)
    list(world.indexing.index(sources(dict.fromkeys(COLORS, solid("red"))), collection="other"))
    world.store.alias("shop", "default")
    steps = iter(range(100))

    def step() -> None:
        if next(steps) == 2:
            world.store.alias("shop", "other")

    said = service(world).run(Tagging(labels=LABELS, collection="shop"), Watched(step))
    assert said.startswith("4 pictures of 'default'")
    assert None not in tags(world).values()
    others = world.store.find("other", list(COLORS)).values()
    assert not any("tags" in one.metadata for one in others)
    parameters = service(world).parameters(Tagging(labels=LABELS, collection="shop"))
    world.store.alias("shop", "default")
    assert service(world).as_job(parameters, NO_PROGRESS).startswith("4 pictures of 'other'")


def test_metadata_that_would_be_too_large_fails_alone(world: World) -> None:
    world.store.update_metadata("default", "g", {"note": "x" * 100})
    watched = Watched()
    said = service(world, most=120).run(Tagging(labels=LABELS), watched)
    assert ", 3 of them changed" in said
    (error,) = watched.errors
    assert error.startswith("g: ")
    assert isinstance(
        world.store.update_each("default", {"g": {"a": "x" * 200}}, max_bytes=120)["g"],
        MetadataTooLargeError,
    )


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"labels": []}, "0 labels are named"),
        ({"labels": [f"l{n}" for n in range(1001)]}, "1,001 labels"),
        ({"labels": ["red", " "]}, "has 0 characters"),
        ({"labels": ["x" * 201]}, "has 201 characters"),
        ({"templates": ["a photo"]}, "lacks {}"),
        ({"templates": []}, "0 templates"),
        ({"labels": ["a", "b"], "templates": [f"{n} {{}}" for n in range(5001)]}, "10,000 texts"),
        ({"field": "a.b"}, "without a dot"),
        ({"field": ""}, "cannot be written"),
        ({"k": 0}, "from 1 to 20"),
        ({"k": 21}, "from 1 to 20"),
        ({"min_score": 1.5}, "choose from -1 to 1"),
        ({"min_score": float("nan")}, "choose from -1 to 1"),
    ],
)
def test_what_cannot_be_asked(asked: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidParameterError, match=text):
        Tagging(**({"labels": ["red"]} | asked))


def test_unknown_words_and_collections_are_refused_at_once(world: World) -> None:
    for call in (
        lambda one: service(world).parameters(one),
        lambda one: service(world).run(one, NO_PROGRESS),
    ):
        with pytest.raises(InvalidParameterError, match="not 'red car'"):
            call(Tagging(labels=["red", "red car"]))
        with pytest.raises(CollectionNotFoundError):
            call(Tagging(labels=["red"], collection="nothing"))
    assert set(tags(world).values()) == {None}


def test_a_job_knows_a_collection_that_was_made_anew(world: World) -> None:
    parameters = service(world).parameters(Tagging(labels=["red", "red", " blue"]))
    assert parameters["labels"] == ["red", "blue"]
    assert "red 3, blue 1" in service(world).as_job(parameters, NO_PROGRESS)
    parameters["created_at"] = "2020-01-01T00:00:00.000Z"
    with pytest.raises(CollectionNotFoundError, match="made anew"):
        service(world).as_job(parameters, NO_PROGRESS)


def test_two_models_side_by_side_and_one_has_words(tmp_path: Path) -> None:
    """Both are searched in one service, and only one is labeled."""
    path = write(tmp_path / "tiny.onnx", side=64)
    settings = make_settings(data_dir=tmp_path / "data", model="color")
    files = []
    for name, color in COLORS.items():
        files.append(tmp_path / f"{name}.png")
        files[-1].write_bytes(solid(color))
    with closing(build_services(settings)) as services:
        for collection in ("words", "plain"):
            given = [PictureSource.from_path(file) for file in files]
            list(services.indexing.index(given, collection=collection))
        request = move_request(settings, {"model": f"onnx/{path}"})
        services.reembedding.run("plain", request, NO_PROGRESS)
        for collection, model in (("words", "color"), ("plain", "onnx")):
            with files[0].open("rb") as file:
                found = services.search.search(file, SearchOptions(collection=collection, k=1))
            assert (found.spec.model, found.matches[0].record.filename) == (model, "r.png")
        asked = Tagging(labels=LABELS, collection="words")
        assert "red 2" in services.tagging.run(asked, NO_PROGRESS)
        with pytest.raises(InvalidParameterError, match=r"onnx takes pictures, not texts.*color"):
            services.tagging.parameters(Tagging(labels=LABELS, collection="plain"))


def test_killed_and_begun_again_it_goes_on(tmp_path: Path) -> None:
    for number in range(12):
        level = 20 * number
        Image.new("RGB", (24, 24), (255, level, level)).save(tmp_path / f"{number}.png")
    with lookalike.Client(tmp_path / "data", model="color") as client:
        client.index(tmp_path)
    code = (
        "import os, signal, lookalike; from lookalike.services import tagging; "
        "from lookalike.progress import Progress; tagging._GROUP = 4; "
        "show = lambda stage, done, total: done >= 8 and os.kill(os.getpid(), signal.SIGKILL); "
        f"client = lookalike.Client({str(tmp_path / 'data')!r}, model='color'); "
        "client.tag(['red', 'blue'], progress=Progress(show))"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    with lookalike.Client(tmp_path / "data", model="color") as client:
        assert client.count(filter={"tags.labels": "red"}).count == 8
        assert ", 4 of them changed" in client.tag(["red", "blue"])
        assert client.count(filter={"tags.labels": "red"}).count == 12
