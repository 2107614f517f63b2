"""What holds for every scorer: it is made from a word, says what it is, and names what it lacks or cannot read."""

import json
import re
import sys
from dataclasses import fields, replace

import pytest
import torch
from PIL import Image
from runs import ROOT
from safetensors.torch import save_file
from tiny_clips import ARCHITECTURE

from diffpo.config.options import make_scorer
from diffpo.errors import UserError
from diffpo.scorers import SCORERS
from diffpo.worlds.shapes.annotators import ANNOTATORS

LEARNED = {
    "pickscore": r"yuvalkirstain/PickScore_v1.*config\.json",
    "hpsv2": r"xswu/HPSv2.*HPS_v2_compressed\.pt",
    "hpsv2.1": r"xswu/HPSv2.*HPS_v2\.1_compressed\.pt",
    "clip": r"openai/clip-vit-large-patch14.*config\.json",
    "clip,model=vit-h-14-laion2b": r"laion/CLIP-ViT-H-14-laion2B-s32B-b79K.*open_clip_config\.json",
    "clip,model=diffusion-dpo": r"laion/CLIP-ViT-H-14-laion2B-s32B-b79K.*open_clip_config\.json",
    "clip,model=ViT-B-32/laion2b_s34b_b79k": r"laion/CLIP-ViT-B-32-laion2B-s34B-b79K.*config\.json",
    "clip,model=someone/a-clip": r"someone/a-clip.*config\.json",
    "aesthetic": r"openai/clip-vit-large-patch14.*config\.json",
    "aesthetic-v1": r"openai/clip-vit-large-patch14.*config\.json",
    "imagereward": r"THUDM/ImageReward.*ImageReward\.pt",
    "mps": r"RE-N-Y/mpsv1.*model\.safetensors",
    "hpsv3": r"MizzenAI/HPSv3.*HPSv3\.safetensors",
    "subject-consistency": r"facebook/dino-vitb16.*config\.json",
    "background-consistency": r"openai/clip-vit-base-patch32.*config\.json",
    "clip-i,references=dog": r"openai/clip-vit-base-patch16.*config\.json",
    "dino,references=dog": r"facebook/dino-vits16.*config\.json",
    "visionreward": r"THUDM/VisionReward-Video.*config\.json",
    "videoreward": r"KwaiVGI/VideoReward.*checkpoint-11352/model\.pth",
    "motion,path=someone/a-raft": r"someone/a-raft.*raft_large_C_T_V1-22a6c225\.pth",
    "dynamic-degree,path=someone/a-raft": r"someone/a-raft.*raft_large_C_T_V1-22a6c225\.pth",
}
"""Scorers with weights, and what the message says that nobody can fetch."""
OPTIONS = "dtype=bfloat16,device=cpu,batch=2"


CODE = {"shapes", "shapes-utility", "frame-change", "moving", "moving-motion", "flicker", "smoothness-linear"}
CODE |= {"subject", "subject-prompt"}
"""Those that have no weights."""
COMPOSED = {"lambda-harmonic"}
"""Those that are made of others; see test_harmonic."""


