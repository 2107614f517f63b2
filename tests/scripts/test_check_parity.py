"""The parity check itself: it must pass what is right, and fail what is wrong by little."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import check_parity
import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
CASE = ROOT / "tests" / "golden" / "methods" / "diffusion_dpo_sd15"


@pytest.fixture
def case(tmp_path) -> Path:
    return Path(shutil.copytree(CASE, tmp_path / "case"))


def change(case: Path, name: str, by: float) -> None:
    """Multiply a recorded tensor by 1 + `by`."""
    tensors = load_file(case / "tensors.safetensors")
    tensors[name] = (tensors[name].double() * (1 + by)).to(tensors[name].dtype)
    save_file(tensors, case / "tensors.safetensors")


def failing(case: Path) -> set[str]:
    return {name for name, error in check_parity.check(case).items() if not error <= check_parity.TOLERANCE}


RECORDED = ["loss", "model_losses", "ref_losses", "grad_norm", "grad_conv_in", "grad_conv_out_bias", "noisy_latents"]


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_number_that_is_off_by_little_fails(case, name):
    """Ten times the tolerance, and only what was changed fails."""
    assert load_file(case / "tensors.safetensors")[name].dtype == torch.float64
    change(case, name, 1e-5)
    assert failing(case) == {name}


def test_another_beta_fails(case):
    meta = json.loads((case / "meta.json").read_text())
    (case / "meta.json").write_text(json.dumps(meta | {"beta": meta["beta"] * (1 + 1e-4)}))
    assert {"loss", "grad_norm"} <= failing(case)


def test_another_network_fails(case):
    """The reference in the policy's place: nothing that depends on a network agrees."""
    shutil.rmtree(case / "unet")
    shutil.copytree(case / "ref_unet", case / "unet")
    assert failing(case) == {"loss", "model_losses", "grad_norm", "grad_conv_in", "grad_conv_out_bias"}


def test_a_number_that_is_none_fails():
    """NaN compares false with everything: it must not pass for that reason."""
    assert not check_parity.relative_error(torch.tensor([float("nan")]), torch.ones(1)) <= check_parity.TOLERANCE


def test_relative_error_by_hand():
    """Largest difference 0.5 over the largest recorded magnitude 4: 0.125."""
    assert check_parity.relative_error(torch.tensor([1.0, -3.5]), torch.tensor([1.0, -4.0])) == 0.125


def test_all_must_agree(case, monkeypatch, capsys):
    """0 when all do; 1 as soon as one of several does not, whatever comes after it."""
    monkeypatch.setattr(sys, "argv", ["check_parity.py", str(CASE)])
    assert check_parity.main() == 0
    printed = capsys.readouterr().out
    assert "FAILS" not in printed and printed.count(" ok\n") == 8
    change(case, "loss", 1e-5)
    monkeypatch.setattr(sys, "argv", ["check_parity.py", str(case), str(CASE)])
    assert check_parity.main() == 1
    printed = capsys.readouterr().out
    assert printed.count("FAILS\n") == 1 and printed.count(" ok\n") == 15


def test_a_missing_case_is_no_success(tmp_path):
    with pytest.raises(FileNotFoundError):
        check_parity.check(tmp_path / "nothing")


def test_the_exit_code_reaches_the_shell(case):
    change(case, "loss", 1e-5)
    command = [sys.executable, str(ROOT / "scripts" / "check_parity.py"), str(case)]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert finished.returncode == 1 and "loss                 1.0e-05 FAILS" in finished.stdout, finished.stderr
