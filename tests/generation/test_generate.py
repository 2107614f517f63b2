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
from peft import LoraConfig, get_peft_model_state_dict
from tiny import PIPELINES, save_pipeline

from diffpo.errors import UserError
from diffpo.generation.generate import GenerateOptions, generate, sample_images
from diffpo.media.folder import read_media, read_settings
from diffpo.media.prompts import PromptSet
from diffpo.models.pipelines import find_model, find_tuned

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
    return GenerateOptions(
        **{"model": str(base), "seeds": (0, 7), "steps": 3, "guidance": 3.0, "batch": 1, "device": "cpu"} | changes
    )


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


@pytest.mark.parametrize("name", PIPELINES)
def test_every_family(name, tmp_path):
    """SD, SDXL and SD3 pipelines: at their own size and another one, as plain diffusers does."""
    folder = save_pipeline(name, tmp_path / "base")
    pipeline = DiffusionPipeline.from_pretrained(folder)
    generate(options(folder, seeds=(5,), negative_prompt="blue"), PROMPTS[:1], tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(5)
    expected = pipeline(
        PROMPTS[0], negative_prompt="blue", num_inference_steps=3, guidance_scale=3.0, generator=generator
    ).images[0]
    np.testing.assert_array_equal(pixels(tmp_path / "out", read_media(tmp_path / "out"))[0], np.asarray(expected))
    images = sample_images(pipeline, PROMPTS[:2], [0, 1], steps=1, guidance=3.0, size=(32, 16), negative_prompt="x")
    assert [image.size for image in images] == [(16, 32)] * 2


def test_the_batch_does_not_choose_the_noise(base, tmp_path):
    for batch in (1, 4):
        generate(options(base, batch=batch), PROMPTS, tmp_path / str(batch), label="x")
    media = read_media(tmp_path / "1")
    one, four = (pixels(tmp_path / name, media) for name in ("1", "4"))
    assert np.abs(one - four).max() <= 1
    assert np.abs(one[0] - one[1]).max() > 10  # another seed is another image


def test_a_killed_run_continues_to_the_same_bytes(base, tmp_path):
    generate(options(base, batch=4), PROMPTS, tmp_path / "straight", label="x")
    whole = files(tmp_path / "straight")
    generate(options(base, batch=4), PROMPTS, tmp_path / "killed", label="x")
    lost = tmp_path / "killed" / "000000-s7.png"
    lost.unlink()  # killed in the first batch: its other images are made again with it
    with open(tmp_path / "killed" / "manifest.jsonl", "a") as manifest:
        manifest.write('{"file": "00')
    (tmp_path / "killed" / ".tmp-1-000002-s0.png").write_bytes(b"half")
    result = generate(options(base, batch=4), PROMPTS, tmp_path / "killed", label="x")
    assert (result.images, result.reused) == (6, 2)
    assert files(tmp_path / "killed") == whole
    assert generate(options(base, batch=4), PROMPTS, tmp_path / "killed", label="x").reused == 6


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
    assert generate(options(base, size=(16, 16)), PROMPTS[:1], tmp_path / "out").images == 2


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
    generate(options(base, distinct_seeds=True, seeds=(4, 5)), PROMPTS, tmp_path / "out", label="x")
    assert [m.seed for m in read_media(tmp_path / "out")] == [4, 5, 6, 7, 8, 9]


def test_sampling_leaves_no_trace(base):
    """The trainer samples from networks that are in training: modes and random state stay."""
    pipeline = DiffusionPipeline.from_pretrained(base)
    pipeline.unet.train()
    pipeline.unet.conv_in.eval()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    images = sample_images(
        pipeline, ["a", "b", "a"], [1, 1, 2], steps=2, guidance=2.0, batch=2, size=(24, 32), negative_prompt="c"
    )
    assert [image.size for image in images] == [(32, 24)] * 3
    assert torch.equal(torch.get_rng_state(), before)
    assert pipeline.unet.training and not pipeline.unet.conv_in.training and not pipeline.vae.training
    again = sample_images(pipeline, ["a"], [2], steps=2, guidance=2.0, size=(24, 32), negative_prompt="c")
    assert np.abs(np.asarray(images[2], dtype=int) - np.asarray(again[0], dtype=int)).max() <= 1


def test_not_a_number_is_an_error(base):
    pipeline = DiffusionPipeline.from_pretrained(base)
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="not-a-numbers"):
        sample_images(pipeline, ["a"], [0], steps=1, guidance=1.0)


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
