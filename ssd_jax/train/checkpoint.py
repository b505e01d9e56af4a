"""Checkpoints, written with Orbax, which only this file and `stored_tree` use."""

import contextlib
import copy
import functools
import math
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from ssd_jax.cluster import from_first, together, wait_until_seen
from ssd_jax.errors import UserError, first_line
from ssd_jax.train.checkpoint_manifest import (
    REPLACED,
    find_damage,
    saved_steps,
    write_manifest,
)
from ssd_jax.train.state import TrainState
from ssd_jax.train.stored_tree import find_misfit, quieten_orbax, restore_part

# Raised by a failing disk, directly or through tensorstore.
_DISK_ERRORS = (OSError, ValueError)
_ITEMS = ("variables", "training", "classes", "progress")
_DELETED = "deleted"
_DAMAGED = ".damaged"


class Checkpoints:
    """The checkpoints of a run: the newest ones, and the best by `metric`.

    Used as a context manager, which waits for what is still being written. Only whole checkpoints
    are used: one that does not agree with its manifest is skipped with a warning. In a run of
    several processes each of them calls every method; the first one decides for all.

    With `read_only` nothing in the folder is changed, so a run may be writing there at the same
    time. Otherwise the remains of an interrupted process are removed first, and damaged checkpoints
    are renamed.

    Raises:
      UserError: there are checkpoints, and all of them are damaged.
    """

    def __init__(
        self, folder: pathlib.Path, *, metric: str, keep_latest: int = 2, read_only: bool = False
    ):
        def value(metrics):
            # A run whose metric was changed does not compare by the former one.
            return metrics.get(metric, -math.inf)

        self._metric = metric
        self._folder = pathlib.Path(folder).resolve()
        self._damage: dict[int, str] = {}
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._finish: Callable[[], None] | None = None
        self._saving = (0, 0)  # step, bytes
        quieten_orbax()
        if not read_only:
            _first_process(self._clear)
        self._manager = ocp.CheckpointManager(
            self._folder,
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
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
                # Renamed before it is deleted, so that a folder is never taken for a checkpoint if
                # the process dies meanwhile.
                todelete_subdir=None if read_only else _DELETED,
                read_only=read_only,
                save_interval_steps=0 if read_only else 1,
                create=not read_only,
                lightweight_initialize=read_only,
            ),
            item_names=_ITEMS,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._manager.close()

    # ---- writing ----

    def save(
        self,
        state: TrainState,
        metrics: dict[str, float] | None,
        *,
        classes: tuple[str, ...],
        progress: dict[str, Any] | None = None,
    ) -> None:
        """Starts writing the state under its step, with the metrics measured on it, if any.

        `progress` is what else the host needs to resume, as JSON. An earlier checkpoint of the same
        step is replaced. Returns as soon as the state is copied; it may be donated then.

        Raises:
          UserError: this checkpoint, or the one before, does not fit on the disk.
        """
        self.wait()
        step = int(jax.device_get(state.step))
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        self._saving = (step, size)
        _first_process(self._check_space)
        if from_first(step in self._manager.all_steps()):
            _first_process(lambda: self._rename(step, REPLACED))
            self._manager.reload()
        value = None if metrics is None else metrics[self._metric]
        start = functools.partial(
            self._start,
            step,
            content={"classes": list(classes), "progress": copy.deepcopy(progress or {})},
            metrics=None if value is None else {self._metric: value},
        )
        if jax.process_count() > 1:
            # Orbax synchronises the processes on their devices, between two steps of the training.
            with self._failure_told():
                start(state)
            self._finish = self._complete
        else:
            # Orbax takes longer to return than a copy in the host's memory takes.
            host_state = jax.tree.map(np.array, jax.device_get(state))
            self._finish = self._thread.submit(lambda: (start(host_state), self._complete())).result

    def wait(self) -> None:
        """Blocks until everything is on disk.

        Raises:
          UserError: it could not be written; what was there before is intact.
        """
        finish, self._finish = self._finish, None
        if finish is not None:
            with self._failure_told():
                finish()
            self._damage[self._saving[0]] = ""

    @contextlib.contextmanager
    def _failure_told(self) -> Iterator[None]:
        step, size = self._saving
        try:
            yield
        except _DISK_ERRORS as error:
            with contextlib.suppress(*_DISK_ERRORS):  # raises once in each thread
                self._manager.wait_until_finished()
            if jax.process_index() == 0:
                self._clear_unfinished()
            free = shutil.disk_usage(self._folder).free
            raise UserError(
                f"{self._folder}: the checkpoint of step {step} could not be written "
                f"({first_line(error)}). It needs {_megabytes(size)}, and {_megabytes(free)} are "
                "free there. The earlier checkpoints are intact: make room and give the same "
                "command again."
            ) from error

    def _start(self, step, state, *, content, metrics) -> None:
        self._manager.save(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(state.variables),
                training=ocp.args.StandardSave(state.training),
                **{name: ocp.args.JsonSave(value) for name, value in content.items()},
            ),
            metrics=metrics,
            force=True,
        )

    def _complete(self) -> None:
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            for rest in (self._folder / _DELETED, *self._folder.glob(f"*{REPLACED}")):
                shutil.rmtree(rest, ignore_errors=True)

    def _seal(self) -> None:
        """Called by Orbax, on the first process, before the folder of the step gets its name."""
        (folder,) = self._folder.glob(f"{self._saving[0]}{ocp.utils.TMP_DIR_SUFFIX}*")
        write_manifest(folder)

    def _check_space(self) -> None:
        step, size = self._saving
        free = shutil.disk_usage(self._folder).free
        if free < size:
            raise UserError(
                f"{self._folder}: the checkpoint of step {step} needs {_megabytes(size)}, and only "
                f"{_megabytes(free)} are free there. Make room and give the same command again."
            )

    # ---- choosing ----

    def latest_step(self) -> int | None:
        """The newest step on disk whose checkpoint is whole, None in a new run."""
        return self._chosen(lambda: self._first_whole(self._steps()))

    def select(self, which: str | int) -> int:
        """The step that "last", "best" or a number names; its checkpoint is on disk and whole.

        "best" is the step with the highest metric, and of equal ones the latest.
        """
        return self._chosen(lambda: self._select(str(which)))

    def _chosen(self, choice: Callable[[], int | None]) -> int | None:
        """The step that the first process chooses; on return all processes see its folder.

        On a network disk the others may see a folder later, so they must not choose themselves.
        """
        self.wait()
        step = _first_process(choice)
        if step is not None:
            wait_until_seen(self._folder / str(step))
        return step

    def _select(self, which: str) -> int:
        steps = self._steps()
        if not steps:
            raise UserError(
                f"{self._folder} has no checkpoint yet. Train first, with "
                "`ssd-jax train --workdir` on the folder of this run."
            )
        if which == "last":
            return self._first_whole(steps)
        if which == "best":
            best = self._first_whole(self._measured_steps())
            if best is None:
                raise UserError(
                    f"{self._folder}: none of its checkpoints was evaluated by {self._metric}, so "
                    'none is the best. Select "last" instead.'
                )
            return best
        if which.isdigit() and int(which) in steps:
            return self._first_whole([int(which)])
        raise UserError(
            f"{self._folder}: got step {which!r}, expected last, best or one of {sorted(steps)}."
        )

    def _steps(self) -> list[int]:
        """The steps of all checkpoints, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def _measured_steps(self) -> list[int]:
        """The steps of the checkpoints that were evaluated, the best first."""
        measured = []
        for step in self._steps():
            with contextlib.suppress(*_DISK_ERRORS):
                metrics = self._manager.metrics(step) or {}
                if self._metric in metrics:
                    measured.append((metrics[self._metric], step))
        return [step for _, step in sorted(measured, reverse=True)]

    def _first_whole(self, steps: list[int]) -> int | None:
        """The first step whose checkpoint is whole, None if `steps` is empty."""
        for step in steps:
            if not self._damage_of(step):
                return step
        if not steps:
            return None
        found = "; ".join(f"in {step}, {self._damage[step]}" for step in steps)
        raise UserError(
            f"{self._folder}: every checkpoint that could be used is damaged: {found}. Copy one "
            "back, use another --step, or start again in another --workdir."
        )

    def _damage_of(self, step: int) -> str:
        """The damage of a checkpoint, "" if it is whole; printed once, to standard error."""
        if step not in self._damage:
            self._damage[step] = damage = find_damage(self._folder / str(step))
            if damage:
                print(
                    f"warning: {self._folder}/{step}: the checkpoint is damaged and skipped: "
                    f"{damage}",
                    file=sys.stderr,
                    flush=True,
                )
        return self._damage[step]

    # ---- reading ----

    def restore(self, step: int, like: TrainState, *, classes: tuple[str, ...]) -> TrainState:
        """The state of `step`, with the shapes and shardings of `like`.

        Raises:
          UserError: the checkpoint was trained on other classes, or has other shapes.
        """
        variables = self.restore_variables(step, like.variables, classes=classes)
        return like.restored(variables, self._restore(step, "training", like.training))

    def restore_variables(
        self, step: int, like: Any, *, classes: tuple[str, ...], of_average: bool = True
    ) -> Any:
        """The variables that `model.apply` takes, without the optimizer's state; as `restore`.

        `of_average` = False is for a run with an EMA, and gives the weights that it trains.
        """
        stored = self.classes(step)
        if stored != tuple(classes):
            raise UserError(
                f"{self._folder}/{step}: the checkpoint has {len(stored)} classes "
                f"({', '.join(stored)}), the run has {len(classes)} ({', '.join(classes)}). "
                "Give the data set that the checkpoint was trained on, or another --workdir."
            )
        item = "variables" if of_average else "training"
        folder = self._folder / str(step) / item
        # Orbax finds it too, but only after it has begun to read, and then prints tracebacks.
        if misfit := self._read(step, lambda: find_misfit(folder, like)):
            raise _does_not_fit(folder.parent, misfit)
        if of_average:
            return self._restore(step, item, like)
        return self._read(step, lambda: restore_part(folder, like))

    def classes(self, step: int) -> tuple[str, ...]:
        """The names of the classes that the checkpoint was trained on."""
        return tuple(self._item(step, "classes", ocp.args.JsonRestore()))

    def progress(self, step: int) -> dict[str, Any]:
        """The `progress` that `save` was given."""
        return self._item(step, "progress", ocp.args.JsonRestore())

    def _restore(self, step: int, item: str, like: Any) -> Any:
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        return self._item(step, item, ocp.args.StandardRestore(target))

    def _item(self, step: int, item: str, args: Any) -> Any:
        args = ocp.args.Composite(**{item: args})
        return self._read(step, lambda: self._manager.restore(step, args=args)[item])

    def _read(self, step: int, read: Callable[[], Any]) -> Any:
        self.wait()  # Orbax does so too, but fails in the moment in which our thread starts its own
        try:
            return read()
        except (ValueError, KeyError, OSError) as error:
            raise _does_not_fit(self._folder / str(step), first_line(error)) from error

    # ---- remains of an interrupted process ----

    def _clear(self) -> None:
        """Keeps only whole checkpoints; damaged ones are renamed."""
        self._clear_unfinished()
        shutil.rmtree(self._folder / _DELETED, ignore_errors=True)
        steps = saved_steps(self._folder)
        damaged = [step for step in steps if self._damage_of(step)]
        if steps:
            self._first_whole(steps[::-1])
        for step in damaged:
            self._rename(step, _DAMAGED)

    def _clear_unfinished(self) -> None:
        for path in self._folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
            # If one write has failed, others may still be running; the next start clears the rest.
            shutil.rmtree(path, ignore_errors=True)
        for path in self._folder.glob(f"*{REPLACED}"):
            if path.with_suffix("").exists():
                shutil.rmtree(path)
            else:
                path.rename(path.with_suffix(""))

    def _rename(self, step: int, suffix: str) -> None:
        path = self._folder / f"{step}{suffix}"
        shutil.rmtree(path, ignore_errors=True)  # left by an earlier run
        (self._folder / str(step)).rename(path)


def _does_not_fit(folder: pathlib.Path, why: str) -> UserError:
    return UserError(
        f"{folder}: the checkpoint is damaged or does not fit this network ({why}). Restore it "
        "with the config that it was trained with, or use another --step."
    )


def _first_process(action: Callable[[], int | None]) -> int | None:
    """The result of `action` on the first process, on all processes."""
    with together():
        value = action() if jax.process_index() == 0 else None
    return from_first(value)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
