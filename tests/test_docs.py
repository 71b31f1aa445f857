"""Documentation that lags fails the build."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from lookalike import errors
from lookalike.api.main import create_app
from lookalike.api.monitoring import Metrics
from lookalike.cli.main import COMMANDS, load_command
from lookalike.cli.main import app as command_line
from lookalike.client.http import HttpClient
from lookalike.client.local import Client
from lookalike.config import Settings
from lookalike.errors import LookalikeError
from tests.settings import make_settings

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
EVERY = {
    path.resolve(): path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
}


def below(kind: type[LookalikeError]) -> list[type[LookalikeError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in below(child))]


def test_every_setting_is_documented_with_its_default():
    for name, field in Settings.model_fields.items():
        (row,) = re.findall(
            rf"\| `LOOKALIKE_{name.upper()}` \| (.*?) \|", PAGES["configuration.md"]
        )
        assert row == ("unset" if field.default is None else f"`{field.default}`")


def test_every_command_is_documented():
    group = get_command(command_line)
    assert isinstance(group, TyperGroup)
    for name in group.commands:
        assert f"## `lookalike {name}" in PAGES["cli.md"]


def test_commands_that_take_a_server_are_named():
    first = PAGES["cli.md"].split("\n## ")[0]
    for name in COMMANDS:
        assert ("--server" in flags(load_command(name))) == (f"`{name}`" in first), name


def test_every_method_of_a_client_is_documented():
    for name in {*dir(Client), *dir(HttpClient)}:
        assert name.startswith("_") or name == "close" or f"`{name}(" in PAGES["python.md"], name


def test_json_that_curl_sends_is_called_json():
    for page, text in EVERY.items():
        for command in re.findall(r"curl(?:.*\\\n)*.*", text):
            assert "-d '{" not in command or "application/json" in command, page.name


def test_every_call_is_documented():
    for path, methods in create_app(make_settings()).openapi()["paths"].items():
        for method in methods:
            assert f"`{method.upper()} {path}`" in PAGES["api.md"]


@pytest.mark.parametrize("kind", below(LookalikeError))
def test_every_error_code_is_documented(kind):
    assert f"`{kind.code}`" in PAGES["api.md"]


def test_the_tree_of_errors_names_every_class():
    tree = (errors.__doc__ or "").split("```")[1]
    for kind in below(LookalikeError):
        assert re.search(rf"\b{kind.__name__}\b", tree)


def test_every_metric_is_documented():
    for family in Metrics().registry.collect():
        assert f"`{family.name}" in PAGES["deployment.md"]


def test_every_setting_that_a_page_names_exists():
    known = {f"LOOKALIKE_{name.upper()}" for name in Settings.model_fields}
    known |= set(re.findall(r"LOOKALIKE_\w+", (ROOT / "docker-compose.yml").read_text()))
    for page, text in EVERY.items():
        named = set(re.findall(r"LOOKALIKE_(?!TEST_)[A-Z_]*[A-Z]", text))
        assert named <= known, page.name


def test_every_flag_of_a_command_that_a_page_shows_exists():
    known = {name: flags(load_command(name)) for name in COMMANDS}
    for page, text in EVERY.items():
        if page.name == "CHANGELOG.md":  # it names what is gone, too
            continue
        for name, rest in re.findall(r"\blookalike ([a-z]+)( [^\n`|#&;)]*)", text):
            named = set(re.findall(r"(?<= )--?[a-z][a-z-]*", re.sub(r"'[^']*'", "", rest)))
            assert named <= known.get(name, named), f"{page.name}: lookalike {name}"


def flags(command: Any) -> set[str]:
    own = {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)}
    return own.union(*(flags(child) for child in getattr(command, "commands", {}).values()))


def test_every_link_between_pages_leads_somewhere():
    for page, text in EVERY.items():
        for target in re.findall(r"\]\(([^)\s]+)", text):
            if "://" in target:
                continue
            name, _, heading = target.partition("#")
            there = (page.parent / name).resolve() if name else page
            assert there.exists(), f"{page.name} -> {target}"
            assert not heading or heading in headings(EVERY[there]), f"{page.name} -> {target}"


def headings(text: str) -> set[str]:
    """The fragments that GitHub gives to the headings of a page."""
    lines = re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}
