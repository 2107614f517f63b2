"""Count how often scorers agree with the people who labelled a pair table: `diffpo data agreement`.

    label      chosen, rejected or tie: by the order of the pair, or by `preference` (above, below, at one half)
    scorer     a tie where |p - (1 - p)| <= threshold, p = sigmoid(score of chosen - score of rejected); else the larger
    credit     1 where both say the same, 1/2 where one of them says tie, 0 else

as PickScore's authors count (arXiv:2305.01569), whose threshold is chosen on other pairs: 0 counts equal scores only.
The agreement is the mean over pairs; its interval resamples prompts with all their pairs (ratio of sums, percentiles).

A label that a scorer gave is no human's: tables of `diffpo data score` are refused.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.markup import escape
from rich.table import Table as Printed

from diffpo.core.block import Block, Count, Fraction, Range, Seed
from diffpo.curate.score import score_rows
from diffpo.curate.write import read_record, record_of
from diffpo.data.contents import identify
from diffpo.data.records import Source
from diffpo.data.splits import load_splits
from diffpo.errors import UserError
from diffpo.scorers.base import Scorer

_CELLS = 1 << 22  # random numbers that are held at a time


@dataclass(frozen=True, kw_only=True)
class Counting(Block):
    """How agreement is counted."""

    tie_threshold: Fraction = 0.0
    """Scores whose probabilities differ by no more are a tie of the scorer's; with 0 only equal scores are. It means
    what PickScore's authors mean only for scores that are log odds, as PickScore's logits are."""
    level: Annotated[float, Range(above=0, below=1)] = 0.95
    """How often an interval is to hold the true agreement."""
    resamples: Count = 10_000
    """How often the bootstrap draws prompts anew."""
    seed: Seed = 0
    """What the draws of the bootstrap depend on."""


@dataclass(frozen=True, kw_only=True)
class ScorerAgreement:
    """How often one scorer agrees, and how sure that is."""

    scorer: str
    agreement: float
    ci_low: float
    """It is NaN where one prompt is all there is."""
    ci_high: float
    agree: int
    disagree: int
    half: int
    """Pairs where either the label or the scorer says tie, and not both."""
    scorer_ties: int
    provenance: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What the scorers of a table come to; all of them judge the same pairs."""

    table: str
    fingerprint: str
    split: str
    n_pairs: int
    n_prompts: int
    label_ties: int
    broken: dict[int, str]
    """The rows that are left out for a broken image, and why."""
    counting: Counting
    scorers: tuple[ScorerAgreement, ...]
    """They stand in the order in which they were asked."""


def agreement(
    source: Source, scorers: Sequence[Scorer], counting: Counting | None = None, *, batch: int = 32
) -> Agreement:
    """Compare scorers with the labels of a table's split; scores are kept in the cache.

    Args:
        source: The pairs. Ties are judged too if the source keeps them.
        scorers: Their names must differ.
        counting: How to count.
        batch: Images that a scorer is given at a time.

    Raises:
        UserError: The table cannot be read, a scorer labelled it, or a score is no finite number.
    """
    counting = counting or Counting()
    names = [scorer.name for scorer in scorers]
    if len(set(names)) < len(names) or not names:
        raise UserError(f"name at least one scorer, and each once; got {', '.join(names) or 'none'}.")
    own = dataclasses.replace(source, validation_fraction=0.0, validation_split=None, validation_path=None)
    table = load_splits(own).train
    record = record_of(Path(table.path).expanduser(), source.split)
    if record.is_file() and read_record(record).get("recipe", {}).get("scorer"):
        raise UserError(
            f"a scorer labelled {table.path} (see {record}), so nothing there tells what people prefer. Give the table "
            "that it was made of."
        )
    found = [score_rows(table, scorer, batch) for scorer in scorers]
    kept, all_prompts = found[0].kept, table.column("prompt")
    prompts, labels = [all_prompts[row] for row in kept], np.ones(len(kept))
    if "preference" in table.rows.column_names:
        labels = np.sign(np.array(table.column("preference"), dtype=np.float64)[kept] - 0.5)
    return Agreement(
        table=table.path,
        fingerprint=identify(table),
        split=source.split,
        n_pairs=len(kept),
        n_prompts=len(set(prompts)),
        label_ties=int((labels == 0).sum()),
        broken=found[0].broken,
        counting=counting,
        scorers=tuple(
            _judge(scorer, labels, each.scores, prompts, counting) for scorer, each in zip(scorers, found, strict=True)
        ),
    )


def credits(labels: NDArray[np.float64], verdicts: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each pair counts: 1 where label and verdict (1, -1, 0 for a tie) agree, 1/2 where one is a tie, else 0."""
    return 1 - np.abs(labels - verdicts) / 2


def verdicts_of(scores: NDArray[np.float64], tie_threshold: Fraction) -> NDArray[np.float64]:
    """What scores `[n 2]`, chosen first, say: 1 for chosen, -1 for rejected, 0 for a tie."""
    difference = scores[:, 0] - scores[:, 1]
    tie = np.abs(np.tanh(difference / 2)) <= tie_threshold  # p - (1 - p)
    return np.where(tie & ((tie_threshold > 0) | (difference == 0)), 0, np.sign(difference))


def prompt_interval(
    values: NDArray[np.float64], prompts: Sequence[str], level: float, resamples: Count, seed: int
) -> tuple[float, float]:
    """Find the interval of the mean of `values` `[n]` by drawing whole prompts anew; NaN if there is only one."""
    index: dict[str, int] = {}
    groups = np.array([index.setdefault(prompt, len(index)) for prompt in prompts], dtype=np.intp)
    sums, counts = np.bincount(groups, weights=values), np.bincount(groups)
    n = len(sums)
    if n < 2:
        return math.nan, math.nan
    generator, rows = np.random.default_rng([seed, 3]), max(1, _CELLS // n)
    means = []
    for start in range(0, resamples, rows):
        drawn = generator.integers(0, n, size=(min(rows, resamples - start), n))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def agreement_table(found: Agreement) -> Printed:
    """Lay the agreement out as a table for the terminal."""
    title = f"{found.n_pairs} pairs, {found.label_ties} of them ties, of {found.n_prompts} prompts"
    table = Printed(title=title, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("scorer", overflow="fold")
    for header in ("agreement", f"{found.counting.level:.0%} interval", "agree", "half", "disagree"):
        table.add_column(header, justify="right")
    for row in found.scorers:
        span = f"{_percent(row.ci_low)} to {_percent(row.ci_high)}"
        counts = (str(row.agree), str(row.half), str(row.disagree))
        table.add_row(escape(row.scorer), _percent(row.agreement), span, *counts)
    return table


def _judge(
    scorer: Scorer, labels: NDArray[np.float64], scores: NDArray[np.float64], prompts: Sequence[str], counting: Counting
) -> ScorerAgreement:
    verdicts = verdicts_of(scores, counting.tie_threshold)
    values = credits(labels, verdicts)
    low, high = prompt_interval(values, prompts, counting.level, counting.resamples, counting.seed)
    return ScorerAgreement(
        scorer=scorer.name,
        agreement=float(values.mean()),
        ci_low=low,
        ci_high=high,
        agree=int((values == 1).sum()),
        disagree=int((values == 0).sum()),
        half=int((values == 0.5).sum()),
        scorer_ties=int((verdicts == 0).sum()),
        provenance=scorer.provenance,
    )


def _percent(share: float) -> str:
    return "?" if math.isnan(share) else f"{100 * share:.1f}%"
