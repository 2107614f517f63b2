"""What a step needs beside a tiny pipeline: a batch of pairs, a policy with its reference, and a policy that moved."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from tiny_users import EMBEDDING, user_states

from diffpo.core.process import DiscreteProcess
from diffpo.core.types import Condition, Pair, PairBatch, Rng
from diffpo.models import FAMILIES
from diffpo.models.base import Denoiser
from diffpo.models.bases import find_base
from diffpo.models.load import load
from diffpo.models.reference import Reference
from diffpo.models.tunings import MODELS

TOKENS = 5


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a tiny pipeline."""

    family: str
    """Its name in `FAMILIES`."""
    latent: tuple[int, int, int, int] = (4, 1, 8, 8)
    """Channels, frames, height, width of latents that its network is given: those of 16 pixels a side."""
    text: int = 24
    """Width of the text states."""
    pooled: int = 0
    """Width of the pooled state; 0: none."""
    masked: bool = False
    """Whether conditions carry a mask."""
    sized: bool = False
    """Whether the network is told the six sizes."""
    single: bool = False
    """Whether the network computes some of its parts in single precision, even where its weights have double."""
    strided: bool = False
    """Whether its texts lie in memory so that torch multiplies them otherwise where a weight wants a gradient."""
    multiple: int = 2
    """What sides in pixels must be divisible by."""
    cut: tuple[tuple[int, int], ...] = ((16, 3),)
    """Tokens that it reads, and how many of the prompts of 14, 15, 100 and 300 letters are longer."""
    call: tuple[tuple[str, Any], ...] = ()
    """What plain diffusers is told besides, to make something small without guidance."""
    guided: tuple[tuple[str, Any], ...] = (("guidance_scale", 3.0),)
    """What plain diffusers is told where diffpo is told a guidance of 3."""
    negative: bool = True
    """Whether its sampler takes a negative prompt."""
    frames_first: bool = False
    """Whether its network takes `[b f c h w]`."""
    unit: float | None = None
    """What its network is told at sigma = 1, where its configuration changes the family's own."""
    backwards: bool = False
    """Whether its network counts from noise to data: it is told 1 - t, and answers x0 - eps."""
    unheard: tuple[str, ...] = ()
    """Modules of the last block, the second one, that have no say in the answer."""
    silent: tuple[str, ...] = ()
    """Modules before the blocks that have no say in it either."""
    quoted: int = 0
    """Width of the states of a second text; 0: none."""
    large: bool = False
    """Whether its own size is too large for a test."""
    side: int = 32
    """Pixels of the shorter side of small pictures that it makes."""


SIZE = {"original_size": (96, 80), "crops_coords_top_left": (5, 7), "target_size": (18, 14)}
"""SDXL's three: all different, so that no two can change places."""

FACTS = {
    "sd15": Facts(family="unet"),
    "sd2": Facts(family="unet"),
    "sdxl": Facts(family="sdxl", text=48, pooled=24, sized=True, call=tuple(SIZE.items())),
    "sd3": Facts(
        family="sd3",
        latent=(8, 1, 8, 8),
        text=48,
        pooled=48,
        multiple=4,
        cut=((16, 3), (256, 1)),
        unheard=("add_q_proj",),
        strided=True,
    ),
    "pixart": Facts(
        family="pixart", masked=True, multiple=4, cut=((300, 1),), call=(("use_resolution_binning", False),)
    ),
    "pixart-alpha": Facts(
        family="pixart-alpha", masked=True, multiple=4, cut=((120, 1),), call=(("use_resolution_binning", False),)
    ),
    "flux": Facts(family="flux", pooled=24, multiple=4, cut=((16, 3), (512, 0)), negative=False, large=True),
    "flux2": Facts(
        family="flux2",
        latent=(16, 1, 4, 4),
        multiple=4,
        cut=((512, 0),),
        negative=False,
        large=True,
        strided=True,
    ),
    "flux2-klein": Facts(
        family="flux2-klein",
        latent=(16, 1, 4, 4),
        multiple=4,
        cut=((512, 0),),
        negative=False,
        large=True,
        strided=True,
    ),
    "qwen-image": Facts(
        family="qwen-image",
        latent=(4, 1, 2, 2),
        masked=True,
        single=True,
        multiple=16,
        cut=((1024, 0),),
        large=True,
        call=(("guidance_scale", None), ("true_cfg_scale", 1.0)),
        guided=(("guidance_scale", None), ("true_cfg_scale", 3.0)),
        unheard=("to_add_out", "txt_mlp", "add_q_proj", "norm_added_q"),
    ),
    "sana": Facts(
        family="sana",
        unit=500.0,
        masked=True,
        cut=((300, 1),),
        large=True,
        call=(("use_resolution_binning", False), ("height", 32), ("width", 32)),
    ),
    "z-image": Facts(
        family="z-image",
        masked=True,
        single=True,
        multiple=4,
        cut=((512, 0),),
        large=True,
        backwards=True,
        call=(("guidance_scale", 0.0),),
    ),
    "stable-cascade": Facts(
        family="stable-cascade",
        latent=(16, 1, 2, 3),
        pooled=24,
        multiple=32,
        silent=("clip_img_mapper.weight",),
        large=True,
        side=128,
    ),
    "wan": Facts(family="wan", latent=(4, 3, 4, 4), masked=True, single=True, multiple=16, cut=((512, 0),)),
    "wan-5b": Facts(family="wan-5b", latent=(6, 3, 4, 4), masked=True, single=True, multiple=32, cut=((512, 0),)),
    "wan-a14b": Facts(family="wan-a14b", latent=(4, 3, 4, 4), masked=True, single=True, multiple=16, cut=((512, 0),)),
    "cogvideox": Facts(family="cogvideox", latent=(4, 3, 4, 4), multiple=16, cut=((226, 1),), frames_first=True),
    "ltx": Facts(family="ltx", latent=(8, 2, 2, 2), masked=True, multiple=32, cut=((128, 1),)),
    "hunyuanvideo": Facts(
        family="hunyuanvideo",
        latent=(4, 3, 4, 4),
        pooled=24,
        masked=True,
        multiple=16,
        cut=((77, 2), (256, 1)),
        negative=False,
        strided=True,
    ),
    "hunyuanvideo15": Facts(
        family="hunyuanvideo15",
        latent=(4, 3, 4, 4),
        masked=True,
        quoted=48,
        multiple=4,
        cut=((1000, 0),),
        unheard=("to_add_out", "ff_context", "add_q_proj", "norm_added_q"),
        silent=("image_embedder",),
        strided=True,
    ),
    "animatediff": Facts(family="animatediff", latent=(4, 3, 4, 4)),
}


