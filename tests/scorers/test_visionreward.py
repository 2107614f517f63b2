"""VisionReward: the published layout of a small random CogVLM2-Video, against its arithmetic written out here."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scorers.test_clip_scorers import judge, noise
from tiny_language import tokenizer
from torch.nn import functional

from diffpo.errors import UserError
from diffpo.scorers.cogvlm2_video import Tower, empty_text_part
from diffpo.scorers.visionreward import VisionReward, seconds_of

QUESTIONS = ['Does it show "[[prompt]]"?\n', "Is it sharp?\n", "Is it still?\n", "Are the letters right?"]
WEIGHTS = [0.5, -0.25, 1.0, 2.0]
VISION = {"in_channels": 3, "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2, "intermediate_size": 24}
VISION |= {"patch_size": 7, "image_size": 28, "num_positions": 17, "layer_norm_eps": 1e-6, "hidden_act": "gelu"}
HEADS, SHARED = 4, 2
PATCHES = 4  # 28 / 7 / 2, squared


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model's folder, its weights as they are published, its tokenizer."""
    folder, words = tmp_path_factory.mktemp("visionreward"), tokenizer("yes")
    config = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": HEADS}
    config |= {"num_multi_query_heads": SHARED, "vocab_size": len(words), "rms_norm_eps": 1e-5, "vision_config": VISION}
    draws = torch.Generator().manual_seed(26)  # some answers are yes, some are not

    def drawn(x):
        return torch.randn(x.shape, generator=draws) / (x[0].numel() ** 0.5 if x.ndim > 1 else 1)

    state = {f"model.vision.{name}": drawn(x) for name, x in Tower(config).state_dict().items()}
    text = {name: drawn(x) for name, x in empty_text_part(config).state_dict().items()}
    text["lm_head.weight"][words.convert_tokens_to_ids("yes")] *= 8  # or it would hardly ever be said
    for i in range(2):
        at = f"model.layers.{i}.self_attn."
        fused = torch.cat([text.pop(f"{at}{letter}_proj.weight") for letter in "qkv"])
        text[f"{at}language_expert_query_key_value.weight"] = fused
        text[f"{at}language_expert_dense.weight"] = text.pop(f"{at}o_proj.weight")
    state |= {name.replace(".mlp.", ".mlp.language_mlp."): x for name, x in text.items()}
    names = sorted(state)
    for number, some in enumerate((names[::2], names[1::2])):
        save_file({name: state[name] for name in some}, folder / f"model-0000{number + 1}-of-00002.safetensors")
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "cogvlm2"}))
    words.save_pretrained(folder)
    (folder / "VisionReward_video_qa_select.txt").write_text("".join(QUESTIONS))
    (folder / "weight.json").write_text(json.dumps(WEIGHTS))
    return folder, state, words


def seen(state, frames):
    """What the tower makes of normalised frames `[f 3 28 28]`."""
    weights = {name.removeprefix("model.vision."): x for name, x in state.items() if ".vision." in name}
    at = "patch_embedding."
    x = functional.conv2d(frames, weights[at + "proj.weight"], weights[at + "proj.bias"], stride=7).flatten(2).mT
    x = (
        torch.cat([weights[at + "cls_embedding"].expand(len(x), 1, -1), x], 1)
        + weights[at + "position_embedding.weight"]
    )
    for i in range(2):
        layer = {name.removeprefix(f"transformer.layers.{i}."): w for name, w in weights.items()}

        def linear(name, x, layer=layer):
            return functional.linear(x, layer[f"{name}.weight"], layer[f"{name}.bias"])

        def norm(name, x, layer=layer):
            return functional.layer_norm(x, (16,), layer[f"{name}.weight"], layer[f"{name}.bias"], 1e-6)

        q, k, v = (
            part.unflatten(2, (2, 8)).transpose(1, 2) for part in linear("attention.query_key_value", x).chunk(3, 2)
        )
        found = (q @ k.mT / math.sqrt(8)).softmax(-1) @ v
        x = x + norm("input_layernorm", linear("attention.dense", found.transpose(1, 2).flatten(2)))
        x = x + norm("post_attention_layernorm", linear("mlp.fc2", functional.gelu(linear("mlp.fc1", x))))
    grid = x[:, 1:].mT.unflatten(2, (4, 4))
    x = functional.conv2d(grid, weights["conv.weight"], weights["conv.bias"], stride=2).flatten(2).mT
    x = x @ weights["linear_proj.linear_proj.weight"].T
    x = functional.layer_norm(x, (32,), weights["linear_proj.norm1.weight"], weights["linear_proj.norm1.bias"])
    x = functional.gelu(x)
    gate, up = (x @ weights[f"linear_proj.{name}.weight"].T for name in ("gate_proj", "dense_h_to_4h"))
    x = (functional.silu(gate) * up) @ weights["linear_proj.dense_4h_to_h.weight"].T
    return torch.cat([weights["boi"].expand(len(x), 1, -1), x, weights["eoi"].expand(len(x), 1, -1)], 1)


