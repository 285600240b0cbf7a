"""Run the notebooks from start to end and store them again.

    python notebooks/execute.py [NAME ...]      # or: make notebooks

Stored are the images of cells tagged `keep-output`, so that GitHub shows them; all other outputs are cleared.
"""

import base64
import io
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
KEPT = "keep-output"


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of all its cells, run in its own folder.

    Raises nbclient's CellExecutionError for a cell that fails, with the cell and the traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}})
    client.execute(env=os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"})  # whatever it was
    return notebook


def clear(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same with images alone, of the cells that keep them, and without times and counts."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            images = [output for output in cell.outputs if "image/png" in output.get("data", {})]
            cell.outputs = [as_display(image) for image in images] if KEPT in cell.metadata.get("tags", []) else []
            cell.execution_count = None
    return notebook


def as_display(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The image of an output, in 256 colours: a third of the size. It carries no count of executions."""
    data = base64.b64decode(output["data"]["image/png"])
    with Image.open(io.BytesIO(data)) as image:
        if image.mode != "P":
            packed = io.BytesIO()
            image.convert("RGB").quantize(256).save(packed, format="png", optimize=True)
            data = packed.getvalue()
    return nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(data).decode()})


def main(names: list[str]) -> None:
    for path in [FOLDER / f"{name}.ipynb" for name in names] or sorted(FOLDER.glob("*.ipynb")):
        started = time.monotonic()
        nbformat.write(clear(execute(path)), path)
        print(f"{path.name}: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
