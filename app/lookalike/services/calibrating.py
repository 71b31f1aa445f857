"""Calibrating the scores of a collection, from copies of its own pictures and what is known."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import KW_ONLY, asdict, dataclass, field
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from lookalike.errors import (
    CalibrationError,
    CalibrationNotFoundError,
    CollectionNotFoundError,
    ImageNotFoundError,
    InvalidImageError,
    InvalidParameterError,
    NotFoundError,
    NotReadyError,
    SpecMismatchError,
)
from lookalike.models.encoders import Encoders, LiveEncoder
from lookalike.progress import Progress, Worker
from lookalike.records import (
    CollectionInfo,
    ImageRecord,
    ModelSpec,
    check_collection_name,
)
from lookalike.services.jobs import CALIBRATE_KIND, JobService
from lookalike.services.neighbor_graph import PixelComparer
from lookalike.services.pictures import PictureService
from lookalike.services.pipeline import Pipeline, Prepared, grouped, reading
from lookalike.services.scores import (
    CalibrationOptions,
    CopyModel,
    NoMatch,
    Pairs,
    ScoreCalibration,
    calibration_of,
    choose_threshold,
    fit_copies,
)
from lookalike.services.vector_set import sample_records
from lookalike.store.base import Store, Vectors, exact_scores, spec_of, unknown_collection
from lookalike.store.filters import MISSING, Filter, value_of
from lookalike.store.judgements import all_judgements

FEWEST = 20
"""Pictures that a calibration needs, at least."""

_SIZE = 1024  # pixels that no side of a picture is reduced below before it is copied
_NEIGHBORS = 10  # of each copy: nearest pictures that are no copy
_STRANGERS = 5  # of each copy: pictures at random
_LABELED = 500  # pictures with labels that are asked for their best matches
_LARGE = 2.0  # how many times as many pictures, or as few, make a calibration old

log = logging.getLogger(__name__)


def _jpeg(image: Image.Image, quality: int = 90) -> BytesIO:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file


def _half(image: Image.Image) -> BytesIO:
    size = max(1, image.width // 2), max(1, image.height // 2)
    return _jpeg(image.resize(size, Image.Resampling.LANCZOS))


def _cropped(image: Image.Image) -> BytesIO:
    left, top = round(0.05 * image.width), round(0.05 * image.height)
    return _jpeg(image.crop((left, top, image.width - left, image.height - top)))


COPIES: Mapping[str, Callable[[Image.Image], BytesIO]] = {
    "JPEG at quality 50": partial(_jpeg, quality=50),
    "half the size": _half,
    "5 % cropped at each side": _cropped,
    "mirrored": lambda image: _jpeg(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
}
"""How copies are made of a picture, by what people call it."""


def require_calibration(store: Store, collection: str) -> ScoreCalibration:
    """What the scores of a collection mean under its active model.

    Raises `CollectionNotFoundError`, `CalibrationNotFoundError`.
    """
    found = calibration_of(store, collection, _require(store, collection).spec)
    if found is None:
        raise CalibrationNotFoundError(
            f"The scores of the collection {collection!r} are not calibrated under its model; "
            "lookalike calibrate does it, or POST /collections/NAME/calibration"
        )
    return found


def remove_calibration(store: Store, collection: str) -> None:
    """Forgets what the scores of a collection mean; raises as `require_calibration`."""
    require_calibration(store, collection)
    store.spaces.calibrate(collection, _require(store, collection).spec, None)


def _require(store: Store, collection: str) -> CollectionInfo:
    found = store.collection(check_collection_name(collection))
    if found is None:
        raise unknown_collection(collection)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Copied:
    """A picture, its vector, and the vectors of its copies: (kinds, dim)."""

    record: ImageRecord
    vector: Vectors
    copies: Vectors


@dataclass(eq=False)
class CalibrationService:
    """Says what the scores of a collection mean; each vector space has a calibration of its own."""

    store: Store
    encoders: Encoders
    pictures: PictureService
    _: KW_ONLY
    comparer: Callable[[str], PixelComparer]  # of a collection, as `duplicates` compares
    cores: int = 2
    batch: int = 32

    def parameters(self, collection: str, options: CalibrationOptions) -> dict[str, Any]:
        """What a job needs to know. Raises `CollectionNotFoundError`."""
        found, chosen = _require(self.store, collection), asdict(options)
        return {"collection": found.name, "created_at": found.created_at, "options": chosen}

    def as_job(self, parameters: Mapping[str, Any], progress: Progress) -> str:
        """Calls `run` with what `parameters` returned; gives a sentence on how it ended."""
        collection = parameters["collection"]
        if _require(self.store, collection).created_at != parameters["created_at"]:
            raise CollectionNotFoundError(
                f"The collection {collection!r} was deleted and made anew since this was asked for"
            )
        made = self.run(collection, CalibrationOptions(**parameters["options"]), progress)
        text = f"The scores of {collection!r} are calibrated (ECE {made.copy_model.ece:.3f})"
        if made.no_match is not None:
            text += f"; below {made.no_match.threshold:.3f} nothing matches"
        return ". ".join([text, *made.notes])

    def run(
        self, collection: str, options: CalibrationOptions, progress: Progress
    ) -> ScoreCalibration:
        """Calibrates the scores of a collection and keeps the result with its vector space.

        Copies of a sample of its pictures are embedded and searched for. Their own pictures must
        be found with high scores; their other nearest pictures, less what `duplicates` calls the
        same, and pictures at random are what no copy is.

        Raises:
            CollectionNotFoundError: There is no such collection.
            CalibrationError: It has too few pictures, or too few labels for `label_field`.
            SpecMismatchError: Its model is not live, or it was moved to another one meanwhile.
        """
        info = _require(self.store, collection)
        collection = info.name  # an alias may move meanwhile
        live = self.encoders.following(partial(spec_of, self.store, collection))
        if live is None:
            raise unknown_collection(collection)
        try:
            copied = self._copied(info, live, options, progress)
            copies = self._fit(info, copied, options, progress)
            no_match, notes = self._threshold(info, options)
        except NotReadyError as exc:
            if spec_of(self.store, collection) == info.spec:
                raise
            raise SpecMismatchError(
                f"The collection {collection!r} was moved to another model meanwhile: calibrate "
                "it again"
            ) from exc
        made = ScoreCalibration(
            options=options, pictures=info.count, copy_model=copies, no_match=no_match, notes=notes
        )
        self.store.spaces.calibrate(collection, info.spec, made.to_json())
        return calibration_of(self.store, collection, info.spec) or made

    # Copies

    def _copied(
        self,
        info: CollectionInfo,
        live: LiveEncoder,
        options: CalibrationOptions,
        progress: Progress,
    ) -> list[_Copied]:
        """Makes copies of a sample, in random order; no two of its pictures have the same bytes."""
        sample = sample_records(
            self.store, info.name, most=options.sample, seed=options.seed, progress=progress
        )
        sample = list({record.sha256: record for record in sample}.values())
        held = self.store.spaces.vectors(info.name, info.spec, sample)
        items = [(record, kind) for record in sample if record.id in held for kind in COPIES]
        prepare = partial(self._prepare, info.name, live)
        copied: list[_Copied] = []
        with (
            Pipeline(threads=self.cores, window=self.batch + self.cores) as pipeline,
            closing(pipeline.run(items, prepare)) as results,
        ):
            for done, group in enumerate(grouped(results, len(COPIES)), start=1):
                progress.check()
                progress.report(done * len(COPIES), len(items))
                error = next((one.error for one in group if one.error is not None), None)
                if error is None:
                    record = group[0].item[0]
                    rows = np.stack([one.vector for one in group if one.vector is not None])
                    copied.append(_Copied(record, held[record.id], rows))
                elif isinstance(error, (InvalidImageError, NotFoundError)):
                    progress.error(f"{group[0].item[0].id}: {error}")
                else:
                    raise error
        if len(copied) < FEWEST:
            raise CalibrationError(
                f"Copies could be made of {len(copied)} pictures of the collection "
                f"{info.name!r}, and {FEWEST} are needed: add pictures, and keep their originals"
            )
        return copied

    def _prepare(
        self, collection: str, live: LiveEncoder, item: tuple[ImageRecord, str]
    ) -> Prepared[None]:
        """Copies a picture as a file, and reads that as a search would."""
        record, kind = item
        size, preprocess = live.encoder.decode_size, live.spec.preprocess
        with reading("its original"):
            now, original = self.pictures.original(collection, record.id)
            with original:
                if now.sha256 != record.sha256:
                    raise ImageNotFoundError(f"{record.id!r} was replaced meanwhile")
                image = self.pictures.decode(original, size=max(size, _SIZE), bulk=True)
        with COPIES[kind](image) as file:
            file.seek(0)
            copy = self.pictures.decode(file, size=size, preprocess=preprocess, bulk=True)
        return None, live.submit(live.encoder.prepare(copy), wait=True)

    def _fit(
        self,
        info: CollectionInfo,
        copied: Sequence[_Copied],
        options: CalibrationOptions,
        progress: Progress,
    ) -> CopyModel:
        """Pairs each copy with its picture, with its nearest others, and with some at random."""
        comparer = self.comparer(info.name)
        rng = np.random.default_rng(options.seed)
        vectors = np.stack([one.vector for one in copied])  # (N, dim)
        duplicates: set[str] = set()
        pairs: list[tuple[float, bool, int, str]] = []
        for number, one in enumerate(copied):
            progress.check()
            own = exact_scores(one.copies, one.vector)
            found = self.store.search(info.name, one.copies, k=1 + _NEIGHBORS, spec=info.spec)
            near = {
                match.record.id: match.record
                for matches in found
                for match in matches
                if match.record.sha256 != one.record.sha256 and match.score >= own.min()
            }
            same = comparer.same(one.record, list(near.values()))
            left_out = {key for key, verdict in zip(near, same, strict=True) if verdict}
            duplicates |= left_out
            for kind, score, matches, vector in zip(COPIES, own, found, one.copies, strict=True):
                pairs.append((float(score), True, number, kind))
                others = [
                    match.score
                    for match in matches
                    if match.record.sha256 != one.record.sha256 and match.record.id not in left_out
                ]
                chosen = rng.choice(len(copied), size=_STRANGERS)
                strangers = vectors[
                    [i for i in chosen if i != number and copied[i].record.id not in left_out]
                ]
                others += exact_scores(strangers, vector).tolist()
                pairs += [(other, False, number, kind) for other in others]
        scores, copies, numbers, kinds = zip(*pairs, strict=True)
        made = Pairs(
            scores=np.array(scores, dtype=np.float64),
            copies=np.array(copies, dtype=np.bool_),
            pictures=np.array(numbers, dtype=np.int64),
            kinds=np.array(kinds, dtype=np.str_),
        )
        return fit_copies(made, duplicates=len(duplicates))

    # The score below which nothing matches

    def _threshold(
        self, info: CollectionInfo, options: CalibrationOptions
    ) -> tuple[NoMatch | None, list[str]]:
        """By labels if a field is named, else by judgements if there are enough."""
        if options.label_field is not None:
            wrong, right = self._best_by_label(info, options, options.label_field)
            return choose_threshold(wrong, right, options, by="labels"), []
        wrong, right = self._best_by_judgement(info, options)
        try:
            return choose_threshold(wrong, right, options, by="judgements"), []
        except CalibrationError as exc:
            return None, [f"There is no score yet below which nothing matches: {exc}"]

    def _best_by_label(
        self, info: CollectionInfo, options: CalibrationOptions, name: str
    ) -> tuple[list[float], list[float]]:
        """For labeled pictures, the best scores of another label, and of the same one."""
        labeled = Filter.parse({name: {"exists": True}})
        sample = sample_records(
            self.store, info.name, most=_LABELED, seed=options.seed, where=labeled
        )
        if not sample:
            raise InvalidParameterError(
                f"No picture of the collection {info.name!r} has the metadata field {name!r}; name "
                "the one that says what a picture shows"
            )
        held = self.store.spaces.vectors(info.name, info.spec, sample)
        wrong: list[float] = []
        right: list[float] = []
        for record in sample:
            label = value_of(record.metadata, name)
            if record.id not in held or label is MISSING or not isinstance(label, str | int):
                continue
            for scores, condition in ((wrong, {"ne": label}), (right, {"eq": label})):
                (matches,) = self.store.search(
                    info.name,
                    held[record.id][np.newaxis, :],
                    k=1,
                    spec=info.spec,
                    where=Filter.parse({name: condition}),
                    exclude=[record.id],
                )
                scores.extend(match.score for match in matches)
        return wrong, right

    def _best_by_judgement(
        self, info: CollectionInfo, options: CalibrationOptions
    ) -> tuple[list[float], list[float]]:
        """For judged queries, the best scores of a wrong match, and of a right one."""
        best: dict[bool, dict[str, float]] = {True: {}, False: {}}
        for query, match, right in judged_pairs(self.store, info.name, info.spec):
            (score,) = exact_scores(match.vector[np.newaxis, :], query.vector)
            scores = best[right]
            scores[query.key] = max(float(score), scores.get(query.key, -1.0))
        rng = np.random.default_rng(options.seed)
        wrong = rng.permutation([score for _, score in sorted(best[False].items())])
        return wrong.tolist(), list(best[True].values())


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A picture of a judgement: what tells it from others, and its (dim,) vector."""

    key: str
    vector: Vectors


