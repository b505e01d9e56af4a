"""An exported detector as a function, whatever engine runs its network."""

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
    """`open_exported(folder)(images)` gives the detections of pictures.

    `meta` is the content of meta.json, `classes` the names in the order of their ids, `canvas` the
    side in pixels that pictures are decoded to, `engine` what runs the network, and `why` it was
    chosen. `predict` may be called from several threads.
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
        """Detections of a batch as NumPy arrays, padded to the same number for each picture.

        Pictures come as `data.decode.decode_image` gives them with `canvas` as the side. Each new
        B is compiled once, which takes seconds.
        """
        with device_of(self.engine):
            outputs = self._run(self._prepare(canvas, extent))
            return jax.device_get(self._finish(*outputs))

    def seconds_an_image(self) -> float:
        """What the network takes, measured now on the images of the folder."""
        return self._seconds()


def open_exported(source: str | os.PathLike | ModelFolder, engine: str = "auto") -> Exported:
    """The detector of a folder, or of its archive, that `ssd-jax export` wrote.

    `source` is its place, a path or a URL, or what `read_folder` gave for that. `engine` is jax,
    onnxruntime, openvino, openvino-bf16, or "auto" for the fastest that gives what the run gave, in
    float32. Whichever it is, it is tried first.

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
    # The others read their model without Python, which JAX traces in meanwhile. An import beside
    # the trace would wait for its turn at each of its files.
    import_package(candidates.names[0])
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(open_engine)
        _compile(folder, stages, candidates.names[0])
    return Exported(folder, stages, *opening.result())


def _compile(folder: ModelFolder, stages: Stages, engine: str) -> None:
    """So that the first picture finds both programs compiled."""
    side, (_, *outputs) = folder.meta["canvas"], folder.probe()
    shapes = [array.shape[1:] for array in outputs]
    if shapes != [stages.anchors.shape, (len(stages.anchors), len(folder.classes) + 1)]:
        return  # no engine will pass
    with device_of(engine):
        stages.prepare(np.zeros((1, side, side, 3), np.uint8), np.full((1, 2), side, np.int32))
        stages.finish(*(np.zeros((1, *shape), np.float32) for shape in shapes))
