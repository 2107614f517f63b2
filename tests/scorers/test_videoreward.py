"""VideoReward: the published layout, LoRA and all, against the same network called by hand with peft's LoRA in it."""

import json

import pytest
import torch
from scorers.test_clip_scorers import judge, noise
from scorers.test_hpsv3 import Reference, tokenizer
from torch import nn
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from diffpo.errors import UserError
from diffpo.scorers.videoreward import MARKS, VideoReward, sampled

TEXT = f"Rate it. {MARKS[0]} {MARKS[1]} Textual prompt - {{text_prompt}} {MARKS[2]}"
NORMS = {"VQ_mean": 1.0, "VQ_std": 2.0, "MQ_mean": -0.5, "MQ_std": 0.5, "TA_mean": 0.25, "TA_std": 4.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The network with its LoRA, in memory and as it is published."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    read = tokenizer()
    read.add_tokens(["<|video_pad|>"], special_tokens=True)
    folder = tmp_path_factory.mktemp("videoreward")
    ids = read.get_added_vocab()
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "vocab_size": len(read) + 3, "bos_token_id": None, "eos_token_id": None}
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config={"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
    )
    model = Reference(config).eval()
    model.rm_head = nn.Linear(32, 1, bias=False)
    for part in (model.model.visual.rotary_pos_emb, model.model.language_model.rotary_emb):
        part.inv_freq = part.inv_freq.bfloat16().float()
    lora = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(model, lora).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape) / weight[0].numel() ** 0.5)
    state = {name.replace(".model.model.visual.", ".model.visual."): x for name, x in model.state_dict().items()}
    state = {name.replace(".model.model.language_model.", ".model.model."): x for name, x in state.items()}
    (folder / "checkpoint-11352").mkdir()
    torch.save(state, folder / "checkpoint-11352" / "model.pth")
    about = {"inference_config": NORMS, "peft_lora_config": {"lora_r": 2, "lora_alpha": 8}}
    (folder / "model_config.json").write_text(json.dumps(about))
    (folder / "read.txt").write_text(TEXT)
    config.save_pretrained(folder / "base")
    read.save_pretrained(folder / "base")
    Qwen2VLImageProcessorPil().save_pretrained(folder / "base")
    return model, read, folder


def test_ratings_are_those_of_the_network_with_its_lora(made):
    """By hand: four frames in two pairs, the marks in their order, positions one by one, norms of the file."""
    model, read, folder = made
    clip = noise(4, 280, 280)
    read.add_tokens(list(MARKS), special_tokens=True)
    size = {"shortest_edge": 128 * 784, "longest_edge": 256 * 784}
    frames = [Qwen2VLImageProcessorPil(size=size)(x, return_tensors="pt") for x in clip.frames]
    grid = torch.tensor([[2, *frames[0].image_grid_thw[0, 1:].tolist()]])
    parts = [x.pixel_values.view(-1, 3, 2, 196) for x in frames]
    pixels = torch.cat([torch.cat([a[:, :, :1], b[:, :, :1]], 2).flatten(1) for a, b in (parts[:2], parts[2:])])
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        f"{'<|video_pad|>' * (int(grid.prod()) // 4)}<|vision_end|>{TEXT.format(text_prompt='a cat')}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = read(text, return_tensors="pt").input_ids
    inner = model.base_model.model
    with torch.no_grad():
        states = inner.model(
            input_ids=ids,
            pixel_values_videos=pixels,
            video_grid_thw=grid,
            position_ids=torch.arange(ids.shape[1]).expand(3, 1, -1),
            attention_mask=torch.ones_like(ids),
        ).last_hidden_state
        at = [ids[0].tolist().index(read.convert_tokens_to_ids(mark)) for mark in MARKS]
        vq, mq, ta = inner.rm_head(states[0, at])[:, 0].tolist()
    options = {"path": str(folder), "base": str(folder / "base"), "instruction": str(folder / "read.txt")}
    scorer = VideoReward(**options, device="cpu")
    assert list(scorer.ratings(clip, "a cat").values()) == pytest.approx([vq, mq, ta], rel=1e-4, abs=1e-5)
    wanted = (vq - 1) / 2 + (mq + 0.5) / 0.5 + (ta - 0.25) / 4
    assert scorer.judge([clip], ["a cat"]).tolist() == pytest.approx([wanted], rel=1e-4)
    other = scorer.ratings(clip, "another text")
    assert (other["VQ"], other["MQ"]) == pytest.approx((vq, mq), abs=1e-5) and other["TA"] != pytest.approx(
        ta, abs=1e-5
    )
    motion = VideoReward(**options, device="cpu", aspect="MQ")
    assert motion.judge([clip], ["a cat"]).tolist() == pytest.approx([(mq + 0.5) / 0.5], rel=1e-4)


def test_which_frames_are_seen():
    assert sampled(81, 16.0) == [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]
    assert sampled(9, 16.0) == [0, 3, 5, 8] and sampled(3, 16.0) == [0, 2]


def test_what_it_reads_must_be_given(made, tmp_path):
    _, _, folder = made
    options = {"path": str(folder), "base": str(folder / "base")}
    with pytest.raises(UserError, match=r"instruction=FILE .*prompt_template\.py"):
        judge(VideoReward(**options), noise(4))
    (tmp_path / "read.txt").write_text("Rate {text_prompt} <|VQ_reward|>")
    with pytest.raises(UserError, match=r"once each: <\|MQ_reward\|>, <\|TA_reward\|>"):
        _ = VideoReward(**options, instruction=str(tmp_path / "read.txt")).provenance
