"""Compare diffpo's scorers, and GenEval's decisions, with numbers computed by the authors' own published code.

    python scripts/check_scorers.py ../shared/golden/scorers ../shared/golden/scorers_more

Each folder (or each folder in it) holds

    images/         0.png, 1.png, ...: any format and mode of PIL; other names are taken in their natural order
    prompts.json    a list of texts; or {"prompts": [...]}; or texts by image
    pickscore/      a CLIP of transformers; where its tokenizer lacks the vocabulary, it is CLIP's, made here
    hpsv2/          weights (.pt, .pth, .bin, .safetensors; several are all checked) and the JSON file of their
                    architecture, without which they are a ViT-H/14; likewise `hpsv2.1/`
    imagereward/    weights and BERT's vocabulary
    mps/            weights and CLIP's files; the vocabulary as for pickscore
    hpsv3/          weights and Qwen2-VL's files
    aesthetic/      the head, and a CLIP of transformers in `clip/`; likewise `aesthetic-v1/`, which may use that CLIP
    geneval/        cases.json: what is detected, what is asked, and whether the official program says that it is right

of the scorers at least one, each with `scores.json`, or `matrix.json`, or both. Of `hpsv3/` only
`scores_rounded_speeds.json` counts, which is as published; `scores_threshold_0_3.json` of `mps/` has that threshold.
Such a file may be

    a list          image i with prompt i
    a matrix        every image with every prompt, by rows or by columns: where both are possible, what agrees better
    an object       by image (its number or name) a score, or scores by prompt (in order, or by number or text)
    records         a list of {"image": ..., "prompt": ..., "score": ...}; without a prompt it is the image's own

also below "scores" in an object. Errors, relative to a score or to 0.1 if that is larger, must not exceed 1e-4. Exits 1
if one does, or a decision differs; 2 if a folder is not so.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import math
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from diffpo.benchmarks.geneval.decide import Rules, decide, keep
from diffpo.benchmarks.geneval.tasks import SeenObject, Task
from diffpo.errors import UserError
from diffpo.scorers import MPS, AestheticV1, AestheticV2, HPSv2, HPSv3, HPSv21, ImageReward, PickScore, Scorer
from diffpo.scorers.parts import SUFFIXES

TOLERANCE = 1e-4
HPS = {"hpsv2": HPSv2, "hpsv20": HPSv2, "hpsv21": HPSv21}
AESTHETICS = {"aesthetic": AestheticV2, "aestheticv1": AestheticV1}
"""By a folder's name without its signs."""
KINDS = {"pickscore", "imagereward", "mps", "hpsv3", *HPS, *AESTHETICS}
SMALLEST = 0.1
"""Errors of smaller scores are relative to this."""
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


