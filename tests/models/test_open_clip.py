"""CLIP: vectors of pictures and texts as the library's own, and weights that are what was asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from PIL import Image

from lookalike.errors import (
    ConfigurationError,
    InvalidParameterError,
    NotReadyError,
    WeightsError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from lookalike.models import registry
from lookalike.models.base import Modality, normalize
from lookalike.models.building import build_encoder
from lookalike.models.encoders import LiveEncoder
from lookalike.models.spec import ModelRequest, RunOptions
from tests.models.pictures import draw

TEXTS = ["a red car", "A photo of 3 cats!", "\u00e9t\u00e9 \u6771\u4eac", "word " * 190]
TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny model, which open_clip then knows as `tiny-clip`."""
    folder = tmp_path_factory.mktemp("clip")
    config = folder / "tiny-clip.json"
    config.write_text(json.dumps(TINY))
    open_clip.add_model_config(config)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model: Any = open_clip.create_model("tiny-clip")
    for parameter in model.parameters():  # biases, too: nothing stays at its default
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    path = folder / "tiny.safetensors"
    safetensors.torch.save_model(model, str(path))
    return path


@pytest.fixture
def folder(tmp_path: Path, weights: Path) -> Path:
    return write_folder(tmp_path / "model", weights)


def write_folder(folder: Path, weights: Path, **preprocess: object) -> Path:
    """A model as open_clip keeps it in a folder."""
    folder.mkdir()
    document = {"model_cfg": TINY, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    (folder / "open_clip_model.safetensors").write_bytes(weights.read_bytes())
    return folder


def ask(weights: Path | str, name: str = "local-dir", **options: Any) -> ModelRequest:
    return ModelRequest(model=f"open_clip/{name}", weights=str(weights), **options)


def run(tmp_path: Path, runtime: str = "torch", precision: str = "float32") -> RunOptions:
    return RunOptions(runtime=runtime, precision=precision, device="cpu", cache=tmp_path / "cache")


def cosines(one: Any, other: Any) -> Any:
    return (one * other).sum(axis=1)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
@pytest.mark.parametrize(
    "preprocess",
    [
        {"resize_mode": "shortest"},
        {"resize_mode": "longest", "fill_color": 90, "interpolation": "bilinear"},
        {"resize_mode": "squash", "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7]},
    ],
)
def test_vectors_are_those_of_the_library(tmp_path, weights, preprocess, runtime):
    folder = write_folder(tmp_path / "model", weights, **preprocess)
    encoder = build_encoder(ask(folder), run(tmp_path, runtime))
    own: Any = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model, _, transform = own
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    pictures = [draw(seed) for seed in range(4)]
    pictures += [Image.new("RGB", (31, 77), "red"), draw(9).resize((200, 90))]
    with torch.inference_mode():
        theirs = model.encode_image(torch.stack([transform(one) for one in pictures])).numpy()
        texts = model.encode_text(tokenizer(TEXTS)).numpy()
    ours = encoder.encode([encoder.prepare(one) for one in (*pictures, *TEXTS)])
    expected = normalize(np.concatenate([theirs, texts]))
    assert encoder.provenance["runtime"] == runtime
    assert encoder.spec.dim == 24
    assert encoder.modalities == set(Modality)
    assert cosines(ours, expected).min() > 0.9999
    assert cosines(ours[:1], ours[1:]).max() < 0.999


def test_pictures_and_texts_share_a_batch_in_any_order(tmp_path, folder):
    encoder = build_encoder(ask(folder), run(tmp_path))
    live = LiveEncoder(encoder, max_batch=16)
    items = ["red", draw(1), "blue", draw(2), draw(3), "a mug"]
    futures = [live.submit(encoder.prepare(item)) for item in items]
    vectors = np.stack([future.result() for future in futures])
    live.close()
    alone = np.concatenate([encoder.encode([encoder.prepare(item)]) for item in items])
    assert np.allclose(vectors, alone, atol=1e-5)
    assert encoder.encode([]).shape == (0, 24)
    with pytest.raises(InvalidParameterError, match="empty"):
        encoder.prepare(" ")


def test_bfloat16_is_close(tmp_path, folder):
    exact, fast = (
        build_encoder(ask(folder), run(tmp_path, precision=precision))
        for precision in ("float32", "bfloat16")
    )
    items = [draw(1), draw(2), *TEXTS]
    one, other = (each.encode([each.prepare(item) for item in items]) for each in (exact, fast))
    assert exact.spec == fast.spec
    assert cosines(one, other).min() > 0.99


def test_the_same_weights_by_each_name_and_digests_of_all_parts(tmp_path, weights, folder):
    def digest(name: str, given: Path | str) -> str:
        return registry.load(f"open_clip/{name}", str(given)).sha256

    plain = digest("local-dir", folder)
    assert digest("tiny-clip", weights) == plain
    assert digest("tiny-clip", "random") == digest("tiny-clip", "random") != plain
    state = safetensors.torch.load_file(weights)

    def with_changed(name: str) -> str:
        changed = {**state, name: state[name] + 0.5}
        path = tmp_path / f"{name}.safetensors"
        safetensors.torch.save_file(changed, path)
        return digest("tiny-clip", path)

    assert with_changed("logit_scale") == plain  # no vector depends on it
    others = {with_changed(name) for name in ("visual.proj", "text_projection")}
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "whitespace"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    others.add(digest("local-dir", folder))
    assert len(others - {plain}) == 3


def test_a_folder_may_lie_below_the_home_folder(monkeypatch, tmp_path, folder):
    monkeypatch.setenv("HOME", str(tmp_path))
    loaded = registry.load("open_clip/local-dir", f"~/{folder.name}")
    assert (loaded.weights, loaded.sha256) == (
        folder.name,
        registry.load("open_clip/local-dir", str(folder)).sha256,
    )


def test_nothing_is_random_unless_asked_for(tmp_path, weights, folder):
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"open_clip_model\.safetensors"):
        build_encoder(ask(folder), run(tmp_path))
    for given in ("pretrained", "nothing"):
        with pytest.raises(WeightsNotFoundError, match=r"open_clip/tiny-clip.*or random"):
            build_encoder(ask(given, "tiny-clip"), run(tmp_path))
    with pytest.raises(WeightsNotFoundError, match=r"Known: laion2b_s34b_b79k, .*openai"):
        registry.load("open_clip/ViT-B-32", "laion2b_s34b")
    with pytest.raises(WeightsNotFoundError, match=r"several kinds: name some as .*Known: openai"):
        registry.load("open_clip/ViT-B-32", "pretrained")
    for name, what in (("local-dir", "FOLDER"), ("hf-hub", "REPOSITORY")):
        with pytest.raises(ConfigurationError, match=f"open_clip/{name}:{what}"):
            registry.load(f"open_clip/{name}", "random")


def test_names_and_weights_are_split():
    assert registry.split_weights("open_clip/ViT-B-32:openai", None) == (
        "open_clip/ViT-B-32",
        "openai",
    )
    assert registry.split_weights("open_clip/local-dir:/a:b", None)[1] == "/a:b"
    assert registry.split_weights("open_clip/RN50", "openai") == ("open_clip/RN50", "openai")
    assert "open_clip/NAME" in registry.models_with_text()


def test_a_typo_names_the_nearest(tmp_path):
    with pytest.raises(ConfigurationError, match="Did you mean 'ViT-B-32'"):
        build_encoder(ask("openai", "ViT-B32"), run(tmp_path))


def test_without_internet_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsNotFoundError, match=r"cannot be downloaded.*ViT-B-32:PATH.*HF_HOME"):
        registry.load("open_clip/ViT-B-32", "laion2b_s34b_b79k")
    with pytest.raises(WeightsNotFoundError, match="cannot be downloaded"):
        registry.load("open_clip/hf-hub", "laion/none")


