"""`lookalike search --explain`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.cli.conftest import Run

NETWORK = ("--model", "resnet18", "--weights", "random", "--input-size", "64")


def test_a_sheet_shows_the_query_and_its_matches_with_their_heat(
    lookalike: Run, pictures: Path
) -> None:
    assert lookalike("index", str(pictures / "mug"), *NETWORK).exit_code == 0
    query = str(pictures / "fish" / "fish-00-0.jpg")
    found = lookalike("search", query, "-k", "3", "--explain", "why.png", *NETWORK)
    assert found.exit_code == 0, found.output
    with Image.open("why.png") as sheet:
        colors = sheet.convert("RGB").getcolors(2**20)
    lookalike("search", query, "-k", "3", "--save", "plain.png", *NETWORK)
    with Image.open("plain.png") as plain:
        assert sheet.height > plain.height  # six tiles instead of three, and a legend
    assert colors is not None
    assert (0x10, 0x10, 0x3C) in {color for _, color in colors}  # its first color


def test_a_model_without_positions_and_a_bad_file(lookalike: Run, pictures: Path) -> None:
    lookalike("index", str(pictures))
    query = str(pictures / "fish" / "fish-00-0.jpg")
    refused = lookalike("search", query, "--explain", "why.png")
    assert "means over positions" in str(refused.exception)
    assert not Path("why.png").exists()
    unknown = lookalike("search", query, "--explain", "why.txt")
    assert "which picture format" in str(unknown.exception)
