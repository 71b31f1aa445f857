"""What every encoder offers, and what encoders of pictures share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from lookalike.errors import EmbeddingFailedError, InvalidParameterError
from lookalike.records import MOST_RESIZED, ModelSpec, Preprocess, nfc

if TYPE_CHECKING:
    from lookalike.models.head import Head

Item = Image.Image | str
"""What an encoder takes: an upright RGB picture, or a text."""

Features = Any
"""One item ready for its network; what it is, only the encoder that prepared it knows."""

Vectors = NDArray[np.float32]
"""Unit vectors: (N, dim) float32, rows of length 1."""

MAX_TEXT = 1000
"""Characters of a text that an encoder takes; what its network reads of them may be less."""

_DECODED_SHARE = 0.875


class Modality(StrEnum):
    """A kind of item that an encoder takes."""

    IMAGE = "image"
    TEXT = "text"


class Encoder(Protocol):
    """The network without its classifier: prepared items in, unit vectors out.

    `prepare` may run on many threads at once; `encode` is called by one thread at a time.
    """

    @property
    def spec(self) -> ModelSpec:
        """What made the vectors; two encoders with the same digest have one vector space."""

    @property
    def modalities(self) -> frozenset[Modality]:
        """The kinds of items that `prepare` takes; their vectors can be compared."""

    @property
    def head(self) -> Head | None:
        """The head on the network, if any; it turns vectors of the network alone into these."""

    @property
    def provenance(self) -> Mapping[str, str]:
        """Recorded beside the spec: `precision`, `runtime`, `device`, library versions."""

    @property
    def decode_size(self) -> int:
        """Shorter side, in pixels, below which a decoder must not shrink a picture."""

    def prepare(self, item: Item) -> Features:
        """Prepares one item.

        Raises `InvalidParameterError` if its kind is not in `modalities`, or the text cannot be
        used; the error says what can be.
        """

    def encode(self, batch: Sequence[Features]) -> Vectors:
        """Turns N prepared items into (N, dim) float32 rows of length 1.

        Raises:
            EmbeddingFailedError: The network fails, or an item is not what `prepare` returns.
        """


@dataclass(frozen=True, slots=True)
class Texts:
    """How an encoder of pictures takes texts, too; `tokenize` may run on many threads at once."""

    tokenize: Callable[[str], NDArray[np.int64]]  # a text -> (length,), the same length for all
    forward: Callable[[NDArray[np.int64]], NDArray[np.float32]]  # (N, length) -> (N, dim)


class ImageEncoder:
    """What encoders of square pictures share; they add `_embed`, and perhaps texts."""

    modalities = frozenset({Modality.IMAGE})
    head: Head | None = None

    def __init__(self, spec: ModelSpec, *, texts: Texts | None = None, **provenance: str) -> None:
        self.spec = spec
        self._texts = texts
        if texts is not None:
            self.modalities = frozenset(Modality)
        self.provenance = provenance | {"pillow": PIL.__version__}
        self.decode_size = least_decode_size(spec.preprocess)

    def prepare(self, item: Item) -> Features:
        """Resizes an upright RGB picture: (input_size, input_size, 3) uint8; tokenizes a text."""
        if isinstance(item, str):
            return self._prepare_text(check_text(item))
        return resize_image(item, self.spec.preprocess)

    def encode(self, batch: Sequence[Features]) -> Vectors:
        """Turns N pictures (input_size, input_size, 3) uint8, or texts, into (N, dim) vectors."""
        if len(batch) == 0:
            return np.empty((0, self.spec.dim), dtype=np.float32)
        texts = [] if self._texts is None else [one for one in batch if one.ndim == 1]
        if self._texts is None or not texts:
            return self._embed(self._stack(batch))
        vectors = np.empty((len(batch), self.spec.dim), dtype=np.float32)
        are_texts = np.array([one.ndim == 1 for one in batch])
        vectors[are_texts] = normalize(self._texts.forward(np.stack(texts)))
        if not are_texts.all():
            pictures = [one for one in batch if one.ndim != 1]
            vectors[~are_texts] = self._embed(self._stack(pictures))
        return vectors

    def _embed(self, pixels: NDArray[np.uint8]) -> Vectors:
        """Turns (N, input_size, input_size, 3) uint8 into (N, dim) unit vectors."""
        raise NotImplementedError

    def _prepare_text(self, text: str) -> Features:
        """Refuses a text unless the encoder has words."""
        if self._texts is not None:
            return self._texts.tokenize(text)
        from lookalike.models.registry import models_with_text  # noqa: PLC0415 - it imports this

        raise InvalidParameterError(
            f"The model {self.spec.model} takes pictures, not texts. Models that take both: "
            f"{', '.join(models_with_text())}"
        )

    def _stack(self, batch: Sequence[Features]) -> NDArray[np.uint8]:
        """Checks and stacks prepared pictures: (N, input_size, input_size, 3) uint8."""
        side = self.spec.preprocess.input_size
        for picture in batch:
            if picture.shape != (side, side, 3) or picture.dtype != np.uint8:
                raise EmbeddingFailedError(
                    f"Expected pictures of ({side}, {side}, 3) uint8, "
                    f"got {picture.shape} {picture.dtype}"
                )
        return np.stack(batch) if len(batch) else np.empty((0, side, side, 3), np.uint8)


def check_text(text: str) -> str:
    """A text without spaces around it, in composed Unicode (NFC).

    Raises `InvalidParameterError` if it is empty, longer than `MAX_TEXT`, or not Unicode.
    """
    text = nfc(text).strip()
    if not text:
        raise InvalidParameterError("The text is empty: write what to look for")
    if len(text) > MAX_TEXT:
        raise InvalidParameterError(
            f"The text has {len(text):,} characters; write at most {MAX_TEXT:,}"
        )
    if not text.isprintable() and any("\ud800" <= one <= "\udfff" for one in text):
        raise InvalidParameterError("The text holds half of a character: send it as UTF-8")
    return text


def normalize(features: NDArray[np.float32]) -> Vectors:
    """Scales each row of (N, dim) float32 to length 1.

    Raises `EmbeddingFailedError` if a row has no direction: all zeros, a NaN or an infinity.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)  # (N, 1)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise EmbeddingFailedError(
            "The network answered with zeros, infinities or NaN: its weights may be damaged, or "
            "the precision too low for them (try precision float32)"
        )
    return np.ascontiguousarray(features / lengths, dtype=np.float32)


