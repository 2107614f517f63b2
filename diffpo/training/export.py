"""The end of a run: weights that plain diffusers loads, and a model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import HfApi, ModelCard, ModelCardData

from diffpo import __version__
from diffpo.disk.files import sweep, whole_folder
from diffpo.disk.published import published
from diffpo.errors import UserError
from diffpo.models.bases import find_base
from diffpo.training.checkpoint import trained_weights
from diffpo.training.learner import check_finite
from diffpo.training.processes import by_the_first
from diffpo.training.run import note, others, read_mark

if TYPE_CHECKING:
    from accelerate import Accelerator

    from diffpo.config.run import Config
    from diffpo.models.base import Denoiser

METRICS = ("loss", "rewards/accuracies", "rewards/margins", "error/chosen", "error/rejected", "eval/loss")


def export(config: Config, accelerator: Accelerator, policy: Denoiser, folder: Path, push: str | None = None) -> Path:
    """Write `final/`: an adapter for `pipe.load_lora_weights`, or a network folder for `from_pretrained`.

    Args:
        config: The run's.
        accelerator: Knows the first process, which writes.
        policy: Its weights are what is exported; every process must call this.
        folder: The run's folder.
        push: Hub repository (`owner/name`) that gets a copy.

    Raises:
        UserError: The disk is full, or the Hub cannot be reached; the export on disk stays.
    """
    weights = trained_weights(policy.network)
    final = folder / "final"

    def write() -> None:
        check_finite({"weights": weights}, config.train.steps, config)
        base = find_base(config.model.path)
        network: Any = accelerator.unwrap_model(policy.network)
        mark = read_mark(folder)
        kept = [] if mark is None else others(folder, "final", mark)
        sweep(folder)
        with whole_folder(final) as path:
            config.model.save(path, base, network, weights)
            grid = newest_grid(folder)
            if grid is not None:
                shutil.copyfile(grid, path / "grid.png")
            (path / "README.md").write_text(str(model_card(config, folder, base.component, grid is not None)))
            note(folder, *(final / new.relative_to(path) for new in path.rglob("*") if new.is_file()))
            for file in kept:  # somebody has put notes there
                keep_beside(file, path / file.relative_to(final))
        if push is not None:
            push_folder(final, push)

    by_the_first(accelerator, write)
    return final


def keep_beside(file: Path, place: Path) -> None:
    """Copy somebody's file into an export; where the export has one of that name, theirs gets another name."""
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, place.with_name(f"{place.name}.theirs") if place.exists() else place)


def newest_grid(folder: Path) -> Path | None:
    """Return the last sample grid, if one was drawn."""
    grids = sorted((folder / "samples").glob("step-*.png"))
    return grids[-1] if grids else None


def last_metrics(folder: Path) -> dict[str, float]:
    """Read the last value of every metric of a run."""
    file, values = folder / "metrics.jsonl", {}
    for line in file.read_text().splitlines() if file.exists() else []:
        values |= json.loads(line)
    return values


def model_card(config: Config, folder: Path, component: str, grid: bool) -> ModelCard:
    """Write down the base model, the data, the method, the metrics and the exact config."""
    tree = published(config.to_dict())
    method, adapter = tree["method"]["name"], tree["model"]["name"] == "lora"
    base, dataset, start = tree["model"]["path"], tree["data"]["path"], tree["model"]["denoiser"]
    tags = ["diffusers", "text-to-image", "diffusers-training", "diffpo", method, *(["lora"] if adapter else [])]
    # the Hub checks these two: only its own ids may stand there
    data = ModelCardData(
        library_name="diffusers",
        tags=tags,
        base_model=base if is_hub_id(config.model.path) else None,
        datasets=[dataset] if is_hub_id(config.data.path) else None,
    )
    values = last_metrics(folder)
    rows = "\n".join(f"| {name} | {values[name]:.5g} |" for name in METRICS if name in values)
    text = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {folder.name}\n",
        f"`{base}` tuned on the preference pairs of `{dataset}` with {method} by diffpo {__version__}.\n",
        "![base beside tuned](grid.png)\n" if grid else "",
        f"```python\n{how_to_load(base, component, start, adapter=adapter)}\n```\n",
        f"## Last update ({values.get('step', 0)})\n\n| metric | value |\n|---|---|\n{rows}\n",
        f"## Config\n\n```yaml\n{yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)}```\n",
    ]
    return ModelCard("\n".join(part for part in text if part))


def how_to_load(base: str, component: str, start: str | None, *, adapter: bool) -> str:
    """Write the lines of Python that load an export; an adapter may lie on a network of its own, `start`."""
    lines, given = ["from diffusers import AutoModel, DiffusionPipeline", ""], f", {component}={component}"
    if not adapter:
        lines.append(f'{component} = AutoModel.from_pretrained("PATH/OF/THIS/FOLDER", subfolder="{component}")')
    elif start is not None:
        lines.append(f'{component} = AutoModel.from_pretrained("{start}")  # what the adapter was trained on')
    else:
        lines[0], given = "from diffusers import DiffusionPipeline", ""
    lines.append(f'pipe = DiffusionPipeline.from_pretrained("{base}"{given})')
    return "\n".join([*lines, 'pipe.load_lora_weights("PATH/OF/THIS/FOLDER")'] if adapter else lines)


def is_hub_id(path: str) -> bool:
    """Whether a path looks like `owner/name` and no such folder exists here."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).exists()


def push_folder(final: Path, repo: str) -> None:
    """Upload an export.

    Raises:
        UserError: The Hub refuses or cannot be reached; the export on disk stays.
    """
    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=final)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{final} is complete, but could not be pushed to {repo}: {error}") from error
