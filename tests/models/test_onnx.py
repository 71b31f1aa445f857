"""ONNX files: the vectors of the network in them, by OpenVINO alone; errors that say why not."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from lookalike.bootstrap import build_encoder, build_services, move_request
from lookalike.errors import (
    ConfigurationError,
    InvalidParameterError,
    SpecMismatchError,
    WeightsError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from lookalike.media.sources import PictureSource
from lookalike.models.base import normalize
from lookalike.models.openvino.onnx_file import make_encoder, read_description
from lookalike.models.spec import ModelRequest, RunOptions
from lookalike.progress import NO_PROGRESS
from lookalike.records import Preprocess
from lookalike.services.search import SearchOptions
from scripts.samples import write_samples
from tests.models.pictures import draw
from tests.settings import make_settings

SIDE = 64
RUN = RunOptions(precision="float32")
MEAN, STD = np.array(Preprocess().mean), np.array(Preprocess().std)


class Tiny(nn.Module):
    """Feature maps of 6 channels, 4 x 4 positions for 64 pixels; what is made of them: `form`."""

    def __init__(self, form: str) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.first = nn.Conv2d(3, 8, 5, stride=8, padding=2)
            self.second = nn.Conv2d(8, 6, 3, stride=2, padding=1)
            self.last = nn.Linear(6, 10)
        self.form = form

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        maps = self.second(torch.relu(self.first(pixels)))
        if self.form == "maps":
            return maps
        if self.form == "tokens":
            return maps.flatten(2).transpose(1, 2)
        return self.last(maps.mean((2, 3)))


def write(
    path: Path, form: str = "vectors", *, side: int | None = None, batch: bool = True
) -> Path:
    """Exports with torch's own exporter."""
    network = Tiny(form).eval()
    axes = {0: "n"} if batch else {}
    if side is None:
        axes |= {2: "h", 3: "w"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, side or SIDE, side or SIDE),),
            str(path),
            input_names=["pixels"],
            output_names=["out"],
            dynamic_axes={"pixels": axes, "out": {0: "n"}} if axes else None,
            dynamo=False,
        )
    return path


def describe(path: Path, **given: object) -> None:
    path.with_name(f"{path.name}.json").write_text(json.dumps(given))


def ask(path: Path, **options: Any) -> ModelRequest:
    return ModelRequest(model="onnx", weights=str(path), **options)


def expected(form: str, batch: list[Any], mean: Any = MEAN, std: Any = STD) -> Any:
    """What torch makes of prepared pictures."""
    pixels = (np.stack(batch) / 255 - mean) / std
    with torch.inference_mode():
        return Tiny(form)(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())


@pytest.mark.parametrize(
    ("form", "given", "pooling", "pool"),
    [
        ("vectors", {}, "avg", lambda out: out),
        ("maps", {}, "avg", lambda out: out.mean((2, 3))),
        ("maps", {}, "flatten", lambda out: out.flatten(1)),
        ("tokens", {"pool": "first"}, "avg", lambda out: out[:, 0]),
        ("tokens", {"pool": "mean"}, "avg", lambda out: out.mean(1)),
    ],
)
def test_vectors_are_those_of_torch(tmp_path, form, given, pooling, pool):
    path = write(tmp_path / "tiny.onnx", form)
    describe(path, input_size=SIDE, **given)
    encoder = make_encoder(ask(path, pooling=pooling), RUN)
    batch = [encoder.prepare(draw(seed)) for seed in range(5)]
    theirs = normalize(pool(expected(form, batch)).numpy())
    assert encoder.spec.dim == theirs.shape[1]
    assert (encoder.encode(batch) * theirs).sum(axis=1).min() > 0.999_999
    for picture, row in zip(batch, theirs, strict=True):
        assert encoder.encode([picture])[0] @ row > 0.999_999


def test_preprocessing_is_what_the_json_says(tmp_path):
    path = write(tmp_path / "tiny.onnx")
    mean, std = [0.5, 0.25, 0.0], [0.5, 0.75, 1]
    describe(
        path,
        input_size=96,
        resize="crop",
        crop_share=1,
        interpolation="bicubic",
        mean=mean,
        std=std,
    )
    encoder = make_encoder(ask(path), RUN)
    preprocess = encoder.spec.preprocess
    assert (preprocess.resize, preprocess.interpolation) == ("crop", "bicubic")
    assert preprocess.input_size == 96
    batch = [encoder.prepare(draw(seed)) for seed in range(3)]
    theirs = normalize(expected("vectors", batch, mean, std).numpy())
    assert (encoder.encode(batch) * theirs).sum(axis=1).min() > 0.999_999
    asked = make_encoder(ask(path, input_size=64, resize="squash"), RUN).spec.preprocess
    assert (asked.resize, asked.input_size) == ("squash", 64)


