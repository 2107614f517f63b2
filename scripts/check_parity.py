"""Compare diffpo's own training step with numbers computed by the authors' code.

    python scripts/check_parity.py tests/golden/methods/* tests/golden/methods_more/[dfkms]*

Each case is a folder: networks of policy and reference (diffusers; or the name of those that several cases share),
`meta.json`, `tensors.safetensors` (layout: tests/golden/README.md). The recorded latents, conditions, times and noises
go through `diffpo.core.step.preference_step` in float64; errors, loss, noise and gradients must agree to 1e-6. Where
the authors' rule makes a row depend on its neighbours and ours does not, their run of each pair alone must be met.
Exits 1 if one number does not agree.
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

    relative: Tensor
    """`[b]` uniform numbers that lead to the recorded times."""
    noise: Tensor | None
    """`[b c f h w]`"""

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Return the recorded noise."""
        assert purpose == "noise" and self.noise is not None, f"the case records no draw for {purpose}"
        return self.noise

    def uniform(self, purpose: str) -> Tensor:
        """Return the uniform numbers that lead to the recorded times."""
        assert purpose == "time", f"the case records no draw for {purpose}"
        return self.relative


NAMES = {"ddiminpo": "inpo", "dspo_sdxl": "dspo"}
"""What a case calls a method that has another name here."""
SETTINGS = ("alpha", "guard", "weight", "snr", "scale", "desirable_weight", "undesirable_weight")
"""Hyper-parameters that have the same name and meaning in the cases."""
STRAIGHT = Time(density="uniform", shift=1.0)
"""A flow model's recorded sigma is its time: nothing is left to draw or to shift."""


def make_method(meta: dict[str, Any]) -> Method:
    """Build the method of a case from its recorded hyper-parameters; inversions land as the authors' code does."""
    name = NAMES.get(meta["method"], meta["method"])
    settings = {key: meta[key] for key in SETTINGS if meta.get(key) is not None}
    if meta["beta"] is not None:
        settings["beta"] = float(meta["beta"]) * (2 if name == "kto" else 1)  # KTO's code has no factor 1/2
    method: Any = METHODS[name](**settings)  # pyright: ignore[reportCallIssue]
    if method.inversion is None:
        return method
    return replace(
        method, inversion=replace(method.inversion, steps=meta["inversion_grid_steps"], eta=0.0, landing="released")
    )


def make_denoiser(case: Path, side: str, meta: dict[str, Any]) -> Denoiser:
    """Load a network as float64; `side` is `ref_` or nothing."""
    import diffusers

    flow = meta.get("sd3", False)
    part = f"{side}{'transformer' if flow else 'unet'}"
    folder = case / part if (case / part).exists() else case.parent / "networks" / meta.get("network", "") / part
    cls = diffusers.SD3Transformer2DModel if flow else diffusers.UNet2DConditionModel
    family = FAMILIES["sd3" if flow else "sdxl" if meta["sdxl"] else "unet"]
    network = cls.from_pretrained(folder).double()
    return family(network, family.make_process(meta["scheduler"], STRAIGHT if flow else Time()))


def make_batch(tensors: dict[str, Tensor], preference: float) -> PairBatch:
    """Lay the recorded `[2b ...]` tensors out as pairs."""

    def pair(name: str) -> Pair[Tensor]:
        return Pair(*tensors[name].double().chunk(2))

    latent, text = pair("latents").map(lambda x: x.unsqueeze(2)), pair("encoder_hidden_states")
    cond = text.map(Condition)
    if "pooled_prompt_embeds" in tensors:
        cond = Pair(*(replace(x, pooled=y) for x, y in zip(cond, pair("pooled_prompt_embeds"), strict=True)))
    if "time_ids" in tensors:
        cond = Pair(*(replace(x, extra={"size": y}) for x, y in zip(cond, pair("time_ids"), strict=True)))
    b = len(latent.chosen)
    return PairBatch(latent, cond, torch.full((b,), preference, dtype=torch.float64), torch.arange(b))


def relative_error(ours: Tensor, theirs: Tensor, floor: float = 1e-300) -> float:
    """Largest difference over the largest recorded magnitude, or over `floor` if that is larger."""
    theirs = theirs.double().reshape(ours.shape)
    return ((ours.double() - theirs).abs().max() / theirs.abs().max().clamp_min(floor)).item()


