"""What runs the network, and converted networks in a data folder."""

import json
import logging
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision

from lookalike import bootstrap
from lookalike.bootstrap import (
    build_encoder,
    build_encoders,
    build_services,
    model_request,
    move_request,
    run_options,
)
from lookalike.config import load_settings
from lookalike.errors import ConfigurationError, WeightsNotFoundError
from lookalike.models import building
from lookalike.models.openvino import networks, runtime
from lookalike.models.openvino.runtime import OpenVinoEncoder
from lookalike.models.spec import ModelRequest
from tests.memory_store import MemoryStore
from tests.models.networks import torchvision_encoder
from tests.servers import clean_environment

MODEL = {"model": "resnet18", "weights": "random", "input_size": 32, "device": "cpu"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def settings(cache_dir="cache", **options):
    return load_settings(cache_dir=cache_dir, **MODEL | options)


def chosen(**options):
    given = settings(**options)
    return building.choose_runtime(model_request(given), run_options(given))


@pytest.mark.parametrize(
    ("given", "machine", "expected"),
    [
        ({}, "openvino bf16", "openvino"),
        ({"device": "auto"}, "openvino bf16", "openvino"),
        ({"device": "auto"}, "openvino bf16 gpu", "torch"),
        ({"device": "cpu"}, "openvino bf16 gpu", "openvino"),
        ({"device": "cuda"}, "openvino bf16 gpu", "torch"),
        ({}, "bf16", "torch"),
        ({"precision": "float16"}, "openvino bf16", "torch"),
        ({"precision": "bfloat16"}, "openvino", "torch"),
        ({"precision": "bfloat16"}, "openvino bf16", "openvino"),
        ({"runtime": "torch", "precision": "int8"}, "openvino bf16", "torch"),
        ({"runtime": "openvino", "device": "auto"}, "openvino gpu", "openvino"),
        ({"precision": "int8", "device": "auto"}, "openvino gpu", "openvino"),
    ],
)
def test_the_runtime_follows_the_machine(given, machine, expected, monkeypatch):
    monkeypatch.setattr(building, "has_gpu", lambda: "gpu" in machine)
    monkeypatch.setattr(runtime, "is_installed", lambda: "openvino" in machine)
    monkeypatch.setattr(runtime, "computes_bfloat16", lambda: "bf16" in machine)
    assert chosen(**given) == expected


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"runtime": "openvino", "device": "cuda"}, "LOOKALIKE_DEVICE=cpu"),
        ({"precision": "int8", "device": "mps"}, "LOOKALIKE_DEVICE=cpu"),
        ({"runtime": "openvino", "compile": True}, "LOOKALIKE_COMPILE needs torch"),
        ({"runtime": "torch", "compile": True}, "needs a CUDA device"),
        ({"runtime": "torch", "precision": "int8"}, "torch runs no int8"),
        ({"runtime": "openvino", "precision": "float16"}, "does not compute float16"),
        ({"runtime": "openvino", "precision": "int8"}, "lookalike quantize PATH"),
        ({"model": "resnet19"}, "resnet18"),
        ({"model": "color", "compile": True}, "LOOKALIKE_COMPILE .* color has no network of torch"),
        ({"model": "color", "precision": "int8"}, "LOOKALIKE_PRECISION=int8 .* color has no"),
    ],
)
def test_what_cannot_work_is_said(given, text):
    with pytest.raises(ConfigurationError, match=text):
        build_encoder(settings(**given))


