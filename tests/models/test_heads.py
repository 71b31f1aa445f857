"""Heads: the same numbers as torch's layers, files that say what is wrong, and serving."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from lookalike.bootstrap import build_services
from lookalike.errors import (
    ConfigurationError,
    EmbeddingFailedError,
    SpecMismatchError,
    WeightsError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from lookalike.media.sources import PictureSource
from lookalike.models.color import ColorEncoder
from lookalike.models.head import Head, HeadedEncoder, HeadSpec, load_head, save_head
from lookalike.records import ModelSpec, Preprocess
from lookalike.services.search import SearchOptions
from scripts.samples import write_samples
from tests.settings import make_settings
from tests.store.helpers import unit_vectors

BACKBONE = ModelSpec(model="tiny", weights="w.pth", weights_sha256="a" * 64, dim=24)


def sequential(spec: HeadSpec, *, seed: int = 0) -> nn.Sequential:
    """Torch's own layers, with numbers that leave nothing at its default."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in zip(spec.widths, spec.widths[1:], strict=False):
            norm = nn.BatchNorm1d(after)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            nn.init.uniform_(norm.running_mean, 0, 0.2)
            nn.init.uniform_(norm.running_var, 0.01, 0.1)
            layers += [nn.Linear(before, after), nn.ReLU(), norm]
        return nn.Sequential(*layers).eval()


def head_of(layers: nn.Sequential, spec: HeadSpec, *, backbone: ModelSpec = BACKBONE) -> Head:
    state = layers.state_dict()
    tensors = {name: state[name].numpy() for name in spec.shapes()}
    return Head(spec, tensors, backbone=backbone, trained={"loss": "triplet", "seed": 3})


def made(
    *, dim_in: int = 24, hidden: tuple[int, ...] = (), backbone: ModelSpec = BACKBONE, seed: int = 0
) -> Head:
    spec = HeadSpec(dim_in=dim_in, dim_out=10, hidden=hidden)
    return head_of(sequential(spec, seed=seed), spec, backbone=backbone)


@pytest.mark.parametrize("hidden", [(), (7,), (16, 5)])
def test_the_numbers_are_those_of_torch(hidden):
    spec = HeadSpec(dim_in=24, dim_out=10, hidden=hidden)
    layers = sequential(spec)
    vectors = unit_vectors(50, dim=24)
    ours = head_of(layers, spec).apply(vectors)
    with torch.inference_mode():
        theirs = nn.functional.normalize(layers(torch.from_numpy(vectors)))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)


def test_a_row_does_not_depend_on_its_company():
    head = made(dim_in=24, hidden=(33,))
    vectors = unit_vectors(9000, dim=24)  # more than one block
    together = head.apply(vectors)
    for start, count in ((0, 1), (17, 1), (100, 3), (8990, 10), (4000, 200)):
        alone = head.apply(vectors[start : start + count])
        np.testing.assert_array_equal(alone, together[start : start + count])
    assert head.apply(vectors[:0]).shape == (0, 10)


def test_saved_and_loaded(tmp_path):
    head = made(hidden=(7,))
    path = save_head(head, tmp_path / "new" / "head.safetensors")
    for named in (path, tmp_path / "new", str(path)):
        again = load_head(named)
        assert (again.spec, again.backbone, again.digest) == (head.spec, BACKBONE, head.digest)
        assert again.trained == {"loss": "triplet", "seed": 3}
        vectors = unit_vectors(5, dim=24)
        np.testing.assert_array_equal(again.apply(vectors), head.apply(vectors))
    assert sorted(file.name for file in path.parent.iterdir()) == ["head.json", "head.safetensors"]
    assert made(seed=1, hidden=(7,)).digest != head.digest


def test_torch_reads_the_file_as_its_own(tmp_path):
    head = made()
    path = save_head(head, tmp_path / "head.safetensors")
    layers = nn.Sequential(nn.Linear(24, 10), nn.ReLU(), nn.BatchNorm1d(10)).eval()
    layers.load_state_dict(safetensors.torch.load_file(path))
    vectors = unit_vectors(4, dim=24)
    with torch.inference_mode():
        theirs = nn.functional.normalize(layers(torch.from_numpy(vectors)))
    np.testing.assert_allclose(head.apply(vectors), theirs.numpy(), atol=2e-6)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsNotFoundError, match="nowhere"):
        load_head(tmp_path / "nowhere.safetensors")
    path = save_head(made(), tmp_path / "head.safetensors")
    path.with_suffix(".json").unlink()
    with pytest.raises(WeightsNotFoundError, match=r"head\.json"):
        load_head(path)
    save_head(made(), path)
    path.unlink()
    with pytest.raises(WeightsNotFoundError, match=r"head\.safetensors"):
        load_head(tmp_path)
    with pytest.raises(WeightsError, match=r"\.safetensors"):
        load_head(tmp_path / "head.pth")


