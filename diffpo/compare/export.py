"""What was found, as files for others to read: JSON, CSV, LaTeX."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffpo.compare.numbers import number, p_value, percent, points, signed
from diffpo.compare.result import Comparison, ScorerResult, Stratum, Tournament
from diffpo.disk.files import check_output, without_nan, write_file, write_json
from diffpo.errors import UserError

FORMAT = "diffpo tournament 1"
ENDINGS = (".json", ".csv", ".tex")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_NAMED = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater"}
_LATEX = str.maketrans(
    {sign: rf"\text{name}{{}}" for sign, name in _NAMED.items()} | {sign: f"\\{sign}" for sign in "&%$#_{}"}
)


def check_outs(outs: Sequence[Path]) -> None:
    """Check files to write before the work begins: their endings (one of `ENDINGS`), folders, and that they can be."""
    for out in outs:
        if out.suffix not in ENDINGS:
            raise UserError(f"cannot write a comparison as {out.name}: choose a name ending in {', '.join(ENDINGS)}.")
        if not out.parent.is_dir():
            raise UserError(f"there is no folder {out.parent} for {out.name}: make it first.")
        check_output(out)


def write_result(path: str | Path, found: Tournament) -> None:
    """Write what was found, by the file's ending: see `check_outs`."""
    path, comparisons = Path(path), found.comparisons
    if path.suffix != ".json":
        write_file(path, _csv(comparisons) if path.suffix == ".csv" else _latex(comparisons))
        return
    record = {"format": FORMAT, "headline": found.headline, "models": found.models}
    record["rankings"] = [asdict(ranking) for ranking in found.rankings]
    record["comparisons"] = [{**asdict(one), "verdict": one.verdict, "headline": one.headline} for one in comparisons]
    write_json(path, without_nan(record if found.rankings else record["comparisons"][0]))


def latex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return " ".join(text.split()).translate(_LATEX)


def cell(value: Any) -> Any:
    """A cell that no spreadsheet program takes for a formula: a text that begins like one gets an apostrophe before it.

    Numbers stay numbers, and what is not known is empty.
    """
    if isinstance(value, float) and math.isnan(value):
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _csv(comparisons: Sequence[Comparison]) -> str:
    rows = [row for comparison in comparisons for row in _csv_rows(comparison)]
    output = io.StringIO()
    writer = csv.DictWriter(output, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    return output.getvalue()


def _csv_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """One row per scorer and category (empty: all prompts)."""
    ends = {"": "estimate", "_low": "ci_low", "_high": "ci_high", "_detectable": "detectable"}
    for result in comparison.results:
        for part in (result, *result.strata):
            whole, rate = part is result, part.win_rate
            estimates = (("difference", part.difference), ("win_rate", rate))
            yield {
                "model": comparison.model,
                "baseline": comparison.baseline,
                "mode": comparison.mode,
                "scorer": result.scorer,
                "category": part.category if isinstance(part, Stratum) else "",
                "model_mean": result.model_mean if whole else "",
                "baseline_mean": result.baseline_mean if whole else "",
                "prompts": rate.n_prompts,
                "comparisons": rate.n_pairs,
                **{name + end: getattr(found, field) for name, found in estimates for end, field in ends.items()},
                **{name: getattr(rate, name) for name in ("wins", "ties", "losses", "p_value", "test")},
                "adjustment": "holm" if whole else "benjamini-hochberg",
                "adjusted_p": part.adjusted_p,
                "in_loop": result.in_loop,
            }


def _latex(comparisons: Sequence[Comparison]) -> str:
    """A `tabular` of the package booktabs, one block per comparison."""
    lines = [
        f"% {one.model} against {one.baseline}, {one.mode}: {one.n_prompts} prompts, {one.n_pairs} comparisons, "
        f"{one.level:.0%} intervals".replace("\n", " ")
        for one in comparisons
    ]
    lines += [
        "% p by Holm over all scorers and models; MDE: win rate from even found in 80% of such comparisons, in points",
        r"\begin{tabular}{lrrrrrr}",
        r"\toprule",
        r"Scorer & Baseline & Model & Difference & Win rate & $p$ & MDE \\",
    ]
    for one in comparisons:
        title = f"{latex(one.model)} against {latex(one.baseline)}"
        lines += [r"\midrule", rf"\multicolumn{{7}}{{l}}{{{title}}} \\"]
        lines += [_latex_row(result) for result in one.results]
    marks = any(result.in_loop for one in comparisons for result in one.results)
    lines += [r"\bottomrule", r"\end{tabular}"] + ([r"\par\smallskip $^*$ used in training"] if marks else [])
    return "\n".join(lines) + "\n"


def _latex_row(result: ScorerResult) -> str:
    rate, difference = result.win_rate, result.difference
    cells = (
        number(result.baseline_mean),
        number(result.model_mean),
        f"{signed(difference.estimate)} [{signed(difference.ci_low)}, {signed(difference.ci_high)}]",
        f"{percent(rate.estimate)} [{percent(rate.ci_low)}, {percent(rate.ci_high)}]",
        p_value(result.adjusted_p),
        points(rate.detectable),
    )
    numbers = [f"${cell}$".replace("%", r"\%").replace(" [", r"\;[") for cell in cells]
    return " & ".join([latex(result.scorer) + ("$^*$" if result.in_loop else ""), *numbers]) + r" \\"
