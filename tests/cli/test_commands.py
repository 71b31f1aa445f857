"""Every command on a data folder, and the same on a running service."""

from __future__ import annotations

import itertools
import json
import re
import sqlite3
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from lookalike.cli.main import COMMANDS, load_command
from lookalike.errors import ConfigurationError, DataFolderInUseError, ServerError
from lookalike.store.local import catalog
from lookalike.store.local.store import LocalStore
from tests.servers import ADMIN_KEY, LOOKALIKE, Server, clean_environment


@pytest.fixture(params=["folder", "server"])
def place(request, tmp_path):
    """Where the commands work, as words to add, with a collection that is not used yet."""
    if request.param == "folder":
        return ["--data-dir", str(tmp_path / "data"), "--collection", "things"]
    server: Server = request.getfixturevalue("server")
    server.http.delete("/collections/things")
    return ["--server", server.url, "--api-key", ADMIN_KEY, "--collection", "things"]


@pytest.fixture
def elsewhere(place):
    """The same place for `info`, which takes no collection."""
    return place[: place.index("--collection")]


def test_index_search_list_delete(lookalike, place, pictures):
    done = lookalike("index", str(pictures), "--folder-field", "label", *place)
    assert done.exit_code == 0, done.output
    assert "18 created" in done.output
    query = pictures / "fish" / "fish-01-1.jpg"
    found = json.loads(lookalike("search", str(query), "-k", "3", "--json", *place).stdout)
    assert found["matches"][0]["filename"] == "fish-01-1.jpg"
    assert found["matches"][0]["metadata"] == {"label": "fish"}
    assert len(found["matches"]) == 3
    only = lookalike("search", str(query), "--filter", '{"label": "car"}', "--json", *place)
    assert {match["metadata"]["label"] for match in json.loads(only.stdout)["matches"]} == {"car"}
    listed = json.loads(lookalike("list", "--json", *place).stdout)
    assert len(listed) == 18
    first = listed[0]["id"]
    assert lookalike("delete", first, *place).exit_code == 0
    assert len(json.loads(lookalike("list", "--json", *place).stdout)) == 17


def test_delete_goes_on_past_a_missing_id(lookalike, place, pictures):
    lookalike("index", str(pictures / "mug"), *place)
    first, second, *_ = [
        one["id"] for one in json.loads(lookalike("list", "--json", *place).stdout)
    ]
    done = lookalike("delete", first, "gone", second, *place)
    assert done.exit_code == 1
    assert done.stdout == "deleted 2\n"
    assert "'gone'" in done.stderr
    assert len(json.loads(lookalike("list", "--json", *place).stdout)) == 4


def test_many_are_changed_and_deleted_by_a_filter(lookalike, place, pictures):
    lookalike("index", str(pictures), "--folder-field", "label", *place)
    mugs = ["--filter", '{"label": "mug"}']
    done = lookalike("update", *mugs, "--metadata", '{"label": "cup", "n": 1}', *place)
    assert (done.exit_code, done.stdout) == (0, "updated 6\n")
    cups = ["--filter", '{"label": "cup"}', *place]
    dry = lookalike("delete", "--dry-run", *cups)
    assert dry.exit_code == 0
    assert dry.stdout.startswith("would delete 6\n")
    assert "mug-00-0.jpg" in dry.stdout
    refused = lookalike("delete", *cups, input="n\n")
    assert "Delete 6 pictures" in refused.output
    assert refused.exit_code == 1
    assert lookalike("count", *place).stdout == "18\n"
    assert lookalike("delete", *cups, input="y\n").exit_code == 0
    assert lookalike("count", *place).stdout == "12\n"
    assert json.loads(lookalike("delete", "-y", "--json", *cups).stdout)["changed"] == 0
    every = lookalike("delete", "--all", "--dry-run", *place)
    assert every.stdout.startswith("would delete 12\n")
    assert lookalike("count", *place).stdout == "12\n"
    assert lookalike("delete", "--filter", "{}", "-y", *place).exit_code == 1
    assert lookalike("count", *place).stdout == "12\n"


