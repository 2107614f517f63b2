"""Checkpoints: complete or not there, whatever the disk does; and state that survives the way to disk and back."""

from __future__ import annotations

import errno
import json
import threading
from concurrent.futures import CancelledError

import pytest
import torch
from runs import command
from torch import nn

from diffpo.disk.files import UNFINISHED
from diffpo.errors import UserError
from diffpo.training import checkpoint


def write(folder, step, keep=2):
    tensors = {"weights": {"a": torch.full((3,), float(step))}, "optimizer": {"a|exp_avg": torch.zeros(3)}}
    return checkpoint.save(folder, step, tensors, {"step": step}, keep=keep)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    tensors, values = checkpoint.load(write(tmp_path, 7))
    assert tensors["weights"]["a"].tolist() == [7.0] * 3
    assert tensors.keys() == {"weights", "optimizer"} and values == {"step": 7}


def test_the_last_ones_are_kept(tmp_path):
    for step in (5, 10, 999_999, 1_000_000):
        write(tmp_path, step)
    assert names(tmp_path) == ["step-1000000", "step-999999"]
    assert checkpoint.newest(tmp_path).name == "step-1000000"


def test_one_in_between_goes_when_the_next_one_is_there(tmp_path):
    """After a signal, or by the clock; so a run that went on keeps the same ones as a straight run."""
    kept = []
    for step in (2, 4, 5, 6, 7):
        tensors = {"weights": {"a": torch.ones(3)}}
        checkpoint.save(tmp_path, step, tensors, {"step": step}, keep=2, every=2)
        kept.append([int(name.removeprefix("step-")) for name in names(tmp_path)])
    assert kept == [[2], [2, 4], [2, 4, 5], [4, 6], [4, 6, 7]]


def test_unfinished_folders_are_no_checkpoints(tmp_path):
    assert checkpoint.newest(tmp_path / "nowhere") is None
    write(tmp_path, 1)
    for left in (f".step-000002.0123{UNFINISHED}", "step-", "step-3-old"):
        (tmp_path / left).mkdir()
    assert checkpoint.newest(tmp_path).name == "step-000001"
    write(tmp_path, 2)
    assert checkpoint.load(checkpoint.newest(tmp_path))[1] == {"step": 2}
    assert names(tmp_path) == ["step-", "step-000001", "step-000002", "step-3-old"]


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    write(tmp_path, 1, keep=1)
    real = checkpoint.save_file

    def full(content, path):
        if path.name.startswith("optimizer"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(content, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match=r"the disk is full: .*step-000002 could not be written"):
        write(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step-000001"]
    assert checkpoint.load(checkpoint.newest(tmp_path))[1] == {"step": 1}


def test_a_real_limit_on_file_sizes_leaves_the_last_checkpoint_whole(tmp_path):
    """The kernel refuses the write, inside safetensors: no patch of ours decides what is raised."""
    code = (
        "import resource, signal, torch, pathlib\n"
        "from diffpo.training import checkpoint\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "checkpoint.save(folder, 1, {'weights': {'a': torch.ones(9)}}, {'step': 1}, keep=1)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: checkpoint.save(folder, 2, {'weights': {'a': torch.ones(99_999)}}, {'step': 2}, keep=1)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = command("-c", code)
    assert done.stdout.startswith("UserError the disk is full"), done.stdout + done.stderr
    assert names(tmp_path) == ["step-000001"]
    assert checkpoint.load(checkpoint.newest(tmp_path))[0]["weights"]["a"].tolist() == [1.0] * 9


def test_what_is_given_up_leaves_nothing(tmp_path):
    given_up = threading.Event()
    given_up.set()
    with pytest.raises(CancelledError):
        checkpoint.save(tmp_path, 1, {"weights": {"a": torch.ones(3)}}, {"step": 1}, keep=1, given_up=given_up)
    assert names(tmp_path) == []


def test_large_numbers_are_finite_although_their_sum_is_not():
    large = torch.full((9,), torch.finfo(torch.float32).max)
    assert checkpoint.find_not_finite({"weights": {"a": large, "b": torch.tensor([1.0, -torch.inf])}}) == ["weights: b"]


def test_another_error_is_not_called_a_full_disk(tmp_path, monkeypatch):
    def broken(content, path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "save_file", broken)
    with pytest.raises(OSError, match="Input/output"):
        write(tmp_path, 1)
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop])
def test_a_network_and_its_optimizer_come_back(kind):
    def made():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        network[0].bias.requires_grad_(False)
        return network, kind([p for p in network.parameters() if p.requires_grad], lr=0.1)

    def step(network, optimizer):
        network(torch.arange(6.0).reshape(2, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    network, optimizer = made()
    step(network, optimizer)
    weights = checkpoint.trained_weights(network)
    tensors, plain = checkpoint.optimizer_state(network, optimizer)
    assert weights.keys() == {"0.weight", "1.weight", "1.bias"}
    plain = json.loads(json.dumps(plain))  # as on disk
    step(network, optimizer)

    again, other = made()
    checkpoint.restore(again, other, weights, tensors, plain)
    step(again, other)
    for a, b in zip(network.parameters(), again.parameters(), strict=True):
        assert a.equal(b)
