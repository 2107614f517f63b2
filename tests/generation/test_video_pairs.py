"""Guided pairs: where denoising begins, what two clips of a pair share, and that a killed call continues."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanVideoToVideoPipeline
from real_clips import ramp, video
from runs import ROOT, launch
from safetensors.torch import load_file
from shown import shown
from typer.testing import CliRunner

from diffpo.commands.app import app
from diffpo.core.process import Time
from diffpo.curate.inspect import guess_source
from diffpo.curate.video_pairs import write_video_pairs
from diffpo.data.cache import EncodingCache
from diffpo.data.encode import LiveEncodings
from diffpo.data.splits import load_table
from diffpo.errors import UserError
from diffpo.generation.generate import generate
from diffpo.generation.guided import denoise_clip
from diffpo.generation.settings import GenerateOptions, Sampler
from diffpo.generation.video_pairs import VideoPairOptions, make_video_pairs, read_frames
from diffpo.media.folder import Media, read_manifest
from diffpo.media.frames import decode_clip
from diffpo.models import family_of
from diffpo.models.encoders import Encoders
from diffpo.models.tunings import MODELS

SHIFTS = (3.0, 5.0, 5.66, 7.0)
ETAS = (0.65, 0.75, 0.8)
STRENGTHS = {
    3.0: (0.382, 0.5, 0.571),
    5.0: (0.271, 0.375, 0.444),
    5.66: (0.247, 0.346, 0.414),
    7.0: (0.21, 0.3, 0.364),
}
"""By shift, the strength that begins at each of `ETAS`."""
SMALL = Sampler(steps=12, guidance=3.0, size=(32, 32), frames=9)


@pytest.fixture(scope="module")
def wan():
    torch.manual_seed(0)
    return tiny.wan()


def frames_of(count=9, size=32):
    return torch.from_numpy(np.stack(ramp(count, size, size))).permute(3, 0, 1, 2).float() / 127.5 - 1


def spy(pipeline):
    """Record what the network is called with: latents and times."""
    network, calls = getattr(pipeline, family_of({"_class_name": type(pipeline).__name__}).components[0]), []

    def look(_, args, kwargs):
        z = kwargs.get("hidden_states", kwargs.get("sample", args[0] if args else None))
        z = torch.stack(z) if isinstance(z, list) else z
        calls.append((z.clone(), kwargs.get("timestep", args[1] if len(args) > 1 else None).flatten().clone()))

    return calls, network.register_forward_pre_hook(look, with_kwargs=True)


@pytest.mark.parametrize("kind", [UniPCMultistepScheduler, FlowMatchEulerDiscreteScheduler])
@pytest.mark.parametrize("shift", SHIFTS)
def test_denoising_begins_at_eta_whatever_the_shift(wan, kind, shift):
    if kind is UniPCMultistepScheduler:
        wan.scheduler = kind(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    else:
        wan.scheduler = kind(shift=shift)
    x0, _ = family_of({"_class_name": "WanPipeline"}).encode_media(wan, frames_of()[None])
    noise = torch.stack([torch.randn(x0.shape[1:], generator=torch.Generator().manual_seed(s)) for s in (5, 6)])
    for eta in ETAS:
        calls, hook = spy(wan)
        done = denoise_clip(wan, frames_of(), "a bird", eta, (5, 6), SMALL)
        hook.remove()
        z, times = calls[0]
        assert times.tolist() == pytest.approx([1000 * eta] * 2, abs=1e-4)
        torch.testing.assert_close(z, (1 - eta) * x0 + eta * noise)
        wan.scheduler.set_timesteps(12)
        below = wan.scheduler.timesteps[wan.scheduler.sigmas[:-1] < eta - 1e-3]
        assert [t[0].item() for _, t in calls[2::2]] == below.tolist()  # the grid below eta; two calls for guidance
        assert len(done.clips) == 2 and len(done.clips[0].frames) == 9 and done.latents.shape == (2, *x0.shape[1:])


@pytest.mark.parametrize("shift", SHIFTS)
def test_strength_of_diffusers_that_begins_at_eta(wan, shift):
    """A fine grid, so that diffusers' own rule for `strength` hits eta; and what passing eta as strength would do."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    parts = {name: getattr(wan, name) for name in ("tokenizer", "text_encoder", "transformer", "vae")}
    plain = WanVideoToVideoPipeline(**parts, scheduler=scheduler)
    scheduler.set_timesteps(999)

    def begins(strength):
        return plain.get_timesteps(999, scheduler.timesteps, strength, "cpu")[0][0].item() / 1000

    for eta, known in zip(ETAS, STRENGTHS[shift], strict=True):
        strength = eta / (shift - (shift - 1) * eta)  # as docs/video.md says
        assert strength == pytest.approx(known, abs=6e-4)
        assert begins(strength) == pytest.approx(eta, abs=4e-3)
    if shift == 5.66:
        assert begins(0.75) == pytest.approx(0.944, abs=2e-3)


