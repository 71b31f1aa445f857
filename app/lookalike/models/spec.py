"""What can be asked of a model: which one, and how it runs here; nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

from lookalike.errors import ConfigurationError
from lookalike.records import ModelSpec, Preprocess

PREPROCESSING_VERSION: Final = 1
"""Raised whenever the same file would come out as other pixels; part of the spec."""

Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]
Runtime = Literal["auto", "torch", "openvino"]

_INPUT_SIZES = range(32, 4097)  # pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """Which model is wanted; it can be built again from this, and gives the same `ModelSpec`.

    Attributes:
        model: The network's name, as in `ModelSpec`.
        weights: A name of weights, a path, or `random`.
        pooling: `avg` for the mean over positions, `flatten` for the whole last feature map.
        resize: `squash` or `crop`; the model's own if None.
        input_size: Side of the square input in pixels; the model's own if None.
        head: Path of a head's file; None for no head.
        int8: False for floats, True for the newest int8 network of this request, or the digest
            of an int8 network's spec.
    """

    model: str
    weights: str
    pooling: str = "avg"
    resize: str | None = None
    input_size: int | None = None
    head: str | None = None
    int8: bool | str = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelRequest:
        """Reads what `to_dict` wrote; fields that are not known are ignored."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    @classmethod
    def of(cls, spec: ModelSpec, *, weights: str, head: str | None) -> ModelRequest:
        """How to build again what a spec says, from where its weights and its head come."""
        network = spec.digest if spec.head is None else True
        return cls(
            model=spec.model,
            weights=weights,
            pooling=spec.pooling,
            resize=spec.preprocess.resize,
            input_size=spec.preprocess.input_size,
            head=head,
            int8=network if spec.int8 else False,
        )

    def to_dict(self) -> dict[str, Any]:
        """The request as a JSON object."""
        return asdict(self)

    def preprocess(self, own: Preprocess) -> Preprocess:
        """The model's own preprocessing, with the resize, pooling and input size asked for.

        Raises:
            ConfigurationError: A value that no model has.
        """
        size = own.input_size if self.input_size is None else self.input_size
        resize = own.resize if self.resize is None else self.resize
        for name, value, known in (
            ("pooling", self.pooling, ("avg", "flatten")),
            ("resize", resize, dict.fromkeys(("squash", "crop", own.resize))),
        ):
            if value not in known:
                raise ConfigurationError(f"Unknown {name} {value!r}: it must be {', '.join(known)}")
        if size not in _INPUT_SIZES:
            raise ConfigurationError(f"Input_size must be from 32 to 4096 pixels, not {size}")
        return replace(own, resize=resize, input_size=size, version=PREPROCESSING_VERSION)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a model runs on this machine; none of it changes what a vector means.

    Attributes:
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        runtime: `torch`, `openvino`, or `auto` for OpenVINO where it is installed and no GPU is
            used.
        precision: Of floats; `auto` takes bfloat16 on CPUs that compute it in hardware, float16
            on CUDA, and float32 otherwise.
        threads: CPU threads of one call; all cores if None.
        compiled: Whether `torch.compile` writes code for the network, which needs a CUDA device
            and takes up to minutes.
        networks: Folder of int8 networks; need not exist.
        cache: Folder where networks are kept that are converted; made if it is missing.
    """

    device: str = "auto"
    runtime: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    compiled: bool = False
    networks: Path = Path("models")
    cache: Path = Path("networks")
