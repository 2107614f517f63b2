"""The noise processes that tests of the core share, and latents for them."""

import torch

from diffpo.compat import ensure_torchvision
from diffpo.core.process import DiscreteProcess, FlowProcess

ensure_torchvision()

from diffusers import DDPMScheduler  # noqa: E402

DDPM = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def process(prediction: str, **more):
    if prediction == "flow":
        return FlowProcess(**more)
    return DiscreteProcess(prediction=prediction, alphas_cumprod=DDPM.alphas_cumprod, **more)


def some(seed: int, rows: int = 5) -> torch.Tensor:
    return torch.randn(rows, 4, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
