"""Comparison of two scored folders."""

import io
import json
import shutil
from dataclasses import replace

import pytest
from judged import compare_two, write_comparison, write_folder
from rich.console import Console

from diffpo.compare.evidence import read_evidence
from diffpo.compare.terminal import comparison_table
from diffpo.errors import UserError
from diffpo.scorers.scores import read_scores, write_scores


@pytest.fixture
def edited(folders, tmp_path):
    """Copies of both folders, and a way to change the table of one."""
    copies = [shutil.copytree(folder, tmp_path / folder.name) for folder in folders]

    def edit(which, change):
        table = read_scores(copies[which])
        write_scores(copies[which] / "scores.parquet", change(table))
        return copies

    return edit


def printed(table) -> str:
    output = io.StringIO()
    Console(width=80, file=output).print(table)
    return output.getvalue()


def test_means_and_win_rate_by_hand(folders):
    comparison = compare_two(folders)
    assert (comparison.baseline, comparison.model) == ("base", "tuned")
    assert (comparison.n_prompts, comparison.n_pairs) == (6, 12)
    assert [result.scorer for result in comparison.results] == ["shapes-utility", "shapes"]
    utility = comparison.results[0]
    before, after = ([r.score for r in read_scores(f).rows if r.scorer == "shapes-utility"] for f in folders)
    assert utility.baseline_mean == pytest.approx(sum(before) / 12)
    assert utility.model_mean == pytest.approx(sum(after) / 12)
    assert utility.difference.estimate == pytest.approx((sum(after) - sum(before)) / 12)
    assert utility.win_rate.wins == sum(a > b for a, b in zip(after, before, strict=True))
    assert comparison.results[1].win_rate.ties == 12  # both draw what the caption says


def test_the_headline_says_who_how_much_how_sure(folders):
    forth, back = compare_two(folders), compare_two(folders, model="base", baseline="tuned")
    assert forth.verdict == "better" and forth.headline.startswith(
        "tuned beats base. Judged by shapes-utility, tuned wins"
    )
    assert "95% interval" in forth.headline and "12 comparisons" in forth.headline
    assert back.verdict == "worse" and back.headline.startswith("base loses to tuned.")
    even = compare_two(folders, scorers=["shapes"])
    assert even.verdict == "unclear" and even.headline.startswith("No clear difference")


def test_notes_say_what_limits_the_numbers(folders, edited):
    notes = " ".join(compare_two(folders).notes)
    assert "Only 6 prompts" in notes and "share the same 2 seeds" in notes and "2 scorers" in notes
    assert "sampled differently" not in notes
    copies = edited(1, lambda table: table)
    settings = json.loads((copies[1] / "settings.json").read_text())
    (copies[1] / "settings.json").write_text(json.dumps({**settings, "steps": 50}))
    assert "base and tuned were sampled differently, and the scores show both: steps 25 and 50." in " ".join(
        compare_two(copies).notes
    )


@pytest.mark.parametrize(
    "key",
    [
        "weights",
        "prompts_hash",
        "scheduler",
        "steps",
        "guidance",
        "size",
        "negative_prompt",
        "dtype",
        "device",
        "batch",
    ],
)
def test_every_difference_in_sampling_is_said(tmp_path, key):
    scores = {f"p{i}": [float(i)] for i in range(3)}
    folders = [write_folder(tmp_path / n, n, {"x": scores}, {key: f"of {n}"}) for n in ("a", "b")]
    assert f"the scores show both: {key} of a and of b." in " ".join(compare_two(folders).notes)


def test_noise_of_each_prompt_is_no_shared_noise(edited):
    copies = edited(0, lambda t: replace(t, rows=[replace(r, seed=r.seed + 10 * r.prompt_id) for r in t.rows]))
    edited(1, lambda t: replace(t, rows=[replace(r, seed=r.seed + 10 * r.prompt_id) for r in t.rows]))
    assert "share the same" not in " ".join(compare_two(copies).notes)


