"""Settings from flags, the environment and .env; what is wrong is said by name."""

from __future__ import annotations

import logging

import pytest

from lookalike.config import Settings, load_settings, unknown_variables
from lookalike.cores import available_cores, limit_openmp
from lookalike.errors import ConfigurationError


def test_flags_win_over_the_environment_and_that_over_the_file(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("LOOKALIKE_PORT=1\nLOOKALIKE_MODEL=resnet18\nOTHER=x\n")
    assert (load_settings().port, load_settings().model) == (1, "resnet18")
    monkeypatch.setenv("LOOKALIKE_PORT", "2")
    assert load_settings().port == 2
    assert load_settings(port=3, model=None).port == 3


def test_an_empty_variable_is_not_set(monkeypatch):
    monkeypatch.setenv("LOOKALIKE_ADMIN_KEY", "")
    assert load_settings().admin_key is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "tcp://10.0.0.1:8000"),
        ("port", "70000"),
        ("pooling", "max"),
        ("admin_key", "short"),
        ("input_size", "8"),
        ("max_batch", "many"),
        ("index_parameters", "nprobe=0"),
        ("index_parameters", "depth=3"),
        ("recall_sample", "1.5"),
        ("index_memory", "0"),
        ("max_file_bytes", "1"),
        ("max_metadata_bytes", "2MB"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(name, value):
    with pytest.raises(ConfigurationError, match=f"LOOKALIKE_{name.upper()}"):
        load_settings(**{name: value})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("index_memory", "2GB", 2 * 10**9),
        ("max_file_bytes", "1.5 MB", 1_500_000),
        ("max_metadata_bytes", "8KiB", 8192),
        ("max_archive_bytes", "10GB", 10**10),
        ("max_archive_bytes", "10000", 10_000),
    ],
)
def test_sizes_take_units(name, text, value, monkeypatch):
    monkeypatch.setenv(f"LOOKALIKE_{name.upper()}", text)
    assert getattr(load_settings(), name) == value


@pytest.mark.parametrize(
    "name", ["index_memory", "max_file_bytes", "max_metadata_bytes", "max_archive_bytes"]
)
@pytest.mark.parametrize("text", ["lots", "5 parsecs", "-1"])
def test_what_is_no_size_is_said_with_an_example(name, text):
    with pytest.raises(ConfigurationError) as caught:
        load_settings(**{name: text})
    start = f"LOOKALIKE_{name.upper()}: {text!r} is no size: "
    assert str(caught.value) == f"{start}write a number of bytes, or one with a unit, e.g. 2GB"


@pytest.mark.parametrize(
    ("text", "reason"), [("foo", "could not parse index string foo"), ("NSG32", "NSG never")]
)
def test_an_index_type_that_is_none_is_said_plainly(text, reason, tmp_path):
    from lookalike.bootstrap import open_store

    with pytest.raises(ConfigurationError) as caught:
        open_store(load_settings(index=text, data_dir=tmp_path))
    said = str(caught.value)
    assert said.startswith(f"LOOKALIKE_INDEX: {text!r} is no index type: ")
    assert reason in said
    assert "Use Flat (exact), auto, or a factory string of FAISS such as HNSW32,SQ8 or" in said
    assert "::" not in said


@pytest.mark.parametrize("name", ["admin_key", "read_key"])
def test_a_short_key_is_counted_in_characters(name):
    with pytest.raises(ConfigurationError, match=rf"^LOOKALIKE_{name.upper()}: .* 8 characters"):
        load_settings(**{name: "K"})


def test_folders_to_import_from_are_absolute(tmp_path):
    for text in (f"{tmp_path}:/nowhere", f"{tmp_path}, /nowhere", "~/photos"):
        assert load_settings(import_dirs=text).import_dirs == text
    for text in ("photos", f"{tmp_path},./photos", "~no-such-user/photos"):
        with pytest.raises(ConfigurationError, match=r"IMPORT_DIRS: '.*photos' .* /mnt/photos"):
            load_settings(import_dirs=text)


def test_the_cache_is_where_caches_are(monkeypatch, tmp_path):
    monkeypatch.delenv("LOOKALIKE_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert load_settings().cache_dir == tmp_path / ".cache" / "lookalike"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert load_settings().cache_dir == tmp_path / "xdg" / "lookalike"
    monkeypatch.setenv("LOOKALIKE_CACHE_DIR", "~/elsewhere")
    assert load_settings().cache_dir == tmp_path / "elsewhere"
    monkeypatch.setenv("LOOKALIKE_CACHE_DIR", "~no-such-user/x")
    with pytest.raises(ConfigurationError, match=r"LOOKALIKE_CACHE_DIR: .* no home folder"):
        load_settings()


def test_keys_do_not_show(monkeypatch):
    settings = load_settings(admin_key="a-secret-key")
    assert "a-secret-key" not in repr(settings)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(admin_key="tooshrt")
    assert "tooshrt" not in str(caught.value)


def test_unknown_variables_are_named_with_the_nearest_setting():
    found = unknown_variables(
        {"LOOKALIKE_WIEGHTS": "x", "LOOKALIKE_QQQQQQQQQQQQ": "y", "PATH": "/"}
    )
    assert found == {"LOOKALIKE_WIEGHTS": "LOOKALIKE_WEIGHTS", "LOOKALIKE_QQQQQQQQQQQQ": None}


def test_every_setting_has_a_description():
    assert all(field.description for field in Settings.model_fields.values())


def test_cores_and_openmp(monkeypatch, tmp_path):
    assert available_cores() >= 1
    quota = tmp_path / "cpu.max"
    quota.write_text("50000 100000\n")
    assert available_cores(quota) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    limit_openmp()
    import os

    assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("7", "PASSIVE")
    monkeypatch.delenv("OMP_WAIT_POLICY")


@pytest.mark.parametrize("style", ["text", "json"])
def test_log_lines(capsys, style):
    from lookalike.api.monitoring import configure_logging

    root = logging.getLogger()
    before = (root.handlers, root.level)
    try:
        configure_logging("info", style)
        logging.getLogger("somewhere").info("hello %s", "world", extra={"status": 200})
        logging.getLogger("somewhere").debug("not shown")
        line = capsys.readouterr().err.strip()
    finally:
        root.handlers, root.level = before
        logging.getLogger("uvicorn.access").disabled = False
    assert "hello world" in line
    assert "200" in line
    assert line.startswith("{") is (style == "json")
    assert "not shown" not in line
