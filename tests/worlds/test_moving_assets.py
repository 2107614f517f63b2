"""What is shipped of the moving world: it loads in plain diffusers, it is small, and it does what its card says."""

import json

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from moving_builder.make_pairs import from_bytes, measure_pairs
from moving_builder.measure_world import GATE, gate, generate, summarize
from moving_builder.sampling import sample_clips
from moving_builder.train_vae import statistics
from pyarrow import parquet

from diffpo.core.segments import segments_of
from diffpo.disk.weights import locate
from diffpo.worlds.assets import asset_path
from diffpo.worlds.moving.render import render_batch, to_uint8
from diffpo.worlds.moving.scenes import FPS, FRAMES, SEGMENT_SECONDS, parse_caption, sample_prompts, split_of
from diffpo.worlds.moving.verify import verify

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def pipeline():
    folder = locate("moving:base", what="a diffusers model", fetch=pytest.fail).path
    pipe = WanPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def card():
    return (asset_path("moving") / "README.md").read_text(encoding="utf-8")


def test_everything_together_is_small():
    files = [path for path in asset_path("moving").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 11 * MEGABYTE
    for file in files:
        if file.suffix == ".json":
            assert "/work" not in file.read_text() and "/home" not in file.read_text()


@torch.no_grad()
def test_the_latents_have_the_statistics_of_the_config(pipeline):
    clips = sample_clips([parse_caption(p) for p in sample_prompts("heldout", 24)], torch.Generator().manual_seed(0))
    truth = render_batch(clips)
    latents = pipeline.vae.encode(truth * 2 - 1).latent_dist.mean
    mean, deviation = statistics(pipeline.vae)
    normal = ((latents - mean) / deviation).movedim(1, 0).flatten(1)
    assert normal.mean(1).abs().max() < 0.25 and (normal.std(1) - 1).abs().max() < 0.25
    decoded = to_uint8(pipeline.vae.decode(latents).sample / 2 + 0.5)
    passed = [verify(clip, p).passed for clip, p in zip(decoded, sample_prompts("heldout", 24), strict=True)]
    assert np.mean(passed) >= 0.95


def test_the_base_passes_its_gate_from_pure_noise(pipeline):
    """On few clips and short padding, so with room at both ends; the card has the numbers of many."""
    prompts = sample_prompts("heldout", 32, seed=1)
    measured = summarize(generate(pipeline, prompts, range(32), tokens=32), prompts)
    assert 0.2 < measured["passed"] < 0.75, measured
    assert measured["direction"] > GATE["direction"][0] and measured["shape"] > GATE["shape"][0]
    assert measured["motion_without_a_speed_word"] > 1.0
    assert gate(measured).count("yes") >= 2


@pytest.mark.parametrize("kind", ["independent", "guided"])
def test_the_pairs_are_of_their_split_and_say_what_the_card_says(kind):
    for split in ("train", "validation"):
        rows = parquet.read_table(asset_path(f"moving/{kind}/{split}.parquet")).to_pylist()
        assert {split_of(row["prompt"]) for row in rows} == {split}
        assert {row["kind"] for row in rows} == {kind} and {row["preference"] for row in rows} == {0.5, 1.0}
        assert {len(row["segments"]) for row in rows} == set(segments_of(FRAMES, FPS, SEGMENT_SECONDS))
        measured = measure_pairs(rows)
        assert measured["ties"] == pytest.approx(0.6, abs=0.02)
        assert measured["segment_ties"] == pytest.approx(0.6, abs=0.02)
        if split == "train":
            low, high = (0.94, 0.98) if kind == "guided" else (1, 1)
            assert low <= min(row["eta"] for row in rows) and max(row["eta"] for row in rows) <= high
            noted = json.loads(card().split(f"<!-- {kind} -->")[1].split("```json")[1].split("```")[0])
            assert measured == noted
            assert from_bytes(rows[0]["chosen"]).shape == (9, 32, 32, 3)
