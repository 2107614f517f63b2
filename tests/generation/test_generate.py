"""Generation against plain diffusers, with tiny real pipelines."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from peft import LoraConfig, get_peft_model_state_dict
from runs import launch
from tiny import save_pipeline

from diffpo.disk.lock import sole_writer
from diffpo.errors import UserError
from diffpo.generation import sampling, work
from diffpo.generation.generate import ASKED, NAMES, generate, key_of
from diffpo.generation.request import Request, settle
from diffpo.generation.sampling import Plan, sample_clips
from diffpo.generation.settings import GenerateOptions, Sampler
from diffpo.generation.work import FITTED
from diffpo.media.folder import read_media, read_settings
from diffpo.media.frames import encode
from diffpo.media.prompts import PromptSet
from diffpo.models.finding import find_model, find_tuned

PROMPTS = ["a red circle", "a blue square", "a green cross"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Folder of the tiny pipeline."""
    return save_pipeline("sd15", tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def lora_run(base, tmp_path_factory):
    """A run folder whose `final/` holds a LoRA, as `diffpo train` exports it."""
    run = tmp_path_factory.mktemp("runs") / "lora"
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(run / "final", unet_lora_layers=get_peft_model_state_dict(unet))
    return run


@pytest.fixture(scope="module")
def full_run(base, tmp_path_factory):
    """A run folder whose `final/` holds a whole UNet."""
    run = tmp_path_factory.mktemp("runs") / "full"
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    with torch.no_grad():
        unet.conv_out.weight.mul_(3)
    unet.save_pretrained(run / "final" / "unet")
    return run


def options(base, **changes) -> GenerateOptions:
    usual = {"model": str(base), "seeds": (0, 7), "noise": "shared", "steps": 3, "guidance": 3.0, "batch": 1}
    return GenerateOptions(**usual | {"device": "cpu"} | changes)


def plain(pipeline, prompt, seed):
    """What a user of plain diffusers writes."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return pipeline(prompt, num_inference_steps=3, guidance_scale=3.0, generator=generator).images[0]


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def pixels(folder, media):
    return np.stack([np.asarray(Image.open(folder / m.file), dtype=np.int16) for m in media])


def test_images_are_those_of_plain_diffusers(base, lora_run, full_run, tmp_path):
    """Base, LoRA and full fine-tune: every pixel equal, and the three differ from each other."""
    pipelines = {name: DiffusionPipeline.from_pretrained(base) for name in ("base", "lora", "full")}
    pipelines["lora"].load_lora_weights(lora_run / "final")
    pipelines["full"].unet = UNet2DConditionModel.from_pretrained(full_run / "final" / "unet")
    tuned = {"base": None, "lora": str(lora_run), "full": str(full_run / "final")}
    made = {}
    for name, pipeline in pipelines.items():
        pipeline.set_progress_bar_config(disable=True)
        generate(options(base, tuned=tuned[name]), PROMPTS, tmp_path / name, label=name)
        media = read_media(tmp_path / name)
        assert [(m.prompt_id, m.seed) for m in media] == [(0, 0), (0, 7), (1, 0), (1, 7), (2, 0), (2, 7)]
        made[name] = pixels(tmp_path / name, media)
        np.testing.assert_array_equal(
            made[name], np.stack([np.asarray(plain(pipeline, m.prompt, m.seed)) for m in media])
        )
    assert not np.array_equal(made["base"], made["lora"])
    assert not np.array_equal(made["base"], made["full"])


class Silent(StableDiffusionPipeline):
    """A sampler that returns nothing."""

    def __call__(self, *args, **told):
        return StableDiffusionPipelineOutput(images=[], nsfw_content_detected=None)


def test_a_sampler_that_returns_nothing(base):
    with pytest.raises(UserError, match=r"a Silent gave 0 images or clips where 2 were asked for.* one at a time"):
        sample_clips(Silent.from_pretrained(base), PROMPTS[:2], [0, 1], Sampler(steps=1))


def test_a_size_that_is_the_pipelines_but_not_the_networks(tmp_path):
    with pytest.raises(UserError, match=r"cannot make clips of its own size.* --size HEIGHTxWIDTH"):
        generate(options("moving:base", steps=1, frames=9), PROMPTS[:1], tmp_path / "out")


def test_the_batch_does_not_choose_the_noise(base, tmp_path):
    for batch in (1, 4):
        generate(options(base, batch=batch), PROMPTS, tmp_path / str(batch), label="x")
    media = read_media(tmp_path / "1")
    one, four = (pixels(tmp_path / name, media) for name in ("1", "4"))
    assert np.abs(one - four).max() <= 1
    assert np.abs(one[0] - one[1]).max() > 10  # another seed is another image


def test_a_killed_run_continues_to_the_same_bytes(base, tmp_path):
    """Killed while the images of the first batch got their names, and the second one was being written."""
    generate(options(base, batch=4), PROMPTS, tmp_path / "straight", label="x")
    whole = files(tmp_path / "straight")
    killed = shutil.copytree(tmp_path / "straight", tmp_path / "killed")
    batch, unfinished = killed / ".batch-000000-s0.png", killed / "..batch-000002-s0.png.0a1b2c3d.unfinished"
    batch.mkdir()
    unfinished.mkdir()
    for name in ("000000-s7.png", "000001-s0.png"):
        (killed / name).rename(batch / name)
    for name in ("000002-s0.png", "000002-s7.png"):
        (killed / name).rename(unfinished / name)
    result = generate(options(base, batch=4), PROMPTS, killed, label="x")
    assert (len(result.media), result.reused) == (6, 4)
    assert files(killed) == whole
    assert generate(options(base, batch=4), PROMPTS, killed, label="x").reused == 6


@pytest.mark.slow
def test_processes_and_kills_end_with_the_same_bytes(base, tmp_path):
    """SIGKILL in the third batch and while names are given; then two processes, as `accelerate launch` starts them."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    usual = ["generate", str(base), "--prompts", str(prompts), "--steps", "1", "--seeds", "0,1", "--batch", "2"]
    usual += ["--device", "cpu", "--label", "x"]
    straight, killed, both = ([*usual, "--out", str(tmp_path / name)] for name in ("straight", "killed", "both"))
    jobs = [
        {"argv": straight},
        {"argv": killed, "kill": "naming"},
        {"argv": killed},
        {"argv": both, "processes": 2, "env": {"ACCELERATE_USE_CPU": "true"}, "seconds": 300},
    ]
    answers = launch(jobs, tmp_path / "jobs.json")
    assert [answer["code"] for answer in answers] == [0, -9, 0, 0], [answer["text"][-600:] for answer in answers]
    assert "(4 were there)" in answers[2]["text"]
    assert files(tmp_path / "straight") == files(tmp_path / "killed") == files(tmp_path / "both")


def test_a_folder_is_written_by_one_command_at_a_time(base, tmp_path):
    with (
        sole_writer(tmp_path / "out", "diffpo generate"),
        pytest.raises(UserError, match=r"being written by `diffpo generate` \(process"),
    ):
        generate(options(base), PROMPTS[:1], tmp_path / "out", label="x")
    assert not (tmp_path / "out").exists()


def test_noise_of_a_prompt_depends_on_nothing_else(base, tmp_path):
    """The default: other prompts beside it, or their order, change nothing; no two prompts share their noise."""
    for name, prompts in (("all", PROMPTS), ("one", PROMPTS[2:])):
        generate(options(base, noise="per-prompt"), prompts, tmp_path / name, label="x")
    everything, one = (read_media(tmp_path / name) for name in ("all", "one"))
    assert len({item.seed for item in everything}) == 6
    assert [item.seed for item in one] == [item.seed for item in everything[4:]]
    np.testing.assert_array_equal(pixels(tmp_path / "one", one), pixels(tmp_path / "all", everything[4:]))
    assert GenerateOptions(model="x").noise == "per-prompt"


def test_images_of_other_settings_are_never_taken_for_these(base, tmp_path):
    """Each setting that decides an image is in the key of an evaluation's folders, and refused by `generate`."""
    prompts = PromptSet.of(PROMPTS[:1])
    settings = Request.of(options(base), "x").describe(prompts)
    generate(options(base), prompts, tmp_path / "out", label="x")
    file = tmp_path / "out" / "settings.json"
    assert read_settings(tmp_path / "out") == settings
    decisive = set(settings) - NAMES
    assert decisive - ASKED == {
        *("weights", "lora_weights", "denoiser_weights", "pipeline", "scheduler", "steps", "guidance", "size"),
        *("negative_prompt", "dtype", "device"),
    }
    for name in decisive:
        changed = settings | {name: "another"}
        assert (key_of(changed) != key_of(settings)) == (name not in ASKED)
        file.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=f"{name} was another"):
            generate(options(base), prompts, tmp_path / "out", label="x")
    changes = {"negative_prompt": "blue", "guidance": 2.0, "steps": 4, "size": (32, 32), "dtype": "bfloat16"}
    for name, value in changes.items():
        other = Request.of(options(base, **{name: value}), "x").describe(prompts)
        assert {key for key in settings if other[key] != settings[key]} == {name}
    config = json.loads((base / "scheduler" / "scheduler_config.json").read_text())
    other = shutil.copytree(base, tmp_path / "other")
    (other / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | {"steps_offset": 7}))
    assert Request.of(options(other), "x").describe(prompts)["weights"] != settings["weights"]


