"""Try diffpo on what goes wrong, by chance: kills, two terminals, broken configurations, tables and media, attacks.

    python scripts/campaign.py kills|races|configs|tables|media|attacks --n 100 --seed 0 --out runs/campaign

Trial i of a seed is always the same one, and works in a folder of its own. What each trial did stands in
OUT/KIND-SEED.jsonl; a second call goes on after its last line, so a campaign may be stopped and made longer.
OUT/KIND-SEED holds what its trials share, such as the runs that nothing killed: remove both when the code has changed.
The table at the end counts tracebacks, hangs, silent mis-pairings, code that ran and differences from an undisturbed
run: all have to be 0. Exits 1 if one is not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "Agg"}
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parent)]

from trials import attacks, configs, kills, media, races, tables  # noqa: E402
from trials.forks import Done, Draw, Trial, peak_of_nothing, try_it  # noqa: E402

KINDS: dict[str, Callable[[Draw], Trial]] = {
    "kills": kills.trial,
    "races": races.trial,
    "configs": configs.trial,
    "tables": tables.trial,
    "media": media.trial,
    "attacks": attacks.trial,
}
FAULTS = ("traceback", "hang", "mis-paired", "code run", "leak", "differs", "unclear", "memory")
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
    shared = out.absolute() / f"{kind}-{seed}"
    with tempfile.TemporaryDirectory(prefix="campaign-") as scratch:
        os.environ |= {"DIFFPO_CACHE": str(Path(scratch) / "cache"), "MPLCONFIGDIR": str(Path(scratch) / "matplotlib")}
        nothing = peak_of_nothing() if len(done) < number else 0.0
        for i in range(len(done), number):
            folder = Path(scratch) / f"trial-{i}"
            folder.mkdir()
            draw = Draw(i, random.Random(f"{kind}-{seed}-{i}"), folder, shared)
            found = try_it(KINDS[kind](draw), folder, nothing)
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
    """Figures of a campaign, one per line, and of each group of trials."""
    worked, refused = ([each for each in done if each.code == code] for code in (0, 2))
    lines = [f"{kind}: {len(done)} trials, {len(worked)} worked, {len(refused)} were refused"]
    lines += [f"  {fault:12} {sum(fault in each.faults for each in done)}" for fault in FAULTS]
    lines.append(f"  longest      {_most(each.seconds for each in done)} s")
    lines.append(f"  longest to refuse, of computing {_most(each.computed for each in refused)} s")
    lines.append(f"  most memory  {max(each.peak for each in done):.0f} MiB")
    lines.append(f"  {'':25} {'trials':>7} {'worked':>7} {'refused':>7} {'kills':>7} {'faults':>7}")
    for group in sorted({each.group for each in done}):
        of_it = [each for each in done if each.group == group]
        counts = (sum(each.code == code for each in of_it) for code in (0, 2))
        hits, faulty = sum(each.kills for each in of_it), sum(bool(each.faults) for each in of_it)
        lines.append(f"  {group:25} " + " ".join(f"{number:7}" for number in (len(of_it), *counts, hits, faulty)))
    for i, each in enumerate(done):
        if each.faults:
            lines.append(f"  trial {i}: {', '.join(each.faults)}: {each.what}: {each.text[-300:]}")
    return "\n".join(lines)


def _most(numbers: Iterable[float]) -> str:
    return f"{max(numbers, default=0.0):.1f}"


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
