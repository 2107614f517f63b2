"""Comparison by other pairings, per category, by people, and by scorers that had a hand in training."""

import json

import pytest
import yaml
from judged import compare_two, write_comparison, write_folder

from diffpo.compare.compare import Judging
from diffpo.compare.p_values import holm
from diffpo.compare.stats import Resampling
from diffpo.errors import UserError
from diffpo.scorers.scores import ScoreTable, read_scores, write_scores

BASE = {"p": [1.0, 2.0, 3.0], "q": [5.0, 5.0, 5.0], "r": [0.0, 1.0, 2.0]}
TUNED = {"p": [2.0, 1.0, 9.0], "q": [4.0, 6.0, 5.0], "r": [1.0, 2.0, 3.0]}


@pytest.fixture
def two(tmp_path):
    """(base, tuned), by one scorer that means it and one that likes the opposite."""
    flip = {name: [-x for x in values] for name, values in BASE.items()}
    other = {name: [-x for x in values] for name, values in TUNED.items()}
    return [
        write_folder(tmp_path / "base", "base", {"taste": BASE, "distaste": flip}),
        write_folder(tmp_path / "tuned", "tuned", {"taste": TUNED, "distaste": other}),
    ]


def test_scores_of_frames_are_found_by_their_scorers_name_and_say_what_they_are(tmp_path):
    """A headline, a chooser and a declaration that name `taste` mean `taste@frames`, which is what readers see."""
    folders = [write_folder(tmp_path / m, m, {"taste@frames": x}) for m, x in (("base", BASE), ("tuned", TUNED))]
    judging = Judging(mode="best-of-n", chosen_by="taste", used_in_training=("taste",))
    (result,) = compare_two(folders, scorers=["taste"], judging=judging).results
    assert result.scorer == "taste@frames" and result.in_loop.startswith("taste was used in training")
    assert compare_two(folders).headline.count("taste@frames") == 1


@pytest.mark.parametrize(
    ("mode", "estimate", "wins", "pairs"),
    [
        ("same-seed", (2 / 3 + 1 / 2 + 1) / 3, 2 + 1 + 3, 9),
        # p: 2 beats 1, ties 2; 1 ties 1; 9 beats all: (1.5 + 0.5 + 3) / 9. q: one win, one tie of three: 1/2.
        # r: 1 beats 0, ties 1; 2 beats 0 and 1, ties 2; 3 beats all: (1.5 + 2.5 + 3) / 9.
        ("all-pairs", (5 / 9 + 1 / 2 + 7 / 9) / 3, (1 + 0 + 3) + 3 + (1 + 2 + 3), 27),
        ("median-image", (0.5 + 0.5 + 1) / 3, 1, 3),
        ("best-of-n", 1.0, 3, 3),
        ("mean-over-seeds", (1 + 0.5 + 1) / 3, 2, 3),
    ],
)
def test_modes_by_hand(two, mode, estimate, wins, pairs):
    found = compare_two(two, scorers=["taste"], judging=Judging(mode=mode))
    assert found.results[0].win_rate.estimate == pytest.approx(estimate)
    assert (found.results[0].win_rate.wins, found.n_pairs, found.mode) == (wins, pairs, mode)


def test_another_scorer_chooses(two):
    """`distaste` likes best what `taste` likes least: 1 of 1, 4 against 5, 1 against 0."""
    found = compare_two(two, scorers=["taste"], judging=Judging(mode="best-of-n", chosen_by="distaste"))
    rate = found.results[0].win_rate
    assert (rate.wins, rate.ties, rate.losses) == (1, 1, 1)
    with pytest.raises(UserError, match="same-seed chooses no image"):
        Judging(chosen_by="distaste")
    with pytest.raises(UserError, match=r"same scorer \(nobody\)"):
        compare_two(two, judging=Judging(mode="best-of-n", chosen_by="nobody"))
    assert "rewards spread" in " ".join(compare_two(two, judging=Judging(mode="best-of-n")).notes)


