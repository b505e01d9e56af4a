"""The order of things in the loop, with a network that only counts."""

import itertools
import json
import os
import pathlib
import signal
from time import perf_counter

import numpy as np
import pytest
from same_run import MACHINE

from ssd_jax.errors import Stopped, UserError
from ssd_jax.runs.log import Reporter
from ssd_jax.train.loop import train
from ssd_jax.train.state import TrainState
from ssd_jax.train.stopping import EarlyStopping, Progress, Stopping
from ssd_jax.train.watchdog import Watchdog


class Recorder(Reporter):
    """Keeps what a Reporter writes, but for what depends on the machine."""

    def __init__(self):
        super().__init__("", total_steps=0, active=False)
        self.records = []

    def write(self, step, split, values):
        kept = {name: value for name, value in values.items() if name not in MACHINE}
        self.records.append({"step": step, "split": split, **kept})


class Run:
    """A run that can be stopped and gone on with; `saved` is its disk: step -> (metrics, progress).

    The loss of a step is a third of its number, so that a mean shows where it began.
    """

    def __init__(self, *, total_steps=10, metric=lambda step: step / 10, **changes):
        self.words = {"evaluate_every": 4, "save_every": 3, "log_every": 4, "early_stopping": None}
        self.words |= {"total_steps": total_steps, **changes}
        self.metric = metric
        self.loss = lambda step: step / 3
        self.gradient_norm = lambda step: 1.0
        self.saved = {}
        self.recorder = Recorder()
        self.at_step = self.at_evaluation = lambda step: None

    def train(self, time_limit=None):
        start = max(self.saved, default=0)
        progress = Progress(**json.loads(self.saved[start][1])) if start else Progress()
        # What was told beyond the checkpoint is taken back, as a Reporter does.
        self.recorder.records = [r for r in self.recorder.records if r["step"] <= start]
        with Stopping(time_limit) as stopping, Watchdog(pathlib.Path(), **UNWATCHED) as watchdog:
            stopping.hold()

            def evaluate(state):
                for part in stopping.between(range(3)):
                    if part == 1:
                        self.at_evaluation(int(state.step))
                return {"map": self.metric(int(state.step))}, {"seconds": perf_counter()}

            def step(state, batch):
                assert batch == state.step
                self.at_step(int(state.step))
                number = state.step + 1
                metrics = {
                    "loss": np.float32(self.loss(number)),
                    "gradient_norm": self.gradient_norm(number),
                }
                return state.replace(step=state.step + 1), metrics

            numbers = itertools.count(start)

            def program(number):
                assert number == next(numbers)
                return step

            def save(state, measured, progress):
                self.saved[int(state.step)] = (measured, json.dumps(progress._asdict()))

            def diverged(step, names, values, state):
                return UserError(f"step {step}: {names} gave {values}, then step {state.step}")

            return train(
                TrainState(step=np.int32(start), params={}, batch_stats={}, opt_state=()),
                program,
                (([f"image {n}"], n) for n in itertools.count(start)),
                progress=progress,
                evaluate=evaluate,
                save=save,
                diverged=diverged,
                reporter=self.recorder,
                stopping=stopping,
                watchdog=watchdog,
                **self.words,
            )


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (4, [4, 8, 10]),
        (10 / 3, [3, 7, 10]),
        (2.5, [2, 5, 8, 10]),
        (0.6, list(range(1, 11))),
    ],
)
def test_evaluations_stay_at_multiples_that_are_no_whole_steps(every, steps):
    """Rounded once, the last multiple of many would fall some steps before the end of the run."""
    run = Run(evaluate_every=every)
    run.train()
    assert evaluated(run) == steps


def test_a_tenth_of_an_epoch_of_81_images_ends_with_the_run():
    run = Run(total_steps=14, evaluate_every=0.1 * 81 / 6)  # ten times that are 13.499...
    run.train()
    assert evaluated(run) == [1, 3, 4, 5, 7, 8, 9, 11, 12, 14]


def evaluated(run):
    return [each["step"] for each in run.recorder.records if each["split"] == "val"]


UNWATCHED = {"factor": 0.0, "minimum_seconds": 1.0, "first_seconds": 1.0}


def terminate(at):
    """Sends SIGTERM once, when the given step is reached."""
    steps = iter([at])

    def signal_once(step):
        if step == at and next(steps, None) is not None:
            os.kill(os.getpid(), signal.SIGTERM)

    return signal_once


