"""Opens diffusers pipelines for sampling: any text-to-image family, plain, with a LoRA, or with a fully tuned denoiser.

What `finding.find_model` has found is loaded exactly as a user of plain diffusers would.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffpo.disk.weights import BROKEN, reason
from diffpo.errors import UserError
from diffpo.models import family_of
from diffpo.models.finding import FP16, INDEX, NETWORKS, SECOND, Model, named_parts, read_json
from diffpo.models.peft_folder import load_peft_folder
from diffpo.models.user_files import load_user_adapter

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

MOVED = {"PaellaVQModel": "diffusers.pipelines.stable_cascade.pipeline_stable_cascade"}
"""Classes of parts that diffusers cannot open with their pipelines, since it moved them, and a module that has each."""


def open_pipeline(model: Model, *, dtype: torch.dtype, device: str) -> DiffusionPipeline:
    """Load a pipeline as plain diffusers would, with the safety checker left out.

    Raises:
        UserError: If diffusers cannot read the files, or the tuned weights do not fit the base.
    """
    tuned = {name: load_network(folder, dtype) for name, folder in _tuned_networks(model).items()}
    # Networks and adapters are initialised at random before their weights are read.
    with torch.random.fork_rng(devices=[]):
        pipeline = load_parts(model.base.path, dtype, tuned, told="diffusers cannot load")
        if "prompt" not in inspect.signature(pipeline.__call__).parameters:
            raise UserError(f"{model.base.path} is a {type(pipeline).__name__}, which makes no images of prompts.")
        if model.lora is not None:
            _load_lora(pipeline, model.lora.path)
        if model.user_adapter is not None:
            load_user_adapter(pipeline, model.user_adapter.path)
    return pipeline.to(device)


def decode_one_by_one(pipeline: DiffusionPipeline) -> None:
    """Let the VAE decode each image of a batch alone, where it can: then memory is short at once, or not at all."""
    from diffusers.models.autoencoders.vae import AutoencoderMixin

    if isinstance(pipeline.components.get("vae"), AutoencoderMixin):
        with suppress(NotImplementedError):
            pipeline.vae.enable_slicing()


def load_parts(folder: Path, dtype: torch.dtype, parts: dict[str, Any], *, told: str) -> Any:
    """Load a pipeline without the parts that its index leaves out, and without its safety checker.

    Args:
        folder: The pipeline's.
        dtype: Of its networks, but for those that its family keeps in float32.
        parts: What stands for parts of the folder; None leaves one out.
        told: How a complaint about the folder begins.

    Raises:
        UserError: Files are broken, or of another kind.
    """
    index = read_json(folder / INDEX)
    parts = {name: None for name, kind in index.items() if kind == [None, None]} | parts
    if "safety_checker" in index:
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    dtypes = {name: part_dtype(index, name, dtype) for name in named_parts(index)}
    moved = [name for name in dtypes if index[name][1] in MOVED and name not in parts]
    parts |= dict.fromkeys(moved)
    try:
        kinds = variant(*(folder / name for name in index if name not in parts))
        pipeline = _pipeline_class(index).from_pretrained(
            folder, dtype=dtypes, variant=kinds, trust_remote_code=False, **parts
        )
    except BROKEN as error:
        raise UserError(f"{told} {folder}: {reason(error)}") from error
    if not moved:
        return pipeline
    found = {name: load_network(folder / name, dtypes[name]) for name in moved}
    return type(pipeline)(**pipeline.components | found)


def _pipeline_class(index: dict[str, Any]) -> Any:
    """The pipeline's own class: `DiffusionPipeline` forgets the parts that it is given where a class may lack them."""
    import diffusers

    kind = getattr(diffusers, str(index.get("_class_name")), None)
    known = isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)
    return kind if known else diffusers.DiffusionPipeline


