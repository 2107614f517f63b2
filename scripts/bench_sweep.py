r"""Measure a list of configurations in one process, each within its time, and write every result as it comes.

    python scripts/bench_sweep.py --out sweep --seconds 240 \
        "sd15@512 full batch=16 compile=regional profile=1" "sdxl@1024 lora batch=4 compile=regional checkpointing=1"

A row names a case and a tuning (see `bench.py`), then settings: `batch` (8,6: 6 where memory does not hold 8),
`accumulate`, `at_once`, `method`, `compile` (regional, whole), `checkpointing` (the share of the blocks),
`channels_last`, `fused`, `optimizer`, `attention`, `kernels` (the order in which torch's attention kernels are tried,
such as cudnn+flash+efficient), `benchmark` (1: cuDNN tries its convolutions; 2: measured both without and with),
`profile` (1: the kernels of one update, grouped and named), `check` (1: the cosine between the gradients of fast and of
plain calls). `timed` are seconds of timed updates; `limit` ends a row that takes longer, its compilation included. Rows
that no longer fit into `--seconds` are left out, and said. What does not fit into memory, takes too long or fails is
said, and the next row has its turn; the exit code is 1 where one failed.

`--save-compiled FILE` keeps what torch compiled, `--load-compiled FILE` gives it back on another machine of that kind.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import math
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench
import torch
from accelerate import Accelerator
from bench_cases import CASES, Cost, count, make_tuning
from bench_kernels import SDPA, profile
from bench_machine import describe, forget_peak, matmul_peak, peak_memory
from torch.nn.attention import sdpa_kernel

from diffpo.core.types import DTYPES
from diffpo.errors import UserError

USUAL: dict[str, str] = {
    "batch": "",
    "accumulate": "1",
    "at_once": "",
    "method": "dpo",
    "compile": "",
    "checkpointing": "0",
    "channels_last": "",
    "fused": "",
    "optimizer": "adamw",
    "attention": "native",
    "kernels": "",
    "benchmark": "0",
    "profile": "0",
    "check": "0",
    "timed": "3",
    "limit": "120",
}
QUIET = ("profile", "limit", "timed", "benchmark", "check")
"""Settings that change nothing of what is measured."""
LEAST = 10.0
"""Seconds that a row needs to be begun."""
COUNTED: dict[tuple[str, str], Cost] = {}


class OverTime(BaseException):
    """A row has used up its time. It is no `Exception`: a compiler that is at work would make another one of it."""


def parse_row(text: str) -> dict[str, str]:
    """Read a row of the command line."""
    name, kind, *settings = shlex.split(text)
    given = dict(each.partition("=")[::2] for each in settings)
    if name not in CASES or kind not in ("full", "lora") or not given.keys() <= USUAL.keys():
        raise UserError(f"row {text!r}: a case of {', '.join(CASES)}, then full or lora, then {', '.join(USUAL)}")
    return {"case": name, "tuning": kind} | USUAL | given


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """End what runs inside after so many seconds."""

    def ring(*_: object) -> None:
        raise OverTime(f"longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def options_of(row: dict[str, str], arguments: argparse.Namespace) -> argparse.Namespace:
    """What `bench.py` would have been told."""
    given = [row["case"], "--tuning", row["tuning"], "--optimizer", row["optimizer"], "--attention", row["attention"]]
    given += ["--accumulate", row["accumulate"], *(["--at-once", row["at_once"]] if row["at_once"] else [])]
    given += ["--device", arguments.device, "--mixed-precision", arguments.mixed_precision]
    given += ["--compile", row["compile"]] if row["compile"] else []
    for name in ("channels_last", "fused"):
        if row[name]:
            given.append(f"--{'' if row[name] == '1' else 'no-'}{name.replace('_', '-')}")
    return bench.parse(given)


def measure(row: dict[str, str], arguments: argparse.Namespace, accelerator: Accelerator) -> Iterator[dict[str, Any]]:
    """Time one row: yields a result, and a second one where `benchmark` is 2."""
    options, case = options_of(row, arguments), CASES[row["case"]]
    share = float(row["checkpointing"])
    tuning = make_tuning(row["tuning"], attention=row["attention"], checkpointing=share > 0, share=share)
    batch, began = int(row["batch"] or case.batch), time.perf_counter()
    cost = cost_of(row["case"], row["tuning"])
    torch.backends.cudnn.benchmark = row["benchmark"] == "1"
    forget_peak(accelerator.device)
    update = bench.Update(case, tuning, row["method"], batch, options, accelerator)
    built = time.perf_counter() - began
    gradients = [gradient(update, fast=each) for each in (False, True) if row["check"] == "1"]
    first, _ = update.laps(range(1))
    compiled = time.perf_counter() - began - built
    found = {
        "build_seconds": built,
        "first_seconds": compiled,
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        "from_log_2": float((first[0].losses.double() - math.log(2)).abs().max()),
        "margin_spread": float(first[0].margins.double().std(correction=0)),
    }
    if gradients:
        found["cosine"] = cosine(*gradients)
        gradients.clear()
    for benchmark in (False, True) if row["benchmark"] == "2" else (row["benchmark"] == "1",):
        torch.backends.cudnn.benchmark = benchmark
        update.laps(range(1, 3))
        forget_peak(accelerator.device)
        laps, total = update.laps(range(3, 60), seconds=float(row["timed"]))
        pace = options.accumulate * batch / total
        result = row | found | {"cudnn_benchmark": benchmark, "updates": len(laps), "pairs_per_second": pace}
        result |= {"peak_gib": peak_memory(accelerator.device), "flops_per_pair": cost.pair(row["method"])}
        result |= {"seconds": update.stages(laps) | {"total": total}}
        result["kernels_by_time"] = profile(lambda: update.run(0)) if row["profile"] == "1" else {}
        yield result


def gradient(update: bench.Update, *, fast: bool) -> list[torch.Tensor]:
    """The gradients of one batch, of fused or compiled calls or of plain ones; nothing is updated."""
    networks = (update.network, update.reference.inner.denoiser.network)
    parts = {part for network in networks for part in network.modules()}
    calls = {part: part._compiled_call_impl for part in parts}
    replaced = {part: {name: vars(part)[name] for name in vars(part) if is_method(part, name)} for part in parts}
    replaced[update.network].pop("forward", None)  # accelerate's, with its autocast
    for part in parts if not fast else ():
        part._compiled_call_impl = None
        for name in replaced[part]:
            delattr(part, name)
    try:
        update.backward(0)
    finally:
        for part, call in calls.items():
            part._compiled_call_impl = call
            vars(part).update(replaced[part])
    found = [p.grad for p in update.network.parameters() if p.grad is not None]
    update.optimizer.zero_grad()
    return found


def is_method(part: torch.nn.Module, name: str) -> bool:
    """Whether the class of a part has a method of this name."""
    return inspect.isroutine(getattr(type(part), name, None))


def cosine(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Of the angle between two gradients, in float64: sums over a billion numbers need it."""

    def product(x: list[torch.Tensor], y: list[torch.Tensor]) -> float:
        return float(sum((g.double() * h.double()).sum() for g, h in zip(x, y, strict=True)))

    return product(a, b) / math.sqrt(product(a, a) * product(b, b))


