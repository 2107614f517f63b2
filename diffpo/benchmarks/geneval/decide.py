"""GenEval's decision: from the objects that are seen to right or wrong, with the reasons.

    kept        confidence > 0.3 (counting: > 0.9), at most 16 per label, best first; boxes that overlap too much are
                one object only if `max_overlap` < 1, which GenEval leaves off
    colour      the `count` most confident objects of the label must all have it
    position    of A to B: offset d of the centres, shortened along each axis by 0.1 (size_A + size_B); "left of" if
                the shortened offset, divided by |d|, is below -0.5 in x, and so on: two relations may hold, or none

Overall is the plain mean of the tasks' shares of right images, as the paper has it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from diffpo.benchmarks.geneval.tasks import COLORS, Requirement, SeenObject, Task

NameColors = Callable[[Sequence[SeenObject], str], list[str]]
_STILL = 1e-3  # pixels; a shorter offset is none


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Thresholds; the defaults are GenEval's."""

    threshold: float = 0.3
    """Least confidence of an object."""
    counting_threshold: float = 0.9
    """The same for tasks of counting."""
    max_objects: int = 16
    """Most objects of one label."""
    max_overlap: float = 1.0
    """Intersection over union from which two boxes of a label are one object; 1 is never."""
    position_threshold: float = 0.1
    """Share of both objects' sizes that an offset must exceed."""


def keep(seen: Sequence[SeenObject], tag: str, rules: Rules) -> dict[str, list[SeenObject]]:
    """The objects that count, by label, the most confident first; none that overlaps a better one too much."""
    found: dict[str, list[SeenObject]] = {}
    threshold = rules.counting_threshold if tag == "counting" else rules.threshold
    for item in sorted(seen, key=lambda item: -item.confidence):
        if item.confidence > threshold:
            found.setdefault(item.label, []).append(item)
    for label, items in found.items():
        found[label] = kept = []
        for item in items[: rules.max_objects]:
            if rules.max_overlap >= 1 or all(overlap(better, item) < rules.max_overlap for better in kept):
                kept.append(item)
    return found


def decide(
    objects: Mapping[str, Sequence[SeenObject]], task: Task, name_colors: NameColors, rules: Rules
) -> tuple[str, ...]:
    """Say what is wrong with what is seen; nothing, if it shows all that its task asks for.

    Args:
        objects: By label, the most confident first; see `keep`.
        task: What is asked.
        name_colors: The colours of objects of a label; called only where a colour is asked for.
        rules: Thresholds.
    """
    reasons: list[str] = []
    matched: list[Sequence[SeenObject] | None] = []
    for clause in task.include:
        found = objects.get(clause.label, ())[: clause.count]
        wrong = _wrong(found, clause, matched, name_colors, rules)
        matched.append(None if wrong else found)
        reasons += [wrong] if wrong else []
    for clause in task.exclude:
        count = len(objects.get(clause.label, ()))
        if count >= clause.count:
            reasons.append(f"expected {clause.label}<{clause.count}, found {count}")
    return tuple(reasons)


def relative_position(a: SeenObject, b: SeenObject, threshold: float) -> set[str]:
    """How `a` stands to `b`: none, one or two of the relations."""
    boxes = np.array([a.box, b.box], dtype=float).reshape(2, 2, 2)  # object, corner, axis
    centers, sizes = boxes.mean(1), np.abs(boxes[:, 1] - boxes[:, 0])
    offset = centers[0] - centers[1]
    shortened = np.maximum(np.abs(offset) - threshold * sizes.sum(0), 0) * np.sign(offset)
    if (np.abs(shortened) < _STILL).all():
        return set()
    dx, dy = shortened / np.linalg.norm(offset)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, held in holds.items() if held}


def overlap(a: SeenObject, b: SeenObject) -> float:
    """Intersection over union of two boxes, counted with one pixel more per side, as GenEval does."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0) * max(bottom - top + 1, 0)

    corners = [max(a.box[0], b.box[0]), max(a.box[1], b.box[1]), min(a.box[2], b.box[2]), min(a.box[3], b.box[3])]
    shared = area(*corners)
    union = area(*a.box) + area(*b.box) - shared
    return shared / union if union else 0.0


def _wrong(
    found: Sequence[SeenObject],
    clause: Requirement,
    matched: Sequence[Sequence[SeenObject] | None],
    name_colors: NameColors,
    rules: Rules,
) -> str:
    """What is wrong first: the number, the colour, or how they stand to those of an earlier clause; "" if nothing."""
    if len(found) < clause.count:
        return f"expected {clause.label}>={clause.count}, found {len(found)}"
    if clause.color is not None:
        colors = name_colors(found, clause.label)
        right = colors.count(clause.color)
        if right < clause.count:
            order = [*COLORS, *sorted(set(colors) - set(COLORS))]
            listed = ", ".join(f"{colors.count(color)} {color}" for color in order if color in colors)
            return f"expected {clause.color} {clause.label}>={clause.count}, found {right}; of all: {listed}"
    if clause.position is None:
        return ""
    relation, number = clause.position
    targets = matched[number]
    if targets is None:
        return f"no target for {clause.label} to be {relation}"
    for item, target in product(found, targets):
        held = relative_position(item, target, rules.position_threshold)
        if relation not in held:
            return f"expected {clause.label} {relation} target, found {' and '.join(sorted(held)) or 'neither'}"
    return ""
