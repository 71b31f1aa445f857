"""A missing optional dependency is named, with the command that installs it."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

from lookalike.errors import ConfigurationError
from lookalike.extras import MODULES, Extra, require_extra
from lookalike.services.clusters import cluster_pictures
from lookalike.training.trainer import train_head
from lookalike.visualization.contact_sheet import Tile, contact_sheet
from lookalike.visualization.drawing import load_font
from lookalike.visualization.map import make_map, write_map
from tests.cli.conftest import Run
from tests.evaluation.made import clouds, vector_set

ROOT = Path(__file__).parents[2]
VECTORS = vector_set(*clouds([4, 4, 4]))


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Makes modules look as if they were not installed."""
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("extra", list(MODULES))
def test_each_extra_brings_its_modules(extra: Extra) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    brought = {re.split(r"[<>=]", line)[0] for line in project["optional-dependencies"][extra]}
    always = {re.split(r"[<>=]", line)[0] for line in project["dependencies"]}
    known = importlib.metadata.packages_distributions()
    imported = {known[module][0].lower().replace("_", "-") for module in MODULES[extra]}
    assert imported == brought
    assert not imported & always


def test_an_installed_extra_passes() -> None:
    require_extra("train", "training")
    require_extra("viz", "a map")


def test_the_text_names_what_is_missing_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "openTSNE", "sklearn")
    with pytest.raises(ConfigurationError) as caught:
        require_extra("viz", "a map")
    assert str(caught.value) == (
        'A map needs openTSNE and sklearn: not installed. Run pip install "lookalike[viz]"'
    )


def test_functions_that_need_an_extra_say_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    layout = make_map(VECTORS)
    hide(monkeypatch, "matplotlib", "pytorch_metric_learning")
    for needs in (
        lambda: make_map(VECTORS),
        lambda: write_map(layout, VECTORS, tmp_path),
        lambda: cluster_pictures(VECTORS, clusters=2),
    ):
        with pytest.raises(ConfigurationError, match=r'pip install "lookalike\[viz\]"'):
            needs()
    with pytest.raises(ConfigurationError, match=r'pip install "lookalike\[train\]"'):
        train_head(VECTORS)


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["map"], "viz"),
        (["cluster"], "viz"),
        (["train"], "train"),
        (["tune", "--out", "tune.png"], "viz"),
    ],
)
def test_commands_say_so_before_they_work(
    words: list[str], extra: str, lookalike: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "matplotlib", "sklearn")
    collection = [] if words[0] == "tune" else ["--collection", "missing", "--label-field", "label"]
    done = lookalike(*words, *collection)
    assert isinstance(done.exception, ConfigurationError)
    assert f'pip install "lookalike[{extra}]"' in str(done.exception)


def test_a_sheet_needs_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "matplotlib")
    load_font.cache_clear()
    try:
        tile = Tile(image=None, name="Straße", rank=1, score=0.5)
        assert contact_sheet(tile, [tile]).width > 100
    finally:
        load_font.cache_clear()
