"""Folders as people have them: half-precision files only, SD3 without T5, schedulers that say nothing of v."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from runs import World
from tiny import PIPELINES
from tiny_steps import ask, make, pair_batch

from diffpo.compat import ensure_torchvision

ensure_torchvision()

from diffusers import DiffusionPipeline  # noqa: E402

from diffpo.core.process import FlowProcess  # noqa: E402
from diffpo.errors import UserError  # noqa: E402
from diffpo.models.encoders import Encoders  # noqa: E402
from diffpo.models.finding import find_model, find_pipeline  # noqa: E402
from diffpo.models.pipelines import open_pipeline, variant  # noqa: E402
from diffpo.models.tuning import Full  # noqa: E402


@pytest.fixture(scope="module")
def half(pipelines, tmp_path_factory):
    """SDXL as many hosts keep it: `*.fp16.safetensors` and nothing else."""
    folder = tmp_path_factory.mktemp("half") / "sdxl"
    pipeline = DiffusionPipeline.from_pretrained(pipelines("sdxl"), dtype=torch.float16)
    pipeline.save_pretrained(folder, variant="fp16")
    assert all(".fp16" in file.name for file in folder.rglob("*.safetensors"))
    return folder


def test_half_precision_files_are_taken_where_there_are_no_others(half, pipelines):
    """Policy, encoders and sampling; computed in float32, of the weights that the files hold."""
    policy, _ = make(half, "full")
    whole, _ = make(pipelines("sdxl"), "full")
    assert {p.dtype for p in policy.network.parameters()} == {torch.float32}
    expected = {name: x.half().float() for name, x in whole.network.state_dict().items()}
    assert all(torch.equal(x, expected[name]) for name, x in policy.network.state_dict().items())
    text = Encoders(Full(path=str(half)), "cpu").encode_prompt("a red circle")["text"]
    assert text.dtype == torch.float32 and text.isfinite().all()
    pipeline = open_pipeline(find_model(str(half)), dtype=torch.float32, device="cpu")
    assert torch.equal(pipeline.unet.conv_in.weight, policy.network.conv_in.weight)


def test_whole_files_are_preferred(half, pipelines, tmp_path):
    folder = shutil.copytree(pipelines("sdxl") / "unet", tmp_path / "unet")
    assert variant(half / "unet") == "fp16" and variant(folder) is None
    for file in (half / "unet").glob("*.safetensors"):
        shutil.copy(file, folder)
    assert variant(folder) is None


def test_half_precision_parts_replace_others(half, pipelines):
    """`model.vae` and `model.denoiser` are such folders, too."""
    policy, _ = make(pipelines("sdxl"), "full", denoiser=str(half / "unet"))
    assert torch.equal(policy.network.conv_in.weight, make(half, "full")[0].network.conv_in.weight)
    frames = torch.zeros(3, 1, 16, 16)
    mixed = Encoders(Full(path=str(pipelines("sdxl")), vae=str(half / "vae")), "cpu").encode_media(frames)
    assert torch.equal(mixed[0], Encoders(Full(path=str(half)), "cpu").encode_media(frames)[0])


@pytest.fixture(scope="module")
def without_t5(pipelines, tmp_path_factory):
    """SD3 as people download it to save 10 GB: `[null, null]` for T5 and its tokenizer."""
    folder = tmp_path_factory.mktemp("clip") / "sd3"
    DiffusionPipeline.from_pretrained(pipelines("sd3"), text_encoder_3=None, tokenizer_3=None).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["text_encoder_3"] == [None, None] and not (folder / "text_encoder_3").exists()
    return folder


def test_sd3_without_t5(without_t5, pipelines):
    """Encoded as the pipeline itself does when it samples; it trains, and its CLIP states are those of the whole."""
    encoders = Encoders(Full(path=str(without_t5)), "cpu")
    encoded = encoders.encode_prompt("a red circle")
    pipeline = DiffusionPipeline.from_pretrained(without_t5, text_encoder_3=None, tokenizer_3=None)
    with torch.no_grad():
        text, _, pooled, _ = pipeline.encode_prompt(
            *["a red circle"] * 3, device="cpu", do_classifier_free_guidance=False
        )
    assert torch.equal(encoded["text"], text[0]) and torch.equal(encoded["pooled"], pooled[0])
    whole = Encoders(Full(path=str(pipelines("sd3"))), "cpu").encode_prompt("a red circle")
    assert torch.equal(encoded["text"][:16], whole["text"][:16]) and not encoded["text"][16:].any()
    assert encoders.count_cut(["a" * 20]) == {16: 1}
    assert open_pipeline(find_model(str(without_t5)), dtype=torch.float32, device="cpu").text_encoder_3 is None
    policy, _ = make(without_t5, "full")
    assert ask(policy, pair_batch("sd3", [0])).isfinite().all()


@pytest.fixture
def silent(pipelines, tmp_path):
    """A v model whose scheduler file does not say so."""
    folder = shutil.copytree(pipelines("sd2"), tmp_path / "sd2")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "prediction_type"}))
    return folder


def test_what_the_network_predicts_can_be_said(silent):
    """It reaches the loss, and the pipeline that draws samples while training."""
    assert make(silent, "full")[0].process.prediction == "eps"
    policy, reference = make(silent, "full", prediction="v")
    assert policy.process.prediction == reference.process.prediction == "v"
    encoders = Encoders(Full(path=str(silent), prediction="v"), "cpu")
    assert encoders.with_denoiser(policy.network).scheduler.config.prediction_type == "v_prediction"
    told = Encoders(Full(path=str(silent)), "cpu").with_denoiser(policy.network).scheduler.config
    assert told.prediction_type == "epsilon"


def test_a_flow_model_predicts_nothing_else(pipelines):
    assert isinstance(make(pipelines("sd3"), "full")[0].process, FlowProcess)
    with pytest.raises(UserError, match=r"model\.prediction is v, but a StableDiffusion3Pipeline predicts flow"):
        make(pipelines("sd3"), "full", prediction="v")


@pytest.mark.parametrize("name", PIPELINES)
def test_the_empty_text(pipelines, name):
    """`zeros` changes the empty prompt alone, and with it the identity of the encoder; masks stay."""
    encoded, zeros = (
        Encoders(Full(path=str(pipelines(name)), empty_text=kind), "cpu") for kind in ("encoded", "zeros")
    )
    assert encoded.fingerprint != zeros.fingerprint
    empty = zeros.encode_prompt("")
    for key, x in encoded.encode_prompt("").items():
        assert empty[key].shape == x.shape and empty[key].dtype == x.dtype
        assert torch.equal(empty[key], x) if x.dtype == torch.bool else not empty[key].any()
        assert x.any() or key.startswith("quoted"), "the empty prompt has no quotation marks"
    for key, x in encoded.encode_prompt("a").items():
        assert torch.equal(zeros.encode_prompt("a")[key], x)


def test_zeros_are_what_sdxl_samples_with(pipelines):
    """The unconditional half of guidance, where the pipeline's index says `force_zeros_for_empty_prompt`."""
    pipeline = DiffusionPipeline.from_pretrained(pipelines("sdxl"))
    assert pipeline.config.force_zeros_for_empty_prompt
    with torch.no_grad():
        _, text, _, pooled = pipeline.encode_prompt("a", device="cpu")
    ours = Encoders(Full(path=str(pipelines("sdxl")), empty_text="zeros"), "cpu").encode_prompt("")
    assert torch.equal(ours["text"], text[0]) and torch.equal(ours["pooled"], pooled[0])


def test_caption_dropout_gives_what_the_empty_text_is(tmp_path):
    """The setting reaches the run: another empty text is another loss where captions are dropped, and only there."""
    world = World.make(tmp_path, "sdxl")
    for dropout, differ in ((0.0, False), (1.0, True)):
        runs = [
            world.train(
                f"{kind}-{dropout}",
                {"model.empty_text": kind, "data.caption_dropout": dropout, "train.steps": 2, "model.name": "full"},
                "sdxl",
            )
            for kind in ("encoded", "zeros")
        ]
        lines = [[line["error/chosen"] for line in map(json.loads, (run / "metrics.jsonl").open())] for run in runs]
        assert (lines[0] != lines[1]) == differ


def test_weights_are_named_when_somebody_asks_and_only_then(pipelines, tmp_path):
    """Finding a model reads none of its gigabytes; the name, once given, stays."""
    folder = shutil.copytree(pipelines("sd15"), tmp_path / "model")
    first, later = find_pipeline(str(folder)), find_pipeline(str(folder))
    name = first.identity
    (weights,) = (folder / "unet").glob("*.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert first.identity == name
    assert later.identity == find_pipeline(str(folder)).identity != name
