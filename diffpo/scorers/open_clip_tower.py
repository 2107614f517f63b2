"""CLIPs of open_clip: the preprocessing that came with the weights, or HPS's.

HPS scales the longest side to the network's size, on the tensor, and pads with black; nothing is cropped. Prompts are
read by open_clip's tokenizer, which mends quotes and entities first and pads with 0; that of transformers does neither.
"""

import importlib.util
import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor

from diffpo.compat import ensure_torchvision
from diffpo.disk.files import hash_of
from diffpo.disk.weights import Weights, snapshot
from diffpo.errors import UserError
from diffpo.scorers.base import versions
from diffpo.scorers.loading import load_part, load_state, read_state
from diffpo.scorers.parts import OPEN_CLIP_CONFIG, find_folder, pick_file, read_json
from diffpo.scorers.pixels import pad_longest
from diffpo.scorers.towers import Tower, TowerSpec

Resizing = Literal["own", "longest-side", "longest-side-plain"]
"""`own`: as the weights' configuration says. `longest-side`: HPS's, with antialiasing, as today's torchvision does.
`longest-side-plain`: HPS's without it, as torchvision did before 0.17."""

WHAT = f"a CLIP of open_clip ({OPEN_CLIP_CONFIG} and its weights)"
_FILES = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]


def from_folder(spec: str, resizing: Resizing) -> TowerSpec:
    """Find a CLIP in a folder or Hub repository with open_clip's configuration."""
    files = (OPEN_CLIP_CONFIG, _FILES[0], "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json")
    found = find_folder(spec, what=WHAT, files=files, probe=OPEN_CLIP_CONFIG)
    if not (found.path / _FILES[0]).is_file() and not Path(spec).expanduser().exists():
        snapshot(spec, what=WHAT, patterns=_FILES[1:], probe=_FILES[1])
    config = read_json(found.path / OPEN_CLIP_CONFIG)
    if "model_cfg" not in config:
        raise UserError(f"{found.path / OPEN_CLIP_CONFIG} has no model_cfg, so it is no configuration of open_clip.")
    weights = Weights(pick_file(found.path, _FILES, WHAT), found.identity)
    return _spec(weights, config["model_cfg"], Path(spec).name, config.get("preprocess_cfg", {}), resizing)


def from_file(weights: Weights, architecture: str, resizing: Resizing) -> TowerSpec:
    """A CLIP in one file, whose architecture is a name that open_clip knows or a JSON file like open_clip's own."""
    path = Path(architecture).expanduser()
    if path.suffix == ".json":
        config = read_json(path)
        config, label = config.get("model_cfg", config), path.stem
    else:
        config, label = _open_clip().get_model_config(architecture), architecture
        if config is None:
            raise UserError(
                f"open_clip has no architecture {architecture!r}. Give one of open_clip.list_models(), such as "
                "ViT-H-14, or a JSON file with embed_dim, vision_cfg and text_cfg."
            )
    return _spec(weights, config, label, {}, resizing)


def hub_id_of_tag(spec: str) -> str | None:
    """The Hub repository of ARCHITECTURE/TAG, such as ViT-B-32/laion2b_s34b_b79k; None: spec is something else."""
    architecture, _, tag = spec.partition("/")
    library = importlib.util.find_spec("open_clip")
    if library is None or library.origin is None:
        return None
    if not (Path(library.origin).parent / "model_configs" / f"{architecture}.json").is_file():
        return None  # without the seconds that the import takes
    return _open_clip().get_pretrained_cfg(architecture, tag).get("hf_hub", "").rstrip("/") or None