def test_collections_are_made_and_renamed(lookalike, place, elsewhere, pictures):
    model = [] if "--server" in elsewhere else ["--model", "color"]
    made = lookalike("collections", "create", "things", *elsewhere, *model)
    assert (made.exit_code, made.stdout) == (0, "things has 0 pictures\n")
    lookalike("index", str(pictures / "mug"), *place)
    again = lookalike("collections", "create", "things", *elsewhere, *model)
    assert again.stdout == "things has 6 pictures\n"
    renamed = lookalike("collections", "rename", "things", "cups", *elsewhere)
    assert (renamed.exit_code, renamed.stdout) == (0, "things is cups now\n")
    assert lookalike("count", *elsewhere, "--collection", "cups").stdout == "6\n"
    aliased = lookalike("collections", "alias", "bowls", "cups", *elsewhere)
    assert (aliased.exit_code, aliased.stdout) == (0, "bowls is cups now\n")
    assert lookalike("count", *elsewhere, "--collection", "bowls").stdout == "6\n"
    for words, code in (
        (["rename", "bowls", "things"], 1),
        (["alias", "bowls"], 1),
        (["alias", "bowls", "cups", "--remove"], 1),
        (["alias", "bowls", "--remove"], 0),
    ):
        assert lookalike("collections", *words, *elsewhere).exit_code == code, words
    assert lookalike("collections", "rename", "cups", "things", *elsewhere).exit_code == 0
    assert lookalike("count", *place).stdout == "6\n"


def test_the_table_shows_rank_score_and_metadata(lookalike, place, pictures):
    lookalike("index", str(pictures / "mug"), "--metadata", '{"label": "mug"}', *place)
    shown = lookalike("search", str(pictures / "mug" / "mug-00-0.jpg"), *place).stdout
    assert "1.0000" in shown
    assert '{"label": "mug"}' in shown
    listed = lookalike("list", "--limit", "2", *place).stdout
    assert "--limit" in listed


def test_counts_facets_and_warnings(lookalike, place, pictures):
    lookalike("index", str(pictures), "--folder-field", "label", *place)
    assert lookalike("count", *place).stdout.strip() == "18"
    where = ["--filter", '{"or": [{"label": "car"}, {"labl": "mug"}]}']
    counted = lookalike("count", *where, *place)
    assert counted.stdout.strip() == "6"
    warning = "warning: No picture has the field 'labl'"
    assert counted.stderr.strip() == warning
    query = str(pictures / "mug" / "mug-00-0.jpg")
    assert lookalike("search", query, *where, *place).stderr.strip() == warning
    assert lookalike("list", *where, *place).stderr.strip() == warning
    found = json.loads(lookalike("search", query, *where, "--json", *place).stdout)
    assert found["warnings"] == [warning.removeprefix("warning: ")]
    shown = lookalike("facets", *place).stdout
    assert "label" in shown
    assert '"car" (6)' in shown
    body = json.loads(lookalike("facets", "label", "no", *where, "--json", *place).stdout)
    assert [(one["field"], one["count"]) for one in body["facets"]] == [("label", 6), ("no", 0)]
    assert body["facets"][0]["values"] == [{"value": "car", "count": 6}]
    refused = lookalike("count", "--filter", '{"label": {"$in": ["car"]}}', *place)
    assert "write `in`" in str(refused.exception)


def test_running_it_again_skips_what_is_there(lookalike, place, pictures):
    lookalike("index", str(pictures), *place)
    again = lookalike("index", str(pictures), *place)
    assert (again.exit_code, again.output.strip()) == (0, "18 unchanged")


def test_bad_files_are_listed_in_the_end_with_their_reasons(lookalike, place, pictures):
    (pictures / "notes.jpg").write_text("just text")
    (pictures / "empty.png").write_bytes(b"")
    (pictures / "notes.txt").write_text("not a picture by its name: passed over")
    (pictures / ".hidden.jpg").write_text("passed over")
    done = lookalike("index", str(pictures), *place)
    assert done.exit_code == 1
    assert "18 created" in done.output
    assert "2 failed" in done.output
    assert f"{pictures / 'notes.jpg'}: " in done.output
    assert f"{pictures / 'empty.png'}: " in done.output
    assert "notes.txt" not in done.output


