"""Opens diffusers pipelines for sampling: any text-to-image family, plain, with a LoRA, or with a fully tuned denoiser.

Two steps, so that finished work is recognised without loading gigabytes: `find_model` says which files are meant and
what is in them, `open_pipeline` loads them exactly as a user of plain diffusers would.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffpo.disk.weights import BROKEN, Weights, fingerprint, hub_errors, locate, reason, snapshot
from diffpo.errors import UserError
from diffpo.models import Denoiser, family_of
from diffpo.models.base import LORA_FILE
from diffpo.models.peft_folder import CONFIG_FILE, is_peft_folder, load_peft_folder

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

NETWORKS = ("unet", "transformer", "transformer_2")
"""What a pipeline calls the networks that denoise."""
SECOND = "transformer_2"
"""The network for low noise, of pipelines that have one for high noise beside it."""
_INDEX = "model_index.json"
_FP16 = "fp16"
_A_MODEL = "a diffusers model"


@dataclass(frozen=True)
class Model:
    """The files of a model: a base pipeline, and what was tuned of it."""

    base: Weights
    lora: Weights | None = None
    denoiser: Weights | None = None

    @property
    def index(self) -> dict[str, Any]:
        """The base's `model_index.json`: which class each component has."""
        return read_json(self.base.path / _INDEX)

    @property
    def family(self) -> type[Denoiser] | None:
        """The base's family; None: one that diffpo does not train, and may sample from all the same."""
        return family_of(self.index)

    @property
    def vae(self) -> dict[str, Any]:
        """Configuration of the VAE of a base that has a family."""
        return {} if self.family is None else read_json(self.base.path / "vae" / "config.json")

    @property
    def scheduler(self) -> str:
        """Class name of the base's sampler."""
        return self.index.get("scheduler", (None, "unknown"))[1]


def find_model(base: str, *, lora: str | None = None, denoiser: str | None = None, tuned: str | None = None) -> Model:
    """Find a model's files.

    Args:
        base: Folder of a diffusers pipeline, Hub id, or `shapes:base`.
        lora: Folder or file that `load_lora_weights` reads, or a Hub id.
        denoiser: Folder of a fully tuned UNet or transformer, or a Hub id that has one as `unet/` or `transformer/`.
        tuned: A run of `diffpo train`, or its `final/`; which of the two it holds is found out. A LoRA that was trained
            on another start than the base (`model.denoiser`) needs that as `denoiser` beside it.

    Raises:
        UserError: If something is not there, is no model, or two LoRAs or two denoisers are given.
    """
    if lora is not None and tuned is not None:
        raise UserError("give at most one of lora and tuned; got both.")
    weights = find_pipeline(base)
    if tuned is not None:
        kind, path = find_tuned(tuned)
        if kind == "lora":
            lora = str(path)
        elif denoiser is not None:
            raise UserError(f"give at most one of denoiser and tuned: {tuned} holds a denoiser too.")
        else:
            denoiser = str(path)
    adapter = None if lora is None else find_lora(lora)
    return Model(weights, adapter, None if denoiser is None else find_denoiser(denoiser))


def find_pipeline(spec: str) -> Weights:
    """Find a complete diffusers pipeline: a folder, a Hub id, or `shapes:base`; a `UserError` where there is none."""
    found = locate(spec, what=_A_MODEL, fetch=_fetch_pipeline)
    wanted = (
        f"It needs {_INDEX}, scheduler/, vae/, a text encoder and unet/ or transformer/, "
        "as `pipeline.save_pretrained` writes them."
    )
    if found.path.is_file():
        raise UserError(
            f"{spec} is a single file, no diffusers model. {wanted} "
            "(diffusers' `from_single_file` reads such files; save its result.)"
        )
    if not (found.path / _INDEX).is_file():
        tuned = any((found.path / part).exists() for part in (LORA_FILE, "final", *NETWORKS))
        hint = " It looks like the result of a training: give it as `tuned`, and its base as `model`." if tuned else ""
        raise UserError(f"{spec} is no diffusers model: it has no {_INDEX}. {wanted}{hint}")
    parts = [name for name in named_parts(read_json(found.path / _INDEX)) if name != "safety_checker"]
    missing = ", ".join(f"{part}/" for part in parts if not (found.path / part).is_dir())
    if missing:
        raise UserError(f"{spec} is no complete diffusers model: {_INDEX} names {missing}, which it has not.")
    return found


def named_parts(index: dict[str, Any]) -> list[str]:
    """Names of the parts that a pipeline has."""
    return [name for name, kind in index.items() if isinstance(kind, list) and kind[0]]


