"""GenEval's decisions on objects written down by hand, its tasks, and a run on the shapes world."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from shapes_builder.sampling import BASE_STYLE, sample_scenes

from diffpo.benchmarks.geneval.decide import Rules, decide, keep, overlap, relative_position
from diffpo.benchmarks.geneval.run import (
    GENEVAL,
    GenEvalResult,
    Judgement,
    read_geneval,
    read_tasks,
    run_geneval,
)
from diffpo.benchmarks.geneval.shapes import ShapesEyes, shapes_tasks
from diffpo.benchmarks.geneval.tasks import Requirement, SeenObject, Task
from diffpo.commands.geneval import _interval, make_eyes, run_geneval_command
from diffpo.errors import UserError
from diffpo.media.folder import Media, read_media, write_manifest
from diffpo.media.prompts import PromptSet, write_prompts
from diffpo.scorers import ShapesVerifier
from diffpo.scorers.scores import ScoreTable, read_scores, score_folder, write_scores
from diffpo.worlds.shapes.render import render
from diffpo.worlds.shapes.scenes import parse_caption, sample_prompts

RULES = Rules()


def seen(label, confidence=0.8, box=(0, 0, 10, 10)):
    return SeenObject(label, confidence, box)


def never(found, label):
    raise AssertionError("no colour was asked for")


def named(*colors):
    """Name the colours in this order, whatever is seen."""
    return lambda found, label: list(colors[: len(found)])


def faults(objects, record, colors=never):
    task = Task.parse({"prompt": "x", **record})
    return decide(keep(objects, task.tag, RULES), task, colors, RULES)


ONE_DOG = {"tag": "single_object", "include": [{"class": "dog", "count": 1}]}
THREE_CATS = {
    "tag": "counting",
    "include": [{"class": "cat", "count": 3}],
    "exclude": [{"class": "cat", "count": 4}],
}


def test_single_object():
    assert not faults([seen("cat"), seen("dog")], ONE_DOG)
    assert faults([seen("cat")], ONE_DOG) == ("expected dog>=1, found 0",)


def test_the_threshold_is_exceeded_not_reached():
    assert faults([seen("dog", 0.3)], ONE_DOG)
    assert not faults([seen("dog", 0.31)], ONE_DOG)


def test_two_objects():
    record = {"tag": "two_object", "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1}]}
    assert not faults([seen("cat"), seen("dog")], record)
    assert faults([seen("dog"), seen("dog")], record) == ("expected cat>=1, found 0",)


@pytest.mark.parametrize(("number", "correct"), [(2, False), (3, True), (4, False)])
def test_counting_wants_the_exact_number(number, correct):
    assert (not faults([seen("cat", 0.95)] * number, THREE_CATS)) is correct


def test_counting_wants_more_confidence():
    cats = [seen("cat", 0.95)] * 3
    assert not faults([*cats, seen("cat", 0.9), seen("cat", 0.85)], THREE_CATS)
    assert faults([*cats[:2], seen("cat", 0.89)], THREE_CATS) == ("expected cat>=3, found 2",)


def test_color():
    record = {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}]}
    assert not faults([seen("car")], record, named("red"))
    assert faults([seen("car")], record, named("pink")) == ("expected red car>=1, found 0; of all: 1 pink",)
    assert faults([], record) == ("expected car>=1, found 0",)


def test_color_is_asked_of_the_most_confident_only():
    record = {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}]}
    cars = [seen("car", 0.4, (0, 0, 1, 1)), seen("car", 0.9, (5, 5, 9, 9))]
    asked = []

    def name(found, label):
        asked.append((label, [item.box for item in found]))
        return ["blue"]

    assert faults(cars, record, name)
    assert asked == [("car", [(5, 5, 9, 9)])]


def test_color_attribution():
    record = {
        "tag": "color_attr",
        "include": [{"class": "car", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "color": "blue"}],
    }
    colors = {"car": ["red"], "dog": ["blue"]}
    assert not faults([seen("car"), seen("dog")], record, lambda found, label: colors[label])
    swapped = {"car": ["blue"], "dog": ["red"]}
    assert len(faults([seen("car"), seen("dog")], record, lambda found, label: swapped[label])) == 2


def position(relation):
    clauses = [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": [relation, 0]}]
    return {"tag": "position", "include": clauses}


@pytest.mark.parametrize(
    ("box", "relations"),
    [
        # against a dog of 20 x 20 around (50, 50); the cat has 20 x 20 too: an offset loses 0.1 * 40 = 4 per axis
        ((0, 40, 20, 60), {"left of"}),
        ((80, 40, 100, 60), {"right of"}),
        ((40, 0, 60, 20), {"above"}),
        ((40, 80, 60, 100), {"below"}),
        ((0, 0, 20, 20), {"left of", "above"}),  # -36 / 56.6 = -0.64 on both axes
        ((37, 40, 57, 60), set()),  # 3 pixels are less than 4
        ((33, 40, 53, 60), set()),  # -3 / 7 = -0.43
        ((32, 40, 52, 60), set()),  # -4 / 8 = -0.5 is not below -0.5
        ((31, 40, 51, 60), {"left of"}),  # -5 / 9 = -0.56
        ((15, 25, 35, 45), {"left of"}),  # (-21, -11) / 29.2 = (-0.72, -0.38)
        ((40, 40, 60, 60), set()),
    ],
)
def test_relations(box, relations):
    dog, cat = seen("dog", box=(40, 40, 60, 60)), seen("cat", box=box)
    assert relative_position(cat, dog, 0.1) == relations
    for relation in ("left of", "right of", "above", "below"):
        assert (not faults([dog, cat], position(relation))) is (relation in relations)


def test_position_without_a_target():
    assert faults([seen("cat")], position("above")) == ("expected dog>=1, found 0", "no target for cat to be above")


def test_at_most_sixteen_of_a_label():
    many = [seen("cat", 0.5 + i / 100) for i in range(20)]
    kept = keep(many, "two_object", RULES)["cat"]
    assert len(kept) == 16 and kept[0].confidence == pytest.approx(0.69) and kept[-1].confidence == pytest.approx(0.54)


def test_overlap_counts_one_pixel_more_and_is_off_by_default():
    a, b = seen("cat", 0.9, (0, 0, 9, 9)), seen("cat", 0.8, (0, 5, 9, 14))
    assert overlap(a, b) == pytest.approx(50 / 150)
    assert overlap(a, seen("cat", box=(50, 50, 60, 60))) == 0
    assert len(keep([b, a, a], "x", RULES)["cat"]) == 3
    assert keep([b, a], "x", Rules(max_overlap=0.3))["cat"] == [a]
    assert keep([b, a], "x", Rules(max_overlap=0.4))["cat"] == [a, b]


@pytest.mark.parametrize(
    "record",
    [
        {"tag": "x"},
        {"include": []},
        {"tag": "x", "include": [{"count": 1}]},
        {"tag": "x", "include": [{"class": "cat", "count": 1, "position": ["left of", 0]}]},
        {"tag": "x", "include": [{"class": "a", "count": 1}, {"class": "b", "count": 1, "position": ["near", 0]}]},
    ],
)
def test_broken_tasks(record):
    with pytest.raises(UserError, match="no readable GenEval task"):
        Task.parse(record)


def test_overall_is_the_mean_over_tasks():
    result = GenEvalResult([_judged("z", True), *[_judged("colors", True)] * 9, _judged("counting", False)], {})
    assert list(result.tasks) == ["counting", "colors", "z"]
    assert [item.correct for item in result.tasks["colors"]] == [True] * 9
    assert result.overall == pytest.approx(2 / 3)


def _judged(tag, correct):
    names = {"file": "a", "prompt": "a", "prompt_id": 0, "seed": 0, "model": "m", "digest": "", "task": ""}
    return Judgement(tag=tag, correct=correct, reasons=(), **names)


@pytest.fixture
def shapes(tmp_path):
    """Twelve right images, and the last prompts' images drawn from the first prompts."""
    prompts = [p for p in sample_prompts("heldout", 40) if shapes_tasks(p)][:12]
    media = []
    for i, prompt in enumerate(prompts):
        drawn = prompt if i < 8 else prompts[i - 8]
        scene = sample_scenes([parse_caption(drawn)], torch.Generator().manual_seed(i), BASE_STYLE)[0]
        item = Media(file=f"{i:06d}-s0.png", prompt=prompt, prompt_id=i, seed=0, model="base")
        Image.fromarray(render(scene)).save(tmp_path / item.file)
        media.append(item)
    write_manifest(tmp_path, media)
    return tmp_path


