"""Why a picture was found: shares of positions that add up to the score."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lookalike import Client
from lookalike.errors import (
    ImageNotFoundError,
    InvalidIdError,
    InvalidParameterError,
    LookalikeError,
    NotExplainableError,
    OriginalNotKeptError,
    QueueFullError,
)
from lookalike.models.base import resize_image
from lookalike.models.building import build_encoder
from lookalike.models.head import Head, HeadSpec, save_head
from lookalike.models.spec import ModelRequest, RunOptions
from lookalike.records import Preprocess
from lookalike.services import explaining
from scripts.samples import Sample, draw

SMALL: dict[str, Any] = {
    "model": "resnet18",
    "weights": "random",
    "input_size": 64,
    "runtime": "torch",
    "precision": "float32",
    "device": "cpu",
}


def picture(label: str, number: int = 0, size: tuple[int, int] = (96, 72)) -> bytes:
    out = io.BytesIO()
    draw(Sample(label, number, 0), size=size).save(out, "PNG")
    return out.getvalue()


def fill(client: Client, folder: Path) -> None:
    folder.mkdir()
    for label in ("mug", "fish", "car"):
        (folder / f"{label}.png").write_bytes(picture(label))
    client.index(folder)


def ids(client: Client) -> dict[str, str]:
    return {one.filename.removesuffix(".png"): one.id for one in client.list()}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Three pictures, by a network of 2 by 2 positions."""
    folder = tmp_path_factory.mktemp("explaining")
    with Client(folder / "data", **SMALL) as made:
        fill(made, folder / "pictures")
        yield made


def test_shares_of_an_upload_add_up_to_the_score_of_its_search(client: Client) -> None:
    query = picture("mug", 1)
    for match in client.search(query, k=3).matches:
        found = client.explain(match.id, picture=query)
        assert found.score == pytest.approx(match.score, abs=1e-4)
        for one in (found.query, found.match):
            assert np.shape(one.shares) == (2, 2)
            assert np.sum(one.shares) == pytest.approx(match.score, abs=1e-4)
        assert (found.query.id, found.match.id) == (None, match.id)


def test_shares_of_stored_pictures_are_those_of_the_other_way_round(client: Client) -> None:
    known = ids(client)
    (score,) = (one.score for one in client.similar(known["mug"]).matches if one.id == known["car"])
    found = client.explain(known["car"], query=known["mug"])
    back = client.explain(known["mug"], query=known["car"])
    assert found.score == pytest.approx(score, abs=1e-4)
    assert np.sum(found.query.shares) == pytest.approx(score, abs=1e-4)
    assert found.query.shares == pytest.approx(np.array(back.match.shares), abs=1e-6)
    assert found.match.shares == pytest.approx(np.array(back.query.shares), abs=1e-6)
    same = client.explain(known["mug"], query=known["mug"])
    assert same.score == pytest.approx(1, abs=1e-6)


def test_shares_are_those_of_a_slow_transcription(client: Client) -> None:
    request = ModelRequest(model="resnet18", weights="random", pooling="flatten", input_size=64)
    run = RunOptions(device="cpu", runtime="torch", precision="float32")
    encoder = build_encoder(request, run)
    maps = []
    for label in ("fish", "car"):
        image = Image.open(io.BytesIO(picture(label)))
        (flat,) = encoder.encode([encoder.prepare(image)])
        maps.append(flat.astype(float).reshape(512, 2, 2))
    one, other = maps
    mean, length = [0.0] * 512, 0.0
    for channel in range(512):
        mean[channel] = sum(other[channel].ravel()) / 4
    length = sum(value * value for value in mean) ** 0.5
    own = sum((sum(one[channel].ravel()) / 4) ** 2 for channel in range(512)) ** 0.5
    found = client.explain(ids(client)["car"], picture=picture("fish")).query.shares
    for row in range(2):
        for column in range(2):
            dot = sum(one[c, row, column] * mean[c] for c in range(512))
            assert found[row][column] == pytest.approx(dot / (4 * own * length), abs=1e-6)


@given(
    st.sampled_from(["squash", "crop", "pad"]),
    st.tuples(st.integers(40, 90), st.integers(40, 90)),
)
def test_what_was_seen_is_what_the_network_gets(resize: str, size: tuple[int, int]) -> None:
    preprocess = Preprocess(input_size=32, resize=resize)
    across, down = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    pixels = np.stack([across, down, 0 * across], axis=2)
    got = resize_image(Image.fromarray(pixels.astype(np.uint8)), preprocess)
    left, top, right, bottom = preprocess.seen(size)
    centers = (np.arange(32) + 0.5) / 32
    x = (left + centers * (right - left)) * size[0] - 0.5
    y = (top + centers * (bottom - top)) * size[1] - 0.5
    inside_x, inside_y = (
        (at > 1.5) & (at < end - 2.5) for at, end in zip((x, y), size, strict=True)
    )
    middle = got[16, 16]  # of `pad`, inside of the picture whatever its shape
    assert middle[0] == pytest.approx(x[16], abs=2.1)
    assert np.abs(got[16, inside_x, 0] - x[inside_x]).max() < 2.1  # pixels of the picture
    assert np.abs(got[inside_y, 16, 1] - y[inside_y]).max() < 2.1


