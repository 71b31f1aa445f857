"""What people say of matches: right or wrong. It is kept, and exports carry it.

An export has a line of JSON for each judgement: the fields of `Judgement`, the vector in base64 as
little-endian float32, and as `spec` the digest of the spec that made it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from lookalike.errors import BackupError, InvalidParameterError, LookalikeError
from lookalike.files.disk import atomic_write, disk_errors
from lookalike.media.decoder import ImageDecoder
from lookalike.models.encoders import Encoders
from lookalike.records import (
    CollectionInfo,
    ModelSpec,
    check_collection_name,
    check_id,
    read_utc,
    sha256_of,
)
from lookalike.services.indexing import ID_LENGTH
from lookalike.services.queries import packed, vector_of
from lookalike.store.base import Store, check_vectors, spec_of, unknown_collection
from lookalike.store.judgements import Judgement, NewJudgement, all_judgements

FEEDBACK = "feedback.jsonl"
"""The file of an export with the judgements."""

_PAGE = 1000
_LINE = 10_000_000  # characters; a vector may be long


@dataclass(eq=False)
class FeedbackService:
    """Keeps judgements of matches. Of a new picture it keeps the digest and the vector alone."""

    store: Store
    decoder: ImageDecoder
    encoders: Callable[[], Encoders]  # asked for only where a new picture is embedded

    def judge(
        self,
        collection: str,
        match: str,
        *,
        right: bool,
        query: str | None = None,
        picture: BinaryIO | None = None,
    ) -> tuple[Judgement, bool]:
        """Keeps what somebody says of a match; also gives whether that is new.

        The query is either a picture of the collection, by its id, or a new one. The same query
        and match have one judgement, the last one.

        Raises:
            InvalidParameterError: There is no query, or two; or the query is its own match.
            CollectionNotFoundError: There is no such collection.
            ImageNotFoundError: The query or the match is not in it.
            InvalidImageError: The new picture cannot be read.
        """
        check_collection_name(collection)
        check_id(match)
        if (query is None) == (picture is None):
            raise InvalidParameterError(
                "Say which query the match is of: query (the id of a stored picture) or file (a "
                "picture), one of the two"
            )
        if picture is None:
            given = NewJudgement(match=match, right=right, query=check_id(str(query)))
        else:
            given = self._of_new(collection, match, picture, right=right)
        if given.query == match:
            raise InvalidParameterError(f"{match!r} is its own match: judge another one")
        (outcome,) = self.store.judgements.put(collection, [given])
        if isinstance(outcome, LookalikeError):
            raise outcome
        return outcome

    def _of_new(
        self, collection: str, match: str, picture: BinaryIO, *, right: bool
    ) -> NewJudgement:
        """A judgement with a vector; of a picture that is stored under its usual id, with that."""
        sha256 = sha256_of(picture)
        picture.seek(0)
        usual = self.store.find(collection, [sha256[:ID_LENGTH]]).get(sha256[:ID_LENGTH])
        if usual is not None and usual.sha256 == sha256 and usual.id != match:
            return NewJudgement(match=match, right=right, query=usual.id)
        live = self.encoders().following(partial(spec_of, self.store, collection))
        if live is None:
            raise unknown_collection(collection)
        encoder, spec = live.encoder, live.spec
        decoded = self.decoder.decode(
            picture, decode_size=encoder.decode_size, preprocess=spec.preprocess
        )
        vector = live.embed(encoder.prepare(decoded.image))
        return NewJudgement(match=match, right=right, sha256=sha256, spec=spec, vector=vector)


def write_judgements(store: Store, info: CollectionInfo, folder: Path) -> int:
    """Writes a collection's judgements into the folder of an export; returns how many."""
    path = folder / FEEDBACK
    if not store.judgements.count(info.name):
        path.unlink(missing_ok=True)
        return 0
    written = 0
    with atomic_write(path) as file:
        for page in all_judgements(store.judgements, info.name, vectors_of=info.spec):
            for one in page:
                vector = None if one.vector is None else packed(one.vector)
                facts = asdict(one) | {"vector": vector, "spec": vector and info.spec.digest}
                file.write(json.dumps(facts).encode() + b"\n")
            written += len(page)
    return written


def read_judgements(store: Store, collection: str, folder: Path) -> int:
    """Takes over the judgements of an export; returns how many are new.

    Those of pictures that are not in the collection with the same bytes are passed over, and so
    are those of pairs that are judged here. Raises `BackupError` if a line is no judgement.
    """
    path, spec = folder / FEEDBACK, spec_of(store, collection)
    if not path.is_file() or spec is None:
        return 0
    known = {one.id for page in all_judgements(store.judgements, collection) for one in page}
    count = 0
    for lines in _pages(path):
        read = [_judgement_of(line, spec, where) for where, line in lines]
        ids = {one for given, _ in read for one in (given.query, given.match) if one is not None}
        here = {key: one.sha256 for key, one in store.find(collection, sorted(ids)).items()}
        given = [
            one
            for one, digests in read
            if one.id not in known and all(here.get(key) == own for key, own in digests.items())
        ]
        outcomes = store.judgements.put(collection, given) if given else []
        count += sum(isinstance(one, tuple) for one in outcomes)
    return count


def _pages(path: Path) -> Iterator[Sequence[tuple[str, str]]]:
    """The lines of a file, each with where it is, some at a time."""
    page: list[tuple[str, str]] = []
    with disk_errors(f"read {path}"), path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LINE), ""), start=1):
            if line.strip():
                page.append((f"{path}, line {number}", line))
            if len(page) == _PAGE:
                yield page
                page = []
    yield page


_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    query: str | None
    query_sha256: _Digest
    match: str
    match_sha256: _Digest
    right: bool
    judged_at: str
    vector: str | None = None
    spec: str | None = None


_LINES = TypeAdapter(_Line)


def _judgement_of(line: str, spec: ModelSpec, where: str) -> tuple[NewJudgement, dict[str, str]]:
    """A judgement that a stranger may have written, and the digests of its stored pictures."""
    try:
        read = _LINES.validate_json(line, strict=True)
        digests = {check_id(read.match): read.match_sha256}
        made: dict[str, Any] = {"sha256": read.query_sha256}
        if read.query is not None:
            digests[check_id(read.query)] = read.query_sha256
            made = {"query": read.query}
        elif read.vector is not None and read.spec == spec.digest:
            vector = vector_of(read.vector)
            check_vectors(vector[np.newaxis, :], count=1, dim=spec.dim)
            made |= {"spec": spec, "vector": vector}
        at = read_utc(read.judged_at)
        return NewJudgement(match=read.match, right=read.right, judged_at=at, **made), digests
    except (ValueError, RecursionError, LookalikeError) as exc:
        text = exc.errors()[0]["msg"] if isinstance(exc, ValidationError) else exc
        raise BackupError(f"{where}: {text}") from exc
