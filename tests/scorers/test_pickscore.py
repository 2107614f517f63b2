"""PickScore against numbers of its official recipe, and its ways of loading."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_clips import golden, write_pickscore

from diffpo.config.options import make_scorer
from diffpo.errors import UserError
from diffpo.scorers import SCORERS, PickScore


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_pickscore(tmp_path_factory.mktemp("pickscore"))


@pytest.fixture(scope="module")
def cases():
    return golden("pickscore")


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_scores_are_those_of_the_official_recipe(model, cases, batch):
    images, prompts, expected = cases
    scores = PickScore(path=str(model), device="cpu", batch=batch).score(images, prompts)
    assert scores.dtype == torch.float32 and scores.shape == (6,)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=0)


def test_the_scale_is_what_it_says(model, cases):
    images, prompts, expected = cases
    factor = load_file(model / "model.safetensors")["logit_scale"].exp()
    scorer = PickScore(path=str(model), device="cpu", scale="cosine")
    torch.testing.assert_close(scorer.score(images, prompts) * factor, expected, rtol=1e-4, atol=0)
    assert scorer.provenance["scale"] == "cosine"


def test_provenance_follows_the_content(model, tmp_path):
    """A copy elsewhere is the same scorer; one changed weight is another."""
    first = PickScore(path=str(model)).provenance
    copy = shutil.copytree(model, tmp_path / "copy")
    assert PickScore(path=str(copy)).provenance == first
    weights = load_file(copy / "model.safetensors")
    weights["logit_scale"] += 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert PickScore(path=str(copy)).provenance["weights"] != first["weights"]


def test_nothing_to_score(model):
    assert PickScore(path=str(model), device="cpu").score([], []).shape == (0,)


def test_without_network_the_message_names_repository_file_and_local_way():
    with pytest.raises(UserError, match=r"yuvalkirstain/PickScore_v1.*config\.json.*local folder"):
        _ = PickScore().provenance


def test_weights_without_processor_ask_for_it(model, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(model / name, tmp_path / name)
    with pytest.raises(UserError, match=r"laion/CLIP-ViT-H.*preprocessor_config\.json"):
        _ = PickScore(path=str(tmp_path)).provenance
    assert PickScore(path=str(tmp_path), processor=str(model)).provenance["processor"].startswith("blake2b:")


def test_weights_of_the_wrong_kind(model, tmp_path):
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(UserError, match="'bert' model, which is not PickScore"):
        PickScore(path=str(tmp_path), device="cpu").score([Image.new("RGB", (8, 8))], ["x"])


def test_weights_that_are_not_whole(model, tmp_path):
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    weights = load_file(model / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing, visual_projection\.weight"):
        PickScore(path=str(tmp_path), device="cpu").score([Image.new("RGB", (8, 8))], ["x"])


def test_unknown_names():
    with pytest.raises(UserError, match="Did you mean pickscore"):
        make_scorer("pikscore")
    with pytest.raises(UserError, match="unknown embedded weights"):
        _ = PickScore(path="shapes:pikscore").provenance
    assert all(SCORERS[name].name == name for name in SCORERS)