def read(state, x, places):
    """Logits behind the last of `[n d]`: fused queries, keys and values, rotary positions, one causal mask over all."""

    def norm(name, x):
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * state[name]

    angles = torch.tensor(places).float()[:, None] / 500_000 ** (torch.arange(0, 8, 2) / 8)
    cos, sin = (torch.cat([part, part], 1) for part in (angles.cos(), angles.sin()))

    def turned(x):
        return x * cos + torch.cat([-x[..., 4:], x[..., :4]], -1) * sin

    mask = torch.full((len(x), len(x)), -torch.inf).triu(1)
    for i in range(2):
        at = f"model.layers.{i}."
        mixed = (
            norm(at + "input_layernorm.weight", x) @ state[at + "self_attn.language_expert_query_key_value.weight"].T
        )
        q, k, v = (part.unflatten(1, (-1, 8)).transpose(0, 1) for part in mixed.split([32, 16, 16], 1))
        k, v = (part.repeat_interleave(HEADS // SHARED, 0) for part in (k, v))
        found = (turned(q) @ turned(k).mT / math.sqrt(8) + mask).softmax(-1) @ v
        x = x + found.transpose(0, 1).flatten(1) @ state[at + "self_attn.language_expert_dense.weight"].T
        y = norm(at + "post_attention_layernorm.weight", x)
        gate, up = (y @ state[f"{at}mlp.language_mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (functional.silu(gate) * up) @ state[at + "mlp.language_mlp.down_proj.weight"].T
    return norm("model.norm.weight", x)[-1] @ state["lm_head.weight"].T


def test_answers_are_those_of_the_published_arithmetic(made):
    """Frames 0 and 4 of five at 4 per second, 56 x 28: halved, and the middle cut out; one position for all patches."""
    folder, state, words = made
    scorer = VisionReward(path=str(folder), questions=str(folder), device="cpu")
    clip = noise(5, 56, 28)
    clip = type(clip)(clip.frames, 4.0)
    pixels = torch.from_numpy(np.stack([np.asarray(clip.frames[i]) for i in (0, 4)])).permute(0, 3, 1, 2)[..., 14:42]
    mean, std = torch.tensor([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])[
        ..., None, None
    ]
    frames, embed = seen(state, (pixels / 255 - mean) / std), state["model.embed_tokens.weight"]
    wanted = []
    for question in QUESTIONS:
        x, places = [embed[[words.bos_token_id]]], [0]
        for number in range(2):
            told = words.encode(str(number), add_special_tokens=False)
            x += [frames[number], embed[told]]
            first = places[-1] + 1
            places += [first, *[first + 1] * PATCHES, first + 2, *range(first + 3, first + 3 + len(told))]
        text = f"Question: {question.replace('[[prompt]]', 'a   cat')} Answer:"
        told = words.encode(text, add_special_tokens=False)
        places += range(places[-1] + 1, places[-1] + 1 + len(told))
        wanted.append(read(state, torch.cat([*x, embed[told]]), places))
    with torch.no_grad():
        found = scorer.logits(clip, "a yes cat")  # a mark of the tokenizer is no text
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-4, atol=1e-4)
    yes = [words.decode([token]) == "yes" for token in found.argmax(1).tolist()]
    assert True in yes and False in yes
    score = sum(weight if one else -weight for weight, one in zip(WEIGHTS, yes, strict=True)) / 4
    assert scorer.judge([clip], ["a yes cat"]).tolist() == pytest.approx([score])


def test_one_frame_of_each_second_is_seen():
    assert seconds_of(5, 4.0) == [0, 4] and seconds_of(81, 16.0) == [0, 16, 32, 48, 64, 80]
    assert seconds_of(25, 16.0) == [0, 16, 24], "1.5 is rounded up, and the last frame is the nearest"
    assert len(seconds_of(1000, 10.0)) == 24 and seconds_of(2, 8.0) == [0]


def test_what_it_asks_must_be_given(made, tmp_path):
    folder, _, _ = made
    with pytest.raises(UserError, match=r"questions=FOLDER .*VisionReward_Video"):
        judge(VisionReward(path=str(folder)), noise(2))
    (tmp_path / "VisionReward_video_qa_select.txt").write_text("One?\nTwo?\n")
    (tmp_path / "weight.json").write_text("[1]")
    with pytest.raises(UserError, match="has 2 questions and 1 weights"):
        _ = VisionReward(path=str(folder), questions=str(tmp_path)).provenance
    (tmp_path / "weight.json").write_text("{")
    with pytest.raises(UserError, match=r"weight\.json is no readable JSON list of numbers"):
        _ = VisionReward(path=str(folder), questions=str(tmp_path)).provenance
    (tmp_path / "config.json").write_text('{"hidden_size": 1}')
    with pytest.raises(UserError, match=r"is not a VisionReward-Video: its config\.json has no vision_config"):
        judge(VisionReward(path=str(tmp_path), questions=str(folder)), noise(2))
