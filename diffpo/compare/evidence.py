"""What models are compared by: score tables and human votes, brought together by model, prompt and seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffpo.compare.in_loop import in_loop
from diffpo.compare.pairing import Key, Mode, PairedScores, Scores, by_image, pair_values
from diffpo.compare.votes import HUMAN, NO_VOTES, Votes, read_votes
from diffpo.disk.published import published
from diffpo.errors import UserError
from diffpo.media.folder import read_settings
from diffpo.media.prompts import category_of, read_prompts
from diffpo.scorers.scores import OF_FRAMES, ScoreRow, ScoreTable, called, read_scores


@dataclass(frozen=True)
class Scored:
    """One place with scores: a media folder, or a parquet table."""

    path: Path
    table: ScoreTable
    settings: Mapping[str, Any]
    """How its images were made; empty where that is not known."""


@dataclass(frozen=True)
class Evidence:
    """Scores and votes."""

    scored: tuple[Scored, ...]
    votes: Votes = NO_VOTES

    @cached_property
    def _rows(self) -> dict[tuple[str, str], list[ScoreRow]]:
        """By scorer and model."""
        found: dict[tuple[str, str], list[ScoreRow]] = {}
        for place in self.scored:
            for row in place.table.rows:
                found.setdefault((row.scorer, row.model), []).append(row)
        return found

    @cached_property
    def of_model(self) -> dict[str, Scored]:
        """Where each model's scores are; no two places may use the same label."""
        owners: dict[str, Scored] = {}
        for place in self.scored:
            for label in place.table.models:
                if label in owners:
                    raise UserError(
                        f"{owners[label].path} and {place.path} both call their model {label!r}. Give them different "
                        "labels: `diffpo generate --label`."
                    )
                owners[label] = place
        return owners

    @property
    def models(self) -> list[str]:
        """Labels of all models."""
        return list(self.of_model) if self.scored else self.votes.models

    def choose(self, models: Sequence[str], baseline: str | None) -> tuple[str, ...]:
        """Labels of the models to compare, the baseline first; by default it is the first of all.

        One model alone is compared with `baseline`, or with the only other one there is.
        """
        known = self.models
        for label in (*models, *([baseline] if baseline is not None else ())):
            if label not in known:
                raise UserError(f"there are no scores of {label!r}; there are those of {', '.join(known)}.")
        if baseline is not None and list(models) == [baseline]:
            raise UserError(f"{baseline!r} cannot be compared with itself.")
        first = [] if baseline is None else [baseline]
        if not first and len(models) == 1:
            first = [label for label in known if label not in models]
        chosen = tuple(dict.fromkeys([*first, *(models or known)]))
        if len(chosen) < 2 or (len(models) == 1 and len(chosen) > 2):
            raise UserError(
                f"need two models to compare, found {', '.join(known) or 'none'}: name the model and the baseline."
            )
        return chosen

    def common_scorers(self, labels: Sequence[str], wanted: Sequence[str] | None = None) -> list[str]:
        """Scorers of all these models, `wanted` among them: human votes first, then in the order of the rows."""
        by_model = {label: {scorer for scorer, model in self._rows if model == label} for label in labels}
        known = dict.fromkeys(name for place in self.scored for name in place.table.scorers)
        common = [HUMAN] if self.votes.votes else []
        scored = [name for name in known if all(name in names for names in by_model.values())]
        motion = [name for name in scored if self._measures_motion(name, labels)]
        common += [name for name in scored if name not in motion] + motion  # no headline: more motion is not better
        asked = [called(name, common) for name in wanted or ()]
        unknown = [name for name in asked if name not in common]
        if unknown or not common:
            has = "; ".join(f"{label} has {', '.join(sorted(names)) or 'none'}" for label, names in by_model.items())
            raise UserError(
                f"need scores by the same scorer ({', '.join(unknown) or 'any'}) for all models: {has}. "
                "Run `diffpo score` on each."
            )
        return asked or common

    def of_motion(self, labels: Sequence[str]) -> str | None:
        """The first scorer of motion that judged all these models, if there is one."""
        shared = (name for name in self.scored[0].table.scorers if all((name, label) in self._rows for label in labels))
        return next((name for name in shared if self._measures_motion(name, labels)), None)

    def _measures_motion(self, scorer: str, labels: Sequence[str]) -> bool:
        records = (self.of_model[label].table.provenance.get(scorer, {}) for label in labels)
        return all(record.get("measures") == "motion" for record in records)

    def compared(self, scorer: str, model: str, other: str) -> bool:
        """Whether a scorer has both models: only votes may lack a pair."""
        return scorer != HUMAN or any({vote.model_a, vote.model_b} == {model, other} for vote in self.votes.votes)

    def images(self, scorer: str, labels: Sequence[str]) -> list[dict[Key, ScoreRow]]:
        """Each model's rows of a scorer, by prompt and seed; where a seed is unknown, by prompt and place in it."""
        of_models = [self._rows.get((scorer, label), []) for label in labels]
        found = by_image(of_models)
        for rows, images in zip(of_models, found, strict=True):
            if len(images) < len(rows):
                twice = next(row for row in rows if images[row.prompt, row.seed] is not row)
                raise UserError(
                    f"{twice.model} has two scores of {scorer} for the prompt {twice.prompt!r}, seed {twice.seed}."
                )
        return found

    def unknown_seeds(self, scorers: Sequence[str], labels: Sequence[str]) -> list[str]:
        """Those of the models of which the seed of an image is not known."""
        return [
            label
            for label in labels
            if any(row.seed is None for name in scorers for row in self._rows.get((name, label), ()))
        ]

    def pairs(self, scorer: str, model: str, baseline: str, mode: Mode, chosen_by: str | None = None) -> PairedScores:
        """The scores of two models on two prompts at least, paired, if they fit; votes are pairs as they are."""
        labels = (model, baseline)
        if scorer == HUMAN:
            pairs = self.votes.pairs(*labels)
        else:
            first, second = self.images(scorer, labels)
            common = len(first.keys() & second.keys())
            if mode == "same-seed" and common < max(len(first), len(second)):
                raise UserError(
                    f"{' and '.join(labels)} were not scored on the same prompts and seeds by {scorer}: {common} "
                    f"match; others: {len(first) - common} of {model}, {len(second) - common} of {baseline}. "
                    "Generate both from the same prompts with the same seeds, then score both."
                )
            choosers = None
            if chosen_by is not None:
                (chosen_by,) = self.common_scorers(labels, [chosen_by])
                self.provenance(chosen_by, labels)
                choosers = tuple(map(_scores, self.images(chosen_by, labels)))
            pairs = pair_values(_scores(first), _scores(second), mode, chosen_by=choosers)
        if len(set(pairs.prompts)) < 2:
            raise UserError(
                f"{scorer} judged one prompt only ({pairs.prompts[0]!r}): nothing tells how another would come out. "
                "Generate for more prompts; a few hundred tell something."
            )
        return pairs

    def provenance(self, scorer: str, labels: Sequence[str]) -> dict[str, Any]:
        """How a scorer's scores were made, in the same way for all the models."""
        if scorer == HUMAN:
            return self.votes.provenance
        first, *others = (self.of_model[label].table.provenance.get(scorer, {}) for label in labels)
        for other in others:
            keys = sorted(key for key in {*first, *other} if first.get(key) != other.get(key))
            if other != first:
                raise UserError(
                    f"the scores of {scorer} were made differently for the models ({', '.join(keys)}). Score all again."
                )
        return first

    def in_loop(self, labels: Sequence[str], declared: Sequence[str] = ()) -> dict[str, str]:
        """By scorer: that it had a hand in making one of the models, as far as runs tell or the user says."""
        found = in_loop([place.settings for place in self.scored], labels, declared)
        return found | {name + OF_FRAMES: text for name, text in found.items()}

    def prompt_set(self, labels: Sequence[str]) -> str:
        """Name and hash of the prompts of these models, as far as their folders know; empty if they do not."""
        named = [
            f"{published(place.settings.get('prompts', 'a set without a name'))}, hash {place.settings['prompts_hash']}"
            for place in self.scored
            if "prompts_hash" in place.settings and any(label in place.table.models for label in labels)
        ]
        return "; ".join(dict.fromkeys(named))

    def categories(self) -> dict[str, str]:
        """Prompt -> category, as far as the media folders know."""
        folders = [place.path for place in self.scored if place.path.is_dir()]
        details = [item for folder in folders for item in read_prompts(folder).items()]
        return {prompt: category for prompt, detail in details if (category := category_of(detail))}


def read_evidence(sources: Sequence[str | Path], votes: str | Path | None = None) -> Evidence:
    """Read scored media folders or parquet tables, and a CSV of votes.

    Raises:
        UserError: If there is neither, or one cannot be read.
    """
    if not sources and votes is None:
        raise UserError("nothing to compare: give scored media folders, or a CSV of human votes (`--human`).")
    scored = tuple(
        Scored(path, read_scores(path), read_settings(path) if path.is_dir() else {}) for path in map(Path, sources)
    )
    return Evidence(scored, read_votes(votes) if votes is not None else NO_VOTES)


def _scores(rows: Mapping[Key, ScoreRow]) -> Scores:
    scores: dict[str, dict[int, float]] = {}
    for (prompt, seed), row in rows.items():
        scores.setdefault(prompt, {})[seed] = row.score
    return scores
