"""Many models: matrix, ranking, tables, and the command."""

import csv
import io
import json
from dataclasses import replace

import pytest
from judged import compare_two, record_of, write_comparison, write_folder
from rich.console import Console
from typer.testing import CliRunner

from diffpo.commands.app import app
from diffpo.compare.compare import Judging, compare
from diffpo.compare.export import latex, write_result
from diffpo.compare.p_values import holm
from diffpo.compare.ranking import rank_models
from diffpo.compare.stats import Resampling
from diffpo.compare.terminal import ranking_table, strata_table
from diffpo.errors import UserError

QUICK = Judging(resampling=Resampling(resamples=200))
LEVELS = {"base": 0.0, "sft": 0.4, "dpo": 1.5}
PROMPTS = [f"p{i}" for i in range(8)]


def wave(model, seed):
    """Scores that depend on prompt and model, so that each model loses at times."""
    return {
        prompt: [LEVELS[model] + (i * (3 + len(model)) + 2 * s + seed) % 5 / 2 for s in range(2)]
        for i, prompt in enumerate(PROMPTS)
    }


@pytest.fixture
def three(tmp_path):
    scores = {name: {"taste": wave(name, i), "size_%": wave(name, 2 * i + 1)} for i, name in enumerate(LEVELS)}
    return [write_folder(tmp_path / name, name, scores[name]) for name in LEVELS]


def printed(table):
    output = io.StringIO()
    Console(width=80, file=output).print(table)
    return output.getvalue()


def test_every_pair_and_one_scale(three):
    found = compare(three, judging=QUICK)
    assert found.models == ("base", "sft", "dpo")
    assert [(c.model, c.baseline) for c in found.comparisons] == [("sft", "base"), ("dpo", "base")]
    ranking = found.rankings[0]
    over = ranking.cell("dpo", "sft").win_rate
    assert over == compare_two(three, model="dpo", baseline="sft", judging=QUICK).results[0].win_rate
    assert ranking.cell("sft", "dpo").win_rate.estimate == pytest.approx(1 - over.estimate)
    assert ranking.cell("dpo", "dpo") is None and len(ranking.cells) == 3
    assert ranking.ranks[0].model == "dpo" and {r.model: r.elo for r in ranking.ranks}["base"] == 0.0
    assert found.headline.startswith("By taste, from the strongest, in Elo against base: dpo +")


def test_the_ranking_is_of_prompt_shares(three):
    """Two models only: the odds of the win rate, with half a prompt won for each."""
    found = compare(three, models=["base", "sft"], judging=QUICK)
    share = found.rankings[0].cell("sft", "base").win_rate.estimate
    by_hand = rank_models({("sft", "base"): dict.fromkeys(PROMPTS, share)}, ["base", "sft"])
    elo = {rank.model: rank.elo for rank in found.rankings[0].ranks}
    assert elo["sft"] == pytest.approx({rank.model: rank.elo for rank in by_hand}["sft"])


def test_holm_over_all_models_and_scorers(three):
    results = [result for c in compare(three, judging=QUICK).comparisons for result in c.results]
    assert len(results) == 4
    assert [r.adjusted_p for r in results] == holm([r.win_rate.p_value for r in results])


def test_baseline_and_models_by_name(three):
    found = compare(three, models=["dpo"], baseline="sft", judging=QUICK)
    assert found.models == ("sft", "dpo")
    with pytest.raises(UserError, match="no scores of 'dpoo'"):
        compare(three, models=["dpoo", "base"], judging=QUICK)
    with pytest.raises(UserError, match="need two models to compare, found base"):
        compare(three[:1], judging=QUICK)


def test_a_model_without_some_prompts(three, tmp_path):
    fewer = {prompt: scores for prompt, scores in wave("sft", 1).items() if prompt not in ("p0", "p1")}
    write_folder(three[1], "sft", {"taste": fewer})
    for mode, count in (("same-seed", "12 match"), ("all-pairs", "6 are common")):
        with pytest.raises(UserError, match=count):
            compare(three, judging=Judging(mode=mode, resampling=Resampling(resamples=200)))
    assert compare(three, models=["base", "dpo"], judging=QUICK).models == ("base", "dpo")


