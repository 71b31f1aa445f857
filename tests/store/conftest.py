"""Stores to test: every test of the contract runs on each kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lookalike.store.base import Store
from lookalike.store.local.index.policy import DEFAULT_LIMITS, IndexPolicy, Limits
from lookalike.store.local.store import LocalStore
from lookalike.store.memory_store import MemoryStore


@pytest.fixture
def limits() -> Limits:
    """The limits of local stores; a module may override it."""
    return DEFAULT_LIMITS


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path, limits: Limits) -> Iterator[Store]:
    made: Store = MemoryStore()
    if request.param == "local":
        made = LocalStore(tmp_path / "data", policy=IndexPolicy(limits=limits))
    yield made
    made.close()
