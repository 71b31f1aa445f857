"""Digests of model specs: they name vectors, indexes, networks and heads on disk."""

from dataclasses import field, make_dataclass, replace

import pytest

from lookalike.records import ModelSpec, Preprocess

RESNET = ModelSpec(model="resnet50", weights="IMAGENET1K_V1", weights_sha256="a" * 64, dim=2048)
TIMM = ModelSpec(
    model="timm/vit_small_patch14_dinov2.lvd142m",
    weights="pretrained",
    weights_sha256="b" * 64,
    preprocess=Preprocess(
        input_size=518, resize="crop", crop_share=1, interpolation="bicubic", mean=(0.5, 0.5, 0.5)
    ),
    dim=384,
)

DIGESTS = [
    (RESNET, "93270067660c342f"),
    (replace(RESNET, head="c" * 64, dim=512), "9bfb0e9444b638b8"),
    (replace(RESNET, pooling="flatten", dim=100_352), "316c29859f1f93ad"),
    (replace(RESNET, int8=True), "e19ba0f7e907b809"),
    (replace(RESNET, preprocess=Preprocess(resize="crop")), "d2a0cc07816a8c0f"),
    (replace(RESNET, preprocess=Preprocess(input_size=64, version=2)), "b7f528901415e01d"),
    (replace(RESNET, preprocess=Preprocess(std=(1, 1, 1))), "631f9eae0230f319"),
    (
        replace(RESNET, preprocess=Preprocess(resize="pad", padding=(255, 255, 255))),
        "5f23a92a2daf54f1",
    ),
    (TIMM, "b3e4c07f7babb46d"),
]
"""Never change one of these: what is on disk under it would be lost."""


@pytest.mark.parametrize(("spec", "digest"), DIGESTS)
def test_digests_are_fixed(spec, digest):
    assert spec.digest == digest
    assert ModelSpec.from_json(spec.to_json()) == spec


def test_a_field_added_with_a_default_changes_no_digest():
    later_preprocess = make_dataclass(
        "LaterPreprocess",
        [("gamma", float, field(default=1.0))],
        bases=(Preprocess,),
        frozen=True,
        kw_only=True,
    )
    later_spec = make_dataclass(
        "LaterSpec",
        [("prompt", str, field(default=""))],
        bases=(ModelSpec,),
        frozen=True,
        kw_only=True,
    )
    fields = {"model": "resnet50", "weights": "w", "weights_sha256": "a" * 64, "dim": 2048}
    later = later_spec(**fields, preprocess=later_preprocess())
    assert later.digest == RESNET.digest
    assert later_spec(**fields, preprocess=later_preprocess(gamma=2.0)).digest != RESNET.digest
    assert later_spec(**fields, prompt="a photo of").digest != RESNET.digest


def test_the_weights_label_does_not_count():
    renamed = replace(RESNET, weights="mine.pth")
    assert renamed.digest == RESNET.digest
    assert renamed.differences(RESNET) == {}
    other = replace(renamed, weights_sha256="d" * 64)
    assert list(other.differences(RESNET)) == ["weights", "weights_sha256"]


def test_differences_and_json_name_preprocessing_fields_beside_the_others():
    other = replace(
        RESNET, preprocess=Preprocess(input_size=64, mean=(0.5, 0.5, 0.5), version=2), dim=512
    )
    assert RESNET.differences(other) == {
        "input_size": (224, 64),
        "mean": ([0.485, 0.456, 0.406], [0.5, 0.5, 0.5]),
        "preprocessing": (1, 2),
        "dim": (2048, 512),
    }
    assert RESNET.to_dict() == {
        "model": "resnet50",
        "weights": "IMAGENET1K_V1",
        "weights_sha256": "a" * 64,
        "head": None,
        "pooling": "avg",
        "input_size": 224,
        "resize": "squash",
        "crop_share": 0.875,
        "interpolation": "bilinear",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "padding": [0, 0, 0],
        "preprocessing": 1,
        "dim": 2048,
        "int8": False,
    }


def test_equal_numbers_have_one_digest():
    whole = replace(RESNET, preprocess=Preprocess(mean=[0, 0, 0], crop_share=1))  # type: ignore[arg-type]
    floats = replace(RESNET, preprocess=Preprocess(mean=(0.0, 0.0, 0.0), crop_share=1.0))
    assert whole == floats
    assert whole.digest == floats.digest
