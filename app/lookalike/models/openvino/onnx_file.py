"""The family `onnx`: a network in a file, which OpenVINO reads by itself, without torch."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from lookalike.errors import (
    ConfigurationError,
    EmbeddingFailedError,
    WeightsError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from lookalike.models.openvino import runtime
from lookalike.models.spec import ModelRequest, RunOptions
from lookalike.records import ModelSpec, Preprocess, file_sha256

_FLOATS: Final = ("f32", "f16", "bf16")
_POOLS: Final = ("mean", "first")
_FILTERS: Final = tuple(name.lower() for name in Image.Resampling.__members__)
_MOST_NAMED: Final = 8  # outputs that an error names


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What stands in the JSON beside the file, all of it optional.

    Attributes:
        preprocess: What becomes of a picture before the network.
        sized: Whether `input_size` was given.
        output: Name of the tensor that holds the vectors: an output, or one inside the network.
        pool: Of an output (N, tokens, C), what the vector is: the `mean` of the tokens, or the
            `first` one.
    """

    preprocess: Preprocess
    sized: bool = False
    output: str | None = None
    pool: str | None = None


def make_encoder(request: ModelRequest, run: RunOptions) -> runtime.OpenVinoEncoder:
    """Makes the encoder of an ONNX file, the request's `weights`; see `registry.Family`.

    Raises:
        WeightsNotFoundError: There is no such file, or one that it refers to is missing.
        WeightsMismatchError: The network in it does not turn pictures into vectors.
        WeightsError: The file is damaged, or no ONNX file.
        ConfigurationError: A setting, or a value of the JSON, cannot work.
    """
    _check_run(request, run)
    file = Path(request.weights).expanduser()
    sha256 = _digest(file)
    described = read_description(file.with_name(f"{file.name}.json"))
    network, own = _encoder_network(file, described, request)
    output = network.output(0).partial_shape
    if output.rank.get_length() != 2 or not output[1].is_static:
        raise _no_encoder(file, f"its output has the shape {output}, and no fixed length")
    given = {name: one for name in ("output", "pool") if (one := getattr(described, name))}
    if given:
        sha256 = hashlib.sha256(
            f"{sha256} {json.dumps(given, sort_keys=True)}".encode()
        ).hexdigest()
    spec = ModelSpec(
        model="onnx",
        weights=file.name,
        weights_sha256=sha256,
        pooling=request.pooling,
        preprocess=request.preprocess(own),
        dim=output[1].get_length(),
    )
    encoder = runtime.OpenVinoEncoder(
        network, spec=spec, precision=run.precision, threads=run.threads
    )
    _try(encoder, file)
    return encoder


def _check_run(request: ModelRequest, run: RunOptions) -> None:
    if request.int8:
        raise ConfigurationError(
            "An ONNX file is not quantized here: set another LOOKALIKE_PRECISION, or name a file "
            "that was quantized where it was made"
        )
    if run.runtime == "torch" or run.device not in {"auto", "cpu"}:
        raise ConfigurationError(
            "OpenVINO runs ONNX files, on the CPU: leave LOOKALIKE_RUNTIME and LOOKALIKE_DEVICE "
            "at auto"
        )
    runtime.import_openvino()


def read_description(path: Path) -> Described:
    """Reads the JSON beside an ONNX file; without one, all is at its default.

    Raises `ConfigurationError`, which names the field.
    """
    try:
        given = json.loads(path.read_bytes())
    except FileNotFoundError:
        return Described(preprocess=Preprocess())
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigurationError(f"{path} cannot be read as JSON: {exc}") from exc
    known = {*_CHECKS, "output", "pool"}
    if not isinstance(given, dict):
        raise ConfigurationError(f"{path} holds no JSON object; known fields: {_listed(known)}")
    for name, value in given.items():
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise ConfigurationError(
                f"{path} has an unknown field {name!r}.{hint} Known fields: {_listed(known)}"
            )
        wanted, is_right = _CHECKS.get(name, _NAMES.get(name, ("", bool)))
        if not is_right(value):
            raise ConfigurationError(f"{path}: {name} must be {wanted}, not {json.dumps(value)}")
    preprocess = {name: value for name, value in given.items() if name in _CHECKS}
    return Described(
        preprocess=Preprocess(**preprocess),
        sized="input_size" in given,
        output=given.get("output"),
        pool=given.get("pool"),
    )


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _are_three(value: object, *, least: float = -math.inf, whole: bool = False) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(_is_number(one) and one > least for one in value)
        and not (whole and not all(isinstance(one, int) and one <= 255 for one in value))
    )


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 32 <= value <= 4096


_CHECKS: Final[Mapping[str, tuple[str, Any]]] = {
    "input_size": ("a whole number of pixels from 32 to 4096", _is_size),
    "resize": ("squash, crop or pad", lambda value: value in ("squash", "crop", "pad")),
    "crop_share": (
        "a number above 0, at most 1",
        lambda value: _is_number(value) and 0 < value <= 1,
    ),
    "interpolation": (f"one of {', '.join(_FILTERS)}", lambda value: value in _FILTERS),
    "mean": ("three numbers on a scale of 0 to 1: red, green, blue", _are_three),
    "std": ("three numbers above 0", lambda value: _are_three(value, least=0)),
    "padding": (
        "three whole numbers from 0 to 255",
        lambda value: _are_three(value, least=-1, whole=True),
    ),
}
"""Field of `Preprocess` -> what it must be, and what says whether it is."""

