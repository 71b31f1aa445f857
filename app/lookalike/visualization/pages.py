"""Stand-alone HTML pages: one file, nothing loaded from elsewhere."""

from __future__ import annotations

import csv
import errno
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from lookalike.errors import ConfigurationError
from lookalike.files.data_folder import claim_folder
from lookalike.files.disk import atomic_write
from lookalike.media.decode import make_thumbnail
from lookalike.visualization.drawing import jpeg_uri


def render(template: str, **values: Any) -> str:
    """Fills in `templates/<template>`, e.g. `report.html`; every value is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - as needed

    environment = Environment(
        loader=PackageLoader("lookalike.visualization"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file, and folders above it; a reader sees the old one or the whole new one.

    Raises:
        ConfigurationError: It cannot be written there.
    """
    with _writing(path), atomic_write(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV file as `write_whole` does; what cannot be encoded is escaped."""
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows([header, *rows])
    write_whole(path, file.getvalue().encode("utf-8", "backslashreplace"))


def check_writable(path: Path) -> None:
    """Tries to write beside a file that long work will end in, so that it fails at once.

    Raises:
        ConfigurationError: It cannot be written there.
    """
    with _writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def claim_output(path: Path) -> None:
    """As `check_writable`, for a file of an output folder.

    The folder is marked as ours, unless files of the user's lie in it.
    """
    with _writing(path):
        claim_folder(path.parent, "output")
    check_writable(path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ConfigurationError(
            f"{path} cannot be written: {exc.strerror}. Choose another place"
        ) from exc


def picture_uri(image: Image.Image, *, size: int) -> str:
    """A JPEG of an RGB picture, at most `size` pixels long, as a `data:` address."""
    return jpeg_uri(make_thumbnail(image, size=size))
