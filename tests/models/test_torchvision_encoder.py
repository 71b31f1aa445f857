import threading
from functools import cache
from typing import Any

import numpy as np
import PIL
import pytest
import torch
import torchvision
from torch import nn
from torchvision.transforms import functional as transforms

from lookalike.errors import ConfigurationError, EmbeddingFailedError
from lookalike.models import resnet
from lookalike.models.encoders import LiveEncoder
from lookalike.models.torch_encoder import choose_device, choose_precision
from lookalike.records import Preprocess
from tests.models.networks import torchvision_encoder
from tests.models.pictures import draw

PICTURES = [draw(seed) for seed in range(12)]


@cache
def plain(model, flatten):
    """Plain torchvision's network, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = getattr(torchvision.models, model)(weights=None)
    network.fc = nn.Identity()
    if flatten:
        network.avgpool = nn.Identity()
    return network.eval()


@cache
def reference(model, *, size, crop=False, flatten=False, count=12):
    """Plain torchvision, written out, for the first pictures: (N, dim) float32 of length 1."""
    network = plain(model, flatten)
    rows = []
    for picture in PICTURES[:count]:
        if crop:
            resized = transforms.resize(picture, [round(size * 256 / 224)])
            resized = transforms.center_crop(resized, [size, size])
        else:
            resized = transforms.resize(picture, [size, size])
        tensor = transforms.to_tensor(resized)
        tensor = transforms.normalize(tensor, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        with torch.inference_mode():
            rows.append(nn.functional.normalize(network(tensor[None])))
    vectors = torch.cat(rows).numpy()
    vectors.flags.writeable = False
    return vectors


def build(model="resnet18", **given):
    options: dict[str, Any] = {
        "weights": "random",
        "input_size": 64,
        "precision": "float32",
    } | given
    return torchvision_encoder(model, **options)


@pytest.fixture(scope="module")
def encoder():
    return build()


def vectors_of(encoder, pictures=PICTURES):
    return encoder.encode([encoder.prepare(picture) for picture in pictures])


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("flatten", [False, True])
def test_float32_is_plain_torchvision(model, crop, flatten):
    encoder = build(
        model,
        pooling="flatten" if flatten else "avg",
        resize="crop" if crop else "squash",
    )
    actual = vectors_of(encoder)
    expected = reference(model, size=64, crop=crop, flatten=flatten)
    assert actual.dtype == np.float32
    assert actual.shape == (12, encoder.spec.dim) == expected.shape
    assert np.abs(actual - expected).max() <= 1e-5
    assert np.abs(np.linalg.norm(actual, axis=1) - 1).max() <= 1e-6


def test_an_input_that_is_no_multiple_of_the_stride():
    encoder = build(input_size=100, pooling="flatten")
    expected = reference("resnet18", size=100, flatten=True, count=2)
    assert np.abs(vectors_of(encoder, PICTURES[:2]) - expected).max() <= 1e-5


@pytest.mark.parametrize("fused", [True, False])
def test_reduced_precision_stays_within_its_bounds(fused, monkeypatch):
    if not fused:
        monkeypatch.setattr(resnet, "_FusedConv", _raise)
    encoder = build("resnet50", input_size=224, precision="bfloat16")
    pictures = PICTURES[:8]
    expected = reference("resnet50", size=224, count=8).astype(np.float64)
    actual = vectors_of(encoder, pictures)
    apart = 1 - (actual * expected).sum(axis=1)
    others = 1 - expected @ expected.T + 2 * np.eye(len(pictures))
    assert apart.max() <= 0.001
    assert (apart <= others.min(axis=1) / 10).all()
    alone = 1 - (vectors_of(encoder, pictures[:1])[0] * actual[0]).sum()
    assert alone <= min(0.001, others[0].min() / 10)


def _raise(*args, **kwargs):
    raise NotImplementedError("no such operator")


def test_without_fused_convolutions_the_numbers_are_the_same(encoder, monkeypatch):
    fused = vectors_of(encoder)
    monkeypatch.setattr(resnet, "_FusedConv", _raise)
    assert np.abs(vectors_of(build()) - fused).max() <= 1e-5


def test_a_picture_alone_equals_itself_in_a_batch(encoder):
    together = vectors_of(encoder)
    alone = np.concatenate([vectors_of(encoder, [picture]) for picture in PICTURES])
    assert np.abs(together - alone).max() <= 1e-5


def test_spec_and_provenance():
    encoder = build(resize="crop", pooling="flatten")
    spec = encoder.spec
    assert (spec.model, spec.weights) == ("resnet18", "random")
    assert (spec.pooling, spec.preprocess) == ("flatten", Preprocess(resize="crop", input_size=64))
    assert spec.dim == 512 * 2 * 2
    assert len(spec.weights_sha256) == 64
    assert spec.differences(build(resize="crop", pooling="flatten").spec) == {}
    assert encoder.decode_size == 73
    assert dict(encoder.provenance) == {
        "precision": "float32",
        "runtime": "torch",
        "device": "cpu",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
    }


def test_the_batchers_thread_uses_all_threads_asked_for():
    seen = []

    before = torch.get_num_threads()
    encoder = build(input_size=32, threads=2)
    forward = encoder._forward

    def watched(pixels):
        seen.append((threading.current_thread().name, torch.get_num_threads()))
        return forward(pixels)

    encoder._forward = watched
    torch.set_num_threads(1)
    batcher = LiveEncoder(encoder)
    batcher.embed(encoder.prepare(PICTURES[0]))
    batcher.close()
    torch.set_num_threads(before)
    assert seen == [("batcher", 2)]


def test_read_only_pictures_are_taken(encoder):
    picture = encoder.prepare(PICTURES[0])
    picture.flags.writeable = False
    assert encoder.encode([picture]).shape == (1, 512)


def test_other_shapes_are_refused(encoder):
    with pytest.raises(EmbeddingFailedError, match=r"\(64, 64, 3\)"):
        encoder.encode([np.zeros((65, 64, 3), np.uint8)])


def test_damaged_weights_never_give_vectors(encoder, monkeypatch):
    for bad in (float("nan"), 0.0):
        monkeypatch.setattr(encoder, "_network", lambda pixels, bad=bad: torch.full((1, 512), bad))
        with pytest.raises(EmbeddingFailedError, match="NaN"):
            vectors_of(encoder, PICTURES[:1])


def test_a_device_without_memory_gets_smaller_batches(encoder, monkeypatch):
    expected, network, sizes, most = vectors_of(encoder), encoder._network, [], 3

    def small(pixels):
        sizes.append(len(pixels))
        if len(pixels) > most:
            raise torch.OutOfMemoryError("out of memory")
        return network(pixels)

    monkeypatch.setattr(encoder, "_network", small)
    assert np.abs(vectors_of(encoder) - expected).max() <= 1e-5
    assert sizes == [12, 6, 3, 3, 6, 3, 3]
    most = 0
    with pytest.raises(EmbeddingFailedError, match=r"(?i)no memory left"):
        vectors_of(encoder)


@pytest.mark.parametrize(
    "options",
    [
        {"model": "resnet51"},
        {"pooling": "max"},
        {"resize": "stretch"},
        {"precision": "int8"},
        {"int8": True},
        {"input_size": 8},
        {"device": "toaster"},
        {"device": "meta"},
        {"device": "cuda:99"},
    ],
)
def test_settings_that_cannot_work(options):
    with pytest.raises(ConfigurationError):
        build(**options)


def test_precision_follows_the_device(monkeypatch):
    cpu = choose_device("cpu")
    for capabilities, expected in (
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True, "avx2": True}, "bfloat16"),
        ({"avx2": True, "avx512_bf16": False}, "float32"),
        ({}, "float32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda given=capabilities: given)
        assert choose_precision("auto", device=cpu) == expected
    assert choose_precision("float32", device=cpu) == "float32"
    assert choose_precision("auto", device=torch.device("cuda")) == "float16"
    assert choose_precision("auto", device=torch.device("mps")) == "float32"
    assert choose_device("auto").type in ("cpu", "cuda", "mps")


def test_float16_on_a_cpu_works():
    expected = reference("resnet18", size=64)[:2]
    actual = vectors_of(build(precision="float16"), PICTURES[:2])
    assert ((1 - (actual * expected).sum(axis=1)) < 0.001).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_cuda_agrees_with_the_reference(precision):
    encoder = build("resnet50", input_size=224, precision=precision, device="cuda")
    expected = reference("resnet50", size=224)
    actual = vectors_of(encoder)
    if precision == "float32":
        assert np.abs(actual - expected).max() <= 1e-5
    others = 1 - expected @ expected.T + 2 * np.eye(len(PICTURES))
    assert (1 - (actual * expected).sum(axis=1) <= others.min(axis=1) / 10).all()