def read_images(folder: Path) -> dict[str, Image.Image]:
    """Read the images of a case by name, in the natural order of their names.

    Raises:
        UserError: There are none, or one is broken.
    """
    Image.init()
    files = [file for file in (folder / "images").glob("[!.]*") if file.suffix.lower() in Image.registered_extensions()]
    if not files:
        raise UserError(f"{folder / 'images'} should hold images named 0.png, 1.png, ...")
    images = {}
    for file in sorted(files, key=lambda file: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", file.name)]):
        try:
            images[file.stem] = Image.open(file)
            images[file.stem].load()
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{file} is no readable image: {error}") from error
    return images


def read_prompts(path: Path, images: Sequence[str]) -> list[str]:
    """Read the prompts of a case.

    Raises:
        UserError: They are no texts.
    """
    content = read_json(path)
    if isinstance(content, dict):
        content = content.get("prompts", content)
    if isinstance(content, dict):
        content = [text for _, text in sorted((place(key, images, path), text) for key, text in content.items())]
    rows = content if isinstance(content, list) else []
    texts = [row.get("prompt") if isinstance(row, dict) else row for row in rows]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{path} should be a list of texts.")
    return texts


def place(key: int | str, names: Sequence[str], path: Path) -> int:
    """Where something is that is told by its place or its name.

    Raises:
        UserError: It is nowhere.
    """
    if key in names:
        return names.index(str(key))
    if isinstance(key, str) and Path(key).stem in names:
        return names.index(Path(key).stem)
    if str(key).isdigit() and int(key) < len(names):
        return int(key)
    raise UserError(f"{path} speaks of {key!r}; there are {len(names)}: {', '.join(names)[:200]}")


def read_scores(path: Path, images: Sequence[str], prompts: Sequence[str]) -> list[list[Row]]:
    """Read (image, prompt, score) of a case, in each of the ways in which it can be understood.

    Raises:
        UserError: The numbers do not fit the images and prompts.
    """
    content = read_json(path)
    if isinstance(content, dict):
        content = content.get("scores", content)
    try:
        if isinstance(content, list) and all(isinstance(row, list) for row in content):
            readings = read_matrix(content, len(images), len(prompts))
        elif isinstance(content, list) and not any(isinstance(row, dict) for row in content):
            fits = len(content) == len(images) == len(prompts)
            readings = [[(i, i, float(score)) for i, score in enumerate(content)]] if fits else []
        else:
            readings = [list(read_named(content, images, prompts, path))]
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is neither a list, a matrix, an object by image, nor records: {error}") from error
    if not readings or not readings[0]:
        raise UserError(
            f"{path} should be a list of {len(images)} numbers, or {len(images)} lists of {len(prompts)} (images by "
            "prompts)."
        )
    return readings


def read_matrix(content: list[list[Any]], images: int, prompts: int) -> list[list[Row]]:
    """Read the scores of all images with all prompts, by rows and by columns, if they fit."""
    rows = [(i, j, float(score)) for i, row in enumerate(content) for j, score in enumerate(row)]
    turned = [(j, i, score) for i, j, score in rows]
    everything = {(i, j) for i in range(images) for j in range(prompts)}
    return [rows for rows in (rows, turned) if {(i, j) for i, j, _ in rows} == everything]


def read_named(content: Any, images: Sequence[str], prompts: Sequence[str], path: Path) -> Iterator[Row]:
    """Read (image, prompt, score) of an object by image, or of records."""
    if isinstance(content, list):
        for row in content:
            i = place(row["image"], images, path)
            yield i, place(row["prompt"], prompts, path) if "prompt" in row else i, float(row["score"])
        return
    for key, value in content.items():
        i = place(key, images, path)
        if isinstance(value, list):
            value = dict(enumerate(value))
        for prompt, score in (value if isinstance(value, dict) else {i: value}).items():
            yield i, place(prompt, prompts, path), float(score)


def make_scorers(folder: Path, scratch: Path) -> list[tuple[Scorer, list[str]]]:
    """Make the scorer that a folder is named after, for each of its files of weights, with the files of its scores.

    Raises:
        UserError: Its weights or its architecture are not there, or not clear.
    """
    files, here = ["scores.json", "matrix.json"], str(folder)
    name = kind(folder)
    if name in HPS:
        return [(scorer, files) for scorer in make_hps(folder)]
    if name == "hpsv3":
        return [(HPSv3(path=here, device="cpu"), ["scores_rounded_speeds.json"])]
    if name == "imagereward":
        return [(ImageReward(path=here, device="cpu"), files)]
    if name in AESTHETICS:
        own = folder / "clip"
        clip = own if own.is_dir() else folder.parent / "aesthetic" / "clip"
        return [(AESTHETICS[name](head=here, clip=str(clip), device="cpu"), files)]
    whole = any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json"))
    beside = None if whole else str(processor(folder, scratch))
    if name == "pickscore":
        return [(PickScore(path=here, processor=beside, device="cpu"), files)]
    other = [file.replace(".json", "_threshold_0_3.json") for file in files]
    return [
        (MPS(path=here, processor=beside, device="cpu"), files),
        (MPS(path=here, processor=beside, threshold=0.3, device="cpu"), other),
    ]


def make_hps(folder: Path) -> list[Scorer]:
    """Make an HPS for each file of weights.

    Raises:
        UserError: Its weights or its architecture are not there, or not clear.
    """
    weights = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    contents = {file: read_json(file) for file in sorted(folder.glob("*.json"))}
    configs = [file for file, x in contents.items() if isinstance(x, dict) and {"vision_cfg", "model_cfg"} & x.keys()]
    if not weights or len(configs) > 1:
        raise UserError(f"{folder} should hold weights and one JSON file of open_clip's with vision_cfg.")
    architecture = str(configs[0]) if configs else "ViT-H-14"
    return [HPS[kind(folder)](path=str(file), architecture=architecture, device="cpu") for file in weights]


def kind(folder: Path) -> str:
    """A folder's name without its signs."""
    return re.sub(r"[^a-z0-9]", "", folder.name.lower())


def processor(folder: Path, scratch: Path) -> Path:
    """A copy of a CLIP's processor, with the vocabulary that it lacks."""
    for file in folder.glob("*config.json"):
        shutil.copy(file, scratch)
    write_vocabulary(scratch)
    return scratch


def write_vocabulary(folder: Path) -> None:
    """Write CLIP's (256 bytes, 256 at a word's end, 48,894 merges, 2 marks) from the file that open_clip ships."""
    library = importlib.util.find_spec("open_clip")
    assert library is not None and library.origin is not None
    source = Path(library.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(source.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    joined = ["".join(merge.split()) for merge in merges]
    tokens = [*characters, *(c + "</w>" for c in characters), *joined, "<|startoftext|>", "<|endoftext|>"]
    assert len(tokens) == 49408
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")


def check(folder: Path, scorer: Scorer, files: Sequence[str]) -> float:
    """Check one scorer of a case, print each error, and return the largest.

    Raises:
        UserError: None of the files is there, or one is not what it should be.
    """
    images = read_images(folder.parent)
    prompts = read_prompts(folder.parent / "prompts.json", list(images))
    there = [folder / file for file in files if (folder / file).is_file()]
    worst = [check_file(file, scorer, images, prompts) for file in there or [folder / files[0]]]
    return max(worst)


def check_file(file: Path, scorer: Scorer, images: dict[str, Image.Image], prompts: list[str]) -> float:
    """Check the scores of one file, print each error, and return the largest."""
    results = []
    for rows in read_scores(file, list(images), prompts):
        pictures = [list(images.values())[i].convert("RGB") for i, _, _ in rows]
        scores = scorer.score(pictures, [prompts[j] for _, j, _ in rows]).tolist()
        lines = [(*row, score, difference(score, row[2])) for row, score in zip(rows, scores, strict=True)]
        results.append((max(error for *_, error in lines), lines))
    worst, lines = min(results)
    print(f"{file}: {scorer.provenance['weights']}\n  image  prompt      expected         diffpo   relative error")
    for i, j, expected, score, error in lines:
        wrong = "" if error <= TOLERANCE else "   TOO LARGE"
        print(f"  {i:5d}  {j:6d}  {expected:12.7f}   {score:12.7f}          {error:.1e}  {prompts[j][:40]!r}{wrong}")
    print(f"  largest {worst:.1e}, allowed {TOLERANCE:.0e}")
    return worst


def check_decisions(folder: Path) -> list[int]:
    """Decide GenEval's cases; returns the numbers of those that differ, in the decision or the number of reasons."""
    differ = []
    cases = read_json(folder / "cases.json")
    for number, case in enumerate(cases):
        task, rules = Task.parse(case["metadata"]), Rules(max_overlap=case["max_overlap"])
        seen = [SeenObject(label, confidence, tuple(box)) for label, confidence, *box in case["detections"]]
        colors = {id(item): color for item, color in zip(seen, case["colors"], strict=True)}
        kept = keep(seen, task.tag, rules)
        found = decide(kept, task, lambda objects, label, colors=colors: [colors[id(x)] for x in objects], rules)
        same = (not found) == case["correct"] and len(found) == len(case["reason"].splitlines())
        if not same or {label: len(items) for label, items in kept.items()} != case["kept"]:
            differ.append(number)
            expected = case["reason"] or "correct"
            print(f"{folder}: case {number}: expected {expected!r}, {case['kept']}, got {found or 'correct'}")
    print(f"{folder}: {len(cases) - len(differ)} of {len(cases)} decisions are the same")
    return differ


def difference(score: float, expected: float) -> float:
    """Relative error; a NaN is infinitely wrong."""
    error = abs(score - expected) / max(abs(expected), SMALLEST)
    return math.inf if math.isnan(error) else error


def cases(folder: Path) -> list[Path]:
    """The scorers' folders of a case, or of the cases in a folder.

    Raises:
        UserError: There are none.
    """
    for pattern in ("*", "*/*"):
        found = [path for path in sorted(folder.glob(pattern)) if path.is_dir() and kind(path) in {*KINDS, "geneval"}]
        if found:
            return found
    raise UserError(f"{folder} has none of {', '.join(sorted(KINDS))} and geneval.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the named cases; 0 if all agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    worst, differ = [], []
    try:
        for folder in (found for case in parser.parse_args(arguments).folders for found in cases(case)):
            if kind(folder) == "geneval":
                differ += check_decisions(folder)
                continue
            with tempfile.TemporaryDirectory() as scratch:
                worst += [check(folder, scorer, files) for scorer, files in make_scorers(folder, Path(scratch))]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    agreed = sum(error <= TOLERANCE for error in worst)
    largest = f"; the largest relative error is {max(worst):.1e}" if worst else ""
    print(f"{agreed} of {len(worst)} scorers agree to {TOLERANCE:.0e}{largest}.")
    return 0 if agreed == len(worst) and not differ else 1


if __name__ == "__main__":
    sys.exit(main())
