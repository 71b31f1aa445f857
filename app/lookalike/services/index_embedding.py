"""From a picture's bytes to its vector, by the encoder whose turn it is."""

from __future__ import annotations

from collections.abc import Sequence

from lookalike.errors import LookalikeError, NotReadyError
from lookalike.media.decode import DecodedImage, ImageDecoder, make_thumbnail
from lookalike.media.sources import PictureSource
from lookalike.models.encoders import Encoders, LiveEncoder
from lookalike.records import Metadata, NewImage
from lookalike.services.index_items import IndexItem, Originals, Ready, Task, Waiting
from lookalike.services.switching import ATTEMPTS, live_encoder
from lookalike.store.base import Store


class IndexEmbedder:
    """Decodes pictures and sends them to the encoder of their collection's active set.

    Args:
        encoders: The live encoders.
        store: Knows which set is active.
        decoder: Decodes within the limits.
        originals: What becomes of the files themselves.
    """

    def __init__(
        self, encoders: Encoders, store: Store, decoder: ImageDecoder, originals: Originals
    ) -> None:
        self._encoders = encoders
        self._store = store
        self._decoder = decoder
        self._originals = originals

    def live(self, collection: str) -> LiveEncoder:
        """The encoder whose turn it is; raises `SpecMismatchError` where it is not live."""
        return live_encoder(self._encoders, self._store, collection) or self._encoders.default

    def embed(
        self,
        source: PictureSource,
        sha256: str,
        image_id: str,
        metadata: Metadata | None,
        task: Task,
    ) -> Waiting:
        """Decodes a picture and puts it in the queue; waits for room there.

        Raises:
            InvalidImageError: The picture cannot be read.
            NotReadyError: The service is shutting down.
        """
        for attempt in range(1, ATTEMPTS + 1):
            live = task.live
            try:
                return self._embed_by(live, source, sha256, image_id, metadata)
            except NotReadyError:  # retired after a switch, or the service is shutting down
                task.live = self.live(task.collection)
                if task.live is live or attempt == ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def embed_again(
        self, ready: Sequence[Ready], task: Task
    ) -> tuple[list[Ready], dict[int, IndexItem]]:
        """Embeds again what was embedded by another encoder than the one whose turn it is.

        Returns:
            The pictures with vectors, and the items of those that failed, by their places.
        """
        if all(one.waiting.live is task.live for one in ready):
            return list(ready), {}
        again: list[tuple[int, Waiting]] = []
        failed: dict[int, IndexItem] = {}
        for one in ready:
            waiting, image = one.waiting, one.waiting.image
            try:
                if waiting.live is not task.live:
                    waiting = self.embed(
                        waiting.source, image.sha256, image.id, image.metadata, task
                    )
                again.append((one.place, waiting))
            except LookalikeError as exc:
                failed |= failed_items([one], exc)
        embedded: list[Ready] = []
        for place, waiting in again:
            try:
                embedded.append(Ready(place, waiting, waiting.vector.result()))
            except LookalikeError as exc:
                failed[place] = IndexItem(source=waiting.source, id=waiting.image.id, error=exc)
        return embedded, failed

    def _embed_by(
        self,
        live: LiveEncoder,
        source: PictureSource,
        sha256: str,
        image_id: str,
        metadata: Metadata | None,
    ) -> Waiting:
        place = source.place() if self._originals.refers_to(source) else None
        with source.open() as file:
            decoded: DecodedImage = self._decoder.decode(file, decode_size=live.encoder.decode_size)
        vector = live.batcher.submit(live.encoder.prepare(decoded.image), wait=True)
        image = NewImage(
            id=image_id,
            sha256=sha256,
            filename=source.filename,
            media_type=decoded.media_type,
            width=decoded.width,
            height=decoded.height,
            bytes=source.size,
            metadata=metadata,
            source=place,
        )
        return Waiting(source, image, make_thumbnail(decoded.image), vector, live)


def failed_items(ready: Sequence[Ready], error: LookalikeError) -> dict[int, IndexItem]:
    """The items of pictures that all met the same error, by their places."""
    return {
        one.place: IndexItem(source=one.waiting.source, id=one.waiting.image.id, error=error)
        for one in ready
    }
