"""Settings of a model that reach it, and weights that nobody rounds: faults that no test noticed once."""

from __future__ import annotations

import torch
from tiny_steps import make

from diffpo.core.process import Time
from diffpo.models.discrete import discrete_process
from diffpo.models.encoders import Encoders
from diffpo.models.tuning import Full


def test_full_tuning_rounds_no_trained_weight(pipelines):
    """`model.dtype` is for frozen weights: what is trained keeps every bit of the file, the reference is rounded."""
    whole, _ = make(pipelines("sd15"), "full")
    policy, reference = make(pipelines("sd15"), "full", dtype="bfloat16")
    rounded = reference.denoiser.network.state_dict()
    for name, weight in policy.network.state_dict().items():
        original = whole.network.state_dict()[name]
        assert torch.equal(weight, original), name
        assert torch.equal(rounded[name], original.bfloat16()), name
    assert any(not torch.equal(x, x.bfloat16().float()) for x in policy.network.state_dict().values())


def test_encoders_come_back_as_they_were(pipelines):
    """A visit to the device in half precision leaves no trace: same dtype, same bits, same encodings."""
    encoders = Encoders(Full(path=str(pipelines("sd15"))), "cpu")
    frames = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    parts = [encoders.pipeline.vae, encoders.pipeline.text_encoder]
    before = [{k: v.clone() for k, v in part.state_dict().items()} for part in parts]
    mean, text = encoders.encode_media(frames)[0], encoders.encode_prompt("a")["text"]
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        with encoders.placed("cpu", dtype):
            assert all(part.dtype == torch.promote_types(dtype, torch.float32) for part in parts)
        for part, held in zip(parts, before, strict=True):
            assert all(v.dtype == held[k].dtype and torch.equal(v, held[k]) for k, v in part.state_dict().items())
    assert torch.equal(encoders.encode_media(frames)[0], mean)
    assert torch.equal(encoders.encode_prompt("a")["text"], text)


def test_the_schedulers_offset_is_where_the_released_inversion_begins(pipelines):
    """`steps_offset` 0 and 1 are other grids, and other times that the network is told."""
    base = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    times = {}
    for offset in (0, 1, 5):
        process = discrete_process(base | {"steps_offset": offset}, Time())
        assert process.offset == offset
        times[offset] = process.path(torch.tensor([500]), 10, "released", torch.Size([4, 1, 8, 8])).time
    assert not torch.equal(times[0], times[1]) and torch.equal(times[0] + 5, times[5])
    assert discrete_process(base, Time()).offset == 0
    assert make(pipelines("sd15"), "full")[0].process.offset == 1  # of its file


def test_the_adapters_initialisation(pipelines):
    """`gaussian`: normal, deviation 1 / rank; `default`: uniform, bounded by 1 / sqrt(inputs)."""
    factors = {}
    for init in ("gaussian", "default"):
        network = make(pipelines("sd15"), "lora", rank=8, init=init)[0].network
        named = network.named_parameters()
        factors[init] = {name: p.detach() for name, p in named if ".lora_A." in name}
        assert all(not p.any() for name, p in network.named_parameters() if ".lora_B." in name)
    pooled = torch.cat([p.flatten() for p in factors["gaussian"].values()])
    assert abs(pooled.std().item() * 8 - 1) < 0.05 and pooled.abs().max() > 0.25  # two deviations: no uniform bound
    for p in factors["default"].values():
        assert p.abs().max() <= p.shape[1] ** -0.5 + 1e-6