def test_results_as_json(lookalike, place, pictures):
    (pictures / "notes.jpg").write_text("just text")
    body = json.loads(lookalike("index", str(pictures), "--json", *place).stdout)
    assert (body["created"], body["failed"]) == (18, 1)
    (bad,) = [item for item in body["items"] if item["status"] == "failed"]
    assert bad["path"].endswith("notes.jpg")
    assert bad["reason"]


def test_a_whole_collection_is_deleted_only_when_confirmed(lookalike, place, pictures):
    lookalike("index", str(pictures / "mug"), *place)
    asked = lookalike("delete", "--all", *place, input="n\n")
    assert asked.exit_code == 1
    assert len(json.loads(lookalike("list", "--json", *place).stdout)) == 6
    assert lookalike("delete", "--all", "--yes", *place).exit_code == 0
    gone = lookalike("list", "--json", *place)
    assert "collection" in str(gone.exception)
    assert gone.exit_code == 1


def test_a_collection_that_a_command_deletes_is_gone_when_it_ends(
    lookalike, pictures, tmp_path, monkeypatch
):
    place = ["--data-dir", str(tmp_path / "data")]
    lookalike("index", str(pictures / "mug"), *place)
    monkeypatch.setattr(catalog.Purger, "wake", lambda _: None)  # the background comes too late
    assert lookalike("delete", "--all", "--yes", *place).exit_code == 0
    with closing(sqlite3.connect(tmp_path / "data" / "catalog.db")) as connection:
        assert connection.execute("SELECT count(*) FROM images").fetchone() == (0,)


def test_info_names_collections_and_models(lookalike, place, elsewhere, pictures):
    lookalike("index", str(pictures / "mug"), *place)
    facts = json.loads(lookalike("info", "--json", *elsewhere).stdout)
    (things,) = [entry for entry in facts["collections"] if entry["name"] == "things"]
    assert (things["count"], things["passport"]["model"]) == (6, "color")
    assert "things" in lookalike("info", *elsewhere).stdout


def test_a_missing_path_and_an_empty_folder(lookalike, place, tmp_path):
    (tmp_path / "empty").mkdir()
    for path in ("nowhere", "empty"):
        done = lookalike("index", path, *place)
        assert isinstance(done.exception, ConfigurationError)


@pytest.mark.parametrize(
    "words",
    [
        ["delete"],
        ["delete", "x", "--all"],
        ["delete", "x", "--filter", '{"a": 1}'],
        ["update", "x", "--metadata", "[]"],
        ["update", "--metadata", "{}"],
        ["index", ".", "--metadata", "{"],
    ],
)
def test_asked_for_wrongly(lookalike, words, pictures):
    assert isinstance(lookalike(*words).exception, ConfigurationError)


def test_reading_a_folder_without_a_collection_makes_nothing(lookalike, tmp_path):
    done = lookalike("list", "--data-dir", "nothing-here")
    assert isinstance(done.exception, ConfigurationError)
    assert not (tmp_path / "nothing-here").exists()


def test_a_folder_that_a_service_owns_is_refused_and_says_what_to_do(lookalike, tmp_path, pictures):
    store = LocalStore(tmp_path / "data")
    try:
        done = lookalike("index", str(pictures))
        assert isinstance(done.exception, DataFolderInUseError)
        assert "--server" in str(done.exception)
        assert isinstance(lookalike("delete", "--all", "-y").exception, DataFolderInUseError)
    finally:
        store.close()


def test_a_folder_that_a_service_owns_can_be_read(lookalike, tmp_path, pictures):
    assert lookalike("index", str(pictures)).exit_code == 0
    store = LocalStore(tmp_path / "data")
    try:
        query = next(pictures.rglob("*.jpg"))
        found = json.loads(lookalike("search", str(query), "--json").stdout)
        assert found["matches"][0]["score"] == pytest.approx(1.0)
        assert lookalike("list").exit_code == lookalike("info").exit_code == 0
    finally:
        store.close()


