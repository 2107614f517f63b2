"""The tokenizer, the sizes of the networks, and that nothing heavy is imported early."""

import subprocess
import sys

import pytest
from shapes_builder import models

from diffpo.worlds.shapes.scenes import all_captions


@pytest.fixture(scope="module")
def tokenizer():
    return models.make_tokenizer()


def test_every_word_of_the_world_is_one_token(tokenizer):
    for caption in all_captions()[::37]:
        ids = tokenizer(caption).input_ids
        assert len(ids) == len(caption.split()) + 2 <= 16
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == caption


@pytest.mark.parametrize("text", ["hello", "wörld!", "日本", "redgreen", "a photo of a cat, 4k", ""])
def test_any_text_tokenizes_and_comes_back(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert len(set(ids[1:-1])) == len({*ids[1:-1]}) and tokenizer.unk_token_id not in ids[1:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_length_and_padding(tokenizer):
    assert tokenizer.model_max_length == models.MAX_TOKENS
    assert len(tokenizer("a" * 100, truncation=True).input_ids) == models.MAX_TOKENS
    assert tokenizer("red", padding="max_length").input_ids[3:] == [tokenizer.eos_token_id] * (models.MAX_TOKENS - 3)


def test_the_tokenizer_survives_a_round_trip(tokenizer, tmp_path):
    from transformers import CLIPTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    for text in ("a red circle above a blue cross on a gray background", "wörld"):
        assert again(text).input_ids == tokenizer(text).input_ids


def test_merges_by_hand():
    """(b, c) comes first in the list, so "abc" becomes a + bc, whatever stands further left."""
    assert models.apply_merges(["a", "b", "c"], [("b", "c"), ("a", "b")]) == ["a", "bc"]
    assert models.apply_merges(["a", "b", "c"], [("a", "b"), ("ab", "c")]) == ["abc"]


def test_the_unet_is_small_enough():
    assert sum(p.numel() for p in models.make_unet().parameters()) <= 5_000_000


def test_the_package_imports_no_heavy_library():
    heavy = "('diffusers', 'transformers', 'datasets')"
    code = f"import sys, diffpo.worlds.shapes; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
