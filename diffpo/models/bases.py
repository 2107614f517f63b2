"""A base model on disk: its parts, what replaces some of them, and whether all of them fit together."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any

from diffpo.disk import weights
from diffpo.errors import UserError
from diffpo.models import FAMILIES, Denoiser, family_of
from diffpo.models.discrete import SCHEDULER_NAMES
from diffpo.models.finding import NETWORKS, find_denoiser, find_pipeline, named_parts, read_json
from diffpo.models.pipelines import network_class

UNUSED = (
    *("feature_extractor", "image_encoder", "motion_adapter"),
    *("prior_feature_extractor", "prior_image_encoder"),
)
"""Parts of pipelines that neither encode nor denoise. (A motion adapter's weights are in the network.)"""
DECODERS = ("vqgan",)
"""Parts that decode, and encode nothing that is trained on."""


@dataclass(frozen=True)
class BaseModel:
    """A diffusers pipeline on disk and what diffpo makes of it."""

    folder: Path
    """Where the files are; a Hub model is in the Hub's cache by now."""
    pipeline: str
    """Name of the pipeline's class."""
    family: type[Denoiser]
    replaced: dict[str, Path] = field(default_factory=dict)
    """Folders of parts that are used instead of the pipeline's own, by the part's name."""

    @property
    def index(self) -> dict[str, Any]:
        """The pipeline's `model_index.json`: which class each part has."""
        return read_json(self.folder / "model_index.json")

    @property
    def component(self) -> str:
        """Name of the part that is trained."""
        return self.family.components[0]

    @property
    def network_class(self) -> Any:
        """Class of the network that is trained."""
        return network_class(self.config(self.component))

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of parts that are no network, and not needed to encode or to sample while training."""
        return (*UNUSED, *self.family.unread)

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the parts that decide an encoding: VAE, text encoders, tokenizers."""
        others = (*NETWORKS, *DECODERS, "scheduler", self.family.scheduler, "guider", "safety_checker", *self.left_out)
        parts = dict.fromkeys((*named_parts(self.index), *self.replaced))
        return tuple(name for name in parts if name not in others)

    def part(self, name: str) -> Path:
        """Folder of a part, or its file: see `Denoiser.vae_file`."""
        return self.replaced.get(name, self.folder / name)

    def config(self, name: str) -> dict[str, Any]:
        """Configuration of a network; a `vae_file` has none."""
        if name == "vae" and self.family.vae_file is not None:
            return {}
        return read_json(self.part(name) / "config.json")

    def check_vae_file(self) -> None:
        """Check that the `vae_file` of a family that has one is there; a `UserError` where it is not."""
        if self.family.vae_file is not None and not self.part("vae").is_file():
            raise UserError(
                f"there is no {self.part('vae')}: a {self.pipeline} encodes no pictures itself. Give "
                f"model.vae={self.family.vae_source}, which has the file, or a file or folder of your own"
            )

    def scheduler(self, prediction: str | None) -> dict[str, Any]:
        """Configuration of the network's scheduler; `prediction` (eps or v) goes over what it says of that."""
        config = read_json(self.folder / self.family.scheduler / "scheduler_config.json")
        return config if prediction is None else config | {"prediction_type": SCHEDULER_NAMES[prediction]}


def find_base(
    path: str, *, vae: str | None = None, denoiser: str | None = None, expert: str | None = None
) -> BaseModel:
    """Find a base model, with the VAE and the network that replace its own, and recognise its family.

    Nothing is loaded. `path`, `vae`, `denoiser` and `expert` are as in the config's `model` block.

    Raises:
        UserError: Something is not there, the family is not supported, or the parts do not fit together.
    """
    folder = find_pipeline(path).path
    index = read_json(folder / "model_index.json")
    family, name = family_of(index), index.get("_class_name")
    if family is None:
        known = ", ".join(dict.fromkeys(p for other in FAMILIES.values() for p in other.pipelines))
        hint = "".join(f". {other.hints[str(name)]}" for other in FAMILIES.values() if name in other.hints)
        raise UserError(f"{path} is a {name}, which diffpo does not train; supported are {known}{hint}")
    if expert is not None and not family.experts:
        raise UserError(f"model.expert is {expert}, but a {name} like {path} has one network: leave model.expert out")
    family = family.experts.get(expert or "", family)
    try:
        family.check_index(index)
    except UserError as error:
        raise UserError(f"{path} cannot be trained: {error}") from error
    replaced = {}
    if family.vae_file is not None:
        replaced["vae"] = _find_vae_file(family.vae_file, folder if vae is None else vae)
    elif vae is not None:
        fetch = partial(weights.snapshot, what="a VAE", patterns=("*.json", "*.safetensors"), probe="config.json")
        replaced["vae"] = weights.locate(vae, what="a VAE", fetch=fetch).path
    if denoiser is not None:
        replaced[family.components[0]] = find_denoiser(denoiser).path
    base = BaseModel(folder, name, family, replaced)
    own = network_class(read_json(base.folder / base.component / "config.json"))
    if base.network_class is not own:
        raise UserError(
            f"model.denoiser is a {base.network_class.__name__} ({base.part(base.component)}), but {base.folder} has a "
            f"{own.__name__}. Give the base that the network was tuned from"
        )
    _check_widths(base)
    return base


def _find_vae_file(file: str, place: str | Path) -> Path:
    """Say where what encodes media should be: the file itself is given, or a folder or a Hub id that has it."""
    fetch = partial(weights.snapshot, what="an encoder", patterns=(file,), probe=file)
    found = weights.locate(str(place), what="an encoder", fetch=fetch).path
    return found / file if found.is_dir() else found


def _check_widths(base: BaseModel) -> None:
    """Compare by their configurations what the parts give and what the network takes."""
    network = base.config(base.component)
    for width in (base.family.latent_channels, *base.family.widths):
        try:
            parts = {part: key.split(".") for part, key in width.given.items() if part in base.encoders}
            given = sum(reduce(getitem, keys, base.config(part)) for part, keys in parts.items())
            taken = width.taken(network)
        except (KeyError, TypeError):  # an older configuration leaves it out
            continue
        if given and isinstance(taken, int) and given != taken:
            parts = " and ".join(width.given)
            places = ", ".join(str(base.part(name)) for name in (*width.given, base.component))
            raise UserError(
                f"the parts of this model do not fit together: its {parts} gives {width.what} of {given}, its "
                f"{base.component} takes {taken}. The parts are {places}; give parts that were trained together"
            )
