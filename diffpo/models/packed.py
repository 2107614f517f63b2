"""Flow transformers that take latents as a sequence: each patch of a frame is a token.

b c f (h p) (w p)  ->  b (f h w) (c p p)
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffpo.core.types import Condition
from diffpo.models.flow import Flow


class Packed(Flow):
    """A network that is given tokens, and where each of them lies."""

    def answer(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        assert self.most_frames != 1 or z.shape[2] == 1, f"this family takes images; got {z.shape[2]} frames"
        tokens, told = self.pack(z.to(self.dtype)), self.told(t, z)
        answer = self.network(hidden_states=tokens, timestep=told, return_dict=False, **self.arguments(z, cond))[0]
        return self.unpack(answer, z.shape)

    @abstractmethod
    def arguments(self, z: Tensor, cond: Condition) -> dict[str, Any]:
        """What the network is told besides tokens and time, for z `[b c f h w]`."""

    @classmethod
    def to_sampler(cls, latent: Tensor) -> Tensor:
        return cls.pack(latent)

    @classmethod
    def from_sampler(cls, held: Tensor, sizes: tuple[int, int, int]) -> Tensor:
        return cls.unpack(held, (len(held), -1, *sizes))

    @classmethod
    def pack(cls, z: Tensor) -> Tensor:
        """Latents `[b c f h w]` as tokens."""
        p = cls.patch
        b, c, f, h, w = z.shape
        z = z.reshape(b, c, f, h // p, p, w // p, p)
        return z.permute(0, 2, 3, 5, 1, 4, 6).reshape(b, f * (h // p) * (w // p), c * p * p)

    @classmethod
    def unpack(cls, tokens: Tensor, shape: Sequence[int]) -> Tensor:
        """Tokens as latents of the shape `[b c f h w]`."""
        p = cls.patch
        b, c, f, h, w = shape
        tokens = tokens.reshape(b, f, h // p, w // p, c, p, p)
        return tokens.permute(0, 4, 1, 2, 5, 3, 6).reshape(b, c, f, h, w)


def grid(*sizes: int, axes: int, like: Tensor) -> Tensor:
    """Positions in a grid, the last axis fastest, in the last of `axes` columns: `[n axes]`, with zeros before them."""
    lines = torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")
    places = torch.stack([line.flatten() for line in lines], dim=1)
    return torch.cat([places.new_zeros(len(places), axes - len(sizes)), places], dim=1).to(like.device, torch.float32)
