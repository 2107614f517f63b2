"""How `bench.py` shows what it measured: a table for the eye, or markdown for the README."""

from __future__ import annotations

import sys
from typing import Any

STAGES = ("data", "noise", "reference", "policy", "optimizer")


def show(results: list[dict[str, Any]], machine: dict[str, Any]) -> None:
    """Print a table, by rich where it is installed."""
    heads = ["case", "tuning", "method", "weights M", "trained M", "batch", "pairs/s", "GiB"]
    heads += [f"{stage} s" for stage in STAGES] + ["TF/pair", "TF/s", "of peak"]
    rows = []
    for r in results:
        row = [r["case"], r["tuning"], r["method"], f"{r['parameters'] / 1e6:.1f}", f"{r['trained'] / 1e6:.1f}"]
        if r["status"] == "ok":
            row += [str(r["batch"]), f"{r['pairs_per_second']:.3g}", f"{r['peak_gib']:.2f}"]
            row += [f"{r['seconds'][stage]:.3g}" for stage in STAGES]
            row += [f"{r['flops_per_pair'] / 1e12:.3g}", f"{r['model_flops_per_second'] / 1e12:.3g}"]
            row += [f"{r['share_of_peak']:.1%}"]
        else:
            row += [
                str(r["batch"]),
                r["status"],
                f">{r['static_gib']:.1f}",
                *[""] * len(STAGES),
                f"{r['flops_per_pair'] / 1e12:.3g}",
            ]
        rows.append(row + [""] * (len(heads) - len(row)))
    matmul = machine["matmul"]
    shape = "x".join(map(str, matmul["shape"]))
    title = f"{machine['name']}, {machine['threads']} threads, torch {machine['torch']}"
    title += f", diffusers {machine['diffusers']}; "
    title += f"peak {matmul['flops'] / 1e12:.3g} TFLOP/s ({shape} {matmul['dtype']})"
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(line[i]) for line in [heads, *rows]) for i in range(len(heads))]
        print(title, *("  ".join(x.rjust(w) for x, w in zip(r, widths, strict=True)) for r in [heads, *rows]), sep="\n")
        return
    table = Table(*heads, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def gains(results: list[dict[str, Any]]) -> list[str]:
    """Say how many times more pairs per second each method makes with its largest batch than with its smallest."""
    groups: dict[tuple[str, ...], dict[int, float]] = {}
    for r in results:
        if r["status"] == "ok":
            key = (r["case"], r["tuning"], r["method"])
            groups.setdefault(key, {})[r["batch"]] = r["pairs_per_second"]
    return [
        f"{' '.join(key)}: batch {max(paces)} makes {paces[max(paces)] / paces[min(paces)]:.2f} times the pairs per "
        f"second "
        f"of batch {min(paces)}"
        for key, paces in groups.items()
        if len(paces) > 1
    ]


def memory_table(results: list[dict[str, Any]], machine: dict[str, Any], settings: dict[str, Any]) -> str:
    """Lay the peaks out as markdown: one line per model and tuning."""
    peaks: dict[tuple[str, str], dict[bool, str]] = {}
    for r in results:
        text = f"{r['peak_gib']:.1f}" if r["status"] == "ok" else f"{r['status']} (>{r['static_gib']:.0f})"
        peaks.setdefault((r["case"], r["tuning"]), {})[r["gradient_checkpointing"]] = text
    batches = {r["case"]: r["batch"] for r in results}
    lines = ["| model | tuning | pairs | GiB | GiB, gradient checkpointing |", "|---|---|---|---|---|"]
    for (name, kind), peak in peaks.items():
        lines.append(f"| {name} | {kind} | {batches[name]} | {peak[False]} | {peak[True]} |")
    note = f"Peak memory of an update: {machine['name']}, {settings['optimizer']}, LoRA rank {settings['rank']}, "
    return "\n".join([*lines, "", f"{note}mixed precision {settings['mixed_precision']}."])
