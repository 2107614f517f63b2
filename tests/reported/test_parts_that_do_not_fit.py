"""Parts of a model that do not fit together end a run before anything is encoded: exit 2, and both sizes are named."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from runs import World
from tiny import clip_config, sd, unet, vae
from typer.testing import CliRunner

from diffpo.commands.app import app
from diffpo.compat import ensure_torchvision
from diffpo.errors import UserError
from diffpo.models.tuning import Full

ensure_torchvision()

from transformers import CLIPTextModel  # noqa: E402


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("world"), "sd15", "sdxl", "sd3", "pixart")


def with_part(world: World, folder, name: str, part):
    shutil.copytree(world.folder / "sd15", folder, dirs_exist_ok=True)
    shutil.rmtree(folder / name)
    part.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(
    ("name", "part", "said"),
    [
        ("unet", lambda: unet(in_channels=9), "its vae gives latent channels of 4, its unet takes 9"),
        ("vae", lambda: vae(8), "its vae gives latent channels of 8, its unet takes 4"),
        ("unet", lambda: unet(cross_attention_dim=32), "its text_encoder gives text width of 24, its unet takes 32"),
    ],
)
def test_a_part_of_another_model(world, tmp_path, name, part, said):
    folder = with_part(world, tmp_path / "model", name, part())
    with pytest.raises(UserError, match=said) as caught:
        Full(path=str(folder)).find()
    assert str(folder / name) in str(caught.value)


def test_a_pooled_text_of_another_width(world, tmp_path):
    """SDXL's second encoder and SD3's two: their pooled states, beside the widths of the text."""
    for model, part, said in (
        ("sdxl", "text_encoder_2", "text_encoder_2 gives pooled text width of 40, its unet takes 24"),
        ("sd3", "text_encoder", "text_encoder and text_encoder_2 gives pooled text width of 64, its transformer takes"),
    ):
        folder = shutil.copytree(world.folder / model, tmp_path / model)
        file = folder / part / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"projection_dim": 40}))
        with pytest.raises(UserError, match=said):
            Full(path=str(folder)).find()


def test_t5_of_another_width(world, tmp_path):
    folder = shutil.copytree(world.folder / "pixart", tmp_path / "pixart")
    file = folder / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"d_model": 32}))
    with pytest.raises(UserError, match="its text_encoder gives text width of 32, its transformer takes 24"):
        Full(path=str(folder)).find()


def test_a_vae_of_another_model(world):
    with pytest.raises(UserError, match="its vae gives latent channels of 8, its unet takes 4"):
        Full(path=str(world.folder / "sd15"), vae=str(world.folder / "sd3" / "vae")).find()


def test_a_denoiser_of_another_family(world):
    with pytest.raises(UserError, match=r"model\.denoiser is a SD3Transformer2DModel .* has a UNet2DConditionModel"):
        Full(path=str(world.folder / "sd15"), denoiser=str(world.folder / "sd3" / "transformer")).find()


def test_a_denoiser_of_another_width(world):
    """SDXL's UNet is of the same class as Stable Diffusion's."""
    with pytest.raises(UserError, match="gives text width of 24, its unet takes 48"):
        Full(path=str(world.folder / "sd15"), denoiser=str(world.folder / "sdxl" / "unet")).find()


def test_the_command_ends_before_it_encodes(world, tmp_path, monkeypatch):
    """Exit code 2, and nothing was written to the cache."""
    folder = with_part(world, tmp_path / "model", "unet", unet(in_channels=9))
    monkeypatch.setenv("DIFFPO_CACHE", str(tmp_path / "cache"))
    tree = world.tree("run", {"model.path": str(folder)})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match="latent channels of 4, its unet takes 9"):
        CliRunner().invoke(app, ["train", str(tmp_path / "run.yaml")], catch_exceptions=False)
    assert not list((tmp_path / "cache").rglob("*.safetensors")) and not list((tmp_path / "cache").rglob("*.arrow"))


def test_whole_models_pass(world):
    for name in ("sd15", "sdxl", "sd3", "pixart"):
        assert Full(path=str(world.folder / name)).find().pipeline


def test_a_pipeline_that_fits_is_not_refused_for_what_its_files_leave_out(tmp_path):
    """Old configurations lack sizes that newer ones name: nothing is compared then."""
    with torch.random.fork_rng():
        pipeline = sd("epsilon")
    pipeline.text_encoder = CLIPTextModel(clip_config())
    pipeline.save_pretrained(tmp_path / "sd15")
    file = tmp_path / "sd15" / "text_encoder" / "config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "hidden_size"}))
    assert Full(path=str(tmp_path / "sd15")).find().component == "unet"
