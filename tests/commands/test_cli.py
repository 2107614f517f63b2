"""The command line: helps without heavy imports, exit codes, and what the commands print."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import pytest
import yaml
from runs import ROOT, World, command, environment

from diffpo.methods import METHODS

HEAVY = ("torch", "diffusers", "transformers", "datasets", "accelerate", "peft", "matplotlib")
COMMANDS = set(json.loads((ROOT / "tests" / "commands" / "interface.json").read_text())["commands"])


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
    import diffpo.training.update

    def broken(*_, **__):
        raise KeyError("step")

    monkeypatch.setattr(diffpo.training.update, "mean_metrics", broken)
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
    assert "model.name=lora" in out and "rank: int | null = null" in out and "path: str = required" in out


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


def overrides_of(out: str) -> list[str]:
    """What `diffpo train CONFIG ...`, printed as the next command, gives after `train`."""
    last = out.splitlines()[-1]
    assert last.startswith("next: diffpo train ")
    return last.split()[3:]


def test_data_score_prints_a_command_that_trains_on_what_it_wrote(tmp_path, capsys, monkeypatch):
    from diffpo.config.run import load_config
    from diffpo.data import check_requires, load_splits

    with_config = ("configs/shapes-dpo.yaml", ("--order", "scorer"), ("validation", 0.0))
    for target, options, held_out in (("shapes:pairs", (), (None, 0.05)), with_config):
        folder = tmp_path / target.partition(":")[0].replace("/", "-")
        code, out, err = run(
            capsys, monkeypatch, *("data", "score", target, "-s", "shapes", "--out", folder, "--limit", 5, *options)
        )
        assert code == 0, err
        assert f"wrote {folder}/train-00000-of-00001.parquet" in out and f"{folder}/train.provenance.json" in out
        config, *overrides = overrides_of(out)
        loaded = load_config(config, overrides)
        assert loaded.method.requires == {"preference"} and loaded.data.path == str(folder)
        splits = load_splits(dataclasses.replace(loaded.data, ties="keep", validation_fraction=0.0))
        check_requires(loaded.method.requires, splits.train, "smpo")
        assert len(splits.train) == 5
        assert (loaded.data.validation_split, loaded.data.validation_fraction) == held_out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-s", "shapes", "--normalise", "released"), "Use --scorer pickscore,scale=cosine"),
        (("-s", "shapes", "--order", "foo"), "score.order: input should be 'human' or 'scorer'"),
        (("-s", "shaps"), "Did you mean shapes?"),
        (("-s", "shapes", "--temperature", "0"), "temperature is 0"),
    ],
)
def test_data_score_refuses_what_makes_no_sense(options, message, tmp_path, capsys, monkeypatch):
    arguments = ("data", "score", "shapes:pairs", "--limit", 2, "--out", tmp_path / "out", *options)
    code, out, err = run(capsys, monkeypatch, *arguments)
    assert code == 2 and not out and message in err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def two_images(tmp_path):
    """A media folder with two images of one prompt, the second as the prompt says and the first empty."""
    import torch
    from PIL import Image
    from shapes_builder.sampling import sample_scenes

    from diffpo.media.folder import Media, write_manifest
    from diffpo.worlds.shapes.render import render
    from diffpo.worlds.shapes.scenes import parse_caption, sample_prompts

    folder = tmp_path / "base"
    folder.mkdir()
    prompt = sample_prompts("train", 1)[0]
    scene = sample_scenes([parse_caption(prompt)], torch.Generator().manual_seed(0))[0]
    Image.new("RGB", (64, 64), "white").save(folder / "000000-s0.png")
    Image.fromarray(render(scene)).save(folder / "000000-s1.png")
    write_manifest(
        folder,
        [Media(file=f"000000-s{seed}.png", prompt=prompt, prompt_id=0, seed=seed, model="base") for seed in (0, 1)],
    )
    return folder


def test_data_build_by_a_scorer_or_by_choices(two_images, tmp_path, capsys, monkeypatch):
    choices = tmp_path / "choices.csv"
    choices.write_text("file_0,file_1,choice\n000000-s0.png,000000-s1.png,0\n")
    for name, options, best in (("a", ("-s", "shapes"), 1), ("b", ("--choices", choices), 0)):
        code, out, err = run(capsys, monkeypatch, "data", "build", two_images, "--out", tmp_path / name, *options)
        assert code == 0, err
        assert f"wrote 1 pairs of 1 prompts to {tmp_path / name}; 0 ties" in out
        assert out.endswith(f"next: diffpo data inspect {tmp_path / name}\n")
        from diffpo.data import Pairs, load_splits

        assert load_splits(Pairs(path=str(tmp_path / name))).train.column("chosen_seed") == [best]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "either --scorer NAME or --choices FILE.csv"),
        (("-s", "shapes", "--choices", "x.csv"), "either --scorer NAME or --choices FILE.csv"),
        (("--choices", "x.csv", "--margin", "1"), "leave out --margin"),
        (("--choices", "x.csv"), "x.csv cannot be read"),
        (("-s", "shapes", "--strategy", "some"), "build.strategy: input should be 'best-worst' or 'all'"),
        (("-s", "shapes", "--ties", "maybe"), "build.ties: input should be 'drop' or 'keep'"),
    ],
)
def test_data_build_refuses_what_makes_no_sense(options, message, two_images, tmp_path, capsys, monkeypatch):
    code, out, err = run(capsys, monkeypatch, "data", "build", two_images, "--out", tmp_path / "pairs", *options)
    assert code == 2 and not out and message in err


def test_dual_captions_on_the_shapes_world(tmp_path, capsys, monkeypatch):
    """Hybrid captions of a config's pairs in two commands, and the command that trains on them."""
    from diffpo.config.run import load_config
    from diffpo.data import check_requires, load_splits

    first, second = tmp_path / "captioned", tmp_path / "hybrid"
    arguments = ("data", "caption", "configs/shapes-dpo.yaml", "--captioner", "shapes", "--out", first, "--limit", 4)
    code, out, err = run(capsys, monkeypatch, *arguments)
    assert code == 0, err
    assert f"wrote {first}/train-00000-of-00001.parquet, {first}/validation-00000-of-00001.parquet" in out
    assert overrides_of(out)[0] == "configs/shapes-dpo.yaml" and "method=dcpo" in overrides_of(out)
    hybrid = next(line for line in out.splitlines() if line.startswith("for DCPO-h: diffpo "))
    assert hybrid.endswith(f"--preset hybrid --out {first}-hybrid")
    perturb = ("data", "perturb", first, "--validation-split", "validation", "--perturber", "shapes,level=weak")
    code, out, err = run(capsys, monkeypatch, *perturb, "--preset", "hybrid", "--out", second)
    assert code == 0, err
    config, *overrides = overrides_of(out)
    loaded = load_config(config, overrides)
    assert loaded.method_name == "dcpo" and loaded.data.path == str(second)
    splits = load_splits(loaded.data)
    check_requires(loaded.method.requires, splits.train, "dcpo")
    assert (len(splits.train), len(splits.validation)) == (4, 4)
    assert splits.train.captions("rejected") != splits.train.captions("chosen")
    again = run(capsys, monkeypatch, *perturb, "--preset", "hybrid-chosen", "--out", second)
    assert again[0] == 2 and "--fresh" in again[2]
    assert run(capsys, monkeypatch, *perturb, "--preset", "hybrid-chosen", "--out", second, "--fresh")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("caption", "--captioner", "shape"), "Did you mean shapes?"),
        (("caption", "--captioner", "transformers,path=no/model"), "config.json is neither in the local cache"),
        (("perturb", "--perturber", "shapes,level=mild", "--preset", "hybrid"), "'weak', 'medium' or 'strong'"),
        (("perturb", "--perturber", "shapes", "--preset", "hybird"), "there are perturbation, hybrid, hybrid-chosen"),
        (("perturb", "--perturber", "shapes", "--preset", "captioning"), "run `diffpo data caption`"),
        (("perturb", "--perturber", "shapes", "--preset", "hybrid"), "has no chosen_prompt and no rejected_prompt"),
        (("perturb", "--perturber", "dipper", "--preset", "perturbation"), "kalpeshk2011/dipper-paraphraser-xxl here"),
    ],
)
def test_dual_captions_refuse_what_makes_no_sense(arguments, message, tmp_path, capsys, monkeypatch):
    command, *options = arguments
    given = ("data", command, "shapes:pairs", "--limit", 2, "--out", tmp_path / "out", *options)
    code, out, err = run(capsys, monkeypatch, *given)
    assert code == 2 and not out and message in err
    assert not (tmp_path / "out").exists()


