"""POST /search, POST /search/url and GET /images/{image_id}/similar."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Request, Response, UploadFile
from fastapi import Query as QueryParameter
from fastapi.exceptions import RequestValidationError
from pydantic import ConfigDict, Field, ValidationError, WithJsonSchema

from lookalike.api.deps import (
    COLLECTION_PATTERN,
    FILTER_HELP,
    FILTER_REFERENCE,
    CollectionQuery,
    FilterQuery,
    ImageId,
    Parts,
    PartsDep,
    known_fields,
)
from lookalike.api.errors import responses
from lookalike.api.security import READ
from lookalike.api.uploads import BatchRoute, JsonRoute, UploadRoute
from lookalike.errors import (
    ClientGoneError,
    InvalidParameterError,
    LookalikeError,
    RequestTooLargeError,
)
from lookalike.media.decode import Crop
from lookalike.records import DEFAULT_COLLECTION, LIMITS, Effort, counted
from lookalike.schemas import BatchOut, FailedOut, ItemError, Schema, SearchOut
from lookalike.services.queries import (
    MAX_PARTS,
    Combine,
    Part,
    Query,
    crop_of,
    numbers_of,
    vector_of,
)
from lookalike.services.search import MAX_FOUND, MAX_K, SearchOptions, SearchResult
from lookalike.store.filters import Filter, parse_filter

# The same as form fields, as query parameters, and in a body of JSON.
MAX_QUERIES = 100  # of a batch
MAX_EMBEDDED = 64  # files and texts of its queries together, each as often as it is named
PARAMETERS = ("nprobe", "ef_search", "k_factor", "exact")
K = Annotated[int, Field(ge=1, le=MAX_K, description="How many matches")]
_OFFSET = f"For the next page: matches to leave out before them; with k at most {MAX_FOUND:,}"
Offset = Annotated[int, Field(ge=0, lt=MAX_FOUND, description=_OFFSET)]
FLIP_HELP = "Of each picture, its mirror image counts as much as itself"
COMBINE_HELP = (
    "mean: the weighted sum of all; any: like one of those with a weight above 0, whichever is "
    "nearest, and not like those below"
)
CropIn = Annotated[list[float], Field(min_length=4, max_length=4)]
MinScore = Annotated[float, Field(ge=-1, le=1, description="Leave out matches below this cosine")]
_NPROBE = "Of an IVF index: lists that are visited; the index's own if not given"
_EF_SEARCH = "Of an HNSW index: candidates kept on the way; the index's own if not given"
_K_FACTOR = "Of a compressed index: candidates scored exactly for each match; its own if not given"
Nprobe = Annotated[int | None, Field(ge=1, le=LIMITS["nprobe"], description=_NPROBE)]
EfSearch = Annotated[int | None, Field(ge=1, le=LIMITS["ef_search"], description=_EF_SEARCH)]
KFactor = Annotated[int | None, Field(ge=1, le=LIMITS["k_factor"], description=_K_FACTOR)]
Exact = Annotated[bool, Field(description="Score every picture, whatever the index")]


class OptionsIn(Schema):
    """What a search takes as JSON, beside what is asked."""

    model_config = ConfigDict(extra="forbid", strict=True)

    flip: Annotated[bool, Field(description=FLIP_HELP)] = False
    k: K = 10
    offset: Offset = 0
    min_score: MinScore = -1.0
    filter: Annotated[dict[str, Any], WithJsonSchema(FILTER_REFERENCE)] | None = None
    """Conditions on metadata, e.g. {"label": "cat"}"""
    group_by: str | None = Field(None, min_length=1, max_length=256)
    """Only the best of each value of this metadata field"""
    collection: str = Field(DEFAULT_COLLECTION, pattern=COLLECTION_PATTERN)
    """Where to search"""
    nprobe: Nprobe = None
    ef_search: EfSearch = None
    k_factor: KFactor = None
    exact: Exact = False

    @property
    def options(self) -> SearchOptions:
        """The options, checked; raises as they do."""
        same = ("collection", "k", "offset", "min_score", "group_by")
        return SearchOptions(
            **{name: getattr(self, name) for name in same},
            where=None if self.filter is None else Filter.parse(self.filter),
            effort=Effort(**{name: getattr(self, name) for name in PARAMETERS}),
        )


class UrlSearchIn(OptionsIn):
    """A search by the picture at an address."""

    url: str = Field(min_length=1, max_length=2048, examples=["https://example.com/photo.jpg"])
    """Where the picture is; http or https"""
    crop: CropIn | None = None
    """The part of the picture that counts: left, top, width and height, in fractions of it"""


class PartIn(Schema):
    """One thing that a query asks for: one of `file`, `text`, `id` and `vector`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    file: Annotated[int, Field(ge=0)] | None = None
    """Which of the files that were sent, counted from 0"""
    text: str | None = None
    id: str | None = None
    vector: list[float] | str | None = None
    """Numbers, or base64 of float32 numbers, little endian"""
    weight: float = 1.0
    """Below 0: not like this"""
    crop: CropIn | None = None
    """Of a file, the part that counts: left, top, width and height, in fractions of it"""

    @property
    def embeds(self) -> bool:
        """Whether it needs the encoder."""
        return self.file is not None or self.text is not None

    def part(self, files: Sequence[Any]) -> Part:
        """The part, with its file."""
        picture = None
        if self.file is not None:
            if self.file >= len(files):
                raise InvalidParameterError(
                    f"file is {self.file}, and {counted(len(files), 'file')} came; the first is 0"
                )
            picture = files[self.file]
        return Part(
            picture=picture,
            text=self.text,
            id=self.id,
            vector=vector_of(self.vector) if isinstance(self.vector, str) else self.vector,
            weight=self.weight,
            crop=None if self.crop is None else crop_of(self.crop),
        )


