"""Numbers that the authors' code computed (tests/golden/README.md). A case that is not there fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import check_parity
import pytest
import torch
from safetensors.torch import load_file

from diffpo.core import objectives

GOLDEN = Path(__file__).parent / "golden"
CASES = GOLDEN / "methods"
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


MORE = GOLDEN / "methods_more"
AGREE = [
    *(f"dmpo_{size}" for size in ("sd15", "sdxl")),
    *(f"dspo_{size}" for size in ("sd15", "sd15_large_beta")),
    *(f"flow_dpo_{size}" for size in ("sd3", "sd3_ends")),
    *(f"kto_pair_{case}" for case in ("clamped", "positive", "positive_wrong")),
    *(f"mapo_{case}" for case in ("sdxl", "sdxl_strong", "sdxl_v")),
    *(f"sdpo_dpo_{case}" for case in ("sd15", "sd15_capped", "sd15_opposed", "sdxl")),
    "sdpo_dmpo_sd15",
    "sdpo_dspo_sd15",
]
ALONE = ["kto_pairs_batch", "sdpo_dpo_sd15_batch"]
"""The authors' rule makes a pair depend on its neighbours; ours is their rule for each pair alone."""
OTHER_RULES = ["dspo_sdxl_above", "dspo_sdxl_below", "kto_unpaired"]
"""Rules that no method here has: errors and u agree, and there is no loss to compare."""
LOSS = {"loss", "grad_norm", "grad_conv_in", "grad_conv_out_bias"}


def test_every_further_case_is_there():
    """Each with its networks, which the cases share; whether it agrees is what its own record says."""
    folders = {path.name for path in MORE.iterdir()} - {"networks"}
    assert folders == {*AGREE, *ALONE, *OTHER_RULES} and len(folders) == 23
    records = {name: json.loads((MORE / name / "meta.json").read_text()) for name in folders}
    assert {name for name, meta in records.items() if meta["in_diffpo"]} == set(AGREE)


@pytest.mark.parametrize("name", AGREE + ALONE + OTHER_RULES)
def test_every_method_computes_its_authors_numbers(name):
    errors = check_parity.check(MORE / name)
    assert {"noisy_latents", "noise", "model_losses"} <= set(errors)
    assert (set(errors) >= LOSS) == (name not in OTHER_RULES)
    assert all(error <= TOLERANCE for error in errors.values()), errors


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("dmpo_sdxl", {"alpha": 0.1}),
        ("dspo_sd15_large_beta", {"beta": 1.5}),
        ("flow_dpo_sd3", {"beta": 50}),
        ("kto_pair_positive", {"beta": 10}),
        ("kto_pair_positive_wrong", {"desirable_weight": 0.5, "undesirable_weight": 1.5}),
        ("mapo_sdxl_strong", {"scale": 1}),
        ("mapo_sdxl", {"snr": 1.0}),
        ("sdpo_dpo_sd15", {"guard": None}),
        ("sdpo_dpo_sd15_batch", {"guard": 0.3}),
        ("sdpo_dspo_sd15", {"guard": 0.8}),
    ],
)
def test_other_settings_do_not_agree(monkeypatch, name, changed):
    """By a hundredth of the gradient or more: parity is no accident of cases in which the settings do not matter."""
    make = check_parity.make_method
    monkeypatch.setattr(check_parity, "make_method", lambda meta: make(meta | changed))
    errors = check_parity.check(MORE / name)
    assert max(errors[quantity] for quantity in LOSS) > 1e-2


def test_the_two_branches_of_kto_on_unpaired_images():
    """Each image of the case by itself, with the recorded k: 1 - sigmoid(g - k) if liked, 1 - sigmoid(k - g) if not.

    A pair of g and 2 k - g has the mean k, which is zero or more in this case; the authors' g has no factor 1/2.
    """
    case = MORE / "kto_unpaired"
    meta, tensors = json.loads((case / "meta.json").read_text()), load_file(case / "tensors.safetensors")
    g, k = meta["beta"] * (tensors["ref_losses"] - tensors["model_losses"]), tensors["kl"]
    liked = tensors["labels"].bool()
    ours = torch.where(liked, objectives.kto(g, 2 * k - g, 2.0, 0.0), objectives.kto(2 * k - g, g, 0.0, 2.0))
    torch.testing.assert_close(ours, tensors["row_losses"].double(), rtol=1e-7, atol=0)
    assert liked.any() and not liked.all()
