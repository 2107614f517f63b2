"""Families of networks by name. A new one is a file here and a line in `DENOISERS`."""

from diffpo.compat import ensure_torchvision

ensure_torchvision()

from diffpo.models.base import Denoiser  # noqa: E402
from diffpo.models.sd3 import SD3  # noqa: E402
from diffpo.models.sdxl import SDXL  # noqa: E402
from diffpo.models.unet import UNet  # noqa: E402

DENOISERS: dict[str, type[Denoiser]] = {"unet": UNet, "sdxl": SDXL, "sd3": SD3}

__all__ = ["DENOISERS", "Denoiser"]
