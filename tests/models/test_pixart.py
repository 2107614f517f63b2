"""PixArt-Sigma from a table of pairs to plain diffusers, and the class name that its published files have."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from runs import World, metrics
from tiny_steps import make

from diffpo.compat import ensure_torchvision

ensure_torchvision()

from diffusers import DiffusionPipeline, PixArtTransformer2DModel  # noqa: E402

from diffpo.errors import UserError  # noqa: E402
from diffpo.models.finding import find_model  # noqa: E402
from diffpo.models.pipelines import open_pipeline  # noqa: E402
from diffpo.models.tuning import Full  # noqa: E402

ADAPTER = {"model.name": "lora", "method.name": "dpo", "train.steps": 2, "train.batch": 3}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("pixart"), "pixart", rows=6)


@pytest.fixture(scope="module")
def run(world):
    """Two updates of three pairs with two captions each, every weight."""
    changes = {"model.name": "full", "method.name": "dcpo", "data.path": "labelled.jsonl", "train.steps": 2}
    return world.train("run", changes | {"train.batch": 3}, family="pixart")


def test_it_trains_on_two_captions(run):
    first, second = metrics(run)
    assert first["rewards/margins"] == 0.0, "policy and reference start equal, masks and all"
    assert second["rewards/margins"] != 0.0 and second["grad_norm"] > 0


def test_the_export_loads_in_plain_diffusers(world, run):
    """Other weights than the base's, the same as what `diffpo generate --tuned` draws with."""
    base = world.folder / "pixart"
    tuned = PixArtTransformer2DModel.from_pretrained(run / "final" / "transformer")
    plain = DiffusionPipeline.from_pretrained(base, transformer=tuned)
    ours = open_pipeline(find_model(str(base), tuned=str(run)), dtype=torch.float32, device="cpu")
    before = DiffusionPipeline.from_pretrained(base).transformer.state_dict()
    for name, weight in plain.transformer.state_dict().items():
        assert torch.equal(weight, ours.transformer.state_dict()[name])
    assert any(not torch.equal(weight, before[name]) for name, weight in tuned.state_dict().items())
    pictures = draw(plain), draw(ours)
    assert (pictures[0] == pictures[1]).all() and pictures[0].shape == (1, 16, 16, 3)


def test_published_files_name_a_class_that_diffusers_has_split(world, run, tmp_path):
    """`Transformer2DModel` in the index and in the network's configuration, as PixArt-Sigma was published."""
    folder = shutil.copytree(world.folder / "pixart", tmp_path / "published")
    for file, key, value in (
        ("model_index.json", "transformer", ["diffusers", "Transformer2DModel"]),
        ("transformer/config.json", "_class_name", "Transformer2DModel"),
    ):
        tree = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(tree | {key: value}))
    base = Full(path=str(folder)).find()
    assert base.network_class is PixArtTransformer2DModel
    policy, _ = make(folder, "full")
    assert type(policy.network) is PixArtTransformer2DModel
    Full(path=str(folder)).save(tmp_path / "final", base, policy.network, dict(policy.network.state_dict()))
    assert PixArtTransformer2DModel.from_pretrained(tmp_path / "final" / "transformer")
    opened = open_pipeline(find_model(str(folder), tuned=str(run)), dtype=torch.float32, device="cpu")
    tuned = PixArtTransformer2DModel.from_pretrained(run / "final" / "transformer")
    assert torch.equal(opened.transformer.proj_out.weight, tuned.proj_out.weight)
    assert make(folder, "full", denoiser=str(run))[0].network.proj_out.weight.equal(tuned.proj_out.weight)


@pytest.fixture(scope="module")
def adapter(world):
    """Two updates of a LoRA."""
    return world.train("adapter", ADAPTER, family="pixart")


def test_an_adapter_is_pefts_folder_and_draws_in_plain_diffusers(world, adapter):
    """The two lines of the model card give the pictures of `diffpo generate --tuned`, and a run can go on from it."""
    from peft import PeftModel

    base, final = world.folder / "pixart", adapter / "final"
    card = (final / "README.md").read_text()
    assert 'pipe.transformer = PeftModel.from_pretrained(pipe.transformer, "PATH/OF/THIS/FOLDER")' in card
    plain = DiffusionPipeline.from_pretrained(base)
    before = draw(plain)
    plain.transformer = PeftModel.from_pretrained(plain.transformer, final)
    ours = open_pipeline(find_model(str(base), tuned=str(adapter)), dtype=torch.float32, device="cpu")
    assert (draw(plain) == draw(ours)).all() and (draw(plain) != before).any()

    further = world.train("further", ADAPTER | {"model.lora": str(adapter)}, family="pixart")
    assert metrics(further)[0]["rewards/margins"] == 0.0, "the reference is the base with the continued adapter"


def test_a_peft_folder_of_another_network_is_refused(world, adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(adapter / "final", tmp_path / "other")
    file = folder / "adapter_model.safetensors"
    save_file({name.replace("attn1", "attn9"): x for name, x in load_file(file).items()}, file)
    with pytest.raises(UserError, match=r"does not fit PixArtSigmaPipeline: .* fit nothing in it"):
        open_pipeline(find_model(str(world.folder / "pixart"), lora=str(folder)), dtype=torch.float32, device="cpu")


def draw(pipeline):
    return pipeline(
        "good 1",
        num_inference_steps=2,
        height=16,
        width=16,
        use_resolution_binning=False,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
