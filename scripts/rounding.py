"""Measure how much of the logit u is rounding, by dtype, size of the latents and beta; prints a table as markdown.

    python scripts/rounding.py                     on a CPU, in some minutes
    python scripts/rounding.py --sides 8 16 --json rounding.json

u is beta times the margin, a difference of four mean squared errors, so its rounding grows with beta and falls with the
square root of the numbers in a latent. Two measures, both over pairs of one network and its slightly moved copy:

    split      deviation of u between all pairs in one forward and one pair per forward, on this machine
    rounding   deviation of u from the same in float64: what another kernel, card or split may change it by

The network is the shapes world's, which works on latents of any size; latents and times are random.
"""

from __future__ import annotations

import argparse
import json
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from diffpo.compat import quiet_libraries

quiet_libraries()

from diffpo.core.step import preference_step  # noqa: E402
from diffpo.core.types import Condition, Pair, PairBatch, Rng  # noqa: E402
from diffpo.methods.dpo import DPO  # noqa: E402
from diffpo.models import Denoiser  # noqa: E402
from diffpo.models.load import load  # noqa: E402
from diffpo.models.reference import Reference  # noqa: E402
from diffpo.models.tuning import Full  # noqa: E402

MOVED = 1e-3
"""Deviation by which the policy's weights differ from the reference's, as a share of their own."""
HALF = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
BETAS = (500, 2000, 5000)


def networks(dtype: torch.dtype) -> tuple[Denoiser, Reference]:
    """The same policy and reference in every dtype."""
    policy, reference = load(Full(path="shapes:base"), dtype, True)
    assert reference is not None
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.network.parameters():
            step = torch.randn(parameter.shape, generator=draws) * parameter.std(correction=0) * MOVED
            parameter += step.to(parameter)
    policy.network.eval()
    return policy, reference


def batch_of(pairs: int, side: int) -> PairBatch:
    """Random pairs."""
    draws = torch.Generator().manual_seed(1)
    latent = Pair(*(torch.randn(pairs, 4, 1, side, side, generator=draws) for _ in range(2)))
    cond = Condition(torch.randn(pairs, 32, 128, generator=draws))
    return PairBatch(latent, Pair(cond, cond), torch.ones(pairs), torch.arange(pairs))


def margins(
    policy: Denoiser, reference: Reference, batch: PairBatch, half: torch.dtype | None, dtype: torch.dtype
) -> Tensor:
    """`[b]` margins, u at a beta of 1."""
    autocast = nullcontext() if half is None else torch.autocast("cpu", dtype=half)
    with torch.no_grad(), autocast:
        moved = batch.to("cpu", dtype)
        output = preference_step(DPO(beta=1.0), policy, reference, moved, Rng(0, 0, batch.index))
    return output.metrics["rewards/margins"].double()


def one_by_one(batch: PairBatch) -> list[PairBatch]:
    """The same pairs, each in a batch of its own."""
    parts = []
    for row in range(batch.size):
        latent, cond = batch.latent.map(lambda x, i=row: x[i : i + 1]), batch.cond
        told = cond.map(lambda c, i=row: c.map(lambda x: x[i : i + 1]))
        one = slice(row, row + 1)
        parts.append(replace(batch, latent=latent, cond=told, preference=batch.preference[one], index=batch.index[one]))
    return parts


def deviation(difference: Tensor) -> float:
    """Root of the mean square."""
    return math.sqrt(difference.square().mean().item())


def measure(sides: list[int], pairs: int) -> list[dict[str, float | int | str]]:
    """One result for each size and dtype: deviations of the margin."""
    exact, single = networks(torch.float64), networks(torch.float32)
    results: list[dict[str, float | int | str]] = []
    for side in sides:
        count = max(4, pairs * 64 // side**2)
        batch = batch_of(count, side)
        true = margins(*exact, batch, None, torch.float64)
        for name, half in HALF.items():
            whole = margins(*single, batch, half, torch.float32)
            split = torch.cat([margins(*single, part, half, torch.float32) for part in one_by_one(batch)])
            numbers = 4 * side**2
            off = deviation(whole - true)
            found = {"dtype": name, "side": side, "pairs": count, "split": deviation(whole - split), "rounding": off}
            results.append(found | {"constant": off * math.sqrt(numbers), "signal": deviation(true)})
    return results


def table(results: list[dict[str, float | int | str]]) -> str:
    """Markdown: deviations of u at three betas, by rounding, and between splits at the largest."""
    heads = ["latent", "dtype", *(f"rounding, beta {beta:,}" for beta in BETAS), f"split, beta {BETAS[-1]:,}", "c"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for r in results:
        cells = [f"4 x {r['side']} x {r['side']}", r["dtype"]]
        cells += [f"{beta * float(r['rounding']):.2g}" for beta in BETAS]
        cells += [f"{BETAS[-1] * float(r['split']):.2g}", f"{float(r['constant']):.2g}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[8, 16, 32, 64], help="of the latents")
    parser.add_argument("--pairs", type=int, default=256, help="at 8 x 8; fewer of larger ones")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    results = measure(options.sides, options.pairs)
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
