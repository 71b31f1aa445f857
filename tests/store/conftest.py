"""Stores to test: every test of the contract runs on each kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lookalike.store.base import Store
from lookalike.store.local.store import LocalStore
from lookalike.store.memory_store import MemoryStore


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store = MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "data")
    yield made
    made.close()
