"""The command line in a folder of its own, with an encoder that needs no weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lookalike.cli.main import app
from scripts.samples import write_samples
from tests.servers import Server

Run = Callable[..., Result]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes of three things in two views, a folder for each class."""
    folder = tmp_path / "pictures"
    write_samples(folder, classes=["mug", "fish", "car"], instances=3, views=2, size=(96, 72))
    return folder


@pytest.fixture
def lookalike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command on a data folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOOKALIKE_MODEL", "color")
    monkeypatch.setenv("LOOKALIKE_RUNTIME", "torch")  # where a test names another model
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str, **options: Any) -> Result:
        return CliRunner().invoke(app, list(words), **options)

    return run


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running service, shared by a module's tests."""
    made = Server(tmp_path_factory.mktemp("service") / "data")
    yield made
    made.close()