def part_dtype(index: dict[str, Any], part: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a pipeline's part where its networks have `dtype`: some families keep their VAE in float32."""
    family = family_of(index)
    whole = family is not None and part in family.whole_parts
    return torch.promote_types(dtype, torch.float32) if whole else dtype


def _load_lora(pipeline: DiffusionPipeline, path: Path) -> None:
    from diffusers.loaders.lora_base import LoraBaseMixin

    files = [path, path.parent / SECOND / path.name]
    try:
        if path.is_dir():
            network = next(getattr(pipeline, name) for name in NETWORKS if name in pipeline.components)
            return load_peft_folder(network, path, "default")
        if not isinstance(pipeline, LoraBaseMixin):
            raise UserError(f"{type(pipeline).__name__} reads no LoRA file; give {path} as PEFT's folder.")
        for file in (file for file in files if file.is_file()):
            second = file.parent.name == SECOND
            if second and pipeline.components.get(SECOND) is None:
                raise UserError(
                    f"the LoRA {file} is of an expert for low noise, which {type(pipeline).__name__} lacks."
                )
            where = {"load_into_transformer_2": True} if second else {}
            pipeline.load_lora_weights(str(file.parent), weight_name=file.name, **where)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"the LoRA {path} does not fit {type(pipeline).__name__}: {error}") from error
    if not any(pipeline.get_list_adapters().values()):  # diffusers only logs this
        raise UserError(f"the LoRA {path} has no weight that fits {type(pipeline).__name__}: it would change nothing.")


def _tuned_networks(model: Model) -> dict[str, Path]:
    """Folders of the networks that replace the base's own of the same class, an expert for low noise included."""
    if model.denoiser is None:
        return {}
    folder = model.denoiser.path
    kind = network_class(read_json(folder / "config.json"))
    own = {name: model.base.path / name / "config.json" for name in NETWORKS}
    own = {name: network_class(read_json(file)) for name, file in own.items() if file.is_file()}
    fitting = [name for name, other in own.items() if other is kind]
    if not fitting:
        held = ", ".join(f"{name} {other.__name__}" for name, other in own.items())
        raise UserError(
            f"{folder} is a {kind.__name__}, but {model.base.path} has {held or 'no denoiser'}. "
            "Give the base that it was tuned from."
        )
    name = folder.name if folder.name in fitting else fitting[0]
    beside = folder.parent / SECOND
    both = name == folder.name != SECOND and SECOND in fitting and (beside / "config.json").is_file()
    return {name: folder} | ({SECOND: beside} if both else {})


def load_network(folder: Path, dtype: torch.dtype) -> Any:
    """Load a network of diffusers, whole or of half-precision files where there are no others.

    Raises:
        UserError: Its files are missing, broken, or those of another network.
    """
    kind = network_class(read_json(folder / "config.json"))
    try:
        return kind.from_pretrained(folder, dtype=dtype, variant=variant(folder))
    except BROKEN as error:
        raise UserError(f"cannot load a {kind.__name__} from {folder}: {reason(error)}") from error


def network_class(config: dict[str, Any]) -> Any:
    """Class of the network that a `config.json` describes; diffusers has split one of its classes since.

    Raises:
        UserError: diffusers has no such class.
    """
    import diffusers
    from diffusers.configuration_utils import LegacyConfigMixin
    from diffusers.models.model_loading_utils import _fetch_remapped_cls_from_config

    name = str(config.get("_class_name"))
    kind = getattr(import_module(MOVED[name]) if name in MOVED else diffusers, name, None)
    if not isinstance(kind, type):
        raise UserError(f"diffusers has no network called {name}")
    return _fetch_remapped_cls_from_config(config, kind) if issubclass(kind, LegacyConfigMixin) else kind


def variant(*folders: Path) -> str | None:
    """`fp16` where one of these folders of weights holds such files only, else None: the whole ones are taken."""
    for folder in folders:
        names = [file.name for file in folder.glob("*.safetensors")]
        if names and all(f".{FP16}" in name for name in names):
            return FP16
    return None
