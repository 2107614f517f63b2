"""What is shipped: it loads in plain diffusers and transformers, it is small, and it does what its card says."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from shapes_builder.measure_world import measure_vae

from diffpo.worlds import assets
from diffpo.worlds.shapes.annotators import ANNOTATORS, utility
from diffpo.worlds.shapes.scenes import SPLITS, all_captions, split_of
from diffpo.worlds.shapes.verify import ATTRIBUTES

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(assets.asset_path("shapes/pipeline"), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def read(split):
    from pyarrow import parquet

    return parquet.read_table(assets.asset_path(f"shapes/pairs/{split}.parquet")).to_pylist()


@pytest.fixture(scope="module")
def train_rows():
    return read("train")


@pytest.fixture(scope="module")
def validation_rows():
    return read("validation")


def test_missing_assets_name_what_is_missing_and_the_script(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pairs/test\.parquet.*build_shapes\.py"):
        assets.asset_path("shapes/pairs/test.parquet")
    monkeypatch.setattr(assets, "candidates", lambda: (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(FileNotFoundError, match=r"build_shapes\.py"):
        assets.asset_path("shapes/pairs")


def test_the_installed_package_is_the_second_place(monkeypatch, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").touch()
    monkeypatch.setattr(assets, "candidates", lambda: (tmp_path / "a", tmp_path / "b"))
    assert assets.asset_path("x") == tmp_path / "b" / "x"


def test_everything_together_is_small():
    files = [path for path in assets.asset_path("shapes").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40 * MEGABYTE
    assert not [path.name for path in files if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]


def test_the_pipeline_has_the_stated_parts(pipeline):
    assert sum(p.numel() for p in pipeline.unet.parameters()) <= 5_000_000
    assert pipeline.vae.config.latent_channels == 4 and pipeline.vae_scale_factor == 8
    assert pipeline.unet.config.sample_size == 8
    assert pipeline.safety_checker is None and pipeline.feature_extractor is None
    assert not pipeline.config.requires_safety_checker
    schedule = pipeline.scheduler.config
    assert (schedule.beta_schedule, schedule.beta_start, schedule.beta_end) == ("scaled_linear", 0.00085, 0.012)
    assert (schedule.prediction_type, schedule.steps_offset) == ("epsilon", 1)
    assert not schedule.clip_sample and not schedule.set_alpha_to_one
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in part.parameters())


def test_the_vae_keeps_every_attribute_and_its_latents_are_standard(pipeline):
    measured = measure_vae(pipeline.vae, n=300)
    assert {name: measured[name] for name in ATTRIBUTES if measured[name] < 0.97} == {}
    assert measured["latent_std"] == pytest.approx(1.0, abs=0.05)


def test_the_pipeline_draws_the_same_image_for_the_same_seed(pipeline):
    prompt = assets.asset_path("shapes/prompts/heldout.txt").read_text().splitlines()[0]
    images = [
        pipeline(
            prompt, num_inference_steps=4, guidance_scale=3.0, generator=torch.Generator().manual_seed(seed)
        ).images[0]
        for seed in (1, 1, 2)
    ]
    assert images[0].size == (64, 64)
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


def test_the_base_is_good_but_not_perfect(pipeline):
    """60 held-out images: wide limits around the card's share, which is of 400."""
    from shapes_builder.measure_world import measure_base

    measured = measure_base(pipeline, n=60, label="")
    assert 0.2 < measured["passed"] < 0.9
    optimum = np.mean([a.optimum.coverage for a in ANNOTATORS.values()])
    assert 1.3 < optimum / measured["coverage"] < 2.2


@pytest.mark.parametrize("split", SPLITS)
def test_prompt_lists_are_of_their_split(split):
    prompts = assets.asset_path(f"shapes/prompts/{split}.txt").read_text().splitlines()
    assert len(prompts) == len(set(prompts)) >= 200
    assert {split_of(prompt) for prompt in prompts} == {split}


def test_the_pair_table_has_pick_a_pics_columns(train_rows):
    expected = {
        "caption",
        "user_id",
        "ranking_id",
        "are_different",
        "has_label",
        "best_image_uid",
        "label_0",
        "label_1",
    }
    expected |= {f"{name}_{side}" for name in ("jpg", "model", "seed") for side in (0, 1)}
    expected |= {"image_0_uid", "image_1_uid"}
    assert set(train_rows[0]) == expected


def test_the_pair_table_is_large_enough_and_of_its_splits(train_rows, validation_rows):
    assert len(train_rows) >= 2700 and len(validation_rows) >= 300
    assert sum(row["label_0"] != 0.5 for row in train_rows) >= 2000
    assert {split_of(row["caption"]) for row in train_rows} == {"train"}
    assert {split_of(row["caption"]) for row in validation_rows} == {"validation"}
    assert {row["user_id"] for row in train_rows} == set(ANNOTATORS)
    assert {row["model_0"] for row in train_rows} == {"base", "weak"}


def test_labels_are_consistent(train_rows):
    for row in train_rows:
        assert row["label_0"] in (0.0, 0.5, 1.0) and row["label_0"] + row["label_1"] == 1.0
        best = {1.0: row["image_0_uid"], 0.0: row["image_1_uid"], 0.5: "tie"}[row["label_0"]]
        assert row["best_image_uid"] == best
        assert row["seed_0"] != row["seed_1"] and row["jpg_0"] != row["jpg_1"]


def test_choices_follow_the_annotators_utilities(validation_rows):
    agree = []
    for row in validation_rows:
        if row["label_0"] == 0.5:
            continue
        images = [Image.open(io.BytesIO(row[f"jpg_{side}"])) for side in (0, 1)]
        first, second = (utility(image, row["caption"], row["user_id"]) for image in images)
        agree.append((first > second) == (row["label_0"] == 1.0))
    assert 0.85 < np.mean(agree) < 1.0


def test_pickscore_loads_with_auto_classes_and_agrees_with_the_annotators(validation_rows):
    from transformers import AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer

    folder = assets.asset_path("shapes/pickscore")
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    assert type(AutoProcessor.from_pretrained(folder)).__name__ == "CLIPProcessor"
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [row for row in validation_rows if row["label_0"] != 0.5]
    images = [Image.open(io.BytesIO(row[f"jpg_{side}"])) for row in rows for side in (0, 1)]
    pixels = processor(images=images, return_tensors="pt").pixel_values
    assert pixels.shape[1:] == (3, 64, 64)
    tokens = tokenizer([row["caption"] for row in rows], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        picture = torch.nn.functional.normalize(model.get_image_features(pixels).pooler_output, dim=-1)
        text = torch.nn.functional.normalize(model.get_text_features(tokens.input_ids).pooler_output, dim=-1)
    scores = (picture.view(len(rows), 2, -1) * text.unsqueeze(1)).sum(-1)
    agree = ((scores[:, 0] > scores[:, 1]) == torch.tensor([row["label_0"] == 1.0 for row in rows])).float().mean()
    assert math.isfinite(float(model.logit_scale)) and 0.6 < float(agree) < 1.0


def test_the_card_says_that_people_are_simulated():
    card = (assets.asset_path("shapes") / "README.md").read_text(encoding="utf-8")
    assert "simulated" in card and len(all_captions()) == 5760