def test_the_page_has_the_table_of_strengths():
    rows = re.findall(r"^\| *([\d.]+) *\|([\d. |]+)\|$", (ROOT / "docs" / "video.md").read_text(), re.M)
    told = {float(shift): tuple(map(float, rest.split("|"))) for shift, rest in rows}
    assert told == STRENGTHS


@pytest.mark.parametrize("name", [*tiny.DECODED, *tiny.CLIPS])
def test_every_family_begins_at_its_level_and_keeps_its_latents(name):
    """The first call sees the corrupted clip; what is kept decodes to the clip; a scheduler is as it was."""
    torch.manual_seed(0)
    pipeline = tiny.PIPELINES[name]()
    family, eta, seeds = family_of({**pipeline.config, "_class_name": type(pipeline).__name__}), 0.7, (5, 6)
    told = tiny.CLIPS.get(name, {"num_frames": 1, "height": 16, "width": 16})
    size = 64 if name in ("pixart", "pixart-alpha", "sana", "flux2", "flux2-klein") else told["height"]
    sampler = Sampler(steps=8, guidance=3.0, size=(size, size), frames=told["num_frames"])
    frames = frames_of(told["num_frames"], size)
    calls, hook = spy(pipeline)
    done = denoise_clip(pipeline, frames, "a bird", eta, seeds, sampler)
    hook.remove()
    x0, _ = family.encode_media(pipeline, frames[None])
    noise = torch.stack([torch.randn(x0.shape[1:], generator=torch.Generator().manual_seed(s)) for s in seeds])
    process = family.make_process(pipeline.scheduler.config, Time())
    if process.prediction == "flow":
        z = (1 - eta) * x0 + eta * noise
    else:
        pipeline.scheduler.set_timesteps(8)
        alpha, sigma = process.alpha_sigma(pipeline.scheduler.timesteps)
        first = next(i for i in range(8) if sigma[i] / alpha[i] <= eta / (1 - eta))
        assert first > 0 and calls[0][1][0].item() == pipeline.scheduler.timesteps[first].item()
        z = alpha[first].float() * x0 + sigma[first].float() * noise
        z = z / (sigma[first] ** 2 + alpha[first] ** 2).sqrt().float()
    heard = family.from_sampler(calls[0][0][: len(seeds)], z.shape[2:])  # further channels: pictures to begin with
    seen = heard[:, : z.shape[1]].reshape(z.shape)
    torch.testing.assert_close(seen, z, rtol=0, atol=5e-3 if name == "sdxl" else 1e-5)  # its times have fractions
    again = shown(pipeline, done.latents, told["num_frames"], (size, size))
    for clip, pixels in zip(done.clips, again, strict=True):
        kept = np.stack([np.asarray(frame) for frame in clip.frames]).astype(int)
        assert np.abs(kept - (pixels * 255).permute(1, 2, 3, 0).numpy()).max() < 1.01
    assert not {"set_timesteps", "step"} & vars(pipeline.scheduler).keys()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Three real clips with captions, of which one is too short."""
    folder = tmp_path_factory.mktemp("real")
    for name, count in (("a", 12), ("b", 9), ("short", 3)):
        (folder / f"{name}.mp4").write_bytes(video(ramp(count, 36, 34), fps=16.0))
        (folder / f"{name}.txt").write_text(f"a bird called {name}")
    return folder


OPTIONS = {"steps": 6, "guidance": 2.0, "frames": 5, "device": "cpu"}


def make(pipelines, real, out, **more):
    return make_video_pairs(VideoPairOptions(model=str(pipelines("wan")), **OPTIONS | more), real, out)


def test_a_clip_that_is_damaged_inside_is_named(tmp_path):
    """Its frames are counted, so it is not left out before; decoding it ends the run in a sentence."""
    data = bytearray(video(ramp(9, 160, 128), fps=8.0))
    start = data.index(b"mdat") + 800
    data[start : start + 800] = b"\xff" * 800
    (tmp_path / "bad.mp4").write_bytes(data)
    like = Media(file="bad.mp4", prompt="a", prompt_id=0, seed=0, model="m", frames=9, fps=8.0)
    with pytest.raises(
        UserError, match=r"bad\.mp4 is no readable clip: it cannot be decoded.*Mend it, or move it away"
    ):
        read_frames(tmp_path / "bad.mp4", like, None, 8)


def test_pairs_of_real_clips(pipelines, real, tmp_path, caplog):
    done = make(pipelines, real, tmp_path / "out")
    assert len(done.pairs) == 2 and list(done.left_out) == ["short.mp4"]
    assert "1 of 3 clips are left out: short.mp4: it has 3 frames at 16 per second where 5 are wanted" in caplog.text
    media = read_manifest(tmp_path / "out")
    assert [item.file for item in media] == [f"00000{i}-s{s}.mp4" for i in (0, 1) for s in (0, 1)]
    assert len({item.seed for item in media}) == 4 and all(0.65 <= pair.eta <= 0.8 for pair in done.pairs)
    assert done.pairs[0].eta != done.pairs[1].eta
    for item in media:
        clip = decode_clip(tmp_path / "out" / item.file)
        assert (len(clip.frames), clip.fps, clip.first.size) == (5, 16.0, (32, 32))  # 36 x 34, rounded down
        assert load_file(tmp_path / "out" / item.file.replace("mp4", "safetensors"))["latent"].shape == (4, 2, 4, 4)
    # A kill in between, or a clip that was removed: only that pair is made again, to the same bytes.
    whole = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for name in ("000001-s0.mp4", "000001-s0.safetensors"):
        (tmp_path / "out" / name).unlink()
    again = make(pipelines, real, tmp_path / "out")
    assert again.work.reused == 3 and {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == whole
    with pytest.raises(UserError, match=r"eta was .*is now"):
        make(pipelines, real, tmp_path / "out", eta=(0.7, 0.7))


def test_a_pair_does_not_depend_on_the_others(pipelines, real, tmp_path):
    (tmp_path / "one").mkdir()
    for name in ("b.mp4", "b.txt"):
        (tmp_path / "one" / name).write_bytes((real / name).read_bytes())
    both, one = (make(pipelines, folder, tmp_path / f"{i}") for i, folder in enumerate((real, tmp_path / "one")))
    assert both.pairs[1].eta == one.pairs[0].eta
    for s in (0, 1):
        assert (tmp_path / f"0/000001-s{s}.mp4").read_bytes() == (tmp_path / f"1/000000-s{s}.mp4").read_bytes()


def test_eta_of_one_makes_what_generate_makes(pipelines, real, tmp_path):
    pairs = make(pipelines, real, tmp_path / "out", eta=(1.0, 1.0), size=(32, 32)).pairs
    seeds = tuple(side.seed for side in pairs[0].sides)
    options = GenerateOptions(
        model=str(pipelines("wan")), **OPTIONS, size=(32, 32), seeds=seeds, noise="shared", batch=2
    )
    generate(options, [pairs[0].prompt], tmp_path / "plain")
    for side, seed in zip(pairs[0].sides, seeds, strict=True):
        assert (tmp_path / "out" / side.file).read_bytes() == (tmp_path / f"plain/000000-s{seed}.mp4").read_bytes()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"eta": (0.8, 0.65)}, "eta is 0.8 to 0.65; it goes from a smaller level"),
        ({"eta": (0.5, 1.5)}, "it must be at least 0 and at most 1"),
        ({"seeds": (1, 2, 3)}, "a pair has two clips: give two seeds"),
        ({"frames": 99}, r"none of the 3 clips .* it has 12 frames at 16 per second where 97|k \* 4 \+ 1"),
    ],
)
def test_what_is_not_possible_is_refused(pipelines, real, tmp_path, more, told):
    with pytest.raises(UserError, match=told):
        make(pipelines, real, tmp_path / "out", **more)


def test_the_command_writes_a_table_that_training_takes_for_ties(pipelines, real, tmp_path):
    out = tmp_path / "out"
    line = ["data", "video-pairs", str(pipelines("wan")), str(real), "--out", str(out), "--eta", "0.7"]
    line += ["--sampling", "steps=4,guidance=2,frames=5,size=[32, 32],device=cpu"]
    result = CliRunner().invoke(app, line, catch_exceptions=False)
    assert result.exit_code == 0 and "wrote 2 pairs" in result.output and "1 real clips are left out" in result.output
    rows = [json.loads(text) for text in (out / "metadata.jsonl").read_text().splitlines()]
    assert [(row["chosen"], row["rejected"], row["eta"], row["clip"]) for row in rows] == [
        (f"00000{i}-s0.mp4", f"00000{i}-s1.mp4", 0.7, name) for i, name in enumerate(("a.mp4", "b.mp4"))
    ]
    source = guess_source(str(out))
    with pytest.raises(UserError, match="2 are ties"):
        load_table(source, str(out), "train")
    table = load_table(replace(source, ties="keep"), str(out), "train")
    assert [Path(cell).name for cell in table.column("chosen")] == ["000000-s0.mp4", "000001-s0.mp4"]
    assert table.column("chosen_seed") == [row["chosen_seed"] for row in rows]
    assert json.loads((out / "train.provenance.json").read_text())["recipe"]["settings"]["eta"] == [0.7, 0.7]


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--eta", "0.65,0.8", "eta is '0.65,0.8'; write LOW..HIGH"),
        ("--eta", "0.65..", "eta is '0.65..'; write LOW..HIGH"),
        ("--sampling", "seeds=[1, 2]", "sampling sets seeds, for which there are options"),
        ("--sampling", "stepps=4", "unknown key.*steps"),
    ],
)
def test_wrong_options_are_named(pipelines, real, tmp_path, option, value, told):
    line = ["data", "video-pairs", str(pipelines("wan")), str(real), "--out", str(tmp_path / "out"), option, value]
    with pytest.raises(UserError, match=told):
        CliRunner().invoke(app, line, catch_exceptions=False)


class Counting(Encoders):
    """A model's own encoders, which count the clips that they encode."""

    count = 0

    def encode_media(self, frames):
        self.count += 1
        return super().encode_media(frames)


