"""A user's mistake ends every command with one message and exit code 2, never with "this looks like a bug".

Every place where a command takes a file or a folder is given what is no such thing: nothing, the other of the two,
nothing readable, bytes of something else.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
import yaml
from runs import World

PROMPTS = [f"a red circle {side} a blue square on a white background" for side in ("left of", "above")]
COMMANDS = {
    "train": "train {bad.yaml}",
    "train on a table": "train {train} data.path={bad.jsonl} train.output={new}",
    "train a model": "train {train} model.path={bad} train.output={new}",
    "train with prompts": "train {train} sample.prompts={bad.txt} train.sample_every=1 train.output={new}",
    "train into": "train {train} train.output={bad.out}",
    "evaluate": "evaluate {bad.yaml}",
    "evaluate prompts": "evaluate {evaluate} prompts={bad.txt} output={new}",
    "evaluate a model": "evaluate {evaluate} models.b={bad} output={new}",
    "evaluate into": "evaluate {evaluate} output={bad.out}",
    "generate": "generate {bad} --prompts {prompts} --out {new}",
    "generate prompts": "generate {model} --prompts {bad.txt} --out {new} --steps 1",
    "generate prompts of a table": "generate {model} --prompts {bad.csv} --out {new} --steps 1",
    "generate into": "generate {model} --prompts {prompts} --out {bad.out} --steps 1",
    "generate tuned": "generate {model} --tuned {bad} --prompts {prompts} --out {new}",
    "generate lora": "generate {model} --lora {bad.safetensors} --prompts {prompts} --out {new}",
    "score": "score {bad} --scorer shapes",
    "score a table": "score {bad.csv} --scorer shapes",
    "score with": "score {media} --scorer pickscore,path={bad}",
    "geneval": "geneval {bad} --detector shapes",
    "geneval with": "geneval {media} --detector mask2former,path={bad}",
    "set-metrics": "set-metrics {bad} {media} --out {new}",
    "set-metrics with": "set-metrics {media} {media} --features clip,model={bad} --out {new}.json",
    "compare": "compare {bad} {media} --out {new}.json",
    "compare votes": "compare --human {bad.csv} --out {new}.json",
    "compare into": "compare {media} {media} --out {bad.out}/x.json",
    "compare by category": "compare {media} {media} --category {bad.csv} --out {new}.json",
    "grid": "grid {bad} --out {new}.png",
    "grid into": "grid {media} --out {bad.out}/x.png",
    "report": "report {bad} {media} --out {new}.html",
    "report of a run": "report {media} {media} --run {bad} --out {new}.html",
    "data inspect": "data inspect {bad}",
    "data inspect a table": "data inspect {bad.jsonl}",
    "data inspect a csv": "data inspect {bad.csv}",
    "data inspect a parquet": "data inspect {bad.parquet}",
    "data import": "data import {bad} --out {new}",
    "data import a list": "data import {bad.json} --out {new}",
    "data import a tar": "data import {bad.tar} --layout webdataset --out {new}",
    "data import into": "data import {twins} --out {bad.out}",
    "data score": "data score {bad.jsonl} --scorer shapes --out {new}",
    "data score into": "data score shapes:pairs --limit 2 --scorer shapes --out {bad.out}",
    "data agreement": "data agreement {bad.jsonl} --scorer shapes --out {new}.json",
    "data caption": "data caption {bad.jsonl} --captioner shapes --out {new}",
    "data caption with": "data caption shapes:pairs --limit 2 --captioner transformers,path={bad} --out {new}",
    "data perturb": "data perturb {bad.jsonl} --perturber shapes --preset perturbation --out {new}",
    "data build": "data build {bad} --scorer shapes --out {new}",
    "data build choices": "data build {media} --choices {bad.csv} --out {new}",
}
KINDS = ("missing", "the other", "empty", "garbage", "text", "device", "socket", "dangling link")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Everything that the commands need where it is right."""
    from PIL import Image

    world = World.make(tmp_path_factory.mktemp("mistakes"))
    place = world.folder
    (place / "prompts.txt").write_text("\n".join(PROMPTS))
    (place / "media").mkdir()
    for i, prompt in enumerate(PROMPTS):
        Image.new("RGB", (64, 64), "red").save(place / "media" / f"{i}.png")
        (place / "media" / f"{i}.txt").write_text(prompt)
    for side in "wl":
        (place / "twins" / side).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(place / "twins" / side / "0.png")
        (place / "twins" / side / "0.txt").write_text("a caption")
    world.write("train", {"train.steps": 1})
    evaluation = {
        "models": {"a": str(place / "sd15"), "b": str(place / "sd15")},
        "prompts": str(place / "prompts.txt"),
        "scorers": ["shapes"],
        "sampling": {"steps": 1, "size": [64, 64]},
        "output": str(place / "evaluate"),
    }
    (place / "evaluate.yaml").write_text(yaml.safe_dump(evaluation))
    return world


def make(kind: str, file: Path) -> Path:
    """Put something wrong where a command looks: a folder where the name has a suffix, a file where it has none."""
    if kind == "the other":
        file.mkdir() if file.suffix else file.write_bytes(b"")
    elif kind == "empty":
        file.write_bytes(b"") if file.suffix else file.mkdir()
    elif kind == "garbage":
        file.write_bytes(bytes(range(256)) * 4)
    elif kind == "text":
        file.write_text('{"a": [1, "\n,,"\n: - !!x {')
    elif kind == "device":
        os.mkfifo(file)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(file))
    elif kind == "dangling link":
        file.symlink_to(file.parent / "nothing")
    return file


def cases():
    for name, line in COMMANDS.items():
        for kind in KINDS:
            if kind == "text" and ".txt}" in line and "evaluate" not in name:
                continue  # lines of any text are prompts
            if ".out}" in line and kind not in ("the other", "garbage", "device", "dangling link"):
                continue  # an output that is not there, or empty, is right
            yield pytest.param(line, kind, id=f"{name}-{kind}")


@pytest.mark.parametrize(("line", "kind"), cases())
def test_what_is_no_such_thing_is_exit_code_2(world, line, kind, tmp_path, monkeypatch, capsys):
    from diffpo.__main__ import main

    place = world.folder
    known = {"train": place / "train.yaml", "evaluate": place / "evaluate.yaml", "model": place / "sd15"}
    known |= {"prompts": place / "prompts.txt", "media": place / "media", "twins": place / "twins"}
    known |= {"new": tmp_path / "new"}
    arguments = []
    os.chdir(tmp_path)
    short = Path("b")  # a socket's name is short
    for word in line.split():
        for key, value in known.items():
            word = word.replace(f"{{{key}}}", str(value))
        if "{bad" in word:
            suffix = word.partition("{bad")[2].partition("}")[0].replace(".out", "")
            bad = make("garbage" if "{bad.out}" in line and kind == "the other" else kind, short.with_suffix(suffix))
            word = word.partition("{bad")[0] + str(bad) + word.partition("}")[2]
        arguments.append(word)
    monkeypatch.setattr(sys, "argv", ["diffpo", *arguments])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    out, err = capsys.readouterr()
    assert code == 2, (" ".join(arguments), out[-300:], err[-600:])
    assert "looks like a bug" not in err and "Traceback" not in err, err
