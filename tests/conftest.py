"""Eight virtual CPU devices for every test: meshes are tested where there is no GPU.

`JAX_PLATFORMS=cuda,cpu pytest tests/ops tests/oracle tests/models` asks a GPU.
"""

import os
import pathlib

import jax
import pytest

os.environ.setdefault("MPLBACKEND", "agg")
# The processes that tests start read the environment.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of reference data that does not belong to the project (SSD_JAX_SHARED)."""
    folder = os.environ.get("SSD_JAX_SHARED")
    if not folder:
        pytest.skip("SSD_JAX_SHARED is not set: the reference data is not at hand")
    return pathlib.Path(folder).resolve(strict=True)


@pytest.fixture(scope="session", autouse=True)
def compile_cache(tmp_path_factory):
    """A program that several tests build is compiled once."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory):
    """Nothing of a test stays in, or comes from, the cache folder of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSD_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> pathlib.Path:
    """A generated data set: 20 images to train on, 12 to measure on."""
    from ssd_jax.data.shapes import write_shapes

    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, train=20, val=12, seed=0, image_size=64)
    return folder


@pytest.fixture(scope="session")
def tiny_run(shapes, tmp_path_factory) -> pathlib.Path:
    """The folder of a finished run on one device."""
    from tiny import tiny_config

    from ssd_jax.runs import run_training
    from ssd_jax.sharding import make_mesh

    workdir = tmp_path_factory.mktemp("run")
    run_training(tiny_config(shapes), workdir, mesh=make_mesh(jax.devices()[:1]))
    return workdir
