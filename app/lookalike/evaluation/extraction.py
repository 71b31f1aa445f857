"""The vectors of a dataset: each picture through the decoder and the network once.

Where a cache folder is given, vectors go to the disk as they come and are found there by the next
run, whole or interrupted: see `vector_cache`.
"""

from __future__ import annotations

import hashlib
import threading
from contextlib import closing
from pathlib import Path, PurePosixPath

from PIL import Image

from lookalike.errors import ConfigurationError, EmbeddingFailedError, InvalidImageError
from lookalike.evaluation.datasets import Dataset, Stamp
from lookalike.evaluation.vector_cache import Row, VectorKeeper, open_keeper
from lookalike.media.decode import ImageDecoder, check_bytes
from lookalike.models.encoders import LiveEncoder
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.services.pipeline import Pipeline, Prepared, Result, reading
from lookalike.services.vector_set import Skipped, VectorSet

_Read = tuple[Row | None, str | None]
"""A picture that was read, None where its bytes could not be; and why it gets no vector."""


def extract_vectors(
    dataset: Dataset,
    live: LiveEncoder,
    decoder: ImageDecoder,
    *,
    cache: Path | None,
    progress: Progress = NO_PROGRESS,
    cores: int,
) -> VectorSet:
    """Makes the vectors of a dataset, those of identical pictures once.

    Pictures that are missing or cannot be decoded are left out and counted in `skipped`; they are
    tried again in every run, for limits change and files come. A run that was interrupted, by
    whatever, goes on where it stopped.

    Args:
        dataset: The pictures.
        live: What makes the vectors, and its queue.
        decoder: Decodes within the limits.
        cache: Folder where vectors are kept from run to run; None to keep nothing.
        progress: Told how many pictures are settled, on this thread; may end the work.
        cores: Threads that decode ahead of the network.

    Returns:
        The pictures that could be read, in the dataset's order; with a cache, the vectors are a
        read-only memory map.

    Raises:
        ConfigurationError: The dataset is empty, or none of its pictures can be read.
        EmbeddingFailedError: The network failed on a picture.
        StorageError: The cache folder cannot be used; `StorageFullError` where the disk is full.
    """
    with open_keeper(dataset, live.encoder, cache=cache) as keeper:
        run = _Run(dataset, live, decoder, keeper, progress)
        run.settle_known()
        run.extract(cores=cores)
        return run.finish()


class _Run:
    """One call of `extract_vectors`: what is settled of each picture so far."""

    def __init__(
        self,
        dataset: Dataset,
        live: LiveEncoder,
        decoder: ImageDecoder,
        keeper: VectorKeeper,
        progress: Progress,
    ) -> None:
        self._dataset = dataset
        self._ids = dataset.ids
        self._labels = dataset.labels
        self._live = live
        self._decoder = decoder
        self._keeper = keeper
        self._progress = progress
        self._rows: dict[int, Row] = {}
        self._skipped: dict[int, str] = {}
        self._undecodable: dict[str, str] = {}
        self._claimed: set[str] = set()
        self._claiming = threading.Lock()

    def settle_known(self) -> None:
        """Settles pictures whose files are as they were, and those whose files are gone."""
        for position, picture_id in enumerate(self._ids):
            try:
                stamp = self._dataset.stamp(position)
            except InvalidImageError as exc:
                self._skipped[position] = str(exc)
                continue
            sha256 = self._keeper.recall(picture_id, stamp)
            if sha256 is not None:
                self._rows[position] = self._row(position, sha256, stamp)
        self._report()

    def extract(self, *, cores: int) -> None:
        """Reads all other pictures, and embeds those whose content has no vector yet."""
        settled = self._rows.keys() | self._skipped.keys()
        unsettled = [position for position in range(len(self._ids)) if position not in settled]
        if not unsettled:
            return
        self._keeper.expect()
        window = self._live.queue_size + cores
        with (
            Pipeline(threads=cores, window=window) as pipeline,
            closing(pipeline.run(unsettled, self._read)) as results,
        ):
            for result in results:
                self._take(result)
                self._report()

    def finish(self) -> VectorSet:
        """Everything that could be read, in the dataset's order. Raises `ConfigurationError`."""
        dataset, decoder, labels = self._dataset, self._decoder, self._labels
        for position, row in list(self._rows.items()):
            if not self._keeper.knows(row.sha256):
                self._skipped[position] = self._undecodable[row.sha256]
                del self._rows[position]
        skipped = [Skipped(self._ids[p], self._skipped[p]) for p in sorted(self._skipped)]
        if not self._rows:
            raise ConfigurationError(
                f"None of the {len(skipped):,} pictures of {dataset.name} can be read; the "
                f"first is {skipped[0].name}: {skipped[0].reason}"
                if skipped
                else f"{dataset.name} is empty: name a dataset that holds pictures"
            )
        positions = sorted(self._rows)
        rows = [self._rows[position] for position in positions]
        vectors, provenance = self._keeper.finish(rows, skipped)

        def picture(position: int, *, size: int) -> Image.Image:
            with dataset.source(positions[position]).open() as file:
                return decoder.decode(file, decode_size=size).image

        return VectorSet(
            name=dataset.name,
            spec=self._live.spec,
            provenance=provenance,
            vectors=vectors,
            ids=[row.id for row in rows],
            names=[PurePosixPath(row.id).name for row in rows],
            labels=None if labels is None else [labels[position] for position in positions],
            sha256s=[row.sha256 for row in rows],
            picture=picture,
            skipped=skipped,
        )

    def _read(self, position: int) -> Prepared[_Read]:
        """Runs on the pipeline's threads: everything before the network."""
        row, encoder = None, self._live.encoder
        try:
            stamp = self._dataset.stamp(position)
            with reading(self._ids[position]), self._dataset.source(position).open() as file:
                check_bytes(file, limits=self._decoder.limits)
                file.seek(0)
                data = file.read()
            row = self._row(position, hashlib.sha256(data).hexdigest(), stamp)
            if not self._claim(row.sha256):
                return (row, None), None
            decoded = self._decoder.decode(data, decode_size=encoder.decode_size)
        except InvalidImageError as exc:
            return (row, str(exc)), None
        vector = self._live.submit(encoder.prepare(decoded.image), wait=True)
        return (row, None), vector

    def _claim(self, sha256: str) -> bool:
        """Whether the caller is the one to embed a content: true for the first that asks."""
        with self._claiming:
            if sha256 in self._claimed:
                return False
            self._claimed.add(sha256)
        return not self._keeper.knows(sha256)

    def _take(self, result: Result[int, _Read]) -> None:
        """Notes what became of a picture."""
        if isinstance(result.error, EmbeddingFailedError):
            raise EmbeddingFailedError(f"{self._ids[result.item]}: {result.error}")
        if result.error is not None:
            raise result.error
        assert result.value is not None
        row, reason = result.value
        if row is None:
            self._skipped[result.item] = reason or "it cannot be read"
            return
        self._rows[result.item] = row
        if reason is not None:
            self._undecodable[row.sha256] = reason
        else:
            self._keeper.add(row, result.vector)

    def _row(self, position: int, sha256: str, stamp: Stamp) -> Row:
        label = None if self._labels is None else self._labels[position]
        return Row(self._ids[position], label, sha256, *stamp)

    def _report(self) -> None:
        self._progress.report(len(self._rows) + len(self._skipped), len(self._ids))
        self._progress.check()
