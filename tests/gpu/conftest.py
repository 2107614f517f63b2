"""What the tests on a GPU share: tiny runs on the card, two ways to the same step compared, and a report.

    python -m pytest tests/gpu                          on a machine with a card: under 4 minutes
    DIFFPO_REHEARSE_GPU=1 python -m pytest tests/gpu    on a CPU, as far as it goes: whether the tests themselves work
    DIFFPO_LANE_JSON=lane.json python -m pytest ...     also writes what passed, what was skipped and why

Everything is small and real: no network, no weights but random ones. Where torch can be told to compute
deterministically, the tests that compare bit for bit tell it to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts: deterministic matrix products

import pytest
import torch
from accelerate import Accelerator
from cards import REHEARSED
from runs import World, forget_accelerator
from tiny_steps import move
from torch import Tensor

from diffpo.core.types import PairBatch
from diffpo.training.learner import Learner

LEVELS = {
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
}
"""The levels of Stable Diffusion 1.5's network."""


@dataclass
class Started:
    """A run whose learner is on the card, and its first micro-batch."""

    accelerator: Accelerator
    learner: Learner
    batch: PairBatch

    def step(self) -> tuple[float, dict[str, Tensor]]:
        """Loss of the micro-batch, and the gradient of all that is trained; nothing is updated."""
        from diffpo.training.update import forward

        named = [(name, p) for name, p in self.learner.policy.network.named_parameters() if p.requires_grad]
        loss = forward(self.learner, self.batch, 0).loss.mean()
        self.accelerator.backward(loss)
        gradient = {name.replace("._orig_mod", ""): p.grad.float().cpu() for name, p in named if p.grad is not None}
        self.learner.optimizer.zero_grad()
        return loss.item(), gradient


@pytest.fixture(autouse=True)
def anew():
    """Every test chooses its own precision, and leaves no compiled graph behind."""
    forget_accelerator()
    yield
    forget_accelerator()
    torch._dynamo.reset()


@pytest.fixture
def deterministic():
    """Let torch use deterministic kernels only, and warn where there is none."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    """Tiny pipelines and pairs of 64 pixels, whose latents have 32 cells a side."""
    import tiny

    made = World.make(tmp_path_factory.mktemp("gpu"), "sd15", "sd3")
    tiny.save_pairs(made.folder / "pairs", size=64)
    tiny.save_pipeline("sd15", made.folder / "levels")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny.unet(block_out_channels=(8, 16, 32, 32), **LEVELS).save_pretrained(made.folder / "levels" / "unet")
    return made


@pytest.fixture
def start(world):
    """Prepares a run as `diffpo train` does: `start({"train.mixed_precision": "bf16"})`.

    `beta` is small, so that rounding is small beside it; the policy has moved away from the reference. Torch's own
    kernels do all of it unless `train.fused` says otherwise.
    """

    def begin(changes: Mapping[str, Any] | None = None, family: str = "sd15", moved: bool = True) -> Started:
        from diffpo.config.run import build
        from diffpo.training.learner import prepare_learner
        from diffpo.training.processes import make_accelerator
        from diffpo.training.train import prepare_data

        forget_accelerator()
        usual = {"method.beta": 1.0, "data.resolution": 64, "train.mixed_precision": "bf16", "train.fused": False}
        config = build(world.tree("started", usual | dict(changes or {}), family))
        accelerator = make_accelerator(config)
        plan, loader, _, _ = prepare_data(config, accelerator)
        learner = prepare_learner(config, accelerator)
        if moved:
            move(learner.policy.network)
        batch = next(iter(loader.updates(plan, 0, 1)))[0]
        return Started(accelerator, learner, batch)

    return begin


@pytest.fixture
def cosine():
    """Says the cosine of the angle between two gradients, given by name."""

    def between(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
        assert a.keys() == b.keys() and a
        whole = (torch.cat([gradient[name].double().flatten() for name in sorted(a)]) for gradient in (a, b))
        return torch.nn.functional.cosine_similarity(*whole, dim=0).item()

    return between


@pytest.fixture
def same_step(cosine):
    """Asserts that two ways to one step agree as the documents promise for half precision."""

    def check(plain: tuple[float, dict[str, Tensor]], fast: tuple[float, dict[str, Tensor]]) -> None:
        assert fast[0] == pytest.approx(plain[0], rel=1e-3), "loss"
        assert (found := cosine(plain[1], fast[1])) > 0.999, f"the gradients' cosine is {found}"

    return check


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """What may take long comes last: two processes, which may wait for each other, and what compiles."""
    items.sort(key=lambda item: (item.path.name == "test_compiled.py", "two_processes" in item.name))


REPORTS: list[dict[str, Any]] = []


def pytest_runtest_logreport(report):
    """Note what became of each test, and what it told (`record_property`)."""
    if "tests/gpu/" not in report.nodeid or (report.when != "call" and report.outcome == "passed"):
        return
    reason = str(report.longrepr[2]).removeprefix("Skipped: ") if report.skipped else str(report.longrepr or "")
    name, seconds = report.nodeid.partition("::")[2], round(report.duration, 2)
    known = {"test": name, "outcome": report.outcome, "seconds": seconds, "reason": reason[-2000:]}
    REPORTS.append(known | {"told": dict(report.user_properties)})
    if place := os.environ.get("DIFFPO_LANE_JSON"):  # after each test: the lane may run into its limit
        Path(place).write_text(json.dumps(REPORTS, indent=2) + "\n")


def pytest_terminal_summary(terminalreporter):
    """Say in one table what ran, what was skipped and why; write it as JSON where asked to."""
    if "DIFFPO_LANE_JSON" not in os.environ and all(each["outcome"] == "skipped" for each in REPORTS):
        return
    terminalreporter.section(f"the GPU lane on {'a CPU' if REHEARSED else torch.cuda.get_device_name(0)}")
    for each in REPORTS:
        said = each["reason"].strip().splitlines()[-1][:160] if each["reason"] else each["told"] or ""
        terminalreporter.write_line(f"{each['outcome']:8}{each['seconds']:7.1f} s  {each['test']}  {said}")
