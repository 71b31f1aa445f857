"""What every test may use."""

from __future__ import annotations

import pytest


def pytest_report_header(config: pytest.Config) -> str:
    import sqlite3

    import faiss
    import torch

    return f"torch {torch.__version__}, faiss {faiss.__version__}, SQLite {sqlite3.sqlite_version}"