ADAPTED = {name for name, family in FAMILIES.items() if family.text_attention and not family.experts}
TOLD = [name for name, facts in FACTS.items() if facts.family in ADAPTED]
"""Pipelines whose network can be told the user."""


def side(name: str, row: int, which: str, dtype: torch.dtype) -> tuple[torch.Tensor, Condition]:
    """One image or clip of row `row`: the same numbers in whatever batch it stands."""
    facts = FACTS[name]
    generator = torch.Generator().manual_seed(2 * row + (which == "rejected"))
    latent, text, pool, quoted = (
        torch.randn(1, *shape, generator=generator).to(dtype)
        for shape in (facts.latent, (TOKENS, facts.text), (facts.pooled,), (TOKENS, facts.quoted))
    )
    sizes = torch.tensor([[512 + row, 640, 3, row, 512, 640]])
    mask = torch.arange(TOKENS)[None] < 2 + row % 3
    return latent, Condition(
        text,
        pool if facts.pooled else None,
        mask if facts.masked else None,
        extra=({"size": sizes} if facts.sized else {})
        | ({"quoted": quoted, "quoted_mask": torch.arange(TOKENS)[None] < row % 3} if facts.quoted else {}),
    )


def is_unheard(name: str, parameter: str) -> bool:
    """Whether a parameter has no say in the answer: what the last block makes of the text may go nowhere."""
    last = parameter.startswith("transformer_blocks.1.")
    silent = parameter.startswith(FACTS[name].silent)
    return silent or (last and any(f".{module}." in parameter for module in FACTS[name].unheard))


def near(name: str, rtol: float, atol: float) -> dict[str, float]:
    """How near two ways to the same numbers in double precision come to each other."""
    return {"rtol": 1e-4, "atol": 1e-5} if FACTS[name].single else {"rtol": rtol, "atol": atol}


def times(denoiser: Denoiser, relative: list[float], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Times in the unit of the denoiser's process, from fractions of the whole range."""
    t = torch.tensor(relative, dtype=dtype)
    return (1000 * t).long() if isinstance(denoiser.process, DiscreteProcess) else t


def pair_batch(name: str, rows: list[int], dtype: torch.dtype = torch.float32) -> PairBatch:
    """Pairs for the pipeline `name`; both sides have captions of their own."""
    sides = [[side(name, row, which, dtype) for row in rows] for which in ("chosen", "rejected")]
    latent = Pair(*(torch.cat([x for x, _ in images]) for images in sides))
    cond = Pair(*(Condition.cat([c for _, c in images]) for images in sides))
    ones = torch.ones(len(rows), latent.chosen.shape[2], dtype=torch.long)
    return PairBatch(latent, cond, torch.ones(len(rows), dtype=dtype), torch.tensor(rows), segments=ones)


def with_users(batch: PairBatch) -> PairBatch:
    """The same pairs, each with a user."""
    users = user_states(batch.size).to(batch.preference)
    return replace(batch, cond=batch.cond.map(lambda told: replace(told, user=users)))


def swapped(batch: PairBatch) -> PairBatch:
    """The same pairs with the order turned round."""
    return replace(batch, latent=batch.latent.swapped(), cond=batch.cond.swapped())


def make(
    folder, tuning: str, precision: torch.dtype = torch.float32, *, autocast: torch.dtype | None = None, **more
) -> tuple[Denoiser, Reference]:
    """Policy and reference of the pipeline in `folder`; an adapter starts from the same numbers every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        more = {"rank": 2, **more} if tuning == "lora" else more
        more = {"expert": "high", **more} if find_base(str(folder)).family.experts else more
        return load(MODELS[tuning](path=str(folder), **more), precision, True, embedding=EMBEDDING, autocast=autocast)


def move(network: torch.nn.Module, scale: float = 0.03) -> None:
    """Change whatever is trained, always by the same random numbers."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator).to(parameter)


def moved(folder, tuning: str = "full", precision: torch.dtype = torch.float64, **more) -> tuple[Denoiser, Reference]:
    """Policy and reference that are no longer equal."""
    policy, reference = make(folder, tuning, precision, **more)
    move(policy.network)
    return policy, reference


def draws(batch: PairBatch, seed: int = 3, epoch: int = 0) -> Rng:
    return Rng(seed, epoch, batch.index)


def ask(denoiser, batch: PairBatch, t: torch.Tensor | None = None) -> torch.Tensor:
    """What a denoiser answers about the clean chosen images at some time."""
    t = denoiser.process.sample_time(draws(batch), batch.shape) if t is None else t
    with torch.no_grad():
        return denoiser.predict(batch.latent.chosen, t, batch.cond.chosen)
