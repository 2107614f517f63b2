"""What models are compared by: score tables and human votes, brought together by model, prompt and seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffpo.compare.in_loop import scorers_in_training, warning
from diffpo.compare.pairing import Mode, PairedScores, check_same_images, pair_values, rows_by_image, scores_by_prompt
from diffpo.compare.votes import HUMAN, Votes, read_votes
from diffpo.errors import UserError
from diffpo.media.folder import read_settings
from diffpo.media.prompts import category_of, read_prompts
from diffpo.scorers.scores import ScoreTable, read_scores


@dataclass(frozen=True)
class Evidence:
    """Tables and votes."""

    sources: tuple[Path, ...]
    tables: tuple[ScoreTable, ...]
    votes: Votes | None = None

    @property
    def models(self) -> list[str]:
        """Labels of all models.

        Raises:
            UserError: If two sources use the same one.
        """
        owners: dict[str, list[str]] = {}
        for source, table in zip(self.sources, self.tables, strict=True):
            for label in table.models:
                owners.setdefault(label, []).append(str(source))
        for label, places in owners.items():
            if len(places) > 1:
                raise UserError(
                    f"{' and '.join(places)} both call their model {label!r}. Give them different labels: "
                    "`diffpo generate --label`."
                )
        return list(owners) if self.tables else self.votes.models if self.votes else []

    def two_models(self, baseline: str | None, model: str | None) -> tuple[str, str]:
        """Choose (baseline, model): what is not named is what is left, the baseline first.

        Raises:
            UserError: If a label is unknown, or it is not clear which are meant.
        """
        known = self.models
        self.check_labels([label for label in (baseline, model) if label is not None])
        rest = [label for label in known if label not in (baseline, model)]
        wanted = [baseline, model].count(None)
        if len(rest) < wanted or (len(rest) > wanted and wanted):
            raise UserError(
                f"need two models to compare, found {', '.join(known) or 'none'}: name the model and the baseline."
            )
        baseline = baseline or rest.pop(0)
        model = model or rest.pop(0)
        if model == baseline:
            raise UserError(f"{model!r} cannot be compared with itself.")
        return baseline, model

    def check_labels(self, labels: Iterable[str]) -> None:
        """Check that models are there.

        Raises:
            UserError: If one is not.
        """
        for label in labels:
            if label not in self.models:
                raise UserError(f"there are no scores of {label!r}; there are those of {', '.join(self.models)}.")

    def common_scorers(self, labels: Sequence[str], wanted: Sequence[str] | None = None) -> list[str]:
        """Scorers of all these models: human votes first, then in the order of the rows.

        Raises:
            UserError: If there is none, or one of `wanted` is not among them.
        """
        by_model = {
            label: {row.scorer for table in self.tables for row in table.rows if row.model == label} for label in labels
        }
        known = list(dict.fromkeys(name for table in self.tables for name in table.scorers))
        common = [HUMAN] if self.votes else []
        common += [name for name in known if all(name in names for names in by_model.values())]
        unknown = [name for name in wanted or () if name not in common]
        if unknown or not common:
            has = "; ".join(f"{label} has {', '.join(sorted(names)) or 'none'}" for label, names in by_model.items())
            raise UserError(
                f"need scores by the same scorer ({', '.join(unknown) or 'any'}) for all models: {has}. "
                "Run `diffpo score` on each."
            )
        return list(wanted or common)

    def pairs(self, scorer: str, model: str, baseline: str, mode: Mode, chosen_by: str | None = None) -> PairedScores:
        """The scores of two models, paired; votes are pairs as they are.

        Raises:
            UserError: If the two do not fit; see `pair_values`.
        """
        if scorer == HUMAN:
            assert self.votes is not None
            return self.votes.pairs(model, baseline)
        rows = [rows_by_image(self.tables, scorer, label) for label in (model, baseline)]
        if mode == "same-seed":
            check_same_images(*rows, (model, baseline), scorer)
        choosers = None
        if chosen_by is not None:
            self.common_scorers((model, baseline), [chosen_by])
            self.provenance(chosen_by, (model, baseline))
            choosing = [rows_by_image(self.tables, chosen_by, label) for label in (model, baseline)]
            choosers = scores_by_prompt(choosing[0]), scores_by_prompt(choosing[1])
        return pair_values(scores_by_prompt(rows[0]), scores_by_prompt(rows[1]), mode, chosen_by=choosers)

    def provenance(self, scorer: str, labels: Sequence[str]) -> dict[str, Any]:
        """How a scorer's scores were made.

        Raises:
            UserError: If not in the same way for all the models.
        """
        if scorer == HUMAN:
            assert self.votes is not None
            return self.votes.provenance
        records = [
            table.provenance.get(scorer, {})
            for table in self.tables
            if any(row.scorer == scorer and row.model in labels for row in table.rows)
        ]
        for other in records[1:]:
            if other != records[0]:
                keys = sorted(key for key in {*records[0], *other} if records[0].get(key) != other.get(key))
                raise UserError(
                    f"the scores of {scorer} were made differently for the models ({', '.join(keys)}). Score all again."
                )
        return records[0]

    def warnings(self, labels: Sequence[str], declared: Sequence[str] = ()) -> dict[str, str]:
        """By scorer: that it had a hand in making one of the models, as far as runs tell or the user says."""
        found = {name: warning(name, ()) for name in declared}
        return found | {name: warning(name, of) for name, of in scorers_in_training(self.sources, labels).items()}

    def prompt_set(self, labels: Sequence[str]) -> str:
        """Name and hash of the prompts of these models, as far as their folders know; empty if they do not."""
        settings = [
            read_settings(source)
            for source, table in zip(self.sources, self.tables, strict=True)
            if source.is_dir() and any(label in table.models for label in labels)
        ]
        named = [
            f"{record['prompts']}, hash {record['prompts_hash']}" for record in settings if "prompts_hash" in record
        ]
        return "; ".join(dict.fromkeys(named))

    def categories(self) -> dict[str, str]:
        """Prompt -> category, as far as the media folders know."""
        found: Mapping[str, Any] = {
            prompt: category_of(detail)
            for source in self.sources
            if source.is_dir()
            for prompt, detail in read_prompts(source).items()
        }
        return {prompt: category for prompt, category in found.items() if category}


def read_evidence(sources: Sequence[str | Path], votes: str | Path | None = None) -> Evidence:
    """Read score tables and votes.

    Args:
        sources: Scored media folders or parquet tables.
        votes: A CSV; see `votes`.

    Raises:
        UserError: If there is neither, or one cannot be read.
    """
    if not sources and votes is None:
        raise UserError("nothing to compare: give scored media folders, or a CSV of human votes (`--human`).")
    paths = tuple(Path(source) for source in sources)
    return Evidence(paths, tuple(read_scores(path) for path in paths), read_votes(votes) if votes is not None else None)