@pytest.fixture
def weights(tmp_path):
    """A folder with all that scorers look for beside their weights, and weights of another kind."""
    save_file({"down_blocks.0.weight": torch.zeros(1)}, tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    marks = " ".join(f"<|{aspect}_reward|>" for aspect in ("VQ", "MQ", "TA"))
    (tmp_path / "read.txt").write_text("{text_prompt} " + marks)
    (tmp_path / "VisionReward_video_qa_select.txt").write_text("Is it good?\n")
    (tmp_path / "weight.json").write_text("[0.5]")
    (tmp_path / "dog").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "dog" / "0.png")
    for name in ("preprocessor_config.json", "vocab.txt", "model_config.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path / "weights.safetensors"


def specs(weights):
    """How to give every scorer a local file."""
    return {
        "pickscore": f"pickscore,path={weights}",
        "hpsv2": f"hpsv2,path={weights},architecture={ARCHITECTURE}",
        "hpsv2.1": f"hpsv2.1,path={weights.parent},architecture={ARCHITECTURE}",
        "clip": f"clip,model={weights}",
        "aesthetic": f"aesthetic,head={weights},clip={weights.parent}",
        "aesthetic-v1": f"aesthetic-v1,head={weights},clip={weights.parent}",
        "imagereward": f"imagereward,path={weights}",
        "mps": f"mps,path={weights},threshold=0.3",
        "hpsv3": f"hpsv3,path={weights}",
        "subject-consistency": f"subject-consistency,path={weights.parent}",
        "background-consistency": f"background-consistency,path={weights.parent}",
        "clip-i": f"clip-i,model={weights},references={weights.parent}/dog",
        "dino": f"dino,path={weights.parent},references={weights.parent}/dog",
        "motion": f"motion,path={weights}",
        "videoreward": f"videoreward,path={weights.parent},base={weights.parent},instruction={weights.parent}/read.txt",
        "visionreward": f"visionreward,path={weights.parent},questions={weights.parent}",
        "dynamic-degree": f"dynamic-degree,path={weights}",
    }


@pytest.mark.parametrize(("spec", "missing"), LEARNED.items())
def test_without_network_the_message_names_the_file_and_the_local_way(spec, missing):
    with pytest.raises(UserError, match=rf"{missing}.* local folder"):
        _ = make_scorer(spec).provenance


def test_every_scorer_with_weights_is_in_these_tests(weights):
    learned = set(SCORERS) - CODE - COMPOSED
    assert {spec.partition(",")[0] for spec in LEARNED} == set(specs(weights)) == learned


def test_the_address_of_a_head_that_cannot_be_reached(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    scorer = make_scorer(f"aesthetic-v1,clip={weights.parent},head=https://localhost:1/a/head.pth?raw=true")
    with pytest.raises(UserError, match=r"head\.pth is neither in .* nor can .* be reached .* give the path"):
        _ = scorer.provenance


def test_all_say_what_decides_a_score(weights):
    for name, spec in specs(weights).items():
        record = make_scorer(f"{spec},{OPTIONS}").provenance
        assert record["scorer"] == name and record["dtype"] == "bfloat16"
        assert record["weights"].startswith("blake2b:") and record["library"]
        assert all(record[key] for key in ("about", "preprocessing", "scale"))
        assert json.loads(json.dumps(record)) == record
        assert make_scorer(spec).provenance["dtype"] == "float32"  # half precision only where asked


def test_weights_of_another_kind_are_named(weights):
    found = specs(weights)
    del found["hpsv3"]  # it reads its tokenizer first; see test_hpsv3
    del found["dino"]  # it reads a folder alone; see test_references
    found = {name: spec for name, spec in found.items() if not SCORERS[name].takes_frames}  # see test_clip_scorers
    for name, spec in found.items():
        with pytest.raises(UserError, match="UNet of diffusers") as caught:
            make_scorer(spec).score([Image.new("RGB", (8, 8))], ["a"])
        assert "weights.safetensors" in str(caught.value), name


def test_one_file_where_a_folder_is_needed(weights):
    """The message names the folder that works."""
    home = weights.parent
    for spec, parts in (
        (f"subject-consistency,path={weights}", "a DINO ViT-B/16 of transformers"),
        (f"background-consistency,path={weights}", "a CLIP ViT-B/32 of transformers"),
        (f"dino,path={weights},references={home}/dog", "a ViT of transformers, such as DINO"),
        (f"visionreward,path={weights},questions={home}", "a VisionReward-Video"),
        (f"pickscore,path={home},processor={weights}", "its tokenizer and image processor"),
        (f"videoreward,path={weights},base={home}", "a VideoReward"),
    ):
        with pytest.raises(UserError, match=f"is one file, and a folder is needed for {parts}.*: give .* or a Hub id"):
            _ = make_scorer(spec).provenance
    with pytest.raises(UserError, match=f"give its folder, {home}, or a Hub id"):
        _ = make_scorer(f"subject-consistency,path={weights}").provenance
    with pytest.raises(UserError, match=r"it has no config\.json, so it is not a DINO"):
        _ = make_scorer(f"subject-consistency,path={home}/dog").provenance


def test_the_command_ends_with_exit_code_2(weights, tmp_path, monkeypatch, capsys):
    from diffpo.__main__ import main

    media = tmp_path / "media"
    media.mkdir()
    Image.new("RGB", (8, 8)).save(media / "0.png")
    line = {"file": "0.png", "prompt": "a", "prompt_id": 0, "seed": 0, "model": "mine"}
    (media / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    for spec, said in (
        ("mps", "model.safetensors"),
        (f"imagereward,path={weights}", "UNet of diffusers, not a whole ImageReward"),
        ("hpsv2,dtype=float8", "float16"),
        ("hpsv2,batch=0", "at least 1"),
        ("hpsv4", "Did you mean hpsv3?"),
    ):
        monkeypatch.setattr(sys, "argv", ["diffpo", "score", str(media), "-s", spec])
        with pytest.raises(SystemExit) as end:
            main()
        message = capsys.readouterr().err
        assert end.value.code == 2 and said in message and "Traceback" not in message, message


def test_scorers_are_listed_with_options_and_origin(monkeypatch, capsys):
    from diffpo.__main__ import main

    monkeypatch.setattr(sys, "argv", ["diffpo", "scorers"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    listed = capsys.readouterr().out
    for name, scorer in SCORERS.items():
        assert f"\n{name}: " in f"\n{listed}" and f"  weights: {scorer.origin}\n" in listed
    assert "  dtype: Literal['float32', 'float16', 'bfloat16'] = float32\n" in listed
    assert "  threshold: float = 0.01 (at least 0 and below 1)\n" in listed


def test_the_table_in_the_documents_has_them_all():
    rows = dict(re.findall(r"^\| `([\w.-]+)` \| (.*) \|$", (ROOT / "docs" / "scorers.md").read_text(), re.M))
    assert set(rows) == set(SCORERS)
    for name, scorer in SCORERS.items():
        assert all(repository in rows[name] for repository in re.findall(r"Hub ([\w-]+/[\w.-]+)", scorer.origin))


OTHERS = {
    "dtype": "bfloat16",
    "scale": {"pickscore": "cosine", "hpsv2": "logit", "hpsv2.1": "logit", "clip": "clipscore"},
    "resize": "longest-side-plain",
    "prefix": "A photo of ",
    "without": "sks",
    "condition": "hands",
    "threshold": 0.25,
    "network": "small",
    "updates": 3,
    "aspect": "MQ",
    "frames": 8,
    "annotator": next(iter(ANNOTATORS)),
}
"""For each option that decides a score, a value that is not its default; `scale` of the aesthetics is `0-1`."""
PLACES = {
    "path",
    "file",
    "model",
    "architecture",
    "processor",
    "tokenizer",
    "base",
    "instruction",
    "questions",
    "head",
    "clip",
    "library",
    "references",
    "subjects",
}
"""What says where parts are: it is the content that counts."""


def test_every_option_that_decides_a_score_is_in_the_provenance(weights):
    """Kept scores are of the same provenance: an option that it lacks would be given the scores of another."""
    made = specs(weights) | {name: name for name in CODE}
    for name, scorer in SCORERS.items():
        if name in COMPOSED:
            continue
        first = make_scorer(made[name])
        for field in fields(scorer):
            if field.name in PLACES | {"batch", "device", "preprocessing"}:
                continue
            other = OTHERS[field.name]
            if isinstance(other, dict):
                other = other.get(name, "0-1")
            changed = replace(first, **{field.name: other})
            assert changed.provenance != first.provenance, (name, field.name)
        assert replace(first).provenance == first.provenance


def test_parts_beside_the_weights_are_in_the_provenance(weights, tmp_path):
    """Another tokenizer under the same path is another scorer."""
    other = tmp_path / "other"
    other.mkdir()
    for name in ("preprocessor_config.json", "config.json"):
        (other / name).write_text('{"a": 1}')
    (other / "vocab.txt").write_text("other")
    for spec, option in (
        ("pickscore", "processor"),
        ("imagereward", "tokenizer"),
        ("mps", "processor"),
        ("hpsv3", "base"),
    ):
        made = specs(weights)[spec]
        assert make_scorer(made).provenance != make_scorer(f"{made},{option}={other}").provenance, spec
