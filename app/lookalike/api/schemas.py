"""The JSON of every answer, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ConfigDict, Field

from lookalike.records import CollectionInfo, ImageRecord, Match, ModelSpec, Page
from lookalike.services.recall_meter import WINDOW, RecallFigures
from lookalike.services.search import SearchResult


class Schema(BaseModel):
    """The base of all: nothing beside the fields named."""

    model_config = ConfigDict(extra="forbid")


Score = Annotated[float, Field(ge=-1, le=1, description="Cosine similarity; higher is better")]


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(
        default="about:blank", description="Always about:blank; `code` tells errors apart"
    )
    title: str = Field(description="The status in words", examples=["Unsupported Media Type"])
    status: int = Field(description="The HTTP status", examples=[415])
    detail: str = Field(description="What is wrong, and what to do next")
    code: str = Field(description="Stable name of the error", examples=["not_an_image"])
    request_id: str = Field(description="Also in the header X-Request-ID and in the logs")


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
        return cls(
            rank=match.rank,
            id=record.id,
            score=match.score,
            distance=match.distance,
            filename=record.filename,
            metadata=dict(record.metadata),
            image_url=picture_url(record, "file"),
            thumbnail_url=picture_url(record, "thumbnail"),
        )


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
        row = asdict(record)
        del row["source"]
        return cls(
            **row,
            image_url=picture_url(record, "file"),
            thumbnail_url=picture_url(record, "thumbnail"),
        )


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


class MetadataPatch(Schema):
    """Changes to a picture's metadata: keys are set, null removes one (RFC 7396)."""

    metadata: dict[str, Any] = Field(examples=[{"label": "cat"}])


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
        return cls(
            name=info.name,
            count=info.count,
            index=info.index,
            created_at=info.created_at,
            searchable=searchable,
            passport=PassportOut.of(info.spec),
            provenance=info.provenance,
        )


class CollectionsOut(Schema):
    """All collections."""

    collections: list[CollectionOut]


class LiveModelOut(Schema):
    """A model that answers now."""

    passport: PassportOut
    provenance: Mapping[str, str]


class RecallOut(Schema):
    """What an approximate index finds of the true answers, measured on real searches."""

    samples: int = Field(description="Searches that were done again exactly, since the start")
    mean: float | None = Field(
        ge=0, le=1, description=f"Mean recall of the last {WINDOW} of them; null before the first"
    )
    dropped: int = Field(description="Chosen, but too many waited already")
    skipped: int = Field(description="Tried, but pictures changed meanwhile or nothing was found")

    @classmethod
    def of(cls, figures: RecallFigures) -> Self:
        """The figures as JSON."""
        return cls(**asdict(figures))


class InfoOut(Schema):
    """What runs here."""

    version: str
    models: list[LiveModelOut]
    collections: list[CollectionOut]
    recall: dict[str, RecallOut] = Field(
        description="By collection; where the index is approximate, once a search was measured"
    )
    store: dict[str, Any]
    limits: dict[str, int]


class HealthOut(Schema):
    """The service lives, or is ready."""

    status: Literal["ok"] = "ok"


def picture_url(record: ImageRecord, what: Literal["file", "thumbnail"]) -> str:
    """Where a picture's file or thumbnail is served, relative to the service's root."""
    query = urlencode({"collection": record.collection})
    return f"/images/{quote(record.id, safe='')}/{what}?{query}"