def judged_pairs(
    store: Store, collection: str, spec: ModelSpec
) -> Iterator[tuple[Judged, Judged, bool]]:
    """Query and match of each judgement whose vectors are known in a space; and if it is right.

    Raises `CollectionNotFoundError`, `VectorSpaceNotFoundError`.
    """
    for page in all_judgements(store.judgements, collection, vectors_of=spec):
        ids = {one for each in page for one in (each.query, each.match) if one is not None}
        records = list(store.find(collection, sorted(ids)).values())
        held = store.spaces.vectors(collection, spec, records)
        for one in page:
            vector = one.vector if one.query is None else held.get(one.query)
            if vector is not None and one.match in held:
                query = Judged(one.query or one.query_sha256, vector)
                yield query, Judged(one.match, held[one.match]), one.right


@dataclass(eq=False)
class Recalibration:
    """Begins a calibration anew where a collection changed much since its last one.

    That is: it has half of the pictures or less, twice as many or more, or another model. A
    collection that was never calibrated stays so. A calibration is begun once for each such
    change, so one that fails is not tried again and again.
    """

    calibrations: CalibrationService
    jobs: JobService
    _: KW_ONLY
    every_s: float = 600.0
    _begun: dict[str, tuple[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._worker = Worker(
            "recalibration",
            self._step,
            failure="Scores cannot be calibrated anew for now",
            every_s=self.every_s,
        )

    def wake(self) -> None:
        """Looks at all collections soon; the first call starts the thread."""
        self._worker.wake()

    def close(self) -> None:
        """Ends the thread; may be called twice."""
        self._worker.close()

    def _step(self) -> bool:
        for info in self.calibrations.store.collections():
            if self._worker.closing.is_set():
                break
            options = self._due(info)
            if options is not None:
                self._begun[info.name] = (info.spec.digest, info.count)
                parameters = self.calibrations.parameters(info.name, options)
                self.jobs.start(CALIBRATE_KIND, parameters)
        return False

    def _due(self, info: CollectionInfo) -> CalibrationOptions | None:
        """How to calibrate a collection, if that is due."""
        begun = self._begun.get(info.name)
        if begun is not None and begun[0] == info.spec.digest and _near(begun[1], info.count):
            return None
        store = self.calibrations.store
        now = calibration_of(store, info.name, info.spec)
        if now is not None:
            return None if _near(now.pictures, info.count) else now.options
        spaces = store.spaces.all(info.name)
        before = (calibration_of(store, info.name, one.spec) for one in spaces)
        return next((one.options for one in before if one is not None), None)


def _near(one: int, other: int) -> bool:
    return max(one, other) < _LARGE * max(1, min(one, other))