def find_tuned(spec: str) -> tuple[str, Path]:
    """What a run folder, its `final/`, or any folder of tuned weights holds.

    Returns:
        ("lora", its file, or its folder in PEFT's format) or ("denoiser", its folder).

    Raises:
        UserError: If there is no such folder, or it holds neither.
    """
    root = Path(spec).expanduser()
    if not root.exists():
        raise UserError(
            f"there is no {root}. Give the run folder of `diffpo train` or its final/ (for the Hub: lora or denoiser)."
        )
    if root.is_file():
        return "lora", root
    for folder in (root / "final", root):
        if adapter := _lora_in(folder):
            return "lora", adapter
        for name in (*NETWORKS, "."):
            config = folder / name / "config.json"
            if config.is_file() and "_class_name" in read_json(config):
                return "denoiser", folder / name
    wanted = " nor ".join([LORA_FILE, *(f"{name}/config.json" for name in NETWORKS)])
    begun = (root / "checkpoints").is_dir()
    hint = " The run is not finished: start `diffpo train` again, it continues." if begun else ""
    raise UserError(f"{root} holds no tuned weights: neither {wanted}.{hint}")


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
    return pipeline.to(device)


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
    index = read_json(folder / _INDEX)
    parts = {name: None for name, kind in index.items() if kind == [None, None]} | parts
    if "safety_checker" in index:
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    try:
        kinds = variant(*(folder / name for name in index if name not in parts))
        dtypes = {name: part_dtype(index, name, dtype) for name in named_parts(index)}
        return _pipeline_class(index).from_pretrained(
            folder, dtype=dtypes, variant=kinds, trust_remote_code=False, **parts
        )
    except BROKEN as error:
        raise UserError(f"{told} {folder}: {reason(error)}") from error


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


def _lora_in(folder: Path) -> Path | None:
    """The adapter in a folder: its file, that of an expert for low noise, or itself in PEFT's format."""
    files = [file for file in (folder / LORA_FILE, folder / SECOND / LORA_FILE) if file.is_file()]
    return files[0] if files else folder if is_peft_folder(folder) else None


def _with_second(path: Path, second: Path) -> Weights:
    """Tuned weights, and those of the expert for low noise where they lie beside them."""
    return Weights(path, f"blake2b:{fingerprint(path)}+{fingerprint(second)}") if second.exists() else Weights(path)


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

    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if not isinstance(kind, type):
        raise UserError(f"diffusers has no network called {config.get('_class_name')}")
    return _fetch_remapped_cls_from_config(config, kind) if issubclass(kind, LegacyConfigMixin) else kind


def variant(*folders: Path) -> str | None:
    """`fp16` where one of these folders of weights holds such files only, else None: the whole ones are taken."""
    for folder in folders:
        names = [file.name for file in folder.glob("*.safetensors")]
        if names and all(f".{_FP16}" in name for name in names):
            return _FP16
    return None


def _fetch_pipeline(repo: str) -> Path:
    from diffusers import DiffusionPipeline

    with hub_errors(repo, what=_A_MODEL, probe=_INDEX):
        folder = Path(DiffusionPipeline.download(repo, safety_checker=None, trust_remote_code=False))
        if any(file.suffix in (".safetensors", ".bin") for file in folder.glob("*/*")):
            return folder
        return Path(DiffusionPipeline.download(repo, safety_checker=None, trust_remote_code=False, variant=_FP16))


def find_lora(spec: str) -> Weights:
    """Find the one file of a LoRA, or its folder in PEFT's format: given itself, in a run, or on the Hub.

    Raises:
        UserError: There is none, or more than one.
    """
    fetch = partial(snapshot, what="a LoRA", patterns=("*.safetensors", CONFIG_FILE), probe="*.safetensors")
    found = locate(spec, what="a LoRA", fetch=fetch)
    if found.path.is_file():
        if is_peft_folder(found.path.parent):
            return Weights(found.path.parent)
        return _with_second(found.path, found.path.parent / SECOND / LORA_FILE)
    for folder in (found.path / "final", found.path):
        if adapter := _lora_in(folder):
            return _with_second(adapter, adapter.parent / SECOND / LORA_FILE)
    files = sorted(found.path.glob("*.safetensors"))
    if len(files) != 1:
        held = f"several: {', '.join(f.name for f in files)}" if files else "none"
        raise UserError(f"{spec} should hold one LoRA file ({LORA_FILE}); it holds {held}. Give the file itself.")
    return Weights(files[0])


def find_denoiser(spec: str) -> Weights:
    """Find the folder of a tuned UNet or transformer, like `find_lora`."""
    patterns = [f"{name}/*{suffix}" for name in NETWORKS for suffix in (".json", ".safetensors")]
    fetch = partial(snapshot, what="a tuned denoiser", patterns=patterns, probe="*/config.json")
    found = locate(spec, what="a tuned denoiser", fetch=fetch)
    kind, folder = find_tuned(str(found.path))
    if kind != "denoiser":
        raise UserError(f"{spec} holds a LoRA, not a denoiser: give it as lora.")
    return _with_second(folder, folder.parent / SECOND) if folder.name == NETWORKS[1] else Weights(folder)


def read_json(path: Path) -> dict[str, Any]:
    """Read one of a model's JSON files; a `UserError` where it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object.")
    return value
