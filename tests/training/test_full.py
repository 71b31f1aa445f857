"""The whole network, a few steps at a small input on the CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.bootstrap import build_encoder
from lookalike.errors import ConfigurationError, WeightsMismatchError
from lookalike.models.head import HeadSpec, save_head
from lookalike.models.torchvision import load_backbone
from lookalike.records import Preprocess
from lookalike.services.vector_set import VectorSet
from lookalike.training.full import (
    FullNetwork,
    FullOptions,
    FullResult,
    augment,
    extract_again,
    train_full,
)
from lookalike.training.plan import TrainingOptions
from lookalike.training.task import HeadNetwork
from tests.evaluation.made import drawn_set
from tests.models.networks import torchvision_encoder
from tests.settings import make_settings

QUICK = TrainingOptions(epochs=2, dim=16, classes_per_batch=4, hold_out_classes=0, seed=3)
CPU = FullOptions(device="cpu")


@pytest.fixture(scope="module")
def data() -> VectorSet:
    drawn = drawn_set(classes=["mug", "car", "fish", "leaf"], instances=4, views=2)
    encoder = torchvision_encoder(
        "resnet18", "random", input_size=32, precision="float32", device="cpu"
    )
    return extract_again(drawn, encoder)


@pytest.fixture(scope="module")
def trained(data) -> FullResult:
    return train_full(data, weights="random", options=QUICK, full=CPU)


def test_the_saved_network_and_head_are_served(data, trained, tmp_path):
    path = trained.save_backbone(tmp_path)
    head = save_head(trained.training.head, tmp_path / "head.safetensors")
    settings = make_settings(
        model="resnet18",
        weights=str(path),
        head=head,
        input_size=32,
        precision="float32",
        device="cpu",
        runtime="torch",
    )
    served = build_encoder(settings)
    assert served.spec.head == trained.training.head.digest
    assert served.spec.weights_sha256 != data.spec.weights_sha256
    vectors = extract_again(data, served).vectors
    network = rebuilt(trained)
    pixels = np.stack([served.prepare(data.picture(n, size=32)) for n in range(len(data))])
    with torch.inference_mode():
        theirs = network(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(vectors, theirs, atol=1e-4)
    assert trained.training.history[-1].validation is not None


def rebuilt(trained: FullResult) -> FullNetwork:
    """The trained network from its parts, by torch alone."""
    backbone = load_backbone("resnet18", weights="random").network
    backbone.load_state_dict(dict(trained.backbone))
    head = HeadNetwork(trained.training.head.spec, seed=9)
    tensors = trained.training.head.tensors
    state = {f"layers.{name}": torch.from_numpy(value) for name, value in tensors.items()}
    head.load_state_dict(state, strict=False)
    return FullNetwork(backbone, head, preprocess=Preprocess(), full=CPU).eval()


def test_the_network_moved_and_its_statistics_did_not(trained):
    before = load_backbone("resnet18", weights="random").network.state_dict()
    moved = {
        name for name, value in trained.backbone.items() if not torch.equal(value, before[name])
    }
    assert "conv1.weight" in moved
    assert "layer4.1.bn2.weight" in moved
    assert not any("running" in name for name in moved)


def test_interrupted_it_goes_on_to_the_same(data, trained, tmp_path):
    def stop(epoch, _):
        raise KeyboardInterrupt

    path = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        train_full(
            data, weights="random", options=QUICK, full=CPU, on_progress=stop, checkpoint=path
        )
    again = train_full(data, weights="random", options=QUICK, full=CPU, checkpoint=path)
    assert again.training.resumed_after == 1
    assert again.training.head.digest == trained.training.head.digest
    other = replace(CPU, augmentation=False)
    plain = train_full(data, weights="random", options=QUICK, full=other, checkpoint=path)
    assert plain.training.resumed_after == 0
    assert plain.training.head.digest != trained.training.head.digest


def gradient(full: FullOptions) -> torch.Tensor:
    backbone = load_backbone("resnet18", weights="random").network
    head = HeadNetwork(HeadSpec(dim_in=512, dim_out=16), seed=0)
    network = FullNetwork(backbone, head, preprocess=Preprocess(), full=full).train()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    torch.autograd.backward(network(torch.from_numpy(pixels))[:, :3].sum())
    found = network.backbone.conv1.weight.grad
    assert found is not None
    return found.flatten()


def test_checkpointing_gives_the_same_gradient_and_mixed_precision_nearly():
    plain = gradient(CPU)
    torch.testing.assert_close(gradient(replace(CPU, gradient_checkpointing=True)), plain)
    mixed = gradient(replace(CPU, mixed_precision=True))
    assert not torch.equal(mixed, plain)
    assert torch.nn.functional.cosine_similarity(mixed, plain, dim=0) > 0.9


def test_a_view_is_a_part_of_its_picture():
    pixels = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60)
    picture = Image.fromarray(
        np.stack([pixels >> 8, pixels & 255, pixels * 0], axis=2).astype(np.uint8)
    )
    seen = set()
    for seed in range(30):
        view = np.asarray(augment(picture, np.random.default_rng(seed))).astype(int)
        assert 0.55 <= view.shape[0] * view.shape[1] / pixels.size <= 1
        numbers = view[..., 0] * 256 + view[..., 1]
        mirrored = numbers[0, 0] > numbers[0, -1]
        numbers = numbers[:, ::-1] if mirrored else numbers
        top, left = divmod(int(numbers[0, 0]), 60)
        height, width = numbers.shape
        np.testing.assert_array_equal(numbers, pixels[top : top + height, left : left + width])
        seen.add(bool(mirrored))
    assert seen == {True, False}


def test_what_cannot_be_trained_is_refused(data):
    color = drawn_set(classes=["mug", "car"], instances=2, views=2)
    with pytest.raises(ConfigurationError, match="not for color"):
        train_full(color, weights="random", options=QUICK, full=CPU)
    other = replace(data, spec=replace(data.spec, weights_sha256="0" * 64))
    with pytest.raises(WeightsMismatchError, match="other weights"):
        train_full(other, weights="random", options=QUICK, full=CPU)