def test_without_openvino(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    for given in ({"runtime": "openvino"}, {"precision": "int8"}):
        with pytest.raises(ConfigurationError, match=r"pip install 'lookalike\[openvino\]'"):
            chosen(**given)


def test_without_openvino_the_driver_is_not_asked(monkeypatch):
    monkeypatch.setattr(runtime, "is_installed", lambda: False)
    monkeypatch.setattr(building, "has_gpu", None)
    assert chosen(device="auto") == "torch"


def test_gpus_are_those_that_torch_finds():
    assert building.has_gpu() == (torch.cuda.is_available() or torch.backends.mps.is_available())


@pytest.mark.parametrize(
    ("build", "devices", "expected"),
    [
        ("2.15.0", 1, True),
        ("2.15.0", 0, False),
        ("2.15.0+cpu", 1, False),
        ("2.15.0+rocm7.1", 0, True),
    ],
)
def test_the_build_of_torch_counts(build, devices, expected, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(building, "version", lambda name: build)
    monkeypatch.setattr(building, "_cuda_devices", lambda: devices)
    assert building.has_gpu() is expected


def test_color_needs_neither():
    assert build_encoder(settings(model="color")).provenance["runtime"] == "numpy"


def test_a_collection_by_color_stays_searchable_beside_a_network_that_is_compiled(monkeypatch):
    made = []
    monkeypatch.setattr(bootstrap, "CollectionModels", lambda *_, make, **__: made.append(make))
    encoders = build_encoders(settings())
    bootstrap._models(settings(compile=True), encoders, MemoryStore())
    encoders.close()
    assert made[0](ModelRequest(model="color", weights="random")).spec.model == "color"


def test_a_collection_by_color_stays_searchable_beside_an_int8_network():
    """Also by a request that says int8."""
    service = settings(precision="int8", runtime="openvino")
    assert move_request(service, {"model": "color"}).int8 is False
    assert move_request(service).int8 is True
    for int8 in (True, False):
        request = ModelRequest(model="color", weights="random", int8=int8)
        assert build_encoder(service, request).spec.model == "color"
        assert build_encoder(settings(), request).spec.model == "color"


SERVICE = """
import logging
import sys
import numpy as np
from lookalike.api.main import create_app
from lookalike.bootstrap import (
    build_encoder,
    build_encoders,
    build_services,
    model_request,
    move_request,
    run_options,
)
from lookalike.config import load_settings
import lookalike.cli.serve

logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
services = build_services(load_settings(), read_only=len(sys.argv) > 1)
services.canary.check()
live = services.encoders.default
vector = live.embed(np.full((32, 32, 3), 7, np.uint8))
np.save("vector.npy", vector)
assert live.encoder.provenance["runtime"] == "openvino"
print(vector.shape, live.spec.digest)
services.close()
assert "torch" not in sys.modules and "nncf" not in sys.modules, "imported"
"""


def start(folder, *words, cwd=None, **options):
    named = {"cache_dir": folder, **MODEL, "precision": "float32", **options}
    environment = clean_environment() | {
        f"LOOKALIKE_{name.upper()}": str(value) for name, value in named.items()
    }
    return subprocess.run(
        [sys.executable, "-c", SERVICE, *words],
        cwd=cwd,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def first_start(tmp_path_factory):
    """A new cache folder, and a service that started with it."""
    folder = tmp_path_factory.mktemp("first") / "cache"
    return folder, start(folder, cwd=folder.parent)


@pytest.fixture(scope="module")
def converted(first_start):
    """A cache folder in which a service has converted its network."""
    return first_start[0]


def test_a_service_with_a_converted_network_needs_no_torch(converted):
    start(converted)
    expected = torchvision_encoder("resnet18", "random", input_size=32, precision="float32").encode(
        [np.full((32, 32, 3), 7, np.uint8)]
    )
    assert float(np.load("vector.npy") @ expected[0]) >= 0.99999


def test_the_first_start_leaves_torch_to_another_process(first_start):
    folder, service = first_start
    assert "lookalike.models.openvino.networks: converted resnet18" in service.stderr
    assert len(list((folder / "networks").rglob("*.xml"))) == 1
    (manifest,) = (folder / "networks").rglob("manifest.json")
    assert json.loads(manifest.read_text())["facts"]["origin"]["request"]["weights"] == "random"


def test_errors_of_the_other_process_arrive(tmp_path):
    missing = settings(weights=str(tmp_path / "none.pth"), runtime="openvino")
    with pytest.raises(WeightsNotFoundError, match=r"no weights file at .*none\.pth$"):
        networks._convert_apart(model_request(missing), tmp_path / "networks")


@pytest.mark.parametrize("python", ["false", "no such program"])
def test_where_no_other_process_can_convert_this_one_does(python, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(sys, "executable", python)
    monkeypatch.delitem(sys.modules, "torch")
    made: Any = ("network", "passport")
    monkeypatch.setattr(networks, "_convert_here", lambda *_, **__: made)
    found = networks.float_network(model_request(settings()), tmp_path / "networks")
    assert found == made
    assert "in this process" in caplog.text


def test_with_a_head_it_needs_none_either(converted, tmp_path):
    from lookalike.models.head import Head, HeadSpec, save_head

    backbone = build_encoder(settings(converted)).spec
    spec = HeadSpec(dim_in=512, dim_out=8)
    tensors = {name: np.ones(shape, np.float32) for name, shape in spec.shapes().items()}
    tensors["0.weight"] = np.random.default_rng(0).normal(size=(8, 512)).astype(np.float32)
    path = save_head(Head(spec, tensors, backbone=backbone), tmp_path / "head.safetensors")
    assert start(converted, head=path).stdout.startswith("(8,)")


@pytest.mark.parametrize("wrong", [{"model": "resnet5"}, {"head": "none.safetensors"}])
def test_what_is_wrong_is_said_before_anything_is_converted(wrong, monkeypatch):
    monkeypatch.setattr(networks, "float_network", None)
    with pytest.raises(ConfigurationError):
        build_encoder(settings(runtime="openvino", **wrong))


def test_kept_networks_are_used_and_not_written_again(converted, monkeypatch):
    before = sorted((converted / "networks").rglob("*"))
    assert len(before) == 5
    monkeypatch.setattr("lookalike.models.openvino.runtime.convert", None)
    built = build_encoder(settings(converted, runtime="openvino", data_dir="another"))
    assert isinstance(built, OpenVinoEncoder)
    assert sorted((converted / "networks").rglob("*")) == before


def test_what_only_reads_writes_nothing_into_the_data_folder(tmp_path):
    build_services(settings(model="color")).close()
    services = build_services(settings(runtime="openvino"), read_only=True)
    assert services.encoders.default.encoder.provenance["runtime"] == "openvino"
    services.close()
    assert not (tmp_path / "data" / "models").exists()
    assert list((tmp_path / "cache" / "networks").iterdir())


def test_a_damaged_network_is_converted_anew(converted, caplog):
    (binary,) = (converted / "networks").rglob("*.bin")
    content = binary.read_bytes()
    binary.unlink()  # others may have mapped it
    binary.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with caplog.at_level(logging.INFO):
        built = build_encoder(settings(converted))
    assert "cannot be used" in caplog.text
    assert "converting resnet18" in caplog.text
    (manifest,) = (converted / "networks").rglob("manifest.json")
    assert binary.parent.name != json.loads(manifest.read_text())["content"]
    caplog.clear()
    again = build_encoder(settings(converted))
    assert "converting" not in caplog.text
    batch = [np.full((32, 32, 3), 7, np.uint8)]
    # Not equal to the bit on every CPU: each compilation may choose other kernels.
    np.testing.assert_allclose(again.encode(batch), built.encode(batch), rtol=0, atol=1e-6)


def test_a_folder_that_takes_no_files_does_not_keep_the_service_from_starting(tmp_path, caplog):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "networks").write_text("a file")
    built = build_encoder(settings(runtime="openvino"))
    assert built.spec.dim == 512
    assert "cannot be kept" in caplog.text


def test_changed_weights_never_meet_the_old_network(tmp_path):
    path = tmp_path / "mine.safetensors"
    specs = []
    for seed in (1, 2, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            state = torchvision.models.resnet18(weights=None).state_dict()
        safetensors.torch.save_file(state, path)
        given = settings(weights=str(path), runtime="openvino", precision="float32")
        built = build_encoder(given)
        torchs = torchvision_encoder(
            "resnet18", str(path), input_size=32, precision="float32", device="cpu"
        )
        assert built.spec == torchs.spec
        batch = [np.full((32, 32, 3), 7, np.uint8)]
        assert float(built.encode(batch)[0] @ torchs.encode(batch)[0]) >= 0.99999
        specs.append(built.spec.digest)
    assert specs[0] == specs[2] != specs[1]
    assert len(list((tmp_path / "cache" / "networks").iterdir())) == 2
    path.unlink()
    with pytest.raises(WeightsNotFoundError):
        build_encoder(settings(weights=str(path), runtime="openvino"))


def test_a_file_that_changes_while_it_is_converted_is_not_kept(tmp_path, monkeypatch):
    path = tmp_path / "mine.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    convert = runtime.convert

    def slow(*words, **options):
        path.write_bytes(b"others now")
        return convert(*words, **options)

    monkeypatch.setattr(runtime, "convert", slow)
    given = settings(weights=str(path), runtime="openvino")
    build_encoder(given)
    assert not (tmp_path / "cache" / "networks").exists()
