"""Synthetic users, each with a scorer of their own: PPD's check of whether one model can serve several rewards.

    diffpo data users TABLE --by-scorer pickscore --by-scorer aesthetic --mixture pickscore:0.5,aesthetic:0.5

A user prefers the image that their scorer gives more; a mixture adds up weighted scores that were brought
to mean 0 and deviation 1 over all images. Everybody labels all pairs, so a pair stands in the table once for each
user, and pairs of equal scores are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffpo.curate.derived import read_tables, writing
from diffpo.curate.score import score_rows, turn
from diffpo.data.records import Source
from diffpo.errors import UserError
from diffpo.scorers.base import Scorer

COMMAND = "diffpo data users --by-scorer"


def label_by_scorers(
    source: Source,
    scorers: Sequence[Scorer],
    mixtures: Sequence[Mapping[str, float]],
    folder: Path,
    *,
    batch: int = 32,
    fresh: bool = False,
) -> list[str]:
    """Write the pairs of a source as synthetic users see them, with `user_id`.

    Args:
        source: The pairs; whoever labelled them does not matter.
        scorers: A user each, called like the scorer.
        mixtures: Shares of these scorers, by name: a user each.
        folder: Where the table is written; see `write.Target`.
        batch: Images at a time.
        fresh: Whether a table that was made in another way may be replaced.

    Returns:
        The users' names.

    Raises:
        UserError: There are no two users, a mixture names an unknown scorer, or a score is no finite number.
    """
    names = [scorer.name for scorer in scorers]
    users = {name: {name: 1.0} for name in names} | {_name(shares): dict(shares) for shares in mixtures}
    if len(set(names)) < len(names) or len(users) < 2:
        raise UserError(f"synthetic users are at least two, of different scorers; got {', '.join(names)}.")
    if unknown := sorted({name for shares in mixtures for name in shares} - set(names)):
        raise UserError(f"a mixture names {', '.join(unknown)}, but --by-scorer gives {', '.join(names)}.")
    tables = {"train": read_tables(source)["train"]}
    recipe = {"users": users, "scorers": [scorer.provenance for scorer in scorers]}
    with writing(COMMAND, tables, recipe, folder, fresh=fresh) as targets:
        for target in targets:
            found = {scorer.name: score_rows(target.table, scorer, batch) for scorer in scorers}
            kept = np.unique(np.concatenate([each.kept for each in found.values()]))
            for each in found.values():
                kept = np.intersect1d(kept, each.kept)
            scores = {name: _standard(each.scores[np.isin(each.kept, kept)]) for name, each in found.items()}
            rows, turned, owners = [], [], []
            for user, shares in users.items():
                mixed = sum(share * scores[name] for name, share in shares.items())
                differ = np.flatnonzero(mixed[:, 0] != mixed[:, 1])
                rows.append(kept[differ])
                turned.append((mixed[:, 0] < mixed[:, 1])[differ])
                owners += [user] * len(differ)
            chosen = target.table.rows.select(np.concatenate(rows))
            both = turn(chosen, np.concatenate(turned), target.table.path)
            drop = [name for name in ("preference", "chosen_score", "rejected_score") if name in both.column_names]
            target.write(both.remove_columns(drop), {"user_id": owners})
    return list(users)


def _name(shares: Mapping[str, float]) -> str:
    return "+".join(f"{share:g} {name}" for name, share in shares.items())


def _standard(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bring `[n 2]` scores to mean 0 and deviation 1 over all images."""
    return (scores - scores.mean()) / max(float(scores.std()), np.finfo(np.float64).tiny)
