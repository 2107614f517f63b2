"""Messages that can be followed: every command that one advises is a command, and works after what came before."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from runs import ROOT, World

from diffpo.commands.app import app

ADVICE = re.compile(r"(?:`|next: |run |Run |^(?=diffpo .*(?: --|PLACE)))diffpo ((?:data )?[a-z-]+(?: [^`\n]*)?)(?:`|$)")
PLACE = "PLACE"


def advised() -> Iterator[tuple[str, str]]:
    """Yield (where, command) of each command in a text of the package; what is filled in later is `PLACE`."""
    for file in sorted((ROOT / "diffpo").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        documented = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if id(node) in documented or not isinstance(node, ast.Constant | ast.JoinedStr):
                continue
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value if isinstance(part, ast.Constant) else PLACE for part in parts]
            for found in ADVICE.finditer("".join(map(str, texts))):
                yield f"{file.relative_to(ROOT)}:{node.lineno}", found[1]


def known_options(name: str) -> set[str] | None:
    """The options of a command, or None where there is no such command."""
    command = typer.main.get_command(app)
    for part in name.split():
        command = getattr(command, "commands", {}).get(part)
        if command is None:
            return None
    return {option for parameter in command.params for option in parameter.opts}


def wrong(text: str) -> str | None:
    """What is wrong with an advised command, or None."""
    words = text.replace("...", "").split()
    name = " ".join(words[:2]) if words[0] == "data" and len(words) > 1 else words[0]
    options = known_options(name)
    if options is None:
        return f"there is no command {name}"
    given = {word.partition("=")[0].rstrip(".,;:)") for word in words if re.match(r"--?[a-z]", word)}
    return f"{name} has no option {', '.join(sorted(given - options))}" if given - options else None


def test_every_advised_command_is_one():
    found = list(advised())
    assert len(found) > 20, "no advice was found"
    assert [f"{where}: {told}" for where, text in found if (told := wrong(text))] == []


def test_what_is_no_command_would_be_seen():
    assert wrong("data scoer x") == "there is no command data scoer"
    assert wrong("generate x --promts y") == "generate has no option --promts"
    assert wrong("score x --scorer pickscore") is None


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process; returns its exit code, its last `next:` line, and what it said."""
    from diffpo.__main__ import main

    def call(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["diffpo", *shlex.split(line)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        following = re.findall(r"^next: diffpo (.*)$", out, re.M)
        return code, following[-1] if following else "", out + err

    return call


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    from PIL import Image

    world = World.make(tmp_path_factory.mktemp("messages"))
    place = world.folder
    captions = [f"a red circle {side} a blue square on a white background" for side in ("above", "below")]
    (place / "prompts.txt").write_text("\n".join(captions))
    for side in "wl":
        (place / "twins" / side).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(place / "twins" / side / "0.png")
        (place / "twins" / side / "0.txt").write_text("a caption")
    return world


def test_the_next_lines_lead_from_a_run_to_a_report(world, run, monkeypatch, tmp_path):
    """Each command's next line is run as it stands, but for the scorer (the real one has to be downloaded)."""
    monkeypatch.chdir(tmp_path)
    sample = {"sample.prompts": str(world.folder / "prompts.txt"), "sample.size": [64, 64]}
    config = world.write("run", sample | {"train.steps": 1})
    code, following, said = run(f"train {config}")
    assert code == 0 and following.startswith("generate ") and " --size 64x64 " in following, said
    small = " --steps 1 --guidance 1 --seeds 0,1"
    code, following, said = run(following + small)
    assert code == 0 and following == "score media/tuned --scorer pickscore", said
    code, following, said = run("score media/tuned --scorer shapes")
    assert code == 0 and following == "compare media/tuned ANOTHER", said
    assert (
        run(f"generate {world.folder}/sd15 --prompts {world.folder}/prompts.txt --out media/base --size 64x64{small}")[
            0
        ]
        == 0
    )
    code, following, said = run("score media/base media/tuned --scorer shapes")
    assert code == 0 and following == "compare media/base media/tuned", said
    code, following, said = run(following)
    assert code == 0 and following.startswith("report "), said
    assert run(following)[0] == 0 and Path("report.html").exists()
    code, following, said = run("geneval media/base media/tuned --detector shapes")
    assert code == 0 and following == "compare media/base media/tuned --scorer geneval", said
    assert run(following)[0] == 0


@pytest.mark.parametrize(
    "line",
    [
        "data import {twins} --out table",
        "data score shapes:pairs --limit 4 --scorer shapes --out table",
        "data caption shapes:pairs --limit 4 --captioner shapes --out table",
        "data agreement shapes:pairs --limit 6 --scorer shapes",
    ],
)
def test_the_next_lines_of_tables_work(line, world, run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, following, said = run(line.replace("{twins}", str(world.folder / "twins")))
    assert code == 0 and following, said
    if following.startswith("train "):
        from diffpo.config.run import load_config

        _, config, *overrides = following.split()
        assert load_config(config, overrides).data.path == "table"
    else:
        code, _, said = run(following)
        assert code == 0, said
