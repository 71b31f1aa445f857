"""What the service answers and the Python clients return: one type for each, as it is in JSON.

`docs/api.md` and `/openapi.json` describe these types.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasGenerator,
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
)

from lookalike.records import Access, CollectionInfo, DuplicateKind, Facets, Why
from lookalike.store.jobs import JobState

if TYPE_CHECKING:
    from lookalike.models.encoders import LiveEncoder
    from lookalike.services.explaining import Explanation
    from lookalike.services.pictures import Changed, Chosen


class Schema(BaseModel):
    """The base of all: nothing beside the fields named."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


def _sources(name: str) -> AliasChoices:
    """Where a field's value is: under its name, or inside a part of the object that has it."""
    parts = ("record", "job", "options", "preprocess")
    return AliasChoices(name, *(AliasPath(part, name) for part in parts))


class Answer(Schema):
    """The base of what is answered: read from JSON, or from what the services return."""

    model_config = ConfigDict(
        from_attributes=True, alias_generator=AliasGenerator(validation_alias=_sources)
    )

    @classmethod
    def of(cls, source: object, link: Callable[[str], str] | None = None) -> Self:
        """An object of the services as JSON; `link` says how links in it are answered."""
        return cls.model_validate(source, context=link)

    @classmethod
    def read(cls, sent: object) -> Self:
        """The JSON of a service; what a newer one says beside is passed over."""
        return cls.model_validate(sent, extra="ignore")


def _linked(address: str, info: ValidationInfo) -> str:
    return info.context(address) if callable(info.context) else address


Link = Annotated[
    str,
    AfterValidator(_linked),
    Field(description="From the service's root; where reading needs a key, a link that expires"),
]


PathText = Annotated[
    str | None,
    Field(description="Of the first file with these bytes, below what was indexed; null: unknown"),
]
Copies = Annotated[
    list[str], Field(description="Paths of other files with the same bytes, at most 100")
]
Warnings = Annotated[
    list[str],
    Field(description="What cannot match: fields that no picture has, values of another kind"),
]
Score = Annotated[float, Field(ge=-1, le=1, description="Cosine similarity; higher is better")]


def _listed(grid: Any) -> Any:
    """Rows of a grid as JSON has them."""
    return grid.tolist() if hasattr(grid, "tolist") else grid


class ModelOut(Answer):
    """What made the vectors."""

    name: str = Field(validation_alias=AliasChoices("name", "model"), examples=["resnet50"])
    weights: str = Field(examples=["IMAGENET1K_V1"])
    head: Annotated[str | None, AfterValidator(lambda digest: digest and digest[:16])]
    """16 digits of the embedding head's digest, or null"""
    dim: int = Field(examples=[2048])


class AskedPartOut(Answer):
    """One part of what was asked; a picture's pixels after EXIF orientation, before the crop."""

    kind: Literal["picture", "text", "id", "vector"]
    weight: float
    text: str | None = None
    id: str | None = None
    crop: list[float] | None = None
    """Left, top, width and height, in fractions of the picture"""
    width: int | None = None
    height: int | None = None
    sha256: str | None = None


class QueryOut(Answer):
    """What was asked; pixels after EXIF orientation. Null: not one picture, new or stored."""

    width: int | None = None
    height: int | None = None
    sha256: str | None = None
    parts: list[AskedPartOut] = []
    combine: Literal["mean", "any"] = "mean"
    flip: bool = False


class MatchOut(Answer):
    """One picture that was found."""

    rank: int = Field(ge=1)
    id: str
    score: Score
    distance: float = Field(ge=0, le=2, description="sqrt(2 - 2 score)")
    filename: str
    path: PathText = None
    copies: Copies = []
    metadata: dict[str, Any]
    image_url: Link
    thumbnail_url: Link
    copy_probability: float | None = Field(
        None,
        ge=0,
        le=1,
        description="That it is a copy of the query, a whole picture; null: not calibrated",
    )


class SearchOut(Answer):
    """Matches, best first."""

    collection: str
    model: ModelOut = Field(validation_alias=AliasChoices("model", "spec"))
    query: QueryOut
    offset: int = Field(0, description="Matches that stand before these")
    matches: list[MatchOut]
    took_ms: dict[str, float] = Field(examples=[{"decode": 2.1, "embed": 24.8, "total": 28.4}])
    """Milliseconds by stage"""
    warnings: Warnings = []
    verdict: Literal["match", "no match"] | None = Field(
        None,
        description="Whether a score says that something matches; null: no threshold is known, the "
        "query is not one whole picture, or this is not the first page",
    )


