"""The end of a run: weights that plain diffusers loads, and a model card."""

import json
import shutil
from collections.abc import Set
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from huggingface_hub import HfApi, ModelCard, ModelCardData
from jinja2 import Environment

from diffpo import __version__
from diffpo.config.run import Config
from diffpo.disk.files import sweep, whole_folder
from diffpo.disk.published import published
from diffpo.errors import UserError
from diffpo.media.users import copy_embedder
from diffpo.models.base import LORA_FILE, Denoiser
from diffpo.models.bases import find_base
from diffpo.models.peft_folder import CONFIG_FILE
from diffpo.models.user_files import INDEX as USER_FILE
from diffpo.training.checkpoint import trained_weights
from diffpo.training.learner import check_finite
from diffpo.training.processes import by_the_first
from diffpo.training.run import note, others
from diffpo.training.selection import Selection

TEMPLATE = Path(__file__).with_name("card.md.jinja")
METRICS = ("loss", "rewards/accuracies", "rewards/margins", "error/chosen", "error/rejected", "eval/loss")


def export(
    config: Config,
    accelerator: Accelerator,
    policy: Denoiser,
    folder: Path,
    push: str | None = None,
    selection: Selection | None = None,
) -> Path:
    """Write `final/`: an adapter for `pipe.load_lora_weights`, or a network folder for `from_pretrained`.

    Every process must call this; the first one writes, and pushes a copy to the Hub repository `push` (`owner/name`).
    Where an update was selected, its weights are written, else the present ones.
    """
    weights = trained_weights(policy.network) if selection is None else selection.weights
    final = folder / "final"

    def write() -> None:
        check_finite({"weights": weights}, config.train.steps, config)
        base = find_base(config.model.path, expert=config.model.expert)
        network: Any = accelerator.unwrap_model(policy.network)
        kept = others(folder, "final")
        grid = max((folder / "samples").glob("step-*.png"), default=None)
        sweep(folder)
        with whole_folder(final) as path:
            config.model.save(path, base, network, weights)
            if config.data.users is not None:
                copy_embedder(Path(config.data.users).expanduser(), path)
            if grid is not None:
                shutil.copyfile(grid, path / "grid.png")
            step = None if selection is None else selection.step
            card = model_card(config, folder, base.component, {file.name for file in path.iterdir()}, step)
            (path / "README.md").write_text(str(card))
            note(folder, *(final / new.relative_to(path) for new in path.rglob("*") if new.is_file()))
            for file in kept:  # somebody has put notes there, perhaps under the name of one of ours
                place = path / file.relative_to(final)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place.with_name(f"{place.name}.theirs") if place.exists() else place)
        if push is not None:
            push_folder(final, push)

    by_the_first(accelerator, write)
    return final


def model_card(config: Config, folder: Path, component: str, files: Set[str], selected: int | None = None) -> ModelCard:
    """Write down the base model, the data, the method, the metrics and the exact config.

    Args:
        config: The run's.
        folder: The run's.
        component: Name of the trained network in its pipeline.
        files: Names of what lies beside the card.
        selected: The update whose weights lie there, where it need not be the last one.
    """
    tree = published(config.to_dict())
    method, tuned = tree["method"]["name"], tree["model"]["name"]
    lora, user = tuned == "lora" or bool({LORA_FILE, CONFIG_FILE} & files), USER_FILE in files
    base, dataset = tree["model"]["path"], tree["data"]["path"]
    file, values = folder / "metrics.jsonl", {}
    for line in map(json.loads, file.read_text().splitlines() if file.exists() else []):
        if selected is None or line["step"] <= selected:
            values |= line
    # the Hub checks base_model and datasets: only its own ids may stand there
    data = ModelCardData(
        library_name="diffusers",
        tags=["diffusers", "text-to-image", "diffusers-training", "diffpo", method, *(["lora"] if lora else [])],
        base_model=base if is_hub_id(config.model.path) else None,
        datasets=[dataset] if is_hub_id(config.data.path) else None,
    )
    template = Environment(trim_blocks=True, keep_trailing_newline=True).from_string(TEMPLATE.read_text())
    text = template.render(
        card_data=data.to_yaml(),
        name=folder.name,
        base=base,
        dataset=dataset,
        method=method,
        version=__version__,
        grid="grid.png" in files,
        network=tuned == "full",
        lora=lora,
        user=user,
        peft=CONFIG_FILE in files,
        start=tree["model"]["denoiser"],
        component=component,
        step=values.get("step", 0),
        selected=selected is not None,
        rows="\n".join(f"| {name} | {values[name]:.5g} |" for name in METRICS if name in values),
        config=yaml.safe_dump(tree, sort_keys=False, allow_unicode=True),
    )
    return ModelCard(text)


def is_hub_id(path: str) -> bool:
    """Whether a path looks like `owner/name` and no such folder exists here."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).exists()


def push_folder(final: Path, repo: str) -> None:
    """Upload an export; the one on disk stays, whatever the Hub says."""
    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=final)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{final} is complete, but could not be pushed to {repo}: {error}") from error
