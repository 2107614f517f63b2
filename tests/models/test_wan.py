"""Wan from pairs to clips: what its parts are given, a run and its export, and what `generate` makes of it."""

from __future__ import annotations

import json
import shutil
import weakref

import numpy as np
import pytest
import torch
from runs import World, assert_same, contents, metrics
from tiny import CLIPS, save_pipeline
from tiny_steps import make, pair_batch, times

from diffpo.compat import ensure_torchvision

ensure_torchvision()

from diffusers import DiffusionPipeline, WanTransformer3DModel  # noqa: E402
from PIL import Image  # noqa: E402

from diffpo.core.process import FlowProcess  # noqa: E402
from diffpo.core.types import Condition  # noqa: E402
from diffpo.errors import UserError  # noqa: E402
from diffpo.generation.generate import generate  # noqa: E402
from diffpo.generation.settings import GenerateOptions  # noqa: E402
from diffpo.media.folder import open_clip, read_media, read_settings  # noqa: E402
from diffpo.models import FAMILIES  # noqa: E402
from diffpo.models.bases import find_base  # noqa: E402
from diffpo.models.encoders import Encoders, _scaled  # noqa: E402
from diffpo.models.finding import find_model  # noqa: E402
from diffpo.models.pipelines import open_pipeline  # noqa: E402
from diffpo.models.tuning import Full  # noqa: E402

MEAN, STD = torch.linspace(-0.7, 0.5, 4).tolist(), torch.linspace(2.8, 0.5, 4).tolist()
PROMPT = "a red circle moves left"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("wan"), "wan", rows=6)


@pytest.fixture(scope="module")
def lora(world):
    """Three updates of an adapter, feed-forward layers among its targets, with samples while training."""
    targets = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
    changes = {"model.targets": targets, "train.checkpoint_every": 2, "train.sample_every": 3}
    sample = {"sample.prompts": [PROMPT], "sample.frames": 5, "sample.size": [16, 16], "sample.fps": 4}
    return world.train("lora", changes | sample, family="wan")


@pytest.fixture(scope="module")
def full(world):
    return world.train("full", {"model.name": "full", "train.steps": 2}, family="wan")


def options(folder, **changes) -> GenerateOptions:
    usual = {"model": str(folder), "frames": 5, "size": (16, 16), "steps": 2, "guidance": 3.0, "noise": "shared"}
    return GenerateOptions(**usual | {"device": "cpu", "batch": 1} | changes)


def plain(pipeline, seed: int = 0, prompt: str = PROMPT) -> np.ndarray:
    """Frames `[f h w 3]` of bytes, as a user of plain diffusers makes them."""
    pipeline.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np", **CLIPS["wan"]}
    made = pipeline(prompt, generator=torch.Generator().manual_seed(seed), **how).frames[0]
    return (made * 255).round().astype(np.uint8)


def frames(clip) -> np.ndarray:
    return np.stack([np.asarray(frame) for frame in clip.frames])


def test_the_latents_are_the_mode_normalised_channel_by_channel(pipelines):
    """(mode - mean) / deviation of the VAE's configuration."""
    encoders = Encoders(Full(path=str(pipelines("wan"))), "cpu")
    clip = 2 * torch.rand(3, 9, 16, 32, generator=torch.Generator().manual_seed(0)) - 1
    mean, std = encoders.encode_media(clip)
    assert mean.shape == (4, 3, 2, 4) and std.shape == mean.shape and not std.any()
    pipeline = DiffusionPipeline.from_pretrained(pipelines("wan"))
    with torch.no_grad():
        mode = pipeline.vae.encode(clip[None]).latent_dist.mode()[0]
    for channel, (centre, spread) in enumerate(zip(MEAN, STD, strict=True)):
        torch.testing.assert_close(mean[channel], (mode[channel] - centre) / spread, rtol=1e-5, atol=1e-6)