def test_sampling_that_is_not_known(edited):
    copies = edited(1, lambda table: table)
    (copies[1] / "settings.json").unlink()
    notes = " ".join(compare_two(copies).notes)
    assert "How the images of tuned were sampled is not known" in notes and "sampled differently" not in notes


def test_rounding_is_no_win(edited):
    copies = edited(1, lambda t: replace(t, rows=[replace(r, score=r.score * (1 + 1e-8)) for r in t.rows]))
    assert compare_two(copies, scorers=["shapes"]).results[0].win_rate.ties == 12


def test_all_is_in_json(folders, tmp_path):
    record = write_comparison(tmp_path / "comparison.json", compare_two(folders))
    assert record["verdict"] == "better" and record["results"][1]["scorer"] == "shapes"


def test_what_is_not_known_is_null_in_json(folders, tmp_path):
    comparison = compare_two(folders, scorers=["shapes"])  # all ties: the spread is not known
    assert write_comparison(tmp_path / "even.json", comparison)["results"][0]["difference"]["detectable"] is None


def test_the_table_for_the_terminal(folders):
    text = printed(comparison_table(compare_two(folders)))
    assert "tuned against base: 6 prompts, 12 comparisons" in text
    assert "shapes-utility" in text and "0/12/0" in text
    assert "…" not in text, "80 columns must be enough"


def test_labels_are_text_not_markup(edited):
    copies = edited(1, lambda t: replace(t, rows=[replace(r, model="[bold]x[/nothing]") for r in t.rows]))
    assert "[bold]x[/nothing]" in printed(comparison_table(compare_two(copies)))


def test_an_image_with_two_scores(edited):
    copies = edited(1, lambda t: replace(t, rows=[*t.rows, replace(t.rows[0], file="again.png", score=9.0)]))
    with pytest.raises(UserError, match=r"tuned has two scores of shapes-utility for the prompt .* seed 0"):
        compare_two(copies, scorers=["shapes-utility"])


def test_sets_that_do_not_match(edited):
    copies = edited(1, lambda t: replace(t, rows=[r for r in t.rows if (r.prompt_id, r.seed) != (4, 1)]))
    with pytest.raises(UserError, match="11 match; others: 0 of tuned, 1 of base"):
        compare_two(copies)


def test_pairs_are_by_prompt_and_seed_whatever_the_order(edited, folders):
    copies = edited(1, lambda t: replace(t, rows=t.rows[::-1]))
    mixed, as_before = (
        read_evidence(places).pairs("shapes-utility", "tuned", "base", "same-seed") for places in (copies, folders)
    )
    assert mixed.prompts == as_before.prompts and mixed.model.tolist() == as_before.model.tolist()
    assert compare_two(copies).results[0].win_rate == compare_two(folders).results[0].win_rate


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "tund"}, "no scores of 'tund'; there are those of base, tuned"),
        ({"model": "base"}, None),
        ({"model": "base", "baseline": "base"}, "with itself"),
        ({"scorers": ["pickscore"]}, r"same scorer \(pickscore\).*base has shapes, shapes-utility"),
    ],
)
def test_names(folders, options, message):
    if message is None:  # one name is enough: the other is the one that is left
        assert compare_two(folders, **options).baseline == "tuned"
        return
    with pytest.raises(UserError, match=message):
        compare_two(folders, **options)


def test_sources_that_cannot_be_compared(folders, edited):
    with pytest.raises(UserError, match="need two models"):
        compare_two(folders[:1])
    with pytest.raises(UserError, match="both call their model 'base'"):
        compare_two([folders[0], folders[0]])
    copies = edited(1, lambda t: replace(t, provenance={**t.provenance, "shapes": {"code": "older"}}))
    with pytest.raises(UserError, match=r"scores of shapes were made differently.*code"):
        compare_two(copies)
