"""Numbers that the authors' code computed (tests/golden/README.md). A case that is not there fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import check_parity
import pytest

CASES = Path(__file__).parent / "golden" / "methods"
DPO = ["diffusion_dpo_sd15", "diffusion_dpo_sdxl"]
INVERTED = ["inpo_sd15_t420", "inpo_sdxl_t803", "smpo_sd15_t420", "smpo_sdxl_t803"]
TOLERANCE = 1e-6
RECORDED = {"noisy_latents", "noise", "loss", "model_losses", "ref_losses", "grad_norm"}
RECORDED |= {"grad_conv_in", "grad_conv_out_bias"}


def test_every_case_is_there():
    assert {path.name for path in CASES.iterdir()} >= {*DPO, *INVERTED}
    for name in DPO + INVERTED:
        for network in ("unet", "ref_unet"):
            assert (CASES / name / network / "config.json").is_file()
            assert (CASES / name / network / "diffusion_pytorch_model.safetensors").is_file()
        assert (CASES / name / "meta.json").is_file() and (CASES / name / "tensors.safetensors").is_file()


@pytest.mark.parametrize("name", DPO + INVERTED)
def test_our_step_computes_the_authors_numbers(name):
    """Noisy latents and noise (drawn, or recovered from an inversion), errors of both networks, loss, gradients."""
    errors = check_parity.check(CASES / name)
    assert set(errors) == RECORDED
    assert all(error <= TOLERANCE for error in errors.values()), errors


@pytest.mark.parametrize("name", INVERTED)
def test_the_exact_landing_is_another(monkeypatch, name):
    """What the released code does, and only that, agrees: parity is no accident of easy cases."""
    make = check_parity.make_method

    def exact(meta):
        method = make(meta)
        return replace(method, inversion=replace(method.inversion, landing="exact"))

    monkeypatch.setattr(check_parity, "make_method", exact)
    errors = check_parity.check(CASES / name)
    assert errors["noisy_latents"] > 1e-3 and errors["loss"] > 1e-5