def test_each_latent_frame_is_four_frames_and_the_first_one_alone(pipelines):
    """A change of frame 5 reaches no latent frame before that of frames 5 to 8: labels of frames rest on it."""
    encoders = Encoders(Full(path=str(pipelines("wan"))), "cpu")
    clip = torch.rand(3, 9, 16, 16, generator=torch.Generator().manual_seed(0))
    other = clip.clone()
    other[:, 5] += 0.5
    changed = (encoders.encode_media(clip)[0] != encoders.encode_media(other)[0]).flatten(2).any(2).any(0)
    assert changed.tolist() == [False, False, True]


@pytest.mark.parametrize(("count", "near"), [(2, "1 and 5"), (8, "5 and 9"), (81, None), (1, None)])
def test_lengths(pipelines, count, near):
    family, vae = find_base(str(pipelines("wan"))).family, {}
    if near is None:
        family.check_frames(count, vae)
    else:
        with pytest.raises(UserError, match=rf"WanPipeline takes clips of k \* 4 \+ 1 frames.* {near}"):
            family.check_frames(count, vae)


def test_the_text_is_the_pipelines_512_tokens(pipelines):
    """A cache holds the prompt's own tokens; the network is given zeros behind them, as the sampler gives it."""
    encoded = Encoders(Full(path=str(pipelines("wan"))), "cpu").encode_prompt("a red circle")
    pipeline = DiffusionPipeline.from_pretrained(pipelines("wan"))
    with torch.no_grad():
        states = pipeline.encode_prompt("a red circle", max_sequence_length=512)[0]
    own = len(pipeline.tokenizer("a red circle").input_ids)
    assert encoded["text"].shape == (own, 24) and encoded["mask"].all() and len(encoded["mask"]) == own
    torch.testing.assert_close(encoded["text"], states[0, :own], rtol=1e-5, atol=1e-6)
    assert not states[0, own:].any()
    denoiser, _ = make(pipelines("wan"), "full")
    heard = []
    denoiser.network.register_forward_pre_hook(lambda _, args: heard.append(args[2]))
    longer = Condition(torch.full((1, 40, 24), 9.0), mask=torch.arange(40)[None] < own)
    longer.text[:, :own] = encoded["text"]
    with torch.no_grad():
        denoiser.predict(pair_batch("wan", [0]).latent.chosen, torch.tensor([0.5]), longer)
    torch.testing.assert_close(heard[0], states, rtol=1e-5, atol=1e-6)


def test_times_are_shifted_as_the_sampler_shifts_them(pipelines, tmp_path):
    """UniPC says it as flow_shift, FlowMatchEuler as shift; a scheduler for discrete models is refused."""
    folder = shutil.copytree(pipelines("wan"), tmp_path / "wan")
    file = folder / "scheduler" / "scheduler_config.json"
    unipc = json.loads(file.read_text())
    for scheduler, shift in ((unipc, 3.0), ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 5.0}, 5.0)):
        file.write_text(json.dumps(scheduler))
        process = make(folder, "full")[0].process
        assert isinstance(process, FlowProcess) and process.shift == shift
    pipeline = DiffusionPipeline.from_pretrained(pipelines("wan"))
    pipeline.scheduler.set_timesteps(8)
    grid = make(pipelines("wan"), "full")[0].process.path(torch.tensor([1.0]), 8, "exact", (4, 3, 4, 4)).time
    torch.testing.assert_close(pipeline.scheduler.sigmas[:8].double(), grid.flatten().flip(0)[:8], rtol=0, atol=2e-3)
    file.write_text(json.dumps(unipc | {"use_flow_sigmas": False}))
    with pytest.raises(UserError, match="put use_flow_sigmas=true and prediction_type=flow_prediction into"):
        make(folder, "full")