class ExplainedOut(Answer):
    """One of two pictures, and what each of its positions adds to their score."""

    id: str | None
    """Null for a picture that is not stored"""
    width: int
    height: int
    sha256: str
    shares: Annotated[list[list[float]], BeforeValidator(_listed)]
    """Rows of positions from the upper left, which add up to the score"""
    seen: tuple[float, float, float, float] = Field(examples=[[0.0, 0.0, 1.0, 1.0]])
    """Where they lie: left, top, right and bottom by the picture's width and height"""


class ExplanationOut(Answer):
    """Why two pictures have their score."""

    collection: str
    model: ModelOut = Field(validation_alias=AliasChoices("model", "spec"))
    score: Score
    query: ExplainedOut
    match: ExplainedOut
    overlay: str
    """Both pictures with their shares as colors: a PNG file as a `data:` address"""
    took_ms: dict[str, float] = Field(examples=[{"decode": 9.2, "embed": 52.1, "total": 61.6}])
    """Milliseconds by stage"""

    @classmethod
    def drawn(cls, explanation: Explanation, png: bytes) -> Self:
        """An explanation with its drawing."""
        overlay = "data:image/png;base64," + b64encode(png).decode("ascii")
        names = ("collection", "spec", "score", "query", "match", "took_ms")
        facts = {name: getattr(explanation, name) for name in names}
        return cls.model_validate({**facts, "overlay": overlay})


class ItemError(Answer):
    """Why one file of several failed."""

    code: str = Field(examples=["not_an_image"])
    detail: str


class FailedOut(Answer):
    """A query of several that failed."""

    error: ItemError


class BatchOut(Answer):
    """One answer for each query, in their order."""

    results: list[SearchOut | FailedOut]
    failed: int = Field(description="Queries that failed")


class EmbedOut(Answer):
    """Vectors of what was sent, in its order: pictures first, then texts."""

    collection: str
    model: ModelOut
    encoding: Literal["float", "base64"]
    vectors: list[list[float] | str]
    """Each of length 1: numbers, or base64 of float32 numbers, little endian"""
    took_ms: dict[str, float]


class EmbeddingOut(Answer):
    """One vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class UsageOut(Answer):
    """What was embedded, in words: models here have tokens of different kinds, or none."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsOut(Answer):
    """The answer of OpenAI's interface."""

    object: Literal["list"] = "list"
    data: list[EmbeddingOut]
    model: str
    usage: UsageOut


class IndexItemOut(Answer):
    """What became of one file."""

    filename: str
    status: Literal["created", "replaced", "updated", "unchanged", "skipped", "failed"]
    id: str | None = None
    error: ItemError | None = None
    copy_of: str | None = None
    """The path of another file that has the same bytes and was seen first"""
    metadata_kept: Literal[True] | None = None
    """True if it is a copy that came with other metadata, which was not taken"""


class IndexOut(Answer):
    """What became of all files of a request."""

    collection: str
    created: int = 0
    replaced: int = 0
    updated: int = 0
    unchanged: int = 0
    skipped: int = 0
    failed: int = 0
    copies: int = Field(0, description="Files whose bytes came from another path first")
    conflicts: int = Field(0, description="Copies with other metadata, which was not taken")
    items: list[IndexItemOut]


class ImageOut(Answer):
    """A stored picture."""

    collection: str
    id: str
    sha256: str
    filename: str
    path: PathText = None
    copies: Copies = []
    media_type: str
    width: int
    height: int
    bytes: int
    metadata: dict[str, Any]
    created_at: str
    updated_at: str
    image_url: Link
    thumbnail_url: Link


class ImagesOut(Answer):
    """A stretch of a collection."""

    collection: str
    images: list[ImageOut]
    next_cursor: str | None = Field(description="Send as `cursor` for the next stretch; null: end")
    warnings: Warnings = []


class CountOut(Answer):
    """How many pictures pass a filter."""

    collection: str
    count: int
    warnings: Warnings = []


class ChangedItemOut(Answer):
    """What became of one picture."""

    id: str
    status: Literal["deleted", "updated", "failed"]
    error: ItemError | None = None