@pytest.mark.parametrize("fresh", [True, False])
def test_folders_of_others_are_never_touched(base, tmp_path, fresh):
    """A settings.json may be anybody's, and so may images beside it."""
    for name in ("settings.json", "manifest.jsonl", "scores.parquet", "000000-s0.png"):
        (tmp_path / "theirs" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "theirs" / name).write_text('{"editor": "vi"}')
    before = files(tmp_path / "theirs")
    with pytest.raises(UserError, match="holds other files"):
        generate(options(base), PROMPTS[:1], tmp_path / "theirs", label="x", fresh=fresh)
    assert files(tmp_path / "theirs") == before
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="holds other files"):
        generate(options(base), PROMPTS[:1], tmp_path / "file", label="x", fresh=fresh)


def test_a_new_beginning_removes_what_the_manifest_lists(base, tmp_path):
    generate(options(base), PROMPTS[:1], tmp_path / "out", label="x")
    (tmp_path / "out" / "000009-s0.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"does not list, such as 000009-s0\.png"):
        generate(options(base, steps=1), PROMPTS[:1], tmp_path / "out", label="x", fresh=True)
    with pytest.raises(UserError, match="is too large"):
        large = options(base, seeds=(2**63 - 1,), noise="per-prompt")
        generate(large, PROMPTS[:1], tmp_path / "out", label="x", fresh=True)
    assert len(files(tmp_path / "out")) == 5


def test_another_setting_needs_another_folder(base, lora_run, tmp_path):
    generate(options(base), PROMPTS[:1], tmp_path / "out", label="x")
    with pytest.raises(UserError, match=r"steps was 3, is now 4.*--fresh"):
        generate(options(base, steps=4), PROMPTS[:1], tmp_path / "out", label="x")
    with pytest.raises(UserError, match="lora_weights"):
        generate(options(base, tuned=str(lora_run)), PROMPTS[:1], tmp_path / "out", label="x")
    with pytest.raises(UserError, match="prompts"):
        generate(options(base), PROMPTS[:2], tmp_path / "out", label="x")
    (tmp_path / "out" / "mine.txt").write_text("keep")
    generate(options(base, seeds=(3,)), PROMPTS[:1], tmp_path / "out", label="x", fresh=True)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "000000-s3.png",
        "manifest.jsonl",
        "settings.json",
        "mine.txt",
    }
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("keep")
    with pytest.raises(UserError, match="holds other files"):
        generate(options(base), PROMPTS[:1], tmp_path / "other", label="x")


