"""Two terminals with the same work: one does it, the other one waits or says who does, and nothing is lost."""

from __future__ import annotations

from trials import whole
from trials.forks import Draw, Trial

COMMANDS = ("train", "score", "generate", "evaluate", "data build", "data encode", "data users")
SAYS = ("is being written by `diffpo ", "Wait until it has finished")


def trial(draw: Draw) -> Trial:
    """A command in two terminals, the second one up to two thirds of its time later; `score` by one scorer in each."""
    name = COMMANDS[draw.number % len(COMMANDS)]
    alone = whole.find_whole(name, draw.world)
    late = draw.rng.choice((0.0, draw.rng.uniform(0.0, 0.67))) * alone.seconds
    arguments = whole.arguments(name, draw.folder, draw.world)
    both = [arguments, arguments]
    if name == "score":
        both = [[*arguments[:2], "--scorer", scorer] for scorer in arguments[3::2]]
    return Trial(
        what=f"{name} in two terminals, the second one after {late:.2f} of {alone.seconds:.2f} s",
        group=name,
        commands=both,
        check=lambda: _unclear(draw) + whole.differences(alone.folder / "out", draw.folder / "out"),
        seconds=120,
        late=(0.0, late),
    )


def _unclear(draw: Draw) -> list[str]:
    """A fault if both terminals were refused, or a refusal does not say who writes, once."""
    said = [(draw.folder / f"said-{i}.txt").read_text() for i in range(2)]
    refused = [text for text in said if SAYS[0] in text]
    clear = all(text.count(part) == 1 for text in refused for part in SAYS)
    return [] if clear and len(refused) < 2 else ["unclear"]