class PathsOut(Answer):
    """Where pictures of a collection were seen, below one folder, archive or manifest."""

    collection: str
    root: str
    paths: dict[str, str] = Field(description="The id of the picture that was seen at each path")


class ForgottenOut(Answer):
    """What became of pictures that lie at some paths no more."""

    collection: str
    dry_run: bool
    deleted: list[str] = Field(description="Ids of pictures that lay nowhere else")


class ChangedOut(Answer):
    """What a change of many pictures did, or in a dry run what it would do."""

    collection: str
    dry_run: bool
    matched: int = Field(description="Pictures that were chosen, when the call began")
    changed: int = Field(description="Pictures that were deleted or updated; 0 in a dry run")
    failed: int
    items: list[ChangedItemOut] = Field(
        description="What became of each picture; in a dry run, only those that would fail"
    )
    images: list[ImageOut] = Field(
        [], description="In a dry run, the first 10 pictures that would be changed, as they are"
    )
    next_cursor: str | None = Field(
        None, description="Send as `cursor` to go on with the rest; null: that was all"
    )
    warnings: Warnings = []

    @classmethod
    def of_all(
        cls,
        status: Literal["deleted", "updated"],
        chosen: Chosen,
        changed: Changed,
        *,
        dry_run: bool,
        link: Callable[[str], str] | None = None,
    ) -> Self:
        """What the service did with pictures, as JSON."""
        failed = [
            ChangedItemOut(id=one, status="failed", error=ItemError(code=why.code, detail=str(why)))
            for one, why in changed.failed.items()
        ]
        return cls(
            collection=chosen.collection,
            dry_run=dry_run,
            matched=changed.matched,
            changed=len(changed.ids),
            failed=len(failed),
            items=[ChangedItemOut(id=one, status=status) for one in changed.ids] + failed,
            images=[ImageOut.of(record, link) for record in changed.first],
            next_cursor=changed.next_cursor,
            warnings=list(changed.warnings),
        )


class FacetValueOut(Answer):
    """A value, and how many pictures have it."""

    value: str | bool | int | float | None
    count: int


def _ends(ends: Any) -> Any:
    return {"min": ends[0], "max": ends[1]} if isinstance(ends, tuple) else ends


class NumbersOut(Answer):
    """The smallest and the largest number."""

    min: int | float
    max: int | float


class DatesOut(Answer):
    """The first and the last date, as texts."""

    min: str
    max: str


class FacetOut(Answer):
    """What pictures have under a metadata field; a picture with a list has each of its items."""

    field: str
    count: int = Field(description="Pictures that have the field")
    distinct: int = Field(description="Different texts, numbers, truth values and null")
    values: list[FacetValueOut]
    """The most frequent ones, most first; texts of more than 256 characters are left out"""
    numbers: Annotated[NumbersOut | None, BeforeValidator(_ends)]
    """Null: none is a number"""
    dates: Annotated[DatesOut | None, BeforeValidator(_ends)]
    """Null: not all texts are ISO dates"""


class FacetsOut(Answer):
    """What the pictures that pass a filter have under their fields."""

    collection: str
    count: int = Field(description="Pictures that pass")
    total_fields: int = Field(description="Fields that these have, or that were named")
    facets: list[FacetOut]
    warnings: Warnings = []

    @classmethod
    def of_all(cls, collection: str, found: Facets, warnings: Sequence[str]) -> Self:
        """Facets as JSON."""
        facets = [FacetOut.of(one) for one in found.facets]
        return cls(
            collection=collection,
            count=found.count,
            total_fields=found.fields,
            facets=facets,
            warnings=list(warnings),
        )


class PassportOut(Answer):
    """What made a set of vectors."""

    model: str
    weights: str
    weights_sha256: str
    head: str | None
    pooling: str
    resize: str
    input_size: int
    dim: int
    preprocessing: int = Field(
        validation_alias=AliasChoices("preprocessing", AliasPath("preprocess", "version"))
    )
    int8: bool
    digest: str = Field(description="16 hex digits over everything that must agree")


