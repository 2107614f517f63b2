"""Human votes: choices between images of two models, in a CSV file. They enter comparisons as the scorer `human`.

    column            what it holds
    model_a           label of one model
    model_b           label of the other
    prompt            the prompt; or `prompt_id`, where all rows have one
    choice            a, b or tie
    seed              (optional) the seed of both images: for the record
    user_id           (optional) who chose: gives win rates per user

The first line names the columns; others are left alone. Several votes on the same images are several comparisons of
one prompt: the prompt stays the unit, and its share of votes won is its value.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffpo.compare.pairing import PairedScores
from diffpo.disk.files import hash_of
from diffpo.disk.tables import read_rows
from diffpo.errors import UserError

HUMAN = "human"
"""What the votes are called among the scorers."""
SHARES = {"a": 1.0, "tie": 0.5, "b": 0.0}


@dataclass(frozen=True, kw_only=True)
class Vote:
    """One choice of one person."""

    model_a: str
    model_b: str
    prompt: str
    """The text, or the id as it stands."""
    share: float
    """What model a gets of the vote: 1, 1/2 or 0."""
    seed: int | None = None
    user: str | None = None

    def share_of(self, model: str) -> float:
        """What `model` gets of the vote."""
        return self.share if model == self.model_a else 1 - self.share


@dataclass(frozen=True)
class Votes:
    """The votes of one file."""

    path: Path
    votes: tuple[Vote, ...]

    @property
    def models(self) -> list[str]:
        """Labels of the models, in the order of the file."""
        return list(dict.fromkeys(label for vote in self.votes for label in (vote.model_a, vote.model_b)))

    @property
    def provenance(self) -> dict[str, Any]:
        """Which votes these are."""
        users = {vote.user for vote in self.votes}
        return {
            "scorer": HUMAN,
            "about": "Choices of people between two images.",
            "votes": len(self.votes),
            "users": None if None in users else len(users),
            "hash": hash_of(self.path.read_bytes()),
        }

    def between(self, model: str, baseline: str) -> list[Vote]:
        """Votes on these two, in any order of a and b, one at least; sorted by prompt."""
        found = [vote for vote in self.votes if {vote.model_a, vote.model_b} == {model, baseline}]
        if not found:
            raise UserError(
                f"{self.path} has no vote between {model} and {baseline}; it has votes on {', '.join(self.models)}."
            )
        return sorted(found, key=lambda vote: vote.prompt)

    def pairs(self, model: str, baseline: str) -> PairedScores:
        """The votes as scores: each side gets its share of each vote."""
        votes = self.between(model, baseline)
        shares = np.array([vote.share_of(model) for vote in votes])
        return PairedScores(shares, 1 - shares, tuple(vote.prompt for vote in votes))


NO_VOTES = Votes(Path(), ())


def read_votes(path: str | Path) -> Votes:
    """Read a table of votes; an error names the line that is none."""
    path = Path(path)
    votes = tuple(_vote(place, row) for place, row in read_rows(path))
    if not votes:
        raise UserError(f"{path} holds no vote.")
    return Votes(path, votes)


def _vote(where: str, row: Mapping[str, Any]) -> Vote:
    prompt = "prompt" if "prompt" in row else "prompt_id"
    needed = {"model_a": "model_a", "model_b": "model_b", "choice": "choice", prompt: "prompt (or prompt_id)"}
    missing = [said for name, said in needed.items() if name not in row]
    if missing:
        raise UserError(f"{where} lacks the columns {', '.join(missing)}; it has {', '.join(row) or 'none'}.")
    cells = {name: "" if value is None else str(value).strip() for name, value in row.items()}
    empty = [name for name in ("model_a", "model_b", prompt) if not cells[name]]
    if empty:
        raise UserError(f"{where} has no {', '.join(empty)}.")
    if cells["model_a"] == cells["model_b"]:
        raise UserError(f"{where} compares {cells['model_a']} with itself.")
    choice, seed = cells["choice"].lower(), cells.get("seed", "")
    if choice not in SHARES:
        raise UserError(f"{where}: choice must be a, tie or b, got {cells['choice']!r}.")
    if seed and not seed.removeprefix("-").isdecimal():
        raise UserError(f"{where}: seed must be a whole number or empty, got {seed!r}.")
    return Vote(
        model_a=cells["model_a"],
        model_b=cells["model_b"],
        prompt=cells[prompt],
        share=SHARES[choice],
        seed=int(seed) if seed else None,
        user=cells.get("user_id") or None,
    )
