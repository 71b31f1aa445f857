"""Pictures and parts of queries, as the clients take and send them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageOps

from lookalike.errors import ConfigurationError, MissingFileError
from lookalike.services.queries import Combine, Part, Query, packed

Picture = str | os.PathLike[str] | bytes | Image.Image
"""A picture to search with: a file's path, a file's bytes, or an open picture."""

_PNG_MODES = {"1", "L", "LA", "I;16", "P", "RGB", "RGBA"}


def open_picture(picture: Picture) -> BinaryIO:
    """Opens a picture's bytes; raises `MissingFileError`, or `ConfigurationError` if it cannot."""
    if isinstance(picture, bytes):
        return io.BytesIO(picture)
    if isinstance(picture, Image.Image):
        file = io.BytesIO()
        upright = ImageOps.exif_transpose(picture)
        if upright.mode not in _PNG_MODES:
            upright = upright.convert("RGB")
        upright.save(file, "PNG")
        file.seek(0)
        return file
    path = Path(picture)
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ConfigurationError(f"{picture} cannot be read: it is no regular file")
        return path.open("rb")
    except FileNotFoundError as exc:
        raise MissingFileError(f"{picture} cannot be read: {exc.strerror}") from exc
    except OSError as exc:
        raise ConfigurationError(f"{picture} cannot be read: {exc.strerror}") from exc


def parts_of(items: Iterable[Picture | Part]) -> list[Part]:
    """The parts of a query; what is none yet is a picture."""
    return [one if isinstance(one, Part) else Part(picture=one) for one in items]


@contextmanager
def opened(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """The parts with their pictures open inside the block; raises as `open_picture`."""
    with ExitStack() as files:
        yield [
            part
            if part.picture is None
            else replace(part, picture=files.enter_context(open_picture(part.picture)))
            for part in parts
        ]


def name_of(picture: Picture) -> str:
    """A picture's file name; `query` for one without a file."""
    return Path(picture).name if isinstance(picture, str | os.PathLike) else "query"


def sent_as(part: Part) -> tuple[str | None, str | bytes]:
    """A part of a query as one of a form: its file name, if it is a picture, and its content."""
    if part.picture is not None:
        with open_picture(part.picture) as file:
            return name_of(part.picture), file.read()
    if part.vector is not None:
        return None, packed(part.vector)
    return None, part.text or part.id or ""


def form_of(query: Query) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """A query as fields of `POST /search`: those of its own, and one for each part.

    What is as usual is left out, because an older service may not know it.
    """
    fields: dict[str, Any] = {}
    if query.combine is not Combine.MEAN:
        fields["combine"] = query.combine.value
    if query.flip:
        fields["flip"] = "true"
    sent: list[tuple[str, Any]] = []
    for part in query.parts:
        kind = part.kind or ""
        name = {"picture": "file"}.get(kind, kind)
        sent.append((name, sent_as(part)))
        if any(one.weight != 1 for one in query.parts):
            fields.setdefault(f"{name}_weight", []).append(repr(float(part.weight)))
        if kind == "picture" and any(one.crop for one in query.parts):
            crop = ",".join(repr(float(one)) for one in part.crop or ())
            fields.setdefault("crop", []).append(crop)
    return fields, sent


def batch_of(queries: Sequence[Query]) -> tuple[list[dict[str, Any]], list[tuple[str, Any]]]:
    """Queries as JSON for `POST /search/batch`, and the files that they count."""
    asked: list[dict[str, Any]] = []
    sent: list[tuple[str, Any]] = []
    for query in queries:
        parts = []
        for part in query.parts:
            one: dict[str, Any] = {"weight": float(part.weight)}
            if part.picture is None:
                one[part.kind or ""] = sent_as(part)[1]
            else:
                one["file"] = len(sent)
                sent.append(("file", sent_as(part)))
            if part.crop is not None:
                one["crop"] = part.crop
            parts.append(one)
        asked.append({"parts": parts, "combine": query.combine, "flip": query.flip})
    return asked, sent
