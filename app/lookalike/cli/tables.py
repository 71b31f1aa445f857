"""Cells of tables that show what others wrote."""

from __future__ import annotations

import json
from typing import Any

from rich.text import Text


def cell(value: str) -> Text:
    """A text as it is: no markup, no control characters."""
    return Text("".join(char if char.isprintable() else "\ufffd" for char in value))


def metadata_cell(metadata: dict[str, Any]) -> Text:
    """Metadata as JSON; nothing where there is none."""
    return cell(json.dumps(metadata, ensure_ascii=False) if metadata else "")


def size_text(count: int) -> str:
    """Bytes with the unit that suits them."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if count >= unit:
            return f"{count / unit:,.1f}".removesuffix(".0") + f" {name}"
    return f"{count} bytes"
