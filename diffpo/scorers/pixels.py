"""How images become pixels where the authors of a scorer did not use a processor of transformers."""

import numpy as np
import torch
from PIL.Image import Image, Resampling
from torch import Tensor, nn

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels that OpenAI's CLIP was trained on, by channel; BLIP's too."""


def resize_and_crop(image: Image, side: int) -> Tensor:
    """Resize the short side and cut out the middle, as OpenAI's CLIP does with torchvision and PIL, bit for bit.

    An RGB image becomes `[3 side side]` float32, normalised. CLIP's processor of transformers does nearly the same:
    where the number of surplus pixels is 3 modulo 4, it cuts one pixel further left or up: it rounds half of them down.
    """
    width, height = image.size
    short = min(width, height)
    width, height = int(side * width / short), int(side * height / short)
    left, top = round((width - side) / 2), round((height - side) / 2)
    square = image.resize((width, height), Resampling.BICUBIC).crop((left, top, left + side, top + side))
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pixels - mean) / std


def pad_longest(image: Image, size: int, *, antialias: bool) -> Tensor:
    """Scale the longest side to `size` and pad with black on both sides, bit for bit as `hpsv2` does with torchvision.

    An RGB image becomes `[3 size size]` in about [0, 1]: bicubic interpolation overshoots. `hpsv2` forgets to pad where
    the longest side is `size` already, and then fails; here such an image is padded too.
    """
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    factor = size / max(pixels.shape[1:])
    if factor != 1:
        height, width = (max(1, round(side * factor)) for side in pixels.shape[1:])
        resized = nn.functional.interpolate(
            pixels[None], (height, width), mode="bicubic", align_corners=False, antialias=antialias
        )
        pixels = resized[0]
    top, left = ((size - side) // 2 for side in pixels.shape[1:])
    bottom, right = size - pixels.shape[1] - top, size - pixels.shape[2] - left
    return nn.functional.pad(pixels, (left, right, top, bottom))
