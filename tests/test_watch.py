"""What is said of a run, by a clock of the test's own."""

import threading
from pathlib import Path

import jax
import pytest
from helpers import small_config

from lpjax.training.watch import Profile, Watch, duration, memory_line, time_left


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
    clock.now += 6
    watch.look()
    watch.look()
    assert lines == ["still in: step 18, for 35 s; last finished: step 17; 7 GB"]
    clock.now += 30
    watch.look()
    assert lines[1] == "still in: step 18, for 1 min 5 s; last finished: step 17; 7 GB"


def test_no_heartbeat_while_the_run_prints():
    watch, clock, lines, _ = make_watch(stall_seconds=0.0)
    for _ in range(10):
        clock.now += 29
        watch.look()
        watch.printed()
    assert lines == []


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


def test_no_stall_while_something_finishes():
    watch, clock, lines, stack = make_watch(heartbeat_seconds=0.0)
    for step in range(10):
        clock.now += 99
        watch.look()
        watch.done(f"step {step}")
    assert lines == []
    assert stack == []


def test_nothing_is_said_when_it_is_switched_off():
    watch, clock, lines, stack = make_watch(heartbeat_seconds=0.0, stall_seconds=0.0)
    clock.now += 1e6
    watch.look()
    assert lines == []
    assert stack == []


def test_the_thread_looks_and_ends(monkeypatch):
    looked = threading.Event()
    monkeypatch.setattr(Watch, "look", lambda self: looked.set())
    with make_watch()[0]:
        assert looked.wait(10)
        assert "watch" in [thread.name for thread in threading.enumerate()]
    assert "watch" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (250.0, "4 min 10 s"),
        (3600.0, "1 h 0 min"),
        (93780.0, "26 h 3 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_time_left():
    assert time_left(2, 10, [60.0, 5.0]) is None
    assert time_left(6, 10, [60.0, 5.0, 1.0, 1.0, 1.0, 9.0]) == 4.0, "compiling and a hiccup left out"
    assert time_left(302, 402, [60.0, 5.0] + [1.0] * 200 + [3.0] * 100) == 300.0, "it has become slower"
    assert time_left(10, 10, [1.0] * 10) == 0.0


class Device:
    def __init__(self, **stats):
        self.memory_stats = lambda: stats or None


def test_memory_where_the_platform_tells():
    assert memory_line() is None, "CPU"
    full = Device(bytes_in_use=3_000_000_000, peak_bytes_in_use=5_000_000_000, bytes_limit=16_000_000_000)
    less = Device(bytes_in_use=1_000_000_000, peak_bytes_in_use=9_000_000_000, bytes_limit=16_000_000_000)
    assert memory_line([less, full]) == "device memory: 3.00 GB of 16.00 GB, at most 5.00 GB"
    assert memory_line([Device(bytes_in_use=2_000_000_000), Device()]) == "device memory: 2.00 GB"


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


def test_a_run_that_starts_or_ends_among_them(calls):
    assert traced(Profile(2, 5, Path("there")), range(4, 7), calls) == ["start there", 4, 5, 6, "stop"]
    calls.clear()
    with Profile(2, 5, Path("there")) as profile:
        profile.begin(3)
    assert calls == ["start there", "stop"]


def test_no_trace(calls):
    with Profile(None, None, Path("there")) as profile:
        assert traced(profile, range(1, 4), calls) == [1, 2, 3]


def test_a_real_trace(tmp_path):
    profile = Profile(1, 1, tmp_path)
    profile.begin(1)
    jax.block_until_ready(jax.numpy.ones(3) + 1)
    profile.end(1)
    assert list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"heartbeat_seconds": -1.0}, "watch.heartbeat_seconds=-1.0: expected at least 0"),
        ({"stall_seconds": -1.0}, "watch.stall_seconds=-1.0: expected at least 0"),
        ({"profile_first": 3}, "watch.profile_first=3, watch.profile_last=None: .* set both, or none"),
        ({"profile_last": 3}, "watch.profile_first=None, watch.profile_last=3: .* set both, or none"),
        ({"profile_first": 0, "profile_last": 3}, "expected steps 1 <= first <= last"),
        ({"profile_first": 4, "profile_last": 3}, "expected steps 1 <= first <= last"),
    ],
)
def test_fields_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        small_config(watch=fields)


def test_fields():
    config = small_config(watch={"profile_first": 2, "profile_last": 4, "heartbeat_seconds": 0})
    assert (config.watch.profile_first, config.watch.profile_last) == (2, 4)
