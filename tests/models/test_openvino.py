"""OpenVINO's vectors against torch's, with random weights."""

import subprocess
import sys
from functools import cache

import numpy as np
import PIL
import pytest

from lookalike.errors import ConfigurationError, EmbeddingFailedError
from lookalike.models.head import Head, HeadedEncoder, HeadSpec
from lookalike.models.network import build
from lookalike.models.openvino import runtime
from lookalike.models.openvino.runtime import OpenVinoEncoder, agreement, convert
from tests.models.networks import request, torchvision_encoder
from tests.models.pictures import draw

PICTURES = [draw(seed) for seed in range(6)]


@cache
def converted(pooling="avg", resize="squash", size=64):
    """OpenVINO's network, and its spec."""
    network, spec, _ = build(request(pooling=pooling, resize=resize, input_size=size))
    return convert(network, input_size=size), spec


def pair(*, pooling="avg", resize="squash", size=64):
    """The same network in OpenVINO and in torch."""
    network, spec = converted(pooling, resize, size)
    ours = OpenVinoEncoder(network, spec=spec, precision="float32")
    theirs = torchvision_encoder(
        "resnet18",
        "random",
        pooling=pooling,
        resize=resize,
        input_size=size,
        precision="float32",
        device="cpu",
    )
    return ours, theirs


@pytest.fixture(scope="module")
def both():
    return pair()


def batch_of(encoder):
    return [encoder.prepare(picture) for picture in PICTURES]


def cosines(first, second):
    return (first.astype(np.float64) * second).sum(axis=1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pooling": "flatten", "resize": "crop", "size": 32},
        {"pooling": "flatten", "size": 100},
    ],
)
def test_float32_is_torchs(both, options):
    ours, theirs = pair(**options) if options else both
    assert ours.spec == theirs.spec
    assert ours.decode_size == theirs.decode_size
    batch = batch_of(theirs)
    assert np.array_equal(batch, batch_of(ours))
    expected, together = theirs.encode(batch), ours.encode(batch)
    alone = np.concatenate([ours.encode(batch[n : n + 1]) for n in range(len(batch))])
    for actual in (together, alone):
        assert actual.dtype == np.float32
        assert actual.shape == expected.shape
        assert cosines(actual, expected).min() >= 0.99999
        assert np.abs(actual - expected).max() <= 1e-5
        assert np.abs(np.linalg.norm(actual, axis=1) - 1).max() <= 1e-6


def test_bfloat16_stays_within_its_bounds(both):
    if not runtime.computes_bfloat16():
        pytest.skip("this CPU computes no bfloat16")
    network, spec = converted()
    ours = OpenVinoEncoder(network, spec=spec, precision="bfloat16")
    batch = batch_of(ours)
    expected = both[1].encode(batch)
    apart = 1 - cosines(ours.encode(batch), expected)
    others = 1 - expected.astype(np.float64) @ expected.T + 2 * np.eye(len(batch))
    assert 0 < apart.max() <= 0.001
    assert (apart <= others.min(axis=1) / 10).all()
    assert ours.provenance["openvino_precision"] == "bf16"


def test_provenance_says_what_was_read_back(both):
    provenance = dict(both[0].provenance)
    assert provenance.pop("openvino").startswith("20")
    assert provenance.pop("pillow")
    assert provenance == {
        "precision": "float32",
        "openvino_precision": "f32",
        "runtime": "openvino",
        "device": "cpu",
    }


def test_auto_is_what_the_cpu_computes(monkeypatch):
    for there, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(runtime, "computes_bfloat16", lambda there=there: there)
        assert runtime.choose_float("auto") == expected
        assert runtime.computes("bfloat16") is there


def test_precisions_that_are_not_computed(monkeypatch):
    network, spec = converted()
    with pytest.raises(ConfigurationError, match=r"does not compute float16 on CPUs.*float32"):
        OpenVinoEncoder(network, spec=spec, precision="float16")
    monkeypatch.setattr(runtime, "precision_of", lambda compiled: "bf16")
    with pytest.raises(ConfigurationError, match="computes bf16 instead of float32"):
        OpenVinoEncoder(network, spec=spec, precision="float32")


def test_threads_are_bounded():
    network, _ = converted()
    for threads in (1, 2):
        for side_by_side in (False, True):
            compiled = runtime.compile_network(
                network, precision="float32", threads=threads, side_by_side=side_by_side
            )
            assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
            streams = compiled.get_property("NUM_STREAMS")
            assert 1 <= streams <= threads if side_by_side else streams == 1


