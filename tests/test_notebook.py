"""The notebook runs from the first cell to the last, and is stored without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "quickstart.ipynb"


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_stored_without_outputs(notebook: nbformat.NotebookNode) -> None:
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert set(cell.metadata) <= {"tags"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # the kernel's
def test_it_runs(
    notebook: nbformat.NotebookNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOOKALIKE_MODEL", "resnet18")
    monkeypatch.setenv("LOOKALIKE_RUNTIME", "torch")
    monkeypatch.setenv("LOOKALIKE_WEIGHTS", "random")
    monkeypatch.setenv("LOOKALIKE_INPUT_SIZE", "64")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    outputs = [cell.get("outputs", []) for cell in notebook.cells if cell.cell_type == "code"]
    figures = [out for cell in outputs for out in cell if "image/png" in out.get("data", {})]
    assert len(figures) == 1
    texts = "".join(
        out["text"] for cell in outputs for out in cell if out["output_type"] == "stream"
    )
    assert "144 pictures, 48 queries" in texts
    assert "Precision@1" in texts
