"""The pictures of a report: some at random, the largest wins and the largest losses, for all prompts and by category.

One random order is drawn for a report. Its first prompts are shown; for a category, its first ones of that category.
Wins and losses are chosen in the same way from the order of the gains.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffpo.compare.evidence import Evidence
from diffpo.compare.numbers import number
from diffpo.compare.pairing import Key
from diffpo.media.folder import home_of, open_clip
from diffpo.report.embed import data_uri
from diffpo.scorers.scores import ScoreRow

CATEGORY_IMAGES = 600
"""About how many images may be added so that every category has some; each has one example at least."""


@dataclass(frozen=True)
class Picture:
    """One model's image."""

    label: str
    source: str
    """Data URI."""
    file: str
    score: str
    best: bool
    motion: str = ""
    """How much it moves, where that was scored."""

    @property
    def tiny(self) -> bool:
        """Whether its pixels are to be shown as squares."""
        return self.source.startswith("data:image/png")

    @property
    def moving(self) -> bool:
        """Whether it is a clip."""
        return self.source.startswith("data:video/")


@dataclass(frozen=True)
class Example:
    """One prompt and seed, as several models draw it."""

    prompt: str
    seed: int | None
    """None: unknown, of one model at least."""
    category: str
    overall: bool
    """Whether it is shown when no category is chosen."""
    pictures: tuple[Picture, ...]
    segments: tuple[int, ...] = ()
    """Labels of equal parts of two clips: 1 where the last one is better, -1 where the first one is, 0 a tie."""
    note: str = ""
    """What is said in place of the seed."""

    @property
    def moving(self) -> bool:
        """Whether there is a clip."""
        return any(picture.moving for picture in self.pictures)


@dataclass(frozen=True)
class Section:
    """Examples, and how they were chosen."""

    title: str
    about: str
    groups: dict[str, tuple[Example, ...]]
    """By label, which is empty where a section has one group only."""

    @property
    def all(self) -> list[Example]:
        """The examples of all groups."""
        return [example for group in self.groups.values() for example in group]


class Gallery:
    """The images of some models and their scores by one scorer; each image is read once."""

    def __init__(self, evidence: Evidence, models: Sequence[str], scorer: str, categories: Mapping[str, str]):
        """Find the images; of clips, also how much they move, by the first scorer of motion that judged all models."""
        self.motion = evidence.of_motion(models)
        moves = evidence.images(self.motion, models) if self.motion else [{} for _ in models]
        self._motion = dict(zip(models, moves, strict=True))
        self.models, self.scorer, self.categories = tuple(models), scorer, categories
        self._homes = {label: home_of(evidence.of_model[label].path) for label in models}
        self._rows = dict(zip(models, evidence.images(scorer, models), strict=True))
        self._sources: dict[tuple[str, str], str] = {}
        self.keys: list[Key] = sorted(set.intersection(*(set(rows) for rows in self._rows.values())))
        """What all models drew."""

    def sections(self, examples: int, extremes: int, seed: int) -> list[Section]:
        """So many random examples first, in the order of `seed`, then so many of both ends: never only the best."""
        if not self.keys:
            return []
        baseline, *others = self.models
        each = self._per_category()
        order = random.Random(seed).sample(self.keys, len(self.keys))
        drawn = self._group(order, examples, min(each, examples), self.models)
        how = f"Drawn from all {len(self.keys)} prompts and seeds with seed {seed}: nobody picked the good ones."
        how += " A category shows the first ones of its own in the same order." if each else ""
        made = [Section("At random", how, {"": drawn})]
        names = others if len(others) > 1 else [""]
        few = min((each + 1) // 2, extremes)
        for title, sign, does in (("Largest wins", 1, "gains"), ("Largest losses", -1, "loses")):
            groups = {
                name: self._group(self._extremes(label, sign), extremes, few, (baseline, label))
                for name, label in zip(names, others, strict=True)
            }
            who = others[0] if len(others) == 1 else "each model"
            about = f"Where {who} {does} most against {baseline}, by {self.scorer}."
            made.append(Section(title, about, groups))
        return made

    def _extremes(self, label: str, sign: int) -> list[Key]:
        """Where a model gains (or loses, for a sign of -1), most first."""
        rows, rivals = self._rows[label], self._rows[self.models[0]]
        gains = {key: sign * (rows[key].score - rivals[key].score) for key in self.keys}
        return sorted((key for key in self.keys if gains[key] > 0), key=lambda key: (-gains[key], key))

    def _group(self, order: Sequence[Key], overall: int, each: int, models: Sequence[str]) -> tuple[Example, ...]:
        """The first ones of an order, and the first ones of each category."""
        seen: Counter[str] = Counter()
        examples = []
        for place, key in enumerate(order):
            category = self.categories.get(key[0], "")
            seen[category] += 1
            if place < overall or (category and seen[category] <= each):
                examples.append(self._example(key, category, place < overall, models))
        return tuple(examples)

    def _example(self, key: Key, category: str, overall: bool, models: Sequence[str]) -> Example:
        rows = {label: self._rows[label][key] for label in models}
        lowest, *_, best = sorted(row.score for row in rows.values())
        pictures = [
            Picture(
                label,
                self._source(row),
                row.file,
                number(row.score),
                best=row.score == best > lowest,
                motion=self._moves(label, key),
            )
            for label, row in rows.items()
        ]
        seed = None if any(row.seed is None for row in rows.values()) else key[1]
        return Example(prompt=key[0], seed=seed, category=category, overall=overall, pictures=tuple(pictures))

    def _moves(self, label: str, key: Key) -> str:
        """How much a clip moves, as far as that was scored."""
        row = self._motion[label].get(key)
        return "" if row is None or row.frames == 1 else number(row.score)

    def _source(self, row: ScoreRow) -> str:
        key = (row.model, row.file)
        if key not in self._sources:
            self._sources[key] = data_uri(open_clip(self._homes[row.model], row))
        return self._sources[key]

    def _per_category(self) -> int:
        """Random examples of each category; of wins and of losses half as many."""
        names = {self.categories[prompt] for prompt, _ in self.keys if prompt in self.categories}
        if len(names) < 2:
            return 0
        images = len(self.models) + 2 * (len(self.models) - 1)  # of one random example and half a win and a loss
        return max(1, min(4, CATEGORY_IMAGES // (len(names) * images)))
