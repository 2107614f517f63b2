"""The kernels on a CPU, where Triton interprets them (`TRITON_INTERPRET`), alone and in a whole UNet.

What a card's compiler makes of them is tested in `tests/gpu/test_fused.py`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

pytest.importorskip("triton", reason="there is no Triton for this system")
if torch.cuda.is_available():
    pytest.skip("Triton compiles for the card here: see tests/gpu/test_fused.py", allow_module_level=True)

import kernel_cases as cases

from diffpo.core.process import Time
from diffpo.core.types import Condition
from diffpo.models import FAMILIES, kernels
from diffpo.models.kernels import LayerNorm
from diffpo.models.reference import frozen_copy


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (cases.group_norm, (2, 96, 9, 4, True)),
        (cases.group_norm, (1, 8, 17, 8, False)),
        (cases.layer_norm, (205, 24)),
        (cases.layer_norm_alone, (3, 1100)),
        (cases.geglu, (300, 24)),
        (cases.geglu_alone, (5, 300)),
        (cases.added, (3, 70, 5)),
        (cases.doubled, (3, 70, 5)),
    ],
)
def test_a_kernel_computes_what_torch_computes(make, sizes, dtype, monkeypatch):
    for module in ("geglu", "group_norm", "layer_norm"):  # so few programs that each goes over several tiles
        monkeypatch.setattr(f"diffpo.models.kernels.{module}.PROGRAMS", 2)
    cases.check(*make(torch.empty(0, dtype=dtype), *sizes))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_norm_is_that_of_the_rounded_sum(dtype):
    """So a network whose blocks norm their sums in one pass answers as one that sums first does."""
    x, added, w, b = cases.layer_norm(torch.empty(0, dtype=dtype), 9, 24)[2]
    total, normed = LayerNorm.apply(x, added, w, b, 1e-5)
    if dtype is torch.float16:  # Triton's interpreter cuts bfloat16 off where a card rounds
        assert torch.equal(total, x + added)
    assert torch.equal(normed, LayerNorm.apply(total, None, w, b, 1e-5)[1])


def test_equal_gradients_repeat_bit_for_bit():
    """No sum depends on which program ends first; a second gradient along a sum is added, not put in its place."""
    x, added, w, b = (
        given.requires_grad_() for given in cases.layer_norm(torch.empty(0, dtype=torch.float16), 300, 24)[2]
    )
    total, normed = LayerNorm.apply(x, added, w, b, 1e-5)
    through_sum = torch.autograd.grad(total.sum(), x, retain_graph=True)[0]
    assert torch.equal(through_sum, torch.ones_like(x))
    first, again = (torch.autograd.grad((total * normed).sum(), (x, added, w, b), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, again))
    assert torch.equal(first[0], first[1])


def test_every_kernel_compiles_for_a_card():
    """In a process of its own, where Triton does not interpret."""
    script = Path(cases.__file__).parent / "compile_kernels.py"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = {name for file in Path(kernels.__file__).parent.glob("*.py") for name in declared(file.read_text())}
    assert set(done.stdout.split()) == written


def declared(source: str) -> list[str]:
    """Kernels in a source text that are launched, by the square brackets of their grid."""
    return [name for name in re.findall(r"@jit\ndef (\w+)", source) if f" {name}[" in source]


def unet() -> UNet2DConditionModel:
    """A network with every kind of block of Stable Diffusion 1.5's, two levels, one block for its two."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=2,
        cross_attention_dim=24,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def test_a_fused_step_is_as_near_to_single_precision_as_the_plain_one():
    """And policy and reference that are equal answer with equal numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, z, text = unet(), torch.randn(1, 4, 1, 8, 8), torch.randn(1, 5, 24)
    family = FAMILIES["unet"]
    policy = family(network, family.make_process(dict(DDPMScheduler().config), Time()))
    reference = frozen_copy(policy, torch.float32, torch.float16).denoiser
    question = z, torch.tensor([300]), Condition(text)

    def gradient(dtype: torch.dtype | None) -> torch.Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            answer = policy.predict(*question)
        answer.float().square().mean().backward()
        found = torch.cat([p.grad.double().flatten() for p in network.parameters()])
        network.zero_grad()
        return found

    exact, plain = gradient(None), gradient(torch.float16)
    policy.fuse()
    reference.fuse()
    fused = gradient(torch.float16)
    error = (fused - exact).norm() / exact.norm()
    assert error < 0.01
    assert error < 1.5 * (plain - exact).norm() / exact.norm()
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        assert torch.equal(policy.predict(*question), reference.predict(*question))