def least_decode_size(preprocess: Preprocess) -> int:
    """Shorter side, in pixels, that a reduced decode leaves at least.

    An eighth more than the input, or what `crop` starts from if that is more. Measured on
    pictures of 4 to 12 megapixels, the vector moves by less than a twentieth of its distance to
    the nearest other picture's.
    """
    share = preprocess.crop_share if preprocess.resize == "crop" else _DECODED_SHARE
    return round(preprocess.input_size / min(share, _DECODED_SHARE))


def resize_image(image: Image.Image, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Resizes an upright RGB picture as torchvision does: (input_size, input_size, 3) uint8.

    `mean` and `std` are left to the network.
    """
    filter = Image.Resampling[preprocess.interpolation.upper()]
    if preprocess.resize == "squash":
        resized = image.resize(preprocess.resized(image.size), filter)
    else:
        resized = {"crop": _crop, "pad": _pad}[preprocess.resize](image, preprocess, filter)
    return np.array(resized, dtype=np.uint8)


def _crop(image: Image.Image, preprocess: Preprocess, filter: Image.Resampling) -> Image.Image:
    """Does what Resize of the shorter side and CenterCrop do in torchvision."""
    side = preprocess.input_size
    width, height = preprocess.resized(image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    box = (left, top, left + side, top + side)
    if width * height <= MOST_RESIZED:
        return image.resize((width, height), filter).crop(box)
    # A long strip of a picture would take gigabytes: resize only the part that remains.
    across, down = image.width / width, image.height / height
    part = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
    return image.resize((side, side), filter, box=part)


def _pad(image: Image.Image, preprocess: Preprocess, filter: Image.Resampling) -> Image.Image:
    """Fits the whole picture into the square and fills the rest with the border's color."""
    side = preprocess.input_size
    red, green, blue = preprocess.padding
    square = Image.new("RGB", (side, side), (red, green, blue))
    fitted = image.resize(preprocess.resized(image.size), filter)
    square.paste(fitted, ((side - fitted.width) // 2, (side - fitted.height) // 2))
    return square