def test_the_shapes_world_end_to_end(shapes):
    media = read_media(shapes)
    tasks = {item.prompt: shapes_tasks(item.prompt) for item in media}
    eyes = ShapesEyes()
    result = run_geneval(shapes, tasks, eyes, eyes)
    assert list(result.tasks) == ["two_object", "position", "color_attr"]
    right = [item for item in result.judged if item.prompt_id < 8]
    assert len(right) == 24 and all(item.correct and not item.reasons for item in right)
    wrong = [item for item in result.judged if item.prompt_id >= 8]
    assert not any(item.correct for item in wrong if item.tag == "color_attr")
    assert all(item.reasons for item in wrong if not item.correct)
    shares = [np.mean([item.correct for item in judged]) for judged in result.tasks.values()]
    assert result.overall == pytest.approx(np.mean(shares)) and result.overall < 1
    assert read_geneval(shapes) == GenEvalResult(result.judged, json.loads(json.dumps(result.provenance)))
    rows = result.rows(media)
    assert [row.score for row in rows] == [1.0] * 8 + [0.0] * 4 and {row.scorer for row in rows} == {"geneval"}


class CountingEyes(ShapesEyes):
    """The same eyes; they count what they are shown."""

    looked = 0

    def detect(self, images, threshold):
        type(self).looked += len(images)
        return super().detect(images, threshold)


