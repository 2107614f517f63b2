"""Kills at random moments: the same command, run again, ends with what an unkilled run ends with."""

from __future__ import annotations

from trials import whole
from trials.forks import Draw, Kill, Trial

COMMANDS = (
    *("train", "train full", "train average", "train FSDP2", "generate", "score", "data build", "data score"),
    *("evaluate", "data encode", "data users"),
)


def trial(draw: Draw) -> Trial:
    """One or two kills of one command: at any time, or before any change of the disk."""
    name = COMMANDS[draw.number % len(COMMANDS)]
    unkilled = whole.find_whole(name, draw.world)
    kills = tuple(_kill(draw, unkilled) for _ in range(draw.rng.randint(1, 2)))
    told = f"{name} killed {' and '.join(map(str, kills))} of {unkilled.seconds:.2f} s and {unkilled.writes} writes"
    return Trial(
        what=told,
        group=name,
        commands=[whole.arguments(name, draw.folder, draw.world)],
        check=lambda: whole.differences(unkilled.folder / "out", draw.folder / "out"),
        seconds=300,
        kills=kills,
        processes=whole.processes(name),
        env=whole.env(name),
    )


def _kill(draw: Draw, unkilled: whole.Whole) -> Kill:
    if draw.rng.random() < 0.5:
        return Kill(after=draw.rng.uniform(0.02, 1.0) * unkilled.seconds)
    return Kill(write=draw.rng.randint(1, unkilled.writes))