def test_a_mistake_can_be_mended_in_the_same_folder(base, tmp_path):
    with pytest.raises(UserError, match="multiples"):
        generate(options(base, size=(20, 20)), PROMPTS[:1], tmp_path / "out")
    assert len(generate(options(base, size=(16, 16)), PROMPTS[:1], tmp_path / "out").media) == 2


def test_what_is_only_called_otherwise_is_the_same(base, lora_run, tmp_path):
    """The same weights and prompts under other names need no new images."""
    moved = shutil.copytree(base, tmp_path / "moved")
    generate(options(base, tuned=str(lora_run)), PromptSet.of(PROMPTS[:1], "a"), tmp_path / "out")
    again = generate(options(moved, tuned=str(lora_run / "final")), PromptSet.of(PROMPTS[:1], "b"), tmp_path / "out")
    assert again.reused == 2
    assert read_media(tmp_path / "out")[0].model == "lora"


def test_settings_say_how(base, tmp_path, capsys):
    generate(options(base), PROMPTS[:1], tmp_path / "out", label="x")
    settings = read_settings(tmp_path / "out")
    assert settings["scheduler"] == "DDIMScheduler"
    assert settings["safety_checker"].startswith("off")
    assert settings["n_prompts"] == 1
    assert set(settings["versions"]) == {"torch", "diffusers", "transformers"}
    assert capsys.readouterr().err.count("safety checker off") == 1


