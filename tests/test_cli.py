"""The command line: helps without heavy imports, exit codes, and what the commands print."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from runs import ROOT, World, command, environment

from diffpo.cli import app
from diffpo.methods import METHODS

HEAVY = ("torch", "diffusers", "transformers", "datasets", "accelerate", "peft", "matplotlib")
COMMANDS = {
    *("train", "demo", "data", "data inspect", "generate", "score", "compare", "grid", "report"),
    *("methods", "models", "env"),
    "data import",
}


def every_command(group, path=()):
    """Every command below a click group, groups included."""
    for name, found in group.commands.items():
        yield (*path, name)
        if hasattr(found, "commands"):
            yield from every_command(found, (*path, name))


def run(capsys, monkeypatch, *argv):
    """Run the command line in this process; returns exit code, stdout, stderr."""
    from diffpo.__main__ import main

    monkeypatch.setattr(sys, "argv", ["diffpo", *map(str, argv)])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("cli"))


def test_the_commands_are_these():
    found = {" ".join(path) for path in every_command(typer.main.get_command(app))}
    assert found == COMMANDS


@pytest.mark.parametrize("path", sorted(["", *COMMANDS]))
def test_every_help_works(path, capsys, monkeypatch):
    code, out, _ = run(capsys, monkeypatch, *path.split(), "--help")
    assert code == 0
    assert out.startswith("Usage: ") and f"{path} [OPTIONS]".lstrip() in out.splitlines()[0]


def test_no_help_imports_anything_heavy():
    """All helps in one process of their own: what none of them imports, each of them does not."""
    code = (
        "import sys, diffpo.__main__ as m\n"
        f"for path in {sorted(['', *COMMANDS])!r}:\n"
        "    sys.argv = ['diffpo', *path.split(), '--help']\n"
        "    try: m.main()\n"
        "    except SystemExit as end: assert not end.code, path\n"
        f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = command("-c", code)
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr
    assert done.stdout.count("Usage: ") == len(COMMANDS) + 1


def test_a_users_mistake_is_one_message_and_exit_code_2(world, capsys, monkeypatch):
    code, out, err = run(capsys, monkeypatch, "train", "configs/shapes-dpo.yaml", "method.bta=1")
    assert code == 2 and not out
    assert err.startswith("diffpo: configs/shapes-dpo.yaml: 1 mistake(s)") and "beta" in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(monkeypatch):
    from diffpo.__main__ import main
    from diffpo.errors import ConfigError

    monkeypatch.setattr(sys, "argv", ["diffpo", "train", "configs/none.yaml", "--debug"])
    with pytest.raises(ConfigError):
        main()


def test_a_bug_of_ours_is_exit_code_1(world, capsys, monkeypatch):
    """What we do not foresee: here, that the loop's own arithmetic breaks."""
    import diffpo.train

    def broken(*_, **__):
        raise KeyError("step")

    monkeypatch.setattr(diffpo.train, "mean_metrics", broken)
    code, _, err = run(capsys, monkeypatch, "train", world.write("bug"))
    assert code == 1
    assert "diffpo: KeyError" in err and "--debug" in err


def test_an_unknown_command_or_option_is_exit_code_2(capsys, monkeypatch):
    assert run(capsys, monkeypatch, "tarin")[0] == 2
    assert run(capsys, monkeypatch, "train", "configs/shapes-dpo.yaml", "--frsh")[0] == 2


def test_each_process_says_which_it_is(capsys, monkeypatch):
    """They may fail for different reasons, such as one host's disk."""
    monkeypatch.setenv("RANK", "1")
    code, _, err = run(capsys, monkeypatch, "train", "configs/none.yaml")
    assert code == 2 and err.startswith("diffpo [process 1]: ")


def test_train_says_what_it_wrote_and_what_to_run_next(world, capsys, monkeypatch):
    file = world.write("said", {"train.steps": 1})
    code, out, _ = run(capsys, monkeypatch, "train", file)
    run_folder = world.folder / "said"
    assert code == 0
    assert f"wrote {run_folder}/final, {run_folder}/metrics.jsonl" in out
    assert f"next: diffpo generate {world.folder / 'sd15'} --tuned {run_folder}" in out


def test_methods_lists_settings_and_columns(capsys, monkeypatch):
    code, out, _ = run(capsys, monkeypatch, "methods")
    assert code == 0
    assert all(f"{name}: " in out for name in METHODS)
    assert "beta: float = 2000.0" in out and "needs prompt, chosen, rejected" in out


def test_models_lists_families_and_tunings(capsys, monkeypatch):
    code, out, _ = run(capsys, monkeypatch, "models")
    assert code == 0
    for name in ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline"):
        assert name in out
    assert "model.name=lora" in out and "rank: int = 16" in out and "path: str = required" in out


def test_env_prints_versions(capsys, monkeypatch):
    import diffusers
    import torch

    code, out, _ = run(capsys, monkeypatch, "env")
    values = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert (values["torch"], values["diffusers"]) == (torch.__version__, diffusers.__version__)
    assert {"python", "platform", "threads", "gpu", "xformers"} <= values.keys()


def test_the_console_script_is_installed():
    script = ROOT / ".venv" / "bin" / "diffpo"
    found = script if script.exists() else "diffpo"
    done = subprocess.run([str(found), "--help"], capture_output=True, text=True, env=environment())
    assert done.returncode == 0 and "Usage: diffpo" in done.stdout


def test_data_import_counts_and_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    from PIL import Image

    for name in ("a_w", "a_l", "b_w", "b_l", "c_0_e", "c_1_e", "d_w"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"about {name[0]}")
    (tmp_path / "b_l.png").write_bytes(b"no image")
    table = tmp_path / "table"
    code, out, _ = run(capsys, monkeypatch, "data", "import", tmp_path, "--layout", "suffixes", "--out", table)
    assert code == 0
    assert "3 rows, of which 1 are ties, 0 have no label and 0 have no prompt" in out
    assert "1 rows are dropped for a broken image: b_w.png (" in out and "b_l.png: not an image" in out
    assert "1 images have no partner: d_w.png" in out
    assert out.endswith(f"wrote 1 pairs to {table}\nnext: diffpo data inspect {table}\n")
    code, out, _ = run(capsys, monkeypatch, *out.splitlines()[-1].split()[2:])
    assert code == 0 and "8x8: 100%" in out


def test_data_import_refuses_what_it_does_not_know(tmp_path, capsys, monkeypatch):
    code, _, err = run(capsys, monkeypatch, "data", "import", tmp_path, "--out", tmp_path / "table", "--ties", "flip")
    assert code == 2 and "ties" in err and "drop" in err
    code, _, err = run(capsys, monkeypatch, "data", "import", tmp_path, "--out", tmp_path / "table")
    assert code == 2 and "looks like none of these" in err and "webdataset: tars" in err
