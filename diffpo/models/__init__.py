"""Families of models by name. A new one is a file here and a line in `FAMILIES`."""

from collections.abc import Mapping
from typing import Any

from diffpo.compat import ensure_torchvision

ensure_torchvision()

from diffpo.models.animatediff import AnimateDiff  # noqa: E402
from diffpo.models.base import Denoiser  # noqa: E402
from diffpo.models.cogvideox import CogVideoX  # noqa: E402
from diffpo.models.flux import Flux  # noqa: E402
from diffpo.models.flux2 import Flux2, Flux2Klein  # noqa: E402
from diffpo.models.hunyuanvideo import HunyuanVideo  # noqa: E402
from diffpo.models.hunyuanvideo15 import HunyuanVideo15  # noqa: E402
from diffpo.models.ltx import LTX  # noqa: E402
from diffpo.models.pixart import PixArt, PixArtAlpha  # noqa: E402
from diffpo.models.qwenimage import QwenImage  # noqa: E402
from diffpo.models.sana import Sana  # noqa: E402
from diffpo.models.sd3 import SD3  # noqa: E402
from diffpo.models.sdxl import SDXL  # noqa: E402
from diffpo.models.stable_cascade import StableCascade  # noqa: E402
from diffpo.models.unet import UNet  # noqa: E402
from diffpo.models.wan import Wan, Wan22High, Wan22Small  # noqa: E402
from diffpo.models.zimage import ZImage  # noqa: E402

FAMILIES: dict[str, type[Denoiser]] = {
    "unet": UNet,
    "sdxl": SDXL,
    "sd3": SD3,
    "pixart": PixArt,
    "pixart-alpha": PixArtAlpha,
    "flux": Flux,
    "flux2": Flux2,
    "flux2-klein": Flux2Klein,
    "qwen-image": QwenImage,
    "sana": Sana,
    "z-image": ZImage,
    "stable-cascade": StableCascade,
    "wan": Wan,
    "wan-5b": Wan22Small,
    "wan-a14b": Wan22High,
    "cogvideox": CogVideoX,
    "ltx": LTX,
    "hunyuanvideo": HunyuanVideo,
    "hunyuanvideo15": HunyuanVideo15,
    "animatediff": AnimateDiff,
}


def family_of(index: Mapping[str, Any]) -> type[Denoiser] | None:
    """The family that reads a diffusers pipeline, by its `model_index.json`; None: diffpo does not train it."""
    return next((family for family in FAMILIES.values() if family.reads(index)), None)


__all__ = ["FAMILIES", "Denoiser", "family_of"]
