"""Collections in int8 and in floats beside each other, over restarts and new quantizations."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lookalike.bootstrap import (
    Services,
    build_decoder,
    build_services,
    model_request,
    move_request,
    run_options,
)
from lookalike.config import Settings, load_settings
from lookalike.errors import SpecMismatchError
from lookalike.media.sources import PictureSource
from lookalike.progress import NO_PROGRESS
from lookalike.services.quantizing import keep_quantized, quantize_model
from lookalike.services.search import SearchOptions
from scripts.samples import write_samples
from tests.services.moving import Watched


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("int8") / "pictures"
    return write_samples(folder, instances=3, views=2, size=(64, 48))


def settings_of(data: Path, precision: str = "float32") -> Settings:
    return load_settings(
        data_dir=data,
        model="resnet18",
        weights="random",
        input_size=32,
        runtime="openvino",
        precision=precision,
    )


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    return partial(settings_of, tmp_path / "data")


@contextmanager
def serving(settings: Settings) -> Iterator[Services]:
    services = build_services(settings)
    try:
        yield services
    finally:
        services.close()


def index(services: Services, pictures: list[Path], collection: str = "default") -> None:
    sources = [PictureSource.from_path(path, id=path.stem) for path in pictures]
    items = list(services.indexing.index(sources, collection=collection))
    assert not any(item.error for item in items)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory, pictures: list[Path]) -> list[Path]:
    """Two int8 networks of the same settings, the later one last: folders named by specs."""
    data = tmp_path_factory.mktemp("networks")
    made = []
    for count in (30, 31):
        run = run_options(settings_of(data))
        found = quantize_model(
            model_request(settings_of(data)),
            run,
            pictures,
            decoder=build_decoder(settings_of(data)),
            pictures=count,
            progress=NO_PROGRESS,
        )
        made.append(keep_quantized(run.networks, found))
    assert made[0].name != made[1].name
    return made


def keep(settings: Settings, network: Path) -> str:
    """Puts an int8 network where quantizing does; gives the spec's digest."""
    shutil.copytree(network, settings.data_dir / "models" / network.name)
    os.utime(settings.data_dir / "models" / network.name / "manifest.json")
    return network.name


def move(services: Services, at_step: Callable[[], None] = lambda: None, **model: Any) -> None:
    request = move_request(services.settings, model)
    services.reembedding.run("default", request, Watched(at_step))


def served_by(services: Services, picture: Path, collection: str = "default") -> str:
    """Searches for a picture of the collection, and gives the digest of the spec."""
    with picture.open("rb") as file:
        found = services.search.search(file, SearchOptions(k=1, collection=collection))
    assert [match.record.id for match in found.matches] == [picture.stem]
    assert found.matches[0].score > 0.9999
    return found.spec.digest


def test_a_collection_keeps_its_network(
    settings: Callable[..., Settings], pictures: list[Path], networks: list[Path]
) -> None:
    few, first = pictures[:6], keep(settings(), networks[0])
    with serving(settings()) as services:
        index(services, few)
        floats = served_by(services, few[0])
        move(services, int8=True)
        assert served_by(services, few[0]) == first
    second = keep(settings(), networks[1])
    with serving(settings()) as services:
        assert served_by(services, few[1]) == first, "neither the setting nor a newer network"
        index(services, pictures[6:8])
        assert served_by(services, pictures[7]) == first
    with serving(settings("int8")) as services:
        assert services.encoders.default.spec.digest == second
        assert served_by(services, few[2]) == first
        move(services)
        assert served_by(services, few[2]) == second
        move(services, int8=False)
        assert served_by(services, few[2]) == floats
    with serving(settings("int8")) as services:
        assert served_by(services, few[3]) == floats


def test_searches_go_on_while_a_collection_in_floats_moves(
    settings: Callable[..., Settings], pictures: list[Path], networks: list[Path]
) -> None:
    int8 = keep(settings(), networks[0])
    with serving(settings()) as services:
        index(services, pictures[:6])
        floats = served_by(services, pictures[0])
    with serving(settings("int8")) as services:
        with pytest.raises(SpecMismatchError, match="int8"):
            served_by(services, pictures[0])
        seen: list[str] = []
        move(services, lambda: seen.append(served_by(services, pictures[0])))
        assert seen
        assert set(seen) == {floats}
        assert served_by(services, pictures[0]) == int8


def test_quantizing_again_leaves_what_the_service_made_itself(
    settings: Callable[..., Settings], pictures: list[Path], networks: list[Path]
) -> None:
    first = keep(settings(), networks[0])
    with serving(settings("int8")) as services:
        index(services, pictures[:4])
    second = keep(settings(), networks[1])
    with serving(settings("int8")) as services:
        assert served_by(services, pictures[0]) == first
        index(services, pictures[4:8], collection="later")
        assert served_by(services, pictures[5], "later") == second
    manifest = settings().data_dir / "models" / first / "manifest.json"
    os.utime(manifest)  # as a copy of the folder may leave it: the newest is another one now
    with serving(settings("int8")) as services:
        assert served_by(services, pictures[0]) == first
        assert served_by(services, pictures[5], "later") == second


def test_a_network_that_is_gone_is_said(
    settings: Callable[..., Settings],
    pictures: list[Path],
    networks: list[Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = keep(settings(), networks[0])
    with serving(settings()) as services:
        index(services, pictures[:4])
        move(services, int8=True)
    next((settings().data_dir / "models" / first).rglob("*.bin")).write_bytes(b"")
    with serving(settings()) as services:
        with pytest.raises(SpecMismatchError):
            served_by(services, pictures[0])
        assert f"The int8 network {first} is not in" in caplog.text
        move(services)
        assert served_by(services, pictures[0]) != first
