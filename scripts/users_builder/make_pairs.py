"""Makes the pair table of the users world: the same pictures, labelled by people who want different things.

Three quarters of the pairs are of widely drawn scenes, the others of images of the shapes world's base model, which
differ less from each other. Four pictures of either kind are made for a prompt, and people are asked about the two that
differ most: a choice between pictures that are nearly alike says nothing of a taste. Each person meets a prompt once at
most: no support pair of a person shares its prompt with another pair of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import dist
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from shapes_builder.building import step_generator
from shapes_builder.make_pairs import Job, from_jpeg, make_images, to_jpeg
from shapes_builder.sampling import WIDE_STYLE, sample_scenes

from diffpo.worlds.shapes.render import render_batch, to_uint8
from diffpo.worlds.shapes.scenes import parse_caption, sample_prompts
from diffpo.worlds.shapes.verify import see
from diffpo.worlds.users.people import Person, people, place, prefers_first, utility

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

PICTURES = 4
"""Of each kind, per prompt."""
KINDS = ("rendered", "base")
TURNS = ("rendered", "rendered", "rendered", "base")
"""The kinds of a person's pairs, again and again."""
FIRST_SEED = 9_000_000


@dataclass(frozen=True)
class Meeting:
    """A person looks at two pictures."""

    person: Person
    prompt: str
    first: Job
    second: Job


def plan_jobs(prompts: int, seed: int) -> dict[tuple[str, str], list[Job]]:
    """The pictures of each prompt and kind; the prompts are of the shapes world's train split."""
    found = {}
    for number, prompt in enumerate(sample_prompts("train", prompts, seed)):
        for kind in KINDS:
            first = FIRST_SEED + PICTURES * number
            found[prompt, kind] = [Job(prompt, kind, first + i) for i in range(PICTURES)]
    return found


def most_different(
    jobs: Mapping[tuple[str, str], Sequence[Job]], jpegs: Mapping[Job, bytes]
) -> dict[tuple[str, str], tuple[Job, Job]]:
    """The two pictures of each prompt and kind that lie farthest apart in what people's tastes look at."""
    found = {}
    for key, some in jobs.items():
        places = {job: place(see(from_jpeg(jpegs[job]))) for job in some}
        there = [job for job in some if places[job] is not None]
        found[key] = max(combinations(there, 2), key=lambda two: dist(*(places[job] or () for job in two)))
    return found


def plan_meetings(asked: Mapping[tuple[str, str], tuple[Job, Job]], each: int, seed: int) -> list[Meeting]:
    """Who sees which two pictures: `each` pairs per person, no prompt twice for anybody."""
    prompts = list(dict.fromkeys(prompt for prompt, _ in asked))
    assert len(prompts) >= each, "too few prompts for so many pairs of one person"
    found = []
    for number, person in enumerate(people().values()):
        generator = step_generator(seed + 1, number)
        order = torch.randperm(len(prompts), generator=generator).tolist()
        for turn in range(each):
            prompt = prompts[order[turn]]
            two = asked[prompt, TURNS[turn % len(TURNS)]]
            first, second = torch.randperm(2, generator=generator).tolist()
            found.append(Meeting(person, prompt, two[first], two[second]))
    return found


def draw_scenes(jobs: Sequence[Job]) -> dict[Job, bytes]:
    """Draw widely drawn scenes, each from a seed of its own."""
    found = {}
    for job in jobs:
        scene = sample_scenes([parse_caption(job.prompt)], step_generator(0, job.seed), WIDE_STYLE)
        found[job] = _jpeg(to_uint8(render_batch(scene))[0])
    return found


def make_pictures(
    pipeline: StableDiffusionPipeline, jobs: Mapping[tuple[str, str], Sequence[Job]], work: Path
) -> dict[Job, bytes]:
    """The JPEG of every picture; the model's images are kept in `work`, so that a killed run continues."""
    rendered = [job for (_, kind), some in jobs.items() if kind == "rendered" for job in some]
    asked = [(job, job) for (_, kind), some in jobs.items() if kind == "base" for job in some]
    return draw_scenes(rendered) | make_images({"base": pipeline}, asked, work)


def label(meetings: Sequence[Meeting], jpegs: Mapping[Job, bytes], seed: int) -> list[dict[str, Any]]:
    """Let everybody choose: rows in the package's columns, in the order of the meetings."""
    generator = step_generator(seed + 2, 0)
    draws = torch.rand(len(meetings), 2, generator=generator, dtype=torch.float64).tolist()
    rows = []
    for meeting, (u, flip) in zip(meetings, draws, strict=True):
        both = meeting.first, meeting.second
        first, second = (utility(from_jpeg(jpegs[job]), job.prompt, meeting.person.name) for job in both)
        chosen, rejected = both if prefers_first(first, second, u, flip) else both[::-1]
        images = {
            "chosen": {"bytes": jpegs[chosen], "path": None},
            "rejected": {"bytes": jpegs[rejected], "path": None},
        }
        row = {"prompt": meeting.prompt, **images, "user_id": meeting.person.name, "kind": meeting.first.model}
        rows.append(row | {"chosen_seed": chosen.seed, "rejected_seed": rejected.seed})
    return rows


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as parquet. Each picture stands there once for either column, however many people saw it."""
    import pyarrow
    from datasets import Features, Image, Value
    from pyarrow import parquet

    texts = {name: Value("string") for name in ("prompt", "user_id", "kind")}
    seeds = {name: Value("int64") for name in ("chosen_seed", "rejected_seed")}
    schema = Features({**texts, **seeds, "chosen": Image(), "rejected": Image()}).arrow_schema
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist([dict(row) for row in rows], schema=schema)
    parquet.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 26)


def _jpeg(picture: Any) -> bytes:
    from PIL import Image

    return to_jpeg(Image.fromarray(picture))
