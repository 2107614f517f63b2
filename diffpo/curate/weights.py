"""Weigh the pairs of a table by their scores: `diffpo data weight`. The column `weight` multiplies a pair's loss.

videodpo   rare scores weigh more (VideoDPO, arXiv:2412.14167)

    w = (beta / sqrt(p(chosen_score) p(rejected_score)))^alpha

with p(s) the share of all scores that lie in the same bin as s, and beta the share of the fullest bin: a pair of scores
as frequent as any weighs 1, and every other one more.

lambda     pairs that change the ranking of a prompt's images most weigh more (LambdaRank, Burges et al. 2006; for
           preferences LiPO-lambda, arXiv:2402.01878)

    w = |G_c - G_r| |1 / log(1 + rank_c) - 1 / log(1 + rank_r)|        G = 2^r - 1, r = (score - low) / (high - low)

with the ranks of the two images among all scores of their prompt, 1 being the highest. In LiPO-lambda the ranks are
those that the policy in training gives; a table knows the scores' own ranks only. Weights are divided by their mean.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from diffpo.core.block import Block, NotNegative, Positive
from diffpo.curate.derived import read_tables, writing
from diffpo.curate.write import file_of
from diffpo.data.advice import how_to_get
from diffpo.data.contents import identify
from diffpo.data.records import Source, Table
from diffpo.data.splits import normalise
from diffpo.errors import UserError

SCORES = ("chosen_score", "rejected_score")


@dataclass(frozen=True, kw_only=True)
class Weighting(Block, ABC):
    """A rule that gives pairs weights."""

    @abstractmethod
    def weigh(self, scores: np.ndarray, prompts: Sequence[str], training: np.ndarray) -> np.ndarray:
        """Give each pair of a split a weight, `[n]`.

        Args:
            scores: `[n 2]` of the pairs, chosen first.
            prompts: `n`, normalised.
            training: `[m 2]` scores of the training split, by which all splits are measured.

        Raises:
            UserError: The scores do not suit the rule.
        """


@dataclass(frozen=True, kw_only=True)
class VideoDPOWeights(Weighting):
    """VideoDPO's: pairs whose scores are rare weigh more."""

    alpha: NotNegative = 0.72
    """How much more; 0 gives every pair the weight 1. A note on the paper has 0.72; the released code multiplies by
    (0.72 / prob)^dupbeta, with dupbeta 1 in its data set, 0 in its configuration."""
    beta: Positive | None = None
    """Share of scores that weighs 1. None: that of the fullest bin."""
    bin: Positive = 0.01
    """Width of a bin. 0.01 is the paper's, for scores between 0 and 1."""

    def weigh(self, scores: np.ndarray, prompts: Sequence[str], training: np.ndarray) -> np.ndarray:
        bins, counts = np.unique(self._bins(training), return_counts=True)
        if counts.max() == 1 and len(counts) > 1:
            raise UserError(
                f"bins of {self.bin:g} are too narrow: no two of the {training.size} scores, which lie between "
                f"{training.min():g} and {training.max():g}, share one. Give a wider one: --by videodpo,bin=..."
            )
        own = self._bins(scores)
        place = np.searchsorted(bins, own).clip(max=len(bins) - 1)
        found = np.where(bins[place] == own, counts[place], 1)  # a bin that training has not counts as one score
        share = found / training.size
        most = counts.max() / training.size if self.beta is None else self.beta
        return (most / np.sqrt(share[:, 0] * share[:, 1])) ** self.alpha

    def _bins(self, scores: np.ndarray) -> np.ndarray:
        return np.floor(scores / self.bin + 1e-9)  # 0.29 / 0.01 is a little less than 29


@dataclass(frozen=True, kw_only=True)
class LambdaWeights(Weighting):
    """LambdaRank's: pairs weigh what exchanging the two images would change in the ranking of their prompt."""

    def weigh(self, scores: np.ndarray, prompts: Sequence[str], training: np.ndarray) -> np.ndarray:
        low, high = training.min(), training.max()
        if low == high:
            raise UserError(f"all scores are {low:g}: nothing is ranked by them. Score the table by another scorer.")
        ranked = _change(scores, prompts, low, high)
        mean = ranked.mean()
        if not mean:
            raise UserError("every pair has two equal scores, and would weigh nothing. Use another scorer.")
        return ranked / mean


def _change(scores: np.ndarray, prompts: Sequence[str], low: float, high: float) -> np.ndarray:
    """`[n]` change of the discounted gain of a prompt's images where the two of a pair change places."""
    of = defaultdict(set)
    for prompt, pair in zip(prompts, scores.tolist(), strict=True):
        of[prompt].update(pair)
    ranks = {prompt: {s: rank for rank, s in enumerate(sorted(found, reverse=True), 1)} for prompt, found in of.items()}
    rank = np.array([[ranks[p][s] for s in pair] for p, pair in zip(prompts, scores.tolist(), strict=True)])
    gain, discount = 2 ** ((scores - low) / (high - low)) - 1, 1 / np.log1p(rank)
    return abs(gain[:, 0] - gain[:, 1]) * abs(discount[:, 0] - discount[:, 1])


WEIGHTINGS: dict[str, type[Weighting]] = {"videodpo": VideoDPOWeights, "lambda": LambdaWeights}


@dataclass(frozen=True)
class Weighed:
    """What `weigh_pairs` did."""

    files: list[Path]
    weights: dict[str, np.ndarray]
    """By split, `[n]`."""

    def __str__(self) -> str:
        """Say it in words."""
        return "; ".join(
            f"{len(found)} {split} pairs weigh {found.min():.3g} to {found.max():.3g}, {found.mean():.3g} on average"
            for split, found in self.weights.items()
        )


def weigh_pairs(source: Source, weighting: Weighting, folder: Path, *, fresh: bool = False) -> Weighed:
    """Write the pairs of a source with the column `weight`; one that is there is replaced.

    A validation split of its own is written, too, measured by the training split.

    Args:
        source: The pairs, which have been scored; see `derived.read_tables`.
        weighting: From scores to weights.
        folder: Where the table is written; see `write.Target`.
        fresh: Whether a table that was made in another way may be replaced.

    Raises:
        UserError: There are no scores, or they do not suit the rule; or the folder holds something else.
    """
    tables = read_tables(source)
    scores = {split: _scores(table) for split, table in tables.items()}
    name = next(name for name, cls in WEIGHTINGS.items() if cls is type(weighting))
    recipe = {"by": name, **asdict(weighting), "measured by": identify(tables["train"])}
    found = {}
    for split, table in tables.items():
        prompts = [normalise(prompt) for prompt in table.column("prompt")]
        found[split] = weighting.weigh(scores[split], prompts, scores["train"])
    with writing("diffpo data weight", tables, recipe, folder, fresh=fresh) as targets:
        for target in targets:
            target.write(target.table.rows, {"weight": found[target.split].tolist()})
    return Weighed([file_of(folder, split) for split in tables], found)


def _scores(table: Table) -> np.ndarray:
    """`[n 2]` scores, chosen first."""
    missing = [name for name in SCORES if name not in table.rows.column_names]
    if missing:
        raise UserError(
            f"{table.path} has no column {' and no column '.join(missing)}: weights come from scores. "
            f"{how_to_get(missing, SCORES, table.path)}, and weigh FOLDER."
        )
    return np.stack([np.asarray(table.column(name), np.float64) for name in SCORES], axis=1)
