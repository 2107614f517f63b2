"""CLIPs of transformers, with their own tokenizer and image processor, or with the pixels of OpenAI's program."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor

from diffpo.disk.weights import Weights, fingerprint
from diffpo.errors import UserError
from diffpo.scorers.base import versions
from diffpo.scorers.loading import CLIP, check_kind, describe, load_network, load_part, load_state, read_state
from diffpo.scorers.parts import PROCESSOR_CONFIG, find_beside, find_model, read_json
from diffpo.scorers.pixels import resize_and_crop
from diffpo.scorers.towers import Tower, TowerSpec

_PROCESSOR = "CLIP's tokenizer and image processor (vocab.json, merges.txt, preprocessor_config.json)"
Preprocessing = Literal["PIL", "PIL, OpenAI's crop"]
"""`PIL`: transformers' processor, as PickScore's authors ran it. `PIL, OpenAI's crop`: see `pixels.resize_and_crop`."""


def find_transformers(
    spec: str,
    *,
    what: str,
    processor: str | None = None,
    otherwise: str | None = None,
    preprocessing: Preprocessing = "PIL",
) -> TowerSpec:
    """Find a CLIP of transformers: its weights, which are `what` for messages, its tokenizer and image processor.

    These are at `processor`, else in the folder of the weights, else `otherwise`, a Hub id.
    """
    weights = find_model(spec, what=what)
    single = weights.path.is_file()
    folder = weights.path.parent if single else weights.path
    if single and not (folder / "config.json").is_file():
        kind = describe(read_state(weights.path))
        raise UserError(
            f"{spec} holds {kind}, and no config.json of transformers is beside it. {what} needs one: give its folder."
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
            check_kind(folder, CLIP, what)
            from transformers import CLIPConfig, CLIPModel

            network = CLIPModel(CLIPConfig.from_dict(read_json(folder / "config.json")))
            load_state(network, read_state(weights.path), path=weights.path, what=what, **how)
        else:
            network = load_network(folder, CLIP, what, **how)
        return _tower(network, found.path, preprocessing)

    return TowerSpec(record, load)


def _tower(network: Any, folder: Path, preprocessing: Preprocessing) -> Tower:
    """Put a network and the tokenizer and image processor of a folder together."""
    tokenizer = load_part(folder, "AutoTokenizer", _PROCESSOR)
    processor = load_part(folder, "AutoImageProcessor", _PROCESSOR) if preprocessing == "PIL" else None
    side, length = network.config.vision_config.image_size, network.config.text_config.max_position_embeddings

    def prepare(images: Sequence[Image]) -> Tensor:
        if processor is None:
            return torch.stack([resize_and_crop(image, side) for image in images])
        return processor(list(images), return_tensors="pt").pixel_values

    def encode_images(pixels: Tensor) -> Tensor:
        return network.get_image_features(pixel_values=pixels.to(network.device, network.dtype)).pooler_output

    def encode_prompts(prompts: Sequence[str]) -> Tensor:
        tokens = tokenizer(list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        return network.get_text_features(**tokens.to(network.device)).pooler_output

    return Tower(network, prepare, encode_images, encode_prompts)
