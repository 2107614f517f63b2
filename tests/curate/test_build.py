"""Pairs made of generated images: who meets whom, who wins, what stands in the table."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from shapes_builder.make_pairs import plan_pairs
from shapes_builder.sampling import sample_scenes

from diffpo.curate import write
from diffpo.curate.build import Output, build_by_choices, build_by_scores
from diffpo.curate.pairing import Candidate, Pairing
from diffpo.data import Pairs, load_splits
from diffpo.errors import UserError
from diffpo.media.folder import Media, read_media, write_manifest
from diffpo.media.frames import decode
from diffpo.scorers import ShapesUtility, ShapesVerifier
from diffpo.scorers.scores import ScoreRow, ScoreTable, score_folder, write_scores
from diffpo.worlds.shapes.annotators import utility
from diffpo.worlds.shapes.render import render
from diffpo.worlds.shapes.scenes import parse_caption, sample_prompts


@pytest.fixture
def media(tmp_path):
    """Write a media folder: what a model that draws each prompt, and sometimes another one, would make."""

    def make(label: str, prompts: int = 3, seeds: int = 3, first: int = 0) -> Path:
        folder = tmp_path / label
        folder.mkdir()
        made = []
        for i, prompt in enumerate(sample_prompts("train", first + prompts)[first:]):
            for seed in range(seeds):
                generator = torch.Generator().manual_seed(1000 * i + seed + 7 * len(label))
                item = Media(file=f"{i:06d}-s{seed}.png", prompt=prompt, prompt_id=i, seed=seed, model=label)
                scene = sample_scenes([parse_caption(prompt)], generator)[0]
                Image.fromarray(render(scene)).save(folder / item.file)
                made.append(item)
        write_manifest(folder, made)
        return folder

    return make


def set_scores(folder: Path, scores: list[float], name: str = "taste") -> None:
    """Give the images of a folder scores by hand, in the order of its manifest."""
    rows = [ScoreRow.of(item, name, score) for item, score in zip(read_media(folder), scores, strict=True)]
    write_scores(folder / "scores.parquet", ScoreTable(rows, {name: {"scorer": name}}))


def never():
    raise AssertionError("these scores were there")


def table(folder: Path, ties: str = "keep") -> list[dict]:
    """All columns of a written table, those that only a reader of the file sees included."""
    import datasets

    load_splits(Pairs(path=str(folder), ties=ties))  # what training reads
    files = sorted(map(str, folder.glob("*.parquet")))
    rows = datasets.load_dataset("parquet", data_files=files, split="train")
    return list(
        rows.cast_column("chosen", datasets.Image(decode=False)).cast_column("rejected", datasets.Image(decode=False))
    )


def seeds(rows: list[dict]) -> list[tuple[int, int]]:
    return [(row["chosen_seed"], row["rejected_seed"]) for row in rows]


def test_best_against_worst_by_hand(media, tmp_path):
    base = media("base")
    set_scores(base, [0.1, 0.9, 0.5, 0.3, 0.2, 0.2, 0.7, 0.7, 0.7])
    out = tmp_path / "pairs"
    built = build_by_scores([base], "taste", never, Pairing(), Output(out))
    rows = table(out)
    assert seeds(rows) == [(1, 0), (0, 2)]  # of equally bad ones the last; the third prompt is a tie
    assert (built.pairs, built.prompts, built.ties, built.single) == (2, 2, 1, 0)
    assert [row["prompt"] for row in rows] == sample_prompts("train", 2)
    assert [(row["chosen_score"], row["rejected_score"]) for row in rows] == [(0.9, 0.1), (0.3, 0.2)]
    assert {(row["chosen_model"], row["rejected_model"]) for row in rows} == {("base", "base")}
    assert "preference" not in rows[0] and "user_id" not in rows[0]
    for row in rows:
        for side in ("chosen", "rejected"):
            assert row[side]["bytes"] == (tmp_path / row[side]["path"]).read_bytes()  # not encoded anew


def test_all_against_all_with_a_margin(media, tmp_path):
    """Differences 0.8, 0.4, 0.4; 0.1, 0.1, 0; 0.3, 0.05, 0.35: five reach 0.25."""
    base = media("base")
    set_scores(base, [0.1, 0.9, 0.5, 0.3, 0.2, 0.2, 0.4, 0.7, 0.35])
    pairing = Pairing(strategy="all", margin=0.25)
    built = build_by_scores([base], "taste", never, pairing, Output(tmp_path / "dropped"))
    rows = table(tmp_path / "dropped")
    assert seeds(rows) == [(1, 0), (2, 0), (1, 2), (1, 0), (1, 2)]
    assert (built.pairs, built.prompts, built.ties) == (5, 2, 4)
    built = build_by_scores([base], "taste", never, pairing, Output(tmp_path / "kept", ties="keep"))
    kept = table(tmp_path / "kept")
    assert (built.pairs, built.prompts, built.ties) == (9, 3, 4)
    assert [row["preference"] for row in kept] == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 1.0, 0.5, 1.0]
    assert seeds(kept)[3:6] == [(0, 1), (0, 2), (1, 2)]
    assert len(load_splits(Pairs(path=str(tmp_path / "kept"))).train) == 5


def test_several_models_meet_at_the_same_prompt_only(media, tmp_path):
    """The second folder begins one prompt later, so its prompt numbers mean other prompts."""
    base, tuned = media("base", prompts=2, seeds=1), media("tuned", prompts=2, seeds=1, first=1)
    set_scores(base, [0.1, 0.2])
    set_scores(tuned, [0.8, 0.9])
    built = build_by_scores([base, tuned], "taste", never, Pairing(strategy="all"), Output(tmp_path / "pairs"))
    rows = table(tmp_path / "pairs")
    assert [row["prompt"] for row in rows] == [sample_prompts("train", 2)[1]]
    assert (rows[0]["chosen_model"], rows[0]["rejected_model"], rows[0]["chosen_score"]) == ("tuned", "base", 0.8)
    assert built.single == 2


def test_scores_that_are_there_are_taken_and_others_made(media, tmp_path):
    base, tuned = media("base"), media("tuned")
    by_hand = [utility(Image.open(base / item.file), item.prompt) for item in read_media(base)]
    score_folder(base, [ShapesVerifier()])
    build_by_scores([base, tuned], "shapes-utility", ShapesUtility, Pairing(), Output(tmp_path / "first"))
    record = json.loads((tmp_path / "first" / "train.provenance.json").read_text())
    assert record["recipe"]["scorer"] == ShapesUtility().provenance
    build_by_scores([base, tuned], "shapes-utility", never, Pairing(), Output(tmp_path / "second"))
    assert table(tmp_path / "first") == table(tmp_path / "second")
    score_of = {item.file: score for item, score in zip(read_media(base), by_hand, strict=True)}
    for row in table(tmp_path / "first"):
        assert row["chosen_score"] > row["rejected_score"]
        if row["chosen_model"] == "base":
            assert row["chosen_score"] == pytest.approx(score_of[Path(row["chosen"]["path"]).name], abs=1e-6)


def test_scores_of_other_images_or_of_another_judge_are_not_taken(media, tmp_path):
    base, tuned = media("base"), media("tuned")
    score_folder(base, [ShapesUtility(annotator="ada")])
    score_folder(tuned, [ShapesUtility(annotator="ben")])
    asked = []

    def make():
        asked.append(1)
        return ShapesUtility()

    build_by_scores([base, tuned], "shapes-utility", make, Pairing(), Output(tmp_path / "a"))
    assert len(asked) == 1
    Image.new("RGB", (64, 64), "red").save(base / read_media(base)[0].file)
    build_by_scores([base, tuned], "shapes-utility", make, Pairing(), Output(tmp_path / "b"))
    assert len(asked) == 2


def test_an_image_that_cannot_be_decoded_is_left_out(media, tmp_path):
    base = media("base", prompts=1)
    (base / read_media(base)[1].file).write_bytes(b"no image")
    built = build_by_scores([base], "shapes-utility", ShapesUtility, Pairing(strategy="all"), Output(tmp_path / "out"))
    assert built.pairs == 1 and {*seeds(table(tmp_path / "out"))[0]} == {0, 2}


def test_the_same_folders_give_the_same_bytes(media, tmp_path):
    base = media("base")
    set_scores(base, [0.1, 0.9, 0.5, 0.3, 0.2, 0.2, 0.7, 0.7, 0.7])
    for name in ("a", "b", "b"):
        build_by_scores([base], "taste", never, Pairing(strategy="all"), Output(tmp_path / name))
    assert (tmp_path / "a/train-00000-of-00001.parquet").read_bytes() == (
        tmp_path / "b/train-00000-of-00001.parquet"
    ).read_bytes()


def test_a_large_table_is_cut_into_files(media, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "SHARD_BYTES", 3000)
    monkeypatch.setattr(write, "GROUP_ROWS", 2)
    base = media("base")
    set_scores(base, [float(i) for i in range(9)])
    build_by_scores([base], "taste", never, Pairing(strategy="all"), Output(tmp_path / "pairs"))
    files = sorted(path.name for path in (tmp_path / "pairs").glob("*.parquet"))
    assert len(files) > 1 and files[-1] == f"train-{len(files) - 1:05d}-of-{len(files):05d}.parquet"
    assert seeds(table(tmp_path / "pairs")) == [(1, 0), (2, 0), (2, 1)] * 3


def test_what_stands_there_is_not_replaced_unasked(media, tmp_path):
    base = media("base")
    set_scores(base, [float(i) for i in range(9)])
    out = tmp_path / "pairs"
    build_by_scores([base], "taste", never, Pairing(), Output(out))
    with pytest.raises(UserError, match=r"other settings .*--fresh"):
        build_by_scores([base], "taste", never, Pairing(strategy="all"), Output(out))
    assert len(table(out)) == 3
    build_by_scores([base], "taste", never, Pairing(strategy="all"), Output(out, fresh=True))
    assert len(table(out)) == 9
    with pytest.raises(UserError, match="holds other files"):
        build_by_scores([base], "taste", never, Pairing(), Output(base, fresh=True))
    assert len(read_media(base)) == 9


def test_what_cannot_become_pairs(media, tmp_path):
    base, out = media("base", seeds=1), Output(tmp_path / "pairs")
    set_scores(base, [1.0, 2.0, 3.0])
    with pytest.raises(UserError, match=r"no pair comes of 3 images: 0 pairs are ties and 3 prompts have one image"):
        build_by_scores([base], "taste", never, Pairing(), out)
    with pytest.raises(UserError, match="given twice"):
        build_by_scores([base, tmp_path / "." / "base"], "taste", never, Pairing(), out)
    with pytest.raises(UserError, match="no media folder"):
        build_by_scores([tmp_path / "none"], "taste", never, Pairing(), out)
    with pytest.raises(UserError, match="margin is -1"):
        Pairing(margin=-1)
    assert not out.folder.exists()


@pytest.fixture
def choices(tmp_path):
    def write_lines(*lines: str) -> Path:
        path = tmp_path / "choices.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write_lines


def test_choices_of_people(media, choices, tmp_path):
    base, tuned = media("base"), media("tuned")
    prompt = read_media(base)[0].prompt
    path = choices(
        "prompt_id,prompt,file_0,file_1,choice,user_id",
        "0,,base/000000-s0.png,tuned/000000-s0.png,1,ada",
        f'0,"{prompt}",{base}/000000-s0.png,base/000000-s1.png, TIE ,ben',
        "2,,tuned/000002-s2.png,base/000002-s1.png,0,",
    )
    built = build_by_choices([base, tuned], path, Output(tmp_path / "pairs"))
    rows = table(tmp_path / "pairs")
    sides = [(row["chosen"]["path"], row["rejected"]["path"], row["user_id"]) for row in rows]
    assert sides == [
        ("tuned/000000-s0.png", "base/000000-s0.png", "ada"),
        ("tuned/000002-s2.png", "base/000002-s1.png", None),
    ]
    assert (built.pairs, built.ties) == (2, 1)
    assert not {"chosen_score", "preference"} & rows[0].keys()
    build_by_choices([base, tuned], path, Output(tmp_path / "kept", ties="keep"))
    kept = table(tmp_path / "kept")
    assert [row["preference"] for row in kept] == [1.0, 0.5, 1.0]
    assert kept[1]["prompt"] == prompt and seeds(kept)[1] == (0, 1)


def test_of_one_folder_the_names_of_the_manifest_are_enough(media, choices, tmp_path):
    base = media("base")
    build_by_choices([base], choices("file_0,file_1,choice", "000000-s0.png,000000-s2.png,1"), Output(tmp_path / "p"))
    assert seeds(table(tmp_path / "p")) == [(2, 0)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("file_0,choice", "000000-s0.png,1"), r"has the columns file_0, choice; needed are file_0, file_1, choice"),
        (("file_0,file_1,choice,vote", "a,b,0,1"), r"allowed are also prompt_id, prompt and user_id"),
        (("file_0,file_1,choice",), "lists no choice"),
        (
            ("file_0,file_1,choice", "base/000000-s0.png,base/000000-s1.png,2"),
            r"line 2: choice is '2'; allowed are 0, 1",
        ),
        (("file_0,file_1,choice", "base/000000-s0.png,base/000001-s0.png,1"), r"line 2 compares images of two prompts"),
        (("file_0,file_1,choice", "base/000000-s0.png,base/000000-s0.png,1"), r"line 2 compares .* with itself"),
        (("file_0,file_1,choice", "base/000000-s9.png,base/000000-s0.png,1"), r"no manifest .* names 'base/000000-s9"),
        (("file_0,file_1,choice", "000000-s0.png,base/000000-s1.png,1"), r"in several folders .*write FOLDER/"),
        (("file_0,file_1,choice", "base/000000-s0.png,1"), r"line 2 has more or fewer values"),
        (("prompt_id,file_0,file_1,choice", "1,base/000000-s0.png,base/000000-s1.png,1"), r"prompt_id is '1', but"),
        (("prompt,file_0,file_1,choice", "cat,base/000000-s0.png,base/000000-s1.png,1"), r"prompt is 'cat', but"),
    ],
)
def test_mistakes_in_choices_name_the_line(lines, message, media, choices, tmp_path):
    folders = [media("base"), media("tuned")]
    with pytest.raises(UserError, match=message):
        build_by_choices(folders, choices(*lines), Output(tmp_path / "pairs"))


def test_the_images_that_meet_in_the_shapes_pairs_are_those_of_all_against_all():
    """`scripts/build_shapes.py --stage pairs` draws sides at random; who meets whom is the rule here."""
    planned = plan_pairs("train", 30, seed=0)
    jobs = sorted({job for pair in planned for job in pair}, key=lambda job: job.seed)
    for prompt in dict.fromkeys(first.prompt for first, _ in planned):
        drawn = [
            Candidate(Path(job.model), Media(file="", prompt=prompt, prompt_id=0, seed=job.seed, model=job.model), 1.0)
            for job in jobs
            if job.prompt == prompt
        ]
        met = [{a.seed, b.seed} for a, b in planned if a.prompt == prompt]
        assert met == [{two.chosen.media.seed, two.rejected.media.seed} for two in Pairing(strategy="all").pair(drawn)]


def test_pairs_like_those_of_the_shapes_world(tmp_path):
    """The recipe in `diffpo/data/build.py`: the embedded base draws, the annotators' mean utility judges."""
    from diffpo.generation.generate import generate
    from diffpo.generation.settings import GenerateOptions

    options = GenerateOptions(model="shapes:base", seeds=(0, 1, 2), steps=4, guidance=4.0, batch=9, device="cpu")
    generate(options, sample_prompts("train", 3), tmp_path / "base")
    pairing = Pairing(strategy="all", margin=0.15)
    out = Output(tmp_path / "pairs", ties="keep")
    built = build_by_scores([tmp_path / "base"], "shapes-utility", ShapesUtility, pairing, out)
    assert built.pairs == 9
    rows = table(tmp_path / "pairs")
    for row in rows:
        worth = [utility(decode(row[side]), row["prompt"]) for side in ("chosen", "rejected")]
        assert (row["preference"] == 0.5) == (abs(worth[0] - worth[1]) < 0.15)
        assert row["preference"] == 0.5 or worth[0] > worth[1]
    assert any(row["preference"] == 1.0 for row in rows)