def test_a_server_that_is_not_there_or_refuses(lookalike, server, pictures):
    no_address = lookalike("list", "--server", "127.0.0.1:9")
    assert "write http://127.0.0.1:9" in str(no_address.exception)
    nobody = lookalike("list", "--server", "http://127.0.0.1:9")
    assert isinstance(nobody.exception, ServerError)
    wrong = ["--server", server.url, "--api-key", "wrong-key"]
    refused = lookalike("index", str(pictures), *wrong)
    assert isinstance(refused.exception, ServerError)
    assert "unauthorized" in str(refused.exception)
    model = lookalike("search", "x.jpg", "--server", server.url, "--model", "resnet18")
    assert isinstance(model.exception, ConfigurationError)


def test_an_id_cannot_reach_another_address(lookalike, place, pictures):
    lookalike("index", str(pictures / "mug"), *place)
    done = lookalike("delete", "../collections/things", *place)
    assert done.exit_code == 1
    assert len(json.loads(lookalike("list", "--json", *place).stdout)) == 6


def test_names_that_look_like_markup_are_shown_as_they_are(lookalike, place, pictures):
    odd = pictures / "mug" / "[red]x[nothing].jpg"
    (pictures / "mug" / "mug-00-0.jpg").rename(odd)
    lookalike("index", str(odd), "--metadata", '{"a": "[/x]\\u001b[31m"}', *place)
    for words in (["list"], ["search", str(odd)]):
        shown = lookalike(*words, *place)
        assert shown.exit_code == 0, shown.exception
        assert "[red]x[nothing].jpg" in shown.stdout
        assert "\x1b[31m" not in shown.stdout


def test_the_folder_field_is_the_pictures_own_folder(lookalike, place, pictures):
    for words in ([str(pictures / "mug")], [str(pictures / "fish" / "fish-00-0.jpg")]):
        lookalike("index", *words, "--folder-field", "label", *place)
    listed = json.loads(lookalike("list", "--json", *place).stdout)
    assert {image["metadata"]["label"] for image in listed} == {"mug", "fish"}


def test_one_file_beyond_a_services_limit_fails_alone(lookalike, tmp_path, pictures):
    small = Server(tmp_path / "small", max_file_bytes=20_000)
    try:
        (pictures / "big.jpg").write_bytes(b"\0" * 30_000)
        done = lookalike("index", str(pictures), "--server", small.url, "--api-key", ADMIN_KEY)
        assert done.exit_code == 1
        assert "18 created" in done.output
        assert "1 failed" in done.output
    finally:
        small.close()


def test_the_kept_key_goes_to_this_machine_only(tmp_path):
    from lookalike.cli.common import _kept_key

    (tmp_path / "admin.key").write_text("kept\n")
    assert _kept_key("http://localhost:8000", tmp_path) == "kept"
    assert _kept_key("http://127.0.0.1:8000", tmp_path) == "kept"
    for other in ("http://example.com", "http://localhost.example.com", "http://x@127.0.0.2"):
        assert _kept_key(other, tmp_path) is None


def test_a_port_in_use_is_one_clear_error(server):
    bad = run("serve", "--port", str(server.port), LOOKALIKE_MODEL="color")
    assert bad.returncode == 2
    assert str(server.port) in bad.stderr
    assert "Traceback" not in bad.stderr


def test_a_typo_in_the_env_file_is_named(tmp_path, monkeypatch):
    from lookalike.cli.serve import warn_unknown_variables

    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("LOOKALIKE_PROT=9\n")
    said: list[str] = []
    warn_unknown_variables(said.append)
    assert said == ["LOOKALIKE_PROT is no setting and is ignored; did you mean LOOKALIKE_PORT?"]


def test_indexing_in_place_refers_to_the_files(lookalike, tmp_path, pictures):
    lookalike("index", str(pictures), "--originals", "reference")
    assert not list((tmp_path / "data" / "images").rglob("*.jpg"))
    store = LocalStore(tmp_path / "data")
    try:
        sources = {record.source for record in store.scroll("default").records}
        assert sources == {str(path) for path in pictures.rglob("*.jpg")}
    finally:
        store.close()


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LOOKALIKE, *words],
        check=False,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
    )


