"""Forty simulated people. All want what the caption says; how large and how vivid they want it differs.

    utility = 2 fidelity + 3 exp(-(distance / 2)^2 / 2)

Fidelity is the shapes verifier's score. `distance` is how far a picture lies from the person's favourite on two axes,
the share of the picture that the shapes cover and their saturation, each counted in deviations of widely drawn scenes.
A person's favourite lies 2 such deviations away from the middle, in a direction of their own: an angle. So a taste has
an optimum, and too much of a good thing lowers the utility.

The directions fill the circle, more of them on the side of large and vivid (1 + 0.4 cos): the people have something in
common that one model for all can learn, and something that it cannot. Every fourth person around the circle is
*unseen*: nothing is trained on their pairs. Nobody here is real.

Other axes were left out: in a prototype, tastes for positions did not move a model in 200 updates, and background and
brightness hardly differ between pictures of one prompt.
"""

from dataclasses import dataclass
from functools import cache
from math import cos, exp, hypot, pi, sin

import torch

from diffpo.worlds.shapes.annotators import FIDELITY_WEIGHT, measure
from diffpo.worlds.shapes.scenes import parse_caption
from diffpo.worlds.shapes.verify import ImageLike, Seen, judge, see

N_PEOPLE = 40
UNSEEN_EVERY = 4
TASTE_WEIGHT = 3.0
RADIUS = 2.0
"""How far from the middle a favourite lies, in deviations."""
WIDTH = 2.0
"""How slowly a picture loses with its distance from the favourite, in deviations."""
MIDDLE = {"coverage": 0.18, "saturation": 0.72}
DEVIATION = {"coverage": 0.055, "saturation": 0.14}
LEAN, LEANS_TO = 0.4, pi / 4
"""How many more people there are on one side of the circle, and on which."""
TEMPERATURE = 0.2
FLIP_RATE = 0.04


@dataclass(frozen=True)
class Person:
    """One simulated person."""

    name: str
    """Their `user_id`."""
    angle: float
    """Direction of the favourite: 0 is large, pi / 2 vivid, pi small, 3 pi / 2 pale."""
    seen: bool
    """Whether a model may be trained on their pairs."""

    @property
    def favourite(self) -> tuple[float, float]:
        """Coverage and saturation that they like best, in deviations from the middle."""
        return RADIUS * cos(self.angle), RADIUS * sin(self.angle)


@cache
def people() -> dict[str, Person]:
    """Everybody, by name; the same ones always."""
    order = torch.randperm(N_PEOPLE, generator=torch.Generator().manual_seed(0)).tolist()
    names = [f"user-{i:02d}" for i in range(N_PEOPLE)]
    return {
        name: Person(name, _angle((number + 0.5) / N_PEOPLE), seen=number % UNSEEN_EVERY != UNSEEN_EVERY // 2)
        for name, number in zip(names, order, strict=True)
    }


def _angle(share: float) -> float:
    """The angle below which a share of the people lies, by bisection of its distribution."""
    low, high = 0.0, 2 * pi
    for _ in range(60):
        middle = (low + high) / 2
        below = (middle + LEAN * (sin(middle - LEANS_TO) + sin(LEANS_TO))) / (2 * pi)
        low, high = (middle, high) if below < share else (low, middle)
    return (low + high) / 2


def place(seen: Seen) -> tuple[float, float] | None:
    """Where a picture lies: coverage and saturation in deviations from the middle; None where there is no object."""
    found = measure(seen)
    if found is None:
        return None
    return tuple((getattr(found, name) - MIDDLE[name]) / DEVIATION[name] for name in MIDDLE)  # pyright: ignore[reportReturnType]


def taste(seen: Seen, person: Person) -> float:
    """The taste term: 3 at the favourite; 0, its worst value, where there is no object."""
    where = place(seen)
    if where is None:
        return 0.0
    distance = hypot(*(x - best for x, best in zip(where, person.favourite, strict=True)))
    return TASTE_WEIGHT * exp(-((distance / WIDTH) ** 2) / 2)


def utility(image: ImageLike, caption: str, name: str | None = None) -> float:
    """How much a person likes an image for a caption.

    Args:
        image: As for `shapes.verify.verify`.
        caption: A caption of the shapes world's grammar.
        name: Whose utility; None: the mean over everybody.

    Raises:
        ValueError: Nobody has this name, or as for `verify`.
    """
    known = people()
    if name is not None and name not in known:
        raise ValueError(f"nobody in the users world is called {name!r}; there are {', '.join(known)}")
    asked = list(known.values()) if name is None else [known[name]]
    seen = see(image)
    fidelity = judge(seen, parse_caption(caption)).score
    return FIDELITY_WEIGHT * fidelity + sum(taste(seen, person) for person in asked) / len(asked)


def prefers_first(first: float, second: float, u: float, flip: float) -> bool:
    """One noisy choice between two utilities, by two uniform numbers.

    Bradley-Terry with `TEMPERATURE`: P(first) = sigmoid((first - second) / temperature); then, with probability
    `FLIP_RATE`, the opposite.
    """
    return (u < 1 / (1 + exp((second - first) / TEMPERATURE))) != (flip < FLIP_RATE)