class CollectionOut(Answer):
    """A collection."""

    name: str
    count: int
    index: str
    created_at: str
    searchable: bool = Field(description="Whether a live model made its vectors")
    passport: PassportOut = Field(validation_alias=AliasChoices("passport", "spec"))
    provenance: Mapping[str, str]
    aliases: list[str] = Field([], description="Its other names")

    @classmethod
    def of_all(cls, infos: Iterable[CollectionInfo], live: Sequence[LiveEncoder]) -> list[Self]:
        """Collections as JSON; those whose vectors were made by a `live` model are searchable."""
        names = [name for name in cls.model_fields if name not in {"searchable", "passport"}]
        return [
            cls(
                **{name: getattr(info, name) for name in names},
                passport=PassportOut.of(info.spec),
                searchable=any(not info.spec.differences(one.spec) for one in live),
            )
            for info in infos
        ]


class BinOut(Answer):
    """Pairs whose probabilities lie in one tenth, of a reliability diagram."""

    low: float
    high: float
    pairs: int
    predicted: float = Field(description="Mean probability")
    observed: float = Field(description="Share of copies")


class CopyModelOut(Answer):
    """How likely a match with a score is a copy of the query: 1 / (1 + exp(-(a + b score)))."""

    intercept: float = Field(description="a")
    slope: float = Field(description="b")
    pictures: int = Field(description="Of which copies were made")
    copies: int = Field(description="Pairs of a picture and its copy")
    others: int = Field(description="Pairs of a copy and another picture")
    duplicates: int = Field(description="Pictures left out as duplicates in the collection")
    ece: float = Field(description="Expected calibration error, on pictures that were not fitted")
    bins: list[BinOut]
    """The reliability diagram of these"""
    found: dict[str, float]
    """By kind of copy, the share with a probability of 0.5 and more"""


class NoMatchOut(Answer):
    """The score below which a query counts as without a match."""

    threshold: float = Field(ge=-1, le=2)
    by: Literal["labels", "judgements"]
    queries: int
    false_alarms: float
    """Of queries without a right picture, the share that has a match; measured on others than
    those that the threshold was chosen on"""
    found: float | None
    """Of queries with a right picture, the share whose best one is a match"""


class CalibrationOptionsOut(Answer):
    """What a calibration was made from."""

    label_field: str | None
    false_alarms: float
    sample: int
    seed: int


class CalibrationOut(Answer):
    """What the scores of a collection mean under its model."""

    created_at: str
    pictures: int = Field(description="In the collection when it was calibrated")
    options: CalibrationOptionsOut
    copy_model: CopyModelOut
    no_match: NoMatchOut | None = Field(description="Null: too little was known")
    notes: list[str]


class JudgementOut(Answer):
    """What somebody said of a match."""

    id: str
    query: str | None = Field(description="Id of the query; null: it is not in the collection")
    query_sha256: str
    match: str
    right: bool
    judged_at: str


class JudgementsOut(Answer):
    """A stretch of judgements, oldest first."""

    collection: str
    judgements: list[JudgementOut]
    next_cursor: str | None = Field(description="Send as `cursor` for the next stretch; null: end")


class VectorSetOut(Answer):
    """The vectors that one model made of a collection's pictures."""

    passport: PassportOut = Field(validation_alias=AliasChoices("passport", "spec"))
    provenance: Mapping[str, str]
    count: int = Field(description="Pictures that have a vector in it")
    active: bool = Field(description="Whether searches use it; exactly one of a collection is")


class VectorSetsOut(Answer):
    """All vectors of a collection, in the order they were made."""

    collection: str
    vectors: list[VectorSetOut]


class CollectionsOut(Answer):
    """All collections."""

    collections: list[CollectionOut]


class KeptOut(Answer):
    """The picture of a group to keep; the group says `why`."""

    id: str
    filename: str
    path: PathText = None
    copies: Annotated[list[str], Field(description="Paths of all other files of these bytes")] = []
    width: int
    height: int
    bytes: int
    image_url: Link
    thumbnail_url: Link


class DuplicateOut(KeptOut):
    """A duplicate of the picture to keep."""

    kind: DuplicateKind = Field(description="What it is to the picture to keep")
    score: Score


class DuplicateGroupOut(Answer):
    """A picture to keep, and those that are directly like it; it has copies if there are none."""

    kind: DuplicateKind = Field(description="The weakest kind among the members; exact if none")
    total_copies: Annotated[int, Field(description="Other paths of all its pictures' bytes")] = 0
    bytes_saved: int = Field(description="Bytes of all files but the one of the picture to keep")
    keep: KeptOut
    why: Annotated[Why | None, Field(description="Why it is kept, not another member")] = None
    members: list[DuplicateOut]


