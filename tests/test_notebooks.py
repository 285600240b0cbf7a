"""The notebooks run from start to end, on less than a reader's run; what is stored of them is small."""

import base64

import execute
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from IPython.utils.capture import capture_output
from matplotlib import pyplot as plt
from matplotlib_inline.backend_inline import configure_inline_support
from traitlets.config import Config

pytestmark = pytest.mark.usefixtures("quick_stages")
NOTEBOOKS = sorted(execute.FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def shell():
    """What a kernel runs cells by, here: a process of its own would import torch again for every notebook."""
    backend, inline = plt.get_backend(), "module://matplotlib_inline.backend_inline"
    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    with plt.rc_context():
        plt.switch_backend(inline)
        configure_inline_support(shell, inline)
        yield shell
        plt.close("all")
        plt.switch_backend(backend)
    shell.restore_sys_module_state()  # __main__ again, which new processes look for
    InteractiveShell.clear_instance()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_of_a_notebook_runs(path, request, monkeypatch, shell):
    if "TINYMAE_DATA" in path.read_text():
        request.getfixturevalue("cifar10_dir")
    monkeypatch.setenv("TINYMAE_QUICK", "1")
    monkeypatch.chdir(path.parent)
    shell.reset()
    images = 0
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            with capture_output() as shown:
                ran = shell.run_cell(cell.source)
                ran.raise_error()
                if ran.result is not None:
                    display(ran.result)
            are_images = ["image/png" in output.data for output in shown.outputs]
            if execute.KEPT in cell.metadata.get("tags", []):
                assert are_images and all(are_images)
            images += sum(are_images)
    assert images >= 3


def test_an_executed_notebook_keeps_the_images_of_its_tagged_cells(tmp_path, monkeypatch):
    """In a kernel, as `make notebooks` runs them, even where MPLBACKEND asks for no images."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    cell = nbformat.v4.new_code_cell
    draw = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    cells = [cell(draw), cell(draw + "\nprint('drawn')", metadata={"tags": [execute.KEPT]}), cell("1 + 1")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "some.ipynb")
    notebook = execute.execute(tmp_path / "some.ipynb")
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3]
    assert "image/png" in notebook.cells[0].outputs[0].data and len(notebook.cells[1].outputs) == 2
    cleared = execute.clear(notebook)
    assert [[[*output.data] for output in cell.outputs] for cell in cleared.cells] == [[], [["image/png"]], []]
    assert not any(cell.execution_count for cell in cleared.cells)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell("1 / 0")]), tmp_path / "wrong.ipynb")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        execute.execute(tmp_path / "wrong.ipynb")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stored_notebook_shows_an_image_and_is_otherwise_cleared(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs and all([*output.data] == ["image/png"] for output in outputs)
    assert sum(len(base64.b64decode(output.data["image/png"])) for output in outputs) < 300_000
    assert execute.clear(nbformat.read(path, as_version=4)) == notebook
    assert nbformat.writes(notebook).rstrip("\n") == path.read_text().rstrip("\n")
