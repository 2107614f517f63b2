"""The images of an evaluation, kept by (model, prompt, seed, sampling), so that only what is missing is made.

    HOME/LABEL-KEY/            a media folder; KEY is the hash of all that decides an image besides its prompt and seed
    HOME/LABEL-KEY/P-sS.png    P is the hash of the prompt, S the seed of the noise

The manifest names the images that the present evaluation asks for; others wait for one that does.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from diffpo.generation.generate import NAMES, Request
from diffpo.generation.settings import hash_of
from diffpo.generation.work import Work
from diffpo.media.prompts import PromptSet

ASKED = frozenset({"prompts_hash", "n_prompts", "seeds", "noise", "batch"})
"""Settings that say which images are asked for, not how they are made: files are called by prompt and seed. The number
of images at a time changes their last bits only."""


def find_stored(request: Request, prompts: PromptSet, home: Path, labels: Collection[str] = ()) -> Work:
    """See what of a request is there and what is missing; several processes may look at once, before any begins.

    Args:
        request: What is asked of a model.
        prompts: What to sample.
        home: The folder of all models' folders.
        labels: Of all models that are judged: a folder of the same model under another one was renamed by the user,
            and is taken over.
    """
    key = key_of(request.describe(prompts))
    folder = home / f"{request.label}-{key}"
    for other in home.glob(f"*-{key}"):
        if other.name.removesuffix(f"-{key}") not in {request.label, *labels} and not folder.exists():
            with contextlib.suppress(OSError):  # another process did
                other.rename(folder)
    media = request.media(prompts, lambda _, prompt, seed: f"{hash_of(prompt, 8)}-s{seed}.png")
    return request.work(folder, prompts, media)


def key_of(settings: dict[str, Any]) -> str:
    """The hash of all that decides an image besides its prompt and seed."""
    decisive = {name: value for name, value in settings.items() if name not in NAMES | ASKED}
    return hash_of(json.dumps(decisive, sort_keys=True), 4)
