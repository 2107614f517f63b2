"""Small random language models of the real classes, saved as the folders that `from_pretrained` reads."""

from __future__ import annotations

from pathlib import Path

from diffpo.compat import ensure_torchvision

ensure_torchvision()

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers  # noqa: E402
from transformers import (  # noqa: E402
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    SiglipVisionConfig,
    T5Config,
    T5ForConditionalGeneration,
)

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,  # far from uniform: what is read decides what is said
}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CHAT = """{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}\
{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE{% elif c['type'] == 'video' %}VIDEO{% else %}\
{{ c['text'] }}{% endif %}{% endfor %}{% endif %}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""


def tokenizer(*special: str, chat: str | None = None) -> PreTrainedTokenizerFast:
    """One token per printable character."""
    tokens = ["<pad>", "<s>", "</s>", "<unk>", *special, *(chr(c) for c in range(32, 127)), "\n"]
    letters = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    letters.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=letters,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(special),
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = chat
    return made


def llava(folder: Path) -> None:
    words = tokenizer("<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        ),
        text_config=LlamaConfig(vocab_size=len(words), **SIZES, **IDS),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)
    for parameter in model.model.multi_modal_projector.parameters():
        parameter.data.mul_(50)  # its own initialisation leaves images without a say
    model.save_pretrained(folder)
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    ).save_pretrained(folder)


def llava_onevision(folder: Path) -> None:
    words = tokenizer("<image>", "<video>")
    image, video = words.convert_tokens_to_ids(["<image>", "<video>"])
    eyes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(image_size=16, patch_size=8, vision_use_head=False, **eyes),
        text_config=Qwen2Config(vocab_size=len(words), **SIZES, **IDS),
        image_grid_pinpoints=[[16, 16], [16, 32]],
        image_token_index=image,
        video_token_index=video,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    for parameter in model.model.multi_modal_projector.parameters():
        parameter.data.mul_(50)  # its own initialisation leaves images without a say
    model.save_pretrained(folder)
    size = {"height": 16, "width": 16}
    LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[16, 16], [16, 32]]),
        tokenizer=words,
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=CHAT.replace("IMAGE", "<image>").replace("VIDEO", "<video>"),
    ).save_pretrained(folder)


def qwen2_vl(folder: Path) -> None:
    marks = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    words = tokenizer(*marks)
    ids = dict(
        zip(
            ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"),
            words.convert_tokens_to_ids(list(marks)),
            strict=True,
        )
    )
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(words),
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
            **SIZES,
            **IDS,
        },
        vision_config={"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4},
        **ids,
    )
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    chat = CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    chat = chat.replace("VIDEO", "<|vision_start|><|video_pad|><|vision_end|>")
    images = Qwen2VLImageProcessor(patch_size=4, min_pixels=64, max_pixels=1024)
    from transformers import Qwen2VLVideoProcessor

    Qwen2VLProcessor(images, words, Qwen2VLVideoProcessor(patch_size=4), chat_template=chat).save_pretrained(folder)


def llama(folder: Path) -> None:
    words = tokenizer(chat=CHAT)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **SIZES, **IDS)).save_pretrained(folder)
    words.save_pretrained(folder)


def t5(folder: Path) -> None:
    words = tokenizer()
    sizes = {"d_model": 32, "d_ff": 32, "d_kv": 16, "num_layers": 2, "num_heads": 2}
    config = T5Config(
        vocab_size=len(words),
        **sizes,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
        tie_word_embeddings=False,
        initializer_factor=3.0,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    words.save_pretrained(folder)


MODELS = {"llava": llava, "llava_onevision": llava_onevision, "qwen2_vl": qwen2_vl, "llama": llama, "t5": t5}
