"""Compare diffpo's own training step with numbers computed by the authors' code.

    python scripts/check_parity.py tests/golden/methods/*

Each case is a folder: `unet/` and `ref_unet/` (diffusers), `meta.json`, `tensors.safetensors` (layout:
tests/golden/README.md). The recorded latents, conditions, times and noises go through
`diffpo.core.step.preference_step` in float64; loss, noise and gradients must agree to 1e-6. Exits 1 if one does not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from diffpo.core.process import Time, expand
from diffpo.core.step import preference_step
from diffpo.core.types import Condition, Pair, PairBatch, Rng
from diffpo.methods import METHODS, Method
from diffpo.models import FAMILIES, Denoiser

TOLERANCE = 1e-6


@dataclass
class Recorded(Rng):
    """Draws that were written down, in the place of `Rng`'s own."""

    time: Tensor
    """`[b]` integer times of a process of 1000 steps."""
    noise: Tensor | None
    """`[b c f h w]`"""

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Return the recorded noise."""
        assert purpose == "noise" and self.noise is not None, f"the case records no draw for {purpose}"
        return self.noise

    def uniform(self, purpose: str) -> Tensor:
        """Return the uniform numbers that lead to the recorded times."""
        assert purpose == "time", f"the case records no draw for {purpose}"
        return (self.time.double() + 0.5) / 1000


NAMES = {"ddiminpo": "inpo"}
"""What a case calls a method that has another name here."""


def make_method(meta: dict[str, Any]) -> Method:
    """Build the method of a case from its recorded hyper-parameters; inversions land as the authors' code does."""
    chosen = METHODS[NAMES.get(meta["method"], meta["method"])]
    method: Any = chosen(beta=float(meta["beta"]))  # pyright: ignore[reportCallIssue]
    if method.inversion is None:
        return method
    return replace(
        method, inversion=replace(method.inversion, steps=meta["inversion_grid_steps"], eta=0.0, landing="released")
    )


def make_denoiser(folder: Path, meta: dict[str, Any]) -> Denoiser:
    """Load a network as float64."""
    from diffusers import UNet2DConditionModel

    family = FAMILIES["sdxl" if meta["sdxl"] else "unet"]
    network = UNet2DConditionModel.from_pretrained(folder).double()
    return family(network, family.make_process(meta["scheduler"], Time()))


def make_batch(tensors: dict[str, Tensor], preference: float) -> PairBatch:
    """Lay the recorded `[2b ...]` tensors out as pairs."""

    def pair(name: str) -> Pair[Tensor]:
        return Pair(*tensors[name].double().chunk(2))

    latent, text = pair("latents").map(lambda x: x.unsqueeze(2)), pair("encoder_hidden_states")
    cond = text.map(Condition)
    if "time_ids" in tensors:
        parts = zip(text, pair("pooled_prompt_embeds"), pair("time_ids"), strict=True)
        cond = Pair(*(Condition(x, pooled, extra={"size": size}) for x, pooled, size in parts))
    b = len(latent.chosen)
    return PairBatch(latent, cond, torch.full((b,), preference, dtype=torch.float64), torch.arange(b))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest recorded magnitude."""
    theirs = theirs.double().reshape(ours.shape)
    return ((ours.double() - theirs).abs().max() / theirs.abs().max().clamp_min(1e-300)).item()


def check(case: Path) -> dict[str, float]:
    """Run one case; returns the relative error of each recorded quantity."""
    meta = json.loads((case / "meta.json").read_text())
    tensors = load_file(case / "tensors.safetensors")
    policy, reference = make_denoiser(case / "unet", meta), make_denoiser(case / "ref_unet", meta)
    reference.network.requires_grad_(False)
    batch = make_batch(tensors, 1.0 if meta["prob_win"] is None else meta["prob_win"])
    noise = Pair(*tensors["noise"].double().unsqueeze(2).chunk(2))
    shared = torch.equal(noise.chosen, noise.rejected)
    rng = Recorded(tensors["timesteps"][: batch.size], noise.chosen if shared else None)
    method = make_method(meta)
    output = preference_step(method, policy, reference, batch, rng)
    t = policy.process.sample_time(rng, batch.shape)
    noised = method.add_noise(policy, reference, batch, t, rng)  # as the step did
    recovered = torch.cat(
        [(x.z - expand(x.alpha, x.z) * x0) / expand(x.sigma, x.z) for x, x0 in zip(noised, batch.latent, strict=True)]
    )
    loss = output.loss.mean()
    loss.backward()
    gradients = {name: p.grad for name, p in policy.network.named_parameters() if p.grad is not None}
    errors = torch.cat([output.metrics[f"error/{side}"] for side in ("chosen", "rejected")])
    reference_errors = torch.cat([output.metrics[f"error/reference_{side}"] for side in ("chosen", "rejected")])
    return {
        "noisy_latents": relative_error(torch.cat([x.z for x in noised]), tensors["noisy_latents"]),
        "noise": relative_error(recovered, tensors["noise"]),
        "loss": relative_error(loss.detach(), tensors["loss"]),
        "model_losses": relative_error(errors, tensors["model_losses"]),
        "ref_losses": relative_error(reference_errors, tensors["ref_losses"]),
        "grad_norm": relative_error(torch.stack([g.norm() for g in gradients.values()]).norm(), tensors["grad_norm"]),
        "grad_conv_in": relative_error(gradients["conv_in.weight"], tensors["grad_conv_in"]),
        "grad_conv_out_bias": relative_error(gradients["conv_out.bias"], tensors["grad_conv_out_bias"]),
    }


def main() -> int:
    """Check the cases named on the command line; 1 if one of them misses the tolerance."""
    parser = argparse.ArgumentParser(description="Compare diffpo's step with the authors' numbers.")
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASE")
    errors: list[float] = []
    for case in parser.parse_args().cases:
        for name, error in check(case).items():
            errors.append(error)
            print(f"{case.name:28} {name:20} {error:.1e} {'ok' if error <= TOLERANCE else 'FAILS'}")
    print(f"largest relative error {max(errors):.1e}, allowed {TOLERANCE:.0e}")
    return int(not all(error <= TOLERANCE for error in errors))  # a NaN is no agreement


if __name__ == "__main__":
    sys.exit(main())
