"""Networks of transformers that see images, with their own image processor or the pixels of OpenAI's program.

find_transformers    a CLIP, or an ALIGN, with its tokenizer
find_vit             a ViT, which reads no text
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor

from diffpo.disk.weights import Weights, fingerprint
from diffpo.errors import UserError
from diffpo.scorers.base import versions
from diffpo.scorers.loading import (
    CLIP,
    VIT,
    Kind,
    check_kind,
    describe,
    load_network,
    load_part,
    load_state,
    read_state,
)
from diffpo.scorers.parts import PROCESSOR_CONFIG, find_beside, find_model
from diffpo.scorers.pixels import resize_and_crop
from diffpo.scorers.towers import Tower, TowerSpec

_PROCESSOR = "its tokenizer and image processor (vocab.json and merges.txt or vocab.txt, preprocessor_config.json)"
Preprocessing = Literal["PIL", "PIL, OpenAI's crop"]
"""`PIL`: transformers' processor, as PickScore's authors ran it. `PIL, OpenAI's crop`: see `pixels.resize_and_crop`."""


def find_transformers(
    spec: str,
    *,
    what: str,
    kind: Kind = CLIP,
    processor: str | None = None,
    otherwise: str | None = None,
    preprocessing: Preprocessing = "PIL",
) -> TowerSpec:
    """Find a CLIP of transformers, or another `kind`: its weights, which are `what` for messages, tokenizer, processor.

    The latter are at `processor`, else in the folder of the weights, else `otherwise`, a Hub id.
    """
    single = (path := Path(spec).expanduser()).is_file()
    weights = Weights(path) if single else find_model(spec, what=what)
    folder = weights.path.parent if single else weights.path
    if single and not (folder / "config.json").is_file():
        raise UserError(
            f"{spec} holds {describe(read_state(path))}, and no config.json is beside it. Give the folder of {what}, "
            "with its config.json, or a Hub id."
        )
    found = Weights(folder, weights.identity)
    if processor is not None or otherwise is not None:
        found = find_beside(processor, found, otherwise=otherwise or spec, what=_PROCESSOR, probe=PROCESSOR_CONFIG)
    record = {
        "weights": weights.identity,
        "processor": found.identity,
        "preprocessing": preprocessing,
        "library": versions("transformers", "pillow"),
    }
    if single:
        record["architecture"] = f"blake2b:{fingerprint(folder / 'config.json')}"

    def load(dtype: str, device: str) -> Tower:
        how = {"dtype": dtype, "device": device}
        if single:
            check_kind(folder, kind, what)
            from transformers import AutoModel

            network = AutoModel.from_config(load_part(folder, "AutoConfig", what))
            load_state(network, read_state(weights.path), path=weights.path, what=what, **how)
        else:
            network = load_network(folder, kind, what, **how)
        return _tower(network, found.path, preprocessing)

    return TowerSpec(record, load)


def find_vit(spec: str) -> TowerSpec:
    """Find a ViT of transformers, whose features are those of its class token."""
    what = "a ViT of transformers, such as DINO"
    weights = find_model(spec, what=what)
    record = {
        "weights": weights.identity,
        "preprocessing": "the model's own image processor",
        "library": versions("transformers", "pillow"),
    }

    def load(dtype: str, device: str) -> Tower:
        network = load_network(weights.path, VIT, what, dtype=dtype, device=device)
        processor = load_part(weights.path, "AutoImageProcessor", f"the image processor of {what}")

        def prepare(images: Sequence[Image]) -> Tensor:
            return processor(list(images), return_tensors="pt").pixel_values

        def encode_images(pixels: Tensor) -> Tensor:
            return network(pixel_values=pixels.to(network.device, network.dtype)).last_hidden_state[:, 0]

        def encode_prompts(prompts: Sequence[str]) -> Tensor:
            raise AssertionError("a ViT reads no text")

        return Tower(network, prepare, encode_images, encode_prompts)

    return TowerSpec(record, load)


def _tower(network: Any, folder: Path, preprocessing: Preprocessing) -> Tower:
    """Put a network and the tokenizer and image processor of a folder together."""
    tokenizer = load_part(folder, "AutoTokenizer", _PROCESSOR)
    processor = load_part(folder, "AutoImageProcessor", _PROCESSOR) if preprocessing == "PIL" else None
    length = network.config.text_config.max_position_embeddings

    def prepare(images: Sequence[Image]) -> Tensor:
        if processor is None:
            side = network.config.vision_config.image_size
            return torch.stack([resize_and_crop(image, side) for image in images])
        return processor(list(images), return_tensors="pt").pixel_values

    def encode_images(pixels: Tensor) -> Tensor:
        return network.get_image_features(pixel_values=pixels.to(network.device, network.dtype)).pooler_output

    def encode_prompts(prompts: Sequence[str]) -> Tensor:
        tokens = tokenizer(list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        return network.get_text_features(**tokens.to(network.device)).pooler_output

    return Tower(network, prepare, encode_images, encode_prompts)
