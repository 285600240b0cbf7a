"""The notebooks run from start to end, on less than a reader's run; what is stored of them is small."""

import base64

import execute
import nbformat
import pytest

NOTEBOOKS = sorted(execute.FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_of_a_notebook_runs(path, request, monkeypatch):
    if "TINYMAE_DATA" in path.read_text():
        request.getfixturevalue("cifar10_dir")
    monkeypatch.setenv("TINYMAE_QUICK", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code = [cell for cell in execute.execute(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    images = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(images) >= 3
    kept = [cell for cell in code if execute.KEPT in cell.metadata.get("tags", [])]
    assert kept and all("image/png" in output["data"] for cell in kept for output in cell.outputs if "data" in output)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stored_notebook_shows_an_image_and_is_otherwise_cleared(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs and all([*output.data] == ["image/png"] for output in outputs)
    assert sum(len(base64.b64decode(output.data["image/png"])) for output in outputs) < 300_000
    assert execute.clear(nbformat.read(path, as_version=4)) == notebook
    assert nbformat.writes(notebook).rstrip("\n") == path.read_text().rstrip("\n")