def test_the_scorer_that_chooses_must_be_one_and_the_same(two):
    table = read_scores(two[1])
    other = {**table.provenance, "distaste": {"scorer": "distaste", "weights": "of another day"}}
    write_scores(two[1] / "scores.parquet", ScoreTable(table.rows, other))
    assert compare_two(two, scorers=["taste"], judging=Judging(mode="best-of-n", chosen_by="taste"))
    with pytest.raises(UserError, match=r"scores of distaste were made differently for the models \(weights\)"):
        compare_two(two, scorers=["taste"], judging=Judging(mode="best-of-n", chosen_by="distaste"))


def test_holm_over_the_scorers(two):
    results = compare_two(two).results
    assert [result.adjusted_p for result in results] == holm([result.win_rate.p_value for result in results])


def test_what_could_have_been_found_is_in_the_notes(two, tmp_path):
    few = compare_two(two, scorers=["taste"])
    assert "3 prompts cannot tell: p is 0.25 at the least" in " ".join(few.notes)
    scores = {f"{prompt}{i}": values for i in range(4) for prompt, values in TUNED.items()}
    base = {f"{prompt}{i}": values for i in range(4) for prompt, values in BASE.items()}
    folders = [write_folder(tmp_path / name, name, {"x": each}) for name, each in (("a", base), ("b", scores))]
    found = compare_two(folders)
    points = 100 * found.results[0].win_rate.detectable
    assert points > 0 and f"{points:.1f} points from even in 80%" in " ".join(found.notes)


def test_three_prompts_are_no_verdict(tmp_path):
    """All won, by whatever: p = 2/8. Six won are 2/64."""
    for n, verdict in ((3, "unclear"), (5, "unclear"), (6, "better")):
        folders = [
            write_folder(
                tmp_path / f"{n}{name}", name, {"x": {f"p{i}": [score, score, score if i % 2 else 0] for i in range(n)}}
            )
            for name, score in (("base", 1.0), ("tuned", 1.5))
        ]
        found = compare_two(folders)
        assert found.results[0].win_rate.ci_low > 0.5 and found.verdict == verdict


def test_one_image_passed_or_failed_is_mcnemars(tmp_path):
    """a alone passes 5 of 20, b alone 1: p = 14/64."""
    a, b = [1] * 14 + [1] * 5 + [0], [1] * 14 + [0] * 5 + [1]
    folders = [
        write_folder(tmp_path / name, name, {"pass": {f"p{i}": [float(x)] for i, x in enumerate(values)}})
        for name, values in (("b", b), ("a", a))
    ]
    rate = compare_two(folders).results[0].win_rate
    assert (rate.test, rate.p_value) == ("mcnemar", pytest.approx(14 / 64))


