"""Two clips for each real clip, by two seeds from one noise level: `diffpo data video-pairs`.

    OUT/manifest.jsonl, settings.json, 000012-s3.mp4     a media folder, as `diffpo generate` makes it
    OUT/000012-s3.safetensors                            the latents that the clip was decoded from; see `data.latents`

What a pair is made of depends on its own real clip, prompt and the settings alone: neither on the other clips nor on
the number of processes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from math import lcm
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import save
from torch import Tensor

from diffpo.core.block import Fraction
from diffpo.disk.ahead import WORKERS, ahead
from diffpo.disk.files import hash_of, write_file
from diffpo.disk.rows import digest
from diffpo.disk.tables import hash_file
from diffpo.disk.weights import fingerprint
from diffpo.errors import UserError
from diffpo.generation.generate import fill_folder
from diffpo.generation.guided import denoise_clip
from diffpo.generation.request import Request
from diffpo.generation.settings import GenerateOptions
from diffpo.generation.work import Draw, Work
from diffpo.media.folder import DECODED, LATENTS, Media, home_of, read_media
from diffpo.media.frames import BrokenImage, Clip, encode, open_footage, parts_of
from diffpo.media.prompts import PromptSet
from diffpo.models.pipelines import open_pipeline

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger(__name__)

NAMED = 5
"""Clips that a message names."""


@dataclass(frozen=True, kw_only=True)
class VideoPairOptions(GenerateOptions):
    """What pairs are sampled from, and how."""

    eta: tuple[Fraction, Fraction] = (0.65, 0.8)
    """The noise level that both clips of a pair begin at, drawn evenly between these for each pair. 1 and 1: from pure
    noise, which makes independent pairs. The default is DenseDPO's."""
    seeds: tuple[int, ...] = (0, 1)
    """Of the noise of the two clips."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.eta[0] <= self.eta[1]:
            raise UserError(f"eta is {self.eta[0]:g} to {self.eta[1]:g}; it goes from a smaller level above 0 up to 1.")
        if len(self.seeds) != 2:
            raise UserError(f"a pair has two clips: give two seeds, not {list(self.seeds)}.")
        if self.users is not None:
            raise UserError("pairs of clips are made for nobody: leave users and blend out.")


@dataclass(frozen=True)
class VideoPair:
    """A pair that is to be made of one real clip."""

    clip: Path
    prompt: str
    eta: float
    """One for both: where they differed, a network would learn to tell noise levels (DenseDPO, section 4.1)."""
    sides: tuple[Media, Media]

    @property
    def row(self) -> dict[str, object]:
        """Its row in a pair table; paths are relative to the media folder, that of the real clip is not."""
        row: dict[str, object] = {"prompt": self.prompt}
        for name, side in zip(("chosen", "rejected"), self.sides, strict=True):
            row |= {name: side.file, f"{name}_seed": side.seed}
        return row | {"eta": self.eta, "clip": self.clip.name}


@dataclass(frozen=True)
class VideoPairs:
    """What was made."""

    work: Work
    pairs: list[VideoPair]
    left_out: dict[str, str]
    """Real clips that could not be used, and why."""


def make_video_pairs(
    options: VideoPairOptions,
    source: Path,
    out: Path,
    *,
    added: Sequence[str] = (),
    fresh: bool = False,
    console: Console | None = None,
) -> VideoPairs:
    """Make the clips of all pairs; what an interrupted call with the same settings made is kept.

    Args:
        options: What is sampled from, and how.
        source: Real clips with captions: a folder or a table, as `media.found` reads it.
        out: The media folder.
        added: Files that the caller adds to `out`.
        fresh: Remove what an earlier call made in `out` first.
        console: Where to show progress; standard error by default.

    Raises:
        UserError: There is no clip that can be used, or whatever `generate` refuses.
    """
    request = Request.of(options)
    if request.model.family is None:
        raise UserError(
            f"{options.model} is a {request.model.index.get('_class_name')}, which diffpo does not train: the noise "
            "levels of its latents are not known. `diffpo models` lists what is."
        )
    if request.model.family.vae_file is not None:
        raise UserError(
            f"{options.model} is a {request.model.family.pipelines[0]}, which has no VAE to encode clips with: give a "
            "model that has one."
        )
    clips, left_out = _usable(source, request)
    prompts = PromptSet.of([item.prompt for item in clips], source.name)
    places = {prompt: place for place, prompt in enumerate(prompts.prompts)}
    pairs = [
        _plan(number, replace(item, prompt_id=places[item.prompt]), home_of(source), request, options)
        for number, item in enumerate(clips)
    ]
    hashes = ahead(_hash, [home_of(source) / item.file for item in clips], workers=WORKERS, depth=4 * WORKERS)
    stated = [[item.file, item.prompt, content] for item, content in zip(clips, hashes, strict=True)]
    settings = request.describe(prompts) | {"eta": list(options.eta), "clips": hash_of(str(stated))}
    media = [side for pair in pairs for side in pair.sides]

    def look() -> Work:
        draw = partial(_open, request, pairs, out)
        return Work(folder=out, media=media, batch=2, sample=draw, prompts=prompts, settings=settings)

    command = "diffpo data video-pairs"
    work = fill_folder(out, command, settings, look, added=added, fresh=fresh, console=console)
    return VideoPairs(work, pairs, left_out)


def _usable(source: Path, request: Request) -> tuple[list[Media], dict[str, str]]:
    """The real clips that are long enough, in their order, and what is wrong with the others."""
    plan, found = request.plan, read_media(source)

    def check(item: Media) -> str | None:
        try:
            with open_footage(home_of(source) / item.file) as footage:
                footage.choose(plan.frames, plan.fps)
        except BrokenImage as error:
            return str(error)
        return None

    told = dict(zip(found, ahead(check, found, workers=WORKERS, depth=4 * WORKERS), strict=True))
    left_out = {item.file: why for item, why in told.items() if why is not None}
    named = "; ".join(f"{file}: {why}" for file, why in list(left_out.items())[:NAMED])
    if len(left_out) == len(found):
        raise UserError(f"none of the {len(found)} clips of {source} can be used: {named}. A shorter clip: frames=N.")
    if left_out:
        log.warning(f"{source}: {len(left_out)} of {len(found)} clips are left out: {named}.")
    return [item for item, why in told.items() if why is None], left_out


def _hash(clip: Path) -> str:
    """The hash of a clip's bytes, or of those of its frames."""
    return digest(*map(hash_file, parts_of(clip))).hex()


