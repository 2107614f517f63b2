"""`diffpo evaluate`: what is made, what is kept, what a kill costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from runs import ROOT, World, launch

import diffpo.generation.request
from diffpo.commands.evaluate import evaluate, is_finished, prepare_run
from diffpo.config.evaluation import Evaluation, JudgedModel, load_evaluation
from diffpo.errors import ConfigError, UserError
from diffpo.media.folder import read_media, read_settings
from diffpo.scorers.scores import read_scores

PROMPTS = [f"a red circle {side} a blue square on a white background" for side in ("left of", "above", "below")]
SCORERS = ["shapes-utility", "shapes"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two tiny pipelines that differ, and prompts."""
    world = World.make(tmp_path_factory.mktemp("evaluate"))
    world.train("tuned")
    (world.folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return world


def tree(world: World, output: Path, **changes) -> dict:
    base = str(world.folder / "sd15")
    return {
        "models": {"base": base, "tuned": {"path": base, "tuned": str(world.folder / "tuned")}},
        "prompts": str(world.folder / "prompts.txt"),
        "scorers": SCORERS,
        "seeds": [0, 1],
        "sampling": {"steps": 1, "guidance": 1.0, "batch": 4, "size": [64, 64], "device": "cpu"},
        "compare": {"resamples": 50},
        "output": str(output),
    } | changes


@pytest.fixture
def judge(world, tmp_path, monkeypatch):
    """Run an evaluation in this process; returns what it did, and the prompts and seeds that were sampled."""
    sampled: list[tuple[str, int]] = []
    sample = diffpo.generation.request.sample_clips

    def counting(pipeline, prompts, seeds, *more, **options):
        sampled.extend(zip(prompts, seeds, strict=True))
        return sample(pipeline, prompts, seeds, *more, **options)

    monkeypatch.setattr(diffpo.generation.request, "sample_clips", counting)

    def run(output: Path = tmp_path / "out", **changes):
        sampled.clear()
        return evaluate(Evaluation.build(tree(world, output, **changes))), list(sampled)

    return run


def pictures(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("media/*/*.png"))}


def test_all_is_written_and_a_second_call_makes_nothing(judge, capsys):
    done, sampled = judge()
    assert (done.images, done.made, len(sampled)) == (12, 12, 12)
    for name in ("comparison.json", "comparison.csv", "comparison.tex", "report.html", "grid.png", "evaluation.yaml"):
        assert (done.folder / name).stat().st_size > 100, name
    comparison = json.loads((done.folder / "comparison.json").read_text())
    assert (comparison["baseline"], comparison["model"], comparison["n_pairs"]) == ("base", "tuned", 6)
    assert [result["scorer"] for result in comparison["results"]] == SCORERS
    for folder, label in zip(done.media, ("base", "tuned"), strict=True):
        assert [item.prompt for item in read_media(folder)] == [prompt for prompt in PROMPTS for _ in (0, 1)]
        assert read_settings(folder)["label"] == label and read_scores(folder).models == [label]
    assert "win rate" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in done.folder.rglob("media/*/*.png")}
    again, sampled = judge()
    assert (again.images, again.made, sampled) == (12, 0, [])
    assert {path: path.stat().st_mtime_ns for path in done.folder.rglob("media/*/*.png")} == before
    assert Evaluation.build(yaml.safe_load((done.folder / "evaluation.yaml").read_text())).seeds == (0, 1)


def test_models_meet_on_the_same_noise_and_prompts_do_not_share_it(judge):
    done, _ = judge()
    noises = [{(item.prompt, item.seed) for item in read_media(folder)} for folder in done.media]
    assert noises[0] == noises[1] and len({seed for _, seed in noises[0]}) == 6
    shared, _ = judge(sampling=tree_sampling(noise="shared"))
    assert {item.seed for item in read_media(shared.media[0])} == {0, 1}


def tree_sampling(**changes) -> dict:
    return {"steps": 1, "guidance": 1.0, "batch": 4, "size": [64, 64], "device": "cpu"} | changes


