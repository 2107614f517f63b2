"""What flow transformers share: tokens and their places, shifts by size, guidance as an input; against diffusers."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from tiny import PIPELINES
from tiny_steps import draws, make, pair_batch

from diffpo.compat import ensure_torchvision

ensure_torchvision()

from diffusers import FluxPipeline  # noqa: E402
from diffusers.pipelines.flux.pipeline_flux import calculate_shift  # noqa: E402

from diffpo.core.process import Time  # noqa: E402
from diffpo.errors import UserError  # noqa: E402
from diffpo.models import FAMILIES  # noqa: E402
from diffpo.models.packed import grid  # noqa: E402


def test_tokens_are_the_pipelines():
    flux, z = FAMILIES["flux"], torch.randn(2, 4, 1, 6, 8)
    tokens = flux.pack(z)
    assert torch.equal(tokens, FluxPipeline._pack_latents(z.squeeze(2), 2, 4, 6, 8))
    assert torch.equal(flux.unpack(tokens, z.shape), z)
    places = FluxPipeline._prepare_latent_image_ids(2, 3, 4, "cpu", torch.float32)
    assert torch.equal(grid(3, 4, axes=3, like=z), places)


@pytest.mark.parametrize("side", [16, 64, 128, 200])
def test_the_shift_grows_with_the_picture(side):
    """exp(mu) of the pipeline's own mu for so many tokens, beyond the ends of the line, too."""
    scheduler = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    process = FAMILIES["flux"].make_process(scheduler, Time())
    batch = pair_batch("flux", [0, 1])
    t = process.sample_time(draws(batch), (16, 1, side, side))
    straight = FAMILIES["flux"].make_process({}, Time()).sample_time(draws(batch), (16, 1, side, side))
    shift = math.exp(calculate_shift((side // 2) ** 2))
    torch.testing.assert_close(t, shift * straight / (1 + (shift - 1) * straight), rtol=1e-12, atol=0)
    linear = FAMILIES["flux"].make_process(scheduler | {"time_shift_type": "linear"}, Time())
    assert linear.shift((16, 1, side, side)) == pytest.approx(calculate_shift((side // 2) ** 2))


def test_a_distilled_network_is_told_the_guidance_of_the_config(pipelines):
    """Policy and reference alike; 1 unless the config says otherwise."""
    batch = pair_batch("flux", [0, 1])
    for tuning in ("full", "lora"):
        for asked, told in (({}, 1.0), ({"guidance": 3.5}, 3.5)):
            for denoiser in make(pipelines("flux"), tuning, **asked):
                network = getattr(denoiser, "denoiser", denoiser).network
                heard = []
                hook = network.register_forward_pre_hook(lambda _, args, more: heard.append(more), with_kwargs=True)  # noqa: B023
                denoiser.predict(batch.latent.chosen, torch.tensor([0.5, 0.6]), batch.cond.chosen)
                hook.remove()
                assert heard[0]["guidance"].tolist() == [told, told]


def test_guidance_for_a_network_without_it_is_refused(pipelines, tmp_path):
    """FLUX.1-schnell's network knows none, and is given none."""
    for name in PIPELINES:
        if not make(pipelines(name), "full")[0].config.get("guidance_embeds"):
            with pytest.raises(UserError, match=r"model\.guidance is 2\.0, but the .* was not distilled with guidance"):
                make(pipelines(name), "full", guidance=2.0)
    from diffusers import FluxTransformer2DModel

    folder = shutil.copytree(pipelines("flux"), tmp_path / "schnell")
    config = json.loads((folder / "transformer" / "config.json").read_text()) | {"guidance_embeds": False}
    FluxTransformer2DModel.from_config(config).save_pretrained(folder / "transformer")
    batch = pair_batch("flux", [0])
    denoiser, _ = make(folder, "full")
    assert denoiser.predict(batch.latent.chosen, torch.tensor([0.5]), batch.cond.chosen).isfinite().all()