def _plan(number: int, item: Media, home: Path, request: Request, options: VideoPairOptions) -> VideoPair:
    """Draw the noise level and the seeds of a pair, by the real clip's name and prompt."""
    key, (low, high) = f"{item.file}\0{item.prompt}", options.eta
    share = int(hash_of(f"{options.seeds}\0{key}", 6), 16) / 2**48
    plan, seeds = request.plan, options.seeds_of(key, number)
    sides = tuple(
        Media(
            file=f"{number:06d}-s{name}{plan.suffix}",
            prompt=item.prompt,
            prompt_id=item.prompt_id,
            seed=seed,
            model=request.label,
            frames=plan.frames,
            fps=plan.fps,
        )
        for name, seed in zip(options.seeds, seeds, strict=True)
    )
    return VideoPair(home / item.file, item.prompt, low + (high - low) * share, (sides[0], sides[1]))


def _open(request: Request, pairs: Sequence[VideoPair], out: Path) -> Draw:
    """Load the pipeline. What comes out draws clips by prompt and seed, and writes the latents beside them first."""
    model, options = request.model, request.options
    pipeline = open_pipeline(model, dtype=getattr(torch, options.dtype), device=request.device)
    known = {side.file: (pair, side) for pair in pairs for side in pair.sides}
    family = model.family
    assert family is not None
    vae = fingerprint(model.base.path / "vae")
    multiple = lcm(family.sides, family.multiple(model.vae))

    def draw(asked: Sequence[Media]) -> list[Clip]:
        made: list[Clip] = []
        for pair, group in groupby([known[one.file] for one in asked], key=itemgetter(0)):
            frames = read_frames(pair.clip, pair.sides[0], options.size, multiple)
            sampler = replace(options, size=(frames.shape[2], frames.shape[3]))
            # Both sides, even where one of them is there: what is in a batch decides the last bits.
            done = denoise_clip(pipeline, frames, pair.prompt, pair.eta, [side.seed for side in pair.sides], sampler)
            for side, latent, clip in zip(pair.sides, done.latents, done.clips, strict=True):
                told = {DECODED: f"{vae} {digest(encode(clip, request.plan.suffix)).hex()}"}
                write_file((out / side.file).with_suffix(LATENTS), save({"latent": latent.contiguous()}, told))
            made += [done.clips[pair.sides.index(side)] for _, side in group]
        return made

    return draw


def read_frames(path: Path, like: Media, size: tuple[int, int] | None, multiple: int) -> Tensor:
    """Read a clip of the length and rate of another one, `[3 f h w]` in [-1, 1], scaled and cut in its middle.

    Args:
        path: The clip.
        like: Says the frames, and how many per second.
        size: Height and width; None: its own ones, rounded down.
        multiple: What those must be divisible by.

    Raises:
        UserError: It cannot be decoded.
    """
    try:
        with open_footage(path) as footage:
            width, height = footage.size
            target = size or (max(1, height // multiple) * multiple, max(1, width // multiple) * multiple)
            numbers = footage.choose(like.frames, like.fps)
            fitted = (ImageOps.fit(frame, target[::-1], Image.Resampling.LANCZOS) for frame in footage.frames(numbers))
            frames = [*map(np.asarray, fitted)]
    except BrokenImage as error:
        raise UserError(f"{path} is no readable clip: {error}. Mend it, or move it away.") from error
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).float() / 127.5 - 1
