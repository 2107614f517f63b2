"""scripts/check_coverage.py: in small, and that it fails where it should."""

import math

import check_coverage
import pytest
from check_coverage import CASES, Tally, judge, simulate

RUNS = 120


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_intervals_cover_and_tests_keep_their_level(name):
    """As at full size, with room for three standard errors of the simulation itself."""
    for what, tally in simulate(name, RUNS, prompts=100, seeds=2).items():
        share = tally.covered / tally.runs
        assert share == pytest.approx(0.95, abs=0.01 + 3 * math.sqrt(0.05 * 0.95 / RUNS)), what
        if "no difference" in name:
            assert tally.found / tally.runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / RUNS), what
        if "better" in name:
            assert tally.found / tally.runs > 0.5, what


@pytest.mark.parametrize(
    ("covered", "found", "wrong"), [(950, 50, 0), (920, 50, 1), (980, 50, 1), (950, 70, 1), (980, 20, 2)]
)
def test_what_is_out_of_range(covered, found, wrong, capsys):
    tally = Tally(runs=1000, covered=covered, found=found)
    messages = judge("no difference", "win rate", tally)
    assert len(messages) == wrong and ("OUT OF RANGE" in capsys.readouterr().out) == bool(wrong)
    assert len(judge("better", "win rate", tally)) == (covered != 950), "a difference that is there may be found"


def test_the_exit_code(monkeypatch, capsys):
    """Intervals of one resample are a point, and cover nothing."""
    monkeypatch.setattr(check_coverage, "RESAMPLES", 1)
    assert check_coverage.main(["--simulations", "5", "--prompts", "20", "--seeds", "2"]) == 1
    assert "covers 0.0%" in capsys.readouterr().out
