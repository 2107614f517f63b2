"""What `gpu_check.sh` reads and writes beside its steps: the environment, a run's numbers, the tables at the end.

The first argument says which:

    python scripts/gpu_report.py environment env.json     what is there; exit code 2 where something is missing
    python scripts/gpu_report.py run RUN train.json       pace, memory and losses of a run of `diffpo train`
    python scripts/gpu_report.py tables DIR steps.txt     small tables of the JSON files in DIR
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

NEEDED = {
    **{name: name for name in ("torch", "torchvision", "numpy", "scipy", "pandas", "pyarrow", "diffusers", "peft")},
    **{name: name for name in ("transformers", "accelerate", "safetensors", "datasets", "multiprocess", "dill")},
    **{name: name for name in ("xxhash", "pydantic", "pydantic_core", "typer", "rich", "pytest", "psutil", "jinja2")},
    **{"PIL": "pillow", "yaml": "pyyaml", "annotated_types": "annotated-types", "matplotlib": "matplotlib"},
    **{"typing_inspection": "typing-inspection", "importlib_metadata": "importlib-metadata"},
}
"""Modules that the steps import -> what brings them."""
OPTIONAL = ("bitsandbytes", "av", "open_clip", "xformers")


def environment(out: Path) -> int:
    """Write what is there, and name what is missing."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(f"gpu_check: {', '.join(missing)} cannot be imported: give their wheels by --wheels", file=sys.stderr)
        return 2
    import torch

    found: dict[str, Any] = {"python": sys.version.split()[0], "torch": torch.__version__, "card": None}
    for package in sorted({*NEEDED.values(), *OPTIONAL}):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found |= {"card": card.name, "gib": round(card.total_memory / 2**30, 1), "cuda": torch.version.cuda}
        found["capability"] = [card.major, card.minor]
    out.write_text(json.dumps(found, indent=2) + "\n")
    there = f"{found['card']}, {found['gib']} GiB, CUDA {found['cuda']}" if found["card"] else "no GPU"
    print(f"Python {found['python']}, torch {found['torch']}, {there}; not there: ", end="")
    print(", ".join(name for name in OPTIONAL if importlib.util.find_spec(name) is None) or "nothing")
    return 0


