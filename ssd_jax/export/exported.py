"""An exported detector as a function, with any engine."""

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8

from ssd_jax.export.engines import (
    Engine,
    Parts,
    choose_engine,
    device_of,
    find_candidates,
    import_package,
    rebuilt_network,
    seconds_an_image,
)
from ssd_jax.export.folder import ModelFolder, read_folder
from ssd_jax.export.stages import Stages, build_stages, exported_anchors
from ssd_jax.predict import OnPictures
from ssd_jax.types import Detections


class Exported(OnPictures):
    """`open_exported(folder)(images)` gives the detections of images.

    `meta` is the content of meta.json, `classes` the names in the order of their ids, `canvas` the
    side in pixels that images are decoded to, `engine` the name of the engine, and `why` the reason
    for it. `predict` may be called from several threads.
    """

    def __init__(self, folder: ModelFolder, stages: Stages, engine: Engine, why: str):
        self.meta: dict[str, Any] = folder.meta
        self.classes: tuple[str, ...] = folder.classes
        self.canvas: int = folder.meta["canvas"]
        self.engine: str = engine.name
        self.why = why
        self._run = engine.run
        self._seconds = functools.partial(seconds_an_image, engine, folder)
        self._prepare, self._finish = stages.prepare, stages.finish

    def predict(
        self, canvas: UInt8[np.ndarray, "B H W 3"], extent: Int[np.ndarray, "B 2"]
    ) -> Detections:
        """Detections of a batch as NumPy arrays, padded to the same number for each image.

        Images must be as `data.decode.decode_image` returns them with `canvas` as the side. Each
        new B is compiled once, which takes seconds.
        """
        with device_of(self.engine):
            outputs = self._run(self._prepare(canvas, extent))
            return jax.device_get(self._finish(*outputs))

    def seconds_an_image(self) -> float:
        """The seconds per image of the network, measured now on the images of the folder."""
        return self._seconds()


def open_exported(source: str | os.PathLike | ModelFolder, engine: str = "auto") -> Exported:
    """The detector of a folder, or of its archive, that `ssd-jax export` wrote.

    `source` is a path or a URL, or the result of `read_folder`. `engine` is jax, onnxruntime,
    openvino, openvino-bf16, or "auto" for the fastest float32 engine. The engine is always tested
    against the outputs of the run first.

    Raises:
      UserError: the files are damaged, or the engine cannot run them.
    """
    folder = source if isinstance(source, ModelFolder) else read_folder(source)
    config = folder.config()
    anchors = folder.anchors()
    if anchors is None:
        anchors = exported_anchors(config, rebuilt_network(folder, config))
    stages = build_stages(config, anchors)
    stages = stages._replace(prepare=jax.jit(stages.prepare), finish=jax.jit(stages.finish))
    candidates = find_candidates(engine, folder)
    open_engine = functools.partial(choose_engine, candidates, Parts(folder, config, stages))
    if "jax" in candidates.names[:1] or candidates.to_be_timed:
        return Exported(folder, stages, *open_engine())
    # The others read their model without the GIL, so JAX can trace at the same time. The import
    # comes first, because in parallel it would have to wait for the GIL again and again.
    import_package(candidates.names[0])
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(open_engine)
        _compile(folder, stages, candidates.names[0])
    return Exported(folder, stages, *opening.result())


def _compile(folder: ModelFolder, stages: Stages, engine: str) -> None:
    """Compiles both programs, so that the first image does not wait for it."""
    side, (_, *outputs) = folder.meta["canvas"], folder.probe()
    shapes = [array.shape[1:] for array in outputs]
    if shapes != [stages.anchors.shape, (len(stages.anchors), len(folder.classes) + 1)]:
        return  # no engine will pass
    with device_of(engine):
        stages.prepare(np.zeros((1, side, side, 3), np.uint8), np.full((1, 2), side, np.int32))
        stages.finish(*(np.zeros((1, *shape), np.float32) for shape in shapes))