def test_a_truncated_file_is_refused_wherever_it_was_cut(tmp_path):
    path = save_head(made(), tmp_path / "head.safetensors")
    whole = path.read_bytes()
    for length in (0, 5, 8, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match="truncated or damaged"):
            load_head(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d.update(format=2), "format 2"),
        (lambda d: d.pop("format"), "does not describe a head"),
        (lambda d: d.pop("spec"), "damaged"),
        (lambda d: d["spec"].pop("hidden"), "damaged"),
        (lambda d: d["spec"].update(dim_out=0), "damaged"),
        (lambda d: d["spec"].update(dim_out=11), "11"),
        (lambda d: d["spec"].update(hidden=[4]), "24 -> 4 -> 10"),
        (lambda d: d["backbone"].pop("dim"), "damaged"),
        (lambda d: d["backbone"].update(dim=25), "25"),
        (lambda d: d.update(sha256="0" * 64), "not of the same head"),
    ],
)
def test_a_json_that_does_not_fit_is_refused(tmp_path, change, text):
    path = save_head(made(), tmp_path / "head.safetensors")
    document = json.loads(path.with_suffix(".json").read_text())
    change(document)
    path.with_suffix(".json").write_text(json.dumps(document))
    with pytest.raises(WeightsError, match=text):
        load_head(path)
    path.with_suffix(".json").write_text("[1, 2")
    with pytest.raises(WeightsError, match="does not describe a head"):
        load_head(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("0.weight", np.nan), ("2.bias", np.inf), ("2.running_var", -0.5)],
)
def test_numbers_that_cannot_be_are_refused(name, value):
    head = made()
    tensors = {key: tensor.copy() for key, tensor in head.tensors.items()}
    tensors[name].flat[3] = value
    with pytest.raises(WeightsError, match=name):
        Head(head.spec, tensors, backbone=BACKBONE)


def test_vectors_of_another_length_and_without_direction():
    with pytest.raises(EmbeddingFailedError, match="24"):
        made().apply(unit_vectors(3, dim=25))
    vectors = unit_vectors(3, dim=24)
    vectors[1, 4] = np.nan
    with pytest.raises(EmbeddingFailedError):
        made().apply(vectors)


def colors(tmp_path: Path) -> tuple[Path, Head]:
    """A head for `ColorEncoder`, as a file."""
    encoder = ColorEncoder()
    head = made(dim_in=encoder.spec.dim, backbone=encoder.spec)
    return save_head(head, tmp_path / "head.safetensors"), head


def test_an_encoder_with_a_head(tmp_path):
    _, head = colors(tmp_path)
    below = ColorEncoder()
    encoder = HeadedEncoder(below, head)
    assert encoder.spec == replace(below.spec, head=head.digest, dim=10)
    assert (encoder.spec.dim, encoder.decode_size) == (10, below.decode_size)
    assert encoder.provenance == below.provenance
    picture = below.prepare(Image.new("RGB", (60, 40), (200, 30, 90)))
    np.testing.assert_array_equal(encoder.prepare(Image.fromarray(picture)), picture)
    batch = [picture, picture // 2]
    np.testing.assert_array_equal(encoder.encode(batch), head.apply(below.encode(batch)))


def test_a_head_for_another_network_names_what_differs():
    other = replace(
        ColorEncoder().spec, preprocess=Preprocess(input_size=64), weights_sha256="b" * 64
    )
    head = made(dim_in=48, backbone=other)
    with pytest.raises(WeightsMismatchError, match=r"(?s)weights_sha256.*input_size is 64 .* 32"):
        HeadedEncoder(ColorEncoder(), head)
    _, own = ColorEncoder(), made(dim_in=48, backbone=ColorEncoder().spec)
    headed = HeadedEncoder(ColorEncoder(), own)
    with pytest.raises(WeightsMismatchError, match="head is None"):
        HeadedEncoder(headed, own)  # no head on a head


def test_the_setting_serves_a_head(tmp_path):
    path, head = colors(tmp_path)
    (picture, *_) = write_samples(tmp_path / "p", classes=["mug", "car"], instances=2, views=1)
    settings = make_settings(data_dir=tmp_path / "data", model="color")
    with_head = settings.model_copy(update={"head": path})
    services = build_services(with_head)
    try:
        sources = [PictureSource.from_path(file) for file in (tmp_path / "p").rglob("*.jpg")]
        list(services.indexing.index(sources))
        (info,) = services.store.collections()
        assert (info.spec.head, info.spec.dim) == (head.digest, 10)
        with picture.open("rb") as file:
            found = services.search.search(file, SearchOptions(k=1))
        assert found.matches[0].score == pytest.approx(1, abs=1e-6)
    finally:
        services.close()
    without = build_services(settings)
    try:
        with (
            picture.open("rb") as file,
            pytest.raises(SpecMismatchError, match=f"head is {head.digest} there and None"),
        ):
            without.search.search(file, SearchOptions(k=1))
    finally:
        without.close()
    with pytest.raises(ConfigurationError, match="nowhere"):
        build_services(settings.model_copy(update={"head": tmp_path / "nowhere.safetensors"}))
