"""Metrics: their means, by quartile of time, and the file that reads as if nothing had happened."""

from __future__ import annotations

import json
import os
import time

import pytest
import torch

from diffpo.errors import UserError
from diffpo.training.log import RunLog, mean_metrics


class Process:
    """What a log needs to know of accelerate: whether this is the first process; it notes what trackers are told."""

    def __init__(self, first=True):
        self.is_main_process, self.told = first, []

    def log(self, values, step):
        self.told.append((step, values))


def test_means_and_quartiles_by_hand():
    """Times 0.1, 0.2, 0.6 and 1.0 lie in quartiles 1, 1, 3 and 4."""
    rows = torch.tensor([[0.1, 1.0, 3.0], [0.2, 0.0, 5.0], [0.6, 0.5, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    assert mean_metrics(["time", "rewards/accuracies", "error/chosen"], rows, torch.ones(4)) == pytest.approx(
        {
            "rewards/accuracies": 0.625,
            "error/chosen": 2.0,
            "rewards/accuracies/t1": 0.5,
            "rewards/accuracies/t3": 0.5,
            "rewards/accuracies/t4": 1.0,
        }
    )


def test_without_accuracies_there_are_no_quartiles():
    rows = torch.tensor([[0.1, 3.0], [0.9, 5.0]], dtype=torch.float64)
    assert mean_metrics(["time", "error/chosen"], rows, torch.ones(2)) == {"error/chosen": 4.0}


def test_means_are_over_terms():
    """Rows of 3, 0 and 1 terms, whose values are sums over them: 6 / 4, and accuracies 2 of 3 and 1 of 1."""
    rows = torch.tensor([[0.1, 2.0, 5.0], [0.1, 0.0, 0.0], [0.9, 1.0, 1.0]], dtype=torch.float64)
    means = mean_metrics(["time", "rewards/accuracies", "loss"], rows, torch.tensor([3.0, 0.0, 1.0]))
    accuracies = {"rewards/accuracies": 0.75, "rewards/accuracies/t1": 2 / 3, "rewards/accuracies/t4": 1.0}
    assert means == pytest.approx({"loss": 1.5} | accuracies)


def test_without_terms_there_is_a_loss_of_zero_and_no_number_that_is_none():
    assert mean_metrics(["loss", "error/chosen"], torch.zeros(2, 2), torch.zeros(2)) == {"loss": 0.0, "terms": 0}


def write(folder, start, steps, process):
    with RunLog(process, folder, start, 9, every=1) as log:
        for step in steps:
            log.write(step, {"loss": float(step)})
            log.advance(step, {"loss": float(step)})


def test_a_resumed_log_is_cut_back_to_the_checkpoint(tmp_path):
    write(tmp_path, 0, [1, 2, 3], Process())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # as a kill leaves it
    write(tmp_path, 2, [3, 4], Process())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": step, "loss": float(step)} for step in (1, 2, 3, 4)]


def test_only_the_first_process_writes(tmp_path):
    write(tmp_path, 0, [1], Process(first=False))
    assert not list(tmp_path.iterdir())


def test_trackers_are_told(tmp_path):
    process = Process()
    write(tmp_path, 0, [1, 2], process)
    assert process.told == [(1, {"loss": 1.0}), (2, {"loss": 2.0})]


def test_timing_is_per_update(tmp_path):
    with RunLog(Process(), tmp_path, 0, 1, every=1) as log:
        values = log.timing(8)
    assert values["time/pairs_per_second"] == pytest.approx(8 / values["time/seconds"])


def test_what_is_done_aside_takes_no_time(tmp_path):
    with RunLog(Process(), tmp_path, 0, 1, every=1) as log:
        with log.aside("sampling"):
            time.sleep(0.3)
        values = log.timing(8)
    assert values["time/seconds"] < 0.2


def test_without_a_terminal_there_are_lines(tmp_path, capsys):
    """Every so many updates, and for the last one; what is no update is named."""
    folder = tmp_path / "x"
    folder.mkdir()
    with RunLog(Process(), folder, 2, 7, every=2) as log:
        for step in (3, 4, 5, 6, 7):
            log.advance(step, {"loss": 0.5, "rewards/accuracies": 0.75, "time/pairs_per_second": 3.0})
        with log.aside("sampling"):
            pass
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(", ")[0] for line in lines] == [
        "x: update 4 of 7",
        "x: update 6 of 7",
        "x: update 7 of 7",
        "x: sampling",
    ]
    assert "loss 0.5000, acc 0.7500, 3.0 pairs/s, " in lines[0] and lines[0].endswith(" s left")


def test_without_a_terminal_there_is_a_line_after_half_a_minute(tmp_path, capsys, monkeypatch):
    with RunLog(Process(), tmp_path, 0, 100, every=100) as log:
        for step in range(1, 5):
            monkeypatch.setattr("time.perf_counter", lambda step=step: log._began + 20.0 * step)
            log.advance(step, {})
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0].split(": ")[1] for line in lines] == ["update 2 of 100", "update 4 of 100"]
    assert lines[0].endswith("1960 s left")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file on a full disk")
def test_a_full_disk_is_said_with_the_name_of_the_file(tmp_path):
    with (
        pytest.raises(UserError, match=r"the disk is full: .*metrics\.jsonl could not be written .*run the same"),
        RunLog(Process(), tmp_path, 0, 1, every=1) as log,
        open("/dev/full", "wb", buffering=0) as log._file,
    ):
        log.write(1, {"loss": 1.0})
