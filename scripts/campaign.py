"""Try diffpo on what goes wrong, by chance: kills at random moments, broken configurations, tables and media, attacks.

    python scripts/campaign.py kills|configs|tables|media|attacks --n 100 --seed 0 --out runs/campaign

Trial i of a seed is always the same one. What each trial did stands in OUT/KIND-SEED.jsonl; a second call goes on after
its last line, so a campaign may be stopped and made longer. The table at the end counts tracebacks, hangs, silent
mis-pairings, code that ran and differences from an unkilled run: all have to be 0. Exits 1 if one is not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "Agg"}
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parent)]

from trials import attacks, configs, kills, media, tables  # noqa: E402
from trials.forks import Done, Trial, peak_of_nothing, try_it  # noqa: E402

KINDS: dict[str, Callable[[random.Random, Path, Path], Trial]] = {
    "kills": kills.trial,
    "configs": configs.trial,
    "tables": tables.trial,
    "media": media.trial,
    "attacks": attacks.trial,
}
FAULTS = ("traceback", "hang", "mis-paired", "code run", "leak", "differs", "memory")
MOST_MEMORY = 1500.0
"""MiB that one trial may take."""


def campaign(kind: str, number: int, seed: int, out: Path) -> list[Done]:
    """Make the trials that are missing; returns all of them.

    Args:
        kind: One of `KINDS`.
        number: How many trials there shall be.
        seed: Of all that is drawn.
        out: Where the record goes, and the inputs of trials that found a fault.
    """
    out.mkdir(parents=True, exist_ok=True)
    record = out / f"{kind}-{seed}.jsonl"
    done = [Done(**json.loads(line)) for line in record.read_text().splitlines()] if record.exists() else []
    with tempfile.TemporaryDirectory(prefix="campaign-") as scratch:
        os.environ["DIFFPO_CACHE"] = str(Path(scratch) / "cache")
        world, nothing = Path(scratch) / "world", peak_of_nothing()
        for i in range(len(done), number):
            folder = Path(scratch) / f"trial-{i}"
            folder.mkdir()
            found = try_it(KINDS[kind](random.Random(f"{kind}-{seed}-{i}"), folder, world), folder, nothing)
            if found.peak > MOST_MEMORY:
                found.faults.append("memory")
            if found.faults:
                shutil.copytree(folder, out / f"{kind}-{seed}-{i}", symlinks=True, dirs_exist_ok=True, ignore=_special)
            shutil.rmtree(folder, ignore_errors=True)
            with record.open("a") as file:
                file.write(json.dumps(vars(found)) + "\n")
            done.append(found)
    return done[:number]


def _special(folder: str, names: list[str]) -> list[str]:
    """Names of what is neither file, folder nor link."""
    paths = [Path(folder) / name for name in names]
    return [path.name for path in paths if not (path.is_file() or path.is_dir() or path.is_symlink())]


def table(kind: str, done: Sequence[Done]) -> str:
    """Figures of a campaign, one per line."""
    counts = {fault: sum(fault in each.faults for each in done) for fault in FAULTS}
    accepted = sum(each.code == 0 for each in done)
    lines = [f"{kind}: {len(done)} trials, {accepted} worked, {sum(each.code == 2 for each in done)} were refused"]
    lines += [f"  {fault:12} {count}" for fault, count in counts.items()]
    lines.append(f"  longest      {max(each.seconds for each in done):.1f} s")
    lines.append(f"  most memory  {max(each.peak for each in done):.0f} MiB")
    for i, each in enumerate(done):
        if each.faults:
            lines.append(f"  trial {i}: {', '.join(each.faults)}: {each.what}: {each.text[-300:]}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read arguments, try, print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=[*KINDS, "all"])
    parser.add_argument("--n", type=int, default=20, help="trials of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/campaign"))
    given = parser.parse_args(arguments)
    failed = False
    for kind in KINDS if given.kind == "all" else [given.kind]:
        done = campaign(kind, given.n, given.seed, given.out)
        print(table(kind, done))
        failed = failed or any(each.faults for each in done)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
