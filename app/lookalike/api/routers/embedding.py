"""POST /embed, and POST /v1/embeddings as OpenAI has it: vectors of pictures and texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Request, UploadFile
from pydantic import ConfigDict, Field

from lookalike.api.deps import COLLECTION_PATTERN, Parts, PartsDep, known_fields
from lookalike.api.errors import responses
from lookalike.api.security import READ
from lookalike.api.uploads import IndexRoute, JsonRoute
from lookalike.errors import InvalidParameterError, RequestTooLargeError
from lookalike.models.encoders import Vector
from lookalike.records import DEFAULT_COLLECTION
from lookalike.schemas import (
    EmbeddingOut,
    EmbeddingsOut,
    EmbedOut,
    ModelOut,
    Schema,
    UsageOut,
)
from lookalike.services.queries import Part, packed
from lookalike.services.search import Stopwatch

MAX_TEXTS = 256  # of one call
_TEXTS_BYTES = 1_000_000

Encoding = Literal["float", "base64"]


class TextsRoute(JsonRoute):
    """A route that takes texts as JSON; it holds a place in the queue once they are here."""

    too_large = RequestTooLargeError
    more_bytes = _TEXTS_BYTES

    def admit(self, parts: Parts, client: str | None) -> None:
        """Refuses a request that the queue has no room for."""
        parts.admission.check(client)


class EmbeddingsIn(Schema):
    """Texts, as OpenAI's interface has them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: str | Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)] = Field(
        examples=["red"]
    )
    """A text, or a list of texts"""
    model: str | None = None
    """The model that is to make the vectors; it must be that of the collection"""
    encoding_format: Annotated[Encoding, Field(description="Numbers, or base64 of float32")] = (
        "float"
    )
    dimensions: int | None = None
    """How many numbers a vector is to have; it must be what the model makes"""
    user: str | None = None
    """Not looked at"""
    collection: str = Field(DEFAULT_COLLECTION, pattern=COLLECTION_PATTERN)
    """Whose model makes the vectors; OpenAI has no such field"""


router = APIRouter(route_class=IndexRoute, tags=["search"])
_texts = APIRouter(route_class=TextsRoute)


@router.post(
    "/embed",
    response_model=EmbedOut,
    summary="Get the vectors of pictures and texts",
    responses=responses(400, 401, 404, 408, 409, 413, 415, 422, 503, 507),
    dependencies=[*READ, known_fields("file", "text", "collection", "encoding")],
)
def embed(
    parts: PartsDep,
    file: Annotated[list[UploadFile], File(description="Pictures")] = [],  # noqa: B006 - FastAPI copies these
    text: Annotated[list[str], Form(description="Texts, for models that take texts")] = [],  # noqa: B006
    collection: Annotated[
        str, Form(pattern=COLLECTION_PATTERN, description="Whose model makes the vectors")
    ] = DEFAULT_COLLECTION,
    encoding: Annotated[
        Encoding, Form(description="float: numbers; base64: of float32 numbers, little endian")
    ] = "float",
) -> EmbedOut:
    """Vectors of length 1, in the order of what was sent: pictures first, then texts."""
    watch = Stopwatch()
    asked = [Part(picture=one.file) for one in file if one.filename or one.size]
    asked += [Part(text=one) for one in text if one.strip()]
    if not asked:
        raise InvalidParameterError("Nothing to embed: send file or text, e.g. -F file=@photo.jpg")
    with watch.stage("embed"):
        spec, vectors = parts.services.search.embed(asked, collection)
    took_ms = watch.took_ms()
    parts.metrics.stages("embed", took_ms)
    return EmbedOut(
        collection=collection,
        model=ModelOut.of(spec),
        encoding=encoding,
        vectors=_shown(vectors, encoding),
        took_ms=took_ms,
    )


@_texts.post(
    "/v1/embeddings",
    summary="Get the vectors of texts, as clients of OpenAI ask for them",
    responses=responses(400, 401, 404, 408, 409, 413, 422, 503),
    dependencies=READ,
)
def embeddings(request: Request, asked: EmbeddingsIn, parts: PartsDep) -> EmbeddingsOut:
    """As POST /embed, for texts alone, with the fields of OpenAI's interface."""
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    wanted = [Part(text=one) for one in texts]
    with parts.admission.place(parts.proxies.client_of(request)):
        spec, vectors = parts.services.search.embed(wanted, asked.collection)
    given = {"model": (asked.model, spec.model), "dimensions": (asked.dimensions, spec.dim)}
    for name, (wants, has) in given.items():
        if wants not in {None, has}:
            raise InvalidParameterError(
                f"{name} is {wants!r}, and the model of the collection {asked.collection!r} has "
                f"{has!r}; leave it out, or name another collection"
            )
    words = sum(len(one.split()) for one in texts)
    shown = enumerate(_shown(vectors, asked.encoding_format))
    return EmbeddingsOut(
        data=[EmbeddingOut(index=index, embedding=one) for index, one in shown],
        model=spec.model,
        usage=UsageOut(prompt_tokens=words, total_tokens=words),
    )


def _shown(vectors: Sequence[Vector], encoding: Encoding) -> list[Any]:
    return [packed(one) if encoding == "base64" else one.tolist() for one in vectors]


router.include_router(_texts)