def test_what_was_judged_is_not_judged_again(shapes, monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFPO_CACHE", str(tmp_path / "cache"))
    media = read_media(shapes)
    tasks = {item.prompt: shapes_tasks(item.prompt) for item in media}
    eyes, CountingEyes.looked = CountingEyes(), 0
    first = run_geneval(shapes, tasks, eyes, eyes)
    assert CountingEyes.looked == 12
    written = (shapes / GENEVAL).read_bytes()
    assert run_geneval(shapes, tasks, eyes, eyes) == first and CountingEyes.looked == 12
    assert (shapes / GENEVAL).read_bytes() == written
    Image.open(shapes / media[0].file).transpose(Image.Transpose.ROTATE_180).save(shapes / media[0].file)
    again = run_geneval(shapes, tasks, eyes, eyes)
    assert CountingEyes.looked == 13 and not all(item.correct for item in again.judged if item.prompt_id == 0)
    run_geneval(shapes, tasks, eyes, eyes, rules=Rules(position_threshold=0.2))
    assert CountingEyes.looked == 25


def test_another_question_is_judged_anew(shapes, monkeypatch, tmp_path):
    """Of the same images and prompts; what was asked before is still known."""
    monkeypatch.setenv("DIFFPO_CACHE", str(tmp_path / "cache"))
    media = read_media(shapes)
    first = {item.prompt: shapes_tasks(item.prompt) for item in media}
    none = [Task(tag="single_object", include=(Requirement(label="hexagon", count=1),))]
    eyes, CountingEyes.looked = CountingEyes(), 0
    before = run_geneval(shapes, first, eyes, eyes)
    other = run_geneval(shapes, dict.fromkeys(first, none), eyes, eyes)
    assert CountingEyes.looked == 24 and not any(item.correct for item in other.judged)
    assert run_geneval(shapes, first, eyes, eyes) == before and CountingEyes.looked == 24


def test_judgements_that_others_made_stay(shapes, monkeypatch, tmp_path):
    """A folder that was copied from elsewhere: its geneval.json tells, nothing of it is in this cache."""
    media = read_media(shapes)
    tasks = {item.prompt: shapes_tasks(item.prompt) for item in media}
    eyes, CountingEyes.looked = CountingEyes(), 0
    monkeypatch.setenv("DIFFPO_CACHE", str(tmp_path / "one"))
    before = run_geneval(shapes, tasks, eyes, eyes)
    monkeypatch.setenv("DIFFPO_CACHE", str(tmp_path / "other"))
    assert run_geneval(shapes, tasks, eyes, eyes) == before and CountingEyes.looked == 12


def test_tasks_come_with_the_prompts(shapes):
    media = read_media(shapes)
    details = tuple({"tag": "single_object", "include": [{"class": "circle", "count": 1}]} for _ in media)
    with pytest.raises(UserError, match="does not say what its prompts ask for"):
        read_tasks(shapes)
    write_prompts(shapes, PromptSet("x", tuple(item.prompt for item in media), details))
    tasks = read_tasks(shapes)
    assert tasks[media[0].prompt] == [
        Task(tag="single_object", include=(Requirement(label="circle", count=1),)),
    ]
    result = run_geneval(shapes, tasks, ShapesEyes(), ShapesEyes())
    shown = [item.prompt if i < 8 else media[i - 8].prompt for i, item in enumerate(media)]
    assert [item.correct for item in result.judged] == ["circle" in caption for caption in shown]


def test_what_cannot_be_judged(shapes):
    with pytest.raises(UserError, match=r"000000-s0\.png .*nothing is known"):
        run_geneval(shapes, {}, ShapesEyes(), ShapesEyes())
    with pytest.raises(UserError, match="asks for anything"):
        run_geneval(shapes, {item.prompt: [] for item in read_media(shapes)}, ShapesEyes(), ShapesEyes())
    with pytest.raises(UserError, match="not a caption of the shapes world"):
        shapes_tasks("a photo of a bench")
    with pytest.raises(UserError, match="not judged by GenEval yet"):
        read_geneval(shapes)
    assert shapes_tasks("a red circle left of a blue circle on a white background") == []


def test_the_command(shapes, capsys):
    write_scores(shapes / "scores.parquet", ScoreTable([], {"other": {"weights": "x"}}))
    (result,) = run_geneval_command([shapes], "shapes", None)
    assert result == read_geneval(shapes) and len(result.judged) == 36
    shown = capsys.readouterr().out
    assert str(shapes)[-8:] in shown and "two_object" in shown and f"{100 * result.overall:.1f}%" in shown
    table = read_scores(shapes)
    assert table.scorers == ["geneval"] and [row.score for row in table.rows] == [1.0] * 8 + [0.0] * 4
    assert table.provenance["geneval"]["detector"]["detector"] == "shapes" and "other" in table.provenance


def test_scoring_afterwards_keeps_who_passed(shapes):
    run_geneval_command([shapes], "shapes", None)
    table = score_folder(shapes, [ShapesVerifier()])
    assert table.scorers == ["shapes", "geneval"] and len(table.rows) == 24
    assert "geneval" in read_scores(shapes).provenance


def test_folders_of_others_are_told_what_is_asked(tmp_path, shapes):
    """Images with captions beside them, no manifest; the set comes by name."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    for i, item in enumerate(read_media(shapes)[:2]):
        Image.open(shapes / item.file).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a photo of a {i}")
    lines = [
        {"tag": "counting", "include": [{"class": "x", "count": 1}], "prompt": f"a photo of a {i}"} for i in (0, 1)
    ]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (result,) = run_geneval_command([folder], "shapes", None, prompts=str(tmp_path / "set.jsonl"))
    assert {tag: [item.correct for item in judged] for tag, judged in result.tasks.items()} == {"counting": [False] * 2}
    assert read_geneval(folder) == result
    (tmp_path / "plain.txt").write_text("a photo of a 0\n")
    with pytest.raises(UserError, match="has no readable GenEval task"):
        run_geneval_command([folder], "shapes", None, prompts=str(tmp_path / "plain.txt"))


def test_eyes_by_name(tmp_path):
    eyes, namer = make_eyes("mask2former,path=x,batch=2", "clip,model=y")
    assert (eyes.path, eyes.batch, namer.clip.model) == ("x", 2, "y")
    assert make_eyes("mask2former", None)[1].clip.model == "ViT-L-14-quickgelu/openai", "GenEval's"
    assert make_eyes("shapes", None) == (ShapesEyes(), ShapesEyes())
    with pytest.raises(UserError, match=r"unknown detector 'mask2fromer'.*mask2former"):
        make_eyes("mask2fromer", None)
    with pytest.raises(UserError, match="batch is 0"):
        make_eyes("mask2former,batch=0", None)


def test_where_all_prompts_agree_the_interval_is_exact():
    def judged(prompt, correct):
        return Judgement(
            file=f"{prompt}.png", prompt=prompt, prompt_id=0, seed=0, model="m", tag="t", correct=correct, reasons=(),
            digest="", task="",
        )  # fmt: skip

    low, high = _interval([judged(prompt, True) for prompt in "abcd"])
    assert (low, high) == (pytest.approx(0.025**0.25), 1.0)
    assert _interval([judged(prompt, False) for prompt in "abcd"]) == (0.0, pytest.approx(1 - 0.025**0.25))
    low, high = _interval([judged("a", True), judged("b", False)])
    assert (low, high) == (0.0, 1.0)