def test_only_what_is_missing_is_made(judge, tmp_path):
    """A seed, a prompt, a scorer, a model more; and back again."""
    done, _ = judge(seeds=[0])
    first = pictures(done.folder)
    assert len(first) == 6
    _, sampled = judge()
    assert len(sampled) == 6
    (tmp_path / "more.txt").write_text(
        "\n".join(["a green cross left of a red circle on a black background", *PROMPTS])
    )
    _, sampled = judge(prompts=str(tmp_path / "more.txt"))
    assert len(sampled) == 4 and {prompt for prompt, _ in sampled} == {
        "a green cross left of a red circle on a black background"
    }
    _, sampled = judge(scorers=[*SCORERS, "aesthetic-v1"][:2], sampling=tree_sampling(batch=3))
    assert sampled == []  # another number at a time makes no other image
    _, sampled = judge(sampling=tree_sampling(steps=2))
    assert len(sampled) == 12
    again, sampled = judge(seeds=[0])
    assert sampled == [] and first.items() <= pictures(again.folder).items()
    assert len(read_media(again.media[0])) == 3 and len(read_scores(again.media[0]).rows) == 6


def test_a_model_may_be_called_otherwise(judge, world):
    base, tuned = str(world.folder / "sd15"), {"path": str(world.folder / "sd15"), "tuned": str(world.folder / "tuned")}
    judge(seeds=[0])
    done, sampled = judge(seeds=[0], models={"before": base, "after": tuned})
    assert sampled == [] and [read_scores(folder).models for folder in done.media] == [["before"], ["after"]]
    assert len(list((done.folder / "media").iterdir())) == 2


def test_many_models_are_ranked(judge, world):
    base = str(world.folder / "sd15")
    models = {name: {"path": base, "tuned": str(world.folder / "tuned")} for name in ("one", "two")}
    done, sampled = judge(models={"base": base} | models, seeds=[0], baseline="base")
    assert len(sampled) == 9
    tournament = json.loads((done.folder / "comparison.json").read_text())
    assert tournament["models"] == ["base", "one", "two"]


def test_a_run_is_trained_when_it_is_not_there(judge, world, tmp_path):
    config = world.write("trained", {"train.steps": 2})
    models = {"base": str(world.folder / "sd15"), "trained": {"train": str(config), "overrides": ["train.steps=1"]}}
    judge(models=models, seeds=[0])
    run = world.folder / "trained"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
    before = (run / "metrics.jsonl").stat().st_mtime_ns
    _, sampled = judge(models=models, seeds=[0])
    assert sampled == [] and (run / "metrics.jsonl").stat().st_mtime_ns == before
    trained = JudgedModel(train=str(config), overrides=("train.steps=2",))
    prepare_run(trained)  # the same run, continued: its images are others now
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    models["trained"] = {"train": str(config), "overrides": ["train.steps=2"]}
    _, sampled = judge(models=models, seeds=[0])
    assert len(sampled) == 3
    with pytest.raises(UserError, match="holds a run with another config"):
        prepare_run(JudgedModel(train=str(config), overrides=("train.learning_rate=0.5",)))


def test_several_processes_do_not_train(world, monkeypatch):
    config = world.write("untrained")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"not trained yet.*First run `diffpo train .*untrained\.yaml train\.steps=1`"):
        prepare_run(JudgedModel(train=str(config), overrides=("train.steps=1",)))


def test_what_does_not_decide_weights_may_differ(world):
    from diffpo.config.run import load_config

    config = world.write("tuned")
    assert is_finished(load_config(config))
    assert is_finished(load_config(config, ["train.log_every=7", "sample.steps=9"]))
    assert not is_finished(load_config(config, ["train.steps=9"]))
    assert not is_finished(load_config(config, [f"train.output={world.folder / 'nowhere'}"]))


@pytest.mark.slow
def test_a_kill_loses_nothing_and_processes_share_the_work(world):
    """Killed with SIGKILL in the third batch of the first model, in a half-named batch, and while scoring: then the
    same command ends with the same bytes and scores. Two processes end with them too."""
    whole, killed, both = (world.folder / name for name in ("whole", "killed", "both"))
    files = {}
    for output in (whole, killed, both):
        files[output] = output.with_suffix(".yaml")
        files[output].write_text(yaml.safe_dump(tree(world, output, sampling=tree_sampling(batch=2))))
    jobs = [
        {"argv": ["evaluate", str(files[whole])]},
        {"argv": ["evaluate", str(files[killed])], "kill": "sampling"},
        {"argv": ["evaluate", str(files[killed])], "kill": "naming"},
        {"argv": ["evaluate", str(files[killed])], "kill": "scoring"},
        {"argv": ["evaluate", str(files[killed])]},
        {"argv": ["evaluate", str(files[both])], "processes": 2, "env": {"ACCELERATE_USE_CPU": "true"}, "seconds": 300},
    ]
    answers = launch(jobs, world.folder / "jobs.json")
    assert [answer["code"] for answer in answers] == [0, -9, -9, -9, 0, 0], [
        answer["text"][-600:] for answer in answers
    ]
    assert "12 images, 12 of them made now" in answers[0]["text"] and "12 images, 0 of" in answers[4]["text"]
    assert len(pictures(whole)) == 12 and pictures(whole) == pictures(killed) == pictures(both)
    tables = [[read_scores(folder) for folder in sorted(out.glob("media/*"))] for out in (whole, killed, both)]
    assert tables[0] == tables[1] == tables[2]
    assert not [path for path in killed.rglob("*") if path.name.startswith(".")]
    comparisons = [json.loads((out / "comparison.json").read_text()) for out in (whole, killed, both)]
    assert comparisons[0] == comparisons[1] == comparisons[2]


