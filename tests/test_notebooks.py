"""The notebooks run from top to bottom, and what is committed of them was made by them.

Those that train take most of a minute each to compile: `make test-long`.
"""

import base64
import importlib.util
import os
import pathlib
import shutil
import sys

import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The notebooks and what they read, where they may write."""
    root = tmp_path_factory.mktemp("repository")
    shutil.copytree(FOLDER, root / "notebooks", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("configs", "ssd_jax"):
        (root / name).symlink_to(FOLDER.parent / name)
    return root / "notebooks"


@pytest.fixture(scope="module")
def execute():
    spec = importlib.util.spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    words = {
        "NOTEBOOK_STEPS": "4",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling is most of the time
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in words.items():
            patch.setenv(name, value)
        yield module.execute


@pytest.fixture(scope="module")
def executed(place, execute):
    """Executes a notebook, after the first one, whose run the others use."""
    done = {}

    def run(name):
        for each in dict.fromkeys(("1_quick_start", name)):
            if each not in done:
                done[each] = execute(place / f"{each}.ipynb")
        return printed(done[name])

    return run


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def printed(notebook):
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


@pytest.mark.long
def test_the_quick_start(executed):
    assert "mAP@.5 (VOC07 11-point) = " in executed("1_quick_start")


def test_data_anchors_and_matches(place, execute):
    assert "8,732 in all" in printed(execute(place / "2_data_anchors_matches.ipynb"))


@pytest.mark.long
def test_images_of_ones_own(executed):
    text = executed("3_your_own_images")
    assert "Errors: 1." in text
    assert "Errors: 0." in text
    assert "mAP@.5 (VOC07 11-point) = " in text


@pytest.mark.long
def test_a_run_is_reproduced_and_compared(executed):
    text = executed("4_reproduce_and_compare")
    assert "losses: 1 equal: True" in text
    assert "metrics equal: True" in text


def test_a_detector_is_loaded_and_exported(executed):
    assert "same boxes: True" in executed("5_load_predict_export")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_was_executed_and_is_small(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    pictures = [output.data for output in outputs(notebook) if "data" in output]
    assert any("image/jpeg" in data for data in pictures)
    for data in pictures:
        if "image/jpeg" in data:
            assert base64.b64decode(data["image/jpeg"])[:2] == b"\xff\xd8"
    text = path.read_text()
    assert len(text) < 300_000
    for place_of_a_machine in (str(pathlib.Path.home()), str(FOLDER.parent), sys.prefix, "/tmp/"):
        assert place_of_a_machine + os.sep not in text


def test_links_between_pages_lead_somewhere():
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            for target in links(cell.source) if cell.cell_type == "markdown" else ():
                assert (FOLDER / target).exists(), f"{path.name}: {target}"


def links(text):
    return [part.split(")")[0] for part in text.split("](")[1:]]