@pytest.mark.parametrize(
    ("change", "encoded"),
    [
        (None, 0),
        ("a clip was replaced", 1),
        ("another VAE", 4),
        ("scaled", 4),
        ("shortened", 4),
    ],
)
def test_training_takes_the_latents_that_were_kept(pipelines, real, tmp_path, monkeypatch, change, encoded):
    """What the sampler ended with is what training reads, unless something else would be seen of the clip."""
    monkeypatch.setenv("DIFFPO_CACHE", str(tmp_path / "cache"))
    out, frames = tmp_path / "out", 9
    pairs = make(pipelines, real, out, frames=frames, steps=2, size=(32, 32)).pairs
    write_video_pairs(out, [pair.row for pair in pairs], {})
    path = pipelines("wan")
    if change == "a clip was replaced":
        (out / pairs[0].sides[0].file).write_bytes(video(ramp(frames, 32, 32), fps=16.0))
    elif change == "another VAE":
        path = shutil.copytree(path, tmp_path / "other")
        config = json.loads((path / "vae" / "config.json").read_text()) | {"clip_output": False}
        (path / "vae" / "config.json").write_text(json.dumps(config))
    source = replace(guess_source(str(out)), ties="keep", resolution=16 if change == "scaled" else 32)
    source = replace(source, frames=5 if change == "shortened" else None)
    table, encoders = load_table(source, str(out), "train"), Counting(MODELS["lora"](path=str(path)), "cpu")
    cache = EncodingCache(table, source, encoders, seed=0)
    cache.fill()
    assert encoders.count == encoded
    rows, live = cache.open(), LiveEncodings(table, source, encoders, seed=0)
    for row, pair in enumerate(pairs):
        found, again = rows.images(row), live.images(row)
        assert found.keys() == again.keys() and all(torch.equal(found[name], again[name]) for name in found)
        for name, side in zip(("chosen", "rejected"), pair.sides, strict=True):
            kept = load_file(out / side.file.replace("mp4", "safetensors"))["latent"]
            same = found[f"{name}_mean"].shape == kept.shape and torch.equal(found[f"{name}_mean"], kept)
            assert same == (change is None or (change == "a clip was replaced" and (row, name) != (0, "chosen")))


@pytest.mark.slow
def test_two_processes_make_what_one_makes_and_mistakes_exit_with_two(pipelines, real, tmp_path):
    line = ["data", "video-pairs", str(pipelines("wan")), str(real), "--sampling", "steps=2,frames=5,device=cpu"]
    told = {"argv": [*line, "--out", str(tmp_path / "two")], "processes": 2, "env": {"ACCELERATE_USE_CPU": "true"}}
    wrong = {"argv": [*line, "--out", str(tmp_path / "two"), "--eta", "0.65,0.8"]}
    two, refused = launch([told | {"seconds": 300}, wrong], tmp_path / "jobs.json")
    assert two["code"] in (0, [0, 0]) and two["text"].count("wrote 2 pairs") == 1, two["text"]
    assert refused["code"] == 2 and "write LOW..HIGH" in refused["text"]
    make(pipelines, real, tmp_path / "one", steps=2, guidance=7.5)
    for file in (tmp_path / "one").glob("*-s*.*"):
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes(), file.name
