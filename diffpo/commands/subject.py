"""The command `diffpo data subject`: photographs of a subject become the pair table that RPO learns from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from diffpo.commands.shared import Fresh, listed, quiet, say

EXAMPLE, EMBEDDED = "configs/sd21-rpo.yaml", "configs/subject-rpo.yaml"
SELECTED, HELD_OUT = "select.txt", "heldout.txt"
"""Prompts for `train.select`, and for judging the model afterwards."""


def subject_pairs(
    model: Annotated[str, typer.Argument(help="A diffusers folder, a Hub id, or shapes:base.", show_default=False)],
    references: Annotated[Path, typer.Argument(help="A folder of three to six photographs.", show_default=False)],
    kind: Annotated[str, typer.Option("--class", help="What the subject is: dog, backpack, teapot.")],
    out: Annotated[Path, typer.Option(help="The folder of the images and their table.")],
    token: Annotated[str, typer.Option(help="A rare word that stands for the subject.")] = "sks",
    caption: Annotated[
        str, typer.Option(help="What photographs without a text file of their name show; {} is the subject.")
    ] = "a photo of {}",
    prompts: Annotated[
        str | None, typer.Option(help="A file of prompts for the model's images, with {} for the subject; or ours.")
    ] = None,
    drawn_as: Annotated[
        str | None,
        typer.Option(help="What the prompts of the model's images call it: dog; by default token and class."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds per prompt: 0,1,2 or a range 0-3.")] = "0-15",
    sampling: Annotated[
        str | None, typer.Option(help="How to sample: steps=30,guidance=7.5,size=[512, 512], or a YAML file of such.")
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option("--scorer", "-s", help="The reward; by default that of RPO: how well ALIGN finds prompts shown."),
    ] = None,
    labels: Annotated[str, typer.Option(help="soft: a probability; sampled: drawn with it.")] = "soft",
    temperature: Annotated[float, typer.Option(help="Divides the difference of two rewards; smaller: surer.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of sampled labels.", min=0)] = 0,
    fresh: Fresh = False,
) -> None:
    """Make images that photographs of a subject are compared with (RPO); the same command continues after a kill."""
    from diffpo.config.blocks import make
    from diffpo.config.options import make_scorer, parse_seeds, read_block
    from diffpo.disk.files import write_file
    from diffpo.media.frames import name_others
    from diffpo.media.subjects import JUDGED, LEARNED, SELECTING, Subject

    subject = make(Subject, {"kind": kind, "token": token}, "subject")
    subject.fill(caption)  # a mistake in what is usual is named before one in a file
    asked = subject.prompts(LEARNED if prompts is None else prompts, drawn_as)
    reward = make_scorer(scorer or released_reward(references, token))
    quiet()
    from diffpo.curate.subject import ADDED, COMMAND, TABLE, SubjectLabels, write_subject_pairs
    from diffpo.generation.generate import generate
    from diffpo.generation.processes import make_state
    from diffpo.generation.settings import GenerateOptions
    from diffpo.scorers.references import find_references, read_references

    given = {"model": model, "seeds": parse_seeds(seeds), "frames": 1}
    options = make(GenerateOptions, given | read_block(sampling, given, GenerateOptions, "sampling"), "subject")
    labelling = make(SubjectLabels, {"labels": labels, "temperature": temperature, "seed": seed}, "subject")
    read_references(references)
    name_others(references)
    captions = {photo: subject.caption(photo, caption) for photo in find_references(references)}
    _ = reward.provenance  # weights that are not there are missed before the work
    lists = {} if prompts is not None else {SELECTED: subject.prompts(SELECTING), HELD_OUT: subject.prompts(JUDGED)}
    written = listed(out / TABLE)
    work = generate(options, asked, out, command=COMMAND, added=(*ADDED, SELECTED, HELD_OUT), fresh=fresh)
    if not make_state().is_main_process:
        return
    done = write_subject_pairs(out, captions, reward, labelling, {"settings": work.settings})
    for name, some in lists.items():
        write_file(out / name, "".join(f"{prompt}\n" for prompt in some.prompts))
    for name, (low, high) in done.ranges.items():
        print(f"measured: {name} scores are {low:.4g} where it fails and {high:.4g} where it is right, on average")
    overrides = [f"model.path={model}", f"data.path={out}", *(select_by(out, token, done.ranges) if lists else ())]
    example = EMBEDDED if model.startswith("shapes:") and not lists else EXAMPLE
    say(f"wrote {written}: {done} ({work.reused} images were there)", f"diffpo train {example} {' '.join(overrides)}")


def released_reward(references: Path, token: str) -> dict[str, Any]:
    """The reward of RPO's released labels: how well an image fits its prompt to ALIGN; its likeness counts nothing."""
    from diffpo.scorers.harmonic import ALIGN

    image = {"name": "clip-i", "model": ALIGN, "references": str(references)}
    text = {"name": "clip", "model": ALIGN, "without": token}
    return {"name": "lambda-harmonic", "image": image, "text": text, "image_weight": 0}


def select_by(out: Path, token: str, ranges: Mapping[str, tuple[float, float]]) -> list[str]:
    """What the example's `train.select` is told of a subject."""
    chosen = {"prompts": out / SELECTED, "scorer.image.references": out / "references", "scorer.text.without": token}
    chosen |= {f"scorer.{name}_range": f"[{low:.4g},{high:.4g}]" for name, (low, high) in ranges.items() if low < high}
    return [f"train.select.{key}={value}" for key, value in chosen.items()]
