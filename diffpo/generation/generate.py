"""Generation: prompts -> a media folder (images or clips, manifest, settings).

    OUT/000012-s3.png          `generate`: the image of prompt 12 and the seed 3; a clip is 000012-s3.mp4
    HOME/LABEL-KEY/P-sS.png    `evaluate`, which makes only what is missing: KEY is the hash of all that decides images
                               besides prompt and seed, P the hash of the prompt, S the seed of the noise

The manifest names the images that were asked for last; others of an evaluation wait for one that asks for them again.

The image of (prompt, seed) is what plain diffusers gives for

    pipe(prompt, num_inference_steps=steps, guidance_scale=guidance, generator=torch.Generator("cpu").manual_seed(seed))

where the manifest says the seed of each image, and the number of frames of a clip (`num_frames`). Each image has a
generator of its own, so its noise does not depend on what else is in the batch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpo.disk.changes import name_changes
from diffpo.disk.files import hash_of, remove
from diffpo.disk.lock import sole_writer
from diffpo.errors import UserError
from diffpo.generation.processes import make_state, quiet_console
from diffpo.generation.request import NO_SAFETY_CHECKER, Request
from diffpo.generation.settings import GenerateOptions
from diffpo.generation.work import Work, fill
from diffpo.media.folder import LATENTS, MANIFEST, SCORES, SETTINGS, read_manifest, read_settings
from diffpo.media.prompts import PROMPTS, PromptSet

if TYPE_CHECKING:
    from rich.console import Console

NAMES = frozenset({"label", "model", "tuned", "prompts", "versions", "safety_checker"})
"""Settings that may change without changing an image: where something lies, or how it is called."""
ASKED = frozenset({"prompts_hash", "n_prompts", "seeds", "noise", "batch"})
"""Settings that say which images are asked for, not how they are made: an evaluation's files are called by prompt and
seed. The number of images at a time changes their last bits only."""
PERSONAL = frozenset({"blend", "states", "strength", "whose", "user_adapter_weights"})
"""Settings of images that are made for somebody; others have none of them."""


def generate(
    options: GenerateOptions,
    prompts: PromptSet | Sequence[str],
    out: str | Path,
    *,
    label: str | None = None,
    command: str = "diffpo generate",
    added: Sequence[str] = (),
    fresh: bool = False,
    console: Console | None = None,
) -> Work:
    """Make a media folder; what an earlier, interrupted call with the same settings made is kept.

    Processes that `accelerate launch` or `torchrun` started share the work.

    Args:
        options: What to sample from, and how.
        prompts: What to sample.
        out: The folder.
        label: Name of the model in tables and grids; by default the last part of its path.
        command: What makes it, for messages.
        added: Names of files that the command adds to the media.
        fresh: Remove what an earlier call made in `out` first.
        console: Where to show progress; standard error by default.

    Raises:
        UserError: If there is no prompt, the model cannot be loaded, the size is not possible, `out` holds something
            else, another command writes there, or an image comes out as not-a-number.
    """
    prompts = prompts if isinstance(prompts, PromptSet) else PromptSet.of(prompts)
    if not prompts:
        raise UserError("there is no prompt to generate for.")
    out = Path(out)
    request = Request.of(options, label)
    media = request.media(prompts, lambda number, _, seed: f"{number:06d}-s{seed}")  # refused before it is begun
    settings = request.describe(prompts)

    def look() -> Work:
        return request.work(out, prompts, media)

    return fill_folder(out, command, settings, look, added=added, fresh=fresh, console=console)


def fill_folder(
    out: Path,
    command: str,
    settings: dict[str, Any],
    look: Callable[[], Work],
    *,
    added: Sequence[str] = (),
    fresh: bool = False,
    console: Console | None = None,
) -> Work:
    """Make a media folder, or what is missing of it; see `generate`.

    Args:
        out: The folder.
        command: What makes it, for messages.
        settings: How it is made.
        look: Sees what it is to hold, and what is missing.
        added: Names of files that the command adds to the media.
        fresh: Remove what an earlier call made first.
        console: Where to show progress; standard error by default.
    """
    state = make_state()
    console = console or quiet_console(state)
    with sole_writer(out, command) if state.is_main_process else nullcontext():
        anew = _check_folder(out, settings, fresh, command)
        state.wait_for_everyone()  # nobody writes while another one looks
        if anew and state.is_main_process:
            _clear(out, added)
        state.wait_for_everyone()
        work = look()
        if work.missing:
            console.print(f"safety checker {NO_SAFETY_CHECKER}", style="dim", highlight=False)
        fill([work], state, console)
    return work


def find_stored(request: Request, prompts: PromptSet, home: Path, labels: Collection[str] = ()) -> Work:
    """See what an evaluation has of a request and what is missing; several processes may look at once.

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
            with suppress(OSError):  # another process did
                other.rename(folder)
    media = request.media(prompts, lambda _, prompt, seed: f"{hash_of(prompt)}-s{seed}")
    return request.work(folder, prompts, media)


def key_of(settings: dict[str, Any]) -> str:
    """The hash of all that decides an image besides its prompt and seed."""
    decisive = {name: value for name, value in settings.items() if name not in NAMES | ASKED}
    return hash_of(json.dumps(decisive, sort_keys=True), 4)


def _check_folder(out: Path, settings: dict[str, Any], fresh: bool, command: str) -> bool:
    """Make sure that what is in a folder is the same work, begun earlier; returns whether it is to be cleared."""
    earlier = read_settings(out)
    if not {"label", "weights", "prompts_hash"} <= earlier.keys():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} holds other files and no {SETTINGS} of `{command}`. Use another folder.")
        return False
    if fresh or not _images(out):  # without an image nothing is lost: a mistake may just be mended
        return True
    if "noise" not in earlier:  # what settings said before there were three kinds
        earlier["noise"] = "consecutive" if earlier.get("distinct_seeds") else "shared"
    asked = (settings.keys() | PERSONAL) - NAMES
    earlier = dict.fromkeys(PERSONAL) | earlier  # they are noted where images are for somebody
    if changes := name_changes({k: earlier[k] for k in asked & earlier.keys()}, {k: settings.get(k) for k in asked}):
        raise UserError(
            f"{out} was made with other settings: {changes}. Nothing was removed: choose another folder, or give "
            "--fresh to replace what is there."
        )
    return False


def _images(out: Path) -> set[str]:
    return {path.name for path in out.iterdir() if re.fullmatch(r"\d{6,}-s\d+\.(png|mp4)", path.name)}


def _clear(out: Path, added: Sequence[str]) -> None:
    """Remove what the manifest lists and what was added; the settings last, so that a kill leaves them behind."""
    listed: set[str] = set()
    with suppress(UserError):  # a manifest that is damaged or not there lists nothing
        listed = {item.file for item in read_manifest(out)}
    if strange := _images(out) - listed:
        raise UserError(
            f"{out} holds images that its {MANIFEST} does not list, such as {min(strange)}. Remove them yourself, or "
            "use another folder."
        )
    latents = [Path(name).with_suffix(LATENTS).name for name in sorted(listed)]
    for name in (*added, *sorted(listed), *latents, SCORES, PROMPTS, MANIFEST, SETTINGS):
        remove(out / name)