def _spec(
    weights: Weights, config: dict[str, Any], label: str, preprocess: dict[str, Any], resizing: Resizing
) -> TowerSpec:
    """A CLIP in one file, with its architecture in open_clip's words (`embed_dim`, `vision_cfg`, `text_cfg`) and name.

    `preprocess` is what its configuration says about images, beside the defaults of open_clip.
    """
    digest = hash_of(json.dumps(config, sort_keys=True), 4)
    own = resizing == "own"
    _open_clip()
    record = {
        "weights": weights.identity,
        "architecture": f"{label} ({digest})",
        "preprocessing": f"open_clip {json.dumps(preprocess, sort_keys=True)}" if own else f"HPS, {resizing}",
        "library": versions("open-clip-torch", *(["torchvision", "pillow"] if own else ["torch"])),
    }

    def load(dtype: str, device: str) -> Tower:
        state, network = read_state(weights.path), _build(config, label)  # a bad file is refused before gigabytes
        if any(name.startswith("text.") for name in network.state_dict()):
            from open_clip.model import convert_to_custom_text_state_dict

            state = convert_to_custom_text_state_dict(state)
        what = f"a CLIP {label} of open_clip"
        load_state(network, state, path=weights.path, what=what, dtype=dtype, device=device)
        tokenizer = _tokenizer(config["text_cfg"], weights.path.parent)
        transform, weight = _transform(network.visual.image_size, preprocess, resizing), network.logit_scale

        def prepare(images: Sequence[Image]) -> Tensor:
            return torch.stack([*map(transform, images)])

        def encode_images(pixels: Tensor) -> Tensor:
            return network.encode_image(pixels.to(weight.device, weight.dtype))

        def encode_prompts(prompts: Sequence[str]) -> Tensor:
            return network.encode_text(tokenizer(list(prompts)).to(weight.device))

        return Tower(network, prepare, encode_images, encode_prompts)

    return TowerSpec(record, load)


def _transform(size: int | tuple[int, int], preprocess: dict[str, Any], resizing: Resizing) -> Any:
    """Make the function that turns an RGB image into pixels `[3 size size]`."""
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    settings = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), preprocess | {"size": size}))
    if resizing == "own":
        return image_transform_v2(settings, is_train=False)
    side = size if isinstance(size, int) else size[0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (settings.mean, settings.std))
    antialias = resizing == "longest-side"
    return lambda image: (pad_longest(image, side, antialias=antialias) - mean) / std


def _open_clip() -> Any:
    """Import open_clip, which takes seconds."""
    ensure_torchvision()
    try:
        import open_clip
    except ImportError as error:
        raise UserError(
            "HPS and the CLIPs of open_clip need open-clip-torch, which is not installed: pip install 'diffpo[scorers]'"
        ) from error
    return open_clip


def _build(config: dict[str, Any], label: str) -> Any:
    """Make the network of a configuration, without fetching weights for its parts."""
    open_clip, config = _open_clip(), deepcopy(config)
    try:
        text, vision = config["text_cfg"], config["vision_cfg"]
        custom = config.pop("custom_text", False) or "hf_model_name" in text
        if "hf_model_name" in text:
            text["hf_model_pretrained"] = False
            load_part(text["hf_model_name"], "AutoConfig", f"the text part of {label}")  # else open_clip may run code
        if "timm_model_name" in vision:
            vision["timm_model_pretrained"] = False
        if not custom:
            return open_clip.CLIP(**config)
        return open_clip.CoCa(**config) if "multimodal_cfg" in config else open_clip.CustomTextCLIP(**config)
    except (KeyError, TypeError) as error:
        raise UserError(f"{label} is no architecture that open_clip can build: {error}") from error


def _tokenizer(text: dict[str, Any], folder: Path) -> Any:
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    length, options = text.get("context_length", 77), dict(text.get("tokenizer_kwargs", {}))
    if "hf_tokenizer_name" not in text:
        return SimpleTokenizer(context_length=length, **options)
    try:
        mode = text.get("tokenizer_mode")
        options["trust_remote_code"] = False  # whatever the file says
        return HFTokenizer(str(folder), context_length=length, tokenizer_mode=mode, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} lacks the tokenizer of {text['hf_tokenizer_name']}: {error}") from error
