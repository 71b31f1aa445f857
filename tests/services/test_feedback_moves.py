"""Feedback and calibrations go with backups and exports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lookalike import Client
from lookalike.bootstrap import restore_backup
from lookalike.errors import BackupError, CalibrationNotFoundError
from lookalike.progress import NO_PROGRESS
from lookalike.services.exchange import ExportForm
from tests.services.moving import picture
from tests.services.test_calibrating import draw

Said = list[tuple[str | None, str, bool]]


def said(client: Client) -> Said:
    return [(one.query, one.match, one.right) for one in client.judgements()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """A data folder with 24 pictures, a calibration and three judgements."""
    top = tmp_path_factory.mktemp("feedback")
    with Client(top / "data", model="color") as client:
        client.index(draw(top / "pictures", 24))
        ids = [one.id for one in client.list()]
        client.judge(ids[1], right=True, query=ids[0])
        client.judge(ids[2], right=False, query=ids[0])
        client.judge(ids[3], right=True, picture=picture(7))
        client.calibrate(sample=24)
        return top / "data", said(client)


def test_a_backup_holds_them(made: tuple[Path, Said], tmp_path: Path) -> None:
    data, expected = made
    with Client(data, model="color", read_only=True) as client:
        client.backup(tmp_path / "backup.tar")
        calibration = client.calibration()
    restore_backup(tmp_path / "backup.tar", tmp_path / "new", at=None, progress=NO_PROGRESS)
    with Client(tmp_path / "new", model="color") as client:
        assert said(client) == expected
        assert client.calibration() == calibration


@pytest.mark.parametrize("form", list(ExportForm))
def test_an_export_holds_them(made: tuple[Path, Said], tmp_path: Path, form: ExportForm) -> None:
    data, expected = made
    with Client(data, model="color", read_only=True) as client:
        client.export_collection("default", tmp_path / "export", form=form)
        calibration = client.calibration()
    embed = form is ExportForm.JSONL
    with Client(tmp_path / "new", model="color") as client:
        for _ in range(2):  # the second time changes nothing
            client.import_collection(tmp_path / "export", embed=embed)
            assert said(client) == expected
        spec = client._store.collections()[0].spec
        page, _ = client._store.judgements.page("default", vectors_of=spec)
        assert [one.vector is None for one in page] == [True, True, False]
        if embed:  # the scores of new vectors are not known
            with pytest.raises(CalibrationNotFoundError):
                client.calibration()
        else:
            assert client.calibration() == calibration


def test_what_is_known_here_stays(made: tuple[Path, Said], tmp_path: Path) -> None:
    data, expected = made
    shutil.copytree(data, tmp_path / "data")
    with Client(tmp_path / "data", model="color") as client:
        client.export_collection("default", tmp_path / "export")
        query, match, _ = expected[0]
        client.judge(match, right=False, query=query)
        client.delete(expected[1][1])
        client.import_collection(tmp_path / "export")
        assert said(client) == [(query, match, False), *expected[2:], expected[1]]


@pytest.mark.parametrize(
    "change",
    [
        {"right": 1},
        {"match": "no/id"},
        {"query_sha256": "x"},
        {"judged_at": "soon"},
        {"match": None},
        {"vector": "AAAA", "query": None},
    ],
    ids=str,
)
def test_a_line_that_is_none(
    made: tuple[Path, Said], tmp_path: Path, change: dict[str, object]
) -> None:
    data, _ = made
    with Client(data, model="color", read_only=True) as client:
        client.export_collection("default", tmp_path / "export", originals=False)
    path = tmp_path / "export" / "feedback.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("\n".join(json.dumps(line | change) for line in lines))
    with (
        Client(tmp_path / "new", model="color") as client,
        pytest.raises(BackupError, match=r"feedback\.jsonl, line \d"),
    ):
        client.import_collection(tmp_path / "export")
