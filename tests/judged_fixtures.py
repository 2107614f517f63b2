"""Two scored media folders of the shapes world: a modest model, and one that draws larger and more vivid shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from shapes_builder.sampling import BASE_STYLE, Style, sample_scenes

from diffpo.disk.files import write_json
from diffpo.media.folder import Media, write_manifest
from diffpo.scorers import ShapesUtility, ShapesVerifier
from diffpo.scorers.scores import score_folder
from diffpo.worlds.shapes.render import render
from diffpo.worlds.shapes.scenes import parse_caption, sample_prompts

VIVID = Style(size=(12.0, 14.0), size_skew=1.0, saturation=(0.7, 1.0), saturation_skew=1.0)


def make_folder(folder: Path, label: str, style: Style, prompts: int = 6, seeds: tuple[int, ...] = (0, 1)) -> Path:
    """Draw what a model with this style would."""
    folder.mkdir(parents=True)
    media = []
    for i, prompt in enumerate(sample_prompts("heldout", prompts)):
        for seed in seeds:
            generator = torch.Generator().manual_seed(1000 * i + seed)
            scene = sample_scenes([parse_caption(prompt)], generator, style)[0]
            item = Media(file=f"{i:06d}-s{seed}.png", prompt=prompt, prompt_id=i, seed=seed, model=label)
            Image.fromarray(render(scene)).save(folder / item.file)
            media.append(item)
    write_manifest(folder, media)
    write_json(folder / "settings.json", {"label": label, "steps": 25, "guidance": 3.0, "scheduler": "DDIMScheduler"})
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """(base, tuned), scored by both judges."""
    root = tmp_path_factory.mktemp("media")
    made = make_folder(root / "base", "base", BASE_STYLE), make_folder(root / "tuned", "tuned", VIVID)
    for folder in made:
        score_folder(folder, [ShapesUtility(), ShapesVerifier()])
    return made
