"""Numbers that the authors' code computed (tests/golden/README.md). A case that is not there fails."""

from __future__ import annotations

import json
import math
from pathlib import Path

import check_parity
import pytest
import torch
from safetensors.torch import load_file

from diffpo.step import denoise
from diffpo.types import Noised, Pair

CASES = Path(__file__).parent / "golden" / "methods"
DPO = ["diffusion_dpo_sd15", "diffusion_dpo_sdxl"]
INVERTED = ["inpo_sd15_t420", "inpo_sdxl_t803", "smpo_sd15_t420", "smpo_sdxl_t803"]
TOLERANCE = 1e-6


def test_every_case_is_there():
    assert {path.name for path in CASES.iterdir()} >= {*DPO, *INVERTED}
    for name in DPO + INVERTED:
        for network in ("unet", "ref_unet"):
            assert (CASES / name / network / "config.json").is_file()
            assert (CASES / name / network / "diffusion_pytorch_model.safetensors").is_file()
        assert (CASES / name / "meta.json").is_file() and (CASES / name / "tensors.safetensors").is_file()


@pytest.mark.parametrize("name", DPO)
def test_our_step_computes_the_authors_numbers(name):
    """Loss, noise, both networks' errors, and gradients."""
    errors = check_parity.check(CASES / name)
    assert set(errors) == {
        "noisy_latents",
        "noise",
        "loss",
        "model_losses",
        "ref_losses",
        "grad_norm",
        "grad_conv_in",
        "grad_conv_out_bias",
    }
    assert all(error <= TOLERANCE for error in errors.values()), errors


@pytest.mark.parametrize("name", DPO + INVERTED)
def test_networks_and_schedule_agree_whatever_made_the_noise(name):
    """From the recorded latents and noise on: z, each network's errors, and the loss of the recorded margin.

    SmPO's logit has a factor 10 (2 p - 1) more. So a later method can only miss these cases by its own inversion.
    """
    case = CASES / name
    meta, tensors = json.loads((case / "meta.json").read_text()), load_file(case / "tensors.safetensors")
    batch = check_parity.make_batch(tensors, 1.0)
    t = tensors["timesteps"][: batch.size]
    x0, eps = tensors["latents"].double(), tensors["noise"].double()
    denoiser = check_parity.make_denoiser(case / "unet", meta)
    z = denoiser.process.mix(x0, eps, tensors["timesteps"])
    assert check_parity.relative_error(z, tensors["noisy_latents"]) <= TOLERANCE
    one = torch.ones(batch.size, dtype=torch.float64)
    noised = Pair(
        *(Noised(a.unsqueeze(2), t, one, one, b.unsqueeze(2)) for a, b in zip(z.chunk(2), eps.chunk(2), strict=True))
    )
    means = {}
    for folder, recorded in (("unet", "model_losses"), ("ref_unet", "ref_losses")):
        with torch.no_grad():
            answers = denoise(check_parity.make_denoiser(case / folder, meta), noised, batch.cond)
        errors = torch.cat([side.error.mean(1) for side in answers])
        assert check_parity.relative_error(errors, tensors[recorded]) <= TOLERANCE
        means[folder] = errors.chunk(2)
    (policy_c, policy_r), (reference_c, reference_r) = means["unet"], means["ref_unet"]
    factor = 1.0 if meta["prob_win"] is None else 10 * (2 * meta["prob_win"] - 1)
    logit = -factor * meta["beta"] / 2 * ((policy_c - policy_r) - (reference_c - reference_r))
    loss = torch.log1p(torch.exp(-logit)).mean().item()
    assert math.isclose(loss, meta["loss"], rel_tol=TOLERANCE)
