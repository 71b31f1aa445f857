"""What the service answers and the Python clients return: one type for each, as it is in JSON.

`docs/api.md` and `/openapi.json` describe these types. Their constructors `of` take what the
services of this process return.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ConfigDict, Field

from lookalike.records import (
    CollectionInfo,
    DuplicateKind,
    ImageRecord,
    Match,
    ModelSpec,
)
from lookalike.store.base import Page, VectorSpace
from lookalike.store.jobs import JobState

if TYPE_CHECKING:
    from lookalike.services.duplicates import DuplicateGroup, Duplicates, Member, Unfinished
    from lookalike.services.jobs import JobStatus
    from lookalike.services.search import SearchResult


class Schema(BaseModel):
    """The base of all: nothing beside the fields named."""

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def _copy(cls, source: object, **others: Any) -> Self:
        """Takes `others` as they are, and all other fields from the attributes of an object."""
        names = cls.model_fields.keys() - others.keys()
        return cls(**{name: getattr(source, name) for name in names}, **others)


Score = Annotated[float, Field(ge=-1, le=1, description="Cosine similarity; higher is better")]


class ModelOut(Schema):
    """What made the vectors."""

    name: str = Field(examples=["resnet50"])
    weights: str = Field(examples=["IMAGENET1K_V1"])
    head: str | None = Field(description="16 digits of the embedding head's digest, or null")
    dim: int = Field(examples=[2048])

    @classmethod
    def of(cls, spec: ModelSpec) -> Self:
        """The short form of a passport."""
        head = None if spec.head is None else spec.head[:16]
        return cls(name=spec.model, weights=spec.weights, head=head, dim=spec.dim)


class QueryOut(Schema):
    """The picture that was asked about; pixels after EXIF orientation."""

    width: int
    height: int
    sha256: str


class MatchOut(Schema):
    """One picture that was found."""

    rank: int = Field(ge=1)
    id: str
    score: Score
    distance: float = Field(ge=0, le=2, description="sqrt(2 - 2 score)")
    filename: str
    metadata: dict[str, Any]
    image_url: str
    thumbnail_url: str

    @classmethod
    def of(cls, match: Match) -> Self:
        """Rounds nothing: the score is the float32 cosine."""
        record = match.record
        ranked = {"rank": match.rank, "score": match.score, "distance": match.distance}
        return cls._copy(record, metadata=dict(record.metadata), **ranked, **_urls(record))


class SearchOut(Schema):
    """Matches, best first."""

    collection: str
    model: ModelOut
    query: QueryOut
    matches: list[MatchOut]
    took_ms: dict[str, float] = Field(
        description="Milliseconds by stage",
        examples=[{"decode": 2.1, "embed": 24.8, "total": 28.4}],
    )

    @classmethod
    def of(cls, result: SearchResult) -> Self:
        """A search's answer as JSON."""
        return cls(
            collection=result.collection,
            model=ModelOut.of(result.spec),
            query=QueryOut(**asdict(result.query)),
            matches=[MatchOut.of(match) for match in result.matches],
            took_ms=result.took_ms,
        )


class ItemError(Schema):
    """Why one file of several failed."""

    code: str = Field(examples=["not_an_image"])
    detail: str


class IndexItemOut(Schema):
    """What became of one file."""

    filename: str
    status: Literal["created", "replaced", "updated", "unchanged", "skipped", "failed"]
    id: str | None = None
    error: ItemError | None = None


class IndexOut(Schema):
    """What became of all files of a request."""

    collection: str
    created: int = 0
    replaced: int = 0
    updated: int = 0
    unchanged: int = 0
    skipped: int = 0
    failed: int = 0
    items: list[IndexItemOut]


class ImageOut(Schema):
    """A stored picture."""

    collection: str
    id: str
    sha256: str
    filename: str
    media_type: str
    width: int
    height: int
    bytes: int
    metadata: dict[str, Any]
    created_at: str
    updated_at: str
    image_url: str
    thumbnail_url: str

    @classmethod
    def of(cls, record: ImageRecord) -> Self:
        """A row as JSON; where its file lies on the server stays on the server."""
        return cls._copy(record, metadata=dict(record.metadata), **_urls(record))


class ImagesOut(Schema):
    """A stretch of a collection."""

    collection: str
    images: list[ImageOut]
    next_cursor: str | None = Field(description="Send as `cursor` for the next stretch; null: end")

    @classmethod
    def of(cls, collection: str, page: Page) -> Self:
        """A page as JSON."""
        return cls(
            collection=collection,
            images=[ImageOut.of(record) for record in page.records],
            next_cursor=page.next_cursor,
        )


class PassportOut(Schema):
    """What made a set of vectors."""

    model: str
    weights: str
    weights_sha256: str
    head: str | None
    pooling: str
    resize: str
    input_size: int
    dim: int
    preprocessing: int
    int8: bool
    digest: str = Field(description="16 hex digits over everything that must agree")

    @classmethod
    def of(cls, spec: ModelSpec) -> Self:
        """A passport as JSON."""
        values = spec.to_dict() | {"digest": spec.digest}
        return cls(**{name: values[name] for name in cls.model_fields})


class CollectionOut(Schema):
    """A collection."""

    name: str
    count: int
    index: str
    created_at: str
    searchable: bool = Field(description="Whether a live model made its vectors")
    passport: PassportOut
    provenance: Mapping[str, str]

    @classmethod
    def of(cls, info: CollectionInfo, *, searchable: bool) -> Self:
        """A collection as JSON."""
        return cls._copy(info, searchable=searchable, passport=PassportOut.of(info.spec))

    @classmethod
    def of_all(cls, infos: Iterable[CollectionInfo], live: Iterable[ModelSpec]) -> list[Self]:
        """Collections as JSON; those whose vectors were made by a `live` model are searchable."""
        specs = list(live)
        return [
            cls.of(info, searchable=any(not info.spec.differences(spec) for spec in specs))
            for info in infos
        ]


