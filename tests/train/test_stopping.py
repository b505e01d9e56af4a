"""How a run is asked to stop, and when it stops by itself."""

import contextlib
import os
import signal
import threading

import pytest

from ssd_jax import cluster
from ssd_jax.data import storage
from ssd_jax.errors import Stopped
from ssd_jax.train.stopping import EarlyStopping, Progress, Stopping


def send(name):
    os.kill(os.getpid(), getattr(signal, name))


@pytest.fixture(autouse=True)
def in_the_foreground():
    """A shell starts what it runs in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_is_noted_and_the_handler_of_before_is_put_back(name):
    before = signal.getsignal(getattr(signal, name))
    with Stopping() as stopping:
        stopping.hold()
        assert not stopping.agreed()
        send(name)
        assert stopping.agreed()
        assert stopping.reason == name
    assert signal.getsignal(getattr(signal, name)) is before


def test_a_signal_before_there_is_anything_to_save_stops_at_once():
    with pytest.raises(Stopped, match="stopped by SIGTERM outside of training"), Stopping():
        send("SIGTERM")


def test_one_of_several_processes_stops_only_where_the_others_hear_of_it(monkeypatch):
    monkeypatch.setattr("ssd_jax.train.stopping.jax.process_count", lambda: 2)
    with Stopping() as stopping:
        send("SIGTERM")  # to be told at the next meeting
        assert "stopped by SIGTERM outside of training" in cluster._asked
        with pytest.raises(Stopped), stopping.at_once():
            pytest.fail("what may be dropped is not begun")
        stopping.hold()
        assert cluster._asked is None  # from here on the steps vote
    with Stopping():
        send("SIGTERM")
    assert cluster._asked is None


def test_a_transfer_does_not_take_a_signal_for_a_failure_and_try_again():
    tries = []

    def transfer():
        tries.append(True)
        send("SIGTERM")

    def run():
        with Stopping():
            storage._persistently(transfer, "s3://bucket/name")

    with pytest.raises(Stopped):
        run()
    assert len(tries) == 1


def test_what_is_being_stopped_is_not_interrupted_again():
    def clean_up():
        send("SIGTERM")
        ended.append(True)

    def run():
        with Stopping(), contextlib.ExitStack() as stack:
            stack.callback(clean_up)
            send("SIGTERM")

    ended = []
    with pytest.raises(Stopped):
        run()
    assert ended


def test_a_part_that_can_be_dropped_is_dropped_at_once():
    with Stopping() as stopping:
        stopping.hold()
        with pytest.raises(Stopped, match="stopped by SIGTERM"), stopping.at_once():
            send("SIGTERM")
        send("SIGTERM")
        with pytest.raises(Stopped), stopping.at_once():
            pytest.fail("a signal that came before waits for nothing")


def test_the_second_interrupt_does_what_it_always_does():
    with Stopping() as stopping:
        stopping.hold()
        send("SIGINT")
        assert stopping.agreed()
        with pytest.raises(KeyboardInterrupt):
            send("SIGINT")


def test_schedulers_may_repeat_themselves():
    with Stopping() as stopping:
        stopping.hold()
        for name in ("SIGUSR1", "SIGTERM", "SIGTERM"):
            send(name)
        assert stopping.agreed()


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stopping() as stopping:
            send("SIGINT")
            assert not stopping.agreed()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_time_limit_stops_the_run_too():
    with Stopping(time_limit=3600.0) as stopping:
        assert not stopping.agreed()
    with Stopping(time_limit=0.0) as stopping:
        assert stopping.agreed()
        assert stopping.reason == "the time limit"


def test_outside_the_main_thread_only_the_time_limit_counts():
    answers = []

    def run():
        with Stopping(time_limit=0.0) as stopping:
            answers.append((stopping.agreed(), signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert answers == [(True, before)]


def test_a_handler_that_python_does_not_know_gives_way_to_the_default():
    before = signal.getsignal(signal.SIGUSR1)
    try:
        with Stopping() as stopping:
            stopping._before[signal.SIGUSR1] = None  # as signal.signal calls it
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_of_several_processes_no_step_waits_for_the_answer_to_its_own_question(monkeypatch):
    monkeypatch.setattr("ssd_jax.train.stopping.jax.process_count", lambda: 2)
    monkeypatch.setattr("ssd_jax.train.stopping.any_process", lambda flag: flag)
    monkeypatch.setattr("ssd_jax.train.stopping._read", bool)
    with Stopping() as stopping:
        stopping.hold()
        before = [stopping.agreed() for _ in range(3)]
        send("SIGTERM")
        after = [stopping.agreed() for _ in range(3)]
    assert (before, after) == ([False] * 3, [False, False, True])


def test_a_longer_work_is_dropped_between_two_of_its_parts():
    with Stopping() as stopping:
        stopping.hold()
        parts = stopping.between("abc")
        assert next(parts) == "a"
        send("SIGTERM")
        with pytest.raises(Stopped):
            next(parts)


def test_of_several_processes_no_part_waits_for_the_one_that_is_going_on(monkeypatch):
    events = []
    monkeypatch.setattr("ssd_jax.train.stopping.jax.process_count", lambda: 2)
    monkeypatch.setattr("ssd_jax.train.stopping.any_process", lambda flag: flag)
    monkeypatch.setattr("ssd_jax.train.stopping._read", lambda a: events.append("read") or a)
    with Stopping() as stopping:
        stopping.hold()
        parts = stopping.between("abcde")
        for part in parts:
            events.append(part)
            if part == "b":
                send("SIGTERM")
                break
        assert next(parts) == "c"  # the question before was asked ahead of the signal
        with pytest.raises(Stopped):
            next(parts)
    assert events == ["a", "read", "b", "read", "read"]


def evaluations(rule, values, *, every=10):
    """The step at which the rule ends a run with these measurements, None if it does not."""
    progress = Progress()
    for number, value in enumerate(values, start=1):
        progress = progress._replace(evaluated_step=number * every)
        progress = rule.note(progress, {"map": value})
        if rule.reached(progress):
            return progress.evaluated_step
    return None


@pytest.mark.parametrize(
    ("patience", "tolerance", "minimum_step", "values", "ends"),
    [
        (2, 0.0, 0, [0.1, 0.2, 0.2, 0.2, 0.9], 40),  # equal is no improvement
        (2, 0.0, 0, [0.1, 0.2, 0.1, 0.3, 0.2, 0.2], 60),  # an improvement counts anew
        (2, 0.0, 50, [0.5, 0.4, 0.4, 0.4, 0.4, 0.4], 50),  # never before the minimum
        (2, 0.1, 0, [0.50, 0.54, 0.549], 30),  # 0.5 * 1.1 = 0.55 was needed
        (2, 0.1, 0, [0.50, 0.54, 0.56], None),  # slow steps add up: the best stays 0.50
        (2, 0.5, 0, [0.0, 0.01, 0.0, 0.0], 40),  # after 0 everything above it is better
        (1, 0.0, 0, [0.0], 10),
    ],
)
def test_early_stopping(patience, tolerance, minimum_step, values, ends):
    rule = EarlyStopping("map", patience, tolerance, minimum_step)
    assert evaluations(rule, values) == ends
