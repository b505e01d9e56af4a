"""Where the server gets its detector."""

import os

import jax

from ssd_jax.export.exported import open_exported
from ssd_jax.serve.engine import Engine


class RunEngine:
    """The detector of a training run, without an export."""

    engine, why = "jax", "it is a run, not an export"

    def __init__(self, workdir: str | os.PathLike, *, step: str | None = None):
        from ssd_jax.detector import Detector  # with Orbax, which an export does without

        detector = Detector.load(workdir, step=step)
        self.meta = {"step": detector.step}
        self.classes, self.canvas = detector.classes, detector.canvas
        self.predict = detector.predict


def open_engine(
    *,
    model: str | os.PathLike | None = None,
    workdir: str | os.PathLike | None = None,
    engine: str = "auto",
    step: str | None = None,
) -> Engine:
    """The detector of an exported `model`, run by `engine`, or that of the run in `workdir`."""
    if model is not None:
        return open_exported(model, engine=engine)
    return RunEngine(workdir, step=step)


def default_batches(engine: Engine) -> tuple[int, ...]:
    """Few on a processor, where a batch saves little and each one costs seconds at the start."""
    on_processor = engine.engine != "jax" or jax.default_backend() == "cpu"
    return (1, 4) if on_processor else (1, 2, 4, 8, 16)
