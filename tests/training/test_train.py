"""The training loop on tiny models of the real classes: what it writes, what it logs, what it refuses."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
import yaml
from runs import World, checkpoints, difference, forget_accelerator, metrics, weights

from diffpo.errors import UserError
from diffpo.models import base
from diffpo.models.encoders import Encoders

LOGGED = {"step", "epoch", "loss", "grad_norm", "learning_rate"}
REWARDS = {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")}
ERRORS = {f"error/{name}" for name in ("chosen", "rejected", "reference_chosen", "reference_rejected")}
FULL = {"model.name": "full", "train.learning_rate": 1e-4}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("train"))


@pytest.fixture(autouse=True)
def another_accelerator():
    """Runs of one process may differ in precision."""
    yield
    forget_accelerator()


@pytest.fixture(scope="module")
def plain(world):
    """A run with all that is drawn and judged on the way."""
    extras = {"train.eval_every": 2, "train.sample_every": 2, "sample.prompts": ["thing 1", "thing 2"]}
    settings = {"data.validation_fraction": 0.3, "train.batch": 2, "train.steps": 4, "train.checkpoint_every": 2}
    return world.train("plain", extras | settings | {"train.keep_last": 1})


def test_the_folder_holds_what_the_readme_says(plain):
    files = {"run.json", "config.yaml", "metrics.jsonl", "samples", "checkpoints", "final"}
    assert {p.name for p in plain.iterdir()} == files
    assert checkpoints(plain) == ["step-000004"]  # keep_last=1
    held = {p.name for p in (plain / "checkpoints" / "step-000004").iterdir()}
    assert held == {"weights.safetensors", "optimizer.safetensors", "state.json"}
    assert {p.name for p in (plain / "final").iterdir()} == {
        "pytorch_lora_weights.safetensors",
        "README.md",
        "grid.png",
    }
    config = yaml.safe_load((plain / "config.yaml").read_text())
    assert config.pop("pairs per update") == 2
    assert (config["model"]["init"], config["train"]["adam_beta2"]) == ("gaussian", 0.999)


def test_metrics_have_the_names_of_trl(plain):
    lines = metrics(plain, times=True)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert LOGGED | REWARDS | ERRORS | {"time/seconds", "time/pairs_per_second"} <= line.keys()
        assert any(name.startswith("rewards/accuracies/t") for name in line)
        assert all(math.isfinite(value) for value in line.values())
    judged = [{k for k in line if k.startswith("eval/")} for line in lines]
    assert not judged[0] and not judged[2]
    assert {"eval/loss", "eval/rewards/accuracies", "eval/error/chosen"} <= judged[1] == judged[3]


def test_the_first_loss_is_log_2(plain):
    first, second = metrics(plain)[:2]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert first["rewards/accuracies"] == 0.5
    assert first["error/chosen"] == first["error/reference_chosen"]
    assert second["loss"] != pytest.approx(math.log(2), abs=1e-7)


def test_samples_stand_beside_the_base(plain):
    from PIL import Image

    pictures = sorted(p for p in (plain / "samples").rglob("*.png"))
    assert [p.name for p in pictures] == ["000.png", "001.png", "step-000002.png", "step-000004.png"]
    base, grid = Image.open(pictures[0]), Image.open(pictures[3])
    assert base.size == (16, 16) and grid.width > 2 * 16 and grid.height > 2 * 16
    assert (plain / "final" / "grid.png").read_bytes() == (plain / "samples" / "step-000004.png").read_bytes()


@pytest.mark.parametrize("tuning", [{}, FULL], ids=["lora", "full"])
def test_updates_learn(world, tuning):
    """From the same pairs with the same draws, each update makes the loss smaller."""
    from diffpo.config.run import build
    from diffpo.training.processes import make_accelerator
    from diffpo.training.train import prepare_data, prepare_learner
    from diffpo.training.update import update

    small = {"train.learning_rate": 1e-6, "train.dtype": "float64", "train.batch": 8}
    config = build(world.tree("learns", tuning | small))
    accelerator = make_accelerator(config)
    plan, loader, _, _ = prepare_data(config, accelerator)
    learner, batches = prepare_learner(config, accelerator), next(iter(loader.updates(plan, 0, 1)))
    losses = [update(learner, batches, 0, micro_seed=0)["loss"] for _ in range(4)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-12)
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 1e-7


def test_held_out_losses_are_on_fixed_draws(world):
    """With a learning rate of 0 nothing changes but the training draws."""
    settings = {"train.learning_rate": 0.0, "train.eval_every": 1, "data.validation_fraction": 0.3, "train.batch": 2}
    lines = metrics(world.train("fixed", settings | {"method.name": "sft"}))
    assert len({line["eval/loss"] for line in lines}) == 1
    assert len({line["loss"] for line in lines}) == 3


def test_held_out_losses_do_not_disturb_training(world):
    settings = {"data.validation_fraction": 0.3, "train.batch": 2}
    a, b = (world.train(f"eval-{n}", settings | {"train.eval_every": n}) for n in (0, 1))
    assert [line["loss"] for line in metrics(a)] == [line["loss"] for line in metrics(b)]
    assert difference(weights(a), weights(b)) == 0


@pytest.mark.parametrize("more", [{}, {"data.cache_dtype": "float16", "data.flip": True, "data.crop": "random"}])
def test_cached_and_live_encodings_give_the_same_bits(world, tmp_path, more):
    settings = more | {"data.cache_dir": str(tmp_path)}
    a = world.train("cached", settings, fresh=True)
    assert list(tmp_path.rglob("*.arrow"))
    b = world.train("live", settings | {"data.cache": False}, fresh=True)
    assert metrics(a) == metrics(b)
    assert difference(weights(a), weights(b)) == 0


def test_no_encoder_is_loaded_where_every_encoding_is_there(world, monkeypatch):
    world.train("encoded", {"train.steps": 1})
    monkeypatch.setattr(Encoders, "pipeline", property(lambda _: pytest.fail("an encoder is loaded")))
    assert len(metrics(world.train("encoded-before", {"train.steps": 1}))) == 1


def test_micro_batches_and_split_forwards_learn_the_same(world):
    double = {"train.dtype": "float64"}
    whole = weights(world.train("whole", double))
    micro = weights(world.train("micro", double | {"train.batch": 2, "train.accumulate": 2}))
    split = weights(world.train("split", double | {"train.split_forward": True}))
    assert difference(whole, micro) < 1e-10
    assert difference(whole, split) < 1e-10


def test_gradient_checkpointing_changes_nothing_but_memory(world):
    a, b = (world.train(f"gc-{on}", {"model.gradient_checkpointing": on, "train.dtype": "float64"}) for on in (0, 1))
    assert difference(weights(a), weights(b)) < 1e-10


def test_bfloat16_autocast_keeps_trained_weights_in_float32(world):
    half = {"model.dtype": "bfloat16", "model.encoder_dtype": "bfloat16", "train.mixed_precision": "bf16"}
    run = world.train("bf16", half | {"train.sample_every": 3, "sample.prompts": ["thing 1"]})
    assert (run / "samples" / "step-000003.png").is_file()  # the VAE is given what the policy answers
    first = metrics(run)[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)  # policy and reference run alike
    assert {x.dtype for x in weights(run).values()} == {torch.float32}


def test_ties_are_dropped_or_kept(world, tmp_path):
    rows = [json.loads(line) for line in (world.folder / "pairs" / "pairs.jsonl").read_text().splitlines()]
    table = tmp_path / "ties.jsonl"
    lines = [row | {"preference": 0.5 if i % 2 else 1.0} for i, row in enumerate(rows)]
    for line in lines:
        line |= {side: str(world.folder / "pairs" / line[side]) for side in ("chosen", "rejected")}
    table.write_text("\n".join(map(json.dumps, lines)))
    settings = {"data.path": str(table), "train.batch": 8, "train.steps": 1}
    with pytest.raises(UserError, match="6 usable pairs, fewer than one effective batch of 8"):
        world.train("ties-dropped", settings)
    kept = metrics(world.train("ties-kept", settings | {"data.ties": "keep"}))
    assert kept[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)


def test_the_banner_says_what_became_of_every_row(world, tmp_path, capfd):
    """Of twelve: two ties, a row without a label, one without a prompt, and one whose picture is broken."""
    shutil.copytree(world.folder / "pairs", tmp_path / "pairs")
    table = tmp_path / "pairs" / "pairs.jsonl"
    rows = [json.loads(line) | {"preference": 1.0} for line in table.read_text().splitlines()]
    for i, change in enumerate(({"preference": 0.5}, {"preference": 0.5}, {"preference": None}, {"prompt": None})):
        rows[i] |= change
    table.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "pairs" / "5-rejected.png").write_bytes(b"no picture")
    settings = {"data.path": str(table), "train.steps": 1}
    world.train("told", settings)
    lost = "1 without a label, 1 without a prompt, 1 broken"
    assert f"7 used, 0 held out to judge; dropped: 2 ties, {lost}\n" in capfd.readouterr().err
    world.train("told-ties", settings | {"data.ties": "keep"})
    assert f"9 used, 0 held out to judge; dropped: {lost}\n" in capfd.readouterr().err


def test_sft_needs_no_reference_and_no_rejected_image(world, tmp_path):
    """The rejected pictures may be broken: nobody opens them."""
    shutil.copytree(world.folder / "pairs", tmp_path / "pairs")
    for file in (tmp_path / "pairs").glob("*-rejected.png"):
        file.write_bytes(b"no picture")
    settings = {"method.name": "sft", "data.path": str(tmp_path / "pairs" / "pairs.jsonl")}
    first = metrics(world.train("sft", settings))[0]
    assert first["loss"] == first["error/chosen"] > 0.1
    assert not (REWARDS | {"error/rejected"}) & first.keys()
    with pytest.raises(UserError, match="None of the pairs"):
        world.train("sft-dpo", settings | {"method.name": "dpo"})


def test_a_broken_picture_drops_its_row_and_is_named(world, tmp_path, caplog):
    shutil.copytree(world.folder / "pairs", tmp_path / "pairs")
    (tmp_path / "pairs" / "5-rejected.png").write_bytes(b"no picture")
    run = world.train("broken", {"data.path": str(tmp_path / "pairs" / "pairs.jsonl")})
    assert "1 of 12 pairs" in caplog.text and "row 5" in caplog.text
    assert len(metrics(run)) == 3


def test_the_average_is_exported(world):
    from safetensors.torch import load_file

    run = world.train("average", FULL | {"train.ema": 0.9, "train.checkpoint_every": 3})
    held = run / "checkpoints" / "step-000003"
    average, last = load_file(held / "average.safetensors"), load_file(held / "weights.safetensors")
    assert difference(weights(run), average) == 0
    assert difference(weights(run), last) > 1e-6


@pytest.fixture
def inflated(world, tmp_path):
    """A model whose output is so large that float32 cannot square its error: for rows with large latents first."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(world.folder / "sd15", tmp_path / "inflated")
    file = tmp_path / "inflated" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_out.weight"] = tensors["conv_out.weight"] * 1e25
    save_file(tensors, file, metadata={"format": "pt"})
    return tmp_path / "inflated"


