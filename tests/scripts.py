"""Scripts outside the package, as modules."""

import contextlib
import importlib
import pathlib
import sys
from collections.abc import Iterator
from types import ModuleType

ROOT = pathlib.Path(__file__).parents[1]


@contextlib.contextmanager
def script(path: str) -> Iterator[ModuleType]:
    """The script at a path from the root; as when it is run, it finds the files beside it."""
    file = ROOT / path
    beside = {each.stem for each in file.parent.glob("*.py")}
    sys.path.insert(0, str(file.parent))
    try:
        yield importlib.import_module(file.stem)
    finally:
        sys.path.remove(str(file.parent))
        for name in beside & sys.modules.keys():  # other folders have files of the same names
            del sys.modules[name]
