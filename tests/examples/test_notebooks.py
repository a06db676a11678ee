"""The notebooks run from top to bottom, and are kept without outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra docs")
pytest.importorskip("ipykernel", reason="needs the extra docs")

ROOT = Path(__file__).parents[2]
# Parameters of the test's run, and what the notebook prints in it.
NOTEBOOKS = {
    "one_question": ("", ["exit layer: ", "<- the gates' choice"]),
    "train_gates": ("SCENES, QUESTIONS = 32, 10", ["layer 19: 100.0% of the samples", "same answers: "]),
}


def test_all_notebooks_are_tested():
    assert sorted(NOTEBOOKS) == sorted(path.stem for path in (ROOT / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook(name, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    book = nbformat.read(ROOT / f"examples/{name}.ipynb", as_version=4)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    (parameters,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", ())]
    values, prints = NOTEBOOKS[name]
    parameters.source += f"\n{values}"
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(ROOT / "examples")}}).execute()
    printed = "".join(
        output.text for cell in cells for output in cell.outputs if output.get("name") == "stdout"
    )
    assert not [text for text in prints if text not in printed], printed