def test_a_loss_that_is_no_number_stops_before_the_update(world, inflated):
    with pytest.raises(UserError, match=r"the loss of 4 row\(s\) is not finite: rows \d+, \d+, \d+, \d+ of the table"):
        world.train("inflated", {"model.path": str(inflated)})
    run = world.folder / "inflated"
    assert not (run / "final").exists() and not (run / "checkpoints").exists()
    assert metrics(run) == []


def test_checkpoints_stay_whole_when_a_loss_becomes_no_number(world):
    """With an absurd learning rate the weights grow until a loss is no number; each advised one is a tenth of it."""
    from diffpo.training.checkpoint import load, newest

    absurd = FULL | {"train.steps": 9, "train.learning_rate": 10.0, "train.checkpoint_every": 1}
    with pytest.raises(UserError, match=r"Nothing was updated\..* such as train\.learning_rate=1: it goes on"):
        world.train("absurd", absurd)
    run = world.folder / "absurd"
    tensors, values = load(newest(run / "checkpoints"))
    assert values["step"] == len(metrics(run)) >= 1
    assert all(x.isfinite().all() for x in tensors["weights"].values())
    assert not (run / "final").exists()
    world.train("absurd", absurd | {"train.learning_rate": 1e-4}, fresh=True)
    assert len(metrics(run)) == 9


