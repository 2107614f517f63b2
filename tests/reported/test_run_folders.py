"""Training destroys nothing that is not its own: a folder is a run's only by its mark, and only what it lists goes."""

from __future__ import annotations

import json
import shutil

import pytest
from runs import World, metrics
from safetensors.torch import load_file, save_file

from diffpo.errors import UserError


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("folders"))


def held(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


FOREIGN = {
    "a config": ["config.yaml"],
    "all that a run has": [
        "config.yaml",
        "checkpoints/step-000001/weights.safetensors",
        "samples/a.png",
        "report.html",
    ],
    "an export": ["final/model.safetensors"],
    "notes": ["notes.txt"],
    "a hidden file": [".gitignore"],
    "another program's run.json": ["run.json", "config.yaml"],
}


@pytest.mark.parametrize("fresh", [False, True], ids=["", "fresh"])
@pytest.mark.parametrize("files", FOREIGN.values(), ids=list(FOREIGN))
def test_a_folder_of_somebody_elses_is_refused_before_any_work(world, tmp_path, files, fresh):
    for name in files:
        (tmp_path / "theirs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "theirs" / name).write_text('{"wrote": ["config.yaml"]}')
    before = held(tmp_path)
    with pytest.raises(UserError, match=r"theirs holds .*, but no run of diffpo"):
        world.train("x", {"train.output": str(tmp_path / "theirs"), "model.path": "./no-such-model"}, fresh=fresh)
    assert held(tmp_path) == before


@pytest.mark.parametrize("wrote", [["../precious"], ["/etc/hostname"], ["a/../../precious"]])
def test_a_list_that_names_files_outside_is_no_mark(world, tmp_path, wrote):
    run = world.train("tampered", {"train.steps": 1}, fresh=True)
    (run.parent / "precious").write_text("x")
    mark = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(mark | {"wrote": wrote}))
    with pytest.raises(UserError, match="no run of diffpo"):
        world.train("tampered", {"train.steps": 1}, fresh=True)
    assert (run.parent / "precious").exists()
    shutil.rmtree(run)


def test_fresh_removes_what_the_run_wrote_and_nothing_else(world):
    """Trackers' files belong to it."""
    pytest.importorskip("tensorboard")
    settings = {"train.sample_every": 1, "sample.prompts": ["thing 1"], "train.steps": 2, "train.checkpoint_every": 1}
    run = world.train("own", settings | {"train.trackers": ["tensorboard"]})
    assert list(run.glob("diffpo/events*"))
    mine = ["notes.txt", "report.html", "samples/mine.png", "checkpoints/mine/x", "final/mine.txt", "diffpo/mine"]
    for name in mine:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    world.train("own", {"train.steps": 1}, fresh=True)
    kept = held(run)
    assert {name for name, content in kept.items() if content == b"mine"} == set(mine)
    written = {"run.json", "config.yaml", "metrics.jsonl", "final/README.md", "final/pytorch_lora_weights.safetensors"}
    checkpoint = {f"checkpoints/step-000001/{kind}" for kind in ("optimizer.safetensors", "weights.safetensors")}
    assert kept.keys() - set(mine) == written | checkpoint | {"checkpoints/step-000001/state.json"}
    assert [line["step"] for line in metrics(run)] == [1]


@pytest.mark.parametrize("fresh", [False, True], ids=["", "fresh"])
def test_an_export_that_somebody_put_there_is_kept_beside_ours(world, fresh):
    name = f"early-{fresh}"
    run = world.train(name, {"train.steps": 1})
    mark = json.loads((run / "run.json").read_text())
    wrote = [name for name in mark["wrote"] if not name.startswith("final/")]
    (run / "run.json").write_text(json.dumps(mark | {"wrote": wrote}))
    theirs = held(run / "final")
    world.train(name, {"train.steps": 2}, fresh=fresh)
    now = held(run / "final")
    assert {name.removesuffix(".theirs"): content for name, content in now.items() if ".theirs" in name} == theirs
    assert now["pytorch_lora_weights.safetensors"] != theirs["pytorch_lora_weights.safetensors"]


@pytest.mark.parametrize("output", ["", "  "])
def test_an_empty_name_is_no_folder(world, output, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="output"):
        world.train("x", {"train.output": output})
    assert not list(tmp_path.iterdir())


def test_a_start_that_learned_nothing_leaves_no_stale_pictures_of_another_model(world, tmp_path, monkeypatch):
    """The base's pictures are drawn anew for other weights or another VAE under the same path, and else kept."""
    shutil.copytree(world.folder / "sd15", tmp_path / "model")
    settings = {"model.path": str(tmp_path / "model"), "train.sample_every": 1, "sample.prompts": ["thing 1"]}

    def refuse(*_):
        raise UserError("stopped before the first update")

    def pictures():
        with monkeypatch.context() as patch, pytest.raises(UserError, match="before the first update"):
            patch.setattr("diffpo.training.train.resume", refuse)
            world.train("again", settings)
        return {p.parent.name: p.read_bytes() for p in (world.folder / "again" / "samples").glob("base-*/000.png")}

    seen = pictures()
    assert len(seen) == 1 and pictures() == seen
    for number, part in enumerate(("unet", "vae"), 2):
        file = tmp_path / "model" / part / "diffusion_pytorch_model.safetensors"
        save_file({name: x * 1.5 for name, x in load_file(file).items()}, file, metadata={"format": "pt"})
        assert len(set(pictures().values())) == number
