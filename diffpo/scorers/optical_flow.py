"""How much a clip moves by the optical flow of torchvision's RAFT (Teed and Deng, arXiv:2003.12039).

    motion            mean length of the flow from frame to frame, in per cent of the short side
    dynamic-degree    VBench's (arXiv:2311.17982): 1 for a clip that moves, 0 for one that does not; the mean over clips
                      is VBench's number

For `dynamic-degree` about 8 frames per second are taken. A pair of frames moves if the mean of the longest 5 % of its
flow exceeds 6 px for a short side of 256; a clip moves if round(4 n / 16) pairs of its n frames do. Ours: at least one
pair must; VBench calls every clip of two frames dynamic. VBench has RAFT's published weights "things"; torchvision's
C_T_V1, the default here, are ported from them. Checked with given flows and random weights: they were not at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from diffpo.compat import ensure_torchvision
from diffpo.core.block import Count
from diffpo.disk.weights import Weights
from diffpo.errors import UserError
from diffpo.media.frames import FPS
from diffpo.scorers.base import ClipScorer, WithNetwork, versions
from diffpo.scorers.loading import load_state, read_state
from diffpo.scorers.parts import find_file

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from diffpo.media.frames import Clip

PUBLISHED = {"large": "raft_large_C_T_V1-22a6c225.pth", "small": "raft_small_C_T_V1-ad48884c.pth"}
"""Torchvision's files, by the size of the network."""
_ADDRESS = "https://download.pytorch.org/models/"
_LEAST = 128  # px of a side, for the four levels of RAFT's pyramid


@dataclass(frozen=True, kw_only=True)
class _ByFlow(ClipScorer, WithNetwork):
    origin = f"{_ADDRESS}{PUBLISHED['large']}"
    measures = "motion"
    what: ClassVar[str] = "a RAFT of torchvision"

    network: Literal["large", "small"] = "large"
    """Which RAFT."""
    path: str | None = None
    """A file in torchvision's layout, or an address; None is torchvision's own, which is fetched once."""
    updates: Count = 20
    """How often RAFT mends its flow; VBench has 20."""
    batch: Count = 4
    """Pairs of frames at a time."""

    @cached_property
    def _weights(self) -> Weights:
        file = PUBLISHED[self.network]
        return find_file(self.path or _ADDRESS + file, file=file, what=self.what)

    @property
    def _found(self) -> dict[str, Any]:
        return {
            "weights": self._weights.identity,
            "preprocessing": f"RAFT {self.network}, {self.updates} updates, padded to multiples of 8",
            "library": versions("torch", "pillow"),
        }

    @cached_property
    def _raft(self) -> Any:
        if ensure_torchvision() == "absent":
            raise UserError(f"{self.name} needs torchvision, which is not installed: pip install 'diffpo[scorers]'")
        from torchvision.models.optical_flow import raft_large, raft_small

        raft = {"large": raft_large, "small": raft_small}[self.network](weights=None)
        state = read_state(self._weights.path)
        what = f"{self.what} (network={self.network})"
        return load_state(raft, state, path=self._weights.path, what=what, dtype=self.dtype, device=self.device)

    def flow_lengths(self, frames: Sequence[Image]) -> Tensor:
        """How far each pixel moves from a frame to the next, px: `[frames - 1, h, w]` float32 on the CPU.

        Sides are padded to multiples of 8 by repeating the edge, on both ends, and stay padded, as in VBench.
        """
        import torch
        from torch.nn import functional

        width, height = frames[0].size
        wide, high = -width % 8, -height % 8
        if min(width + wide, height + high) < _LEAST:
            raise UserError(
                f"{self.name} needs clips with sides of more than {_LEAST - 8} px, and here is one of {width} x "
                f"{height}: RAFT cannot see it. frame-change measures small clips."
            )
        edges = (wide // 2, wide - wide // 2, high // 2, high - high // 2)
        raft, found = self._raft, []
        weight = next(raft.parameters())
        for start in range(0, len(frames) - 1, self.batch):
            part = torch.stack([_pixels(frame) for frame in frames[start : start + self.batch + 1]])
            part = functional.pad(part, edges, mode="replicate").to(weight.device, weight.dtype)
            flow = raft(part[:-1], part[1:], num_flow_updates=self.updates)[-1]
            found.append(flow.float().norm(dim=1).cpu())
        return torch.cat(found)


@dataclass(frozen=True, kw_only=True)
class Motion(_ByFlow):
    """How far pixels move from a frame to the next, in the mean."""

    name = "motion"
    about = "Mean length of the optical flow from frame to frame. It shows whether motion froze; more is not better."
    scale = "per cent of the short side, per frame"

    def _judge_clip(self, clip: Clip, prompt: str) -> float:
        return 100 * self.flow_lengths(clip.frames).mean().item() / min(clip.first.size)


@dataclass(frozen=True, kw_only=True)
class DynamicDegree(_ByFlow):
    """Whether a clip moves, as VBench decides it."""

    name = "dynamic-degree"
    about = "VBench's dynamic degree: the share of clips that move. It shows whether motion froze; more is not better."
    scale = "0 or 1"
    reads_rate = True

    def _judge_clip(self, clip: Clip, prompt: str) -> float:
        frames = clip.frames[:: max(1, round((clip.fps or FPS) / 8))]
        if len(frames) < 2:
            raise UserError(f"{self.name} looks at 8 frames per second, and has one of a clip of {len(clip.frames)}.")
        return float(is_dynamic(self.flow_lengths(frames), min(clip.first.size)))


def is_dynamic(lengths: Tensor, short: int) -> bool:
    """Decide by the lengths of the flows between its frames, px, `[frames - 1, h, w]`, whether a clip moves.

    `short` is the short side of the clip, px.
    """
    pixels = lengths.flatten(1)
    longest = pixels.topk(max(1, int(0.05 * pixels.shape[1])), dim=1).values.mean(1)
    moving = int((longest > 6 * short / 256).sum())
    return moving >= max(1, round(4 * (len(lengths) + 1) / 16))


def _pixels(frame: Image) -> Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(frame.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1
