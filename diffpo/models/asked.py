"""What is asked of a pipeline that samples, whatever its family calls it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of a pipeline that samples."""

    rows: int
    """Images or clips at a time."""
    guidance: float
    """Guidance scale, as the pipeline counts it."""
    negative: str | None
    """What to guide away from."""
    frames: int
    """Of each clip; an image has one."""
    fps: float | None
    """Of clips."""
    steps: int
    """Of the sampler."""
    size: tuple[int, int] | None
    """Height and width in pixels; None: the pipeline's own."""

    @property
    def usual(self) -> dict[str, Any]:
        """What most pipelines of images are told of it, by their names for it."""
        told: dict[str, Any] = {"num_inference_steps": self.steps, "guidance_scale": self.guidance}
        if self.negative is not None:
            told["negative_prompt"] = [self.negative] * self.rows
        if self.size is not None:
            told["height"], told["width"] = self.size
        return told
