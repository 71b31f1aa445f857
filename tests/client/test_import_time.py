"""`import lookalike` imports nothing heavy, and neither does `lookalike --help`."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lookalike
from lookalike.client import BaseClient

HEAVY = ("torch", "faiss", "numpy", "PIL", "pydantic", "httpx2", "rich", "fastapi")


def imported(code: str) -> list[str]:
    """The heavy modules that are imported once some code has run."""
    script = f"import sys\n{code}\nprint([name for name in {HEAVY} if name in sys.modules])"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return list(eval(done.stdout.splitlines()[-1]))


def test_the_package() -> None:
    assert imported("import lookalike; lookalike.__version__") == []


def test_a_client_of_a_service_needs_no_network() -> None:
    assert not {"torch", "faiss"} & set(imported("from lookalike import HttpClient"))


def test_help() -> None:
    code = """
from typer.testing import CliRunner
from lookalike.cli.main import app
done = CliRunner().invoke(app, ["--help"])
assert done.exit_code == 0 and "reembed" in done.output
"""
    assert imported(code) == []


def test_both_clients_are_there_and_nothing_else() -> None:
    assert issubclass(lookalike.Client, BaseClient)
    assert issubclass(lookalike.HttpClient, BaseClient)
    with pytest.raises(AttributeError, match="no attribute 'Lookalike'"):
        lookalike.Lookalike  # type: ignore[attr-defined]  # noqa: B018