class VectorSetOut(Schema):
    """The vectors that one model made of a collection's pictures."""

    passport: PassportOut
    provenance: Mapping[str, str]
    count: int = Field(description="Pictures that have a vector in it")
    active: bool = Field(description="Whether searches use it; exactly one of a collection is")

    @classmethod
    def of(cls, one: VectorSpace) -> Self:
        """A set as JSON."""
        return cls._copy(one, passport=PassportOut.of(one.spec))


class VectorSetsOut(Schema):
    """All vectors of a collection, in the order they were made."""

    collection: str
    vectors: list[VectorSetOut]


class CollectionsOut(Schema):
    """All collections."""

    collections: list[CollectionOut]


class KeptOut(Schema):
    """The picture of a group to keep: most pixels, then most bytes, then oldest."""

    id: str
    filename: str
    width: int
    height: int
    bytes: int
    image_url: str
    thumbnail_url: str

    @classmethod
    def of(cls, record: ImageRecord) -> Self:
        """A row as JSON."""
        return cls._copy(record, **_urls(record))


class DuplicateOut(KeptOut):
    """A duplicate of the picture to keep."""

    kind: DuplicateKind = Field(description="What it is to the picture to keep")
    score: Score

    @classmethod
    def of_member(cls, member: Member) -> Self:
        """A member as JSON."""
        record = member.record
        return cls._copy(record, kind=member.kind, score=member.score, **_urls(record))


class DuplicateGroupOut(Schema):
    """A picture to keep, and those that are directly like it."""

    kind: DuplicateKind = Field(description="The weakest kind among the members")
    bytes_saved: int = Field(description="By deleting the members")
    keep: KeptOut
    members: list[DuplicateOut] = Field(min_length=1)

    @classmethod
    def of(cls, group: DuplicateGroup) -> Self:
        """A group as JSON."""
        members = [DuplicateOut.of_member(member) for member in group.members]
        return cls._copy(group, keep=KeptOut.of(group.keep), members=members)


class DuplicatesOut(Schema):
    """Groups of duplicates, the largest first."""

    state: Literal["ready"] = "ready"
    collection: str
    kind: DuplicateKind
    threshold: float
    total_groups: int
    total_duplicates: int = Field(description="Pictures of all groups but those to keep")
    bytes_saved: int = Field(description="By deleting the members of all groups")
    truncated: int = Field(
        description="Pictures with more neighbors than are looked at; their groups may lack some"
    )
    groups: list[DuplicateGroupOut]
    next_cursor: str | None = Field(description="Send as `cursor` for the next groups; null: end")

    @classmethod
    def of(cls, found: Duplicates) -> Self:
        """A service's answer as JSON."""
        asked = {name: getattr(found.options, name) for name in ("collection", "kind", "threshold")}
        groups = [DuplicateGroupOut.of(group) for group in found.groups]
        return cls._copy(found, state="ready", groups=groups, **asked)


class DuplicatesRunning(Schema):
    """The search for duplicates is under way; ask again."""

    state: Literal["running"] = "running"
    done: int = Field(description="Pictures that were searched for")
    total: int = Field(description="Pictures to search for, as counted at the start")

    @classmethod
    def of(cls, progress: Unfinished) -> Self:
        """How far it is, as JSON."""
        return cls(done=progress.done, total=progress.total)


class JobOut(Schema):
    """A piece of long work."""

    id: str
    kind: str = Field(description="What it does: reembed, index_archive, index_folder")
    parameters: dict[str, Any]
    state: JobState
    cancel_requested: bool = Field(description="Whether it ends at its next step")
    done: int = Field(
        description="Steps that are done; of reembed, pictures with a new vector; of an import, "
        "pictures that were met"
    )
    total: int | None = Field(description="Steps in all; null: not known yet")
    errors: int = Field(
        description="Steps that failed; of reembed, since it last began after a restart"
    )
    error_texts: list[str] = Field(description="The first few errors")
    message: str
    rate: float | None = Field(description="Steps a second while it runs")
    seconds_left: float | None = Field(description="At this rate")
    created_at: str
    started_at: str | None
    updated_at: str
    finished_at: str | None

    @classmethod
    def of(cls, status: JobStatus) -> Self:
        """A job as JSON."""
        job = status.job
        return cls._copy(
            job,
            parameters=_as_text(job.parameters),
            error_texts=list(job.error_texts),
            rate=status.rate,
            seconds_left=status.seconds_left,
        )


def _as_text(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that can be answered: a path on the server need not be UTF-8."""
    text = json.dumps(dict(parameters), ensure_ascii=False)
    shown: dict[str, Any] = json.loads(text.encode("utf-8", "replace"))
    return shown


class JobsOut(Schema):
    """A stretch of jobs, newest first."""

    jobs: list[JobOut]
    next_cursor: str | None = Field(description="Send as `cursor` for the next stretch; null: end")


def _urls(record: ImageRecord) -> dict[str, str]:
    """Where a picture's file and thumbnail are served, relative to the service's root."""
    path, query = (
        f"/images/{quote(record.id, safe='')}",
        urlencode({"collection": record.collection}),
    )
    return {"image_url": f"{path}/file?{query}", "thumbnail_url": f"{path}/thumbnail?{query}"}
