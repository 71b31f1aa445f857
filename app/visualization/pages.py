"""Stand-alone HTML pages: one file, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

from PIL import Image

from app.embedding.preprocessing import make_thumbnail


def render(template: str, **values: Any) -> str:
    """Fills in one of the templates beside this module; every value is escaped.

    Args:
        template: File name, e.g. `report.html`; it extends `base.html`.
        **values: What the template names; `title` is needed by all.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - as needed

    environment = Environment(
        loader=PackageLoader("app.visualization"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file under a temporary name first, so that a reader sees all of it or the old one.

    Folders above it are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)


def picture_uri(image: Image.Image, *, size: int) -> str:
    """A small JPEG of an RGB picture as a `data:` address.

    Args:
        image: RGB, upright; left as it is.
        size: Longest side in pixels; a smaller picture is not enlarged.
    """
    jpeg = make_thumbnail(image, size=size)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
