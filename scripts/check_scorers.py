"""Compare diffpo's PickScore and HPS with numbers computed by the scorers' own published code.

    python scripts/check_scorers.py ../shared/golden/scorers

Each folder holds `images/0.png, 1.png, ...` (any format of PIL), `prompts.json` (a list), and one folder or both of

    pickscore/   a CLIP of transformers with its tokenizer
    hpsv2/       one file of weights (.pt, .safetensors) and the JSON file of its architecture; likewise `hpsv2.1/`

each with `scores.json`: a list (image i with prompt i), or a list of lists (row i: image i with every prompt).
Relative errors must not exceed 1e-4. Exits 1 if one does.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from diffpo.errors import UserError
from diffpo.scorers import HPSv2, HPSv21, PickScore, Scorer
from diffpo.scorers.checkpoints import SUFFIXES

TOLERANCE = 1e-4
Row = tuple[int, int, float]


def read_json(path: Path) -> Any:
    """Read a file of a case.

    Raises:
        UserError: It is not there, or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def read_images(folder: Path) -> list[Image.Image]:
    """Read the images of a case in the order of their numbers.

    Raises:
        UserError: There are none, or a name is no number.
    """
    files = {file.stem: file for file in (folder / "images").glob("*") if not file.name.startswith(".")}
    if not files or not all(name.isdigit() for name in files):
        raise UserError(f"{folder / 'images'} should hold images named 0.png, 1.png, ...")
    return [Image.open(files[name]) for name in sorted(files, key=int)]


def make_scorer(folder: Path) -> Scorer:
    """Make the scorer that a folder is named after.

    Raises:
        UserError: Its weights or its architecture are not there, or not clear.
    """
    if folder.name == "pickscore":
        return PickScore(path=str(folder), device="cpu")
    weights = [file for file in folder.iterdir() if file.suffix in SUFFIXES]
    configs = [file for file in folder.glob("*.json") if "vision_cfg" in read_json(file)]
    if len(weights) != 1 or len(configs) != 1:
        raise UserError(f"{folder} should hold one file of weights and one JSON file of open_clip's with vision_cfg.")
    scorer = {"hpsv2": HPSv2, "hpsv2.1": HPSv21}[folder.name]
    return scorer(path=str(weights[0]), architecture=str(configs[0]), device="cpu")


def expected_scores(folder: Path, images: int, prompts: int) -> list[Row]:
    """Read (image, prompt, score) of a case.

    Raises:
        UserError: The numbers do not fit the images and prompts.
    """
    path = folder / "scores.json"
    content = read_json(path)
    if isinstance(content, list) and all(isinstance(row, list) and len(row) == prompts for row in content):
        rows = [(i, j, float(score)) for i, row in enumerate(content) for j, score in enumerate(row)]
        fits = len(content) == images
    elif isinstance(content, list) and all(isinstance(score, int | float) for score in content):
        rows = [(i, i, float(score)) for i, score in enumerate(content)]
        fits = len(content) == images == prompts
    else:
        rows, fits = [], False
    if not fits or not rows:
        raise UserError(
            f"{path} should be a list of {images} numbers, or {images} lists of {prompts} (images by prompts)."
        )
    return rows


def check(folder: Path) -> float:
    """Check one scorer of a case, print each error, and return the largest."""
    images, prompts = read_images(folder.parent), read_json(folder.parent / "prompts.json")
    rows = expected_scores(folder, len(images), len(prompts))
    scores = make_scorer(folder).score([images[i] for i, _, _ in rows], [prompts[j] for _, j, _ in rows]).tolist()
    worst = 0.0
    print(f"{folder}\n  image  prompt      expected         diffpo   relative error")
    for (i, j, expected), score in zip(rows, scores, strict=True):
        error = abs(score - expected) / abs(expected) if expected else math.inf * abs(score) if score else 0.0
        worst = max(worst, error)
        wrong = "" if error <= TOLERANCE else "   TOO LARGE"
        print(f"  {i:5d}  {j:6d}  {expected:12.7f}   {score:12.7f}          {error:.1e}  {prompts[j][:40]!r}{wrong}")
    print(f"  largest {worst:.1e}, allowed {TOLERANCE:.0e}")
    return worst


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the named cases; 0 if all agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    try:
        worst = []
        for case in parser.parse_args(arguments).folders:
            found = [case / name for name in ("pickscore", "hpsv2", "hpsv2.1") if (case / name).is_dir()]
            if not found:
                raise UserError(f"{case} has neither pickscore/ nor hpsv2/ nor hpsv2.1/.")
            worst += [check(folder) for folder in found]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    agreed = sum(error <= TOLERANCE for error in worst)
    print(f"{agreed} of {len(worst)} scorers agree to {TOLERANCE:.0e}; the largest relative error is {max(worst):.1e}.")
    return 0 if agreed == len(worst) else 1


if __name__ == "__main__":
    sys.exit(main())
