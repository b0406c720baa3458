"""What is said of a run, by a clock of the test's own."""

import threading
from pathlib import Path

import jax
import pytest

from lpjax.training.watch import Profile, Watch, duration, time_left


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def make_watch(**options):
    clock, lines, stack = Clock(), [], []
    options = {"heartbeat_seconds": 30.0, "stall_seconds": 100.0} | options
    return Watch(lines.append, say_stack=stack.append, clock=clock, **options), clock, lines, stack


def test_a_heartbeat_after_silence():
    watch, clock, lines, _ = make_watch(more=lambda: "7 GB")
    watch.phase("step 18")
    watch.done("step 17")
    clock.now += 29
    watch.look()
    assert lines == []
    watch.printed()  # by the run itself
    clock.now += 29
    watch.look()
    assert lines == []
    clock.now += 6
    watch.look()
    watch.look()
    assert lines == ["still in: step 18, for 1 min 4 s; last finished: step 17; 7 GB"]
    clock.now += 30
    watch.look()
    assert lines[1] == "still in: step 18, for 1 min 34 s; last finished: step 17; 7 GB"


def test_a_stall_is_reported_once_with_the_stack():
    watch, clock, lines, stack = make_watch(heartbeat_seconds=0.0)
    watch.done("step 17")
    clock.now += 40
    watch.phase("evaluation")
    clock.now += 59
    watch.look()
    assert lines == []
    clock.now += 1
    watch.look()
    clock.now += 1000
    watch.look()
    assert lines == [
        "stalled? nothing has finished for 1 min 40 s; still in: evaluation, for 1 min 0 s; last finished: step 17"
    ]
    assert "test_a_stall_is_reported_once_with_the_stack" in str(stack)
    watch.done("evaluation")
    clock.now += 100
    watch.look()
    assert len(lines) == 2, "the next one is reported again"
    assert lines[1].endswith("last finished: evaluation")


def test_the_thread_looks_and_ends(monkeypatch):
    looked = threading.Event()
    monkeypatch.setattr(Watch, "look", lambda self: looked.set())
    with make_watch()[0]:
        assert looked.wait(10)
        assert "watch" in [thread.name for thread in threading.enumerate()]
    assert "watch" not in [thread.name for thread in threading.enumerate()]


def test_durations():
    assert [duration(s) for s in (59.4, 59.6, 250.0, 93780.0)] == ["59 s", "1 min 0 s", "4 min 10 s", "26 h 3 min"]


def test_time_left():
    assert time_left(2, 10, [60.0, 5.0]) is None
    assert time_left(6, 10, [60.0, 5.0, 1.0, 1.0, 1.0, 9.0]) == 4.0, "compiling and a hiccup left out"
    assert time_left(302, 402, [60.0, 5.0] + [1.0] * 200 + [3.0] * 100) == 300.0, "it has become slower"
    assert time_left(10, 10, [1.0] * 10) == 0.0


@pytest.fixture
def calls(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(f"start {folder}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


def traced(profile, steps, calls):
    """What the profiler is told, among the steps: figures come one step later, as in training."""
    for step in steps:
        profile.begin(step)
        calls.append(step)
        if step - 1 in steps:
            profile.end(step - 1)
    profile.end(steps[-1])
    return calls


def test_a_trace_of_some_steps(calls):
    assert traced(Profile(2, 3, Path("there")), range(1, 6), calls) == [1, "start there", 2, 3, 4, "stop", 5]
