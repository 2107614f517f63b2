"""Finds the files of a model: a pipeline, and what was tuned of it. Nothing is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from diffpo.disk.weights import Weights, fingerprint, hub_errors, locate, read_json, snapshot
from diffpo.errors import UserError
from diffpo.media.users import EMBEDDER
from diffpo.models import Denoiser, family_of
from diffpo.models.base import LORA_FILE
from diffpo.models.peft_folder import CONFIG_FILE, is_peft_folder
from diffpo.models.user_files import INDEX as USER_ADAPTER_INDEX
from diffpo.models.user_files import TENSORS as USER_ADAPTER

NETWORKS = ("unet", "transformer", "transformer_2", "prior_prior", "decoder")
"""What a pipeline calls the networks that denoise; of two that have one class, the one that is trained comes first."""
SECOND = "transformer_2"
"""The network for low noise, of pipelines that have one for high noise beside it."""
INDEX = "model_index.json"
FP16 = "fp16"
"""What names of half-precision files contain."""
NO_LORA = (USER_ADAPTER, EMBEDDER)
"""Files that lie where a LoRA may, and are none."""
_A_MODEL = "a diffusers model"


@dataclass(frozen=True)
class Model:
    """The files of a model: a base pipeline, and what was tuned of it."""

    base: Weights
    lora: Weights | None = None
    denoiser: Weights | None = None
    user_adapter: Weights | None = None
    """What tells the network its users; its folder holds nothing else that counts."""

    @property
    def index(self) -> dict[str, Any]:
        """The base's `model_index.json`: which class each component has."""
        return read_json(self.base.path / INDEX)

    @property
    def family(self) -> type[Denoiser] | None:
        """The base's family; None: one that diffpo does not train, and may sample from all the same."""
        return family_of(self.index)

    @property
    def vae(self) -> dict[str, Any]:
        """Configuration of the VAE of a base that has a family, and a VAE."""
        if self.family is None or self.family.vae_file is not None:
            return {}
        return read_json(self.base.path / "vae" / "config.json")

    @property
    def schedule(self) -> dict[str, Any]:
        """Configuration of the sampler of a base that has a family."""
        return {} if self.family is None else read_json(self.base.path / "scheduler" / "scheduler_config.json")

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
        tuned: A run of `diffpo train`, or its `final/`; which of the two it holds is found out, and whether it holds a
            user adapter. A LoRA that was trained on another start than the base (`model.denoiser`) needs that as
            `denoiser` beside it.

    Raises:
        UserError: If something is not there, is no model, or two LoRAs or two denoisers are given.
    """
    if lora is not None and tuned is not None:
        raise UserError("give at most one of lora and tuned; got both.")
    weights = find_pipeline(base)
    told = None if tuned is None else _user_adapter_of(Path(tuned).expanduser())
    if tuned is not None and (told is None or _lora_in(told.path)):
        kind, path = find_tuned(tuned)
        if kind == "lora":
            lora = str(path)
        elif denoiser is not None:
            raise UserError(f"give at most one of denoiser and tuned: {tuned} holds a denoiser too.")
        else:
            denoiser = str(path)
    adapter = None if lora is None else find_lora(lora)
    return Model(weights, adapter, None if denoiser is None else find_denoiser(denoiser), told)


def find_pipeline(spec: str) -> Weights:
    """Find a complete diffusers pipeline: a folder, a Hub id, or `shapes:base`; a `UserError` where there is none."""
    found = locate(spec, what=_A_MODEL, fetch=_fetch_pipeline)
    wanted = (
        f"It needs {INDEX}, scheduler/, vae/, a text encoder and unet/ or transformer/, "
        "as `pipeline.save_pretrained` writes them."
    )
    if found.path.is_file():
        raise UserError(
            f"{spec} is a single file, no diffusers model. {wanted} "
            "(diffusers' `from_single_file` reads such files; save its result.)"
        )
    if not (found.path / INDEX).is_file():
        tuned = any((found.path / part).exists() for part in (LORA_FILE, "final", *NETWORKS))
        hint = " It looks like the result of a training: give it as `tuned`, and its base as `model`." if tuned else ""
        raise UserError(f"{spec} is no diffusers model: it has no {INDEX}. {wanted}{hint}")
    parts = [name for name in named_parts(read_json(found.path / INDEX)) if name != "safety_checker"]
    missing = ", ".join(f"{part}/" for part in parts if not (found.path / part).is_dir())
    if missing:
        raise UserError(f"{spec} is no complete diffusers model: {INDEX} names {missing}, which it has not.")
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


def _user_adapter_of(root: Path) -> Weights | None:
    """The user adapter of a run, or of a folder."""
    for folder in (root / "final", root):
        files = [folder / name for name in (USER_ADAPTER, USER_ADAPTER_INDEX)]
        if all(file.is_file() for file in files):
            return Weights(folder, f"blake2b:{'+'.join(map(fingerprint, files))}")
    return None


def _lora_in(folder: Path) -> Path | None:
    """The adapter in a folder: its file, that of an expert for low noise, or itself in PEFT's format."""
    files = [file for file in (folder / LORA_FILE, folder / SECOND / LORA_FILE) if file.is_file()]
    return files[0] if files else folder if is_peft_folder(folder) else None


def _with_second(path: Path, second: Path) -> Weights:
    """Tuned weights, and those of the expert for low noise where they lie beside them."""
    return Weights(path, f"blake2b:{fingerprint(path)}+{fingerprint(second)}") if second.exists() else Weights(path)


def _fetch_pipeline(repo: str) -> Path:
    from diffusers import DiffusionPipeline

    with hub_errors(repo, what=_A_MODEL, probe=INDEX):
        folder = Path(DiffusionPipeline.download(repo, safety_checker=None, trust_remote_code=False))
        if any(file.suffix in (".safetensors", ".bin") for file in folder.glob("*/*")):
            return folder
        return Path(DiffusionPipeline.download(repo, safety_checker=None, trust_remote_code=False, variant=FP16))


def find_lora(spec: str) -> Weights:
    """Find the one file of a LoRA, or its folder in PEFT's format: given itself, in a run, or on the Hub.

    Raises:
        UserError: There is none, or more than one.
    """
    fetch = partial(snapshot, what="a LoRA", patterns=("*.safetensors", CONFIG_FILE), probe="*.safetensors")
    found = locate(spec, what="a LoRA", fetch=fetch)
    if found.path.is_file():
        if found.path.name in NO_LORA:
            raise UserError(
                f"{spec} is part of a user adapter, no LoRA. To make images with it, give its folder as tuned."
            )
        if is_peft_folder(found.path.parent):
            return Weights(found.path.parent)
        return _with_second(found.path, found.path.parent / SECOND / LORA_FILE)
    for folder in (found.path / "final", found.path):
        if adapter := _lora_in(folder):
            return _with_second(adapter, adapter.parent / SECOND / LORA_FILE)
    files = [file for file in sorted(found.path.glob("*.safetensors")) if file.name not in NO_LORA]
    if not files and (found.path / USER_ADAPTER).is_file():
        raise UserError(f"{spec} holds a user adapter and no LoRA. To make images with it, give it as tuned.")
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