class QueryIn(OptionsIn):
    """One query of a batch."""

    parts: list[PartIn] = Field(min_length=1, max_length=MAX_PARTS)
    combine: Literal["mean", "any"] = "mean"
    """mean: like all of them; any: like one of them"""

    def query(self, files: Sequence[Any]) -> Query:
        """What is asked, with its files."""
        parts = [part.part(files) for part in self.parts]
        return Query.parse(parts, combine=self.combine, flip=self.flip)


class BatchIn(Schema):
    """Many queries."""

    model_config = ConfigDict(extra="forbid", strict=True)

    queries: list[QueryIn] = Field(
        min_length=1,
        max_length=MAX_QUERIES,
        examples=[[{"parts": [{"text": "red"}], "k": 5}]],
    )


class UrlRoute(JsonRoute):
    """A route that fetches a picture.

    No place is held while the body comes or the picture is fetched: either may be slow.
    """

    too_large = RequestTooLargeError

    def admit(self, parts: Parts, client: str | None) -> None:
        """Refuses a request that the setting forbids, or that the queue has no room for."""
        parts.services.search.require_fetcher()
        parts.admission.check(client)


_FIELDS = (
    *("file", "text", "id", "vector", "file_weight", "text_weight", "id_weight", "vector_weight"),
    *("crop", "combine", "flip", "k", "offset", "min_score", "filter", "group_by", "collection"),
    *PARAMETERS,
)

router = APIRouter(route_class=UploadRoute, tags=["search"])
_by_url = APIRouter(route_class=UrlRoute)
_batches = APIRouter(route_class=BatchRoute)
similar = APIRouter(prefix="/images", tags=["images"])


def _weights(what: str) -> Any:
    text = f"One weight for each {what}, 1 if none is given; below 0: not like this"
    return Form(description=text)