def test_help_imports_none_of_the_heavy_libraries():
    code = (
        "import sys; from lookalike.cli.main import app; from typer.testing import CliRunner;"
        "assert CliRunner().invoke(app, ['serve', '--help']).exit_code == 0;"
        "heavy = ('torch', 'torchvision', 'faiss', 'numpy', 'fastapi', 'PIL');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_both_ways_to_start_show_the_same_name():
    module = [sys.executable, "-m", "lookalike", "index", "--help"]
    shown = subprocess.run(module, check=True, capture_output=True, text=True).stdout
    assert "Usage: lookalike index" in shown
    assert shown == run("index", "--help").stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_cuts_no_flag_at_80_columns(lookalike, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    found = load_command(name)
    below = getattr(found, "commands", {})
    commands = [((name,), found), *(((name, one), below[one]) for one in below)]
    for words, command in commands:
        shown = lookalike(*words, "--help")
        assert shown.exit_code == 0, shown.output
        assert "…" not in shown.output
        for parameter in command.params:
            for flag in (*parameter.opts, *parameter.secondary_opts):
                if flag.startswith("-"):
                    assert re.search(rf"{flag}(?![\w-])", shown.output), (words, flag)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fills_its_lines_at_80_columns(lookalike, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line.strip() for line in lookalike(name, "--help").output.splitlines()]
    text = list(itertools.takewhile(lambda line: not line.startswith("╭"), lines))
    for line, following in itertools.pairwise(text):
        if line and following:
            assert len(f"{line} {following.split()[0]}") > 78, line


def test_a_wrong_name_gets_the_nearest(lookalike):
    assert "Did you mean 'reembed'" in lookalike("rembed").output


def test_every_setting_is_a_flag_of_serve():
    from lookalike.config import Settings

    shown = run("serve", "--help", COLUMNS="300", TERMINAL_WIDTH="300").stdout
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in shown


def test_errors_are_one_line_without_a_trace(tmp_path):
    bad = run("serve", "--port", "99999")
    assert bad.returncode == 2
    assert "LOOKALIKE_PORT" in bad.stderr
    assert "Traceback" not in bad.stderr


def test_kubernetes_port_is_explained():
    bad = run("serve", LOOKALIKE_PORT="tcp://10.0.0.1:8000")
    assert bad.returncode == 2
    assert "Kubernetes" in bad.stderr


def test_version():
    assert run("--version").stdout.startswith("lookalike ")


def test_a_contact_sheet_is_saved(lookalike, pictures, tmp_path, server):
    assert lookalike("index", str(pictures)).exit_code == 0
    query = str(pictures / "mug" / "mug-00-0.jpg")
    done = lookalike("search", query, "-k", "3", "--save", "sheets/mug.png")
    assert done.exit_code == 0, done.exception
    with Image.open(tmp_path / "sheets" / "mug.png") as sheet:
        assert sheet.width > 4 * 160
        pixels = np.asarray(sheet.convert("RGB"))
    with Image.open(query) as drawn:
        wanted = np.asarray(drawn.convert("RGB").resize((160, 120))).reshape(-1, 3).mean(axis=0)
    for left in (24 + 3, 24 + 160 + 48 + 3):  # the query, and the best match: itself
        tile = pixels[-400:, left : left + 160].reshape(-1, 3)
        drawn_part = tile[(tile < 235).any(axis=1)]
        assert len(drawn_part) > 160 * 100, "a picture is there"
        assert np.abs(drawn_part.mean(axis=0) - wanted).max() < 40
    asked = lookalike("index", str(pictures), "--server", server.url, "--api-key", ADMIN_KEY)
    assert asked.exit_code == 0, asked.exception
    remote = lookalike("search", query, "-k", "3", "--save", "far.jpg", "--server", server.url)
    assert remote.exit_code == 0, remote.exception
    assert (tmp_path / "far.jpg").stat().st_size > 1000
    wrong = lookalike("search", query, "--save", "sheet.txt")
    assert isinstance(wrong.exception, ConfigurationError)
    assert ".png" in str(wrong.exception)
