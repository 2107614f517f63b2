"""What tables show is what was found, cell by cell: CSV, LaTeX, terminal."""

import csv
import io

import pytest
from judged import compare_two, write_comparison, write_folder
from rich.console import Console

from diffpo.compare.compare import Judging
from diffpo.compare.numbers import number, p_value, percent, plus_minus, points, signed, span
from diffpo.compare.stats import Estimate, Resampling
from diffpo.compare.terminal import comparison_table, strata_table

GAINS = [0.5, 1.5, -0.25, 2.0, 0.75, -1.0, 1.0, 0.5, 3.0, -0.5, 1.25, 2.5]


@pytest.fixture
def found(tmp_path):
    """Twelve prompts in three categories, by two scorers; no two numbers of a result are alike."""
    prompts = [f"p{i}" for i in range(12)]
    base = {
        name: {prompt: [float(i), float(i + 1)] for i, prompt in enumerate(prompts)} for name in ("first", "second")
    }
    tuned = {
        name: {
            prompt: [i + factor * gain, i + 1.5 * gain]
            for i, (prompt, gain) in enumerate(zip(prompts, GAINS, strict=True))
        }
        for name, factor in (("first", 1), ("second", -1))
    }
    folders = [write_folder(tmp_path / "a", "base", base), write_folder(tmp_path / "b", "tuned", tuned)]
    categories = {prompt: f"c{i % 3}" for i, prompt in enumerate(prompts)}
    return compare_two(folders, judging=Judging(categories=categories, resampling=Resampling(resamples=200)))


def test_every_cell_of_the_csv(found, tmp_path):
    write_comparison(tmp_path / "c.csv", found)
    with open(tmp_path / "c.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    parts = [part for result in found.results for part in (result, *result.strata)]
    assert len(rows) == len(parts) == 8
    for row, part in zip(rows, parts, strict=True):
        rate, difference = part.win_rate, part.difference
        numbers = {
            **{"prompts": rate.n_prompts, "comparisons": rate.n_pairs},
            **{"wins": rate.wins, "ties": rate.ties, "losses": rate.losses},
            **{"p_value": rate.p_value, "adjusted_p": part.adjusted_p},
        }
        for name, estimate in (("win_rate", rate), ("difference", difference)):
            numbers |= {
                name: estimate.estimate,
                f"{name}_low": estimate.ci_low,
                f"{name}_high": estimate.ci_high,
                f"{name}_detectable": estimate.detectable,
            }
        assert {name: float(row[name] or "nan") for name in numbers} == pytest.approx(numbers, nan_ok=True)
        assert row["test"] == rate.test and (row["model"], row["baseline"]) == ("tuned", "base")
    assert any(row["p_value"] != row["adjusted_p"] for row in rows)
    assert float(rows[0]["baseline_mean"]) == pytest.approx(6.0)
    assert float(rows[0]["model_mean"]) == pytest.approx(5.5 + 1.25 * sum(GAINS) / 12)


def test_a_row_of_latex(found, tmp_path):
    write_comparison(tmp_path / "c.tex", found)
    first = found.results[0]
    rate, difference = first.win_rate, first.difference
    cells = [
        "first",
        f"${number(first.baseline_mean)}$",
        f"${number(first.model_mean)}$",
        rf"${signed(difference.estimate)}\;[{signed(difference.ci_low)}, {signed(difference.ci_high)}]$",
        rf"${100 * rate.estimate:.1f}\%\;[{100 * rate.ci_low:.1f}\%, {100 * rate.ci_high:.1f}\%]$",
        f"${p_value(first.adjusted_p)}$",
        f"${100 * rate.detectable:.1f}$",
    ]
    assert " & ".join(cells) + r" \\" in (tmp_path / "c.tex").read_text().splitlines()
    assert first.adjusted_p != rate.p_value


def test_the_terminal_shows_both_p_values(found):
    output = io.StringIO()
    console = Console(width=120, file=output)
    console.print(comparison_table(found))
    first = found.results[0]
    lines = output.getvalue().splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("first"))
    assert lines[row].split()[-1] == f"{first.win_rate.p_value:.3f}"
    assert lines[row + 1].split()[-1] == f"{first.adjusted_p:.3f}" != lines[row].split()[-1]
    assert span(first.win_rate, percent) in lines[row + 1] and plus_minus(first.win_rate, percent) in lines[row + 2]
    console.print(strata_table(found))
    stratum = first.strata[1]
    shown = next(line for line in output.getvalue().splitlines() if line.startswith("c1"))
    assert shown.split()[-1] == p_value(stratum.adjusted_p) != p_value(stratum.win_rate.p_value)


def test_numbers_for_people():
    unknown = Estimate(estimate=0.5, ci_low=0.1, ci_high=0.9, p_value=1.0, n_prompts=1, n_pairs=1)
    nan = float("nan")
    assert (number(12.345), number(-0.5), number(9.9996)) == ("12.35", "-0.500", "10.000")
    assert (percent(0.1234), percent(nan), points(0.063), points(nan)) == ("12.3%", "?", "6.3", "?")
    assert (p_value(0.0004), p_value(0.001), p_value(1.0), p_value(nan)) == ("< 0.001", "0.001", "1.000", "?")
    assert (signed(0.5), signed(-12.0), signed(nan)) == ("+0.500", "-12.00", "?")
    assert span(unknown, percent) == "10.0% to 90.0%" and plus_minus(unknown, percent) == "+- ?"
