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
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffpo.compat import pick_device
from diffpo.core.types import DTYPES
from diffpo.disk.files import remove
from diffpo.disk.lock import sole_writer
from diffpo.errors import UserError
from diffpo.generation.processes import make_state, quiet_console
from diffpo.generation.sampling import Listeners, Plan, plan_clips, sample_clips
from diffpo.generation.settings import GenerateOptions, hash_of
from diffpo.generation.users import Audience, find_audience
from diffpo.generation.work import Draw, Work, fill
from diffpo.media.folder import LATENTS, MANIFEST, SCORES, SETTINGS, Media, read_manifest, read_settings
from diffpo.media.frames import Clip
from diffpo.media.prompts import PROMPTS, PromptSet
from diffpo.models import Denoiser
from diffpo.models.finding import Model, find_model
from diffpo.models.fitting import Fitting
from diffpo.models.pipelines import decode_one_by_one, open_pipeline

if TYPE_CHECKING:
    from rich.console import Console

NO_SAFETY_CHECKER = "off (it replaces images by black ones, which would spoil the scores)"
NAMES = frozenset({"label", "model", "tuned", "prompts", "versions", "safety_checker"})
"""Settings that may change without changing an image: where something lies, or how it is called."""
ASKED = frozenset({"prompts_hash", "n_prompts", "seeds", "noise", "batch"})
"""Settings that say which images are asked for, not how they are made: an evaluation's files are called by prompt and
seed. The number of images at a time changes their last bits only."""
CPU_BATCH, MOST, GPU_PIXELS = 4, 64, 32 * 1024**2
"""Images at a time unless told: on a CPU, the most that a GPU is given, and the pixels that it is given."""
USUAL_SIZE = (1024, 1024)
"""Taken for the size of images where none is asked for: the pipeline's own is known when it is loaded."""
PERSONAL = frozenset({"blend", "states", "strength", "whose", "user_adapter_weights"})
"""Settings of images that are made for somebody; others have none of them."""
HOW = ("noise", "steps", "guidance", "negative_prompt", "batch", "dtype")
"""Options that are settings as they are."""