@pytest.mark.parametrize("setting", [{"train.mixed_precision": "fp16"}, {"model.dtype": "float16"}])
def test_float16_on_a_cpu_is_refused(world, setting):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    both = {"train.mixed_precision": "fp16"} | setting
    with pytest.raises(UserError, match="this machine trains on its CPU"):
        world.train("half", both)
    assert not (world.folder / "half").exists()


def test_a_folder_with_another_runs_config_is_refused(world):
    run = world.train("claimed", {"train.steps": 1})
    before = weights(run)
    with pytest.raises(UserError) as caught:
        world.train("claimed", {"train.steps": 1, "method.beta": 7.0, "train.seed": 3})
    message = str(caught.value)
    assert "method.beta: 2000.0 there, 7.0 now" in message and "train.seed: 0 there, 3 now" in message
    assert "--fresh" in message and message.count(" there, ") == 2
    assert difference(weights(run), before) == 0


def test_fresh_begins_anew_and_leaves_other_files_alone(world):
    run = world.train("fresh", {"train.steps": 1})
    (run / "notes.txt").write_text("mine")
    world.train("fresh", {"train.steps": 2, "method.beta": 7.0}, fresh=True)
    assert (run / "notes.txt").read_text() == "mine"
    assert [line["step"] for line in metrics(run)] == [1, 2]
    assert yaml.safe_load((run / "config.yaml").read_text())["method"]["beta"] == 7.0


