"""What users rely on is there: commands, options, configuration keys, the files that commands write."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from commands.interface import FILE, gone, interface
from runs import ROOT, World

HELD = json.loads(FILE.read_text(encoding="utf-8"))
PROMPTS = [f"a red circle {side} a blue square on a white background" for side in ("left of", "above")]
WITHOUT_FILES = {"plan", "data", "data inspect", "env", "methods", "models", "scorers"}


@pytest.fixture(scope="module")
def now():
    return interface()


@pytest.mark.parametrize("part", ["commands", "blocks", "train", "evaluate"])
def test_nothing_has_gone(now, part):
    assert gone(HELD[part], now[part]) == []


@pytest.mark.parametrize("part", ["commands", "blocks", "train", "evaluate"])
def test_what_is_new_is_listed(now, part):
    """Run `python tests/commands/interface.py` when something came on purpose, and read the difference."""
    assert gone(now[part], HELD[part]) == []


def test_a_loss_would_be_seen():
    then = {"train": {"--fresh": False, "config": "required"}}
    assert gone(then, {"train": {"config": "required"}}) == ["/train/--fresh: False became 'absent'"]
    assert gone(then, {"train": {"--fresh": True, "config": "required"}}) == ["/train/--fresh: False became True"]
    assert gone(then, then | {"more": {}}) == []


def test_every_option_is_read():
    """One that its command passes over would do nothing, without a word."""
    passed_over, functions = [], 0
    for file in sorted((ROOT / "diffpo" / "commands").glob("*.py")):
        for function in ast.parse(file.read_text()).body:
            if isinstance(function, ast.FunctionDef):
                functions += 1
                given = {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}
                names = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
                read = {name.id for name in names if isinstance(name.ctx, ast.Load)}
                passed_over += [f"{file.name}: {function.name}({name})" for name in sorted(given - read)]
    assert functions > 60 and passed_over == ["app.py: _main(version)"], "only this one has a callback that answers"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World.make(tmp_path_factory.mktemp("interface"))
    (world.folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return world


def words(world: World) -> dict[str, list[str]]:
    """A small use of every command that writes files, in an order in which each finds what it needs."""
    place = world.folder
    config = world.write("train", {"train.steps": 1, "sample.prompts": PROMPTS[:1], "train.sample_every": 1})
    evaluation = {
        "models": {"a": str(place / "sd15"), "b": {"path": str(place / "sd15"), "tuned": str(place / "train")}},
        "prompts": str(place / "prompts.txt"),
        "scorers": ["shapes"],
        "sampling": {"steps": 1, "guidance": 1.0, "size": [64, 64]},
        "compare": {"resamples": 50},
        "output": str(place / "evaluate"),
    }
    (place / "evaluate.yaml").write_text(yaml.safe_dump(evaluation))
    sampling = "--steps 1 --guidance 1 --size 64x64 --seeds 0,1"
    lines = {
        "train": f"train {config}",
        "generate": f"generate {place}/sd15 --prompts {place}/prompts.txt --out {place}/generate {sampling}",
        "score": f"score {place}/generate --scorer shapes",
        "geneval": f"geneval {place}/generate --detector shapes",
        "evaluate": f"evaluate {place}/evaluate.yaml",
        "compare": f"compare {place}/evaluate/media/* --out {place}/comparison.json --out {place}/comparison.csv"
        f" --out {place}/comparison.tex",
        "grid": f"grid {place}/evaluate/media/* --out {place}/grid.png",
        "report": f"report {place}/evaluate/media/* --out {place}/report.html",
        "data build": f"data build {place}/generate --scorer shapes --ties keep --out {place}/build",
        "data score": f"data score shapes:pairs --limit 3 --scorer shapes --out {place}/data-score",
        "data caption": f"data caption shapes:pairs --limit 3 --captioner shapes --out {place}/caption",
        "data perturb": f"data perturb {place}/caption --perturber shapes --preset hybrid --out {place}/perturb",
        "data encode": f"data encode {config} --out {place}/encoded",
        "data weight": f"data weight {place}/data-score --by lambda --out {place}/weigh",
        "data agreement": f"data agreement shapes:pairs --limit 9 --scorer shapes --out {place}/agreement.json",
        "data show": f"data show shapes:pairs --pairs 2 --out {place}/show.html",
        "data import": f"data import {place}/twins --out {place}/import",
        "data video-pairs": f"data video-pairs {place}/sd15 {place}/twins/w --out {place}/video-pairs --sampling"
        " steps=2,guidance=1,size=[16,16]",
        "data users": f"data users users:pairs --limit 130 --pairs 2 --embedder clip,path=shapes:pickscore"
        f" --out {place}/users",
        "data subject": f"data subject {place}/sd15 {place}/photos --class cat --out {place}/subject --seeds 0"
        " --sampling steps=1,guidance=1,size=[16,16]"
        f" --scorer clip-i,model=shapes:pickscore,references={place}/photos",
        "data segments": f"data segments shapes:pairs --limit 3 --scorer shapes --out {place}/segments",
    }
    return {name: line.split() for name, line in lines.items()}


def make_twins(folder: Path) -> None:
    """Two folders of images in which the chosen and the rejected one have the same name."""
    from PIL import Image

    for side, color in (("w", "red"), ("l", "blue")):
        (folder / side).mkdir(parents=True)
        Image.new("RGB", (8, 8), color).save(folder / side / "0.png")
        (folder / side / "0.txt").write_text("a caption")


def run(arguments: list[str], monkeypatch) -> int:
    """Run the command line in this process, with `*` expanded as a shell does it."""
    from diffpo.__main__ import main

    given = []
    for word in arguments:
        found = sorted(Path(word[:-2]).iterdir()) if word.endswith("/*") else [word]
        given += [str(path) for path in found]
    monkeypatch.setattr(sys, "argv", ["diffpo", *given])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_every_command_writes_its_files(world, monkeypatch, capsys):
    make_twins(world.folder / "twins")
    (world.folder / "photos").mkdir()
    shutil.copy(world.folder / "twins" / "w" / "0.png", world.folder / "photos")
    lines = words(world)
    listed = {name for name in HELD["commands"] if name not in WITHOUT_FILES}
    assert set(HELD["files"]) == listed
    for name, arguments in lines.items():
        assert run(arguments, monkeypatch) == 0, (name, capsys.readouterr().err)
        missing = [pattern for pattern in HELD["files"][name] if not list(world.folder.glob(pattern))]
        assert not missing, name
    others = {"demo", "set-metrics", "personal"}
    assert set(lines) == listed - others, "test_demo.py, test_sets.py and test_personal.py run these"