@dataclass(frozen=True)
class Request:
    """What is asked of one model: its files are found, nothing is loaded."""

    options: GenerateOptions
    model: Model
    plan: Plan
    device: str
    label: str
    fitting: Fitting
    """How many images at a time."""
    audience: Audience | None = None
    """Whom the images are for; None: nobody."""

    @staticmethod
    def of(options: GenerateOptions, label: str | None = None) -> Request:
        """Find a model; without a label it is called like the run, or like the last part of its path or id.

        Raises:
            UserError: The model or the device is not there, or the model makes nothing of this size or length.
        """
        model = find_model(options.model, lora=options.lora, denoiser=options.denoiser, tuned=options.tuned)
        plan = plan_clips(model.family, model.vae, model.schedule, options)
        path = Path(options.tuned or options.lora or options.denoiser or options.model)
        name = path.parent.name if path.name == "final" and path.parent.name else path.name
        device = pick_device(options.device)
        options = settle(options, model, plan, device)
        audience = None if options.users is None else find_audience(options.users, options.blend, model)
        return Request(options, model, plan, device, label or name, Fitting(options.batch or 1), audience)

    def open(self) -> Draw:
        """Load the pipeline."""
        pipeline = open_pipeline(self.model, dtype=DTYPES[self.options.dtype], device=self.device)
        if self.device.startswith("cuda"):
            decode_one_by_one(pipeline)
        options, audience = self.options, self.audience

        def draw(asked: Sequence[Media], told: Listeners | None = None) -> list[Clip]:
            prompts, seeds = [item.prompt for item in asked], [item.seed or 0 for item in asked]
            return sample_clips(pipeline, prompts, seeds, options, self.fitting, told)

        def draw_told(asked: Sequence[Media]) -> list[Clip]:
            clips: dict[int, Clip] = {}
            for some, states, strength in audience.parts(asked) if audience is not None else ():
                told = Listeners(states, options.strength * strength)
                clips |= dict(zip(some, draw([asked[i] for i in some], told), strict=True))
            return [clips[i] for i in range(len(asked))]

        return draw if audience is None else draw_told

    def describe(self, prompts: PromptSet) -> dict[str, Any]:
        """The settings file. Whatever an image depends on is in it."""
        options, model = self.options, self.model
        tuned = model.lora or model.denoiser
        return {
            "label": self.label,
            "model": options.model,
            "tuned": options.tuned or options.lora or options.denoiser,
            "weights": model.base.identity,
            "lora_weights": model.lora and model.lora.identity,
            "denoiser_weights": model.denoiser and model.denoiser.identity,
            "pipeline": model.index.get("_class_name"),
            "scheduler": model.scheduler,
            "prompts": prompts.name,
            "prompts_hash": prompts.hash,
            "n_prompts": len(prompts),
            "seeds": list(options.seeds),
            "size": options.size and list(options.size),
            **({} if self.plan.frames == 1 else asdict(self.plan)),
            **({} if model.user_adapter is None else {"user_adapter_weights": model.user_adapter.identity}),
            **({} if self.audience is None else self.audience.described | {"strength": options.strength}),
            **{name: getattr(options, name) for name in HOW},
            "device": self.device.partition(":")[0],
            "safety_checker": NO_SAFETY_CHECKER,
            "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")}
            | ({} if tuned is None else {"peft": version("peft")}),
        }

    def media(self, prompts: PromptSet, name: Callable[[int, str, int], str]) -> list[Media]:
        """All that is asked for, prompt after prompt.

        `name` calls a file, but for its ending, by its prompt's place, the prompt and the seed.
        """
        usual = {"model": self.label, **asdict(self.plan)}
        return [
            Media(
                file=name(number, prompt, seed) + self.plan.suffix, prompt=prompt, prompt_id=number, seed=seed, **usual
            )
            for number, prompt in enumerate(prompts.prompts)
            for seed in self.options.seeds_of(prompt, number)
        ]

    def work(self, folder: Path, prompts: PromptSet, media: list[Media]) -> Work:
        """See what a media folder is to hold, and what of it is missing."""
        return Work(
            folder=folder,
            media=media,
            batch=self.options.batch or 1,
            sample=self.open,
            prompts=prompts,
            settings=self.describe(prompts),
            fitting=self.fitting,
        )


def settle(options: GenerateOptions, model: Model, plan: Plan, device: str) -> GenerateOptions:
    """Choose the dtype and the number of images at a time, where they are left to the device."""
    gpu, family = device.startswith("cuda"), model.family or Denoiser
    dtype, batch = options.dtype, options.batch
    if dtype is None:
        half = family.half if gpu and torch.cuda.is_bf16_supported() else "float16"
        dtype = half if gpu else "float32"
    if batch is None:
        height, width = options.size or USUAL_SIZE
        batch = min(MOST, max(1, GPU_PIXELS // (height * width * plan.frames))) if gpu else CPU_BATCH
    return replace(options, dtype=dtype, batch=batch)


def generate(
    options: GenerateOptions,
    prompts: PromptSet | Sequence[str],
    out: str | Path,
    *,
    label: str | None = None,
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
    return fill_folder(
        out, "diffpo generate", settings, lambda: request.work(out, prompts, media), fresh=fresh, console=console
    )


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
    media = request.media(prompts, lambda _, prompt, seed: f"{hash_of(prompt, 8)}-s{seed}")
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
    changed = [key for key in asked if earlier.get(key) != settings.get(key)]
    if changed:
        listed = "; ".join(f"{key} was {earlier.get(key)}, is now {settings.get(key)}" for key in sorted(changed))
        raise UserError(
            f"{out} was made with other settings: {listed}. Use `--fresh` to replace it, or another folder."
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
