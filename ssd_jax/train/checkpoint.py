"""Checkpoints: Orbax, and nothing of Orbax outside this file."""

import pathlib
from typing import Any

import absl.logging
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from ssd_jax.errors import UserError
from ssd_jax.train.state import TrainState


class Checkpoints:
    """The checkpoints of a run: the newest ones, and the best by `metric`.

    Used as a context manager, which waits for what is still being written.
    """

    def __init__(self, folder: pathlib.Path, *, metric: str, keep_latest: int = 2):
        def value(metrics):
            return metrics[metric]

        self._metric = metric
        # Orbax warns of every save without a metric; saving between evaluations is our intention.
        absl.logging.set_verbosity(absl.logging.ERROR)
        self._manager = ocp.CheckpointManager(
            pathlib.Path(folder).resolve(),
            options=ocp.CheckpointManagerOptions(
                best_fn=value,
                # best_fn with max_to_keep would delete the newest step when it is not among the
                # best, and a resume needs the newest.
                preservation_policy=AnyPreservationPolicy(
                    [
                        LatestN(keep_latest),
                        BestN(n=1, get_metric_fn=value, keep_checkpoints_without_metrics=False),
                    ]
                ),
            ),
            item_names=("variables", "training", "classes"),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    def save(
        self, state: TrainState, metrics: dict[str, float] | None, *, classes: tuple[str, ...]
    ) -> None:
        """Starts writing the state under its step, with the metrics measured on it, if any."""
        value = metrics and metrics[self._metric]
        self._manager.save(
            int(jax.device_get(state.step)),
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(state.variables),
                training=ocp.args.StandardSave(_training(state)),
                classes=ocp.args.JsonSave(list(classes)),
            ),
            metrics=None if value is None else {self._metric: value},
        )

    def latest_step(self) -> int | None:
        """The newest step on disk, None in a new run."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step with the highest metric; the later one of equals."""
        return self._manager.best_step()

    def select(self, which: str) -> int:
        """The step that "last", "best" or a number in digits names, present on disk."""
        steps = list(self._manager.all_steps())
        if not steps:
            raise UserError(
                f"{self._manager.directory}: no checkpoint there yet. Train first, with "
                "`ssd-jax train --workdir` on this folder."
            )
        if which == "last":
            return max(steps)
        if which == "best":
            best = self.best_step()
            if best is None:
                raise UserError(
                    f"{self._manager.directory}: no checkpoint there was evaluated, so none is "
                    'the best. Select "last" instead.'
                )
            return best
        if which.isdigit() and int(which) in steps:
            return int(which)
        raise UserError(
            f"{self._manager.directory}: got step {which!r}, expected last, best or one of "
            f"{sorted(steps)}."
        )

    def restore(self, step: int, like: TrainState, *, classes: tuple[str, ...]) -> TrainState:
        """The state of `step`, with the shapes and shardings of `like`.

        Raises:
          UserError: the checkpoint was trained on other classes, or has other shapes.
        """
        variables = self.restore_variables(step, like.variables, classes=classes)
        return like.replace(**variables, **self._restore(step, "training", _training(like)))

    def restore_variables(self, step: int, like: Any, *, classes: tuple[str, ...]) -> Any:
        """What `model.apply` takes, without the optimizer's state; else as `restore`."""
        stored = self.classes(step)
        if stored != tuple(classes):
            raise UserError(
                f"{self._manager.directory}/{step}: the checkpoint has {len(stored)} classes "
                f"({', '.join(stored)}), the run has {len(classes)} ({', '.join(classes)}). "
                "Give the data set that it was trained on, or another --workdir."
            )
        return self._restore(step, "variables", like)

    def classes(self, step: int) -> tuple[str, ...]:
        """The names of the classes that the checkpoint was trained on."""
        args = ocp.args.Composite(classes=ocp.args.JsonRestore())
        try:
            return tuple(self._manager.restore(step, args=args)["classes"])
        except (ValueError, KeyError, OSError) as error:
            raise UserError(
                f"{self._manager.directory}/{step}: the checkpoint is damaged "
                f"({str(error).splitlines()[0]}). Take another --step."
            ) from error

    def _restore(self, step: int, item: str, like: Any) -> Any:
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        args = ocp.args.Composite(**{item: ocp.args.StandardRestore(target)})
        try:
            return self._manager.restore(step, args=args)[item]
        except (ValueError, KeyError, OSError) as error:
            raise UserError(
                f"{self._manager.directory}/{step}: the checkpoint is damaged or does not fit this "
                f"network ({str(error).splitlines()[0]}). Restore it with the config that it "
                "was trained with, or take another --step."
            ) from error

    def wait(self) -> None:
        """Blocks until everything is on disk."""
        self._manager.wait_until_finished()


def _training(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state}
