"""Services with several color models, to move collections between."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lookalike.files.disk import LocalFiles
from lookalike.media.decoder import ImageDecoder
from lookalike.media.sources import PictureSource
from lookalike.models.base import Encoder
from lookalike.models.color import ColorEncoder
from lookalike.models.encoders import Encoders
from lookalike.models.head import Head, HeadedEncoder, HeadSpec
from lookalike.models.spec import ModelRequest
from lookalike.progress import Progress
from lookalike.records import ModelSpec
from lookalike.services.indexing import IndexingService, IndexItem
from lookalike.services.pictures import PictureService
from lookalike.services.pipeline import PutGate
from lookalike.services.reembedding import CollectionModels, ReembeddingService
from lookalike.services.search import SearchOptions, SearchService
from lookalike.store.base import Store, scan, spec_of
from tests.store.helpers import vector_of

OLD = ModelRequest(model="color", weights="none", input_size=32)
NEW = ModelRequest(model="color", weights="none", input_size=24)
HEADED = ModelRequest(model="color", weights="none", input_size=32, head="7")


def make(request: ModelRequest) -> Encoder:
    """A color encoder of some size, perhaps with a head that its number decides."""
    color = ColorEncoder(grid=(request.input_size or 32) // 8)
    if request.head is None:
        return color
    return HeadedEncoder(color, make_head(int(request.head), color.spec))


def make_head(number: int, backbone: ModelSpec | None = None) -> Head:
    """A head that its number decides, for the model OLD unless another is given."""
    backbone = backbone or ColorEncoder().spec
    numbers = np.random.default_rng(number)
    spec = HeadSpec(dim_in=backbone.dim, dim_out=6)
    tensors = {
        name: numbers.uniform(0.1, 1, size=shape).astype(np.float32)
        for name, shape in spec.shapes().items()
    }
    return Head(spec, tensors, backbone=backbone)


def picture(number: int) -> bytes:
    """A picture unlike any other: 48 colors that follow from the number."""
    colors = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(colors).resize((48, 48), Image.Resampling.NEAREST).save(out, "PNG")
    return out.getvalue()


def some(count: int, *, start: int = 0) -> dict[str, bytes]:
    return {f"p{number}": picture(number) for number in range(start, start + count)}


class Watched(Progress):
    """Remembers what is reported, and may do something at each check."""

    def __init__(self, at_step: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.at_step = at_step
        self.told: list[tuple[int, int]] = []
        self.errors: list[str] = []

    def check(self) -> None:
        self.at_step()

    def report(self, done: int, total: int, *, stage: str = "") -> None:
        self.told.append((done, total))

    def error(self, text: str) -> None:
        self.errors.append(text)


@dataclass
class World:
    """The services around one store, with the model OLD as the default."""

    store: Store
    folder: Path
    made: list[ModelRequest] = field(default_factory=list)
    default: ModelRequest = OLD

    def __post_init__(self) -> None:
        self.heads: dict[str, Any] = {}
        self.encoders = Encoders(self.make(self.default), queue_size=64)
        self.made.clear()
        self.files = LocalFiles(self.folder)
        decoder, gate = ImageDecoder(), PutGate()
        self.pictures = PictureService(self.store, self.files, decoder, max_metadata_bytes=16_384)
        self.search = SearchService(self.encoders, self.store, decoder)
        self.indexing = IndexingService(
            self.encoders, self.store, self.files, decoder, group=4, gate=gate
        )
        self.models = CollectionModels(
            self.encoders,
            self.store,
            make=self.make,
            default=self.default,
            keep_head=lambda head: self.heads[head.digest],
        )
        self.reembedding = ReembeddingService(
            self.store, self.pictures, gate=gate, models=self.models, batch=4, slice_s=0.2
        )

    def make(self, request: ModelRequest) -> Encoder:
        self.made.append(request)
        encoder = make(request)
        if encoder.head is not None:
            self.heads[encoder.head.digest] = request.head
        return encoder

    def index(self, pictures: dict[str, bytes]) -> list[IndexItem]:
        return list(self.indexing.index(sources(pictures)))

    def move(self, request: ModelRequest, watched: Watched | None = None) -> str:
        return self.reembedding.run("default", request, watched or Watched())

    def check(self, pictures: dict[str, bytes], request: ModelRequest) -> None:
        """The collection holds these pictures, with what the encoder that is asked for computes."""
        encoder = make(request)
        spec = spec_of(self.store, "default")
        assert spec is not None
        assert spec.digest == encoder.spec.digest
        pages = scan(self.store, "default")
        assert {record.id for page in pages for record in page.records} == set(pictures)
        expected = vectors(encoder, list(pictures.values()))
        for row, image_id in enumerate(pictures):
            held = vector_of(self.store, "default", image_id)
            assert np.allclose(held, expected[row], atol=1e-6)
        for row, data in list(enumerate(pictures.values()))[:7]:
            options = SearchOptions(k=len(pictures))
            matches = self.search.search(io.BytesIO(data), options).matches
            scores = {match.record.id: match.score for match in matches}
            direct = expected.astype(np.float64) @ expected[row].astype(np.float64)
            for place, image_id in enumerate(pictures):
                assert abs(scores[image_id] - direct[place]) < 1e-5

    def close(self) -> None:
        self.indexing.close()
        self.encoders.close()
        self.store.close()


def sources(pictures: dict[str, bytes]) -> Iterator[PictureSource]:
    for image_id, data in pictures.items():
        yield PictureSource(
            filename=f"{image_id}.png", size=len(data), file=io.BytesIO(data), id=image_id
        )


def vectors(encoder: Encoder, pictures: Sequence[bytes]) -> np.ndarray:
    """What an encoder makes of pictures, one after the other: (N, dim) float32."""
    decoder = ImageDecoder()
    rows = []
    for data in pictures:
        image = decoder.decode(data, decode_size=encoder.decode_size).image
        rows.append(encoder.encode([encoder.prepare(image)])[0])
    return np.stack(rows)
