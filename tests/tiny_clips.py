"""Tiny CLIPs with CLIP's real vocabulary, from the golden scorers: in transformers' format and in open_clip's."""

import json
import shutil
from pathlib import Path

import torch
from check_scorers import write_vocabulary
from PIL import Image

GOLDEN = Path(__file__).parent / "golden" / "scorers"
HPS = GOLDEN / "hpsv2" / "HPS_tiny.pt"
ARCHITECTURE = GOLDEN / "hpsv2" / "ViT-tiny.json"


def golden(scorer: str) -> tuple[list[Image.Image], list[str], torch.Tensor]:
    """Images, prompts and the official scores of the golden folder."""
    prompts = json.loads((GOLDEN / "prompts.json").read_text())
    images = [Image.open(GOLDEN / "images" / f"{i}.png") for i in range(len(prompts))]
    return images, prompts, torch.tensor(json.loads((GOLDEN / scorer / "scores.json").read_text()))


def write_pickscore(folder: Path) -> Path:
    """The golden PickScore with its vocabulary."""
    shutil.copytree(GOLDEN / "pickscore", folder, dirs_exist_ok=True)
    write_vocabulary(folder)
    return folder


def write_open_clip(folder: Path) -> Path:
    """The weights of the golden HPS as a folder of open_clip."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": json.loads(ARCHITECTURE.read_text())}))
    save_file(hps_state(), folder / "open_clip_model.safetensors")
    return folder


def hps_state() -> dict[str, torch.Tensor]:
    """The golden HPS's weights, by open_clip's names."""
    return torch.load(HPS, weights_only=True)["state_dict"]


def write_hps_for_transformers(folder: Path) -> Path:
    """The weights of the golden HPS as a folder of transformers, name by name."""
    from safetensors.torch import save_file

    write_pickscore(folder)
    config = json.loads((folder / "config.json").read_text())
    for part in ("text_config", "vision_config"):  # open_clip's feed-forward part is four times as wide as its tokens
        config[part] |= {"intermediate_size": 4 * config[part]["hidden_size"], "hidden_act": "gelu"}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(_renamed(hps_state()), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    parts = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.": "vision_model.embeddings.patch_embedding.",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.ln_pre.": "vision_model.pre_layrnorm.",
        "visual.ln_post.": "vision_model.post_layernorm.",
        "visual.transformer.resblocks.": "vision_model.encoder.layers.",
        "token_embedding.": "text_model.embeddings.token_embedding.",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "ln_final.": "text_model.final_layer_norm.",
        "transformer.resblocks.": "text_model.encoder.layers.",
        ".ln_1.": ".layer_norm1.",
        ".ln_2.": ".layer_norm2.",
        ".mlp.c_fc.": ".mlp.fc1.",
        ".mlp.c_proj.": ".mlp.fc2.",
        ".attn.out_proj.": ".self_attn.out_proj.",
    }
    renamed = {}
    for name, value in state.items():
        if name in ("visual.proj", "text_projection"):
            renamed["visual_projection.weight" if "visual" in name else "text_projection.weight"] = value.T.contiguous()
            continue
        own = name
        for old, new in parts.items():
            if (old.startswith(".") and old in own) or own.startswith(old):
                own = own.replace(old, new)
        if ".attn.in_proj_" in own:
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                renamed[own.replace(".attn.in_proj_", f".self_attn.{letter}_proj.")] = third.clone()
        else:
            renamed[own] = value.clone()
    return renamed


def write_align(folder: Path) -> Path:
    """A random ALIGN of the real classes, with a tokenizer of single letters and its own image processor."""
    from transformers import AlignConfig, AlignModel, BertTokenizerFast, EfficientNetImageProcessorPil

    torch.manual_seed(0)
    text = {"vocab_size": 128, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 32, "max_position_embeddings": 64}
    stages = {"in_channels": [32, 16], "out_channels": [16, 24], "kernel_sizes": [3, 3], "strides": [1, 2]}
    stages |= {"num_block_repeats": [1, 1], "expand_ratios": [1, 2], "depthwise_padding": []}
    vision = stages | {"image_size": 32, "hidden_dim": 24, "width_coefficient": 1.0, "depth_coefficient": 1.0}
    config = AlignConfig(text_config=text, vision_config=vision, projection_dim=24)
    AlignModel(config).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(i) for i in range(97, 123))]
    words += [f"##{chr(i)}" for i in range(97, 123)]
    BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    EfficientNetImageProcessorPil(size=size, crop_size=size).save_pretrained(folder)
    return folder


def write_vit(folder: Path) -> Path:
    """A random ViT of the real classes with its image processor, as DINO is published: without a pooler."""
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