def test_more_steps_are_allowed_and_fewer_than_done_are_not(world):
    steady = world.train("steady", {"train.steps": 1})
    world.train("steady", {"train.steps": 2})
    assert [line["step"] for line in metrics(steady)] == [1, 2]
    with pytest.raises(UserError, match=r"already done more than train\.steps=1 updates: give at least train\.steps=2"):
        world.train("steady", {"train.steps": 1})


def test_a_new_learning_rate_is_used_and_written_down(world):
    """A constant rate, then a tenth of it; then a schedule that ends at zero."""
    run = world.train("rates", {"train.steps": 2})
    world.train("rates", {"train.steps": 3, "train.learning_rate": 1e-4})
    linear = {"train.steps": 5, "train.learning_rate": 1e-4, "train.schedule": "linear"}
    world.train("rates", linear)
    rates = [line["learning_rate"] for line in metrics(run)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4 * 2 / 5, 1e-4 * 1 / 5])
    history = json.loads((run / "run.json").read_text())["history"]
    assert history == [
        {"update": 2, "changed": {"train.learning_rate": [1e-3, 1e-4], "train.steps": [2, 3]}},
        {"update": 3, "changed": {"train.schedule": ["constant_with_warmup", "linear"], "train.steps": [3, 5]}},
    ]


def test_the_same_effective_batch_may_be_cut_otherwise_on_resume(world):
    run = world.train("cut", {"train.steps": 1})
    world.train("cut", {"train.steps": 2, "train.batch": 1, "train.accumulate": 4})
    assert len(metrics(run)) == 2
    with pytest.raises(UserError, match="pairs per update: 4 there, 2 now"):
        world.train("cut", {"train.steps": 3, "train.batch": 2})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data.path": "nowhere/pairs.jsonl"}, "nowhere/pairs.jsonl"),
        ({"data.resolution": 17}, "17"),
        ({"train.batch": 99}, "fewer than one effective batch of 99"),
        ({"model.path": "./nowhere"}, "there is no nowhere"),
        ({"model.path": "nobody/no-such-model"}, "give the path of a local folder that holds a diffusers model"),
        ({"model.attention": "flash"}, "model.attention=flash"),
        ({"data.name": "pickapic"}, "Choose data.name=pairs"),
        ({"method.dense": "frame"}, "dpo needs a `segments` column; .* one label per second of its clips"),
        ({"method.flow_weight": "squared"}, "flow_weight=squared is for flow models; this one predicts eps"),
    ],
)
def test_bad_input_gets_a_clear_message(world, changes, told):
    with pytest.raises(UserError, match=told):
        world.train("bad", changes, fresh=True)


def test_a_folder_that_is_no_model_and_a_family_that_is_not_supported(world, tmp_path):
    with pytest.raises(UserError, match=r"has no model_index\.json"):
        world.train("bad", {"model.path": str(tmp_path)}, fresh=True)
    (tmp_path / "model_index.json").write_text('{"_class_name": "KolorsPipeline"}')
    with pytest.raises(UserError, match="KolorsPipeline, which diffpo does not train; supported are StableDiffusion"):
        world.train("bad", {"model.path": str(tmp_path)}, fresh=True)


@pytest.mark.slow
def test_compiled_blocks_learn_the_same(tmp_path, monkeypatch):
    """With the graphs that torch captures, run as they are: its C++ takes a minute to compile, and is not ours."""
    monkeypatch.setattr("diffpo.models.compiling.BACKEND", "aot_eager")
    compiled, compile_modules = [], base.compile_modules

    def note(modules, *how):
        compiled.extend(modules)
        compile_modules(modules, *how)

    monkeypatch.setattr(base, "compile_modules", note)
    world, settings = World.make(tmp_path, "sd3"), {"method.name": "sft", "train.steps": 1}  # all blocks of one shape
    a = world.train("eager", settings, family="sd3")
    b = world.train("compiled", settings | {"train.compile": "regional"}, family="sd3")
    assert {type(block).__name__ for block in compiled} == {"JointTransformerBlock"}
    assert [line["loss"] for line in metrics(b)] == pytest.approx([line["loss"] for line in metrics(a)], rel=1e-4)
    assert weights(a).keys() == weights(b).keys()  # no `_orig_mod` in names
    assert difference(weights(a), weights(b)) < 1e-4


@pytest.mark.parametrize("family", ["sd2", "sdxl", "sd3"])
def test_the_other_families_train(tmp_path, family):
    run = World.make(tmp_path, family).train("run", {"train.steps": 2}, family=family)
    assert metrics(run)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (run / "final" / "pytorch_lora_weights.safetensors").is_file()
