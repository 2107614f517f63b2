"""The networks that scorers of CLIP type look through: two libraries agree, and scorers of one call share one."""

import gc
import json
from contextlib import contextmanager

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from tiny_clips import ARCHITECTURE, HPS, golden, write_hps_for_transformers, write_pickscore

from diffpo.disk.weights import Weights
from diffpo.errors import ConfigError, UserError
from diffpo.scorers import AestheticV1, AestheticV2, Clip, PickScore, towers
from diffpo.scorers.scores import score_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_pickscore(tmp_path_factory.mktemp("pickscore"))


@pytest.fixture
def heads(tmp_path):
    """A head of each version for features of 32 numbers, in the layout of the published files."""
    generator = torch.Generator().manual_seed(0)
    state, width = {}, 32
    for layer, out in zip((0, 2, 4, 6, 7), (16, 8, 4, 2, 1), strict=True):
        state[f"layers.{layer}.weight"] = torch.randn(out, width, generator=generator)
        state[f"layers.{layer}.bias"] = torch.randn(out, generator=generator)
        width = out
    torch.save(state, tmp_path / "v2.pth")
    torch.save({"weight": torch.eye(32)[3:4] * 2, "bias": torch.tensor([5.0])}, tmp_path / "v1.pth")
    return tmp_path / "v1.pth", tmp_path / "v2.pth", state


@contextmanager
def forwards(network):
    """Count the rows that go through an image tower."""
    rows = []
    handle = network.vision_model.register_forward_hook(lambda module, args, result: rows.append(result[0].shape[0]))
    yield rows
    handle.remove()


def test_open_clip_and_transformers_agree_on_the_same_weights(tmp_path):
    """One checkpoint, two libraries, end to end: files, tokens, pixels, features."""
    from diffpo.scorers.open_clip_tower import from_file
    from diffpo.scorers.transformers_tower import find_transformers

    folder = write_hps_for_transformers(tmp_path / "hps")
    theirs = find_transformers(str(folder), what="CLIP").load("float32", "cpu")
    ours = from_file(Weights(HPS), str(ARCHITECTURE), "own").load("float32", "cpu")
    images, prompts, _ = golden("hpsv2")
    prompts = [prompt for prompt in prompts if "&" not in prompt]  # quotes and entities are read differently
    with torch.no_grad():
        for a, b in (
            (ours.image_features(images, 4), theirs.image_features(images, 4)),
            (ours.prompt_features(prompts, 4), theirs.prompt_features(prompts, 4)),
        ):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert ours.logit_scale == pytest.approx(theirs.logit_scale, rel=1e-6)


def test_scorers_of_the_same_weights_run_the_image_tower_once(model, heads):
    """Both aesthetics share one tower, and `clip` and `pickscore` another, which crops by half a pixel's difference."""
    images, prompts, _ = golden("pickscore")
    clip, pickscore = Clip(model=str(model), device="cpu"), PickScore(path=str(model), device="cpu")
    v1 = AestheticV1(clip=str(model), head=str(heads[0]), device="cpu")
    v2 = AestheticV2(clip=str(model), head=str(heads[1]), device="cpu")
    assert clip.tower is pickscore.tower is not v1.tower is v2.tower
    for one, other in ((clip, pickscore), (v1, v2)):
        with forwards(one.tower.network) as rows:
            first = one.score(images, prompts)
            other.score(images, prompts)
            assert torch.equal(one.score(images, prompts), first)
        assert rows == [6]


def test_one_call_decodes_each_image_once_and_runs_the_tower_once(model, heads, tmp_path, monkeypatch):
    """Four scorers over a folder of 70 images, more than one batch: 70 decoded, 70 rows through either tower."""
    lines = []
    for i in range(70):
        Image.new("RGB", (40, 30), (3 * i, 255 - i, 50)).save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"file": f"{i}.png", "prompt": f"a {i}", "prompt_id": i, "seed": 0, "model": "mine"}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    v1, v2, _ = heads
    scorers = [
        PickScore(path=str(model), device="cpu"),
        Clip(model=str(model), device="cpu"),
        AestheticV1(clip=str(model), head=str(v1), device="cpu"),
        AestheticV2(clip=str(model), head=str(v2), device="cpu"),
    ]
    decoded, load = [], PngImageFile.load
    monkeypatch.setattr(PngImageFile, "load", lambda image: (image.tile and decoded.append(1), load(image))[1])
    with forwards(scorers[0].tower.network) as rows, forwards(scorers[2].tower.network) as others:
        table = score_folder(tmp_path, scorers)
    assert sum(rows) == sum(others) == 70 and len(decoded) == 70 and len(table.rows) == 4 * 70


def test_what_differs_is_not_shared(model):
    clip = Clip(model=str(model), device="cpu")
    assert Clip(model=str(model), device="cpu", dtype="bfloat16").tower is not clip.tower
    assert Clip(model=str(HPS), architecture=str(ARCHITECTURE), device="cpu").tower is not clip.tower


