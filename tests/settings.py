"""Settings that no `.env` of the working folder changes."""

from __future__ import annotations

from typing import Any

from lookalike.config import Settings


def make_settings(**values: Any) -> Settings:
    """Validates the values as those of a `.env` file are, strings included."""
    return Settings(_env_file=None, **values)  # type: ignore[call-arg]  # pydantic-settings has it
