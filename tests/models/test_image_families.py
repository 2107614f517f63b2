"""What is particular to single families of pictures; against their pipelines."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_steps import make, pair_batch

from diffpo.compat import ensure_torchvision

ensure_torchvision()

from diffusers import DiffusionPipeline, PixArtAlphaPipeline, PixArtTransformer2DModel  # noqa: E402

from diffpo.core.types import Condition  # noqa: E402
from diffpo.models import FAMILIES  # noqa: E402
from diffpo.models.base import Asked  # noqa: E402
from diffpo.models.encoders import Encoders  # noqa: E402
from diffpo.models.tuning import Full  # noqa: E402

ASKED = Asked(rows=2, guidance=4.0, negative=None, frames=1, fps=None, steps=3, size=None)


def test_pixart_alpha_for_1024_pixels_is_told_sizes(pipelines):
    """Height and width that a picture is brought to, and their ratio; at other sizes it is told nothing."""
    heard = []
    for sample_size in (128, 32):
        network = PixArtTransformer2DModel(
            sample_size=sample_size, num_layers=1, num_attention_heads=2, attention_head_dim=48,
            cross_attention_dim=96, caption_channels=24,
        )  # fmt: skip
        network.register_forward_pre_hook(
            lambda _, args, more: heard.append(more["added_cond_kwargs"]), with_kwargs=True
        )
        parts = DiffusionPipeline.from_pretrained(pipelines("pixart-alpha")).components
        pipeline = PixArtAlphaPipeline(**parts | {"transformer": network})
        pipeline.set_progress_bar_config(disable=True)
        how = {"height": 16, "width": 32, "num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}
        pipeline("a", use_resolution_binning=False, **how)
        cond = pair_batch("pixart-alpha", [0]).cond.chosen
        size = torch.tensor([[900, 901, 3, 4, 16, 32]])
        z = torch.randn(1, 4, 1, 8, 16)
        denoiser = FAMILIES["pixart-alpha"](network, None)
        with torch.no_grad():
            denoiser.predict(z, torch.tensor([5]), Condition(cond.text, mask=cond.mask, extra={"size": size}))
    told, ours, *others = heard
    assert torch.equal(told["resolution"], ours["resolution"]) and ours["resolution"].tolist() == [[16.0, 32.0]]
    assert torch.equal(told["aspect_ratio"], ours["aspect_ratio"]) and ours["aspect_ratio"].tolist() == [[0.5]]
    assert all(other == {"resolution": None, "aspect_ratio": None} for other in others)


def test_sanas_autoencoder_is_deterministic(pipelines):
    encoders = Encoders(Full(path=str(pipelines("sana"))), "cpu")
    frames = 2 * torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) - 1
    mean, std = encoders.encode_media(frames)
    vae = DiffusionPipeline.from_pretrained(pipelines("sana")).vae
    with torch.no_grad():
        expected = 0.41407 * vae.encode(frames.transpose(0, 1)).latent
    torch.testing.assert_close(mean[:, 0], expected[0], rtol=1e-5, atol=1e-6)
    assert not std.any()


def test_sanas_instruction_goes_before_prompts_and_not_before_the_empty_one(pipelines):
    """As the sampler: the prompt's states are those behind the instruction, the empty text's stand alone."""
    encoders = Encoders(Full(path=str(pipelines("sana"))), "cpu")
    pipeline = DiffusionPipeline.from_pretrained(pipelines("sana"))
    alone = pipeline.encode_prompt("a red circle", do_classifier_free_guidance=False)[0][0]
    ours = encoders.encode_prompt("a red circle")["text"]
    assert ours.shape == alone.shape and not torch.allclose(ours[:4], alone[:4], atol=1e-3)
    _, _, empty, mask = pipeline.encode_prompt("a", negative_prompt="")
    ours = encoders.encode_prompt("")
    kept = ours["mask"]
    assert torch.equal(kept, mask[0].bool()) and kept.any()
    torch.testing.assert_close(ours["text"][kept], empty[0][kept], rtol=1e-5, atol=1e-5)


def test_qwen_images_latents_and_guidance(pipelines):
    """Channel by channel, mean and deviation; guidance is true_cfg_scale and needs a negative prompt to act."""
    encoders = Encoders(Full(path=str(pipelines("qwen-image"))), "cpu")
    frames = 2 * torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0)) - 1
    mean, std = encoders.encode_media(frames)
    vae = DiffusionPipeline.from_pretrained(pipelines("qwen-image")).vae
    with torch.no_grad():
        posterior = vae.encode(frames[None]).latent_dist
    for channel, (centre, spread) in enumerate(zip((-0.7, 0.1, 0.0, 0.5), (2.8, 1.4, 0.9, 0.5), strict=True)):
        torch.testing.assert_close(mean[channel], (posterior.mean[0, channel] - centre) / spread, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(std[channel], posterior.std[0, channel] / spread, rtol=1e-5, atol=1e-5)
    told = FAMILIES["qwen-image"].sampling(ASKED)
    guided = {"guidance_scale": None, "true_cfg_scale": 4.0, "negative_prompt": [" ", " "]}
    assert told == guided | {"num_inference_steps": 3}


@pytest.mark.parametrize("name", ["qwen-image", "z-image"])
def test_texts_of_any_length_stand_in_one_batch(pipelines, name):
    """A row alone, cut to its own tokens, and beside a longer one: the same answer."""
    encoders, denoiser = Encoders(Full(path=str(pipelines(name))), "cpu"), make(pipelines(name), "full")[0]
    conds = []
    for prompt in ("a", "a much longer caption"):
        states = encoders.encode_prompt(prompt)
        conds.append(Condition(**{key: x[None] for key, x in states.items()}))
    assert conds[0].text.shape[1] < conds[1].text.shape[1] and all(cond.mask.all() for cond in conds)
    z, t = pair_batch(name, [0, 1]).latent.chosen, torch.tensor([0.3, 0.6])
    with torch.no_grad():
        together = denoiser.predict(z, t, Condition.cat(conds))
        for i, cond in enumerate(conds):
            alone = denoiser.predict(z[i : i + 1], t[i : i + 1], cond)
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_flux2s_latents_are_normalised_patches(pipelines):
    """Four cells a token, with the batch norm's running statistics; positions and shift as in the pipeline."""
    from diffusers import Flux2Pipeline
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    pipeline = DiffusionPipeline.from_pretrained(pipelines("flux2"))
    frames = 2 * torch.rand(1, 3, 1, 16, 24, generator=torch.Generator().manual_seed(0)) - 1
    with torch.no_grad():
        mean, std = FAMILIES["flux2"].encode_media(pipeline, frames)
        expected = pipeline._encode_vae_image(frames.squeeze(2), None)
    torch.testing.assert_close(mean.squeeze(2), expected, rtol=1e-5, atol=1e-5)
    assert mean.shape == std.shape == (1, 16, 1, 4, 6) and std.min() > 0
    denoiser, _ = make(pipelines("flux2"), "full")
    cond = pair_batch("flux2", [0]).cond.chosen
    told = denoiser.arguments(mean, cond)
    assert torch.equal(told["img_ids"], Flux2Pipeline._prepare_latent_ids(mean.squeeze(2))[0].float())
    assert torch.equal(told["txt_ids"], Flux2Pipeline._prepare_text_ids(cond.text)[0].float())
    assert torch.equal(denoiser.pack(mean), Flux2Pipeline._pack_latents(mean.squeeze(2)))
    for side in (32, 80):
        shift = denoiser.process.shift((16, 1, side, side))
        assert shift == pytest.approx(math.exp(compute_empirical_mu(side * side, 50)))


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_attentions_read_one_text_in_half_precision(pipelines, name):
    """Cast once: an attention that casts for itself also keeps what it made, for the backward pass."""
    policy, _ = make(pipelines(name), "full")
    heard, batch = [], pair_batch(name, [0])
    for part, module in policy.network.named_modules():
        if part.endswith(("attn2.to_k", "attn2.to_v")):
            module.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        policy.predict(batch.latent.chosen, torch.tensor([5]), batch.cond.chosen)
    assert len(heard) > 3 and {text.dtype for text in heard} == {torch.bfloat16}
    assert len({text.data_ptr() for text in heard}) == 1