def test_weights_that_do_not_fit_or_cannot_be_read(tmp_path, weights):
    state = safetensors.torch.load_file(weights)
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({**state, "text_projection": torch.zeros(32, 8)}, other)
    with pytest.raises(WeightsMismatchError, match=r"do not fit open_clip/tiny-clip: .*text_proj"):
        registry.load("open_clip/tiny-clip", str(other))
    safetensors.torch.save_file({"a": torch.zeros(3)}, other)
    with pytest.raises(WeightsMismatchError, match="do not fit"):
        registry.load("open_clip/tiny-clip", str(other))
    for content in (b"", b"hello" * 50, weights.read_bytes()[:5000]):
        for name in ("broken.safetensors", "broken.pt"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(WeightsError, match="cannot be used as a model of open_clip"):
                registry.load("open_clip/tiny-clip", str(tmp_path / name))
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="or a folder with open_clip_config"):
        registry.load("open_clip/local-dir", str(tmp_path / "empty"))


def test_sizes_and_pooling_that_it_does_not_have(tmp_path, folder):
    with pytest.raises(ConfigurationError, match="does not take pictures of 64 pixels"):
        build_encoder(ask(folder, input_size=64), run(tmp_path))
    with pytest.raises(ConfigurationError, match="pooling avg"):
        build_encoder(ask(folder, pooling="flatten"), run(tmp_path))


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "lookalike.models.open_clip", raising=False)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigurationError, match=r'pip install "lookalike\[clip\]"'):
        registry.load("open_clip/ViT-B-32", "openai")


def test_pictures_need_no_torch_once_converted_and_texts_load_it(tmp_path, folder):
    build_encoder(ask(folder), run(tmp_path, "openvino"))
    code = (
        "import sys; from pathlib import Path; "
        "from lookalike.models.building import build_encoder; "
        "from lookalike.models.spec import ModelRequest, RunOptions; "
        f"request = ModelRequest(model='open_clip/local-dir', weights={str(folder)!r}); "
        f"run = RunOptions(runtime='openvino', cache=Path({str(tmp_path / 'cache')!r})); "
        "encoder = build_encoder(request, run); "
        "from PIL import Image; picture = encoder.prepare(Image.new('RGB', (9, 9), 'red')); "
        "assert encoder.encode([picture]).shape == (1, 24); assert 'torch' not in sys.modules; "
        "assert encoder.encode([picture, encoder.prepare('a red car')]).shape == (2, 24)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_weights_that_change_under_a_running_service_are_noticed(tmp_path, weights, folder):
    encoder = build_encoder(ask(folder), run(tmp_path, "openvino"))
    state = safetensors.torch.load_file(weights)
    changed = {**state, "text_projection": state["text_projection"] + 0.5}
    safetensors.torch.save_file(changed, folder / "open_clip_model.safetensors")
    with pytest.raises(NotReadyError, match="changed since the service started"):
        encoder.prepare("a red car")
    assert build_encoder(ask(folder), run(tmp_path, "openvino")).spec.digest != encoder.spec.digest
