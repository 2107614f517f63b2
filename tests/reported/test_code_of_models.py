"""No code that comes with a model is run, nor is anybody asked whether it may be, nor advised to unpickle it."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import ROOT
from tiny_clips import ARCHITECTURE, HPS, hps_state, write_open_clip, write_pickscore
from tiny_language import MODELS

from diffpo.captioners import Dipper, ImageTextCaptioner, Instruct
from diffpo.errors import UserError
from diffpo.scorers import MPS, AestheticV1, Clip, HPSv2, HPSv3, PickScore

CLASSES = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor")
CLASSES += ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForImageTextToText")
NAMES = {"tokenizer_class": "EvilTokenizer", "processor_class": "EvilProcessor", "image_processor_type": "EvilImages"}
IMAGES, PROMPTS = [Image.new("RGB", (40, 30), "red")], ["a cat"]
GOLDEN = ROOT / "tests" / "golden" / "scorers_more"


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """What the code would write; whoever is asked says yes."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    return tmp_path / "it ran"


def poison(folder: Path, marker: Path, known: bool) -> Path:
    """Let every configuration name code that lies beside it; where it is not `known`, nothing else will do."""
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    for file in folder.glob("*config.json"):
        content = json.loads(file.read_text())
        content["auto_map"] = {name: f"evil.{name}" for name in CLASSES}
        content["auto_map"]["AutoTokenizer"] = ["evil.Slow", "evil.Fast"]
        if not known:
            content |= {key: name for key, name in NAMES.items() if key in content}
        file.write_text(json.dumps(content))
    return folder


def copied(source: Path, tmp_path: Path) -> Path:
    return shutil.copytree(source, tmp_path / "model")


def made(name: str, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    MODELS[name](tmp_path / "model")
    return tmp_path / "model"


def golden_mps(tmp_path: Path) -> Path:
    folder = write_pickscore(tmp_path / "model")  # for CLIP's vocabulary
    shutil.copytree(GOLDEN / "mps", folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    return folder


LOADERS = {
    "transformers": (
        lambda tmp: made("llava", tmp),
        lambda path: ImageTextCaptioner(path=path, device="cpu", max_new_tokens=2).caption(IMAGES, PROMPTS, [0]),
    ),
    "instruct": (
        lambda tmp: made("llama", tmp),
        lambda path: Instruct(path=path, device="cpu", max_new_tokens=2).perturb(PROMPTS, [0]),
    ),
    "dipper": (
        lambda tmp: made("t5", tmp),
        lambda path: Dipper(path=path, device="cpu", max_new_tokens=2).perturb(PROMPTS, [0]),
    ),
    "pickscore": (
        lambda tmp: write_pickscore(tmp / "model"),
        lambda path: PickScore(path=path, device="cpu").score(IMAGES, PROMPTS),
    ),
    "aesthetic-v1": (
        lambda tmp: copied(GOLDEN / "aesthetic" / "clip", tmp),
        lambda path: AestheticV1(clip=path, head=str(GOLDEN / "aesthetic-v1"), device="cpu").score(IMAGES, PROMPTS),
    ),
    "mps": (golden_mps, lambda path: MPS(path=path, device="cpu").score(IMAGES, PROMPTS)),
    "hpsv3": (
        lambda tmp: copied(GOLDEN / "hpsv3", tmp),
        lambda path: HPSv3(path=path, device="cpu").score(IMAGES, PROMPTS),
    ),
}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", LOADERS)
def test_code_beside_a_model_is_not_run(name, known, tmp_path, marker):
    """Where transformers knows the classes itself, they are used; elsewhere a model may be refused."""
    make, use = LOADERS[name]
    folder = poison(make(tmp_path), marker, known)
    if known:
        assert len(use(str(folder))) == 1
    else:
        try:
            use(str(folder))
        except UserError as error:
            assert "trust_remote_code" not in str(error)
    assert not marker.exists()


def test_data_caption_asks_nobody(tmp_path, marker, capsys, monkeypatch):
    import tiny

    from diffpo.__main__ import main

    folder = poison(made("llava", tmp_path), marker, known=False)
    tiny.save_pairs(tmp_path / "pairs", 4)
    command = [
        "data",
        "caption",
        str(tmp_path / "pairs" / "pairs.jsonl"),
        "--captioner",
        f"transformers,path={folder},device=cpu",
    ]
    monkeypatch.setattr(sys, "argv", ["diffpo", *command, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    assert end.value.code == 2 and "code of its own, which is never run" in said.err
    assert "y/N" not in said.out + said.err and not marker.exists()


def test_an_open_clip_configuration_cannot_allow_code(tmp_path, marker):
    """Its `tokenizer_kwargs` go to transformers, and its text part may name any repository."""
    folder = write_open_clip(tmp_path / "clip")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
    words = poison(made("t5", tmp_path), marker, known=False)
    for file in words.glob("*"):
        shutil.copy(file, folder / file.name)
    (folder / "model.safetensors").unlink()
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert len(Clip(model=str(folder), device="cpu").score(IMAGES, PROMPTS)) == 1  # by classes of transformers
    assert not marker.exists()
    config["model_cfg"]["text_cfg"] |= {"hf_model_name": str(words), "hf_proj_type": "mlp"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    content = json.loads((words / "config.json").read_text()) | {"model_type": "evil"}
    (words / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="code of its own, which is never run"):
        Clip(model=str(folder), device="cpu").score(IMAGES, PROMPTS)
    assert not marker.exists()


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_pickle_is_not_opened_and_nobody_is_told_how(place, tmp_path, marker):
    if place == "file":
        torch.save({"state_dict": hps_state(), "evil": Evil(marker)}, tmp_path / "HPS.pt")
        scorer = HPSv2(path=str(tmp_path / "HPS.pt"), architecture=str(ARCHITECTURE), device="cpu")
    else:
        folder = write_pickscore(tmp_path / "model")
        (folder / "model.safetensors").unlink()
        torch.save({"evil": Evil(marker)}, folder / "pytorch_model.bin")
        scorer = PickScore(path=str(folder), device="cpu")
    with pytest.raises(UserError, match="holds more than tensors") as caught:
        scorer.score(IMAGES, PROMPTS)
    assert not marker.exists()
    assert "weights_only" not in str(caught.value) and "torch.load" not in str(caught.value)


def test_damaged_files_are_named(tmp_path):
    """A truncated torch file, and a truncated safetensors file in a folder of transformers."""
    (tmp_path / "HPS.pt").write_bytes(HPS.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"HPS\.pt"):
        HPSv2(path=str(tmp_path / "HPS.pt"), architecture=str(ARCHITECTURE), device="cpu").score(IMAGES, PROMPTS)
    folder = write_pickscore(tmp_path / "model")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(UserError, match=r"model cannot be loaded as PickScore"):
        PickScore(path=str(folder), device="cpu").score(IMAGES, PROMPTS)