def test_distinct_seeds_use_no_noise_twice(base, tmp_path):
    generate(options(base, noise="consecutive", seeds=(4, 5)), PROMPTS, tmp_path / "out", label="x")
    assert [m.seed for m in read_media(tmp_path / "out")] == [4, 5, 6, 7, 8, 9]


def test_sampling_leaves_no_trace(base):
    """The trainer samples from networks that are in training: modes and random state stay."""
    pipeline = DiffusionPipeline.from_pretrained(base)
    pipeline.unet.train()
    pipeline.unet.conv_in.eval()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    sampler = Sampler(steps=2, guidance=2.0, batch=2, size=(24, 32), negative_prompt="c")
    images = [clip.first for clip in sample_clips(pipeline, ["a", "b", "a"], [1, 1, 2], sampler)]
    assert [image.size for image in images] == [(32, 24)] * 3
    assert torch.equal(torch.get_rng_state(), before)
    assert pipeline.unet.training and not pipeline.unet.conv_in.training and not pipeline.vae.training
    again = [clip.first for clip in sample_clips(pipeline, ["a"], [2], sampler)]
    assert np.abs(np.asarray(images[2], dtype=int) - np.asarray(again[0], dtype=int)).max() <= 1


def test_not_a_number_is_an_error(base):
    pipeline = DiffusionPipeline.from_pretrained(base)
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="not-a-numbers"):
        sample_clips(pipeline, ["a"], [0], Sampler(steps=1, guidance=1.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (20, 16)}, "multiples of 8.*16x16"),
        ({"model": "./nowhere"}, "there is no nowhere"),
        ({"model": "shapes:bse"}, "unknown embedded weights.*shapes:base"),
        ({"tuned": "nowhere"}, "there is no nowhere"),
        ({"lora": "./a.safetensors"}, "path of a LoRA"),
        ({"lora": "a", "tuned": "b"}, "at most one of lora and tuned; got both"),
        ({"device": "cuda:7"}, "cuda:7"),
    ],
)
def test_mistakes(base, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        generate(options(base, **changes), PROMPTS[:1], tmp_path / "out")


@pytest.mark.parametrize("changes", [{"seeds": ()}, {"seeds": (1, 1)}, {"seeds": (-1,)}, {"steps": 0}, {"batch": 0}])
def test_impossible_options(base, changes):
    with pytest.raises(UserError, match=r"got|it must be at least"):
        options(base, **changes)


def test_no_prompt(base, tmp_path):
    with pytest.raises(UserError, match="no prompt"):
        generate(options(base), [], tmp_path / "out")


def test_folders_that_are_no_model(base, lora_run, tmp_path):
    """The message says what is missing, and recognises a training's result."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no model_index\.json"):
        find_model(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="give it as `tuned`"):
        find_model(str(lora_run))
    with pytest.raises(UserError, match="holds no tuned weights"):
        find_tuned(str(tmp_path / "empty"))
    index = json.loads((base / "model_index.json").read_text())
    (tmp_path / "empty" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"names.*vae/.*which it has not"):
        find_model(str(tmp_path / "empty"))


def test_hub_id_without_network(monkeypatch):
    """The cache is empty and the Hub is switched off: the message names the file and the local way."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"nobody/no-such-model.*model_index\.json.*local folder"):
        find_model("nobody/no-such-model")


def test_a_lora_of_another_network_is_an_error(base, tmp_path):
    from safetensors.torch import save_file

    save_file(
        {"unet.nothing.lora_A.weight": torch.zeros(2, 4), "unet.nothing.lora_B.weight": torch.zeros(4, 2)},
        tmp_path / "x.safetensors",
    )
    with pytest.raises(UserError, match="LoRA"):
        generate(options(base, lora=str(tmp_path / "x.safetensors")), PROMPTS[:1], tmp_path / "out")


def test_a_denoiser_of_another_family_is_an_error(base, full_run, tmp_path):
    folder = tmp_path / "unet"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "SD3Transformer2DModel"}))
    with pytest.raises(UserError, match=r"SD3Transformer2DModel.*UNet2DConditionModel"):
        generate(options(base, denoiser=str(folder)), PROMPTS[:1], tmp_path / "out")


