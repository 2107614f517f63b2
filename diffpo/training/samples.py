"""Images while training: of fixed prompts and seeds, and grids of them, the base beside the tuned model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils._pytree import tree_map_only

from diffpo.config.run import Config
from diffpo.core.types import HALF
from diffpo.disk.ahead import groups
from diffpo.disk.files import hash_of
from diffpo.generation.processes import quiet_console
from diffpo.generation.sampling import Listeners, Plan, plan_clips, sample_clips
from diffpo.generation.settings import Sampler
from diffpo.generation.work import Work, fill
from diffpo.media.folder import Media, open_clip
from diffpo.media.frames import Clip
from diffpo.media.prompts import PromptSet, load_prompts
from diffpo.media.sheet import Cell, Row, draw_grid, write_sheet
from diffpo.media.users import Users
from diffpo.models.base import Denoiser
from diffpo.models.encoders import Encoders
from diffpo.training.processes import in_turn, is_sharded, share
from diffpo.training.run import note

SHOWN = 2
"""Users that a grid shows beside nobody."""


def plan_samples(config: Config, encoders: Encoders) -> Plan:
    """See what would be drawn; a `UserError` where the model makes nothing of that size, or prompts are missing."""
    prompts_of(config.sample.prompts)
    return plan_clips(encoders.family, encoders.vae, config.model.find().scheduler(None), _sampler(config))


def prompts_of(given: Sequence[str] | str) -> Sequence[str]:
    """The prompts that are given themselves, or in a file or as a named set; a `UserError` where there is none."""
    return load_prompts(given).prompts if isinstance(given, str) else given


def _sampler(config: Config) -> Sampler:
    return Sampler(**{field.name: getattr(config.sample, field.name) for field in fields(Sampler)})


class Drawer:
    """Draws with the policy as it stands, as the config's `sample` block says.

    With cached data the encoders rest on the CPU and visit the device only while images are drawn. The processes share
    the drawing; of a sharded network, which needs all of them, every one draws all.
    """

    def __init__(self, config: Config, accelerator: Accelerator, policy: Denoiser, encoders: Encoders):
        self.accelerator, self.encoders, self.sampler = accelerator, encoders, _sampler(config)
        self._policy = policy
        if config.data.cache:  # nobody else needs them
            encoders.pipeline.to("cpu")

    def draw(self, media: Sequence[Media], told: Tensor | None = None) -> list[Clip]:
        """Make all that is listed for one user, whose states `[n d]` are told, or for nobody.

        Every process must call this, and gets all.
        """
        batches = list(groups(media, self.sampler.batch))
        rank, world = share(self.accelerator)
        mine = [self.sample(batch, told) for batch in batches[rank::world]]
        return [clip for batch in in_turn(mine, world) for clip in batch]

    def sample(self, media: Sequence[Media], told: Tensor | None = None) -> list[Clip]:
        """Make what is listed, each of its prompt and with its seed, in this process; `told` as for `draw`."""
        listeners = None if told is None else Listeners(told.expand(len(media), -1, -1))
        prompts, seeds = [item.prompt for item in media], [item.seed or 0 for item in media]
        network = self.accelerator.unwrap_model(self._policy.network)  # still under accelerate's autocast
        with self.encoders.placed(self.accelerator.device, self._policy.dtype) as dtype, _answering(network, dtype):
            pipeline = self.encoders.with_denoiser(network)
            return sample_clips(pipeline, prompts, seeds, self.sampler, listeners=listeners)


@contextmanager
def _answering(network: Any, dtype: torch.dtype) -> Iterator[None]:
    """Let a network answer in the half precision of what stands beside it, as one that is loaded in it does.

    Accelerate lets it answer in float32, and many pipelines hand that on to a VAE which cannot take it.
    """
    if dtype not in HALF.values():
        yield
        return
    own = network.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return tree_map_only(Tensor, lambda x: x.to(dtype), own(*args, **kwargs))

    network.forward = forward
    try:
        yield
    finally:
        network.forward = own


class SampleGrids:
    """Draws `samples/step-000100.png`, for nobody and for the first users; the first process writes it."""

    def __init__(
        self, config: Config, drawer: Drawer, folder: Path, identity: Sequence[str], users: Users | None = None
    ):
        """Remember what to draw; `identity` names the untrained policy's weights, `users` are those that it is told."""
        seen = [] if users is None else [name for name in users.draws if users.seen[name]][:SHOWN]
        self._told = {name: users.states(users.draws_of(name)[0]) for name in seen if users is not None}
        sample, encoders = config.sample, drawer.encoders
        self._drawer, self._folder = drawer, folder / "samples"
        prompts = prompts_of(sample.prompts)
        self._prompts = PromptSet.of(prompts)
        jobs = list(product(prompts, sample.seeds))
        how = replace(drawer.sampler, batch=1)  # another number at a time makes no other images
        model = (*identity, encoders.fingerprint, config.model.prediction, config.model.dtype)
        self._base = self._folder / f"base-{hash_of(repr((jobs, how, model)), 4)}"
        numbers = {prompt: number for number, prompt in enumerate(self._prompts.prompts)}
        plan = plan_samples(config, encoders)
        usual = {"model": "base", **asdict(plan)}
        self._media = [
            Media(file=f"{i:03d}{plan.suffix}", prompt=prompt, prompt_id=numbers[prompt], seed=seed, **usual)
            for i, (prompt, seed) in enumerate(jobs)
        ]

    def base(self) -> None:
        """Draw the base's images, unless an earlier start of this run did; the policy must be untrained yet."""
        accelerator, sampler = self._drawer.accelerator, self._drawer.sampler
        work = Work(
            folder=self._base,
            media=self._media,
            batch=sampler.batch,
            sample=lambda: self._drawer.sample,
            prompts=self._prompts,
            settings=asdict(sampler),
        )
        if accelerator.is_main_process:
            note(self._folder.parent, self._base)
        fill([work], accelerator, quiet_console(accelerator), sharded=is_sharded(accelerator))

    def draw(self, step: int) -> None:
        """Draw the grid of an update."""
        columns = {f"step {step}": None} | {f"step {step}: {name}": told for name, told in self._told.items()}
        drawn = [self._drawer.draw(self._media, told) for told in columns.values()]
        if self._drawer.accelerator.is_main_process:
            cells = zip(self._media, *drawn, strict=True)
            rows = [Row(item.prompt, tuple(map(Cell, (open_clip(self._base, item), *clips)))) for item, *clips in cells]
            file = self._folder / f"step-{step:06d}.png"
            note(self._folder.parent, file)
            write_sheet(file, draw_grid(["base", *columns], rows))