@router.post(
    "/search",
    response_model=SearchOut,
    summary="Find the pictures most like yours",
    responses=responses(400, 401, 404, 408, 409, 413, 415, 422, 503, 507),
    dependencies=[*READ, known_fields(*_FIELDS)],
)
def search(
    parts: PartsDep,
    file: Annotated[list[UploadFile], File(description="One picture, or several")] = [],  # noqa: B006 - FastAPI copies these, and Swagger UI must see that they are empty
    text: Annotated[
        list[str], Form(description="What to look for in words, for models that know words")
    ] = [],  # noqa: B006
    id: Annotated[
        list[str], Form(description="Ids of stored pictures, which are no matches then")
    ] = [],  # noqa: B006
    vector: Annotated[
        list[str], Form(description="A vector as POST /embed gives it: a JSON list, or base64")
    ] = [],  # noqa: B006
    file_weight: Annotated[list[str], _weights("file")] = [],  # noqa: B006
    text_weight: Annotated[list[str], _weights("text")] = [],  # noqa: B006
    id_weight: Annotated[list[str], _weights("id")] = [],  # noqa: B006
    vector_weight: Annotated[list[str], _weights("vector")] = [],  # noqa: B006
    crop: Annotated[
        list[str],
        Form(
            description="For each file the part that counts, as left,top,width,height in "
            "fractions of the picture: 0.25,0,0.5,1"
        ),
    ] = [],  # noqa: B006
    combine: Annotated[Combine, Form(description=COMBINE_HELP)] = Combine.MEAN,
    flip: Annotated[bool, Form(description=FLIP_HELP)] = False,
    k: Annotated[K, Form()] = 10,
    offset: Annotated[Offset, Form()] = 0,
    min_score: Annotated[MinScore, Form()] = -1.0,
    filter: Annotated[str, Form(description=FILTER_HELP)] = "",
    group_by: Annotated[
        str, Form(description="Only the best match of each value of this metadata field")
    ] = "",
    collection: Annotated[
        str, Form(pattern=COLLECTION_PATTERN, description="Where to search")
    ] = DEFAULT_COLLECTION,
    nprobe: Annotated[Nprobe, Form()] = None,
    ef_search: Annotated[EfSearch, Form()] = None,
    k_factor: Annotated[KFactor, Form()] = None,
    exact: Annotated[Exact, Form()] = False,
) -> SearchOut:
    """Send a picture as `file`, or several things at once; get the most similar pictures.

    Pictures, texts, ids of stored pictures and vectors count together, each with its weight.
    """
    options = SearchOptions(
        collection=collection,
        k=k,
        offset=offset,
        min_score=min_score,
        where=parse_filter(filter),
        group_by=group_by or None,
        effort=Effort(nprobe=nprobe, ef_search=ef_search, k_factor=k_factor, exact=exact),
    )
    files = [one.file for one in file if one.filename or one.size]  # a form's empty field is none
    crops = _crops(crop, len(files))
    query = Query(
        parts=[
            *_parts("picture", files, file_weight, crop=crops),
            *_parts("text", _given(text), text_weight),
            *_parts("id", [one for given in id for one in _given(given.split(","))], id_weight),
            *_parts("vector", [*map(_vector, _given(vector))], vector_weight),
        ],
        combine=combine,
        flip=flip,
    )
    result = parts.services.search.search(query, options)
    return _answer(parts, "search", result)


def _given(texts: Sequence[str]) -> list[str]:
    """Those that are not empty: Swagger UI sends an empty text for no text."""
    return [text.strip() for text in texts if text.strip()]


def _parts(
    kind: str, values: Sequence[Any], weights: Sequence[str], **others: Sequence[Any]
) -> list[Part]:
    """A part for each value, with its weight. Weights are repeated fields, or lists of numbers."""
    numbers = [one for text in _given(weights) for one in numbers_of(text)]
    if numbers and len(numbers) != len(values):
        name = "file" if kind == "picture" else kind
        raise InvalidParameterError(
            f"{name}_weight has {counted(len(numbers), 'number')}, and {name} was sent "
            f"{counted(len(values), 'time')}; send one for each, or none at all"
        )
    every = {kind: values, "weight": numbers or [1.0] * len(values), **others}
    return [Part(**dict(zip(every, one, strict=True))) for one in zip(*every.values(), strict=True)]


def _crops(given: Sequence[str], count: int) -> list[Crop | None]:
    """One crop for each of so many files; an empty text takes the whole picture."""
    crops: list[Crop | None] = []
    for text in given:
        numbers = numbers_of(text)
        crops += [crop_of(numbers[at : at + 4]) for at in range(0, len(numbers), 4)] or [None]
    if not any(crops):
        return [None] * count
    if len(crops) != count:
        raise InvalidParameterError(
            f"{counted(len(crops), 'crop')} for {counted(count, 'file')}; send one for each, in "
            "their order (an empty one for a whole picture), or none at all"
        )
    return crops


