"""Simulated annotators: people who want what the caption says, and who have taste.

    utility = 2 fidelity + sum over k of weight_k exp(-((x_k - optimum_k) / width_k)^2 / 2)

Fidelity is the verifier's score. The x_k are how much of the image the shapes cover, how saturated they are, and how
close their common centroid is to the middle. Each optimum lies inside the range: too much of a good thing lowers the
utility, so over-optimisation shows. The judge (`annotator=None`) is the mean utility of all annotators.
Nobody here is real. How they choose between two images is in `scripts/shapes_builder/make_pairs.py`.
"""

from dataclasses import dataclass
from math import exp, hypot

from diffpo.worlds.shapes.scenes import IMAGE_SIZE, parse_caption
from diffpo.worlds.shapes.verify import ImageLike, Seen, judge, see

FIDELITY_WEIGHT = 2.0
WIDTHS = {"coverage": 0.06, "saturation": 0.18, "centring": 0.2}


@dataclass(frozen=True)
class Taste:
    """What taste looks at. All in [0, 1]."""

    coverage: float
    """Share of the image that the objects cover."""
    saturation: float
    """HSV saturation of the objects, weighted by area."""
    centring: float
    """1 - distance of the objects' common centroid from the middle, in half image widths."""


@dataclass(frozen=True)
class Annotator:
    """One simulated person: where the optimum of each taste lies, and how much it matters."""

    optimum: Taste
    weight: Taste


ANNOTATORS = {
    "ada": Annotator(Taste(0.27, 0.90, 0.90), Taste(2.0, 0.8, 0.5)),  # large and vivid
    "ben": Annotator(Taste(0.31, 0.80, 0.80), Taste(2.4, 0.4, 0.2)),  # as large as may be, the rest matters little
    "chi": Annotator(Taste(0.25, 0.95, 0.60), Taste(1.2, 1.4, 0.6)),  # colour first, and off the middle
    "dee": Annotator(Taste(0.24, 0.50, 0.95), Taste(1.4, 1.2, 0.8)),  # pale, well centred, not too large
}
"""By `user_id`."""


def measure(seen: Seen) -> Taste | None:
    """What taste looks at, or None where there is no object."""
    area = sum(item.area for item in seen.objects)
    if area <= 0:
        return None
    saturation, x, y = (sum(getattr(o, k) * o.area for o in seen.objects) / area for k in ("saturation", "x", "y"))
    half = IMAGE_SIZE / 2
    return Taste(area / IMAGE_SIZE**2, saturation, max(0.0, 1 - hypot(x - half, y - half) / half))


def taste_utility(taste: Taste | None, annotator: Annotator) -> float:
    """The taste term of one annotator; 0, its worst value, where there is no object."""
    if taste is None:
        return 0.0
    off = {name: (getattr(taste, name) - getattr(annotator.optimum, name)) / width for name, width in WIDTHS.items()}
    return sum(getattr(annotator.weight, name) * exp(-0.5 * distance**2) for name, distance in off.items())


def utility(image: ImageLike, caption: str, annotator: str | None = None) -> float:
    """How much an annotator likes an image for a caption.

    Args:
        image: As for `verify`.
        caption: A caption of the grammar.
        annotator: A `user_id`, or None for the judge: the mean over all annotators.

    Raises:
        ValueError: If the annotator is unknown, or as for `verify`.
    """
    if annotator is not None and annotator not in ANNOTATORS:
        raise ValueError(f"unknown annotator {annotator!r}; choose one of {sorted(ANNOTATORS)}, or None for their mean")
    people = list(ANNOTATORS.values()) if annotator is None else [ANNOTATORS[annotator]]
    seen = see(image)
    fidelity, taste = judge(seen, parse_caption(caption)).score, measure(seen)
    return FIDELITY_WEIGHT * fidelity + sum(taste_utility(taste, person) for person in people) / len(people)
