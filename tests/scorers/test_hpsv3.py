"""HPSv3: Qwen2-VL and its head against transformers' own forward pass, image by image, under the published names."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import Qwen2Tokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from diffpo.errors import UserError
from diffpo.scorers.hpsv3 import INSTRUCTION, REWARD, HPSv3, conversation

MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
PROMPTS = ["a red cat", "A {curly} “quote” & <|image_pad|> 猫 🐱", "", "a red cat"]
SIZES = [(448, 448), (300, 180), (20, 31), (448, 448)]


def tokenizer() -> Qwen2Tokenizer:
    """Bytes and some words of the instruction, and the marks."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [chr(256 + i) for i in range(256 - len(printable))]
    symbols = [*(chr(b) for b in printable), *others]
    merges = [("Ġ", "t"), ("i", "n"), ("t", "h"), ("e", "r"), ("a", "t"), ("th", "e"), ("Ġ", "the")]
    words = [*symbols, *(a + b for a, b in merges)]
    made = Qwen2Tokenizer(vocab={word: i for i, word in enumerate(words)}, merges=merges, unk_token=None)
    made.add_tokens(MARKS, special_tokens=True)
    return made


class Reference(Qwen2VLForConditionalGeneration):
    """The released module, small: its state dict has their names in today's transformers."""

    def __init__(self, config):
        super().__init__(config)
        layers = nn.Linear(32, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
        self.rm_head = nn.Sequential(*layers)


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    ids = {token: number for token, number in tokenizer().get_added_vocab().items()}
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "vocab_size": len(tokenizer()) + 1, "max_position_embeddings": 8192}
    text |= {"bos_token_id": None, "eos_token_id": None}
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    model = Reference(config).eval()
    with torch.no_grad():
        for part in (model.model.visual.rotary_pos_emb, model.model.language_model.rotary_emb):
            part.inv_freq = part.inv_freq.bfloat16().float()  # as the authors' `model.to(bfloat16)` leaves them
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape) / math.sqrt(weight[0].numel()))
            elif "norm" not in name:
                weight.copy_(torch.randn(weight.shape) / 10)
    return model


def published(model):
    """The state dict as transformers 4.45 named it, with which the authors saved theirs."""
    state = {name: x.contiguous() for name, x in model.state_dict().items()}
    renamed = {name.replace("model.visual.", "visual."): x for name, x in state.items()}
    return {name.replace("model.language_model.", "model."): x for name, x in renamed.items()}


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hpsv3")
    reference.config.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder)
    save_file(published(reference), folder / "HPSv3.safetensors")
    return folder


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)) for _ in SIZES]
    return [image.resize(size) for image, size in zip(noise, SIZES, strict=True)]