assert {each.name for each in fields(Preprocess)} - {"version"} == set(_CHECKS)

_NAMES: Final[Mapping[str, tuple[str, Any]]] = {
    "output": ("a tensor's name", lambda value: isinstance(value, str) and bool(value)),
    "pool": (" or ".join(_POOLS), lambda value: value in _POOLS),
}


def _encoder_network(file: Path, described: Described, request: ModelRequest) -> tuple[Any, Any]:
    """The network, (N, side, side, 3) uint8 -> (N, dim) float32, and its own preprocessing."""
    openvino = runtime.import_openvino()
    try:
        model = runtime.core().read_model(file)
        taken, layout, side = _input_of(model, file)
        own = _own_preprocess(described, side, file)
        preprocess = request.preprocess(own)
        size = preprocess.input_size
        if side not in (None, size):
            raise ConfigurationError(
                f"The network in {file} takes pictures of {side} pixels alone, not {size}: leave "
                "input_size out, or export the network again with another size"
            )
        output = _output_of(model, described, file)
        wanted = [-1, 3, size, size] if layout == "NCHW" else [-1, size, size, 3]
        model.reshape({taken: openvino.PartialShape(wanted)})
        pooled = _pooled(output, layout, described.pool, request.pooling, file)
        model = openvino.Model([pooled], model.get_parameters(), "encoder")
        steps = openvino.preprocess.PrePostProcessor(model)
        steps.input().tensor().set_element_type(openvino.Type.u8)
        steps.input().tensor().set_layout(openvino.Layout("NHWC"))
        steps.input().model().set_layout(openvino.Layout(layout))
        pixels = steps.input().preprocess().convert_element_type(openvino.Type.f32)
        pixels.mean([255 * one for one in preprocess.mean])
        pixels.scale([255 * one for one in preprocess.std])
        return steps.build(), own
    except RuntimeError as exc:  # OpenVINO's only one; ours are none
        raise WeightsError(
            f"OpenVINO cannot use the network in {file} ({_reason(exc)}). Export it with inputs "
            "of any batch size (dynamic_axes in torch.onnx.export) and operators that OpenVINO "
            "knows"
        ) from exc


def _input_of(model: Any, file: Path) -> tuple[Any, str, int | None]:
    """The input of pictures, its layout, and the side that it takes; None for any."""
    if len(model.inputs) != 1:
        names = ", ".join(_name(one) for one in model.inputs)
        raise _no_encoder(file, f"it takes {len(model.inputs)} inputs ({names}) instead of one")
    (taken,) = model.inputs
    kind, shape = taken.get_element_type().get_type_name(), taken.partial_shape
    if kind not in _FLOATS or shape.rank.is_dynamic or shape.rank.get_length() != 4:
        raise _no_encoder(file, f"it takes {kind} of the shape {shape} instead of float pictures")
    fixed = [one.get_length() if one.is_static else None for one in shape]
    layout = "NHWC" if fixed[3] == 3 and fixed[1] != 3 else "NCHW"
    channels, *sides = fixed[1:] if layout == "NCHW" else [fixed[3], *fixed[1:3]]
    if channels not in (3, None):
        raise _no_encoder(file, f"it takes {channels} channels instead of 3 ({shape})")
    if sides[0] != sides[1]:
        raise _no_encoder(file, f"its pictures are no squares ({shape})")
    return taken, layout, sides[0]


def _own_preprocess(described: Described, side: int | None, file: Path) -> Preprocess:
    own = described.preprocess
    if side is None or side == own.input_size:
        return own
    if described.sized:
        raise ConfigurationError(
            f"The network in {file} takes pictures of {side} pixels, and the JSON beside it says "
            f"{own.input_size}: correct input_size there"
        )
    return replace(own, input_size=side)


def _output_of(model: Any, described: Described, file: Path) -> Any:
    """The tensor that holds the vectors."""
    if described.output is not None:
        for operation in model.get_ordered_ops():
            for output in operation.outputs():
                if described.output in output.get_names():
                    return output
        names = ", ".join(_name(one) for one in model.outputs[:_MOST_NAMED])
        raise ConfigurationError(
            f"{file} has no tensor {described.output!r}, which the JSON beside it names as "
            f"output. Its outputs: {names}"
        )
    if len(model.outputs) != 1:
        names = ", ".join(_name(one) for one in model.outputs[:_MOST_NAMED])
        raise ConfigurationError(
            f"{file} has {len(model.outputs)} outputs ({names}): name the one that holds the "
            f'vectors in {file.name}.json, as {{"output": "NAME"}}'
        )
    return model.outputs[0].get_node().input_value(0)  # what goes into the result


