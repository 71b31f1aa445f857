"""Stores to test: every test of the contract runs on each kind; FAISS is imported late."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lookalike.store.base import Store
from tests.memory_store import MemoryStore

if TYPE_CHECKING:
    from lookalike.store.local.index.policy import Limits


@pytest.fixture
def limits() -> Limits:
    """The limits of local stores; a module may override it."""
    from lookalike.store.local.index.policy import DEFAULT_LIMITS

    return DEFAULT_LIMITS


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path, limits: Limits) -> Iterator[Store]:
    made = MemoryStore() if request.param == "memory" else local_store(tmp_path / "data", limits)
    yield made
    made.close()


def local_store(data_dir: Path, limits: Limits) -> Store:
    from lookalike.store.local.index.policy import IndexPolicy
    from lookalike.store.local.store import LocalStore

    return LocalStore(data_dir, policy=IndexPolicy(limits=limits))
