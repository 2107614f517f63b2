"""Tokenizers with a letter per token and small random text encoders, of the classes that pipelines have."""

from itertools import pairwise

from diffpo.compat import ensure_torchvision

ensure_torchvision()

from transformers import (  # noqa: E402
    CLIPTextConfig,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    LlamaConfig,
    LlamaModel,
    Qwen2Tokenizer,
    Qwen3Config,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

WIDTH = 24
LETTERS = [chr(c) for c in range(33, 127)]


def clip_tokenizer(length: int = 16) -> CLIPTokenizer:
    vocab = [*LETTERS, *(f"{s}</w>" for s in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(vocab)}, merges=[], model_max_length=length)


def clip_config(**more) -> CLIPTextConfig:
    size = len(clip_tokenizer())
    ids = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=WIDTH,
        **ids,
        **{"max_position_embeddings": 16, **more},
    )


def t5_tokenizer() -> T5TokenizerFast:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    return T5TokenizerFast(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)


def t5(width: int = WIDTH, encoder: type = T5EncoderModel, config: type = T5Config, vocab: int = 128):
    return encoder(config(vocab_size=vocab, d_model=width, d_ff=32, d_kv=8, num_layers=1, num_heads=2))


MARKS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{{ m['content'][0]['text'] }}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer() -> Qwen2Tokenizer:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocab = {c: i for i, c in enumerate([*bytes_to_unicode().values(), "<|endoftext|>", *MARKS])}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], additional_special_tokens=MARKS, model_max_length=2048)
    tokenizer.chat_template = CHAT
    return tokenizer


def llama_tokenizer() -> Qwen2Tokenizer:
    """HunyuanVideo's pipeline takes the first 95 tokens off: its instruction is as many here."""
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

    before, after = DEFAULT_PROMPT_TEMPLATE["template"].split("{}")
    cuts = [len(before) * i // 95 for i in range(96)]
    tokenizer = qwen_tokenizer()
    tokenizer.add_tokens([before[a:b] for a, b in pairwise(cuts)] + [after], special_tokens=True)
    return tokenizer


def hunyuan_tokenizer() -> Qwen2Tokenizer:
    """HunyuanVideo 1.5's pipeline takes the first 108 tokens off: the instruction is as many letters here."""
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = "{{ 'i' * 108 }}{{ messages[-1]['content'] }}<|im_end|>"
    return tokenizer


def qwen_vl_text():
    """The language model of Qwen2.5-VL, which HunyuanVideo 1.5 reads prompts with."""
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

    sizes = {"hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 3, "vocab_size": 300}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "rope_theta": 1e6}
    rope = {"mrope_section": [2, 2, 2], "rope_type": "default", "type": "default"}
    ids = {"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
    return Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**sizes, **heads, rope_scaling=rope, **ids))


def llama():
    sizes = {"hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 3, "vocab_size": 400}
    return LlamaModel(LlamaConfig(num_attention_heads=2, num_key_value_heads=2, **sizes))


def qwen3(kind: type, width: int = WIDTH, layers: int = 3):
    sizes = {"hidden_size": width, "intermediate_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048}
    return kind(Qwen3Config(vocab_size=300, **sizes, **heads))


def qwen_vl():
    """Qwen2.5-VL, which Qwen-Image reads prompts with."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        **{"hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 300},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "rope_theta": 1e6},
        "rope_scaling": {"mrope_section": [2, 2, 2], "rope_type": "default", "type": "default"},
        **{"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    marks = ("vision_start", "vision_end", "image", "video")
    ids = {f"{mark}_token_id": 259 + i for i, mark in enumerate(marks)}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))


def mistral(width: int, layers: int):
    """Mistral 3, which FLUX.2 reads prompts with."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    text = {
        **{"model_type": "mistral", "vocab_size": 300, "hidden_size": width, "intermediate_size": 16, "head_dim": 8},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": layers},
        **{"sliding_window": None, "pad_token_id": 256},
    }
    vision = {
        **{"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "image_size": 30, "patch_size": 6, "num_channels": 3},
    }
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=261)
    return Mistral3ForConditionalGeneration(config)


def gemma_tokenizer() -> GemmaTokenizer:
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
    return GemmaTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], add_bos_token=True, model_max_length=1024
    )


def gemma():
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 128}
    return Gemma2Model(Gemma2Config(num_attention_heads=2, num_key_value_heads=2, head_dim=8, **sizes))