def _pooled(output: Any, layout: str, pool: str | None, pooling: str, file: Path) -> Any:
    """(N, dim) float32 of an output: vectors, feature maps in the input's layout, or tokens."""
    operators = runtime.import_openvino().opset13
    kind, shape = output.get_element_type().get_type_name(), output.partial_shape
    rank = shape.rank.get_length() if shape.rank.is_static else 0
    if kind not in _FLOATS or rank not in (2, 3, 4):
        raise _no_encoder(
            file,
            f"its output is {kind} of the shape {shape} instead of vectors (N, D), feature maps "
            "(N, C, h, w) or tokens (N, T, C) of floats; the JSON beside it may name another one",
        )
    if pooling == "flatten" and rank != 4:
        raise ConfigurationError(
            f"The network in {file} gives no feature maps ({shape}), so there is nothing to "
            "flatten: choose pooling avg"
        )
    if rank == 3 and pool is None:
        raise ConfigurationError(
            f"The network in {file} gives tokens ({shape}): say in {file.name}.json what the "
            'vector is, {"pool": "first"} for the first one (the class token) or {"pool": '
            '"mean"} for their mean'
        )
    floats = operators.convert(output, "f32")
    if rank == 2:
        return floats
    if rank == 3 and pool == "first":
        return operators.gather(floats, np.int64(0), np.int64(1))
    if rank == 3:
        return operators.reduce_mean(floats, np.array([1]))
    if pooling == "avg":
        return operators.reduce_mean(floats, np.array([2, 3] if layout == "NCHW" else [1, 2]))
    return operators.reshape(floats, np.array([0, -1]), special_zero=True)


def _try(encoder: runtime.OpenVinoEncoder, file: Path) -> None:
    """Embeds three pictures together and alone; raises `WeightsError` unless that agrees."""
    side = encoder.spec.preprocess.input_size
    pictures = list(np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8))
    try:
        together = encoder.encode(pictures)
        alone = np.concatenate([encoder.encode([picture]) for picture in pictures])
    except EmbeddingFailedError as exc:
        raise WeightsError(
            f"The network in {file} fails on pictures of {side} pixels ({exc}): export it with "
            "inputs of any batch size (dynamic_axes in torch.onnx.export)"
        ) from exc
    if together.shape != (3, encoder.spec.dim) or (together * alone).sum(axis=1).min() < 0.9:
        raise _no_encoder(file, "several pictures together give other vectors than each alone")


def _no_encoder(file: Path, why: str) -> WeightsMismatchError:
    return WeightsMismatchError(
        f"The network in {file} is no encoder of pictures: {why}. Export the part that turns "
        "pictures (N, 3, height, width) into vectors (N, D)"
    )


def _name(tensor: Any) -> str:
    return min(tensor.get_names(), default="without a name")


def _reason(exc: BaseException) -> str:
    """The last line of OpenVINO's text that says something."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(exc).__name__


def _digest(file: Path) -> str:
    """Sha256 of the file or, if it refers to other files, over their digests, too."""
    if file.suffix.lower() != ".onnx":
        raise WeightsError(f"{file} is no ONNX file: name a file that ends in .onnx")
    try:
        others = sorted(set(_external(file.read_bytes())))
        digests = [file_sha256(file), *(file_sha256(file.parent / one) for one in others)]
    except FileNotFoundError as exc:
        raise WeightsNotFoundError(
            f"There is no file {exc.filename}"
            + ("" if str(exc.filename) == str(file) else f", where {file.name} has its weights")
        ) from exc
    except OSError as exc:
        raise WeightsError(f"{file} cannot be read: {exc.strerror}") from exc
    except (ValueError, IndexError) as exc:
        raise WeightsError(f"{file} is damaged, or no ONNX file ({exc})") from exc
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


_GRAPH, _INITIALIZER, _EXTERNAL, _KEY, _VALUE = 7, 5, 13, 1, 2
"""Numbers of the fields of ONNX's messages that lead to the files it refers to."""


def _external(content: bytes) -> Iterator[str]:
    """Names of the files that hold tensors of an ONNX file; ValueError if it is none."""
    graphs = [value for number, value in _fields(memoryview(content)) if number == _GRAPH]
    if not graphs:
        raise ValueError("it holds no network")
    for graph in graphs:
        for tensor in (value for number, value in _fields(graph) if number == _INITIALIZER):
            for number, entry in _fields(tensor):
                pair = dict(_fields(entry)) if number == _EXTERNAL else {}
                if bytes(pair.get(_KEY, b"")) == b"location":
                    yield bytes(pair[_VALUE]).decode()


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a protobuf message: number, content; ValueError where it is broken."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            end = _varint(message, at)[1]
        elif kind == 2:
            length, at = _varint(message, at)
            end = at + length
        elif kind in (1, 5):
            end = at + (8 if kind == 1 else 4)
        else:
            raise ValueError("it is not protobuf")
        if end > len(message):
            raise ValueError("it is truncated")
        yield number, message[at:end]
        at = end


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("it is not protobuf")
