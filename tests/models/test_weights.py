import hashlib
import io
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision

from lookalike.errors import WeightsError, WeightsMismatchError, WeightsNotFoundError
from lookalike.models.torchvision import load_backbone
from lookalike.models.weights import downloaded
from lookalike.models.weights import state_sha256 as digest_of
from tests.models.networks import torchvision_encoder


def state_sha256(state):
    return digest_of(state, classifier=("fc.",))


@pytest.fixture(scope="module")
def state():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return torchvision.models.resnet18(weights=None).state_dict()


@pytest.fixture(scope="module")
def digest(state):
    return state_sha256(state)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def test_random_weights_are_the_same_each_time_and_disturb_no_one():
    before = torch.get_rng_state()
    first, second = (load_backbone("resnet18", weights="random") for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert first.sha256 == second.sha256
    assert first.weights == "random"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reference = torchvision.models.resnet18(weights=None)
    assert first.sha256 == state_sha256(reference.state_dict())


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "module."])
def test_state_dicts_load_each_way(tmp_path, state, digest, wrap):
    path = tmp_path / "mine.pth"
    content = {f"module.{name}": t for name, t in state.items()} if wrap == "module." else state
    torch.save({wrap: content, "epoch": 3} if wrap in ("state_dict", "model") else content, path)
    backbone = load_backbone("resnet18", weights=str(path))
    assert (backbone.sha256, backbone.weights) == (digest, "mine.pth")


def test_safetensors_and_another_classifier_agree(tmp_path, state, digest):
    path = tmp_path / "mine.safetensors"
    other = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    other |= {"fc.weight": torch.zeros(3, 512), "fc.bias": torch.zeros(3)}
    safetensors.torch.save_file(other, path)
    assert load_backbone("resnet18", weights=str(path)).sha256 == digest
    del other["fc.weight"], other["fc.bias"]
    safetensors.torch.save_file(other, path)
    encoder = torchvision_encoder("resnet18", str(path), input_size=32)
    assert encoder.spec.weights_sha256 == digest
    assert encoder.spec.weights == "mine.safetensors"


def test_digests_tell_tensors_apart(state, digest):
    other = state | {"conv1.weight": state["conv1.weight"] + 1e-3}
    assert state_sha256(other) != digest
    renamed = {name.replace("layer1.0", "layer1.9"): t for name, t in state.items()}
    assert state_sha256(renamed) != digest
    assert state_sha256({"a": torch.tensor(1.0)}) != state_sha256({"a": torch.ones(1)})


def test_layers_that_do_not_fit_are_named(tmp_path, state):
    path = tmp_path / "mine.pth"
    odd = {name: t for name, t in state.items() if not name.startswith("layer4.1")}
    odd |= {"extra.weight": torch.ones(2), "conv1.weight": torch.ones(64, 1, 7, 7)}
    torch.save(odd, path)
    with pytest.raises(WeightsMismatchError) as caught:
        load_backbone("resnet18", weights=str(path))
    text = str(caught.value)
    assert "10 missing layers: layer4.1.bn1.bias, " in text
    assert ", ..." in text
    assert "1 layers that the model lacks: extra.weight" in text
    assert "conv1.weight is (64, 1, 7, 7) instead of (64, 3, 7, 7)" in text
    with pytest.raises(WeightsMismatchError, match="missing"):
        load_backbone("resnet50", weights=str(path))


@pytest.mark.parametrize("name", ["mine.pth", "mine.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04" + bytes(100)])
def test_files_that_cannot_be_read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"(?i)cannot be read"):
        load_backbone("resnet18", weights=str(path))


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"model": {"a": "b"}}, torch.ones(3)])
def test_files_without_a_state_dict(tmp_path, content):
    path = tmp_path / "mine.pt"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"(?i)no state dict"):
        load_backbone("resnet18", weights=str(path))


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"a": print}, path)
    with pytest.raises(WeightsError, match=r"(?i)cannot be read"):
        load_backbone("resnet18", weights=str(path))


def test_missing_files_and_unknown_names(tmp_path):
    for missing in (str(tmp_path / "none.pth"), "none.safetensors", "./folder/none"):
        with pytest.raises(WeightsNotFoundError, match=r"(?i)no weights file"):
            load_backbone("resnet18", weights=missing)
    with pytest.raises(WeightsNotFoundError, match=r"Did you mean 'IMAGENET1K_V1'\?.*random"):
        load_backbone("resnet18", weights="imagenet_v1")


def test_no_internet_names_the_file_the_folder_and_random(cache, monkeypatch):
    def fail(request, timeout):
        assert timeout <= 10
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.raises(WeightsNotFoundError) as caught:
        load_backbone("resnet50", weights="IMAGENET1K_V1")
    for part in ("resnet50-0676ba61.pth", str(cache), "LOOKALIKE_WEIGHTS=random", "no network"):
        assert part in str(caught.value)


def test_downloads_are_checked_and_never_half_written(cache, monkeypatch, state, digest):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    name = f"resnet18-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    served = [data[:-9], data]
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda request, timeout: io.BytesIO(served.pop(0))
    )
    url = f"https://example.invalid/{name}"
    with pytest.raises(WeightsNotFoundError, match="damaged"):
        downloaded(url)
    assert list(cache.iterdir()) == []
    path = downloaded(url)
    assert path.read_bytes() == data
    assert downloaded(url) == path
    assert [file.name for file in cache.iterdir()] == [name]
    assert load_backbone("resnet18", weights=str(path)).sha256 == digest


def test_a_damaged_file_in_the_cache_is_named(cache):
    cache.mkdir(parents=True)
    path = cache / "resnet18-f37072fd.pth"
    path.write_bytes(b"half")
    with pytest.raises(WeightsError, match=r"resnet18-f37072fd\.pth is damaged.*Delete"):
        load_backbone("resnet18", weights="IMAGENET1K_V1")


CACHED = Path(torch.hub.get_dir()) / "checkpoints" / "resnet50-0676ba61.pth"


@pytest.mark.weights
@pytest.mark.skipif(not CACHED.is_file(), reason="no ImageNet weights in torch's cache folder")
def test_named_weights_have_their_name():
    assert load_backbone("resnet50", weights="IMAGENET1K_V1").weights == "IMAGENET1K_V1"