BAD = [
    ({"modelz": {}}, "modelz: unknown key. Did you mean models?"),
    ({"models": {"a": {"pth": "x"}, "b": "y"}}, "models.a.pth: unknown key. Did you mean path?"),
    ({"models": {"a/b": "x", "c": "y"}}, "models.a/b: a label names a folder"),
    ({"models": {"a": {"path": "x", "train": "y"}, "b": {}}}, "models.a: say either path"),
    ({"models": {"a": {"train": "y", "lora": "z"}, "b": "c"}}, "models.a: lora, denoiser and tuned go with path"),
    ({"models": {"a": {"path": "y", "overrides": ["z"]}, "b": "c"}}, "models.a: overrides are of a training"),
    ({"models": {"a": 3, "b": "c"}}, "models.a: a model is a pipeline"),
    ({"models": {}}, "models: a comparison needs two models at least, got none"),
    ({"scorers": [{"name": "pickscore", "scal": "cosine"}]}, "scorers.0.scal: unknown key. Did you mean scale?"),
    ({"models": {"a": "x"}}, "models: a comparison needs two models"),
    ({"models": None}, "models: should be a block of keys"),
    ({"scorers": ["pikscore"]}, "scorers.0.name: unknown scorer 'pikscore'. Did you mean pickscore?"),
    ({"scorers": ["shapes", "shapes"]}, "scorers: shapes stands there twice"),
    ({"scorers": []}, "scorers: give a list of scorers"),
    ({"baseline": "bas"}, "baseline: there is no model bas. Did you mean base?"),
    ({"sampling": {"stepz": 1, "dtype": "fp16"}}, "sampling.stepz: unknown key. Did you mean steps?"),
    ({"sampling": {"steps": 0}}, "sampling.steps: steps is 0; it must be at least 1"),
    ({"seeds": [1, 1]}, "sampling: seeds must be different numbers"),
    ({"compare": {"mode": "same"}}, "compare.mode: input should be 'same-seed'"),
    ({"compare": {"chosen_by": "shapes"}}, "compare: mode same-seed chooses no image"),
    ({"compare": {"mode": "best-of-n", "chosen_by": "clip"}}, "compare.chosen_by: clip is not among the scorers"),
    ({"sampling": 3}, "sampling: should be a block of keys"),
    ({"prompts": None}, "prompts: input should be a valid string"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message.partition(":")[0] for _, message in BAD])
def test_mistakes_are_named(world, tmp_path, change, message):
    with pytest.raises(ConfigError) as caught:
        Evaluation.build(tree(world, tmp_path, **change))
    assert message in str(caught.value)


def test_the_packaged_file(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    loaded = load_evaluation("configs/eval-shapes.yaml", ["sampling.steps=3", "models.mine=owner/model"])
    assert list(loaded.models) == ["base", "sft", "dpo", "kto", "mine"] and loaded.output == "runs/eval-shapes"
    assert loaded.sampling.steps == 3 and len(loaded.scorers) == 3
    assert all((ROOT / m.train).is_file() for m in loaded.models.values() if m.train)
    with pytest.raises(ConfigError, match=r"prompts: input should be a valid string"):
        load_evaluation("configs/eval-shapes.yaml", ["prompts=null"])
    with pytest.raises(ConfigError, match="no config at"):
        load_evaluation("configs/eval-shape.yaml")


def test_weights_that_are_not_there_are_missed_before_anything_is_made(judge, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        judge(scorers=[f"pickscore,path={tmp_path / 'nowhere'}"])
    never = {"train": "configs/shapes-dpo.yaml", "overrides": [f"train.output={tmp_path / 'never'}"]}
    with pytest.raises(UserError, match="nowhere"):
        judge(models={"never": never, "base": str(tmp_path / "nowhere")})
    with pytest.raises(ConfigError, match="no config at"):
        judge(models={"never": never, "other": {"train": "configs/shapes-dop.yaml"}})
    assert not (tmp_path / "never").exists()
    assert not (tmp_path / "out").exists()