def read_case(case: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a case's settings and tensors; an image without a partner becomes a pair with itself."""
    meta, tensors = json.loads((case / "meta.json").read_text()), load_file(case / "tensors.safetensors")
    images = len(tensors["timesteps"])
    if images % 2:
        tensors = {name: torch.cat([x, x]) if len(x) == images else x for name, x in tensors.items()}
    return meta, tensors


def check(case: Path) -> dict[str, float]:
    """Run one case; returns the relative error of each recorded quantity that has its counterpart here."""
    meta, tensors = read_case(case)
    policy, reference = make_denoiser(case, "", meta), make_denoiser(case, "ref_", meta)
    batch = make_batch(tensors, 1.0 if meta["prob_win"] is None else meta["prob_win"])
    noise = Pair(*tensors["noise"].double().unsqueeze(2).chunk(2))
    shared = torch.equal(noise.chosen, noise.rejected)
    times = tensors["sigmas"] if "sigmas" in tensors else (tensors["timesteps"].double() + 0.5) / 1000
    rng = Recorded(times[: batch.size].double(), noise.chosen if shared else None)
    method = make_method(meta)
    known = reference if method.needs_reference else None
    output = preference_step(method, policy, known, batch, rng)
    t = policy.process.sample_time(rng, batch.shape)
    noised = method.add_noise(policy, known, batch, t, rng)  # as the step did
    recovered = torch.cat(
        [(x.z - expand(x.alpha, x.z) * x0) / expand(x.sigma, x.z) for x, x0 in zip(noised, batch.latent, strict=True)]
    )
    both = {"model_losses": "error/{}", "ref_losses": "error/reference_{}"}
    found = {"noisy_latents": torch.cat([x.z for x in noised]), "noise": recovered}
    for name, metric in both.items():
        if metric.format("chosen") in output.metrics:
            found[name] = torch.cat([output.metrics[metric.format(side)] for side in ("chosen", "rejected")])
    errors = {name: relative_error(ours, tensors[name]) for name, ours in found.items()}
    if "inside_term" in tensors and meta["prob_win"] is None:  # u, a small difference of what agrees to 1e-7 or better
        errors["inside_term"] = relative_error(output.metrics["rewards/margins"], tensors["inside_term"], floor=1.0)
    alone = "alone_" if "alone_loss" in tensors else ""
    if meta.get("in_diffpo", True) or alone:
        errors |= {
            name: relative_error(ours, tensors[alone + name])
            for name, ours in loss_and_gradients(output.loss.mean(), policy).items()
        }
    return errors


def loss_and_gradients(loss: Tensor, policy: Denoiser) -> dict[str, Tensor]:
    """Name the loss and its gradients as the cases do: of the first and of the last layer, and the norm of all."""
    loss.backward()
    gradients = {name: p.grad for name, p in policy.network.named_parameters() if p.grad is not None}
    first, last = (
        ("conv_in.weight", "conv_out.bias")
        if "conv_in.weight" in gradients
        else ("pos_embed.proj.weight", "proj_out.bias")
    )
    return {
        "loss": loss.detach(),
        "grad_norm": torch.stack([g.norm() for g in gradients.values()]).norm(),
        "grad_conv_in": gradients[first],
        "grad_conv_out_bias": gradients[last],
    }


def main() -> int:
    """Check the cases named on the command line; 1 if one of them misses the tolerance."""
    parser = argparse.ArgumentParser(description="Compare diffpo's step with the authors' numbers.")
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASE")
    errors: list[float] = []
    for case in (case for case in parser.parse_args().cases if not case.is_file()):  # a README beside the cases
        for name, error in check(case).items():
            errors.append(error)
            print(f"{case.name:28} {name:20} {error:.1e} {'ok' if error <= TOLERANCE else 'FAILS'}")
    print(f"largest relative error {max(errors):.1e}, allowed {TOLERANCE:.0e}")
    return int(not all(error <= TOLERANCE for error in errors))  # a NaN is no agreement


if __name__ == "__main__":
    sys.exit(main())
