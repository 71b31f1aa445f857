"""Converted networks as files; nothing here needs OpenVINO."""

import json
import logging
import os
from typing import Any

import pytest

from lookalike.errors import ConfigurationError, WeightsError
from lookalike.models.openvino import runtime
from lookalike.models.openvino.networks import find_network, keep_network, origin_of
from lookalike.records import ModelSpec
from tests.models.networks import request


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data" / "models"


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "mine.pth"
    path.write_bytes(b"some weights")
    return path


def origin(weights="random", **given):
    return origin_of(request(weights=str(weights), **{"input_size": 64} | given))


def spec(**options):
    fields: dict[str, Any] = {
        "model": "resnet18",
        "weights": "random",
        "weights_sha256": "0" * 64,
        "dim": 512,
    }
    return ModelSpec(**fields | options)


def save(content, path):
    path.write_bytes(b"<" + content + b">")
    path.with_suffix(".bin").write_bytes(content)


@pytest.fixture(autouse=True)
def _no_openvino(monkeypatch):
    monkeypatch.setattr(runtime, "installed_version", lambda: "2026.4")
    monkeypatch.setattr(runtime, "save", save)


def keep(folder, origin, *, made=None, content=b"net"):
    kept = keep_network(folder, origin, made or spec(), content, notes={"calibrated": 3})
    assert kept is not None
    return kept


def test_what_is_kept_is_found(folder):
    kept = keep(folder, origin())
    assert find_network(folder, origin()) == kept
    assert kept.xml.parent.parent == folder / spec().digest
    assert kept.xml.read_bytes() == b"<net>"
    assert kept.xml.with_suffix(".bin").read_bytes() == b"net"
    assert kept.spec == spec()
    facts = json.loads(kept.xml.parent.with_name("manifest.json").read_text())["facts"]
    assert (facts["openvino"], facts["notes"]) == ("2026.4", {"calibrated": 3})


def test_nothing_else_is_found(folder, weights):
    assert find_network(folder, origin()) is None
    keep(folder, origin())
    for other in (
        origin(weights),
        origin("IMAGENET1K_V1"),
        origin(pooling="flatten"),
        origin(resize="crop"),
        origin(input_size=None),
        origin(model="resnet34"),
    ):
        assert find_network(folder, other) is None
    assert find_network(folder, origin(), openvino="2026.4") is not None
    assert find_network(folder, origin(), openvino="2027.0") is None


def test_a_weights_file_is_its_bytes(folder, weights, monkeypatch):
    keep(folder, origin(weights), made=spec(weights="mine.pth"))
    monkeypatch.chdir(weights.parent)
    assert find_network(folder, origin("mine.pth")) is not None
    before = weights.stat()
    weights.write_bytes(b"Some weights")  # as long, and as old
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert find_network(folder, origin(weights)) is None
    weights.write_bytes(b"some weights")
    assert find_network(folder, origin(weights)) is not None
    moved = weights.rename(weights.with_name("other.pth"))
    assert find_network(folder, origin(moved)) is None  # its name is shown


def test_names_depend_on_what_resolves_them(weights, monkeypatch):
    assert set(origin("random")["versions"]) == {"torch", "torchvision"}
    assert set(origin("DEFAULT")["versions"]) == {"torchvision"}
    assert origin("IMAGENET1K_V1")["versions"] == {} == origin(weights)["versions"]
    assert origin("IMAGENET1K_V1")["weights_file"] is None
    monkeypatch.chdir(weights.parent)
    weights.rename("random")
    assert origin("random")["weights_file"] is None


def test_what_cannot_be_described(weights):
    with pytest.raises(ConfigurationError, match="Unknown model"):
        origin(model="resnet19")
    assert origin("\0")["weights_file"] is None
    if os.geteuid() != 0:
        weights.chmod(0)
        with pytest.raises(WeightsError, match="cannot be read"):
            origin(weights)


@pytest.mark.parametrize("damage", ["xml", "bin", "no bin", "manifest", "field", "moved", "escape"])
def test_what_is_damaged_is_not_found(folder, damage, caplog):
    kept = keep(folder, origin())
    manifest = kept.xml.parent.with_name("manifest.json")
    document = json.loads(manifest.read_text())
    if damage == "xml":
        kept.xml.write_bytes(b"<nat>")
    elif damage == "bin":
        kept.xml.with_suffix(".bin").write_bytes(b"ne")
    elif damage == "no bin":
        kept.xml.with_suffix(".bin").unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:-30])
    elif damage == "field":
        manifest.write_text(json.dumps(document | {"files": None}))
    elif damage == "moved":
        kept.xml.parent.parent.rename(folder / "0123456789abcdef")
    else:
        (folder / "x.xml").write_bytes(b"<net>")
        document["files"] = {f"../../{kept.xml.name}": document["files"][kept.xml.name]}
        manifest.write_text(json.dumps(document))
    with caplog.at_level(logging.WARNING):
        assert find_network(folder, origin()) is None
    assert "cannot be used" in caplog.text


def test_a_conversion_that_stops_halfway_leaves_what_was_there(folder, monkeypatch, caplog):
    kept = keep(folder, origin())

    def fail(_, path):
        path.write_bytes(b"<ha")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runtime, "save", fail)
    assert keep_network(folder, origin(), spec(), b"net") is None
    assert "No space" in caplog.text
    assert find_network(folder, origin()) == kept
    kept.xml.parent.with_name("manifest.json").unlink()
    assert find_network(folder, origin()) is None


def test_the_older_is_replaced_and_swept(folder):
    old = keep(folder, origin(), content=b"old")
    new = keep(folder, origin(), content=b"new")
    assert find_network(folder, origin()) == new
    assert old.xml.exists()  # another process may still read it
    for content in (old.xml.parent, new.xml.parent):
        os.utime(content, (0, 0))
    newest = keep(folder, origin(), content=b"newest")
    assert not old.xml.exists()
    assert find_network(folder, origin()) == newest


def test_quantized_ones_stand_apart(folder):
    keep(folder, origin())
    quantized = origin(int8=True)
    assert find_network(folder, quantized) is None
    kept = keep(folder, quantized, made=spec(int8=True))
    assert find_network(folder, quantized) == kept
    found = find_network(folder, origin())
    assert found is not None
    assert found.spec == spec()