def test_plan_tells_what_a_run_takes_and_how_to_start_it(world, capsys, monkeypatch):
    config = world.write("planned", {"train.accumulate": 2})
    code, out, _ = run(capsys, monkeypatch, "plan", config, "model.rank=2", "--card", "rtx4090")
    assert code == 0
    titles = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
    assert titles == ["model", "sizes", "card", "memory", "host", "work", "pace", "cache", "choice", "wrote", "next:"]
    *_, last = out.splitlines()
    assert (
        last.startswith(f"next: diffpo train {config} model.rank=2 train.batch=") and "true" not in last.split("=")[1]
    )
    assert not (world.folder / "planned").exists() and not (world.folder / "plan.yaml").exists()


def test_plan_without_configurations_is_a_users_mistake(world, capsys, monkeypatch):
    code, _, err = run(capsys, monkeypatch, "plan", world.write("far", {"model.path": "some/where"}), "--card", "h100")
    assert code == 2 and "hf download some/where" in err


def test_plan_measures_here_and_writes_the_fastest_way(world, tmp_path, capsys, monkeypatch):
    """The settings are a part of a configuration, and keep the pairs per update."""
    config, out = world.write("timed", {"train.batch": 1, "model.rank": 2}), tmp_path / "fastest.yaml"
    code, said, err = run(capsys, monkeypatch, "plan", config, "--card", "cpu", "--measure", "--out", out)
    assert code == 0, err
    settings = yaml.safe_load(out.read_text())
    assert settings["train"] == {"accumulate": 1, "batch": 1, "compile": None}
    assert set(settings["model"]) == {"gradient_checkpointing"}
    assert len(re.findall("^batch 1, checkpointing", said, re.M)) == 2 and f"wrote {out}" in said
