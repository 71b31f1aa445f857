"""The commands of docs/how-to/ that are marked `bash`, run on small drawn pictures."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import lookalike
from scripts.samples import CLASSES, Sample, draw, write_samples

HOW_TO = Path(__file__).parent.parent / "docs" / "how-to"


@pytest.fixture
def step(request: pytest.FixtureRequest, tmp_path: Path):
    """Runs the next block of the test's page, which must have the named text; gives its output."""
    page = (HOW_TO / request.param).read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    here = Path(sys.executable).parent
    env = {
        **os.environ,
        "LOOKALIKE_MODEL": "color",
        "LOOKALIKE_WEIGHTS": "random",
        "LOOKALIKE_INPUT_SIZE": "32",
        "COLUMNS": "80",
        "PATH": f"{here}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(lookalike.__file__).parent.parent),
    }

    def run(has: str) -> str:
        block = blocks.pop(0)
        assert has in block
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=tmp_path,
            env=env,
            check=False,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        wide = [line for line in done.stdout.splitlines() if len(line) > 80]
        assert all(str(tmp_path) in line for line in wide)
        return done.stdout

    yield run
    assert not blocks


def pages(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("step", [name], indirect=True)


def test_each_how_to_is_named_in_the_readme():
    readme = (HOW_TO.parent.parent / "README.md").read_text(encoding="utf-8")
    for page in HOW_TO.glob("*.md"):
        assert f"(docs/how-to/{page.name})" in readme


@pages("clean-up-pictures.md")
def test_copies_of_nested_pictures_are_moved_away_and_back(step, tmp_path):
    photos = tmp_path / "photos"
    for place, label in (("2024/Crete", "fish"), ("2024/Rome", "house"), ("2025/Oslo", "car")):
        write_album(photos / place, label)
    backup, messenger = photos / "phone backup", photos / "messenger"
    for folder in (backup, messenger):
        folder.mkdir()
    for number in range(2):
        shutil.copy2(photos / f"2024/Crete/IMG_{number}.jpg", backup / f"IMG_{number} (1).jpg")
    with Image.open(photos / "2024/Rome/IMG_1.jpg") as picture:
        picture.save(messenger / "WA1.jpg", quality=60)
    (photos / "2024/Crete/IMG_1.xmp").write_text("<x/>")
    copies = {"phone backup/IMG_0 (1).jpg", "phone backup/IMG_1 (1).jpg"}
    before = tree(photos)

    step("--csv")
    with (tmp_path / "exact.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows if row["role"] == "duplicate"} == {
        str(photos / path) for path in copies
    }
    assert len((tmp_path / "exact.html").read_text()) > 1000
    assert tree(photos) == before

    said = step("--dry-run")
    assert "2 files would be moved\n" in said
    assert "2 files moved\n" in said
    assert tree(photos) == before - copies
    assert tree(tmp_path / "trash") > copies
    assert "2 files moved back\n" in step("--undo")
    assert tree(photos) == before

    said = step("--kind reencoded")
    assert "messenger/WA1.jpg" in said
    assert "not saved again" in said
    assert tree(photos) == before - copies - {"messenger/WA1.jpg"}
    assert "near" in step("alike.html")
    assert tree(photos) == before - copies - {"messenger/WA1.jpg"}
    assert set(step("-empty").splitlines()) == {"photos/phone backup", "photos/messenger"}


def write_album(folder: Path, label: str) -> None:
    folder.mkdir(parents=True)
    for number in range(2):
        draw(Sample(label, number, 0), size=(160, 120)).save(folder / f"IMG_{number}.jpg")


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pages("compare-models.md")
def test_two_models_and_a_head_are_compared_on_the_same_pictures(step, tmp_path):
    write_samples(tmp_path / "mine/test", classes=CLASSES[:4], instances=3, views=2, size=(48, 36))
    write_samples(tmp_path / "mine/train", classes=CLASSES[4:10], instances=4, size=(48, 36))
    said = step("compare")
    assert "24 pictures, 24 queries" in said
    assert "│ color " in said
    assert "│ resnet18 " in said
    said = step("train")
    assert "head=" in said

    names = ["resnet18", "resnet18,head=compared/head"]
    report = json.loads((tmp_path / "compared/comparison.json").read_text())
    assert [one["name"] for one in report["models"]] == names
    assert report["models"][1]["model"]["head"] is not None
    assert (tmp_path / "compared/comparison.html").exists()

    assert step("--query-index").count("Precision@10: ") == 2
    for name in ("color", "resnet18"):
        with Image.open(tmp_path / f"compared/{name}/query-3.png") as sheet:
            assert sheet.width > 500


@pages("size-a-machine.md")
def test_a_machine_is_sized_by_a_trial(step, tmp_path):
    write_samples(tmp_path / "some", classes=CLASSES[:12], instances=4, views=2, size=(48, 36))
    said = step("tune")
    assert "96 created" in said
    assert "\nLOOKALIKE_INDEX=" in said
    assert re.search(r"^\S+\ttrial$", said, re.MULTILINE)
    assert "96 pictures" in step("info")
