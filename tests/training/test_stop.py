"""The clock and the signals of a run, in one process; `tests/reported/test_stopped_runs.py` has whole runs."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest
from runs import World, checkpoints

from diffpo.training.stop import Stopped, Watch

ALONE = SimpleNamespace(is_main_process=True, num_processes=1, device="cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr("time.monotonic", lambda: now.seconds)
    return now


def test_a_checkpoint_is_due_by_the_clock(clock):
    watch = Watch(ALONE, 2.0)
    seen = []
    for clock.seconds in (60, 119, 121, 200):
        seen.append(watch.look()[1])
    watch.saved()
    clock.seconds = 319
    assert [*seen, watch.look()[1]] == [False, False, True, True, False]


def test_no_minutes_no_clock(clock):
    watch = Watch(ALONE, None)
    clock.seconds = 1e9
    assert watch.look() == (0, False)


def test_checkpoints_by_the_clock_in_a_run(tmp_path):
    run = World.make(tmp_path).train("run", {"train.steps": 3, "train.checkpoint_minutes": 1e-9, "train.keep_last": 9})
    assert checkpoints(run) == ["step-000003"]  # those in between went when the next one was there
    assert '"checkpoints/step-000003"' in (run / "run.json").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_is_remembered_while_updates_are_made_and_ends_the_run_at_other_times(number, code, capsys):
    before = signal.getsignal(number)
    with Watch(ALONE, None) as watch, watch.patiently():
        os.kill(os.getpid(), number)
        assert watch.look() == (number, False)
        assert signal.getsignal(number) == before  # a second one ends the process
    with pytest.raises(Stopped) as caught, Watch(ALONE, None):
        os.kill(os.getpid(), number)
    assert caught.value.code == code
    assert f"stopped by {signal.Signals(number).name}: nothing was lost" in capsys.readouterr().err
    assert signal.getsignal(number) == before