def _vector(text: str) -> Any:
    """The numbers of a vector, from a JSON list or base64."""
    if not text.startswith("["):
        return vector_of(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidParameterError(f"vector is not a valid JSON list: {exc}") from exc


@_batches.post(
    "/search/batch",
    response_model=BatchOut,
    summary="Answer many queries",
    responses={
        207: {"model": BatchOut, "description": "Some of the queries failed"},
        **responses(400, 401, 408, 413, 422, 503, 507),
    },
    dependencies=[*READ, known_fields("queries", "file")],
    openapi_extra={
        "requestBody": {
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/BatchIn"}}}
        }
    },
)
def search_batch(
    parts: PartsDep,
    response: Response,
    queries: Annotated[
        str, Form(description='JSON: {"queries": [{"parts": [{"file": 0}], "k": 5}]}')
    ],
    file: Annotated[list[UploadFile], File(description="The files of all queries")] = [],  # noqa: B006
) -> BatchOut:
    """Send queries as JSON, or in a form as `queries` with `file`s that their parts count from 0.

    A query that fails answers with its own error and harms no other.
    """
    try:
        asked = BatchIn.model_validate_json(queries).queries
    except ValidationError as exc:
        errors = [{**one, "loc": ("body", *one["loc"])} for one in exc.errors()]
        raise RequestValidationError(errors) from exc
    if sum(one.k for one in asked) > MAX_FOUND:
        raise InvalidParameterError(
            f"The queries ask for more than {MAX_FOUND:,} matches together; send fewer at a time"
        )
    if sum(part.embeds for one in asked for part in one.parts) > MAX_EMBEDDED:
        raise InvalidParameterError(
            f"The queries have more than {MAX_EMBEDDED} files and texts together; send fewer at a "
            "time"
        )
    files = [one.file for one in file]
    results: list[SearchOut | FailedOut] = []
    for one in asked:
        try:
            result = parts.services.search.search(one.query(files), one.options)
            results.append(_answer(parts, "search_batch", result))
        except ClientGoneError:
            raise
        except LookalikeError as exc:
            results.append(FailedOut(error=ItemError(code=exc.code, detail=str(exc))))
    failed = sum(isinstance(one, FailedOut) for one in results)
    response.status_code = 207 if failed else 200
    return BatchOut(results=results, failed=failed)


@_by_url.post(
    "/search/url",
    summary="Find the pictures most like the one at an address",
    responses=responses(400, 401, 403, 404, 408, 409, 413, 415, 422, 502, 503, 504, 507),
    dependencies=READ,
)
def search_url(request: Request, query: UrlSearchIn, parts: PartsDep) -> SearchOut:
    """The same answer as POST /search gives; LOOKALIKE_FETCH_URLS turns it on."""
    slot = partial(parts.admission.place, parts.proxies.client_of(request))
    how: dict[str, Any] = {"crop": query.crop and crop_of(query.crop), "flip": query.flip}
    result = parts.services.search.search_url(query.url, query.options, slot=slot, **how)
    return _answer(parts, "search_url", result)


@similar.get(
    "/{image_id}/similar",
    summary="Find the pictures most like a stored one",
    responses=responses(401, 404, 409, 422, 503),
    dependencies=READ,
)
def similar_images(
    image_id: ImageId,
    parts: PartsDep,
    k: K = 10,
    offset: Offset = 0,
    min_score: Annotated[
        float | None, QueryParameter(ge=-1, le=1, description="Leave out matches below this cosine")
    ] = None,
    filter: FilterQuery = None,
    group_by: Annotated[
        str | None,
        QueryParameter(
            min_length=1, max_length=256, description="Only the best of each value of this field"
        ),
    ] = None,
    collection: CollectionQuery = DEFAULT_COLLECTION,
    nprobe: Nprobe = None,
    ef_search: EfSearch = None,
    k_factor: KFactor = None,
    exact: Exact = False,
) -> SearchOut:
    """The same answer as POST /search gives; the picture itself is left out."""
    options = SearchOptions(
        collection=collection,
        k=k,
        offset=offset,
        min_score=min_score,
        where=parse_filter(filter),
        group_by=group_by,
        effort=Effort(nprobe=nprobe, ef_search=ef_search, k_factor=k_factor, exact=exact),
    )
    result = parts.services.search.similar(image_id, options)
    return _answer(parts, "similar", result)


def _answer(parts: Parts, call: str, result: SearchResult) -> SearchOut:
    parts.metrics.stages(call, result.took_ms)
    return SearchOut.of(result, parts.links)


router.include_router(_by_url)
router.include_router(_batches)
