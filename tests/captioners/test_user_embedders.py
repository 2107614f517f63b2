"""Embedders of users: what a model held at the end of its profile, and what a CLIP sees between chosen and rejected."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffpo.captioners import EMBEDDERS
from diffpo.captioners.base import Choice
from diffpo.captioners.contrast import ClipEmbedder
from diffpo.captioners.profile import ProfileEmbedder, content_of
from diffpo.errors import UserError


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8))


CHOICES = [Choice(f"prompt {i}", picture(2 * i), picture(2 * i + 1)) for i in range(3)]


@pytest.fixture
def profiler(language_model):
    path = str(language_model("llava_onevision"))
    return lambda **options: ProfileEmbedder(path=path, device="cpu", **{"max_new_tokens": 9, **options})


def by_hand(path: str, choices: list[Choice], length: int) -> tuple[str, tuple[torch.Tensor, ...], int]:
    """Text, hidden states of the last step, and how many tokens were written, as transformers documents it."""
    from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

    processor = AutoProcessor.from_pretrained(path)
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(path).eval()
    chat = [{"role": "user", "content": content_of(choices)}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    images = [side for choice in choices for side in (choice.chosen, choice.rejected)]
    inputs = processor(images=[images], text=text, return_tensors="pt")
    made = model.generate(
        **inputs, max_new_tokens=length, do_sample=False, output_hidden_states=True, return_dict_in_generate=True
    )
    start = inputs["input_ids"].shape[1]
    written = made.sequences[0, start:]
    return processor.decode(written, skip_special_tokens=True), made.hidden_states[-1], len(written)


def test_states_are_those_of_the_last_generated_position(profiler):
    embedder = profiler(layers=(0, 1, -1))
    portrait = embedder.embed(CHOICES)
    text, states, written = by_hand(embedder.path, CHOICES, 9)
    assert written > 1 and len(states) == 3  # what the two layers are given and return
    assert portrait.profile == text.strip() and portrait.states.shape == (3, 32)
    expected = torch.stack([states[layer][0, -1] for layer in (0, 1, 2)]).numpy()
    assert np.abs(portrait.states - expected).max() < 1e-4  # the other positions differ by more than 1
    stored = embedder.normalise(portrait.states)
    assert np.abs(stored.mean(-1)).max() < 1e-5 and np.abs(stored.std(-1) - 1).max() < 1e-3


def test_states_depend_on_every_image_and_on_their_order(profiler):
    embedder = profiler()
    usual = embedder.embed(CHOICES).states
    assert np.array_equal(embedder.embed(CHOICES).states, usual)
    turned = Choice(CHOICES[1].prompt, CHOICES[1].rejected, CHOICES[1].chosen)
    for others in ([CHOICES[0], turned, CHOICES[2]], CHOICES[::-1], CHOICES[:2]):
        assert np.abs(embedder.embed(others).states - usual).max() > 1e-3


def test_a_layer_that_is_not_there_is_named(profiler):
    with pytest.raises(UserError, match=r"layers 7, but .* has states 0 to 2"):
        profiler(layers=(7,)).embed(CHOICES[:1])


def test_a_model_that_writes_nothing_is_refused(profiler):
    embedder = profiler()
    end = embedder.model.config.text_config.eos_token_id
    embedder.model.generation_config.suppress_tokens = [
        i for i in range(embedder.model.config.text_config.vocab_size) if i != end
    ]
    with pytest.raises(UserError, match="wrote nothing about 1 pairs"):
        embedder.embed(CHOICES[:1])


@pytest.mark.parametrize("features", ["patches", "pooled"])
def test_a_contrast_is_the_mean_difference_of_features(features):
    from transformers import AutoImageProcessor, CLIPModel

    from diffpo.worlds.assets import asset_path

    folder = asset_path("shapes/pickscore")
    embedder = ClipEmbedder(path="shapes:pickscore", features=features)
    network, processor = (
        CLIPModel.from_pretrained(folder).eval(),
        AutoImageProcessor.from_pretrained(folder, backend="pil"),
    )

    def look(images):
        pixels = processor(images, return_tensors="pt").pixel_values
        with torch.no_grad():
            if features == "pooled":
                return network.get_image_features(pixels).pooler_output
            return network.vision_model(pixels).last_hidden_state[:, 1:].mean(1)

    expected = (look([c.chosen for c in CHOICES]) - look([c.rejected for c in CHOICES])).mean(0)
    found = embedder.embed(CHOICES)
    assert found.profile is None and found.states.shape == (1, 128)
    assert np.abs(found.states[0] - expected.numpy()).max() < 1e-5
    opposite = [Choice(c.prompt, c.rejected, c.chosen) for c in CHOICES]
    assert np.abs(embedder.embed(opposite).states + found.states).max() < 1e-5


def test_every_embedder_says_what_decides_its_states(language_model):
    paths = {"profile": str(language_model("llava_onevision")), "clip": "shapes:pickscore"}
    for name, path in paths.items():
        embedder = EMBEDDERS[name](path=path)
        assert embedder.name == name and embedder.provenance["weights"].startswith("blake2b:")
