"""Images for users, each for prompts of their own: told their user, told somebody else, and told nobody.

    OUT/base/       the model, told nobody
    OUT/own/        told the user
    OUT/others/     told another user of the same group: the control
    OUT/NAME/       another model, such as plain DPO on everybody's pairs

All folders have the same prompts and seeds, image after image in the order of the sittings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from diffpo.disk.rows import digest
from diffpo.errors import UserError
from diffpo.generation.generate import fill_folder
from diffpo.generation.request import Request
from diffpo.generation.settings import GenerateOptions
from diffpo.generation.users import Audience
from diffpo.media.folder import Media
from diffpo.media.prompts import PromptSet
from diffpo.media.users import Users

COMMAND = "diffpo personal"
KINDS = ("base", "own", "others")


@dataclass(frozen=True)
class Sitting:
    """A prompt of a user, and which states the model is told for it."""

    user: str
    seen: bool
    prompt: str
    own: int
    """A draw of the user, by its row."""
    other: int
    """A draw of somebody else of the same group."""


def plan_sittings(users: Users, names: Sequence[str], prompts: Sequence[str], each: int, seed: int) -> list[Sitting]:
    """Give every user prompts of their own, and go through their draws.

    A prompt that a support pair of the user has is not theirs: what the model is told would tell of it.

    Args:
        users: Who there is.
        names: Who sits.
        prompts: What is asked; every user takes the next ones in an order that is drawn.
        each: Prompts of each.
        seed: Of that order, and of who the others are.

    Raises:
        UserError: There are too few prompts, or nobody else in a group.
    """
    generator, left = np.random.default_rng([seed, 31]), list(dict.fromkeys(prompts))
    left = [left[i] for i in generator.permutation(len(left))]  # neighbours in a set are often alike
    found: list[Sitting] = []
    for name in names:
        draws = users.draws_of(name)
        support = {_plain(prompt) for row in draws for prompt in users.prompts[row]}
        fitting = [prompt for prompt in left if _plain(prompt) not in support][:each]
        others = [other for other in names if other != name and users.seen[other] == users.seen[name]]
        if len(fitting) < each or not others:
            need = f"{len(names)} users need {each} prompts each" if others else "a control needs two users of a group"
            raise UserError(f"{need}: there are {len(prompts)} prompts and {len(names)} users. Give more of them.")
        left = [prompt for prompt in left if prompt not in set(fitting)]
        for number, prompt in enumerate(fitting):
            other = others[int(generator.integers(len(others)))]
            rows = users.draws_of(other)
            own, control = draws[number % len(draws)], rows[number % len(rows)]
            found.append(Sitting(name, users.seen[name], prompt, own, control))
    return found


def make_images(
    options: GenerateOptions,
    users: Users,
    sittings: Sequence[Sitting],
    out: Path,
    rivals: Mapping[str, GenerateOptions] | None = None,
    *,
    fresh: bool = False,
) -> dict[str, list[Media]]:
    """Make all images; the same call continues after a kill.

    Args:
        options: The model with its user adapter, and how to sample; `seeds` has one seed.
        users: Whose states the adapter takes.
        sittings: What is asked.
        out: The folder of the media folders.
        rivals: Other models by name, which are told nobody.
        fresh: Whether folders that were made otherwise may be replaced.

    Returns:
        Media of each folder, in the order of the sittings.
    """
    prompts = PromptSet.of(sitting.prompt for sitting in sittings)
    request = Request.of(options)
    told = {"base": None, "own": [s.own for s in sittings], "others": [s.other for s in sittings]}
    made = {kind: _fill(request, kind, rows, users, sittings, prompts, out, fresh) for kind, rows in told.items()}
    for name, other in (rivals or {}).items():
        made[name] = _fill(Request.of(other), name, None, users, sittings, prompts, out, fresh)
    return made


def _fill(
    request: Request,
    kind: str,
    rows: Sequence[int] | None,
    users: Users,
    sittings: Sequence[Sitting],
    prompts: PromptSet,
    out: Path,
    fresh: bool,
) -> list[Media]:
    """Make one folder; `rows` are the draws that the model is told, or None."""
    media = [replace(item, model=kind) for item in request.media(prompts, lambda n, _, seed: f"{n:06d}-s{seed}")]
    assert len(media) == len(sittings)
    audience = None
    if rows is not None:
        states = torch.stack([users.states(row) for row in rows])
        described = {"whose": kind, "states": digest(states.numpy().tobytes()).hex()}
        places = {item.file: place for place, item in enumerate(media)}
        audience = Audience(described, states, [1.0] * len(states), places)
    asked = replace(request, audience=audience, label=kind)
    folder = out / kind
    settings = asked.describe(prompts)
    fill_folder(folder, COMMAND, settings, lambda: asked.work(folder, prompts, media), fresh=fresh)
    return media


def _plain(prompt: str) -> str:
    return " ".join(prompt.casefold().split())
