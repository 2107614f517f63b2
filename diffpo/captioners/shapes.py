"""The shapes world's own captioner and perturber: they read the image, and rewrite the caption, in its grammar.

Neither has weights. The captioner looks with the exact verifier and the prompt in view; the perturber changes one, two
or three of a caption's six attributes (two colours, two shapes, the relation, the background).

What is made of a training caption is one itself (`splits=keep`): the world's captions are few, so of the captions of
training images every eighth would be one that is held out, and the model would no longer be new to it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from operator import eq
from typing import TYPE_CHECKING, Any, Literal

from diffpo.captioners.base import Captioner, Level, Perturber
from diffpo.captioners.language import stable_hash
from diffpo.core.block import Seed
from diffpo.errors import UserError
from diffpo.scorers.worlds import ShapesVerifier

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffpo.worlds.shapes.scenes import ObjectSpec, SceneSpec
    from diffpo.worlds.shapes.verify import FoundObject, Seen

Splits = Literal["keep", "ignore"]
CHANGES: dict[Level, int] = {"weak": 1, "medium": 2, "strong": 3}


@dataclass(frozen=True, kw_only=True)
class ShapesCaptioner(Captioner):
    """Says in the grammar what the verifier sees; where it cannot tell, the prompt's words stand."""

    name = "shapes"

    splits: Splits = "keep"
    """`keep`: where the caption for a training prompt would be one that is held out, the prompt is the caption.
    `ignore`: any caption."""

    @property
    def provenance(self) -> dict[str, Any]:
        code = ShapesVerifier().provenance["code"]
        return {"captioner": self.name, "sees": "image+prompt", "splits": self.splits, "code": code}

    def caption(self, images: Sequence[Image], prompts: Sequence[str], keys: Sequence[int]) -> list[str]:
        from diffpo.worlds.shapes.scenes import parse_caption
        from diffpo.worlds.shapes.verify import see

        try:
            asked = [parse_caption(prompt) for prompt in prompts]
            seen = [describe(see(image), spec) for image, spec in zip(images, asked, strict=True)]
        except ValueError as error:
            raise UserError(f"captioner {self.name} reads images of the shapes world only: {error}") from error
        pairs = zip(seen, asked, strict=True)
        return [(spec if _allowed(spec, prompt, self.splits) else prompt).caption for spec, prompt in pairs]


def describe(seen: Seen, asked: SceneSpec) -> SceneSpec:
    """Put what is seen into the grammar.

    Of all captions that name the two largest objects, the one that the picture fits best, and of several such the one
    nearest to what was asked: so a picture that shows its prompt is captioned with it, not with its mirrored form. What
    the verifier cannot tell (a shape, the background, an object that is not there) is taken from the prompt. If that
    would make two objects of one colour, which the grammar has no words for, only the largest object is named, or
    none.
    """
    from diffpo.worlds.shapes.scenes import RELATIONS, ObjectSpec
    from diffpo.worlds.shapes.verify import UNKNOWN, judge

    def named(found: FoundObject | None, spec: ObjectSpec) -> ObjectSpec:
        return ObjectSpec(found.color, spec.shape if found.shape == UNKNOWN else found.shape) if found else spec

    def fit(spec: SceneSpec) -> tuple[float, int]:
        return judge(seen, spec).score, sum(map(eq, _attributes(spec), _attributes(asked)))

    if seen.background != UNKNOWN:
        asked = replace(asked, background=seen.background)
    for found in (seen.objects[:2], seen.objects[:1], ()):
        candidates = [
            replace(asked, first=first, second=second, relation=relation)
            for one, other in permutations((*found, None, None)[:2])
            if (first := named(one, asked.first)).color != (second := named(other, asked.second)).color
            for relation in (RELATIONS if len(found) == 2 else (asked.relation,))
        ]
        if candidates:
            return max(candidates, key=fit)
    raise AssertionError("the prompt itself is always a candidate")


def _allowed(spec: SceneSpec, given: SceneSpec, splits: Splits) -> bool:
    from diffpo.worlds.shapes.scenes import split_of

    return splits == "ignore" or split_of(given.caption) != "train" or split_of(spec.caption) == "train"


def _attributes(spec: SceneSpec) -> tuple[str, ...]:
    return (spec.first.color, spec.first.shape, spec.second.color, spec.second.shape, spec.relation, spec.background)


@dataclass(frozen=True, kw_only=True)
class ShapesPerturber(Perturber):
    """Changes attributes of a caption of the grammar: one (weak), two (medium) or three (strong)."""

    name = "shapes"

    level: Level = "medium"
    """How many of the six attributes are changed: 1, 2 or 3."""
    seed: Seed = 0
    """Of the draws; they depend on it and on the row."""
    splits: Splits = "keep"
    """`keep`: a training caption becomes another training caption. `ignore`: any caption."""

    @property
    def provenance(self) -> dict[str, Any]:
        options = {"level": self.level, "changes": CHANGES[self.level], "seed": self.seed, "splits": self.splits}
        return {"perturber": self.name, **options}

    def perturb(self, captions: Sequence[str], keys: Sequence[int]) -> list[str]:
        return [self._change(caption, key) for caption, key in zip(captions, keys, strict=True)]

    def _change(self, caption: str, key: int) -> str:
        from diffpo.worlds.shapes import scenes

        try:
            spec = scenes.parse_caption(caption)
        except ValueError as error:
            raise UserError(f"perturber {self.name} rewrites captions of the shapes world only: {error}") from error
        draws = random.Random(stable_hash(self.seed, key))
        words = (*2 * (scenes.COLORS, scenes.SHAPES), scenes.RELATIONS, tuple(scenes.BACKGROUNDS))
        while True:  # until the grammar has words for it, it is another picture, and it may be named
            values = list(_attributes(spec))
            for i in draws.sample(range(len(values)), CHANGES[self.level]):
                values[i] = draws.choice([word for word in words[i] if word != values[i]])
            first, second = scenes.ObjectSpec(*values[:2]), scenes.ObjectSpec(*values[2:4])
            changed = scenes.SceneSpec(first, second, *values[4:])
            if first.color != second.color and changed != spec.mirrored() and _allowed(changed, spec, self.splits):
                return changed.caption
