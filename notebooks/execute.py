"""Executes the notebooks of this folder, in order, and saves them with what came out.

    python notebooks/execute.py [NOTEBOOK.ipynb ...]

They write into ../runs/notebooks; 3, 4 and 5 use what the first one left there. A run that is there
already is not trained again: remove ../runs/notebooks to see it train.
"""

import pathlib
import sys
from collections.abc import Sequence

import nbformat
from nbclient import NotebookClient

HERE = pathlib.Path(__file__).parent


def execute(path: pathlib.Path) -> nbformat.NotebookNode:
    """The notebook with its outputs, which it is saved with; an error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=3600,
        record_timing=False,  # what is saved changes only where an output does
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    nbformat.write(notebook, path)
    return notebook


def main(names: Sequence[str]) -> None:
    """Executes the named notebooks, or all."""
    for path in map(pathlib.Path, names or sorted(map(str, HERE.glob("*.ipynb")))):
        print(path.name, flush=True)
        execute(path)


if __name__ == "__main__":
    main(sys.argv[1:])
