"""Eight virtual CPU devices for every test: meshes are tested where there is no GPU.

`JAX_PLATFORMS=cuda,cpu pytest tests/ops tests/oracle tests/models` asks a GPU, with products of
full float32; tests of several devices are skipped if there are fewer than eight GPUs.
"""

import functools
import os
import pathlib
import shutil
from collections.abc import Callable

import jax
import pytest
from filelock import FileLock

os.environ.setdefault("MPLBACKEND", "agg")
# The processes that tests start read the environment.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
jax.config.update("jax_num_cpu_devices", 8)
if os.environ["JAX_PLATFORMS"] != "cpu":  # a GPU's default rounds factors to 10 bits, TF32
    jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of reference data that does not belong to the project (SSD_JAX_SHARED)."""
    folder = os.environ.get("SSD_JAX_SHARED")
    if not folder:
        pytest.skip("SSD_JAX_SHARED is not set: the reference data is not at hand")
    return pathlib.Path(folder).resolve(strict=True)


def pytest_configure(config):
    # Who waits too long for the lock of the shared cache compiles for itself.
    config.addinivalue_line("filterwarnings", "ignore:Error .* persistent compilation cache")


@pytest.fixture
def mesh_of_eight() -> jax.sharding.Mesh:
    """Eight devices on the axis "data"."""
    from ssd_jax.sharding import make_mesh

    if jax.device_count() < 8:
        pytest.skip(f"{jax.device_count()} devices, expected 8")
    return make_mesh(jax.devices()[:8])


@pytest.fixture(scope="session")
def of_all_workers(tmp_path_factory) -> pathlib.Path:
    """A folder that the workers of pytest-xdist have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def made_once(folder: pathlib.Path, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """`folder` as `make(folder)` leaves it in the first worker; the others wait, and may read."""
    done = folder.with_suffix(".done")
    with FileLock(folder.with_suffix(".lock")):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session", autouse=True)
def compile_cache(of_all_workers):
    """A program that several tests build is compiled once, whichever worker has them."""
    jax.config.update("jax_compilation_cache_dir", str(of_all_workers / "compiled"))
    # Only of a bounded cache does JAX lock the folder, and so reads nothing half-written.
    jax.config.update("jax_compilation_cache_max_size", 2**31)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory):
    """Nothing of a test stays in, or comes from, the cache folder of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSD_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_steps():
    """Runs compile their step without optimisation, in a third of the time."""
    from hlo import QUICK

    from ssd_jax.train.compiled import compile_step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "ssd_jax.runs.training.compile_step", functools.partial(compile_step, options=QUICK)
        )
        yield


@pytest.fixture
def optimised_steps(monkeypatch):
    """A run of this test compiles its step as a user's does."""
    from ssd_jax.train.compiled import compile_step

    monkeypatch.setattr("ssd_jax.runs.training.compile_step", compile_step)


@pytest.fixture(scope="session")
def shapes(of_all_workers) -> pathlib.Path:
    """A generated data set, to be read only: 20 images to train on, 12 to measure on."""
    from ssd_jax.data.shapes import write_shapes

    def write(folder):
        write_shapes(folder, train=20, val=12, seed=0, image_size=64)

    return made_once(of_all_workers / "shapes", write)


@pytest.fixture(scope="session")
def tiny_run(shapes, of_all_workers, tmp_path_factory, quick_steps) -> pathlib.Path:
    """The folder of a finished run on one device: trained once, and a copy for each worker."""
    from tiny import tiny_config

    from ssd_jax.runs.training import run_training
    from ssd_jax.sharding import make_mesh

    def train(folder):
        run_training(tiny_config(shapes), folder, mesh=make_mesh(jax.devices()[:1]))

    trained = made_once(of_all_workers / "tiny_run", train)
    return shutil.copytree(trained, tmp_path_factory.mktemp("run"), dirs_exist_ok=True)
