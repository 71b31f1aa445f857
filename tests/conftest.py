"""What every test may use."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version

import pytest


def pytest_configure() -> None:
    """Lets tests interrupt the processes that they start, also where they run in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Names the versions that answers depend on, without importing any of them."""
    named = ", ".join(f"{name} {version(name)}" for name in ("torch", "faiss-cpu"))
    return f"{named}, SQLite {sqlite3.sqlite_version}"


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what tests and their processes leave in the folder that pytest removes.

    They share one cache folder, so that few of them convert a network.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOKALIKE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        folder = str(tmp_path_factory.mktemp("tmp"))
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture
def chance() -> random.Random:
    """Other random numbers in each run; what a failure prints repeats them."""
    seed = int(os.environ.get("LOOKALIKE_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"to repeat this: LOOKALIKE_TEST_SEED={seed}")
    return random.Random(seed)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Loads the plugin of schemathesis, which takes a second, for the one file that needs it."""
    if isinstance(collector, pytest.Module) and collector.path.name == "test_openapi.py":
        collector.config.pluginmanager.import_plugin("schemathesis.pytest.plugin")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Spares a run without hypothesis the import that its plugin makes to print a summary."""
    plugins = session.config.pluginmanager
    if "hypothesis" not in sys.modules and plugins.has_plugin("hypothesispytest"):
        plugins.unregister(name="hypothesispytest")