def run(folder: Path, out: Path) -> int:
    """Write what a run's `metrics.jsonl` says; the pace is the median of the updates after the first two."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    paces = [line["time/pairs_per_second"] for line in lines[2:]]
    told = {
        "updates": len(lines),
        "loss": [round(line["loss"], 6) for line in lines],
        "grad_norm": [line["grad_norm"] for line in lines],
        "seconds": [round(line["time/seconds"], 3) for line in lines],
        "pairs_per_second": statistics.median(paces),
        "peak_gib": max((line.get("time/peak_memory_gib", 0.0) for line in lines), default=0.0),
        "export": sorted(str(file.relative_to(folder)) for file in (folder / "final").rglob("*.safetensors")),
    }
    out.write_text(json.dumps(told, indent=2) + "\n")
    print(f"{told['updates']} updates, {told['pairs_per_second']:.3g} pairs/s, {told['peak_gib']:.1f} GiB")
    return 0 if told["export"] else 1


def of_lane(results: list[dict[str, Any]]) -> list[str]:
    """Counts, the slowest test, each test that failed, and the reasons for which others were skipped."""
    kinds = ("passed", "skipped", "failed")
    counts = ", ".join(f"{sum(r['outcome'] == kind for r in results)} {kind}" for kind in kinds)
    spent, slowest = sum(r["seconds"] for r in results), max(results, key=lambda r: r["seconds"])
    lines = [f"  {counts} in {spent:.0f} s; the slowest is {slowest['test']}, {slowest['seconds']:.0f} s"]
    skipped: dict[str, list[str]] = {}
    for result in results:
        why = (result["reason"].strip().splitlines() or [""])[-1][:200]
        if result["outcome"] == "failed":
            lines.append(f"  failed  {result['test']}: {why}")
        elif result["outcome"] == "skipped":
            skipped.setdefault(why, []).append(result["test"])
        elif result["told"]:
            lines.append(f"  {result['test']}: {result['told']}")
    for why, tests in skipped.items():
        named = ", ".join(tests[:3]) + (f" and {len(tests) - 3} more" if len(tests) > 3 else "")
        lines.append(f"  skipped {named}: {why}")
    if all(r["outcome"] == "skipped" for r in results):
        lines.append("  nothing of the lane ran: there is no GPU here")
    return lines


def of_sweep(report: dict[str, Any]) -> list[str]:
    """A line per configuration: its pace, what it took, and what an inversion, a cosine or a compilation was."""
    peak = report["machine"]["matmul"]["flops"]
    lines = [f"  on {report['machine']['name']}, where a matrix product makes {peak / 1e12:.3g} TFLOP/s"]
    for r in report["results"]:
        if r["status"] != "ok":
            lines.append(f"  {r['row']}: {r['status']}, {r.get('message', '')}")
            continue
        pace, seconds = r["pairs_per_second"], r["seconds"]
        told = [f"{pace:.3g} pairs/s", f"{pace * r['flops_per_pair'] / peak:.0%} of that", f"{r['peak_gib']:.1f} GiB"]
        told += [f"{seconds['noise']:.2g} of {seconds['total']:.2g} s inverting"] if r["method"] != "dpo" else []
        told += [f"cuDNN's trials {'on' if r['cudnn_benchmark'] else 'off'}"] if r["benchmark"] != "0" else []
        told += [f"cosine {r['cosine']:.5f}"] if "cosine" in r else []
        told += [f"first {r['first_seconds']:.0f} s, {r['graphs']} graphs"] if r["compile"] else []
        lines.append(f"  {r['row']}: {', '.join(told)}")
        lines += [f"    {line}" for line in r["kernels_by_time"].get("lines", [])[:1]]
    return lines


def of_feed(report: dict[str, Any]) -> list[str]:
    """A line per case of encoding, generation and scoring."""
    lines = []
    for what, cases in report["results"].items():
        for name, found in cases.items():
            rate = found.get("steady") or found["per second"]
            shares = f"{found['of the device']:.0%} of the device, {found['of the cores']:.0%} of the cores"
            lines.append(f"  {what} {name}: {rate:.4g} images/s, {shares}")
    return lines


def of_saving(found: dict[str, Any]) -> list[str]:
    """What a checkpoint costs, both ways."""
    middle, update = statistics.median, statistics.median(found["update"])
    ways = (
        f"{way} {middle(found['added'][way]):.2f} s, still {middle(still):.2f} s"
        for way, still in found["still"].items()
    )
    return [f"  {found['mebibytes']:.0f} MiB, an update {update:.3f} s; a checkpoint adds: {'; '.join(ways)}"]


def of_train(told: dict[str, Any]) -> list[str]:
    """What the run did."""
    pace = f"{told['pairs_per_second']:.3g} pairs/s, {told['peak_gib']:.1f} GiB"
    return [f"  {told['updates']} updates, {pace}, first loss {told['loss'][0]}, seconds {told['seconds']}"]


SWEEPS = ("bench", "check", "profile", "kernels", "compile")
"""Steps that are rows of `bench_sweep.py`."""
TABLES: dict[str, Callable[[Any], list[str]]] = {
    "lane": of_lane,
    "train": of_train,
    **dict.fromkeys(SWEEPS, of_sweep),
    "feed": of_feed,
    **dict.fromkeys(("saving", "saving-full"), of_saving),
}


def tables(out: Path, steps: Path) -> int:
    """Print what every step that ran has to say, then how the steps ended."""
    for name, lines in TABLES.items():
        if (file := out / f"{name}.json").exists():
            print("\n".join([f"{name}:", *lines(json.loads(file.read_text()))]))
    print(steps.read_text() if steps.exists() else "no step ran", end="")
    return 0


if __name__ == "__main__":
    commands: dict[str, Callable[..., int]] = {"environment": environment, "run": run, "tables": tables}
    sys.exit(commands[sys.argv[1]](*map(Path, sys.argv[2:])))
