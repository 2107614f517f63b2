"""Measure what it saves to ask several scorers in one call: time, and how often each image is decoded.

    python scripts/bench_scorers.py                              # 2,000 images of 64x64, small random networks
    python scripts/bench_scorers.py --images 500 --size 512
    python scripts/bench_scorers.py --scorer pickscore --scorer hpsv2.1 --scorer clip,model=diffusion-dpo

Two cases by default, on networks that are made here (those of tests/): `apart`, three scorers of CLIP type with a
network each (PickScore through transformers, HPS v2 and CLIP through open_clip, which resize differently); `shared`,
three that look through one network (PickScore, CLIP, aesthetic v1), which then runs once per image. One call is
`score_folder` with all three, three calls one after the other; each call finds and loads its networks. Imports are not
counted.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffpo.compat import ensure_torchvision, quiet_libraries

ensure_torchvision()
quiet_libraries()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

import diffpo.scorers.scores as scoring  # noqa: E402
from diffpo.config.options import make_scorer  # noqa: E402
from diffpo.media.folder import SCORES, Media, write_manifest  # noqa: E402
from diffpo.media.frames import Clip  # noqa: E402
from diffpo.scorers import judging  # noqa: E402

TESTS = Path(__file__).resolve().parents[1] / "tests"
PROMPTS = 100
WARMUP = 64


def write_images(folder: Path, count: int, size: int) -> Path:
    """Write a media folder of random images that are no flat colours."""
    folder.mkdir()
    generator, media = np.random.default_rng(0), []
    for i in range(count):
        coarse = generator.integers(0, 256, (8, 8, 3), np.uint8)
        item = Media(file=f"{i:05d}.png", prompt=f"a picture of number {i % PROMPTS}", prompt_id=i, seed=i, model="any")
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(folder / item.file)
        media.append(item)
    write_manifest(folder, media)
    return folder


def small_scorers(folder: Path) -> dict[str, list[str]]:
    """Make small networks; returns the scorers of each case."""
    sys.path.insert(0, str(TESTS))
    from tiny_clips import ARCHITECTURE, HPS, write_open_clip, write_pickscore

    pickscore, clip = write_pickscore(folder / "pickscore"), write_open_clip(folder / "clip")
    torch.save({"weight": torch.ones(1, 32), "bias": torch.zeros(1)}, folder / "head.pth")
    return {
        "apart": [f"pickscore,path={pickscore}", f"hpsv2,path={HPS},architecture={ARCHITECTURE}", f"clip,model={clip}"],
        "shared": [
            f"pickscore,path={pickscore}",
            f"clip,model={pickscore},library=transformers",
            f"aesthetic-v1,clip={pickscore},head={folder / 'head.pth'}",
        ],
    }


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count how often each file is decoded."""
    decode, seen = judging.open_clip, Counter[str]()

    def counting(folder: Path, item: Media) -> Clip:
        seen[item.file] += 1
        return decode(folder, item)

    judging.open_clip = counting
    try:
        yield seen
    finally:
        judging.open_clip = decode


def call(folder: Path, calls: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Score a folder anew, in so many calls; returns seconds and decodes."""
    (folder / SCORES).unlink(missing_ok=True)
    gc.collect()
    with counted() as seen, tempfile.TemporaryDirectory() as cache:
        os.environ["DIFFPO_CACHE"] = cache
        start = time.perf_counter()
        for specs in calls:
            scoring.score_folder(folder, [make_scorer(spec) for spec in specs])
            gc.collect()  # as when a process ends: the next call finds no network in memory
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "decodes": sum(seen.values()), "most_per_image": max(seen.values())}


def compare(images: Path, few: Path, specs: Sequence[str], repeats: int) -> dict[str, Any]:
    """One call against several, the faster of a few turns each."""
    call(few, [specs])
    ways = {"one": [specs], "several": [[spec] for spec in specs]}
    turns = [{name: call(images, calls) for name, calls in ways.items()} for _ in range(repeats)]
    best = {name: min((turn[name] for turn in turns), key=lambda found: found["seconds"]) for name in ways}
    return best | {"ratio": best["one"]["seconds"] / best["several"]["seconds"], "scorers": list(specs)}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=64, help="pixels of each edge")
    parser.add_argument("--repeats", type=int, default=1, help="turns, of which the fastest counts")
    parser.add_argument(
        "--scorer", action="append", help="as for diffpo score; at least two, in place of the small ones"
    )
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        images = write_images(root / "images", options.images, options.size)
        few = write_images(root / "few", min(WARMUP, options.images), options.size)
        cases = {"given": options.scorer} if options.scorer else small_scorers(root)
        results = {name: compare(images, few, specs, options.repeats) for name, specs in cases.items()}
    print(f"{options.images} images of {options.size}x{options.size}, {torch.get_num_threads()} threads")
    for name, found in results.items():
        one, several, n = found["one"], found["several"], len(found["scorers"])
        print(
            f"{name:8} one call {one['seconds']:.1f} s, {one['decodes']} decodes (at most {one['most_per_image']} per "
            f"image); {n} calls {several['seconds']:.1f} s, {several['decodes']} decodes; ratio {found['ratio']:.2f}"
        )
    if options.json:
        options.json.write_text(
            json.dumps({"images": options.images, "size": options.size, "results": results}, indent=2)
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