def test_fewer_images_at_a_time_where_memory_is_full(base, tmp_path, monkeypatch):
    """More than two images do not fit: the same noise in other batches, and the settings say how many were made."""
    whole, tried = sampling.call_pipeline, []

    def full(pipeline, rows, *told):
        tried.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError
        return whole(pipeline, rows, *told)

    generate(options(base, steps=1, batch=1), PROMPTS, tmp_path / "alone", label="x")
    assert FITTED not in read_settings(tmp_path / "alone")
    monkeypatch.setattr(sampling, "call_pipeline", full)
    generate(options(base, steps=1, batch=4), PROMPTS, tmp_path / "out", label="x")
    assert tried == [4, 2, 2, 2]
    settings = read_settings(tmp_path / "out")
    assert (settings["batch"], settings[FITTED]) == (4, 2)
    media = read_media(tmp_path / "out")
    assert np.abs(pixels(tmp_path / "alone", media) - pixels(tmp_path / "out", media)).max() <= 1
    assert generate(options(base, steps=1, batch=4), PROMPTS, tmp_path / "out", label="x").reused == 6
    assert read_settings(tmp_path / "out")[FITTED] == 2


@pytest.mark.parametrize(
    ("device", "asked", "dtype", "batch"),
    [
        ("cpu", {}, "float32", 4),
        ("mps", {}, "float32", 4),
        ("cuda", {}, "float16", 32),
        ("cuda:1", {"size": (512, 512)}, "float16", 64),
        ("cuda", {"size": (2048, 1024)}, "float16", 16),
        ("cuda", {"dtype": "float32", "batch": 3}, "float32", 3),
    ],
)
def test_a_gpu_samples_in_half_precision_and_large_batches(base, device, asked, dtype, batch):
    given = options(base, **{"batch": None} | asked)
    settled = settle(given, Request.of(options(base)).model, Plan(1, None), device)
    assert (settled.dtype, settled.batch) == (dtype, batch)


def test_an_image_that_cannot_be_written_stops_the_sampling(base, tmp_path, monkeypatch):
    """Writing happens behind the sampling; what it raises is raised, and batches before it are there."""

    def fail(clip, suffix):
        if (failed := len(written)) == 2:
            raise UserError("the disk is full")
        written.append(failed)
        return encode(clip, suffix)

    written: list[int] = []
    monkeypatch.setattr(work, "encode", fail)
    with pytest.raises(UserError, match="the disk is full"):
        generate(options(base, batch=2, steps=1), PROMPTS, tmp_path / "out", label="x")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["000000-s0.png", "000000-s7.png"]