def test_models_that_score_alike_are_even(tmp_path):
    """All ties: even, no model ahead, and no certainty of that."""
    folders = [write_folder(tmp_path / name, name, {"x": wave("base", 0)}) for name in ("a", "b", "c")]
    ranking = compare(folders, judging=QUICK).rankings[0]
    assert [rank.elo for rank in ranking.ranks] == pytest.approx([0, 0, 0])
    assert all(rank.elo_low < 0 < rank.elo_high for rank in ranking.ranks if rank.model != "a")
    assert all(
        cell.win_rate.p_value == 1 and cell.win_rate.ci_low < 0.5 < cell.win_rate.ci_high for cell in ranking.cells
    )


def test_the_ranking_is_judged_as_the_comparisons_are(three):
    """Mode, the scorer that chooses, and what the user says of training reach every cell."""
    judging = Judging(
        mode="best-of-n", chosen_by="size_%", used_in_training=("taste",), resampling=Resampling(resamples=200)
    )
    found = compare(three, scorers=["taste"], judging=judging)
    (ranking,) = found.rankings
    for comparison in found.comparisons:
        assert ranking.cell(comparison.model, "base").win_rate == comparison.results[0].win_rate
        assert comparison.n_pairs == 8 and comparison.results[0].in_loop == ranking.in_loop != ""
    itself = compare(three, scorers=["taste"], judging=replace(judging, chosen_by=None)).rankings[0]
    assert itself.ranks != ranking.ranks


def test_rounding_moves_no_model(tmp_path):
    """Scores that differ by less than float32 can say are ties in the ranking, too."""
    scores = wave("base", 0)
    near = {prompt: [value * (1 + 1e-8) for value in values] for prompt, values in scores.items()}
    folders = [write_folder(tmp_path / n, n, {"x": s}) for n, s in (("a", scores), ("b", near), ("c", near))]
    ranking = compare(folders, judging=QUICK).rankings[0]
    assert [rank.elo for rank in ranking.ranks] == pytest.approx([0, 0, 0])


def test_votes_between_some(three, tmp_path):
    """No vote between base and dpo: they are ranked through sft, and not compared directly."""
    lines = ["model_a,model_b,prompt,choice", *(f"base,sft,{p},b" for p in "abc"), *(f"sft,dpo,{p},b" for p in "abd")]
    (tmp_path / "votes.csv").write_text("\n".join([*lines, "sft,dpo,e,a", "base,sft,d,a", ""]))
    found = compare(three, votes=tmp_path / "votes.csv", judging=QUICK)
    human = found.rankings[0]
    assert (human.scorer, human.cell("dpo", "base")) == ("human", None)
    assert [rank.model for rank in human.ranks] == ["dpo", "sft", "base"]
    assert [[r.scorer for r in c.results] for c in found.comparisons] == [
        ["human", "taste", "size_%"],
        ["taste", "size_%"],
    ]
    (tmp_path / "few.csv").write_text("model_a,model_b,prompt,choice\nbase,sft,a,b\nbase,sft,b,b\n")
    with pytest.raises(UserError, match="never compared with each other: base, sft; dpo"):
        compare(three, votes=tmp_path / "few.csv", judging=QUICK)


def test_json_holds_comparisons_as_before(three, tmp_path):
    found = compare(three, judging=QUICK)
    write_result(tmp_path / "all.json", found)
    value = json.loads((tmp_path / "all.json").read_text())
    assert value["models"] == list(found.models) and len(value["rankings"]) == 2
    assert value["comparisons"] == [record_of(comparison) for comparison in found.comparisons]