def cost_of(name: str, kind: str) -> Cost:
    """What a pair costs by arithmetic: counted once, which takes a while for large networks."""
    if (name, kind) not in COUNTED:
        file = Path(__file__).with_name("bench_costs.json")
        known = json.loads(file.read_text()) if file.exists() else {}
        if f"{name} {kind}" in known:
            COUNTED[name, kind] = Cost(**known[f"{name} {kind}"])
        else:
            COUNTED[name, kind] = count(CASES[name], make_tuning(kind))
    return COUNTED[name, kind]


def run(row: dict[str, str], arguments: argparse.Namespace, accelerator: Accelerator) -> list[dict[str, Any]]:
    """Do one row, whatever happens; the last result says what went wrong, if something did."""
    results: list[dict[str, Any]] = []
    torch._dynamo.utils.counters.clear()
    kernels = [SDPA[name] for name in row["kernels"].split("+")] if row["kernels"] else None
    try:
        with at_most(float(row["limit"])), contextlib.ExitStack() as stack:
            if kernels:
                stack.enter_context(sdpa_kernel(kernels, set_priority=True))
            for result in measure(row, arguments, accelerator):
                results.append(result | {"row": name_of(row), "status": "ok"})
    except (Exception, OverTime, KeyboardInterrupt) as error:  # the other rows must have their turn
        text = str(error).splitlines()
        status = "late" if isinstance(error, OverTime) else "error"
        status = "OOM" if any(each in str(error) for each in bench.OUT_OF_MEMORY) else status
        message = f"{type(error).__name__}: {text[0] if text else ''}"[:500]
        results.append(row | {"row": name_of(row), "status": status, "message": message})
    finally:
        accelerator.free_memory()
        torch._dynamo.reset()
    return results