def test_files_that_are_no_network(tmp_path, both):
    (tmp_path / "model.xml").write_text("<net/>")
    with pytest.raises(ConfigurationError, match=r"cannot use the converted network.*delete"):
        OpenVinoEncoder(tmp_path / "model.xml", spec=both[0].spec)


def test_batches_that_cannot_be(both, monkeypatch):
    ours = both[0]
    assert ours.encode([]).shape == (0, 512)
    with pytest.raises(EmbeddingFailedError, match=r"\(64, 64, 3\)"):
        ours.encode([np.zeros((65, 64, 3), np.uint8)])
    read_only = batch_of(ours)
    expected = ours.encode(read_only)
    for picture in read_only:
        picture.flags.writeable = False
    assert np.array_equal(ours.encode(read_only), expected)
    assert np.array_equal(ours.encode(batch_of(ours)[::-1]), expected[::-1])

    class Failing:
        def infer(self, *_, **__):
            raise RuntimeError("could not allocate")

        start_async = infer

    for name, count in (("_whole", 1), ("_parts", 6)):
        failing = Failing() if name == "_whole" else [ours._parts[0], Failing()]
        with monkeypatch.context() as patched:
            patched.setattr(ours, name, failing)
            with pytest.raises(EmbeddingFailedError, match=r"could not allocate.*MAX_BATCH"):
                ours.encode(read_only[:count])
        assert np.array_equal(ours.encode(read_only), expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_length_of_a_batch_gives_the_same(both, threads):
    network, spec = converted()
    ours = OpenVinoEncoder(network, spec=spec, precision="float32", threads=threads)
    batch = batch_of(ours) * 2
    expected = both[1].encode(batch)
    for count in range(1, len(batch) + 1):
        assert cosines(ours.encode(batch[:count]), expected[:count]).min() >= 0.99999


def test_what_was_answered_stays_when_more_is_asked(both):
    ours = both[0]
    batch = batch_of(ours)
    first = ours.encode(batch)
    before = first.copy()
    ours.encode(batch[::-1].copy())
    assert np.array_equal(first, before)


def test_a_head_goes_on_it(both):
    ours, theirs = both
    rng = np.random.default_rng(0)
    spec = HeadSpec(dim_in=512, dim_out=16)
    tensors = {
        name: np.abs(rng.normal(size=shape)).astype(np.float32)
        for name, shape in spec.shapes().items()
    }
    head = Head(spec, tensors, backbone=theirs.spec)
    batch = batch_of(ours)
    actual, expected = (HeadedEncoder(one, head).encode(batch) for one in (ours, theirs))
    assert cosines(actual, expected).min() >= 0.99999


def test_agreement_is_as_defined():
    rng = np.random.default_rng(1)
    before = rng.normal(size=(40, 8)).astype(np.float32)
    after = before + rng.normal(scale=0.3, size=before.shape).astype(np.float32)
    before, after = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (before, after))
    kept, cosine = [], []
    for row in range(40):
        others = [other for other in range(40) if other != row]
        near = [
            set(sorted(others, key=lambda other: -float(rows[row] @ rows[other]))[:10])
            for rows in (before, after)
        ]
        kept.append(len(near[0] & near[1]) / 10)
        cosine.append(float(before[row] @ after[row]))
    found = agreement(before, after)
    assert found.pictures == 40
    assert found.overlap == pytest.approx(sum(kept) / 40)
    assert 0.3 < found.overlap < 1
    assert found.cosine_min == pytest.approx(min(cosine), abs=1e-6)
    assert found.cosine_mean == pytest.approx(sum(cosine) / 40, abs=1e-6)
    with pytest.raises(ValueError, match="cannot be compared"):
        agreement(before[:10], after[:10])


def test_nothing_is_sent_home(tmp_path):
    code = (
        "import sys; from lookalike.models.openvino.runtime import core; core(); "
        "assert sys.modules['openvino_telemetry'] is None; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"HOME": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []


def test_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'lookalike\[openvino\]'"):
        runtime.import_openvino()


def test_the_versions_are_those_of_the_packages(both):
    from importlib.metadata import version

    assert version("openvino").startswith(both[0].provenance["openvino"])
    assert PIL.__version__ == both[0].provenance["pillow"]