def test_an_image_that_changed_is_another(model):
    clip = Clip(model=str(model), device="cpu")
    image = golden("pickscore")[0][0].convert("RGB")
    before = clip.score([image], ["x"])
    image.paste(Image.new("RGB", (256, 256), "red"))
    assert clip.score([image], ["x"]) != before


def test_what_an_image_names_beside_its_pixels_changes_nothing(model):
    """A transparent colour would be laid on white by transformers' processor; it was also remembered for others."""
    scorer = Clip(model=str(model), device="cpu")
    image = Image.new("RGB", (60, 40), (200, 30, 30))
    image.paste((0, 0, 0), (0, 0, 30, 40))
    keyed = image.copy()
    keyed.info["transparency"] = (0, 0, 0)
    first = scorer.score([keyed], ["a red square"])
    scorer.tower._images.clear()
    assert torch.equal(first, scorer.score([image], ["a red square"]))
    assert keyed.info, "what is handed in stays as it is"


def test_only_the_last_images_are_kept(model, monkeypatch):
    monkeypatch.setattr(towers, "_KEPT", 2)
    scorer = PickScore(path=str(model), device="cpu")
    images, prompts, expected = golden("pickscore")
    for _ in range(2):
        torch.testing.assert_close(scorer.score(images, prompts), expected, rtol=1e-4, atol=0)
    with forwards(scorer.tower.network) as rows:
        scorer.score(images[-2:], prompts[-2:])
        assert rows == []
        scorer.score(images[:1], prompts[:1])
    assert rows == [1]


def test_a_network_goes_with_its_last_scorer(model):
    scorer = Clip(model=str(model), device="cpu", dtype="float16")
    tower = scorer.tower
    key = next(key for key, known in towers._towers.items() if known is tower)
    del scorer, tower
    gc.collect()
    assert key not in towers._towers


def test_an_empty_batch_is_refused():
    with pytest.raises(ConfigError, match="batch is 0"):
        PickScore(batch=0)


def test_the_first_aesthetic_head_by_hand(model, heads):
    """Its weight is 2 at the fourth number: the score is 5 + 2 x_4 / |x|."""
    images, prompts, _ = golden("pickscore")
    scorer = AestheticV1(clip=str(model), head=str(heads[0]), device="cpu")
    with torch.no_grad():
        features = scorer.tower.image_features(images, 6)
    expected = 5 + 2 * features[:, 3] / features.square().sum(dim=1).sqrt()
    torch.testing.assert_close(scorer.score(images, prompts), expected)
    tenth = AestheticV1(clip=str(model), head=str(heads[0]), device="cpu", scale="0-1")
    torch.testing.assert_close(tenth.score(images, ["other"] * 6), expected / 10)


def test_the_improved_aesthetic_head_by_hand(model, heads):
    """Five linear layers without anything between them are one: their product."""
    _, file, state = heads
    images, prompts, _ = golden("pickscore")
    scorer = AestheticV2(clip=str(model), head=str(file), device="cpu")
    matrix, offset = torch.eye(32, dtype=torch.float64), torch.zeros(32, dtype=torch.float64)
    for layer in (0, 2, 4, 6, 7):
        weight, bias = state[f"layers.{layer}.weight"].double(), state[f"layers.{layer}.bias"].double()
        matrix, offset = weight @ matrix, weight @ offset + bias
    with torch.no_grad():
        features = scorer.tower.image_features(images, 6).double()
    expected = (features / features.norm(dim=1, keepdim=True)) @ matrix[0] + offset
    torch.testing.assert_close(scorer.score(images, prompts).double(), expected, rtol=1e-4, atol=1e-4)
    assert {"scorer": "aesthetic", "scale": "1-10"}.items() <= scorer.provenance.items()
    assert scorer.provenance["head"].startswith("blake2b:")


def test_a_head_of_the_wrong_kind(model, heads):
    images, prompts, _ = golden("pickscore")
    for scorer, file in ((AestheticV1, heads[1]), (AestheticV2, heads[0])):
        with pytest.raises(UserError, match=rf"{file.name} holds .* not the head of {scorer.name}"):
            scorer(clip=str(model), head=str(file), device="cpu").score(images, prompts)


def test_a_head_for_another_clip(model, tmp_path):
    torch.save({"weight": torch.zeros(1, 768), "bias": torch.zeros(1)}, tmp_path / "l14.pth")
    with pytest.raises(UserError, match=r"l14\.pth reads 768 numbers, and .* gives 32"):
        AestheticV1(clip=str(model), head=str(tmp_path / "l14.pth"), device="cpu").score(
            [Image.new("RGB", (8, 8))], ["x"]
        )


def test_without_network_the_heads_name_their_files(model):
    with pytest.raises(UserError, match=r"trl-lib/ddpo-aesthetic-predictor.*aesthetic-model\.pth"):
        _ = AestheticV2(clip=str(model)).provenance