def test_without_json_it_is_imagenets_and_the_size_of_the_network(tmp_path):
    path = write(tmp_path / "tiny.onnx", side=96, batch=False)
    encoder = make_encoder(ask(path), RUN)
    assert encoder.spec.preprocess == Preprocess(input_size=96)
    batch = [encoder.prepare(draw(seed)) for seed in range(3)]
    theirs = normalize(expected("vectors", batch).numpy())
    assert (encoder.encode(batch) * theirs).sum(axis=1).min() > 0.999_999
    with pytest.raises(ConfigurationError, match="96 pixels alone, not 128"):
        make_encoder(ask(path, input_size=128), RUN)
    describe(path, input_size=128)
    with pytest.raises(ConfigurationError, match="96 pixels, and the JSON beside it says 128"):
        make_encoder(ask(path), RUN)


def test_a_tensor_inside_can_be_the_output(tmp_path):
    path = write(tmp_path / "tiny.onnx")
    inner = next(node.output[0] for node in onnx.load(path).graph.node if node.op_type == "Relu")
    plain = make_encoder(ask(path), RUN).spec
    describe(path, output=inner)
    named = make_encoder(ask(path), RUN)
    assert named.spec.dim == 8
    assert named.spec.weights_sha256 != plain.weights_sha256
    describe(path, output="nothing")
    with pytest.raises(ConfigurationError, match=r"no tensor 'nothing'.*Its outputs: out"):
        make_encoder(ask(path), RUN)


def test_another_place_and_name_are_the_same_model_and_other_numbers_are_not(tmp_path):
    path = write(tmp_path / "tiny.onnx", side=SIDE)
    spec = make_encoder(ask(path), RUN).spec
    (tmp_path / "b").mkdir()
    moved = path.rename(tmp_path / "b" / "renamed.onnx")
    again = make_encoder(ask(moved), RUN).spec
    assert again.digest == spec.digest
    assert (spec.weights, again.weights) == ("tiny.onnx", "renamed.onnx")
    model = onnx.load(moved)
    change_a_number(model)
    onnx.save(model, moved)
    assert make_encoder(ask(moved), RUN).spec.digest != spec.digest


def change_a_number(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    changed = numpy_helper.to_array(tensor) + np.float32(0.01)
    tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))


def test_weights_in_a_file_beside_count(tmp_path):
    path = write(tmp_path / "tiny.onnx", side=SIDE)
    how: dict[str, Any] = {
        "save_as_external_data": True,
        "location": "tiny.onnx.data",
        "size_threshold": 0,
    }
    onnx.save_model(onnx.load(path), str(path), **how)
    encoder = make_encoder(ask(path), RUN)
    batch = [encoder.prepare(draw(1))]
    assert encoder.encode(batch)[0] @ normalize(expected("vectors", batch).numpy())[0] > 0.999_999
    beside = tmp_path / "tiny.onnx.data"
    before, bytes_before = encoder.spec.digest, path.read_bytes()
    model = onnx.load(path)
    change_a_number(model)
    beside.unlink()
    onnx.save_model(model, str(path), **how)
    assert path.read_bytes() == bytes_before
    assert make_encoder(ask(path), RUN).spec.digest != before
    beside.unlink()
    with pytest.raises(WeightsNotFoundError, match=r"tiny\.onnx\.data, where tiny\.onnx has"):
        make_encoder(ask(path), RUN)


def graph(
    path: Path,
    nodes: list[Any],
    inputs: Mapping[str, tuple[int, list[Any]]],
    outputs: Mapping[str, tuple[int, list[Any]]],
) -> Path:
    """Writes a network by hand: name -> type and shape."""
    taken, given = (
        [helper.make_tensor_value_info(name, *one) for name, one in each.items()]
        for each in (inputs, outputs)
    )
    made = helper.make_graph(nodes, "made", taken, given)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(made, opset_imports=opset, ir_version=9), path)
    return path


FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
PICTURES = {"x": (FLOAT, ["n", 3, SIDE, SIDE])}
MAPS = {"y": (FLOAT, ["n", 3, SIDE, SIDE])}
MEAN_OF_ALL = helper.make_node("ReduceMean", ["x"], ["y"], keepdims=1)


