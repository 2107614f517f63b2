"""Copies of scored media folders: another model's images, other words."""

import json
import shutil
from dataclasses import replace

from PIL import Image, ImageEnhance

from diffpo.disk.files import write_json
from diffpo.media.folder import read_media, write_manifest
from diffpo.scorers.scores import read_scores, score_folder, write_scores


def faded(folder, out, label, scorers):
    """A folder of another model, which draws the same in paler colours."""
    shutil.copytree(folder, out)
    media = [replace(item, model=label) for item in read_media(folder)]
    write_manifest(out, media)
    for item in media:
        with Image.open(folder / item.file) as image:
            ImageEnhance.Color(image).enhance(0.4).save(out / item.file)
    _set_label(out, label)
    (out / "scores.parquet").unlink()
    score_folder(out, scorers)
    return out


def reworded(folder, out, prompt, label):
    """The same images and scores with other prompts, `prompt + prompt_id`, and another label."""
    shutil.copytree(folder, out)
    write_manifest(out, [replace(m, prompt=prompt + str(m.prompt_id), model=label) for m in read_media(folder)])
    table = read_scores(folder)
    rows = [replace(row, prompt=prompt + str(row.prompt_id), model=label) for row in table.rows]
    write_scores(out / "scores.parquet", replace(table, rows=rows))
    _set_label(out, label)
    return out


def _set_label(folder, label):
    settings = json.loads((folder / "settings.json").read_text())
    write_json(folder / "settings.json", settings | {"label": label})
