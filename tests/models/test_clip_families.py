"""What is particular to single families of clips: latents, lengths, schedules, positions; against their pipelines."""

from __future__ import annotations

import pytest
import torch
from shown import shown
from tiny import CLIPS
from tiny_steps import FACTS, make, pair_batch

from diffpo.compat import ensure_torchvision

ensure_torchvision()

from diffusers import AutoencoderKL, CogVideoXTransformer3DModel, DiffusionPipeline, LTXPipeline  # noqa: E402

from diffpo.core.types import Condition  # noqa: E402
from diffpo.errors import UserError  # noqa: E402
from diffpo.models import FAMILIES  # noqa: E402
from diffpo.models.bases import find_base  # noqa: E402
from diffpo.models.encoders import Encoders  # noqa: E402
from diffpo.models.load import load  # noqa: E402
from diffpo.models.tuning import Full  # noqa: E402


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_becomes_the_latents_that_its_pipeline_decodes(pipelines, name):
    """As many as the frame rule says, deterministic; the pipeline shows what the VAE makes of its posterior's mode."""
    encoders, how = Encoders(Full(path=str(pipelines(name))), "cpu"), CLIPS[name]
    shape = (3, how["num_frames"], how["height"], how["width"])
    clip = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 1
    mean, std = encoders.encode_media(clip)
    space, time = encoders.family.factors(encoders.vae)
    assert mean.shape[1:] == ((shape[1] - 1) // time + 1, shape[2] // space, shape[3] // space)
    assert mean.shape[0] == FACTS[name].latent[0] and not std.any()
    pipeline = DiffusionPipeline.from_pretrained(pipelines(name))
    frames = clip.transpose(0, 1) if type(pipeline.vae) is AutoencoderKL else clip[None]  # one by one, or as a clip
    with torch.no_grad():
        expected = pipeline.vae.decode(pipeline.vae.encode(frames).latent_dist.mode()).sample
        expected = expected.transpose(0, 1)[None] if type(pipeline.vae) is AutoencoderKL else expected
    ours = shown(pipeline, mean[None], how["num_frames"], shape[2:])
    torch.testing.assert_close(ours, (expected / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4)
    image = encoders.encode_media(clip[:, :1])[0]
    assert image.shape[1] == 1, "an image is one frame"


def test_cogvideox_has_its_own_schedulers_table(pipelines):
    """Shifted by the signal-to-noise ratio, and without any signal at the end."""
    process = make(pipelines("cogvideox"), "full")[0].process
    assert torch.equal(
        process.alphas_cumprod, DiffusionPipeline.from_pretrained(pipelines("cogvideox")).scheduler.alphas_cumprod
    )
    assert process.prediction == "v" and process.alphas_cumprod[-1] == 0
    alpha, sigma = process.alpha_sigma(torch.tensor([999, 500]))
    assert (alpha[0], sigma[0]) == (0.0, 1.0) and 0 < alpha[1] < 1


def test_lengths_that_cogvideox_makes_and_is_trained_on(pipelines):
    family, vae = FAMILIES["cogvideox"], find_base(str(pipelines("cogvideox"))).config("vae")
    old, new = {"patch_size_t": None}, {"patch_size_t": 2}
    for count, network in ((49, None), (9, None), (13, old), (49, old), (13, new), (85, new)):
        family.check_frames(count, vae, network)
    for count, network, said in (
        (13, None, "makes clips of k \\* 8 \\+ 1 frames.* 9 and 17"),
        (12, old, "k \\* 4 \\+ 1 frames"),
        (49, new, "k \\* 8 \\+ 5 frames; it was given 49 frames. The next shorter length is 45"),
    ):
        with pytest.raises(UserError, match=said):
            family.check_frames(count, vae, network)


@pytest.mark.parametrize(("kind", "size", "frames"), [("2b", 8, 3), ("5b", 4, 3), ("1.5", 4, 4)])
def test_the_positions_of_each_cogvideox(kind, size, frames):
    """Sines for 2b, crops for 5b, slices for 1.5: the rotations that the pipeline gives the network."""
    from diffusers import CogVideoXPipeline

    network = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8, num_layers=1,
        text_embed_dim=24, sample_width=8, sample_height=8, sample_frames=9, max_text_seq_length=5,
        patch_size_t=2 if kind == "1.5" else None, patch_bias=kind != "1.5",
        use_rotary_positional_embeddings=kind != "2b",
    )  # fmt: skip
    denoiser = FAMILIES["cogvideox"](network, None)
    z = torch.randn(1, 4, frames, size, size)
    ours = denoiser.rotations(z.transpose(1, 2))
    if kind == "2b":
        assert ours is None
    else:
        pipeline = CogVideoXPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=network, scheduler=None)
        theirs = pipeline._prepare_rotary_positional_embeddings(8 * size, 8 * size, frames, torch.device("cpu"))
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=0)
    cond = pair_batch("cogvideox", [0]).cond.chosen
    with torch.no_grad():
        assert denoiser.predict(z, torch.tensor([7]), cond).shape == z.shape