def test_a_cropped_picture_says_which_part_was_seen(tmp_path: Path) -> None:
    with Client(tmp_path / "data", **SMALL, resize="crop") as client:
        fill(client, tmp_path / "pictures")
        query = picture("mug", 1, (120, 60))
        (match, *_) = client.search(query).matches
        found = client.explain(match.id, picture=query)
        assert found.query.seen == pytest.approx((0.28, 0.06, 0.72, 0.94), abs=0.02)
        assert np.sum(found.query.shares) == pytest.approx(match.score, abs=1e-4)


def test_unknown_pictures_and_none(client: Client) -> None:
    known = ids(client)["mug"]
    asked: Any
    for asked in ({"query": "nobody"}, {"picture": picture("mug"), "collection": "other"}):
        with pytest.raises(LookalikeError) as caught:
            client.explain(known, **asked)
        assert caught.value.code in {"image_not_found", "collection_not_found"}
    with pytest.raises(ImageNotFoundError):
        client.explain("nobody", query=known)
    with pytest.raises(InvalidIdError):
        client.explain("../x", query=known)
    none_or_both: Any
    for none_or_both in ({}, {"query": known, "picture": picture("mug")}):
        with pytest.raises(InvalidParameterError, match="Give either query"):
            client.explain(known, **none_or_both)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"model": "color"}, "no means over positions"),
        ({**SMALL, "pooling": "flatten"}, "its pooling is flatten"),
        ({**SMALL, "head": "head.safetensors"}, "its head is not linear"),
    ],
)
def test_models_without_positions_say_so(
    settings: dict[str, Any], why: str, tmp_path: Path
) -> None:
    if "head" in settings:
        backbone = build_encoder(
            ModelRequest(model="resnet18", weights="random", input_size=64),
            RunOptions(device="cpu", runtime="torch", precision="float32"),
        ).spec
        spec = HeadSpec(dim_in=backbone.dim, dim_out=4)
        tensors = {name: np.full(shape, 0.5, "f4") for name, shape in spec.shapes().items()}
        path = save_head(Head(spec, tensors, backbone=backbone), tmp_path / "head.safetensors")
        settings = {**settings, "head": path}
    with Client(tmp_path / "data", **settings) as client:
        fill(client, tmp_path / "pictures")
        known = ids(client)
        with pytest.raises(NotExplainableError, match=why):
            client.explain(known["mug"], query=known["fish"])


def test_a_picture_without_its_original_cannot_be_explained(tmp_path: Path) -> None:
    with Client(tmp_path / "data", **SMALL, originals="none") as client:
        fill(client, tmp_path / "pictures")
        with pytest.raises(OriginalNotKeptError):
            client.explain(ids(client)["mug"], picture=picture("fish"))


def test_one_network_is_kept_for_the_collection_asked_about_last(tmp_path: Path) -> None:
    with Client(tmp_path / "data", **SMALL) as client:
        fill(client, tmp_path / "pictures")
        client.index(tmp_path / "pictures", collection="cropped")
        client.reembed("cropped", model={"resize": "crop"})
        service = client._services.explaining
        built: list[str | None] = []
        make = service.make

        def make_and_tell(request: ModelRequest) -> Any:
            built.append(request.resize)
            return make(request)

        service.make = make_and_tell
        query, known = picture("mug", 1), ids(client)["mug"]
        for collection in ("default", "default", "cropped", "default"):
            (score,) = (
                one.score
                for one in client.search(query, collection=collection).matches
                if one.id == known
            )
            found = client.explain(known, picture=query, collection=collection)
            assert found.score == pytest.approx(score, abs=1e-4)
        assert built == [None, "crop", None]
        assert service._kept is not None


def test_explanations_beyond_the_bound_are_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, service = ids(client)["mug"], client._services.explaining
    held = [service._turns.acquire(blocking=False) for _ in range(explaining.MOST_WAITING)]
    assert all(held)
    with pytest.raises(QueueFullError, match="explanations wait already"):
        client.explain(known, query=known)
    for _ in held:
        service._turns.release()
    assert client.explain(known, query=known).score == pytest.approx(1, abs=1e-6)


def test_a_network_that_is_another_by_now_is_told_apart(tmp_path: Path) -> None:
    with Client(tmp_path / "data", **SMALL) as client:
        fill(client, tmp_path / "pictures")
        service, known = client._services.explaining, ids(client)["mug"]
        make = service.make
        other = {"model": "resnet34"}
        service.make = lambda request: make(ModelRequest(**{**request.to_dict(), **other}))
        with pytest.raises(NotExplainableError, match="builds another one now"):
            client.explain(known, query=known)
