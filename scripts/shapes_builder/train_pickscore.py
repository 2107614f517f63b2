"""Trains the scorer of the shapes world: a tiny CLIP in PickScore's format, made as PickScore was made.

First contrastively (which caption belongs to which picture, against the other captions of the batch and against hard
ones with one thing changed), then on preference pairs of the train split: the softmax of exp(logit_scale) cos(text,
image) over a pair's two images against its labels (Kirstain et al. 2023, eq. 2), while the contrastive loss goes on at
a smaller weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diffpo.worlds.shapes.render import render_batch
from diffpo.worlds.shapes.scenes import BACKGROUNDS, COLORS, RELATIONS, SHAPES, ObjectSpec, SceneSpec, split_of
from shapes_builder.building import Plan, train
from shapes_builder.make_pairs import from_jpeg
from shapes_builder.models import make_clip
from shapes_builder.sampling import BASE_STYLE, WIDE_STYLE, sample_scenes, sample_specs
from shapes_builder.train_base import tokens

if TYPE_CHECKING:
    from transformers import CLIPModel

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
CAPTION_TOKENS = 16  # no caption is longer, and what follows the first end token changes nothing
CONTRASTIVE_WEIGHT = 0.3  # while fine-tuning on pairs


def train_contrastive(plan: Plan, batch_size: int, work: Path, device: str) -> CLIPModel:
    """Train (or continue) on freshly rendered scenes of the train split."""
    torch.manual_seed(plan.seed)
    clip = make_clip().to(device)
    train("clip", clip, lambda generator: {"loss": contrastive_loss(clip, batch_size, generator, device)}, plan, work)
    return clip.eval()


def train_on_pairs(
    clip: CLIPModel, rows: Sequence[dict], plan: Plan, batch_size: int, work: Path, device: str
) -> CLIPModel:
    """Fine-tune (or continue) on labelled pairs of the train split; ties count as one half each."""
    assert all(split_of(row["caption"]) == "train" for row in rows)
    first, second = (pixels([from_jpeg(row[f"jpg_{side}"]) for row in rows]) for side in (0, 1))
    ids = tokens([row["caption"] for row in rows])[:, :CAPTION_TOKENS]
    labels = torch.tensor([[row["label_0"], row["label_1"]] for row in rows])

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        chosen = torch.randint(len(rows), (batch_size,), generator=generator)
        sides = [part[chosen].to(device) for part in (first, second)]
        scores = pair_scores(clip, ids[chosen].to(device), sides[0], sides[1])
        preference = -(labels[chosen].to(device) * scores.log_softmax(1)).sum(1).mean()
        contrast = contrastive_loss(clip, batch_size, generator, device)
        return {"loss": preference + CONTRASTIVE_WEIGHT * contrast, "preference": preference, "contrast": contrast}

    train("pickscore", clip, loss, plan, work)
    return clip.eval()


def pair_scores(clip: CLIPModel, ids: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """PickScore of both images of each pair, `[b 2]`."""
    text = _unit(clip.get_text_features(ids))
    images = torch.stack([_unit(clip.get_image_features(side)) for side in (first, second)], dim=1)
    return clip.logit_scale.exp() * (text.unsqueeze(1) * images).sum(-1)


def contrastive_loss(clip: CLIPModel, n: int, generator: torch.Generator, device: str) -> Tensor:
    """CLIP's loss, in which every image also meets three hard captions of its own."""
    specs = sample_specs("train", n, generator)
    scenes = sample_scenes(specs[: n // 2], generator, BASE_STYLE) + sample_scenes(
        specs[n // 2 :], generator, WIDE_STYLE
    )
    images = _unit(clip.get_image_features(normalize(blur(render_batch(scenes), generator)).to(device)))
    captions = [spec.caption for spec in specs]
    hard = [text for spec in specs for text in hard_captions(spec, generator)]
    texts = _unit(clip.get_text_features(tokens(captions + hard)[:, :CAPTION_TOKENS].to(device)))
    scale = clip.logit_scale.exp().clamp(max=100)
    in_batch = scale * images @ texts[:n].T
    own = scale * (images.unsqueeze(1) * texts[n:].view(n, 3, -1)).sum(-1)
    target = torch.arange(n, device=device)
    by_image = F.cross_entropy(torch.cat([in_batch, own], dim=1), target)
    return 0.5 * (by_image + F.cross_entropy(in_batch.T, target))


def hard_captions(spec: SceneSpec, generator: torch.Generator) -> list[str]:
    """Three captions of the train split, each wrong for the picture by one thing.

    The roles are swapped, the relation is turned, one word is changed. Where such a caption belongs to another
    split, a further change of a random kind takes its place.
    """
    kinds = [_swap, _turn, _change]
    found: list[str] = []
    while len(found) < 3:
        kind = kinds[len(found)] if kinds[len(found)] is not None else (_turn, _change)[_draw(2, generator)]
        caption = kind(spec, generator).caption
        if split_of(caption) == "train" and caption not in found:
            found.append(caption)
        else:
            kinds[len(found)] = None
    return found


def _swap(spec: SceneSpec, generator: torch.Generator) -> SceneSpec:
    """The colours change places; with equal shapes that is a turned relation, so the background changes instead."""
    first, second = spec.first, spec.second
    if first.shape == second.shape:
        return replace(spec, background=_other(tuple(BACKGROUNDS), (spec.background,), generator))
    return replace(spec, first=replace(first, color=second.color), second=replace(second, color=first.color))


def _turn(spec: SceneSpec, generator: torch.Generator) -> SceneSpec:
    return replace(spec, relation=_other(RELATIONS, (spec.relation,), generator))


def _change(spec: SceneSpec, generator: torch.Generator) -> SceneSpec:
    """Another shape or another colour for one of the objects."""
    side = ("first", "second")[_draw(2, generator)]
    item: ObjectSpec = getattr(spec, side)
    if _draw(5, generator) < 3:
        item = replace(item, shape=_other(SHAPES, (item.shape,), generator))
    else:
        item = replace(item, color=_other(COLORS, (spec.first.color, spec.second.color), generator))
    return replace(spec, **{side: item})


def agreement(clip: CLIPModel, rows: Sequence[dict]) -> float:
    """Share of the rows without a tie in which the image with the higher score is the one that was preferred."""
    rows = [row for row in rows if row["label_0"] != 0.5]
    ids = tokens([row["caption"] for row in rows])[:, :CAPTION_TOKENS]
    first, second = (pixels([from_jpeg(row[f"jpg_{side}"]) for row in rows]) for side in (0, 1))
    with torch.no_grad():
        scores = pair_scores(clip, ids, first, second)
    labels = torch.tensor([row["label_0"] for row in rows])
    return float(((scores[:, 0] > scores[:, 1]) == (labels > 0.5)).float().mean())


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """What the image processor makes of 64x64 images: `[n 3 64 64]`, normalised."""
    array = np.stack([np.asarray(image) for image in images])
    return normalize(torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255)


def normalize(images: Tensor) -> Tensor:
    """[0, 1] -> CLIP's normalisation."""
    return (images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def blur(images: Tensor, generator: torch.Generator) -> Tensor:
    """A little of what a VAE does: each image mixed with its blurred self at random, and noise."""
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = torch.rand(len(images), 1, 1, 1, generator=generator)
    noise = 0.03 * torch.randn(images.shape, generator=generator)
    return (images + share * (soft - images) + noise).clamp(0, 1)


def save_pickscore(clip: CLIPModel, folder: Path) -> None:
    """Write the one folder that AutoModel and AutoProcessor read: fp16 weights, processor, tokenizer."""
    from transformers import CLIPImageProcessorPil

    from shapes_builder.models import make_tokenizer

    size = {"shortest_edge": 64}
    processor = CLIPImageProcessorPil(
        size=size, crop_size={"height": 64, "width": 64}, image_mean=list(MEAN), image_std=list(STD)
    )
    clip.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def _other(options: Sequence[str], excluded: Sequence[str], generator: torch.Generator) -> str:
    left = [option for option in options if option not in excluded]
    return left[_draw(len(left), generator)]


def _draw(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (1,), generator=generator))


def _unit(features: object) -> Tensor:
    """Unit length; transformers 5 wraps projected features."""
    tensor = getattr(features, "pooler_output", features)
    assert isinstance(tensor, Tensor)
    return F.normalize(tensor, dim=-1)