def test_categories_of_the_folders_and_of_the_caller(two, tmp_path):
    lines = [{"prompt": "p", "category": "cats"}, {"prompt": "q", "category": "dogs"}, {"prompt": "r"}]
    (two[0] / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    cats, dogs = compare_two(two, scorers=["taste"]).results[0].strata
    assert (cats.category, cats.win_rate.estimate, cats.difference.estimate) == ("cats", pytest.approx(2 / 3), 2.0)
    assert (dogs.category, dogs.win_rate.estimate, dogs.win_rate.n_prompts) == ("dogs", 0.5, 1)
    named = Judging(categories={"p": "x", "q": "y", "r": "x"})
    found = compare_two(two, scorers=["taste"], judging=named)
    assert [stratum.win_rate.n_prompts for stratum in found.results[0].strata] == [2, 1]
    write_comparison(tmp_path / "c.json", found)
    assert compare_two(two, judging=Judging(categories={"p": "all"})).results[0].strata == ()


VOTES = "model_a,model_b,prompt,choice,user_id\n" + "".join(
    f"{line}\n"
    for line in (
        "base,tuned,p,b,ann",
        "base,tuned,q,b,ann",
        "tuned,base,p,a,bob",
        "tuned,base,r,b,bob",
        "base,tuned,r,tie,cyd",
    )
)


def test_people_are_asked_first(two, tmp_path):
    """Shares of the tuned model: p 1, 1; q 1; r 0, 1/2. Means 1, 1, 1/4; users ann 1, bob 1/2, cyd 1/2."""
    (tmp_path / "votes.csv").write_text(VOTES)
    found = compare_two(two, votes=tmp_path / "votes.csv")
    assert [result.scorer for result in found.results] == ["human", "taste", "distaste"]
    human = found.results[0]
    assert human.win_rate.estimate == pytest.approx(2.25 / 3) and found.n_pairs == 5
    assert human.model_mean == pytest.approx(0.75) and human.difference.estimate == pytest.approx(0.5)
    assert human.users and human.users.macro.estimate == pytest.approx(2 / 3) and human.users.n_users == 3
    assert "Judged by people, tuned wins 75.0% of 5 votes" in found.headline
    assert "Over 3 users" in " ".join(found.notes) and human.provenance["votes"] == 5
    write_comparison(tmp_path / "c.json", found)


def test_the_interval_over_users_is_as_asked(two, tmp_path):
    (tmp_path / "votes.csv").write_text(VOTES)
    ends = {
        level: compare_two([], votes=tmp_path / "votes.csv", judging=Judging(resampling=Resampling(level=level)))
        .results[0]
        .users.macro.ci_low
        for level in (0.2, 0.95)
    }
    assert ends[0.2] > ends[0.95]


def test_votes_of_somebody_unknown_make_no_users(tmp_path):
    (tmp_path / "votes.csv").write_text(VOTES.replace("bob", ""))
    found = compare_two([], votes=tmp_path / "votes.csv")
    assert found.results[0].users is None and "users" not in " ".join(found.notes)


def test_votes_alone_are_a_comparison(tmp_path):
    (tmp_path / "votes.csv").write_text(VOTES)
    found = compare_two([], votes=tmp_path / "votes.csv")
    assert (found.baseline, found.model, len(found.results)) == ("base", "tuned", 1)
    with pytest.raises(UserError, match="nothing to compare"):
        compare_two([])


def trained(folder, path, model=None):
    """A run folder of `diffpo train`."""
    (folder / "final").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"path": str(path)}, "model": model or {}}))
    return folder


def scored_table(folder, scorer, source=None):
    folder.mkdir()
    record = {"recipe": {"scorer": {"scorer": scorer}}, "source": source or "elsewhere"}
    (folder / "train.provenance.json").write_text(json.dumps(record))
    return folder


def test_the_scorer_that_labelled_the_pairs_is_flagged(tmp_path):
    """The tuned model learned from a table that `taste` scored, made of one that `older` scored; its start, another."""
    earlier = {
        "path": "x",
        "provenance": {"recipe": {"scorer": {"scorer": "older"}}, "source": {"path": "shapes:pairs"}},
    }
    start = trained(tmp_path / "sft", scored_table(tmp_path / "first", "elder"))
    run = trained(
        tmp_path / "dpo",
        scored_table(tmp_path / "pairs", "taste", earlier),
        {"denoiser": str(start / "final" / "unet")},
    )
    scores = {name: BASE for name in ("taste", "older", "elder", "shapes-utility", "clean")}
    folders = [
        write_folder(tmp_path / "b", "base", scores),
        write_folder(tmp_path / "t", "tuned", scores, {"tuned": str(run / "final")}),
    ]
    found = compare_two(folders, judging=Judging(used_in_training=("clean",)))
    warned = {result.scorer: result.in_loop for result in found.results}
    assert warned["taste"] == "taste labelled the training pairs of tuned: a gain on it is no independent evidence."
    assert all(warned[name].startswith(f"{name} labelled") for name in ("older", "elder", "shapes-utility"))
    assert warned["clean"].startswith("clean was used in training or selection")
    assert "But taste labelled" in found.headline and "Taste labelled the training pairs" in found.notes[0]
    assert compare_two(folders[:1] + folders[1:], scorers=["clean"]).results[0].in_loop == ""