def test_half_precision_leaves_what_diffusers_keeps_whole(pipelines):
    """A frozen base in bfloat16: modulations and times stay float32, inputs are cast to the weights'."""
    policy, reference = make(pipelines("wan"), "lora", dtype="bfloat16")
    kept = {name for name, p in policy.network.named_parameters() if p.dtype == torch.float32 and "lora" not in name}
    assert kept and all(part in " ".join(kept) for part in ("scale_shift_table", "time_embedder", "norm2"))
    assert policy.dtype == torch.bfloat16
    _, copied = make(pipelines("wan"), "full", dtype="bfloat16")
    assert {name for name, p in copied.denoiser.network.named_parameters() if p.dtype == torch.float32} == {
        name.replace(".base_layer", "") for name in kept
    }
    batch, t = pair_batch("wan", [0]), times(policy, [0.5])
    for denoiser in (policy, reference, copied):
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert denoiser.predict(batch.latent.chosen, t, batch.cond.chosen).isfinite().all()


def test_the_members_of_the_family_are_told_apart(pipelines):
    """By the pipeline's flag and by its second network."""
    for name, rate, frames in (("wan", 16, 81), ("wan-5b", 24, 121), ("wan-a14b", 16, 81)):
        family = find_base(str(pipelines(name))).family
        assert family is FAMILIES[name] and (family.fps, family.usual_frames) == (rate, frames)


def test_it_trains(lora, full):
    for run in (lora, full):
        first, *_, last = metrics(run)
        assert first["rewards/margins"] == 0.0, "policy and reference start equal"
        assert last["rewards/margins"] != 0.0 and last["grad_norm"] > 0


def test_a_run_that_was_stopped_continues_bit_for_bit(world, lora):
    again = shutil.copytree(lora, world.folder / "again")
    shutil.rmtree(again / "final")
    shutil.rmtree(again / "checkpoints" / "step-000003")
    tree = world.tree("again", {"model.targets": ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"],
        "train.checkpoint_every": 2, "train.sample_every": 3, "sample.prompts": [PROMPT], "sample.frames": 5,
        "sample.size": [16, 16], "sample.fps": 4}, "wan")  # fmt: skip
    from diffpo.config.run import build
    from diffpo.training.train import train

    assert_same(contents(train(build(tree))), contents(lora))


def test_samples_of_a_run_are_clips(lora):
    """The base's are kept as clips, and the grid shows strips of their frames."""
    (base,) = (lora / "samples").glob("base-*")
    (item,) = read_media(base)
    assert (item.frames, item.fps) == (5, 4.0) and len(open_clip(base, item).frames) == 5
    assert Image.open(lora / "samples" / "step-000003.png").width > 4 * 2 * 256


def test_the_exports_load_in_plain_diffusers(world, lora, full):
    """The adapter and the whole transformer: the clips that `diffpo generate --tuned` makes, and not the base's."""
    base = world.folder / "wan"
    pipelines = {name: DiffusionPipeline.from_pretrained(base) for name in ("base", "lora", "full")}
    pipelines["lora"].load_lora_weights(lora / "final")
    pipelines["full"].transformer = WanTransformer3DModel.from_pretrained(full / "final" / "transformer")
    clips = {name: plain(pipeline) for name, pipeline in pipelines.items()}
    for name, run in (("lora", lora), ("full", full)):
        out = world.folder / f"clips-{name}"
        generate(options(base, tuned=str(run)), [PROMPT], out)
        np.testing.assert_array_equal(frames(open_clip(out, read_media(out)[0])), clips[name])
        assert not np.array_equal(clips[name], clips["base"])


