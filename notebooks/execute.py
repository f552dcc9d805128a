"""Executes the notebooks: `python -m notebooks.execute` writes them with their outputs into build/notebooks."""

import argparse
import os
import resource
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
NOTEBOOKS = sorted(HERE.glob("*.ipynb"))


def execute(path: Path) -> nbformat.NotebookNode:
    """Execute a notebook in its own folder and return it with its outputs; an error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": HERE}}).execute(
        env=environment
    )
    return notebook


def main() -> None:
    """Execute all notebooks, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", type=Path, nargs="*", default=NOTEBOOKS)
    parser.add_argument("--to", type=Path, default=HERE.parent / "build" / "notebooks")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    for path in options.notebooks:
        start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        nbformat.write(execute(path), options.to / path.name)
        after, took = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - start
        worked = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        print(f"{path.name}: {took:.0f} s, {worked:.0f} s of processor time", flush=True)


if __name__ == "__main__":
    main()
