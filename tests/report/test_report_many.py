"""The report of many models, of categories, and of scorers that had a hand in training."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from media_copies import faded

from diffpo.compare.compare import Judging, compare
from diffpo.compare.evidence import Evidence, Scored, read_evidence
from diffpo.compare.stats import Resampling
from diffpo.errors import UserError
from diffpo.media.folder import read_media
from diffpo.report.examples import Gallery
from diffpo.report.page import write_report
from diffpo.report.views import distribution_of, elo_axis, notes_of, summary_of
from diffpo.scorers import ShapesUtility, ShapesVerifier
from diffpo.scorers.scores import ScoreRow, ScoreTable, read_scores

QUICK = Judging(resampling=Resampling(resamples=200))
COLORS = {"first": "<b>first</b>", "second": 'the "second"'}


@pytest.fixture(scope="module")
def three(folders, tmp_path_factory):
    """(base, tuned, pale): the third draws as the second, in paler colours."""
    scorers = [ShapesUtility(), ShapesVerifier()]
    return [*folders, faded(folders[1], tmp_path_factory.mktemp("third") / "pale", "pale", scorers)]


@pytest.fixture(scope="module")
def tournament(three):
    return compare(three, judging=QUICK)


@pytest.fixture(scope="module")
def categories(three):
    """Half of the prompts each; names that are markup."""
    prompts = sorted({media.prompt for media in read_media(three[0])})
    return {prompt: COLORS["first" if i < len(prompts) // 2 else "second"] for i, prompt in enumerate(prompts)}


def scored(**models):
    """One image per prompt, by one scorer."""
    tables = {
        model: ScoreTable(
            [
                ScoreRow(file="", prompt=f"p{i}", prompt_id=i, seed=0, model=model, scorer="judge", score=score)
                for i, score in enumerate(scores)
            ]
        )
        for model, scores in models.items()
    }
    return Evidence(tuple(Scored(Path(model), table, {}) for model, table in tables.items()))


def figures(html):
    """(attributes, content) of every example."""
    return re.findall(r'<figure class="card example"([^>]*)>(.*?)</figure>', html, re.DOTALL)


def test_many_models_in_one_page(three, tournament, tmp_path):
    html = write_report(tmp_path / "r.html", tournament, three, extremes=2).read_text()
    leader, *_ = tournament.rankings[0].ranks
    assert f"{leader.model} leads 3 models by shapes-utility" in html
    assert f"{leader.elo:+.0f}" in html and "Each against each" in html
    assert html.count("<h3>tuned</h3>") == html.count("<h3>pale</h3>") == 2
    losing = html[html.index("Largest losses") :]
    assert losing.index('<p class="empty">None.</p>') < losing.index("<h3>pale</h3>"), "tuned loses nowhere"
    drawn = [content for attributes, content in figures(html) if content.count("<img") == 3]
    assert len(drawn) == 8, "random examples show all models"
    assert all(content.count("<img") in (2, 3) for _, content in figures(html))
    rates = [cell.win_rate for cell in tournament.rankings[0].cells]
    assert all(f"{100 * rate.estimate:.1f}%" in html and f"{100 - 100 * rate.estimate:.1f}%" in html for rate in rates)


def test_a_win_rate_turned_round(tournament):
    """P(b over a) = 1 - P(a over b), and so are its ends, in the other order."""
    cell = tournament.rankings[0].cells[0]
    back = tournament.rankings[0].cell(cell.other, cell.model).win_rate
    rate = cell.win_rate
    assert (back.estimate, back.wins, back.losses) == (1 - rate.estimate, rate.losses, rate.wins)
    assert (back.ci_low, back.ci_high) == (1 - rate.ci_high, 1 - rate.ci_low)
    ranking = tournament.rankings[0]
    assert [ranking.cell(rank.model, rank.model) for rank in ranking.ranks] == [None] * 3
    low, high = elo_axis(ranking)
    assert low < min(0, *(rank.elo_low for rank in ranking.ranks))
    assert high > max(0, *(rank.elo_high for rank in ranking.ranks))


def test_a_baseline_that_nobody_beats_is_said_to_lead(three):
    summary = summary_of(compare(three, baseline="tuned", judging=QUICK))
    assert "No model is ahead of tuned" in summary.headline and summary.verdict == "worse"
    assert summary.result.win_rate.estimate < 0.5 and summary.baseline == "tuned"
    assert summary_of(compare(three[:2], baseline="tuned", judging=QUICK)).verdict == "worse"


def test_notes_of_single_models_are_told_apart(tournament):
    shared, single = notes_of(tournament.comparisons)
    assert shared and all(note in comparison.notes for note in shared for comparison in tournament.comparisons)
    assert {note.partition(":")[0] for note in single} <= {"tuned", "pale"}
    assert not {note.partition(": ")[2] for note in single} & set(shared)
    assert notes_of(()) == ([], [])


def test_a_scorer_used_in_training_is_flagged_first(folders, tmp_path):
    judging = replace(QUICK, used_in_training=("shapes-utility",))
    html = write_report(tmp_path / "r.html", compare(folders, judging=judging), folders).read_text()
    clean = write_report(tmp_path / "c.html", compare(folders, judging=QUICK), folders).read_text()
    caution = html.index("<b>Used in training:</b>")
    assert caution < html.index("By scorer") and "used in training</span>" in html
    assert re.search(r"without a known part in it: shapes \d+\.\d%", html[caution:])
    assert "<b>Used in training:</b>" not in clean and "used in training</span>" not in clean


def test_every_category_has_examples_of_its_own(three, categories, tmp_path):
    result = compare(three, judging=replace(QUICK, categories=categories))
    html = write_report(tmp_path / "r.html", result, three, categories=categories, examples=2, extremes=1).read_text()
    shown = [attributes for attributes, _ in figures(html) if "data-overall" in attributes]
    hidden = [attributes for attributes, _ in figures(html) if " hidden" in attributes]
    assert len(shown) + len(hidden) == len(figures(html)) and len(shown) <= 2 + 4 and hidden
    for name in ("&lt;b&gt;first&lt;/b&gt;", "the &#34;second&#34;"):
        assert html.count(f'<option value="{name}">') == 1
        assert sum(f'data-category="{name}"' in attributes for attributes in shown + hidden) >= 2
    assert "<b>first" not in html
    plain = write_report(tmp_path / "n.html", compare(three, judging=QUICK), three).read_text()
    assert "By category" not in plain and 'id="category"' not in plain


def test_random_examples_are_the_first_of_one_order(three, categories):
    """Those of a category come in the same order as among all: showing both picks nobody out."""
    gallery = Gallery(read_evidence(three), ["base", "tuned", "pale"], "shapes-utility", categories)
    drawn, *_ = gallery.sections(examples=3, extremes=1, seed=5)
    everything, *_ = gallery.sections(examples=len(gallery.keys), extremes=1, seed=5)
    order = [(e.prompt, e.seed) for e in everything.groups[""]]
    assert sorted(order) == gallery.keys
    assert [(e.prompt, e.seed) for e in drawn.groups[""] if e.overall] == order[:3]
    for name in COLORS.values():
        mine = [(e.prompt, e.seed) for e in drawn.groups[""] if e.category == name]
        assert mine == [key for key in order if categories[key[0]] == name][: len(mine)] and mine
    other, *_ = gallery.sections(examples=3, extremes=1, seed=6)
    assert other.groups != drawn.groups


def test_the_best_picture_is_marked(three):
    gallery = Gallery(read_evidence(three), ["base", "tuned", "pale"], "shapes-utility", {})
    examples = [e for section in gallery.sections(4, 2, 0) for group in section.groups.values() for e in group]
    assert examples
    for example in examples:
        scores = {picture.label: float(picture.score) for picture in example.pictures}
        best = [picture.label for picture in example.pictures if picture.best]
        assert all(scores[label] == max(scores.values()) for label in best) and len(best) < len(scores)
    assert any(picture.best for example in examples for picture in example.pictures)


def test_wins_and_losses_are_the_largest(three):
    tables = [read_scores(folder) for folder in three[:2]]
    gallery = Gallery(read_evidence(three[:2]), ["base", "tuned"], "shapes-utility", {})
    _, wins, losses = gallery.sections(examples=1, extremes=3, seed=0)
    scores = [{(r.prompt, r.seed): r.score for r in t.rows if r.scorer == "shapes-utility"} for t in tables]
    gains = sorted(scores[1][key] - scores[0][key] for key in gallery.keys)
    shown = [scores[1][e.prompt, e.seed] - scores[0][e.prompt, e.seed] for e in wins.groups[""]]
    assert shown == gains[::-1][:3]
    assert len(losses.groups[""]) == min(3, sum(gain < 0 for gain in gains))
    flipped = Gallery(read_evidence(three[:2]), ["tuned", "base"], "shapes-utility", {})
    _, _, back = flipped.sections(examples=1, extremes=3, seed=0)
    assert [(e.prompt, e.seed) for e in back.groups[""]] == [(e.prompt, e.seed) for e in wins.groups[""]]


def test_an_image_that_is_gone(three, tournament, tmp_path):
    (tmp_path / "a").mkdir()
    rows = (three[0] / "scores.parquet").read_bytes()
    (tmp_path / "a" / "scores.parquet").write_bytes(rows)
    with pytest.raises(UserError, match="cannot be read"):
        write_report(tmp_path / "r.html", tournament, [tmp_path / "a", *three[1:]])
    assert not (tmp_path / "r.html").exists()


def test_distributions_share_one_axis():
    """Scores 0, 0, 4 and 2, 4, 4 in forty bins from 0 to 4: two thirds in the first bin are the highest bar."""
    found = distribution_of(scored(a=[0.0, 0.0, 4.0], b=[2.0, 4.0, 4.0]), ["a", "b"], "judge")
    assert found.ticks == (0.0, 2.0, 4.0)
    first, second = found.rows
    assert first.path.startswith("M0 40V0.0H10.0V40.0H20.0") and first.path.endswith("V20.0H400.0V40Z")
    assert second.path.count("V20.0") == 1 and second.path.endswith("V0.0H400.0V40Z")
    assert np.allclose([first.mean, first.place], [4 / 3, 400 / 3]) and np.isclose(second.place, 1000 / 3)


def test_scores_that_are_all_the_same_have_an_axis():
    found = distribution_of(scored(a=[0.0, 0.0]), ["a"], "judge")
    assert found.ticks == (-0.5, 0.0, 0.5) and found.rows[0].place == 200


def test_several_runs(three, tournament, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        lines = [json.dumps({"step": i, "loss": 1.0 / i, "learning_rate": 1e-5}) for i in range(1, 40)]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines))
        (tmp_path / name / "config.yaml").write_text(f"train:\n  output: {name}\n")
    runs = [tmp_path / "one", tmp_path / "two"]
    html = write_report(tmp_path / "r.html", tournament, three, run=runs).read_text()
    assert html.count('aria-label="Loss"') == 2
    assert all(part in html for part in ("<h3>one</h3>", "<h3>two</h3>", "output: two", "Configuration of one"))
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids)), "two charts on one page must not use the same id"
