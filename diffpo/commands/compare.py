"""What `diffpo compare` does: compare two models or rank many, print tables, write files by their endings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from diffpo.compare.compare import Judging, compare_evidence
from diffpo.compare.comparison import Comparison, comparison_table, write_comparison
from diffpo.compare.evidence import read_evidence
from diffpo.compare.tables import ranking_table, strata_table, write_csv, write_latex
from diffpo.compare.tournament import Tournament, compare_all_evidence, write_tournament
from diffpo.errors import UserError
from diffpo.media.prompts import load_prompts

ENDINGS = (".json", ".csv", ".tex")


def run_compare(
    sources: Sequence[Path],
    *,
    models: Sequence[str],
    baseline: str | None,
    scorers: Sequence[str],
    votes: Path | None,
    judging: Judging,
    outs: Sequence[Path],
    console: Console | None = None,
) -> Comparison | Tournament:
    """Compare, print, write.

    Args:
        sources: Scored media folders or parquet tables.
        models: Labels; none: all. One, or two models in all, are compared; more are ranked.
        baseline: Label; the first by default.
        scorers: Which; none: all.
        votes: A CSV of human votes.
        judging: How they are compared.
        outs: What to write: `.json`, `.csv` or `.tex`.
        console: Where the tables go; standard output by default.

    Raises:
        UserError: As `compare`; or if a file to write has another ending or no folder to be in.
    """
    console = console or Console()
    check_outs(outs)
    evidence = read_evidence(sources, votes)
    if len(models) > 1 or (not models and len(evidence.models) > 2):
        tournament = compare_all_evidence(evidence, models, baseline, scorers or None, judging)
        for ranking in tournament.rankings:
            console.print(ranking_table(ranking))
        for comparison in tournament.comparisons:
            console.print(comparison_table(comparison))
        print(tournament.headline)
        _write(outs, tournament, tournament.comparisons)
        return tournament
    baseline, model = evidence.two_models(baseline, models[0] if models else None)
    comparison = compare_evidence(evidence, baseline, model, scorers or None, judging)
    console.print(comparison_table(comparison))
    strata = strata_table(comparison)
    if strata is not None:
        console.print(strata)
    print(comparison.headline)
    for note in comparison.notes:
        print(f"- {note}")
    _write(outs, comparison, [comparison])
    return comparison


def read_categories(spec: str) -> dict[str, str]:
    """Prompt -> category of a prompt set.

    Raises:
        UserError: If the set names no category.
    """
    prompts = load_prompts(spec)
    found = {prompt: name for prompt, name in zip(prompts.prompts, prompts.categories, strict=True) if name}
    if not found:
        raise UserError(f"{spec} names no category of any prompt: give a table with a column `category`.")
    return found


def check_outs(outs: Sequence[Path]) -> None:
    """Check files to write before the work begins.

    Raises:
        UserError: If one has another ending, or no folder to be in.
    """
    for out in outs:
        if out.suffix not in ENDINGS:
            raise UserError(f"cannot write a comparison as {out.name}: choose a name ending in {', '.join(ENDINGS)}.")
        if not out.parent.is_dir():
            raise UserError(f"there is no folder {out.parent} for {out.name}: make it first.")


def _write(outs: Sequence[Path], result: Comparison | Tournament, comparisons: Sequence[Comparison]) -> None:
    for out in outs:
        if out.suffix == ".csv":
            write_csv(out, comparisons)
        elif out.suffix == ".tex":
            write_latex(out, comparisons)
        elif isinstance(result, Tournament):
            write_tournament(out, result)
        else:
            write_comparison(out, result)