@pytest.mark.parametrize(
    ("nodes", "inputs", "outputs", "wrong"),
    [
        (
            [helper.make_node("Add", ["x", "z"], ["y"])],
            PICTURES | {"z": (FLOAT, ["n", 3, SIDE, SIDE])},
            MAPS,
            (WeightsMismatchError, r"takes 2 inputs \(x, z\) instead of one"),
        ),
        (
            [helper.make_node("Cast", ["x"], ["y"], to=FLOAT)],
            {"x": (INT, ["n", 77])},
            {"y": (FLOAT, ["n", 77])},
            (WeightsMismatchError, "takes i64 of the shape"),
        ),
        (
            [helper.make_node("Relu", ["x"], ["y"])],
            {"x": (FLOAT, ["n", 1, SIDE, SIDE])},
            {"y": (FLOAT, ["n", 1, SIDE, SIDE])},
            (WeightsMismatchError, "takes 1 channels instead of 3"),
        ),
        (
            [helper.make_node("Relu", ["x"], ["y"])],
            {"x": (FLOAT, ["n", 3, 32, 64])},
            {"y": (FLOAT, ["n", 3, 32, 64])},
            (WeightsMismatchError, "no squares"),
        ),
        (
            [helper.make_node("ArgMax", ["x"], ["y"], axis=1)],
            PICTURES,
            {"y": (INT, ["n", 1, SIDE, SIDE])},
            (WeightsMismatchError, "its output is i64"),
        ),
        (
            [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1, 2, 3], keepdims=0)],
            PICTURES,
            {"y": (FLOAT, ["n"])},
            (WeightsMismatchError, "its output is f32 of the shape"),
        ),
        (
            [MEAN_OF_ALL],
            PICTURES,
            {"y": (FLOAT, [1, 1, 1, 1])},
            (WeightsMismatchError, "together give other vectors"),
        ),
        (
            [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])],
            PICTURES,
            MAPS | {"z": (FLOAT, ["n", 3, SIDE, SIDE])},
            (ConfigurationError, r'has 2 outputs \(y, z\).*tiny\.onnx\.json, as \{"output"'),
        ),
        (
            [helper.make_node("NoSuchOperator", ["x"], ["y"], domain="")],
            PICTURES,
            MAPS,
            (WeightsError, "OpenVINO cannot use.*NoSuchOperator"),
        ),
    ],
)
def test_a_network_that_is_no_encoder_says_why(tmp_path, nodes, inputs, outputs, wrong):
    path = graph(tmp_path / "tiny.onnx", nodes, inputs, outputs)
    with pytest.raises(wrong[0], match=f"(?s){wrong[1]}"):
        make_encoder(ask(path), RUN)


def test_tokens_without_a_choice_and_nothing_to_flatten(tmp_path):
    path = write(tmp_path / "tiny.onnx", "tokens", side=SIDE)
    with pytest.raises(ConfigurationError, match=r'"pool": "first".*"pool": "mean"'):
        make_encoder(ask(path), RUN)
    for form in ("vectors", "tokens"):
        path = write(tmp_path / "tiny.onnx", form, side=SIDE)
        with pytest.raises(ConfigurationError, match="nothing to flatten"):
            make_encoder(ask(path, pooling="flatten"), RUN)


def test_pictures_with_the_channels_last(tmp_path):
    mean = helper.make_node("ReduceMean", ["x"], ["y"], axes=[1, 2], keepdims=0)
    inputs = {"x": (FLOAT, ["n", SIDE, SIDE, 3])}
    path = graph(tmp_path / "tiny.onnx", [mean], inputs, {"y": (FLOAT, ["n", 3])})
    describe(path, mean=[0, 0, 0], std=[1, 1, 1])
    encoder = make_encoder(ask(path), RUN)
    picture = encoder.prepare(draw(4))
    theirs = normalize(picture.mean(axis=(0, 1), dtype=np.float32)[np.newaxis])
    assert np.allclose(encoder.encode([picture]), theirs, atol=1e-5)


@pytest.mark.parametrize(
    "content", [b"", b"hello" * 100, b"\x3a\xff\x01", bytes(40), b"\x89PNG\r\n\x1a\n"]
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "tiny.onnx"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"tiny\.onnx is damaged, or no ONNX file"):
        make_encoder(ask(path), RUN)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(share=st.floats(0, 0.999))
def test_a_truncated_file_is_refused_wherever_it_was_cut(tmp_path_factory, share):
    folder = tmp_path_factory.getbasetemp()
    if not (whole := folder / "whole.onnx").exists():
        write(whole, side=SIDE)
    data = whole.read_bytes()
    cut = folder / "cut.onnx"
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(WeightsError):
        make_encoder(ask(cut), RUN)