def test_generate_writes_clips_and_continues(world, tmp_path):
    """The manifest names frames and rate; a clip that is missing is made again, the same."""
    base, out = world.folder / "wan", tmp_path / "out"
    asked = options(base, seeds=(0, 7), fps=12.5)
    generate(asked, [PROMPT], out)
    media = read_media(out)
    assert [(item.seed, item.frames, item.fps) for item in media] == [(0, 5, 12.5), (7, 5, 12.5)]
    assert (read_settings(out)["frames"], read_settings(out)["fps"]) == (5, 12.5)
    clips = [open_clip(out, item) for item in media]
    assert [len(clip.frames) for clip in clips] == [5, 5] and clips[0].fps == pytest.approx(12.5)
    pipeline = DiffusionPipeline.from_pretrained(base)
    for item, clip in zip(media, clips, strict=True):
        np.testing.assert_array_equal(frames(clip), plain(pipeline, item.seed))
    before = (out / media[1].file).read_bytes()
    (out / media[1].file).unlink()
    assert generate(asked, [PROMPT], out).reused == 1
    assert (out / media[1].file).read_bytes() == before
    with pytest.raises(UserError, match="frames was 5, is now 9"):
        generate(options(base, seeds=(0, 7), fps=12.5, frames=9), [PROMPT], out)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frames": 6}, r"k \* 4 \+ 1 frames; it was given 6 frames.* 5 and 9"),
        ({"size": (16, 24)}, r"size 16x24: height and width must be multiples of 16 .* example 16x32"),
    ],
)
def test_what_the_model_cannot_make_is_refused_before_it_loads(world, tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        generate(options(world.folder / "wan", **changes), [PROMPT], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_of_images_makes_no_clips(pipelines, tmp_path):
    with pytest.raises(UserError, match="a StableDiffusionPipeline takes images; it was given a clip of 5 frames"):
        generate(options(pipelines("sd15")), [PROMPT], tmp_path / "out")


def test_samples_that_a_run_could_not_draw_end_it_before_it_encodes(world, monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFPO_CACHE", str(tmp_path))
    changes = {"train.sample_every": 1, "sample.prompts": [PROMPT], "sample.frames": 7}
    with pytest.raises(UserError, match="it was given 7 frames"):
        world.train("never", changes, family="wan")
    assert not list(tmp_path.rglob("*.arrow"))


def test_the_vae_samples_in_single_precision(tmp_path):
    """The rest in half, as the model's authors sample; the encoders of a run likewise."""
    folder = save_pipeline("wan", tmp_path / "wan")
    pipeline = open_pipeline(find_model(str(folder)), dtype=torch.bfloat16, device="cpu")
    assert pipeline.vae.dtype == torch.float32
    assert pipeline.transformer.dtype == pipeline.text_encoder.dtype == torch.bfloat16
    parts = Encoders(Full(path=str(folder), encoder_dtype="bfloat16"), "cpu").pipeline
    assert parts.vae.dtype == torch.float32 and parts.text_encoder.dtype == torch.bfloat16
    assert parts.transformer is None, "encoding does not load the network"


def test_pieces_are_what_the_vae_reads_of_the_whole_clip(pipelines):
    """Pixels that are scaled and handed over four frames at a time give the latents of `vae.encode`, bit for bit."""
    encoders = Encoders(Full(path=str(pipelines("wan"))), "cpu")
    pixels = torch.randint(0, 256, (3, 13, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert [*map(len, encoders.family.pieces(13))] == [1, 4, 4, 4]
    scaled = torch.from_numpy(pixels.numpy().astype("float32") / 127.5 - 1.0)
    with torch.no_grad():
        whole, _ = encoders.family.encode_media(encoders.pipeline, scaled[None])
    for _ in range(2):
        assert torch.equal(encoders.encode_media(pixels)[0], whole[0])
    assert torch.equal(encoders.encode_media(scaled)[0], whole[0])
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(_scaled(every), torch.from_numpy(every.numpy().astype("float32") / 127.5 - 1.0))


def test_one_piece_of_a_clip_is_in_memory_at_a_time(pipelines):
    encoders, alive, most = Encoders(Full(path=str(pipelines("wan"))), "cpu"), weakref.WeakSet(), []

    def pieces():
        for part in encoders.family.pieces(41):
            piece = torch.zeros(1, 3, len(part), 16, 16)
            alive.add(piece)
            most.append(len(alive))
            yield piece
            del piece

    with torch.no_grad():
        encoders.family.encode_pieces(encoders.pipeline, pieces())
    assert len(most) == 11 and max(most) <= 2
