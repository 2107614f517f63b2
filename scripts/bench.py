"""Measure diffpo's update: pairs per second, memory, where the time goes, and the share of the machine's peak.

    python scripts/bench.py                                    # the shapes world's network, on this machine
    python scripts/bench.py sd15@512 sdxl@1024 sd35m@1024 --tuning lora --json bench.json      # wants a GPU
    python scripts/bench.py sd15@512 --batch 16 --gradient-checkpointing --compile
    python scripts/bench.py --method dpo inpo smpo --batch 1 8 # each combination, and how much a larger batch gains
    python scripts/bench.py --memory-table                     # model x full/LoRA x checkpointing, as markdown
    python scripts/bench.py encode generate score              # what happens around training: see bench_feed.py

On a GPU machine where diffpo is not installed, put the source tree, and a folder with what else is missing there, on
the path: `PYTHONPATH=.:PACKAGES python scripts/bench.py ...` (`pip install --target PACKAGES ...` fills one). It
needs torch, diffusers, transformers, peft and accelerate, and no network, data, or weights of any model: latents,
conditions and weights are random, architectures and sizes are real. (`shapes` also needs numpy, scipy and pillow.)

One update is what `diffpo train` does: `preference_step` with the same denoisers, the same reference
(adapter off for LoRA, frozen copy for full tuning), accelerate's autocast and backward, clipping, the optimizer.
Encoding happens before training and is not in it. Pairs per second are over `--steps` updates after `--warmup`, of
which each waits for the device once. Seconds by stage are medians; on a GPU, of its own time:

    data        stacking rows that lie in host memory, and their transfer
    noise       drawing times and noises row by row on the CPU, noising, or inverting (all micro-batches together)
    reference   its forward
    policy      forward, loss and backward
    optimizer   reading the losses back, clipping, the step

Memory is the tensors' peak on a GPU, the whole process's resident peak on a CPU. Model FLOPs count matrix products and
convolutions of policy (forward and backward) and reference (forward); what gradient checkpointing recomputes is not
counted. The peak is the fastest large matrix product in the same dtype on the same device. A configuration that does
not fit is reported as OOM and the rest goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from diffpo.compat import quiet_libraries

quiet_libraries()

import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from bench_cases import CASES, TIMED, Case, Cost, build, collate, count, make_method, make_tuning  # noqa: E402
from bench_machine import (  # noqa: E402
    GIB,
    Clock,
    Timed,
    describe,
    forget_peak,
    free_memory,
    limited_memory,
    matmul_peak,
    peak_memory,
)
from bench_report import STAGES, gains, memory_table, show  # noqa: E402

from diffpo.core.step import preference_step  # noqa: E402
from diffpo.core.types import DTYPES, Rng, StepOutput  # noqa: E402
from diffpo.errors import UserError  # noqa: E402
from diffpo.models import Denoiser  # noqa: E402
from diffpo.models.lora import LoRA  # noqa: E402
from diffpo.models.networks import lean_adapters  # noqa: E402
from diffpo.models.reference import Reference  # noqa: E402
from diffpo.models.tuning import Tuning  # noqa: E402
from diffpo.training.optimizers import make_optimizer  # noqa: E402
from diffpo.training.serving import inverted  # noqa: E402

HALF = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}
STATE_BYTES = {"adamw": 8, "adamw8bit": 2, "adafactor": 0}
FULL_SIZE = ("sd15@512", "sdxl@1024", "sd35m@1024")
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


class Update:
    """One configuration, ready to be updated: the trainer's loop body without data and logs."""

    def __init__(
        self,
        case: Case,
        tuning: Tuning,
        method: str,
        batch: int,
        options: argparse.Namespace,
        accelerator: Accelerator,
    ):
        """Build the networks on the device, and the optimizer."""
        self.accelerator, self.clock = accelerator, Clock(accelerator.device)
        self.rows, self.method = case.rows(batch), make_method(method)
        half = None if options.mixed_precision == "no" else DTYPES[HALF[options.mixed_precision]]
        policy, reference = build(case, tuning, accelerator.device, frozen_dtype(tuning, options), half)
        speed_up(policy, reference, options)
        trained = [p for p in policy.network.parameters() if p.requires_grad]
        policy.network, self.optimizer = accelerator.prepare(policy.network, make_optimizer(settings(options), trained))
        self.network = policy.network
        self.policy, self.reference = Timed(policy, self.clock), Timed(reference, self.clock)
        self.micro = options.accumulate
        self.learner = self._learner(tuning, batch, options)

    def _learner(self, tuning: Tuning, batch: int, options: argparse.Namespace) -> Any:
        """What an inversion reads of a run, whose config needs pydantic."""
        train = SimpleNamespace(batch=batch, accumulate=self.micro, compile=options.compile)
        train.split_forward, train.dtype, train.seed = False, "float32", 0
        method, data = self.method, SimpleNamespace(draw=lambda epoch: epoch)
        if method.inversion is not None:
            method = replace(method, inversion=replace(method.inversion, at_once=options.at_once))
        config = SimpleNamespace(train=train, model=tuning, method=method, data=data)
        networks = {"policy": self.policy, "reference": self.reference}
        return SimpleNamespace(config=config, accelerator=self.accelerator, **networks)

    def run(self, step: int) -> Lap:
        """Do one update, which waits for the device once, as the loop does."""
        accelerator = self.accelerator
        outputs, marks = self.backward(step)
        norm = accelerator.clip_grad_norm_(self.network.parameters(), 1.0)
        losses = torch.cat([output.loss.detach() for output in outputs]).cpu()
        margins = torch.cat([output.metrics["rewards/margins"] for output in outputs]).cpu()
        if not losses.isfinite().all():
            raise UserError("the loss is not finite: random weights overflow in this dtype; try another")
        float(norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return Lap(losses, margins, (*marks, self.clock.mark()))

    def backward(self, step: int) -> tuple[list[StepOutput], list[Any]]:
        """Make the gradients of an update; returns what the method said, and the points in time so far."""
        accelerator, mark, outputs = self.accelerator, self.clock.mark, []
        first, device = step * self.micro * len(self.rows), accelerator.device
        marks = [mark()]
        batches = [collate(self.rows, first + i * len(self.rows)).to(device, torch.float32) for i in range(self.micro)]
        marks.append(mark())
        for batch in inverted(self.learner, batches, 0):
            with accelerator.autocast():
                output = preference_step(self.method, self.policy, self.reference, batch, Rng(0, 0, batch.index))
            accelerator.backward(output.loss.sum() / (self.micro * len(self.rows)))
            outputs.append(output)
            marks += [self.reference.start, self.reference.end, mark()]
        return outputs, marks

    def laps(self, steps: range, seconds: float = math.inf) -> tuple[list[Lap], float]:
        """Do updates, at least one, until the time is up; returns them, and the seconds that each took on the wall."""
        self.clock.synchronize()
        done, began = [], time.perf_counter()
        for step in steps:
            done.append(self.run(step))
            if time.perf_counter() - began > seconds:
                break
        self.clock.synchronize()
        return done, (time.perf_counter() - began) / len(done)

    def stages(self, laps: list[Lap]) -> dict[str, float]:
        """Median seconds by stage; those between data and optimizer come once for each micro-batch."""
        first, *between, last = STAGES
        found = {stage: [0.0] * len(laps) for stage in STAGES}
        for number, lap in enumerate(laps):
            for stage, points in zip([first, *between * self.micro, last], itertools.pairwise(lap.marks), strict=True):
                found[stage][number] += self.clock.seconds(*points)
        return {stage: statistics.median(seconds) for stage, seconds in found.items()}


@dataclass(frozen=True)
class Lap:
    """What is known of one update."""

    losses: torch.Tensor
    margins: torch.Tensor
    """`[b]` logits."""
    marks: tuple[Any, ...]
    """Points in time between the stages."""


def speed_up(policy: Denoiser, reference: Reference, options: argparse.Namespace) -> None:
    """Lay out and compile both, as the trainer does."""
    able = policy.can_fuse(torch.device(options.device)) and not options.compile and options.mixed_precision != "no"
    fused = able if options.fused is None else options.fused
    if options.tuning == "lora" and options.mixed_precision != "no":
        lean_adapters(policy.network)
    for denoiser in (policy, reference.denoiser):
        if options.channels_last and policy.convolutional:
            denoiser.put_channels_last()
        if fused and (denoiser is policy or denoiser.network is not policy.network):
            denoiser.fuse()
        if options.compile and (denoiser is policy or denoiser.network is not policy.network):
            denoiser.compile(options.compile)
    reference.denoiser.layout = policy.layout


def settings(options: argparse.Namespace) -> Any:
    """The fields that an optimizer reads of the config's `train` block, which itself needs pydantic."""
    return SimpleNamespace(
        optimizer=options.optimizer,
        learning_rate=1e-6,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        weight_decay=0.01,
    )


def frozen_dtype(tuning: Tuning, options: argparse.Namespace) -> torch.dtype:
    """Dtype of frozen weights: as told, else as the shipped configs have it."""
    usual = HALF[options.mixed_precision] if isinstance(tuning, LoRA) else "float32"
    return DTYPES[options.frozen_dtype or usual]


def measure(
    case: Case,
    tuning: Tuning,
    method: str,
    batch: int,
    cost: Cost,
    options: argparse.Namespace,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Time one configuration; `status` says whether there are times: ok, OOM, or error (and `message` which)."""
    device = accelerator.device
    static = cost.static_bytes(frozen_dtype(tuning, options).itemsize, STATE_BYTES[options.optimizer]) / GIB
    result: dict[str, Any] = {"status": "OOM", "batch": batch, "static_gib": static}
    forget_peak(device)
    if static > 0.9 * free_memory(device):  # a CPU would be swapped to death, or the process killed
        return result
    try:
        update = Update(case, tuning, method, batch, options, accelerator)
        forget_peak(device)
        if options.warmup:
            update.laps(range(options.warmup))
        laps, total = update.laps(range(options.warmup, options.warmup + options.steps))
        seconds = update.stages(laps) | {"total": total}
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        return result | {"status": "error", "message": str(error)}
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if isinstance(error, RuntimeError) and not any(text in str(error) for text in OUT_OF_MEMORY):
            raise
        return result
    finally:
        accelerator.free_memory()
        if options.compile:
            torch.compiler.reset()
    result |= {"status": "ok", "peak_gib": peak_memory(device)}
    return result | {"seconds": seconds, "pairs_per_second": options.accumulate * batch / seconds["total"]}


def bench(
    name: str, kind: str, modes: tuple[bool, ...], options: argparse.Namespace, accelerator: Accelerator
) -> Iterator[dict[str, Any]]:
    """Count and time a model and a tuning: each method and batch, with or without gradient checkpointing."""
    case, cost = CASES[name], count(CASES[name], make_tuning(kind, rank=options.rank))
    for method, batch, mode in itertools.product(options.method, options.batch or [case.batch], modes):
        print(
            f"{name} {kind} {method}{' with gradient checkpointing' if mode else ''} ...", file=sys.stderr, flush=True
        )
        tuning = make_tuning(kind, rank=options.rank, attention=options.attention, checkpointing=mode)
        yield {
            "case": name,
            "tuning": kind,
            "method": method,
            "gradient_checkpointing": mode,
            "parameters": cost.parameters,
            "trained": cost.trained,
            "frozen_dtype": str(frozen_dtype(tuning, options)).removeprefix("torch."),
            "flops_per_forward": cost.forward,
            "flops_per_pair": cost.pair(method),
            "flops_per_pair_policy": cost.policy,
            "flops_per_pair_reference": cost.reference,
            **measure(case, tuning, method, batch, cost, options, accelerator),
        }


def with_share(result: dict[str, Any], peak: float) -> dict[str, Any]:
    """Add the achieved model FLOPs per second, and their share of the measured peak."""
    if result["status"] != "ok":
        return result
    achieved = result["flops_per_pair"] * result["pairs_per_second"]
    return result | {"model_flops_per_second": achieved, "share_of_peak": achieved / peak}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; what depends on the device is filled in."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (default: shapes)")
    parser.add_argument("--tuning", choices=("full", "lora"), default="full")
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA")
    parser.add_argument("--method", nargs="+", choices=TIMED, default=["dpo"])
    parser.add_argument("--batch", type=int, nargs="+", help="pairs per forward (default: the case's)")
    parser.add_argument("--accumulate", type=int, default=1, help="forwards per update; inversions share their calls")
    parser.add_argument("--at-once", type=int, help="images per call of an inversion, as method.inversion.at_once")
    parser.add_argument("--steps", type=int, default=10, help="updates to time")
    parser.add_argument("--warmup", type=int, default=3, help="updates before that")
    parser.add_argument("--mixed-precision", choices=tuple(HALF), help="default: bf16 on a GPU, no on a CPU")
    parser.add_argument("--frozen-dtype", choices=tuple(DTYPES), help="default: half for LoRA, float32 for full")
    parser.add_argument("--attention", default="native", help="as in model.attention")
    parser.add_argument(
        "--compile", nargs="?", const="regional", choices=("regional", "whole"), help="as train.compile"
    )
    parser.add_argument("--fused", action=argparse.BooleanOptionalAction, help="as train.fused")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, help="as train.channels_last")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--optimizer", choices=tuple(STATE_BYTES), default="adamw")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--memory-table", action="store_true", help="peak memory of model x full/LoRA x checkpointing")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything measured here")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser.error(f"unknown case {', '.join(unknown)}; there are {', '.join(CASES)}")
    for name, least in (("steps", 1), ("warmup", 0), ("rank", 1), ("accumulate", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}")
    if options.batch and min(options.batch) < 1:
        parser.error("--batch must be at least 1")
    options.cases = options.cases or list(FULL_SIZE if options.memory_table else ("shapes",))
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    options.mixed_precision = options.mixed_precision or ("bf16" if options.device == "cuda" else "no")
    if options.memory_table:  # the second update is the first that finds the optimizer's state in memory
        options.warmup, options.steps = 1, 1
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure what the command line names; 2 if some of it cannot be had here."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] and given[0] in ("encode", "generate", "score"):
        import bench_feed

        return bench_feed.main(given)
    options = parse(given)
    accelerator = Accelerator(mixed_precision=options.mixed_precision, cpu=options.device == "cpu")
    device = accelerator.device
    matmul = matmul_peak(device, DTYPES[HALF[options.mixed_precision]])
    machine = describe(device) | {"matmul": matmul}
    kinds = ("full", "lora") if options.memory_table else (options.tuning,)
    modes = (False, True) if options.memory_table else (options.gradient_checkpointing,)
    results: list[dict[str, Any]] = []
    with limited_memory(device):
        for name, kind in itertools.product(options.cases, kinds):
            results += (with_share(r, matmul["flops"]) for r in bench(name, kind, modes, options, accelerator))
    if options.memory_table:
        print(memory_table(results, machine, vars(options)))
    else:
        show(results, machine)
        print("\n".join(gains(results)))
    if options.json:
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        report = {"machine": machine, "settings": plain, "results": results}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
        print(f"wrote {options.json}")
    return 2 if any(r["status"] == "error" for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