def test_files_and_settings_that_cannot_be_used(tmp_path):
    with pytest.raises(WeightsNotFoundError, match=r"no file .*none\.onnx"):
        make_encoder(ask(tmp_path / "none.onnx"), RUN)
    with pytest.raises(WeightsError, match=r"ends in \.onnx"):
        make_encoder(ask(tmp_path / "net.pth"), RUN)
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(WeightsError, match="cannot be read"):
        make_encoder(ask(tmp_path / "folder.onnx"), RUN)
    path = write(tmp_path / "tiny.onnx", side=SIDE)
    for run in (RunOptions(runtime="torch"), RunOptions(device="cuda")):
        with pytest.raises(ConfigurationError, match="OpenVINO runs ONNX files, on the CPU"):
            make_encoder(ask(path), run)
    with pytest.raises(ConfigurationError, match="not quantized here"):
        make_encoder(ask(path, int8=True), RUN)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "no JSON object; known fields: crop_share"),
        ('{"inputsize": 3}', "Did you mean 'input_size'"),
        ('{"version": 2}', "unknown field 'version'"),
        ('{"input_size": true}', "pixels from 32 to 4096, not true"),
        ('{"input_size": 16}', "from 32 to 4096"),
        ('{"resize": "stretch"}', "squash, crop or pad"),
        ('{"crop_share": 0}', "above 0, at most 1"),
        ('{"interpolation": "cubic"}', "bicubic"),
        ('{"mean": [1, 2]}', "three numbers"),
        ('{"mean": [1, 2, NaN]}', "three numbers"),
        ('{"std": [1, 0, 1]}', "three numbers above 0"),
        ('{"padding": [0, 0, 256]}', "from 0 to 255"),
        ('{"padding": [0, 0, 0.5]}', "from 0 to 255"),
        ('{"output": ""}', "a tensor's name"),
        ('{"pool": "max"}', "mean or first"),
    ],
)
def test_a_json_that_cannot_work_names_the_field(tmp_path, content, text):
    path = tmp_path / "tiny.onnx.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=text):
        read_description(path)


def test_it_is_read_without_torch_and_without_onnx(tmp_path):
    path = write(tmp_path / "tiny.onnx", side=SIDE)
    code = (
        "import sys; sys.modules['onnx'] = sys.modules['onnxruntime'] = None; "
        "from lookalike.models.building import build_encoder; "
        "from lookalike.models.spec import ModelRequest, RunOptions; "
        f"request = ModelRequest(model='onnx', weights={str(path)!r}); "
        "encoder = build_encoder(request, RunOptions()); "
        "assert encoder.spec.dim == 10; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_file_is_named_with_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tiny.onnx", side=SIDE)
    settings = make_settings(data_dir=tmp_path / "data", model="onnx/tiny.onnx")
    assert build_encoder(settings).spec.weights == "tiny.onnx"
    color = make_settings(data_dir=tmp_path / "data", model="color", weights="none")
    for named in ({"model": "onnx/tiny.onnx"}, {"model": "onnx", "weights": "tiny.onnx"}):
        request = move_request(color, named)
        assert (request.model, request.weights) == ("onnx", str(tmp_path / "tiny.onnx"))
    for wrong, text in (
        ({"model": "onnx", "weights": ""}, "needs a file: name it as onnx/FILE"),
        ({"model": "onnx/"}, "names no weights"),
        ({"model": "onnx/a.onnx", "weights": "b.onnx"}, "names the weights a.onnx.*b.onnx"),
    ):
        with pytest.raises(InvalidParameterError, match=text):
            move_request(make_settings(data_dir=tmp_path / "data", model="color"), wrong)
    with pytest.raises(ConfigurationError, match="is for networks of torch"):
        build_encoder(
            make_settings(data_dir=tmp_path / "data", model="onnx/tiny.onnx", precision="int8")
        )


def test_a_collection_moves_to_an_onnx_file_and_is_opened_again(tmp_path):
    path = write(tmp_path / "tiny.onnx", side=SIDE)
    settings = make_settings(data_dir=tmp_path / "data", model="color")
    pictures = write_samples(tmp_path / "p", classes=["mug", "car"], instances=2, views=1)
    with closing(build_services(settings)) as services:
        list(services.indexing.index([PictureSource.from_path(file) for file in pictures]))
        request = move_request(settings, {"model": f"onnx/{path}"})
        services.reembedding.run("default", request, NO_PROGRESS)
    with closing(build_services(settings)) as services, pictures[2].open("rb") as file:
        found = services.search.search(file, SearchOptions(k=1))
        assert found.spec.model == "onnx"
        assert found.matches[0].record.filename == pictures[2].name
        assert found.matches[0].score == pytest.approx(1, abs=1e-3)
    path.unlink()
    with (
        closing(build_services(settings)) as services,
        pictures[0].open("rb") as file,
        pytest.raises(SpecMismatchError, match=r"There is no file .*tiny\.onnx"),
    ):
        services.search.search(file, SearchOptions(k=1))