def test_csv_by_hand(three, tmp_path):
    judging = Judging(
        resampling=Resampling(resamples=200), categories={p: "even" if i % 2 else "odd" for i, p in enumerate(PROMPTS)}
    )
    found = compare_two(three[:2], judging=judging)
    write_comparison(tmp_path / "c.csv", found)
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert [(row["scorer"], row["category"]) for row in rows] == [
        (name, category) for name in ("taste", "size_%") for category in ("", "even", "odd")
    ]
    first = found.results[0]
    assert float(rows[0]["win_rate"]) == first.win_rate.estimate
    assert float(rows[0]["difference_detectable"]) == first.difference.detectable
    assert (rows[0]["adjustment"], rows[1]["adjustment"]) == ("holm", "benjamini-hochberg")
    assert (rows[1]["prompts"], rows[1]["model_mean"], rows[0]["model"]) == ("4", "", "sft")
    assert "even" in printed(strata_table(found))


def test_latex(three, tmp_path):
    judging = Judging(resampling=Resampling(resamples=200), used_in_training=("size_%",))
    write_result(tmp_path / "c.tex", compare(three, judging=judging))
    text = (tmp_path / "c.tex").read_text()
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert len(rows) == 5 and all(line.count(" & ") == 6 for line in rows)
    assert text.count(r"size\_\%$^*$") == 2 and r"dpo against base" in text and "used in training" in text
    assert text.count("{") == text.count("}")
    assert latex("a_b & 50% \\x{}\n^~#$<") == (
        r"a\_b \& 50\% \textbackslash{}x\{\} \textasciicircum{}\textasciitilde{}\#\$\textless{}"
    )


def test_the_ranking_for_the_terminal(three):
    text = printed(ranking_table(compare(three, judging=QUICK).rankings[0]))
    assert "dpo" in text and "Elo" in text and "+0 to +0" in text and "…" not in text


def test_the_command_ranks_and_writes(three, tmp_path):
    outs = [tmp_path / name for name in ("c.json", "c.csv", "c.tex")]
    given = [str(folder) for folder in three] + [word for out in outs for word in ("--out", str(out))]
    done = CliRunner().invoke(app, ["compare", *given, "--mode", "mean-over-seeds", "-s", "taste"])
    assert done.exit_code == 0, done.output
    assert "in Elo against base" in done.output and all(out.is_file() for out in outs)
    value = json.loads(outs[0].read_text())
    assert value["comparisons"][0]["mode"] == "mean-over-seeds" and value["comparisons"][0]["n_pairs"] == 8


def test_the_command_compares_two_with_categories_and_votes(three, tmp_path):
    sets = "prompt,category\n" + "".join(f"{p},{'cats' if i % 2 else 'dogs'}\n" for i, p in enumerate(PROMPTS))
    (tmp_path / "set.csv").write_text(sets)
    (tmp_path / "votes.csv").write_text("model_a,model_b,prompt,choice\n" + "base,dpo,p0,b\ndpo,base,p1,a\n")
    given = [*map(str, three), "--model", "dpo", "--baseline", "base", "--category", str(tmp_path / "set.csv")]
    given += ["--human", str(tmp_path / "votes.csv"), "--used-in-training", "taste", "--out", str(tmp_path / "c.json")]
    done = CliRunner().invoke(app, ["compare", *given])
    assert done.exit_code == 0, done.output
    assert "by category, judged by human" in done.output and "no independent evidence" in done.output
    human, other, *_ = json.loads((tmp_path / "c.json").read_text())["results"]
    assert human["scorer"] == "human" and [s["category"] for s in other["strata"]] == ["cats", "dogs"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mode", "worst"], "unknown mode 'worst'"),
        (["--out", "c.xls"], "ending in .json, .csv, .tex"),
        (["--out", "nowhere/c.json"], "no folder nowhere"),
        (["--model", "x"], "no scores of 'x'"),
    ],
)
def test_mistakes_of_the_command(three, words, message):
    done = CliRunner().invoke(app, ["compare", *map(str, three), *words])
    assert isinstance(done.exception, UserError) and message in str(done.exception)
