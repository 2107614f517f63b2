"""The builder of the moving world: its shortcuts are exact, and its pairs start where they say."""

import math
from dataclasses import replace

import build_moving
import numpy as np
import pytest
import torch
from moving_builder import make_pairs, train_vae
from moving_builder.measure_world import gate
from moving_builder.models import (
    MAX_TOKENS,
    TEXT_WIDTH,
    WORDS,
    make_scheduler,
    make_text_encoder,
    make_tokenizer,
    make_transformer,
    make_vae,
)
from moving_builder.sampling import sample_clips
from moving_builder.train_base import SHORT, pad_once, tokens

from diffpo.worlds.assets import asset_path
from diffpo.worlds.moving.render import render, render_batch
from diffpo.worlds.moving.scenes import SPLITS, all_captions, parse_caption
from diffpo.worlds.moving.verify import motion


def clips(n):
    specs = [parse_caption(caption) for caption in all_captions()[:: len(all_captions()) // n][:n]]
    return render_batch(sample_clips(specs, torch.Generator().manual_seed(0))) * 2 - 1


@torch.no_grad()
def test_running_the_vae_at_once_is_what_diffusers_does_group_by_group():
    torch.manual_seed(0)
    vae, pictures = make_vae().eval(), clips(2)
    moments = vae.encode(pictures).latent_dist.parameters
    decoded = vae.decode(moments.chunk(2, dim=1)[0]).sample
    train_vae.run_at_once(vae)
    assert moments.shape == (2, 16, 5, 8, 8)
    assert torch.allclose(train_vae.encode(vae, pictures), moments, atol=1e-5)
    whole = train_vae.decode(vae, moments.chunk(2, dim=1)[0])
    assert whole.shape == pictures.shape
    assert torch.allclose(whole.clamp(-1, 1), decoded, atol=1e-5)
    again = train_vae.plain(vae).encode(pictures).latent_dist.parameters
    assert torch.equal(again, moments)


@torch.no_grad()
def test_decorrelating_the_latents_changes_no_clip_and_notes_their_statistics(monkeypatch):
    torch.manual_seed(0)
    vae, pictures = make_vae().eval(), clips(4)
    monkeypatch.setattr(train_vae, "MEASURED", 32)
    before = vae.decode(vae.encode(pictures).latent_dist.mean).sample
    train_vae.run_at_once(vae)
    train_vae.decorrelate(vae, "cpu", seed=0, floor=0.0)  # then nothing is left between the channels
    latents, vae = train_vae.measured_latents(vae, "cpu", seed=0), train_vae.plain(vae).eval()
    posterior = vae.encode(pictures).latent_dist
    assert torch.allclose(vae.decode(posterior.mean).sample, before, atol=2e-3)
    mean, deviation = train_vae.statistics(vae)
    normal = (latents - mean) / deviation
    rows = normal.movedim(1, 0).flatten(1)
    assert torch.allclose(rows.mean(1), torch.zeros(8), atol=5e-3)
    assert torch.allclose(torch.cov(rows), torch.eye(8), atol=5e-3)
    assert torch.allclose((posterior.std / deviation).mean(), torch.tensor(train_vae.POSTERIOR_STD), rtol=1e-2)


@torch.no_grad()
def test_one_padding_token_stands_for_all_of_them():
    torch.manual_seed(0)
    short, long = make_transformer().eval(), make_transformer().eval()
    long.load_state_dict(short.state_dict())
    z, t, text = torch.randn(2, 8, 5, 8, 8), torch.tensor([300.0, 900.0]), torch.randn(2, SHORT, TEXT_WIDTH)
    text[0, 7:], text[1, SHORT - 1 :] = 0, 0
    padded = torch.cat([text, torch.zeros(2, MAX_TOKENS - SHORT, TEXT_WIDTH)], dim=1)
    want = long(z, t, padded, return_dict=False)[0]
    bias = pad_once(short, "cpu")
    bias[..., -1] = math.log(MAX_TOKENS - SHORT + 1)
    assert torch.allclose(short(z, t, text, return_dict=False)[0], want, atol=1e-5)
    bias[..., -1] = 0
    assert not torch.allclose(short(z, t, text, return_dict=False)[0], want, atol=1e-3)


def test_every_word_is_one_token_and_every_caption_fits():
    tokenizer = make_tokenizer()
    for word in WORDS:
        assert tokenizer.tokenize(word) == [f"▁{word}"]
    ids = tokens(list(all_captions()))
    assert len({tuple(row) for row in ids.tolist()}) == len(all_captions())
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == all_captions()[0]
    assert len(tokenizer.tokenize("zebra")) > 1 and tokenizer.unk_token_id not in tokenizer("zebra").input_ids


def test_the_sampler_s_levels_begin_where_each_clip_was_corrupted():
    start = torch.tensor([0.66, 0.8, 0.75])
    grid = make_pairs.levels(start)
    assert torch.equal(grid[0], start) and torch.equal(grid[-1], torch.zeros(3))
    assert (grid.diff(dim=0) <= 0).all()
    scheduler = make_scheduler()
    scheduler.set_timesteps(make_pairs.SAMPLER_STEPS)
    below = scheduler.sigmas[scheduler.sigmas < 0.66]
    assert torch.allclose(grid[-len(below) :, 0], below, atol=3e-3)
    whole = make_pairs.levels(torch.ones(1))
    assert len(whole) == make_pairs.SAMPLER_STEPS + 1


def test_a_corrupted_clip_has_the_noise_that_its_level_says():
    x0, noise = torch.full((2, 8, 5, 8, 8), 3.0), torch.randn(2, 8, 5, 8, 8)
    z = make_pairs.corrupt(x0, noise, torch.tensor([0.65, 0.8]))
    for row, eta in enumerate((0.65, 0.8)):
        assert torch.allclose(z[row] - 3.0 * (1 - eta), eta * noise[row], atol=1e-6)


def test_planned_pairs_are_the_same_every_time_and_guided_ones_share_their_level():
    guided, independent = (make_pairs.plan_pairs(kind, "train", 60, 0) for kind in ("guided", "independent"))
    assert guided == make_pairs.plan_pairs("guided", "train", 60, 0) != make_pairs.plan_pairs("guided", "train", 60, 1)
    assert all(0.94 <= job.eta <= 0.98 for job in guided) and len({job.eta for job in guided}) == 60
    assert {job.eta for job in independent} == {1.0}
    seeds = [seed for job in guided + independent for seed in job.seeds]
    assert len(set(seeds)) == 240


def test_rows_have_labels_that_speak_of_the_chosen_side():
    jobs = make_pairs.plan_pairs("independent", "train", 60, 0)
    drawn = sample_clips([parse_caption(job.prompt) for job in jobs], torch.Generator().manual_seed(0))
    right = [render(clip) for clip in drawn]
    wrong = [picture.copy() for picture in right]
    for picture in wrong[:20]:  # the others tie
        picture[3:] = picture[0, 0, 0]  # gone from segment 1 on
    sides = [(b, a) if i % 2 else (a, b) for i, (a, b) in enumerate(zip(right, wrong, strict=True))]
    encoded = [tuple(make_pairs.to_bytes(side) for side in pair) for pair in sides]
    rows = make_pairs.label_pairs(jobs, encoded, seed=0)
    assert [row["preference"] for row in rows] == [1.0] * 20 + [0.5] * 40
    kept = [row["chosen"] == make_pairs.to_bytes(clip) for row, clip in zip(rows, right, strict=True)]
    assert sum(kept[:20]) >= 17  # four in a hundred labels are turned
    for row, good in zip(rows[:20], kept, strict=False):
        assert sum(row["segments"][1:]) * (1 if good else -1) >= 1
    assert all(row["segments"] == [0] * 4 for row in rows[20:])
    measured = make_pairs.measure_pairs(rows)
    assert measured["rows"] == 60 and measured["ties"] == pytest.approx(2 / 3, abs=1e-3)
    assert {row["user_id"] for row in rows} == {"eve", "fay", "gus", "hal"}


def test_guided_clips_are_compared_only_where_they_move_alike():
    jobs = make_pairs.plan_pairs("guided", "train", 30, 0)
    drawn = sample_clips([parse_caption(job.prompt) for job in jobs], torch.Generator().manual_seed(0))
    pairs = [(render(clip), render(clip)) for clip in drawn]
    for _, wrong in pairs[:10]:
        wrong[3:5] = wrong[0, 0, 0]  # gone in segment 1, and back
    for i in range(10, 20):  # gone in one frame, and slower by more than is allowed
        wrong = render(replace(drawn[i], speed=drawn[i].speed - 0.6))
        wrong[4:5] = wrong[0, 0, 0]
        pairs[i] = (pairs[i][0], wrong)
    encoded = [tuple(make_pairs.to_bytes(side) for side in pair) for pair in pairs]
    rows = make_pairs.label_pairs(jobs, encoded, seed=0)
    assert [row["segments"][1] != 0 for row in rows] == [True] * 10 + [False] * 20
    assert all(row["segments"] == [0] * 4 and row["preference"] == 0.5 for row in rows[10:])
    anyway = make_pairs.label_pairs([replace(job, kind="independent") for job in jobs], encoded, seed=0)
    assert sum(row["segments"] != [0] * 4 for row in anyway[10:20]) >= 8


def test_a_clip_survives_its_file():
    spec = parse_caption(all_captions()[7])
    clip = render(sample_clips([spec], torch.Generator().manual_seed(0))[0])
    clip[5:] = clip[4]  # equal frames are not merged
    read = make_pairs.from_bytes(make_pairs.to_bytes(clip))
    assert read.shape == clip.shape
    assert np.abs(read.astype(int) - clip).mean() < 2
    assert motion(read) == pytest.approx(motion(clip), abs=0.02)


@pytest.mark.parametrize(("passed", "said"), [(0.45, "yes"), (0.1, "NO"), (0.9, "NO")])
def test_the_gate_has_two_sides(passed, said):
    text = gate({"direction": 0.8, "shape": 0.7, "passed": passed})
    assert text.endswith(f"passed {passed:.3f} of [0.3, 0.6]: {said}")


@torch.no_grad()
def test_the_text_encoder_sees_one_caption_whatever_its_padding():
    torch.manual_seed(0)
    encoder, tokenizer = make_text_encoder().eval(), make_tokenizer()
    states = []
    for length in (SHORT, 32):
        read = tokenizer([all_captions()[5]], padding="max_length", max_length=length, return_tensors="pt")
        states.append(encoder(read.input_ids, read.attention_mask).last_hidden_state[0, :10])
    assert torch.allclose(*states, atol=1e-5)


def test_the_build_script_writes_the_prompts_that_are_shipped(tmp_path, monkeypatch):
    places = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    threads = ["--threads", str(torch.get_num_threads())]
    monkeypatch.setattr("sys.argv", ["build_moving.py", "--stage", "prompts", *places, *threads])
    build_moving.main()
    for split in SPLITS:
        made = tmp_path / "out" / "prompts" / f"{split}.txt"
        assert made.read_bytes() == asset_path(f"moving/prompts/{split}.txt").read_bytes()