def test_it_evaluates_saves_and_tells_when_it_is_due():
    run = Run()
    assert run.train().step == 10
    assert {step: measured for step, (measured, _) in run.saved.items()} == {
        3: None,
        4: {"map": 0.4},
        6: None,
        8: {"map": 0.8},
        9: None,
        10: {"map": 1.0},
    }
    told = [(record["step"], record["split"]) for record in run.recorder.records]
    assert told == [(4, "train"), (4, "val"), (8, "train"), (8, "val"), (10, "train"), (10, "val")]
    losses = [record["loss"] for record in run.recorder.records if record["split"] == "train"]
    assert losses == pytest.approx([10 / 12, 26 / 12, 19 / 6])


@pytest.mark.parametrize("where", ["at_step", "at_evaluation"])
@pytest.mark.parametrize("step", range(1, 10))
def test_stopped_anywhere_a_run_goes_on_as_if_it_had_not_been(where, step):
    if where == "at_evaluation" and step % 4:
        step = 10  # there is no evaluation at the others
    unbroken, run = Run(), Run()
    unbroken.train()
    setattr(run, where, terminate(step))
    with pytest.raises(Stopped, match=r"stopped by SIGTERM at step \d+ of 10\. The training"):
        run.train()
    # A step is finished first; an evaluation is not, so that its step has no metric yet.
    stopped_at = step + 1 if where == "at_step" else step
    assert max(run.saved) == stopped_at
    assert run.saved[stopped_at][0] is None
    run.train()
    assert run.recorder.records == unbroken.recorder.records
    assert run.saved.items() >= unbroken.saved.items()


def test_a_run_killed_after_any_save_tells_the_same_means():
    unbroken = Run(save_every=1)
    unbroken.train()
    for step in range(1, 10):
        run = Run(save_every=1)
        run.saved = {step: unbroken.saved[step]}
        run.recorder.records = list(unbroken.recorder.records)
        run.train()
        assert run.recorder.records == unbroken.recorder.records


def test_asked_to_stop_before_its_first_step_it_saves_nothing_new():
    run = Run()
    run.at_step = terminate(5)
    with pytest.raises(Stopped):
        run.train()
    saved = dict(run.saved)
    with pytest.raises(Stopped, match="stopped by the time limit at step 6 of 10"):
        run.train(time_limit=0.0)
    assert run.saved == saved


RULE = EarlyStopping("map", patience=2, tolerance=0.0, minimum_step=0)


def test_early_stopping_ends_a_run_after_its_last_evaluation():
    run = Run(total_steps=100, early_stopping=RULE, metric=lambda step: float(min(step, 8)))
    assert run.train().step == 16
    assert run.recorder.records[-1] == {"step": 16, "split": "val", "map": 8}


@pytest.mark.parametrize("step", [9, 11, 12, 15, 16])
def test_early_stopping_remembers_what_it_counted(step):
    run = Run(total_steps=100, early_stopping=RULE, metric=lambda step: float(min(step, 8)))
    run.at_evaluation = run.at_step = terminate(step)
    with pytest.raises(Stopped):
        run.train()
    assert run.train().step == 16
    # And a run that has ended is not trained again.
    run.at_step = run.at_evaluation = lambda step: pytest.fail("it went on")
    saved = dict(run.saved)
    assert run.train().step == 16
    assert run.saved == saved


def test_a_value_that_is_not_finite_ends_the_run_and_tells_the_steps_before():
    run = Run()
    run.loss = lambda step: np.inf if step == 7 else step / 4
    # It is read late, before the evaluation of step 8.
    with pytest.raises(UserError, match=r"step 7: \['image 6'\] gave .*'loss': inf.*then step 8"):
        run.train()
    told = [(each["step"], each["loss"]) for each in run.recorder.records[2:]]
    assert told == [(5, 1.25), (6, 1.5), (7, np.inf)]  # step 4 was told of before
    assert {each["split"] for each in run.recorder.records[2:]} == {"diverged"}


def test_a_gradient_that_is_not_finite_ends_the_run_too():
    run = Run()
    run.gradient_norm = lambda step: np.nan if step == 5 else 1.0
    with pytest.raises(UserError, match=r"step 5: .*'gradient_norm': nan"):
        run.train()
