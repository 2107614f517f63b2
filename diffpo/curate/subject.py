"""The pair table of a subject, for RPO: photographs against images that the base model made. `diffpo data subject`.

    OUT/metadata.jsonl           a row for each image: chosen is a photograph, rejected the image
    OUT/references/              the photographs
    OUT/train.provenance.json    how the table was made

Each row has two captions, the photographs' one and the image's prompt. Both sides are judged for the image's prompt, as
in the released code of RPO (arXiv:2407.12164), and the label is

    preference = P(photograph > image) = sigmoid((reward of photograph - reward of image) / temperature)

or, with `sampled`, 1 with that probability, else 0. A row holds an image and its own reward, where the released code
takes them by different indices. Photographs take turns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffpo.core.block import Block, Positive, Seed
from diffpo.curate.labels import UNCHANGED, preferences
from diffpo.curate.write import record_of
from diffpo.disk.ahead import groups
from diffpo.disk.files import whole_folder, write_file, write_json
from diffpo.disk.lock import sole_writer
from diffpo.media.frames import read_bytes
from diffpo.scorers.base import Scorer
from diffpo.scorers.harmonic import LambdaHarmonic
from diffpo.scorers.references import read_reference
from diffpo.scorers.scores import ScoreRow, score_folder

COMMAND = "diffpo data subject"
TABLE, REFERENCES = "metadata.jsonl", "references"
ADDED = (TABLE, record_of(Path(), "train").name, REFERENCES)
"""What is added to the media folder."""
_TOGETHER = 8  # prompts that a photograph, which may be large, is judged for at a time


@dataclass(frozen=True, kw_only=True)
class SubjectLabels(Block):
    """How two rewards become a label."""

    labels: Literal["soft", "sampled"] = "soft"
    """`soft`: the probability itself, whose loss is the mean over what `sampled` may draw. `sampled`: a hard label that
    is drawn once. (The released code draws anew each time that it meets a pair.)"""
    temperature: Positive = 1.0
    """Divides the difference of the rewards. 1 is released: rewards of 0 to 1 then give labels of 0.27 to 0.73, most of
    them near 0.5. Smaller means more certain."""
    seed: Seed = 0
    """Of the labels that are drawn."""


@dataclass(frozen=True)
class SubjectPairs:
    """What was written."""

    folder: Path
    preference: NDArray[np.float64]
    """`[n]` the labels."""
    ranges: dict[str, tuple[float, float]]
    """Of a lambda-harmonic reward: for `image` and `text` what the poor and the good images get on average. The model's
    images do not show the subject, and the photographs do not show what the prompts say."""

    def __str__(self) -> str:
        against = int((self.preference < 0.5).sum())
        return (
            f"{len(self.preference)} pairs; labels from {self.preference.min():.3f} to {self.preference.max():.3f}, "
            f"{against} of them for the image that the model made"
        )


def write_subject_pairs(
    folder: Path,
    captions: Mapping[Path, str],
    scorer: Scorer,
    labels: SubjectLabels,
    recipe: Mapping[str, Any],
) -> SubjectPairs:
    """Judge the images of a media folder and photographs of a subject, and write the pair table into the folder.

    Args:
        folder: The media folder, which holds the images that a model made.
        captions: The photographs, and what each is learned with.
        scorer: Gives the rewards. What it gave before is not computed anew.
        labels: From rewards to labels.
        recipe: What else decides the table, as plain JSON values.

    Raises:
        UserError: The scorer cannot judge such images.
    """
    photos = list(captions)
    parts = {"image": scorer.image, "text": scorer.text} if isinstance(scorer, LambdaHarmonic) else {}
    table = score_folder(folder, [scorer, *parts.values()])
    made = [row for row in table.rows if row.scorer == scorer.name]
    prompts = list(dict.fromkeys(row.prompt for row in made))
    rewards = {photo: dict(zip(prompts, _judge(scorer, photo, prompts), strict=True)) for photo in photos}
    chosen = [photos[i % len(photos)] for i in range(len(made))]
    scores = np.array([[rewards[photo][row.prompt], row.score] for photo, row in zip(chosen, made, strict=True)])
    preference = preferences(scores, UNCHANGED, labels.temperature)
    if labels.labels == "sampled":
        preference = (np.random.default_rng(labels.seed).random(len(made)) < preference).astype(float)
    ranges = {}
    for name, part in parts.items():
        theirs = float(np.mean([_judge(part, photo, prompts) for photo in photos]))
        own = float(np.mean([row.score for row in table.rows if row.scorer == part.name]))
        ranges[name] = (own, theirs) if name == "image" else (theirs, own)
    told = {
        "made by": COMMAND,
        "captions": {photo.name: caption for photo, caption in captions.items()},
        **recipe,
        **asdict(labels),
        "scorer": scorer.provenance,
    }
    record = {"recipe": told, "rows": len(made), "measured ranges": ranges}
    rows = zip(chosen, made, scores.tolist(), preference.tolist(), strict=True)
    _write(folder, photos, [_row(captions[row[0]], *row) for row in rows], record)
    return SubjectPairs(folder, preference, ranges)


def _judge(scorer: Scorer, photo: Path, prompts: Sequence[str]) -> list[float]:
    """What a photograph gets for each prompt."""
    image = read_reference(photo)
    scores = [scorer.score([image] * len(some), list(some)).tolist() for some in groups(prompts, _TOGETHER)]
    return [score for some in scores for score in some]


def _row(caption: str, photo: Path, made: ScoreRow, scores: Sequence[float], preference: float) -> dict[str, Any]:
    return {
        "prompt": made.prompt,
        "chosen": f"{REFERENCES}/{photo.name}",
        "rejected": made.file,
        "chosen_prompt": caption,
        "rejected_prompt": made.prompt,
        "preference": preference,
        "chosen_score": scores[0],
        "rejected_score": scores[1],
        "rejected_seed": made.seed,
    }


def _write(folder: Path, photos: Sequence[Path], rows: Sequence[dict[str, Any]], record: dict[str, Any]) -> None:
    contents = {photo.name: read_bytes(photo) for photo in photos}
    with sole_writer(folder, COMMAND):
        with whole_folder(folder / REFERENCES) as home:
            for name, content in contents.items():
                write_file(home / name, content)
        write_json(record_of(folder, "train"), record)
        write_file(folder / TABLE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
