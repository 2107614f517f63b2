"""What encodes pictures for Stable Cascade's stage C: an EfficientNetV2-S (arXiv:2104.00298) and a projection.

The authors call its file `effnet_encoder.safetensors`. 32 pixels a side become one latent cell of 16 numbers, which a
batch norm without weights has brought to mean 0 and deviation 1; nothing scales them further.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from diffpo.compat import ensure_torchvision
from diffpo.disk.weights import BROKEN, reason
from diffpo.errors import UserError

FILE = "effnet_encoder.safetensors"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pictures in [0, 1], as the authors normalise them."""
FEATURES = 1280
"""Channels that an EfficientNetV2-S ends with."""


class EfficientNetEncoder(nn.Module):
    """Modules are named as in the authors' file."""

    def __init__(self, channels: int):
        """Make it with random weights, for latents of `channels`."""
        super().__init__()
        from torchvision.models import efficientnet_v2_s

        self.backbone = efficientnet_v2_s(weights=None).features
        projection = nn.Conv2d(FEATURES, channels, kernel_size=1, bias=False)
        self.mapper = nn.Sequential(projection, nn.BatchNorm2d(channels, affine=False))

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return self.mapper[0].weight.dtype  # pyright: ignore[reportReturnType]

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.mapper[0].weight.device  # pyright: ignore[reportReturnType]

    def forward(self, images: Tensor) -> Tensor:
        """Encode images `[b 3 h w]` in [-1, 1] to latents `[b c h/32 w/32]`."""
        mean, std = (torch.tensor(x, dtype=images.dtype, device=images.device)[:, None, None] for x in (MEAN, STD))
        return self.mapper(self.backbone((images / 2 + 0.5 - mean) / std))


def load_effnet(file: Path) -> EfficientNetEncoder:
    """Load the encoder out of the authors' file, frozen, on the CPU in float32.

    Raises:
        UserError: torchvision, which has the network, is not installed; or the file holds something else.
    """
    if ensure_torchvision() == "absent":
        raise UserError(
            "Stable Cascade's pictures are encoded by an EfficientNet of torchvision, which is not installed: "
            "pip install 'diffpo[scorers]'"
        )
    try:
        weights = load_file(file)
        with torch.device("meta"):  # random numbers are not drawn that are replaced at once
            encoder = EfficientNetEncoder(len(weights["mapper.0.weight"]))
        encoder.load_state_dict(weights, assign=True)
    except (*BROKEN, SafetensorError) as error:
        raise UserError(
            f"{file} is not the encoder of Stable Cascade's stage C ({reason(error).splitlines()[0]}): give the "
            f"authors' {FILE}"
        ) from error
    return encoder.float().eval().requires_grad_(False)
