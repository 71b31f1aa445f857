"""Calibrating a collection of drawn pictures, on a data folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike import Client
from lookalike.errors import (
    CalibrationError,
    CalibrationNotFoundError,
    CollectionNotFoundError,
    InvalidParameterError,
)
from lookalike.models.head import save_head
from lookalike.progress import Progress
from lookalike.services.calibrating import COPIES, Recalibration
from lookalike.services.scores import CalibrationOptions
from tests.services.moving import make_head

KINDS = 8


def draw(folder: Path, count: int, *, first: int = 0) -> Path:
    """Pictures of patches of color; those of a kind have nearly the same colors."""
    folder.mkdir(exist_ok=True)
    for number in range(first, first + count):
        rng = np.random.default_rng(number % KINDS)
        base = rng.integers(0, 256, (4, 4, 3))
        own = base + np.random.default_rng(1000 + number).integers(-40, 41, (4, 4, 3))
        cells = Image.fromarray(np.clip(own, 0, 255).astype(np.uint8))
        target = folder / f"k{number % KINDS}"
        target.mkdir(exist_ok=True)
        cells.resize((64, 48), Image.Resampling.BICUBIC).save(target / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with 96 pictures, two of which are there once more as other files."""
    top = tmp_path_factory.mktemp("calibrating")
    pictures = draw(top / "pictures", 96)
    for number in (3, 10):
        with Image.open(next(pictures.rglob(f"{number}.png"))) as image:
            image.save(pictures / f"again{number}.jpg", quality=95)
    with Client(top / "data", model="color") as client:
        assert not any(one.failed for one in client.index(pictures, folder_field="label"))
        client.calibrate(label_field="label", sample=60)
    return top / "data"


@pytest.fixture
def client(made: Path, tmp_path: Path) -> Iterator[Client]:
    shutil.copytree(made, tmp_path / "data")
    with Client(tmp_path / "data", model="color") as opened:
        yield opened


def test_what_it_says(client: Client) -> None:
    found = client.calibration()
    model = found.copy_model
    assert model.pictures <= 60
    assert model.copies == model.pictures * len(COPIES)
    assert set(model.found) == set(COPIES)
    assert model.slope > 0
    assert model.ece < 0.2
    assert found.no_match is not None
    assert found.no_match.by == "labels"
    assert found.pictures == 98
    assert found.notes == []


def test_copies_in_the_collection_are_no_strangers(client: Client) -> None:
    found = client.calibrate(sample=98)
    assert found.copy_model.duplicates == 4  # either of two pairs was met from the other


def test_the_same_again(client: Client) -> None:
    before = client.calibration()
    again = client.calibrate(label_field="label", sample=60)
    assert again.model_copy(update={"created_at": ""}) == before.model_copy(
        update={"created_at": ""}
    )


def test_answers_say_what_their_scores_mean(client: Client, tmp_path: Path) -> None:
    model, no_match = client.calibration().copy_model, client.calibration().no_match
    assert no_match is not None
    (path,) = draw(tmp_path / "one", 1, first=5).rglob("*.png")
    found = client.search(path, k=5)
    first = found.matches[0]
    assert found.verdict == "match"
    logit = model.intercept + model.slope * first.score
    assert first.copy_probability == pytest.approx(1 / (1 + np.exp(-logit)))
    probabilities = [match.copy_probability or 0.0 for match in found.matches]
    assert probabilities == sorted(probabilities, reverse=True)
    assert client.similar(first.id).matches[0].copy_probability is not None
    later = client.search(path, k=5, offset=5)  # whose best is not the query's
    assert (later.verdict, later.matches[0].copy_probability is None) == (None, False)
    black = Image.new("RGB", (64, 48))
    assert black.getpixel((0, 0)) == (0, 0, 0)
    nothing = client.search(black, filter={"label": "no such label"})
    assert (nothing.matches, nothing.verdict) == ([], "no match")
    far = client.search(path, filter={"label": {"ne": "k5"}}, k=1)
    reached = far.matches[0].score >= no_match.threshold
    assert far.verdict == ("match" if reached else "no match")
    mirrored = client.search(path, k=5, flip=True)  # its scores are others than those of a picture
    assert (mirrored.verdict, mirrored.matches[0].copy_probability) == (None, None)
    client.delete_calibration()
    plain = client.search(path, k=5)
    assert (plain.verdict, plain.matches[0].copy_probability) == (None, None)


