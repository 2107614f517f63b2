"""CLIP-I and DINO: the mean of cosines that plain transformers gives, per subject, and what is no reference picture."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clips import write_align, write_pickscore, write_vit
from transformers import AlignModel, AutoImageProcessor, AutoTokenizer, ViTModel

from diffpo.errors import UserError
from diffpo.scorers import Clip, ClipI, Dino
from diffpo.scorers.clip import without_word


@pytest.fixture(scope="module")
def align(tmp_path_factory):
    return write_align(tmp_path_factory.mktemp("align"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return write_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def pictures(tmp_path):
    """Five pictures, of which three are the references."""
    made = [picture(seed) for seed in range(5)]
    (tmp_path / "dog").mkdir()
    for number, image in enumerate(made[:3]):
        image.save(tmp_path / "dog" / f"{number}.png")
    return made


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8))


def cosines(features):
    """`[5 2]`: the last two pictures against the three references, by hand."""
    features = features / features.norm(dim=-1, keepdim=True)
    return features[3:] @ features[:3].T


def test_the_score_is_the_mean_cosine_of_plain_transformers(pictures, align, vit, tmp_path):
    with torch.no_grad():
        for folder, network, options in (
            (align, AlignModel, lambda place: ClipI(model=place, references=str(tmp_path / "dog"), device="cpu")),
            (vit, ViTModel, lambda place: Dino(path=place, references=str(tmp_path / "dog"), device="cpu")),
        ):
            pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(pictures, return_tensors="pt")
            plain = network.from_pretrained(folder).eval()
            if network is AlignModel:
                features = plain.get_image_features(**pixels).pooler_output
            else:
                features = plain(**pixels).last_hidden_state[:, 0]
            scores = options(str(folder)).score(pictures[3:], ["a", "b"])
            torch.testing.assert_close(scores, cosines(features).mean(1), rtol=1e-5, atol=1e-6)


def test_clip_t_is_clip_without_the_rare_word(pictures, align):
    tokenizer, plain = AutoTokenizer.from_pretrained(align), AlignModel.from_pretrained(align).eval()
    with torch.no_grad():
        text = plain.get_text_features(**tokenizer("a dog", return_tensors="pt")).pooler_output
        pixels = AutoImageProcessor.from_pretrained(align, backend="pil")(pictures[:1], return_tensors="pt")
        image = plain.get_image_features(**pixels).pooler_output
        score = Clip(model=str(align), without="sks", device="cpu").score(pictures[:1], ["a sks dog"])
        logit = Clip(model=str(align), without="sks", device="cpu", scale="logit").score(pictures[:1], ["a sks dog"])
    torch.testing.assert_close(score, torch.cosine_similarity(text, image), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logit, score / plain.temperature.detach())
    assert [without_word(text, "sks") for text in ("sks, a sks's asks", "a Sks dog", "a dog sks")] == [
        ", a 's asks",
        "a Sks dog",
        "a dog",
    ]


def test_a_single_file_is_read_with_the_configuration_beside_it(pictures, align):
    whole, file = (Clip(model=str(place), device="cpu") for place in (align, align / "model.safetensors"))
    assert torch.equal(whole.score(pictures, ["a"] * 5), file.score(pictures, ["a"] * 5))


def test_a_reference_is_compared_with_the_others(pictures, align, tmp_path):
    """Only where there is no other one, with itself: then it is perfectly alike."""
    scorer = ClipI(model=str(align), references=str(tmp_path / "dog"), device="cpu")
    first, known = scorer.score(pictures[:1], ["a"]), scorer.provenance["references"]
    (tmp_path / "dog" / "0.png").unlink()
    others = ClipI(model=str(align), references=str(tmp_path / "dog"), device="cpu")
    assert torch.equal(first, others.score(pictures[:1], ["a"]))
    assert others.provenance["references"] != known
    (tmp_path / "dog" / "1.png").unlink()
    only = ClipI(model=str(align), references=str(tmp_path / "dog"), device="cpu")
    assert only.score(pictures[2:3], ["a"]).item() == pytest.approx(1)


def test_each_subject_has_its_pictures(pictures, align, tmp_path):
    (tmp_path / "cat").mkdir()
    pictures[4].save(tmp_path / "cat" / "0.png")
    rows = [{"prompt": "a sks dog", "subject": "dog"}, {"prompt": "a sks cat", "subject": "cat"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    several = ClipI(model=str(align), references=str(tmp_path), subjects=str(tmp_path / "prompts.jsonl"), device="cpu")
    dog, cat = (ClipI(model=str(align), references=str(tmp_path / name), device="cpu") for name in ("dog", "cat"))
    scores = several.score([pictures[3]] * 2, ["a sks dog", "a sks cat"])
    apart = [one.score(pictures[3:4], [""]).item() for one in (dog, cat)]
    assert scores.tolist() == pytest.approx(apart, abs=1e-6) and apart[0] != apart[1]
    known = several.provenance
    (tmp_path / "dog" / "0.png").rename(tmp_path / "cat" / "9.png")  # the same pictures in the same order
    assert replace(several).provenance["references"] != known["references"]
    with pytest.raises(UserError, match=r"no row for the prompt 'a sks bird'"):
        several.score(pictures[3:4], ["a sks bird"])
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a sks owl", "subject": "owl"}\n')
    owl = ClipI(model=str(align), references=str(tmp_path), subjects=str(tmp_path / "prompts.jsonl"), device="cpu")
    with pytest.raises(UserError, match=r"there is no folder .*owl"):
        _ = owl.provenance
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a sks owl"}\n')
    with pytest.raises(UserError, match=r"names no subject of 'a sks owl'.*column `subject`"):
        _ = ClipI(references=str(tmp_path), subjects=str(tmp_path / "prompts.jsonl"), model=str(align)).provenance


def test_what_is_no_reference_picture(pictures, align, vit, tmp_path):
    def refuse(folder, words):
        for scorer in (ClipI(model=str(align), references=str(folder)), Dino(path=str(vit), references=str(folder))):
            with pytest.raises(UserError, match=words):
                scorer.score(pictures[:1], ["a"])

    refuse(tmp_path / "nowhere", "there is no folder .*nowhere")
    refuse(tmp_path, r"holds no reference picture of the subject\. It has pictures in dog/")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"")
    refuse(tmp_path / "clips", "Clips are no reference pictures")
    (tmp_path / "dog" / "1.png").write_bytes(b"broken")
    refuse(tmp_path / "dog", r"dog/1\.png is no readable picture of the subject")


def test_a_clip_is_no_vit_and_a_vit_is_no_clip(pictures, align, vit, tmp_path):
    clip = write_pickscore(tmp_path / "clip")
    with pytest.raises(UserError, match="'clip' model, which is not a ViT of transformers"):
        Dino(path=str(clip), references=str(tmp_path / "dog"), device="cpu").score(pictures[:1], ["a"])
    with pytest.raises(UserError, match="'vit' model, which is not a CLIP of transformers, or an ALIGN"):
        ClipI(model=str(vit), references=str(tmp_path / "dog"), device="cpu").score(pictures[:1], ["a"])
