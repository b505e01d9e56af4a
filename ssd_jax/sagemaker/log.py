r"""The lines of the original's log that CloudWatch's metric patterns parse.

`validation mAP <score>=\((\S+)\)`, `train cross_entropy <loss>=\((\S+)\)`,
`train smooth_l1 <loss>=\((\S+)\)` and `completed (\S+) % of epochs`.
"""

import logging
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

FORMAT = "[%(asctime)s %(levelname)s %(thread)d] %(message)s"

logger = logging.getLogger("ssd_jax.sagemaker")


def log_to_stdout() -> None:
    """Sends the lines to standard output, which becomes the log of a container."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(FORMAT, datefmt="%m/%d/%Y %H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


class EpochLog:
    """An observer of a run (see `runs.log.Reporter`) that logs its epochs.

    The reports of an epoch must be of equally many steps; the last one of `steps` may be shorter.
    `metric` is the name of the mAP, and `best` its highest value before.
    """

    def __init__(
        self,
        *,
        host: str,
        steps: int,
        steps_per_epoch: int,
        batch_size: int,
        metric: str,
        best: float = 0.0,
    ):
        self._host = host
        self._steps = steps
        self._steps_per_epoch = steps_per_epoch
        self._batch_size = batch_size
        self._metric = metric
        self._best = best
        self._losses: list[tuple[float, float]] = []
        self._began = time.monotonic()

    def __call__(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Takes the values of a split after `step` steps."""
        if split == "train":
            self._add(step, values)
        elif split == "val":
            self._tell(step, values)

    def _add(self, step: int, values: Mapping[str, Any]) -> None:
        self._losses.append((values["class_loss"], values["box_loss"]))
        epoch, batches = self._place(step)
        logger.info(
            "Epoch: %4d, batches: %7d, num_examples: %7d, %.1f samples/sec, epoch time so far:  %s",
            epoch,
            batches,
            batches * self._batch_size,
            values["images_per_second"],
            _clock(time.monotonic() - self._began),
        )

    def _tell(self, step: int, values: Mapping[str, Any]) -> None:
        epoch, batches = self._place(step)
        measure = f"#quality_metric: host={self._host}, epoch={epoch}"
        batch = f"{measure}, batch={batches} train"
        if self._losses:  # empty if a resumed run begins with an interrupted evaluation
            class_losses, box_losses = zip(*self._losses, strict=True)
            logger.info("%s cross_entropy <loss>=(%r)", batch, statistics.fmean(class_losses))
            logger.info("%s smooth_l1 <loss>=(%r)", batch, statistics.fmean(box_losses))
        score = values[self._metric] or 0.0
        logger.info("%s, validation mAP <score>=(%r)", measure, score)
        if score > self._best:
            self._best = score
            logger.info("Updating the best model with validation-mAP=%r", score)
        share = 100 * step / self._steps
        logger.info("#progress_metric: host=%s, completed %s %% of epochs", self._host, share)
        self._losses.clear()
        self._began = time.monotonic()

    def _place(self, step: int) -> tuple[int, int]:
        """The epoch of a step, counted from 0, and the number of the step in it, from 1."""
        epoch, before = divmod(step - 1, self._steps_per_epoch)
        return epoch, before + 1


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{seconds:09.6f}"