@pytest.fixture(scope="module")
def expected(reference, images):
    """By hand: resized sides, text and room for the image, positions 0, 1, 2, ..., the head where <|Reward|> stands."""
    read = tokenizer()
    read.add_tokens([REWARD], special_tokens=True)
    scores = []
    for image, prompt, (width, height) in zip(
        images, PROMPTS, [(448, 448), (588, 364), (364, 560), (448, 448)], strict=True
    ):
        seen = Qwen2VLImageProcessorPil()(image.resize((width, height), Image.BICUBIC), return_tensors="pt")
        assert seen.image_grid_thw.tolist() == [[1, height // 14, width // 14]]
        room = "<|image_pad|>" * (width * height // 28**2)
        text = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
            f"{room}<|vision_end|>{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
        ).replace("{text_prompt}", prompt.replace("<|image_pad|>", " "))
        ids = read(text, return_tensors="pt").input_ids
        positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
        with torch.no_grad():
            states = reference.model(
                input_ids=ids,
                pixel_values=seen.pixel_values,
                image_grid_thw=seen.image_grid_thw,
                position_ids=positions,
                attention_mask=torch.ones_like(ids),
            ).last_hidden_state
            scores.append(reference.rm_head(states[0, ids[0].tolist().index(len(read) - 1)])[0])
    return torch.stack(scores)


@pytest.mark.parametrize("batch", [1, 4])
def test_scores_are_those_of_the_published_forward_pass(folder, images, expected, batch):
    scores = HPSv3(path=str(folder), device="cpu", batch=batch).score(images, PROMPTS)
    assert scores.dtype == torch.float32 and expected.std() > 0.01
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


def test_names_of_todays_transformers_and_a_file_of_torch(reference, folder, images, expected, tmp_path):
    """The file lies apart from the tokenizer; its weights for words (lm_head) are not needed."""
    state = {name: x for name, x in reference.state_dict().items() if not name.startswith("lm_head")}
    torch.save(state, tmp_path / "mine.pt")
    scorer = HPSv3(path=str(tmp_path / "mine.pt"), base=str(folder), device="cpu")
    torch.testing.assert_close(scorer.score(images[:1], PROMPTS[:1]), expected[:1], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"Qwen/Qwen2-VL-7B-Instruct.*preprocessor_config\.json.*local"):
        _ = HPSv3(path=str(tmp_path)).provenance


def test_half_precision_only_where_asked(folder, images, expected):
    scorer = HPSv3(path=str(folder), device="cpu", dtype="bfloat16")
    score = scorer.score(images[:1], PROMPTS[:1])
    assert score != expected[:1] and abs(score - expected[:1]) < 0.3
    network, head, *_ = scorer._loaded
    assert network.dtype == torch.bfloat16 and head[0].weight.dtype == torch.float32
    assert network.language_model.rotary_emb.inv_freq.dtype == torch.float32


def test_marks_in_a_prompt_are_no_marks():
    read = tokenizer()
    read.add_tokens([REWARD], special_tokens=True)
    text = conversation("a <|Re<|Reward|>ward|> <|image_pad|> cat", 3, read)
    ids = read(text).input_ids
    assert ids.count(len(read) - 1) == 1 and ids.count(read.convert_tokens_to_ids("<|image_pad|>")) == 3


def test_provenance(folder):
    record = HPSv3(path=str(folder), dtype="bfloat16").provenance
    wanted = {"scorer": "hpsv3", "dtype": "bfloat16", "preprocessing": "PIL, 200704 pixels", "scale": "mean rating"}
    assert wanted.items() <= record.items() and record["weights"].startswith("blake2b:")


def test_an_image_that_is_a_line(folder):
    with pytest.raises(UserError, match=r"hpsv3 cannot judge one of these images: .*aspect ratio"):
        HPSv3(path=str(folder), device="cpu").score([Image.new("RGB", (3000, 2))], ["a"])


def test_weights_of_the_wrong_kind_or_not_whole(reference, folder, tmp_path):
    def score(state):
        save_file(state, tmp_path / "x.safetensors")
        HPSv3(path=str(tmp_path), base=str(folder), device="cpu").score([Image.new("RGB", (8, 8))], ["a"])

    state = published(reference)
    with pytest.raises(UserError, match=r"holds a Qwen2-VL, not a whole HPSv3"):
        score({name: x for name, x in state.items() if not name.startswith("rm_head")})
    with pytest.raises(UserError, match=r"1 weights are missing and 0 are unknown; language_model\.norm\.weight"):
        score({name: x for name, x in state.items() if name != "model.norm.weight"})
    with pytest.raises(UserError, match=r"0\.weight has the shape \[8, 32\] where \[1024, 32\] is expected"):
        score(state | {"rm_head.0.weight": torch.zeros(8, 32)})
    with pytest.raises(UserError, match=r"knows 3 tokens, and the tokenizer in .* has 270 with <\|Reward\|>"):
        score(state | {"model.embed_tokens.weight": torch.zeros(3, 32)})


def test_a_base_of_another_model(folder, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="is a 'bert' model, which is not Qwen2-VL's configuration"):
        HPSv3(path=str(folder), base=str(tmp_path), device="cpu").score([Image.new("RGB", (8, 8))], ["a"])


def test_without_network_the_message_names_repository_file_and_local_way():
    with pytest.raises(UserError, match=r"MizzenAI/HPSv3.*HPSv3\.safetensors.*local"):
        _ = HPSv3().provenance
