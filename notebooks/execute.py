"""Executes the notebooks in place: `python -m notebooks.execute` stores them with their outputs.

Each keeps a digest of the code that its outputs are of; `tests/test_notebooks.py` compares it with the code there is.
"""

import argparse
import hashlib
import os
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import nbformat

HERE = Path(__file__).resolve().parent
NOTEBOOKS = sorted(HERE.glob("*.ipynb"))


def digest_of(cells: list[dict]) -> str:
    """Return a digest of the code in cells."""
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()[:16]


def execute(path: Path) -> "nbformat.NotebookNode":
    """Execute a notebook in its own folder and return it with its outputs; an error in a cell is raised."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", record_timing=False, resources={"metadata": {"path": HERE}}
    ).execute(env=environment)
    for cell in notebook.cells:  # what libraries log is of this machine
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": notebook.metadata.get("kernelspec", {}), "code": digest_of(notebook.cells)}
    return notebook


def main() -> None:
    """Execute all notebooks, or those that are named."""
    import nbformat

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", type=Path, nargs="*", default=NOTEBOOKS)
    options = parser.parse_args()
    for path in options.notebooks:
        start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        path.write_text(nbformat.writes(execute(path)) + "\n", encoding="utf-8")
        after, took = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - start
        worked = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        print(f"{path.name}: {took:.0f} s, {worked:.0f} s of processor time", flush=True)


if __name__ == "__main__":
    main()
