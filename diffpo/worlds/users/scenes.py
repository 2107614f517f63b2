"""The prompts of the users world are those of the shapes world."""

from diffpo.worlds.shapes.scenes import SPLITS, sample_prompts, split_captions

__all__ = ["SPLITS", "sample_prompts", "split_captions"]