def test_it_belongs_to_one_model(client: Client, tmp_path: Path) -> None:
    before = client.calibration()
    client.reembed(model={"head": str(save_head(make_head(7), tmp_path / "head.safetensors"))})
    with pytest.raises(CalibrationNotFoundError):
        client.calibration()
    client.rollback()
    assert client.calibration() == before


def test_an_alias_that_moves_meanwhile_is_not_followed(client: Client, tmp_path: Path) -> None:
    client.index(draw(tmp_path / "others", 1), collection="other")
    client.alias("shop", "default")

    def show(*_: object) -> None:
        client.alias("shop", "other")

    client.calibrate("shop", sample=30, progress=Progress(show))
    assert client.calibration().options.sample == 30
    with pytest.raises(CalibrationNotFoundError):
        client.calibration("other")


def test_it_can_be_forgotten(client: Client) -> None:
    client.delete_calibration()
    for call in (client.calibration, client.delete_calibration):
        with pytest.raises(CalibrationNotFoundError, match="lookalike calibrate"):
            call()


def test_what_cannot_be_calibrated(client: Client, tmp_path: Path) -> None:
    before = client.calibration()
    client.index(draw(tmp_path / "few", 19), collection="few")
    with pytest.raises(CalibrationError, match="of 19 pictures"):
        client.calibrate("few")
    with pytest.raises(CollectionNotFoundError):
        client.calibrate("none")
    with pytest.raises(InvalidParameterError, match="no_such"):
        client.calibrate(label_field="no_such")
    assert client.calibration() == before


def test_pictures_that_cannot_be_read_are_passed_over(client: Client, tmp_path: Path) -> None:
    originals = sorted((tmp_path / "data" / "images").rglob("*.png"))
    for path in originals[:10]:
        path.write_bytes(b"no picture")
    assert client.calibrate(sample=98).copy_model.pictures == 88


def test_judgements_decide_where_there_are_no_labels(client: Client) -> None:
    images = list(client.list())
    labeled = [image for image in images if "k" in image.metadata.get("label", "")]
    rng = np.random.default_rng(0)
    for query in labeled[:45]:
        others = [one for one in labeled if one.metadata != query.metadata]
        wrong = others[int(rng.integers(len(others)))]
        client.judge(wrong.id, right=False, query=query.id)
    found = client.calibrate(sample=30)
    assert found.no_match is not None
    assert (found.no_match.by, found.no_match.queries) == ("judgements", 45)
    assert found.no_match.found is None
    few = client.calibrate(sample=30, false_alarms=0.01)
    assert few.no_match is None
    assert "200 are needed" in few.notes[0]


def test_large_changes_calibrate_anew(client: Client, tmp_path: Path) -> None:
    services = client._services
    work = Recalibration(services.calibrations, services.jobs)

    def begun() -> list[str]:
        work._step()
        return [str(job.parameters["collection"]) for job in services.job_store.unfinished()]

    assert begun() == []
    client.index(draw(tmp_path / "some", 90, first=1000))
    assert begun() == []
    client.index(draw(tmp_path / "more", 20, first=2000))
    assert begun() == ["default"]
    assert begun() == ["default"]  # and only once
    (job,) = services.job_store.unfinished()
    options = CalibrationOptions(**job.parameters["options"])
    assert (options.label_field, options.sample) == ("label", 60)
    services.jobs.cancel(job.id)
    assert begun() == []  # not again, for the same change
    client.reembed(model={"head": str(save_head(make_head(7), tmp_path / "head.safetensors"))})
    assert begun() == ["default"]  # another model