def test_ltx_packs_and_normalises_as_its_pipeline(pipelines):
    """Statistics among the VAE's weights, the scaling factor, tokens frame by frame."""
    pipeline = DiffusionPipeline.from_pretrained(pipelines("ltx"))
    clip = 2 * torch.rand(1, 3, 9, 64, 32, generator=torch.Generator().manual_seed(0)) - 1
    with torch.no_grad():
        mode = pipeline.vae.encode(clip).latent_dist.mode()
        ours, _ = FAMILIES["ltx"].encode_media(pipeline, clip)
    vae = pipeline.vae
    theirs = LTXPipeline._normalize_latents(mode, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, mode, atol=0.1)
    assert torch.equal(FAMILIES["ltx"].pack(ours), LTXPipeline._pack_latents(ours))


@pytest.mark.parametrize(("rate", "told"), [(None, 8 / 25), (10.0, 8 / 10)])
def test_ltx_is_told_the_rate_of_the_clips(pipelines, rate, told):
    """Seconds per latent frame of the clips as they are given, policy and reference alike."""
    policy, reference = load(Full(path=str(pipelines("ltx"))), torch.float32, True, rate)
    heard, batch = [], pair_batch("ltx", [0])
    for denoiser in (policy, reference.denoiser):
        denoiser.network.register_forward_pre_hook(lambda _, __, how: heard.append(how), with_kwargs=True)
        with torch.no_grad():
            denoiser.predict(batch.latent.chosen, torch.tensor([0.5]), batch.cond.chosen)
    assert [how["rope_interpolation_scale"] for how in heard] == [(told, 32, 32)] * 2


@pytest.mark.parametrize(("prompt", "kept", "held"), [('it says "red"', 13, 13), ("a red circle", 1, 0)])
def test_hunyuanvideo15_keeps_no_padding_of_its_texts(pipelines, prompt, kept, held):
    """Bytes of `Text "red". ` and the end; the answer is the one that all 256 states of the pipeline give."""
    folder = pipelines("hunyuanvideo15")
    encoded = Encoders(Full(path=str(folder)), "cpu").encode_prompt(prompt)
    assert encoded["quoted"].shape[0] == kept and encoded["quoted_mask"].sum() == held
    text, mask, quoted, quoted_mask = DiffusionPipeline.from_pretrained(folder).encode_prompt(prompt)
    whole = Condition(text, mask=mask.bool(), extra={"quoted": quoted, "quoted_mask": quoted_mask.bool()})
    rows = {name: x[None] for name, x in encoded.items()}
    own = Condition(rows.pop("text"), mask=rows.pop("mask"), extra=rows)
    policy, z, t = make(folder, "full")[0], pair_batch("hunyuanvideo15", [0]).latent.chosen, torch.tensor([0.5])
    with torch.no_grad():
        answers = [policy.predict(z, t, cond) for cond in (own, whole)]
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-5)


def test_animatediff_needs_motion_modules_and_knows_so_many_frames(pipelines):
    family = FAMILIES["animatediff"]
    with pytest.raises(UserError, match="its unet is a UNet2DConditionModel, without motion modules"):
        family.check_index({"unet": ["diffusers", "UNet2DConditionModel"]})
    vae = find_base(str(pipelines("animatediff"))).config("vae")
    family.check_frames(16, vae, {"motion_max_seq_length": 16})
    with pytest.raises(UserError, match="know 16 frames; it was given a clip of 17"):
        family.check_frames(17, vae, {"motion_max_seq_length": 16})
    with pytest.raises(UserError, match="takes at most 32 frames; it was given a clip of 33"):
        family.check_frames(33, vae)


def test_animatediffs_picture_has_a_posterior_and_its_clips_have_modes(pipelines):
    encoders = Encoders(Full(path=str(pipelines("animatediff"))), "cpu")
    clip = 2 * torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 1
    mean, std = encoders.encode_media(clip)
    assert not std.any()
    for i in range(3):
        picture, spread = encoders.encode_media(clip[:, [i]])
        torch.testing.assert_close(mean[:, [i]], picture, rtol=1e-5, atol=1e-5)
        assert spread.min() > 0
