"""Captions by models of the real classes: what they see, and that a caption is a function of its own row."""

import numpy as np
import pytest
from PIL import Image

from diffpo.captioners import ImageTextCaptioner
from diffpo.captioners.chat import CLIP_INSTRUCTIONS
from diffpo.errors import ConfigError
from diffpo.media.frames import Clip

PROMPTS = ["a cat", "two dogs, one of them asleep", "x"]
KEYS = [4, 5, 6]


@pytest.fixture(scope="module")
def images():
    sizes = [(20, 30), (30, 20), (24, 24)]
    return [
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)) for i, size in enumerate(sizes)
    ]


@pytest.fixture(params=["llava", "qwen2_vl"])
def make(request, language_model):
    """A captioner with the options given."""
    path = str(language_model(request.param))
    return lambda **options: ImageTextCaptioner(path=path, device="cpu", **{"max_new_tokens": 12, **options})


def by_hand(captioner: ImageTextCaptioner, image: Image.Image, text: str) -> str:
    """One greedy caption, as the documentation of transformers has it."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(captioner.path)
    model = AutoModelForImageTextToText.from_pretrained(captioner.path)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    inputs = processor(
        images=image, text=processor.apply_chat_template(chat, add_generation_prompt=True), return_tensors="pt"
    )
    tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return " ".join(processor.decode(tokens, skip_special_tokens=True).split())


def test_a_caption_is_what_plain_transformers_says(make, images):
    captioner = make(instruction="Say {prompt}!")
    captions = captioner.caption(images, PROMPTS, KEYS)
    assert captions == [by_hand(captioner, image, f"Say {p}!") for image, p in zip(images, PROMPTS, strict=True)]
    assert len(set(captions)) == 3 and all(captions)


def test_a_clip_is_captioned_by_so_many_of_its_frames(make, images):
    """Of an image nothing changes; the model is told that frames are those of one clip, unless the user says it."""
    frames = tuple(image.resize((24, 24)) for image in images)
    clip, still = Clip(frames), Clip(frames[:1])
    one, three = make(), make(frames=3)
    assert one.describe([clip], ["a"], [0]) == one.caption([frames[0]], ["a"], [0])
    both = three.describe([clip, still], ["a", "a"], [0, 1])
    assert both[1] == one.caption([frames[0]], ["a"], [1])[0] and both[0] != one.describe([clip], ["a"], [0])[0]
    told = CLIP_INSTRUCTIONS["image+prompt"]
    assert make(frames=3, instruction=told).describe([clip], ["a"], [0]) == both[:1]
    assert three.describe([Clip(frames[::-1])], ["a"], [0]) != both[:1]
    assert three.provenance["frames"] == 3 and "frames" not in one.provenance


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_caption_does_not_depend_on_its_batch(make, images, temperature):
    captioner = make(temperature=temperature)
    alone = [captioner.caption([i], [p], [k])[0] for i, p, k in zip(images, PROMPTS, KEYS, strict=True)]
    assert captioner.caption(images, PROMPTS, KEYS) == alone
    assert captioner.caption(images[::-1], PROMPTS[::-1], KEYS[::-1]) == alone[::-1]


def test_the_prompt_is_seen_only_if_it_should_be(make, images):
    both, alone = make(), make(sees="image")
    assert both.caption(images[:1], PROMPTS[:1], [0]) != both.caption(images[:1], PROMPTS[1:2], [0])
    assert alone.caption(images[:1], PROMPTS[:1], [0]) == alone.caption(images[:1], PROMPTS[1:2], [0])
    assert alone.caption(images[:1], PROMPTS[:1], [0]) != alone.caption(images[1:2], PROMPTS[:1], [0])


def test_draws_follow_the_key_and_the_seed(make, images):
    captioner = make(temperature=2.0)
    first = captioner.caption(images, PROMPTS, KEYS)
    assert captioner.caption(images, PROMPTS, KEYS) == first
    assert captioner.caption(images, PROMPTS, [k + 10 for k in KEYS]) != first
    assert make(temperature=2.0, seed=1).caption(images, PROMPTS, KEYS) != first


def test_a_caption_ends_where_it_must(make, images):
    assert all(len(text) <= 3 for text in make(max_new_tokens=3).caption(images, PROMPTS, KEYS))


def test_half_precision_runs(make, images):
    assert len(make(dtype="bfloat16").caption(images, PROMPTS, KEYS)) == 3


def test_instruction_and_sight_must_agree():
    with pytest.raises(ConfigError, match=r"sees=image\+prompt needs \{prompt\}"):
        ImageTextCaptioner(instruction="Describe it.")
    with pytest.raises(ConfigError, match=r"sees=image goes without \{prompt\}"):
        ImageTextCaptioner(sees="image", instruction="Does it show {prompt}?")