def run_first_that_fits(
    row: dict[str, str], ends: float, arguments: argparse.Namespace, accelerator: Accelerator
) -> list[dict[str, Any]]:
    """Do a row with the first of its batches that memory holds, before `ends`; all tries are told."""
    results: list[dict[str, Any]] = []
    for batch in row["batch"].split(","):
        left = ends - time.perf_counter()
        if left < LEAST:
            print(f"no time for {name_of(row | {'batch': batch})}")
            break
        limit = str(min(float(row["limit"]), left))
        results += run(row | {"batch": batch, "limit": limit}, arguments, accelerator)
        if results[-1]["status"] != "OOM":
            break
    return results


def name_of(row: dict[str, Any]) -> str:
    """A row's case, tuning, and the settings that change what is measured."""
    settings = [f"{key}={row[key]}" for key in USUAL if row[key] != USUAL[key] and key not in QUIET]
    return " ".join([row["case"], row["tuning"], *settings])


def show(result: dict[str, Any], peak: float) -> str:
    """One line for a result."""
    head = result["row"]
    if result["status"] != "ok":
        return f"{head}: {result['status']}, {result['message']}"
    share = result["flops_per_pair"] * result["pairs_per_second"] / peak
    stages = " ".join(f"{name} {value:.3f}" for name, value in result["seconds"].items())
    return (
        f"{head} cudnn.benchmark={int(result['cudnn_benchmark'])}: {result['pairs_per_second']:.3g} pairs/s "
        f"{share:.1%} of peak, {result['peak_gib']:.1f} GiB; {stages}; first {result['first_seconds']:.0f} s, "
        f"{result['graphs']} graphs; from log 2 {result['from_log_2']:.2g}, spread {result['margin_spread']:.2g}"
    ) + (f"; cosine {result['cosine']:.6f}" if "cosine" in result else "")


def main(given: list[str] | None = None) -> int:
    """Measure the rows of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", type=parse_row, metavar="ROW")
    parser.add_argument("--out", type=Path, default=Path("sweep"), help="folder of sweep.json, or a JSON file")
    parser.add_argument("--seconds", type=float, default=600, help="for all of it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--mixed-precision", choices=tuple(bench.HALF), default="bf16")
    parser.add_argument("--save-compiled", type=Path, metavar="FILE", help="keep what torch compiled")
    parser.add_argument("--load-compiled", type=Path, metavar="FILE", help="use what torch compiled elsewhere")
    arguments = parser.parse_args(given)
    began = time.perf_counter()
    file = arguments.out if arguments.out.suffix == ".json" else arguments.out / "sweep.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    if arguments.load_compiled is not None:
        print("compiled before:", torch.compiler.load_cache_artifacts(arguments.load_compiled.read_bytes()), flush=True)
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision, cpu=arguments.device == "cpu")
    matmul = matmul_peak(accelerator.device, DTYPES[bench.HALF[arguments.mixed_precision]])
    results: list[dict[str, Any]] = []
    for row in arguments.rows:
        for result in run_first_that_fits(row, began + arguments.seconds, arguments, accelerator):
            results.append(result)
            print(f"[{time.perf_counter() - began:.0f} s]", show(result, matmul["flops"]), flush=True)
            for line in result.get("kernels_by_time", {}).get("lines", []):
                print("   ", line, flush=True)
        report = {"machine": describe(accelerator.device) | {"matmul": matmul}, "results": results}
        file.write_text(json.dumps(report, indent=1) + "\n")
        if arguments.save_compiled is not None:
            save_compiled(arguments.save_compiled)
    print(f"peak {matmul['flops'] / 1e12:.0f} TFLOP/s on {describe(accelerator.device)['name']}")
    for result in results:
        print(show(result, matmul["flops"]))
    return int(any(result["status"] == "error" for result in results))


def save_compiled(file: Path) -> None:
    """Keep what torch has compiled in this process so far."""
    kept = torch.compiler.save_cache_artifacts()
    if kept is not None:
        file.write_bytes(kept[0])
        print(f"    compiled: {len(kept[0]) / 2**20:.1f} MiB", flush=True)


if __name__ == "__main__":
    sys.exit(main())
