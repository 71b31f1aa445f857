"""Lookalike from Python: the parts of the service, without HTTP.

```python
from lookalike.client import Lookalike

with Lookalike("data", model="resnet18", weights="random") as lookalike:
    lookalike.index("photos", folder_field="label")
    for match in lookalike.search("query.jpg", k=5).matches:
        print(match.rank, f"{match.score:.4f}", match.record.filename)
    lookalike.show("query.jpg", k=5).save("matches.png")
```
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from PIL import Image, ImageOps

from lookalike.bootstrap import Services, build_services
from lookalike.config import load_settings
from lookalike.errors import ConfigurationError, LookalikeError
from lookalike.files.data_folder import make_data_folder
from lookalike.media.sources import PictureSource
from lookalike.media.walk import Found, walk
from lookalike.records import DEFAULT_COLLECTION, Match, OnConflict
from lookalike.services.indexing import IndexItem
from lookalike.services.search import SearchOptions, SearchResult
from lookalike.services.vector_set import VectorSet, stored_vectors
from lookalike.store.effort import Effort
from lookalike.store.filters import Filter
from lookalike.visualization.contact_sheet import Tile, contact_sheet

Picture = str | os.PathLike[str] | bytes | Image.Image
"""A picture to search with: a file's path, a file's bytes, or one that is open already."""

_TILE = 160  # pixels
_PNG_MODES = {"1", "L", "LA", "I;16", "P", "RGB", "RGBA"}


class Lookalike:
    """A data folder with its network, as the service runs it.

    Args:
        data_dir: The folder that holds everything stored; made where it is missing.
        read_only: Change nothing; then a service may own the folder meanwhile.
        **settings: Any setting by its name, e.g. `model="resnet18"`, `weights="random"`; what is
            not given comes from the environment and `.env`, as for the service.

    Raises:
        ConfigurationError: A setting cannot be used.
        WeightsError: The weights cannot be used.
        DataFolderInUseError: Another process owns the folder.
    """

    def __init__(
        self, data_dir: str | os.PathLike[str] = "data", *, read_only: bool = False, **settings: Any
    ) -> None:
        chosen = load_settings(data_dir=Path(data_dir), **settings)
        if not read_only:
            make_data_folder(chosen.data_dir)
        self._services: Services = build_services(chosen, read_only=read_only)

    def __enter__(self) -> Self:
        """Ready to work."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes."""
        self.close()

    def close(self) -> None:
        """Finishes what waits, saves, and lets go of the data folder."""
        self._services.close()

    def index(
        self,
        *paths: str | os.PathLike[str],
        collection: str = DEFAULT_COLLECTION,
        folder_field: str | None = None,
        metadata: Callable[[Path], Mapping[str, Any]] | None = None,
        on_conflict: OnConflict = OnConflict.REPLACE,
    ) -> list[IndexItem]:
        """Adds picture files, and all below folders.

        Args:
            *paths: Files and folders.
            collection: Made where it does not exist.
            folder_field: Stores the name of a picture's folder under this metadata field.
            metadata: Gives further metadata for a file.
            on_conflict: What to do with ids that exist.

        Returns:
            What became of each picture; one that failed carries its error and harms no other, and
            so does a folder that cannot be read.

        Raises:
            ConfigurationError: A path does not exist.
            SpecMismatchError: The collection was made by another model.
        """

        def described(found: Found) -> dict[str, Any] | None:
            if folder_field is None and metadata is None:
                return None
            own = {} if folder_field is None else {folder_field: found.folder}
            return {**own, **(metadata(found.path) if metadata else {})}

        sources = (
            PictureSource.try_path(found.path, metadata=described(found))
            if found.error is None
            else PictureSource.refused(found.path, found.error)
            for found in walk(Path(path) for path in paths)
        )
        return list(
            self._services.indexing.index(sources, collection=collection, on_conflict=on_conflict)
        )

    def search(
        self,
        picture: Picture,
        *,
        k: int = 10,
        collection: str = DEFAULT_COLLECTION,
        min_score: float | None = None,
        where: Mapping[str, Any] | None = None,
        group_by: str | None = None,
        effort: Effort | None = None,
    ) -> SearchResult:
        """Finds the pictures most like one.

        Args:
            picture: A path, a file's bytes, or an open picture.
            k: How many matches, 1 to 1000.
            collection: Where to search.
            min_score: Leave out matches below this cosine.
            where: Only pictures that pass, in the filter language: `{"label": "cat"}`.
            group_by: A metadata field: only the best match of each of its values.
            effort: How hard to look, where the index is not exact:
                `Effort(exact=True)`; the index's own unless given.

        Raises:
            InvalidImageError: The picture cannot be read.
            CollectionNotFoundError: There is no such collection.
            InvalidFilterError: `where` is not in the filter language.
        """
        options = SearchOptions(
            collection=collection,
            k=k,
            min_score=min_score,
            where=None if where is None else Filter.parse(dict(where)),
            group_by=group_by,
            effort=effort,
        )
        with _opened(picture) as file:
            return self._services.search.search(file, options)

    def show(
        self,
        picture: Picture,
        *,
        k: int = 5,
        collection: str = DEFAULT_COLLECTION,
        label_field: str | None = None,
        label: Any = None,
    ) -> Image.Image:
        """Searches, and draws the picture beside its matches with rank, score and name.

        Args:
            picture: As for `search`.
            k: How many matches.
            collection: Where to search.
            label_field: A metadata field; matches that hold `label` there are framed green,
                others red.
            label: What the picture shows.

        Returns:
            An RGB picture; a notebook shows it.
        """
        matches = self.search(picture, k=k, collection=collection).matches

        def right(match: Match) -> bool | None:
            return None if label_field is None else match.record.metadata.get(label_field) == label

        tiles = [
            Tile(
                image=self._picture_or_none(match),
                name=match.record.filename,
                rank=match.rank,
                score=match.score,
                right=right(match),
            )
            for match in matches
        ]
        with _opened(picture) as file:
            query = self._services.pictures.decode(file, size=_TILE)
        return contact_sheet(Tile(image=query, name=_name(picture)), tiles, tile_size=_TILE)

    def picture(
        self, image_id: str, *, collection: str = DEFAULT_COLLECTION, size: int = 256
    ) -> Image.Image:
        """A stored picture, upright RGB, perhaps reduced but not below `size` pixels.

        Raises:
            ImageNotFoundError: No picture has this id.
            OriginalNotKeptError: Its file is not here.
        """
        return self._services.pictures.open(collection, image_id, size=size)

    def vectors(
        self, collection: str = DEFAULT_COLLECTION, *, label_field: str | None = None
    ) -> VectorSet:
        """All vectors of a collection, for evaluation and maps, see `stored_vectors`."""
        services = self._services
        return stored_vectors(
            services.store, services.pictures, collection, label_field=label_field
        )

    def _picture_or_none(self, match: Match) -> Image.Image | None:
        record = match.record
        try:
            return self.picture(record.id, collection=record.collection, size=_TILE)
        except LookalikeError:
            return None


def _opened(picture: Picture) -> BinaryIO:
    """A picture's bytes as a stream."""
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
    try:
        return Path(picture).open("rb")
    except OSError as exc:
        raise ConfigurationError(f"{picture} cannot be read: {exc.strerror}") from exc


def _name(picture: Picture) -> str:
    return Path(picture).name if isinstance(picture, str | os.PathLike) else "query"
