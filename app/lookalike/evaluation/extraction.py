"""The vectors of a dataset: each picture through the decoder and the network once.

Where a cache folder is given, vectors go to the disk as they come and are found there by the next
run, whole or interrupted: see `vector_cache`.
"""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image

from lookalike.errors import ConfigurationError, EmbeddingFailedError, InvalidImageError
from lookalike.evaluation.datasets import Dataset, Stamp
from lookalike.evaluation.vector_cache import Row, VectorKeeper, open_keeper
from lookalike.media.decode import check_bytes
from lookalike.media.decoder import ImageDecoder
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
    """Makes the vectors of a dataset, those of identical pictures once, in the dataset's order.

    Pictures that are missing or cannot be decoded are left out and counted in `skipped`; they are
    tried again in every run, for limits change and files come. A run that was interrupted, by
    whatever, goes on where it stopped.

    With a `cache` folder, vectors are kept from run to run and come as a read-only memory map.
    `progress` is told how many pictures are settled, on this thread, and may end the work; `cores`
    threads decode ahead of the network.

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


@dataclass(slots=True, eq=False)
class _Run:
    """One call of `extract_vectors`: what is settled of each picture so far."""

    dataset: Dataset
    live: LiveEncoder
    decoder: ImageDecoder
    keeper: VectorKeeper
    progress: Progress
    rows: dict[int, Row] = field(default_factory=dict)  # of pictures that were read
    skipped: dict[int, str] = field(default_factory=dict)  # why, by position
    undecodable: dict[str, str] = field(default_factory=dict)  # why, by digest
    claimed: dict[str, int] = field(default_factory=dict)  # who embeds a content

    def settle_known(self) -> None:
        """Settles pictures whose files are as they were, and those whose files are gone."""
        for position, picture_id in enumerate(self.dataset.ids):
            try:
                stamp = self.dataset.stamp(position)
            except InvalidImageError as exc:
                self.skipped[position] = str(exc)
                continue
            sha256 = self.keeper.recall(picture_id, stamp)
            if sha256 is not None:
                self.rows[position] = self._row(position, sha256, stamp)
        self._report()

    def extract(self, *, cores: int) -> None:
        """Reads all other pictures, and embeds those whose content has no vector yet."""
        settled = self.rows.keys() | self.skipped.keys()
        unsettled = [one for one in range(len(self.dataset)) if one not in settled]
        if not unsettled:
            return
        self.keeper.expect()
        window = self.live.queue_size + cores
        with (
            Pipeline(threads=cores, window=window) as pipeline,
            closing(pipeline.run(unsettled, self._read)) as results,
        ):
            for result in results:
                self._take(result)
                self._report()

    def finish(self) -> VectorSet:
        """Everything that could be read, in the dataset's order. Raises `ConfigurationError`."""
        dataset, decoder, labels = self.dataset, self.decoder, self.dataset.labels
        for position, row in list(self.rows.items()):
            if not self.keeper.knows(row.sha256):
                self.skipped[position] = self.undecodable[row.sha256]
                del self.rows[position]
        skipped = [Skipped(self.dataset.ids[p], self.skipped[p]) for p in sorted(self.skipped)]
        if not self.rows:
            raise ConfigurationError(
                f"None of the {len(skipped):,} pictures of {dataset.name} can be read; the "
                f"first is {skipped[0].name}: {skipped[0].reason}"
                if skipped
                else f"{dataset.name} is empty: name a dataset that holds pictures"
            )
        positions = sorted(self.rows)
        rows = [self.rows[position] for position in positions]
        vectors, provenance = self.keeper.finish(rows, skipped)

        def picture(position: int, *, size: int) -> Image.Image:
            with dataset.source(positions[position]).open() as file:
                return decoder.decode(file, decode_size=size).image

        return VectorSet(
            name=dataset.name,
            spec=self.live.spec,
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
        row, encoder = None, self.live.encoder
        try:
            stamp = self.dataset.stamp(position)
            with reading(self.dataset.ids[position]), self.dataset.source(position).open() as file:
                check_bytes(file, limits=self.decoder.limits)
                file.seek(0)
                data = file.read()
            row = self._row(position, hashlib.sha256(data).hexdigest(), stamp)
            first = self.claimed.setdefault(row.sha256, position)  # in one step, as threads need
            if first != position or self.keeper.knows(row.sha256):
                return (row, None), None
            decoded = self.decoder.decode(
                data, decode_size=encoder.decode_size, preprocess=encoder.spec.preprocess
            )
        except InvalidImageError as exc:
            return (row, str(exc)), None
        vector = self.live.submit(encoder.prepare(decoded.image), wait=True)
        return (row, None), vector

    def _take(self, result: Result[int, _Read]) -> None:
        """Notes what became of a picture."""
        if isinstance(result.error, EmbeddingFailedError):
            raise EmbeddingFailedError(f"{self.dataset.ids[result.item]}: {result.error}")
        if result.error is not None:
            raise result.error
        assert result.value is not None
        row, reason = result.value
        if row is None:
            self.skipped[result.item] = reason or "it cannot be read"
            return
        self.rows[result.item] = row
        if reason is not None:
            self.undecodable[row.sha256] = reason
        else:
            self.keeper.add(row, result.vector)

    def _row(self, position: int, sha256: str, stamp: Stamp) -> Row:
        labels = self.dataset.labels
        label = None if labels is None else labels[position]
        return Row(self.dataset.ids[position], label, sha256, *stamp)

    def _report(self) -> None:
        self.progress.report(len(self.rows) + len(self.skipped), len(self.dataset.ids))
        self.progress.check()
