"""What scores mean and what people say of matches, in both clients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from lookalike.client.parts import Picture, open_picture
from lookalike.progress import NO_PROGRESS, Progress
from lookalike.records import DEFAULT_COLLECTION, check_collection_name, check_id
from lookalike.schemas import Answer, CalibrationOut, JobOut, JudgementOut, JudgementsOut
from lookalike.services.calibrating import remove_calibration, require_calibration
from lookalike.services.feedback import FeedbackService
from lookalike.services.scores import CalibrationOptions

if TYPE_CHECKING:
    from lookalike.bootstrap import Services
    from lookalike.files.audit import AuditLog
    from lookalike.services.pictures import PictureService
    from lookalike.store.base import Store

_PAGE = 1000
_T = TypeVar("_T", bound=Answer)


class ScoresClient(ABC):
    """The part of `BaseClient` about scores and feedback."""

    @abstractmethod
    def calibrate(
        self,
        collection: str = DEFAULT_COLLECTION,
        *,
        label_field: str | None = None,
        false_alarms: float = 0.05,
        sample: int = 200,
        seed: int = 0,
        progress: Progress = NO_PROGRESS,
    ) -> CalibrationOut:
        """Finds out what the scores of a collection mean under its model, and keeps it.

        Answers of searches then have `copy_probability`, and `verdict` if it is known below which
        score nothing matches.

        Args:
            collection: Which one.
            label_field: A metadata field that says what a picture shows. None: judgements decide,
                if there are enough.
            false_alarms: Share of queries without a right picture that may have a match.
            sample: Pictures of which copies are made, 20 to 2,000.
            seed: Chooses them.
            progress: Told of each copy.

        Raises:
            CollectionNotFoundError: There is no such collection.
            CalibrationError: It has too few pictures or labels. `HttpClient` raises `ServerError`.
        """

    @abstractmethod
    def calibration(self, collection: str = DEFAULT_COLLECTION) -> CalibrationOut:
        """What the scores of a collection mean. Raises `CalibrationNotFoundError`."""

    @abstractmethod
    def delete_calibration(self, collection: str = DEFAULT_COLLECTION) -> None:
        """Forgets what the scores of a collection mean. Raises `CalibrationNotFoundError`."""

    @abstractmethod
    def rollback(
        self,
        collection: str = DEFAULT_COLLECTION,
        *,
        digest: str | None = None,
        progress: Progress = NO_PROGRESS,
    ) -> str:
        """Goes back to vectors that were kept, as from a head that does not help.

        Args:
            collection: Which one.
            digest: `passport.digest` of these vectors; None for the only ones not in use.
            progress: Told of pictures that came since and get their vectors first.

        Returns:
            A sentence on how it ended.

        Raises:
            VectorSpaceNotFoundError: It has no such vectors.
            InvalidParameterError: It has several others, and no digest is given.
        """

    def judge(
        self,
        match: str,
        *,
        right: bool,
        query: str | None = None,
        picture: Picture | None = None,
        collection: str = DEFAULT_COLLECTION,
    ) -> JudgementOut:
        """Says whether a match is right; of the same query and match, the last word counts.

        Args:
            match: Its id.
            right: Whether it is.
            query: Id of the stored picture that was searched with.
            picture: Or the picture itself, of which the digest and the vector are kept.
            collection: Where it was searched.

        Raises:
            InvalidParameterError: Neither `query` nor `picture` is given, or both are.
            ImageNotFoundError: The query or the match is not in the collection.
            InvalidImageError: The picture cannot be read.
        """
        if picture is None:
            return self._judge(match, right, query, None, collection)
        with open_picture(picture) as file:
            return self._judge(match, right, query, file, collection)

    @abstractmethod
    def _judge(
        self, match: str, right: bool, query: str | None, file: BinaryIO | None, collection: str
    ) -> JudgementOut: ...

    def judgements(self, collection: str = DEFAULT_COLLECTION) -> Iterator[JudgementOut]:
        """Yields what was said of matches, oldest first. Raises `CollectionNotFoundError`."""
        cursor: str | None = None
        while True:
            page = self._judgements(collection, cursor)
            yield from page.judgements
            if (cursor := page.next_cursor) is None:
                return

    @abstractmethod
    def _judgements(self, collection: str, cursor: str | None) -> JudgementsOut: ...

    @abstractmethod
    def delete_judgement(self, judgement_id: str, *, collection: str = DEFAULT_COLLECTION) -> None:
        """Takes back what was said of a match. Raises `JudgementNotFoundError`."""


class LocalScores(ScoresClient):
    """On a data folder."""

    if TYPE_CHECKING:
        _store: Store
        _pictures: PictureService

        @property
        def _audit(self) -> AuditLog: ...
        @property
        def _services(self) -> Services: ...

    def calibrate(
        self,
        collection: str = DEFAULT_COLLECTION,
        *,
        progress: Progress = NO_PROGRESS,
        **options: Any,
    ) -> CalibrationOut:
        chosen = CalibrationOptions(**options)
        with self._audit.noting_long("calibrate", name=collection):
            return CalibrationOut.of(self._services.calibrations.run(collection, chosen, progress))

    def calibration(self, collection: str = DEFAULT_COLLECTION) -> CalibrationOut:
        return CalibrationOut.of(require_calibration(self._store, collection))

    def delete_calibration(self, collection: str = DEFAULT_COLLECTION) -> None:
        with self._audit.noting("delete_calibration", name=collection):
            remove_calibration(self._store, collection)

    def rollback(
        self,
        collection: str = DEFAULT_COLLECTION,
        *,
        digest: str | None = None,
        progress: Progress = NO_PROGRESS,
    ) -> str:
        reembedding = self._services.reembedding
        with self._audit.noting_long("rollback", name=collection):
            request = reembedding.way_back(collection, digest)
            return reembedding.run(collection, request, progress)

    def _judge(
        self, match: str, right: bool, query: str | None, file: BinaryIO | None, collection: str
    ) -> JudgementOut:
        details = {"collection": collection, "query": query, "match": match, "right": right}
        with self._audit.noting("judge", **details):
            feedback = FeedbackService(
                self._store, self._pictures.decoder, lambda: self._services.encoders
            )
            found, _ = feedback.judge(collection, match, right=right, query=query, picture=file)
        return JudgementOut.of(found)

    def _judgements(self, collection: str, cursor: str | None) -> JudgementsOut:
        found, after = self._store.judgements.page(collection, cursor=cursor, limit=_PAGE)
        judgements = [JudgementOut.of(one) for one in found]
        return JudgementsOut(collection=collection, judgements=judgements, next_cursor=after)

    def delete_judgement(self, judgement_id: str, *, collection: str = DEFAULT_COLLECTION) -> None:
        details = {"collection": collection, "judgement_id": judgement_id}
        with self._audit.noting("delete_feedback", **details):
            self._store.judgements.delete(collection, judgement_id)


class HttpScores(ScoresClient):
    """On a service."""

    if TYPE_CHECKING:

        def _ask(self, kind: type[_T], method: str, path: str, **options: Any) -> _T: ...
        def _call(self, method: str, path: str, **options: Any) -> Any: ...
        def _ended(self, job: JobOut, progress: Progress) -> str: ...

    def calibrate(
        self,
        collection: str = DEFAULT_COLLECTION,
        *,
        progress: Progress = NO_PROGRESS,
        **options: Any,
    ) -> CalibrationOut:
        self._ended(self._ask(JobOut, "POST", _path(collection), json=options), progress)
        return self.calibration(collection)

    def rollback(
        self,
        collection: str = DEFAULT_COLLECTION,
        *,
        digest: str | None = None,
        progress: Progress = NO_PROGRESS,
    ) -> str:
        path = f"/collections/{check_collection_name(collection)}/rollback"
        asked = {} if digest is None else {"digest": digest}
        return self._ended(self._ask(JobOut, "POST", path, json=asked), progress)

    def calibration(self, collection: str = DEFAULT_COLLECTION) -> CalibrationOut:
        return self._ask(CalibrationOut, "GET", _path(collection))

    def delete_calibration(self, collection: str = DEFAULT_COLLECTION) -> None:
        self._call("DELETE", _path(collection))

    def _judge(
        self, match: str, right: bool, query: str | None, file: BinaryIO | None, collection: str
    ) -> JudgementOut:
        form = {"match": match, "right": str(right).lower(), "collection": collection}
        parts: dict[str, Any] = {name: (None, value) for name, value in form.items()}
        if query is not None:
            parts["query"] = (None, query)
        if file is not None:
            parts["file"] = ("query", file.read())
        return self._ask(JudgementOut, "POST", "/feedback", files=parts)

    def _judgements(self, collection: str, cursor: str | None) -> JudgementsOut:
        query = {"collection": collection, "limit": _PAGE}
        query |= {} if cursor is None else {"cursor": cursor}
        return self._ask(JudgementsOut, "GET", "/feedback", params=query)

    def delete_judgement(self, judgement_id: str, *, collection: str = DEFAULT_COLLECTION) -> None:
        query = {"collection": collection}
        self._call("DELETE", f"/feedback/{check_id(judgement_id)}", params=query)


def _path(collection: str) -> str:
    return f"/collections/{check_collection_name(collection)}/calibration"
