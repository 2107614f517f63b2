"""What all language models share: draws of a row's own, checks before and while loading."""

import json
import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffpo.captioners import CAPTIONERS, PERTURBERS, Dipper, ImageTextCaptioner, Instruct
from diffpo.captioners.language import _processors, stable_hash, tidy
from diffpo.config.options import from_spec
from diffpo.errors import ConfigError, UserError


def draws(options: Instruct, scores: torch.Tensor, keys) -> list[int]:
    """The tokens that greedy decoding takes after the processors: one per row."""
    rows = scores.expand(len(keys), -1).clone()
    for process in _processors(options, keys):
        rows = process(torch.zeros(len(keys), 1, dtype=torch.long), rows)
    return rows.argmax(-1).tolist()


def test_draws_have_the_probabilities_of_temperature_and_top_p():
    """p = softmax(log(1..4) / 0.5) = (1, 4, 9, 16) / 30; the likeliest that have 0.8 together are 16 and 9."""
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).log()
    n = 4000
    found = Counter(draws(Instruct(temperature=0.5, top_p=0.8), scores, range(n)))
    assert set(found) == {2, 3}
    assert abs(found[3] / n - 16 / 25) < 4 * (0.64 * 0.36 / n) ** 0.5
    found = Counter(draws(Instruct(temperature=0.5), scores, range(n)))
    for token, p in enumerate((1 / 30, 4 / 30, 9 / 30, 16 / 30)):
        assert abs(found[token] / n - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_draws_depend_on_seed_and_key_and_nothing_else():
    scores = torch.zeros(1, 1000)
    options = Instruct(temperature=1.0)
    assert draws(options, scores, [3, 4, 5])[1] == draws(options, scores, [4])[0]
    assert draws(options, scores, [3]) != draws(options, scores, [4])
    assert draws(options, scores, [3]) != draws(Instruct(temperature=1.0, seed=1), scores, [3])
    assert draws(Instruct(), scores, [3]) == [0]


@pytest.mark.parametrize(
    ("text", "tidied"),
    [
        ("  a cat\n on  a mat ", "a cat on a mat"),
        ('"a cat"', "a cat"),
        ('"a" and "b"', '"a" and "b"'),
        ("“a cat”", "a cat"),
        ("'", "'"),
        (" \n", ""),
    ],
)
def test_texts_become_one_plain_line(text, tidied):
    assert tidy(text) == tidied


def test_hashes_are_the_same_in_every_process():
    assert stable_hash(0, 1) == 2144358101563883970 != stable_hash(0, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageTextCaptioner().provenance, r"llava-hf/llava-v1\.6-34b-hf.*config\.json.*local folder"),
        (lambda: Instruct().provenance, r"Qwen/Qwen2\.5-7B-Instruct.*config\.json.*local folder"),
        (lambda: Dipper().provenance, r"google/t5-v1_1-xxl|kalpeshk2011/dipper-paraphraser-xxl"),
        (lambda: ImageTextCaptioner(path="./nowhere").provenance, "there is no nowhere"),
    ],
)
def test_without_network_the_message_names_repository_file_and_local_way(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_model_of_another_kind(language_model):
    with pytest.raises(UserError, match=r"'llama' model, which is not an image-text-to-text model"):
        _ = ImageTextCaptioner(path=str(language_model("llama"))).model
    with pytest.raises(UserError, match=r"'llava' model, which is not a sequence-to-sequence model"):
        _ = Dipper(path=str(language_model("llava"))).model
    with pytest.raises(UserError, match=r"'t5' model, which is not a causal language model"):
        _ = Instruct(path=str(language_model("t5"))).model


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json, so it is not a causal language model"):
        _ = Instruct(path=str(tmp_path)).model


def test_weights_that_are_not_whole(language_model, tmp_path):
    shutil.copytree(language_model("llama"), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing, model\.norm\.weight"):
        _ = Instruct(path=str(tmp_path)).model


def test_a_model_without_chat_template(language_model, tmp_path):
    shutil.copytree(language_model("llama"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        Instruct(path=str(tmp_path)).perturb(["a"], [0])


def test_a_model_without_tokenizer(language_model, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(language_model("llama") / name, tmp_path / name)
    with pytest.raises(UserError, match="cannot be loaded as a tokenizer"):
        Instruct(path=str(tmp_path)).perturb(["a"], [0])


def test_provenance_follows_content_and_options(language_model, tmp_path):
    first = Instruct(path=str(language_model("llama"))).provenance
    copy = shutil.copytree(language_model("llama"), tmp_path / "copy")
    assert Instruct(path=str(copy)).provenance == first == json.loads(json.dumps(first))
    assert Instruct(path=str(copy), seed=5).provenance == first, "greedy: the seed decides nothing"
    assert Instruct(path=str(copy), level="weak").provenance != first
    sampled = Instruct(path=str(copy), temperature=1.0).provenance
    assert sampled != first and sampled != Instruct(path=str(copy), temperature=1.0, seed=5).provenance
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] += 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert Instruct(path=str(copy)).provenance["weights"] != first["weights"]


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"max_new_tokens": 0}, {"batch": 0}])
def test_options_out_of_range(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is"):
        Instruct(**wrong)


def test_names():
    assert all(cls.name == name for table in (CAPTIONERS, PERTURBERS) for name, cls in table.items())
    with pytest.raises(UserError, match=r"unknown captioner 'shape'\. Did you mean shapes"):
        from_spec("shape", CAPTIONERS, "captioner")
    with pytest.raises(UserError, match=r"dipper\.level.*'weak', 'medium' or 'strong'"):
        from_spec("dipper,level=wild", PERTURBERS, "perturber")
    assert from_spec("dipper,level=strong,prefix=Rewrite this, please,window=2", PERTURBERS, "perturber") == Dipper(
        level="strong", prefix="Rewrite this, please", window=2
    )
