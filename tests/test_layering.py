"""Imports point downwards only: docs/architecture.md draws the house that this test guards."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "ssd_jax"

# A file may import what stands before its own line, and its own line.
FLOORS = (
    (
        "errors",
        "types",
        "hardware",
        "caches",
        "children",
        "files",
        "huge_pages",
        "literals",
        "locks",
    ),
    ("ops", "data.codes", "data.sources", "data.decode", "data.shapes"),
    (
        "models",
        "data.pipeline",
        "data.storage",
        "data.remote",
        "data.findings",
        "config",
        "runs.log",
        "visualize.fonts",
        "visualize.style",
        "evaluation.voc",
        "evaluation.coco",
        "evaluation.sizes",
        "evaluation.errors",
        "evaluation.thresholds",
        "evaluation.metrics",
        "sharding",
    ),
    ("rendezvous", "cluster"),
    (
        "recipes",
        "config_check",
        "data.device_cache",
        "data.doctor",
        "data.open",
        "data.writers",
        "data.tfds_writer",
        "evaluation.detection_files",
        "evaluation.detection_ids",
    ),
    (
        "answers",
        "weights",
        "predict",
        "visualize.boxes",
        "visualize.curves",
        "data.convert",
        "data.prepare",
        "data.tfds_voc",
    ),
    (
        "evaluation.run",
        "train.ema",
        "train.state",
        "train.optimizer",
        "train.meter",
        "train.stopping",
        "train.watchdog",
        "train.checkpoint_manifest",
        "train.stored_tree",
        "train.mirror",
        "visualize.data",
        "visualize.evaluation",
    ),
    (
        "train.hooks",
        "train.step",
        "train.compiled",
        "train.checkpoint",
        "train.divergence",
        "data.doctor_report",
    ),
    ("train.loop", "visualize.run", "report"),
    ("runs.describe_data", "network", "experiment"),
    ("detector", "runs.training_data"),
    ("runs.outcome", "importing", "export", "runs.same_run"),
    ("runs.before_training", "runs.first_state"),
    ("runs.training", "runs.dry_run", "serve", "benchmark"),
    ("predict_files",),
    ("sagemaker",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
# Beyond the floors: rooms that know nobody but the lowest floor.
ALONE = ("ops", "data.sources", "models", "config", "runs.log", "evaluation.voc")
WITHOUT_JAX = ("config", "errors", "cli", "commands", "data.sources", "data.decode", "data.codes",
               "data.shapes", "evaluation.voc", "evaluation.coco", "evaluation.sizes",
               "evaluation.errors", "evaluation.thresholds", "evaluation.metrics",
               "evaluation.detection_files", "evaluation.detection_ids")  # fmt: skip

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
TESTS = sorted(pathlib.Path(__file__).parent.rglob("*.py"))
EXPERIMENTS = sorted((PACKAGE.parent / "experiments").rglob("*.py"))


def module(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path, *, top_level=False):
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def inside(name, rooms):
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def floor(name):
    floors = [i for i, rooms in enumerate(FLOORS) if inside(name, rooms)]
    assert floors, f"{name} has no floor: give it one in FLOORS"
    return floors[0]


def own_imports(path):
    for name in imports(path):
        if name.startswith("ssd_jax.") and name != "ssd_jax.__version__":
            yield name.removeprefix("ssd_jax.")


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_point_downwards(path):
    for imported in own_imports(path):
        assert floor(imported) <= floor(module(path)), f"{module(path)} imports {imported}"


@pytest.mark.parametrize("room", ALONE)
def test_a_room_that_knows_nobody(room):
    for path in FILES:
        if inside(module(path), (room,)):
            for imported in own_imports(path):
                assert inside(
                    imported,
                    ("errors", "types", "caches", "files", "literals", "data.codes", room),
                ), f"{module(path)} imports {imported}"


@pytest.mark.parametrize("room", WITHOUT_JAX)
def test_a_room_without_jax(room):
    for path in FILES:
        if inside(module(path), (room,)):
            heavy = {name.split(".")[0] for name in imports(path, top_level=True)} & {
                "jax", "flax", "optax", "orbax", "grain"
            }  # fmt: skip
            assert not heavy, f"{module(path)} imports {heavy}"


@pytest.mark.parametrize("start", ["export.exported", "serve.server", "sagemaker.original"])
def test_what_predicts_imports_nothing_of_training(start):
    own, others, known = [start], set(), {module(path) for path in FILES}
    for name in own:
        for imported in imports(PACKAGE / f"{name.replace('.', '/')}.py", top_level=True):
            inner = imported.removeprefix("ssd_jax.")
            file = inner if inner in known else inner.rpartition(".")[0]
            if not imported.startswith("ssd_jax."):
                others.add(imported.split(".")[0])
            elif file in known and file not in own:
                own.append(file)
    assert not {name for name in own if inside(name, ("train", "experiment", "data.doctor"))}
    assert not others & {"optax", "orbax", "grain"}


def test_flax_stays_in_the_models_and_the_state():
    """But for what names the leaves of nested dictionaries."""
    users = {
        module(path)
        for path in FILES
        for name in imports(path)
        if name.startswith("flax") and not name.startswith("flax.traverse_util")
    }
    assert all(inside(u, ("models", "train", "network")) for u in users), users


@pytest.mark.parametrize("path", [*FILES, *TESTS, *EXPERIMENTS], ids=str)
def test_no_file_is_longer_than_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400