@pytest.mark.parametrize("given", ["tuned", "denoiser", "lora"])
@pytest.mark.parametrize("began", ["denoiser", "lora"])
def test_every_way_from_one_run_to_another(tmp_path, given, began):
    """A media folder's model, and what a run starts from, may be a folder of weights or a LoRA."""
    start = trained(tmp_path / "first", scored_table(tmp_path / "pairs", "taste"))
    run = trained(tmp_path / "second", "human/pairs", {began: str(start / "final")})
    folders = [
        write_folder(tmp_path / "b", "base", {"taste": BASE}),
        write_folder(tmp_path / "t", "tuned", {"taste": TUNED}, {given: str(run / "final" / "unet")}),
    ]
    assert compare_two(folders).results[0].in_loop.startswith("taste labelled the training pairs of tuned")


def test_a_run_that_has_moved_is_said_to_be_unknown(tmp_path):
    folders = [
        write_folder(tmp_path / "b", "base", {"taste": BASE}),
        write_folder(tmp_path / "t", "tuned", {"taste": TUNED}, {"tuned": str(tmp_path / "elsewhere" / "run")}),
    ]
    notes = " ".join(compare_two(folders).notes)
    assert "The run that made tuned is not at .../run any more" in notes and "--used-in-training" in notes


def test_runs_that_tell_nothing_and_one_that_is_damaged(tmp_path):
    gone = [
        write_folder(tmp_path / "b", "base", {"taste": BASE}, {"tuned": None}),
        write_folder(tmp_path / "t", "tuned", {"taste": TUNED}, {"tuned": str(tmp_path / "moved")}),
    ]
    assert compare_two(gone).results[0].in_loop == ""
    write_folder(tmp_path / "t", "tuned", {"taste": TUNED}, {"tuned": str(trained(tmp_path / "run", "human/pairs"))})
    assert compare_two(gone).results[0].in_loop == ""
    (tmp_path / "run" / "config.yaml").write_text("data: [")
    with pytest.raises(UserError, match=r"config.yaml is damaged"):
        compare_two(gone)


def test_one_prompt_only(tmp_path):
    folders = [write_folder(tmp_path / name, name, {"taste": {"p": [1.0, 2.0]}}) for name in ("base", "tuned")]
    with pytest.raises(UserError, match=r"taste judged one prompt only \('p'\)"):
        compare_two(folders)


def test_other_prompts_in_modes_that_pair_no_seeds(two, tmp_path):
    more = write_folder(tmp_path / "more", "more", {"taste": {**TUNED, "s": [1.0]}})
    with pytest.raises(UserError, match="3 are common, 1 only the model's"):
        compare_two([two[0], more], judging=Judging(mode="all-pairs"))
    with pytest.raises(UserError, match="9 match; others: 1 of more, 0 of base"):
        compare_two([two[0], more])


@pytest.mark.parametrize(
    "make", [lambda: Judging(mode="worst"), lambda: Resampling(level=1.0), lambda: Resampling(resamples=0)]
)
def test_ways_that_there_are_not(make):
    with pytest.raises(UserError, match=r"unknown mode|between 0 and 1"):
        make()


def test_the_prompt_sets_hash_is_in_the_result(tmp_path):
    known = {"prompts": "drawbench", "prompts_hash": "abc"}
    folders = [write_folder(tmp_path / name, name, {"x": BASE}, known) for name in ("a", "b")]
    assert compare_two(folders).prompt_set == "drawbench, hash abc"
    write_folder(tmp_path / "b", "b", {"x": BASE}, {**known, "prompts_hash": "def"})
    found = compare_two(folders)
    assert found.prompt_set == "drawbench, hash abc; drawbench, hash def"
    write_comparison(tmp_path / "c.json", found)
    write_folder(tmp_path / "a", "a", {"x": BASE})
    assert compare_two(folders).prompt_set == "drawbench, hash def"
