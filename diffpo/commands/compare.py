"""What `diffpo compare` does: compare two models or rank many, print tables, write files by their endings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from diffpo.compare.compare import Judging, compare
from diffpo.compare.export import check_outs, write_result
from diffpo.compare.result import Tournament
from diffpo.compare.terminal import print_result
from diffpo.errors import UserError
from diffpo.media.prompts import load_prompts


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
) -> Tournament:
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
    check_outs(outs)
    found = compare(sources, models=models, baseline=baseline, scorers=scorers or None, votes=votes, judging=judging)
    print_result(found, console or Console())
    for out in outs:
        write_result(out, found)
    return found


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
