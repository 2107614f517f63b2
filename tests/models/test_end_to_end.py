"""Every family from a table of pairs to an export that the sampler opens: the cache, two updates, the adapter."""

from __future__ import annotations

import json
import math

import pytest
import torch
from PIL import Image
from runs import World, metrics
from tiny import CLIPS, PIPELINES
from tiny_steps import FACTS

from diffpo.media.frames import Clip, encode
from diffpo.models import FAMILIES
from diffpo.models.finding import find_model
from diffpo.models.pipelines import open_pipeline


def save_clips(folder, frames: int, size: int, fps: float) -> str:
    """Four pairs of clips of random pixels, as mp4; returns the table's name."""
    generator, rows = torch.Generator().manual_seed(0), []
    for i in range(4):
        names = {}
        for side in ("chosen", "rejected"):
            pixels = torch.randint(0, 256, (frames, size, size, 3), generator=generator, dtype=torch.uint8)
            names[side] = f"{i}-{side}.mp4"
            clip = Clip(tuple(map(Image.fromarray, pixels.numpy())), fps)
            (folder / names[side]).write_bytes(encode(clip, ".mp4"))
        rows.append({"prompt": "thing" * i, **names})
    (folder / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "clips.jsonl"


@pytest.mark.parametrize("name", PIPELINES)
def test_pairs_become_an_adapter(name, tmp_path):
    """Captions of different lengths; policy and reference start equal; the export is what the sampler draws with."""
    world, facts = World.make(tmp_path, name, rows=4), FACTS[name]
    family, size = FAMILIES[facts.family], max(16, facts.multiple)
    changes = {"train.steps": 2, "train.batch": 2, "data.resolution": size, "data.path": "labelled.jsonl"}
    if name in CLIPS:
        table = save_clips(tmp_path / "pairs", CLIPS[name]["num_frames"], size, family.fps)
        changes |= {"data.path": table, "data.frames": CLIPS[name]["num_frames"]}
    if family.experts:
        changes["model.expert"] = "high"
    run = world.train("run", changes, family=name)
    first, last = metrics(run)
    assert first["rewards/margins"] == 0.0 != last["rewards/margins"] and last["grad_norm"] > 0
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-6)
    base = str(tmp_path / name)
    tuned, plain = (
        open_pipeline(find_model(base, tuned=path), dtype=torch.float32, device="cpu").components[family.components[0]]
        for path in (str(run), None)
    )
    adapted = {key for key, value in tuned.state_dict().items() if ".lora_B." in key and value.any()}
    assert adapted and len(tuned.state_dict()) > len(plain.state_dict())