class DuplicatesOut(Answer):
    """Groups of duplicates, those of most files first."""

    state: Literal["ready"] = "ready"
    collection: str
    kind: DuplicateKind
    threshold: float
    total_groups: int
    total_duplicates: int = Field(description="Pictures of all groups but those to keep")
    total_copies: Annotated[int, Field(description="Other paths of the same bytes")] = 0
    bytes_saved: int = Field(description="Bytes of all files but those of the pictures to keep")
    truncated: int
    """Pictures with more neighbors than are looked at; their groups may lack some"""
    groups: list[DuplicateGroupOut]
    next_cursor: str | None = Field(description="Send as `cursor` for the next groups; null: end")


class DuplicatesRunning(Answer):
    """The search for duplicates is under way; ask again."""

    state: Literal["running"] = "running"
    done: int = Field(description="Pictures that were searched for")
    total: int = Field(description="Pictures to search for, as counted at the start")


def _as_text(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that can be answered: a path on the server need not be UTF-8."""
    text = json.dumps(dict(parameters), ensure_ascii=False)
    shown: dict[str, Any] = json.loads(text.encode("utf-8", "replace"))
    return shown


class JobOut(Answer):
    """A piece of long work."""

    id: str
    kind: str = Field(
        description="What it does: reembed, tag, index_archive, index_folder, index_manifest, "
        "backup, calibrate"
    )
    parameters: Annotated[dict[str, Any], BeforeValidator(_as_text)]
    state: JobState
    cancel_requested: bool = Field(description="Whether it ends at its next step")
    done: int = Field(
        description="Steps that are done; of reembed, pictures with a new vector; of an import, "
        "pictures that were met; of a backup, files; of a calibration, copies"
    )
    total: int | None = Field(description="Steps in all; null: not known yet")
    errors: int
    """Steps that failed; of reembed, since it last began after a restart"""
    error_texts: list[str] = Field(description="The first few errors")
    message: str
    rate: float | None = Field(description="Steps a second while it runs")
    seconds_left: float | None = Field(description="At this rate")
    created_at: str
    started_at: str | None
    updated_at: str
    finished_at: str | None


class JobsOut(Answer):
    """A stretch of jobs, newest first."""

    jobs: list[JobOut]
    next_cursor: str | None = Field(description="Send as `cursor` for the next stretch; null: end")


class KeyOut(Answer):
    """A key, without the key itself."""

    id: str = Field(description="8 hex digits, which are a part of the key", examples=["3f2a91c0"])
    name: str
    scope: Access
    created_at: str
    expires_at: str | None = Field(description="From when it opens nothing; null: never")
    expired: bool


class NewKeyOut(KeyOut):
    """A key that was just made."""

    key: str = Field(description="The key itself; it is shown this once and kept nowhere")


class KeysOut(Answer):
    """All keys that were made and not revoked, in the order made."""

    keys: list[KeyOut]


class FindingOut(Answer):
    """Something that is wrong with what is stored."""

    kind: str = Field(examples=["thumbnail"])
    """database, counter, vector, index, head, original, thumbnail or orphan"""
    text: str
    """What is wrong, and what to do if a repair does not mend it"""
    collection: str | None = None
    id: str | None = None
    """A picture's; of an orphan, the digest that names its files"""


class CheckOut(Schema):
    """What a check of a data folder found."""

    pictures: int
    findings: list[FindingOut]
    """What is wrong now"""
    repaired: list[FindingOut]
    """What was wrong before the repair"""


class AuditEntryOut(Answer):
    """A change, as the audit log has it."""

    at: str
    who: str = Field(description="Name of the key; local: a command on the data folder; job")
    key: str | None = Field(description="Id of the key, if it was made by POST /keys")
    address: str = Field(description="Where the request came from")
    call: str = Field(description="Name of the call, as in /openapi.json", examples=["index"])
    outcome: str = Field(description="done, begun, the code of an error, or a job's final state")
    details: dict[str, Any] = Field(examples=[{"collection": "default", "created": 3}])


class AuditOut(Answer):
    """A stretch of the audit log, newest first."""

    entries: list[AuditEntryOut]
    next_cursor: str | None = Field(description="Send as `cursor` for the next stretch; null: end")
