"""Methods by name. A new one is a file here and a line in `METHODS`."""

from diffpo.methods.base import Method, PairwiseMethod
from diffpo.methods.dpo import DPO
from diffpo.methods.sft import SFT

METHODS: dict[str, type[Method]] = {"dpo": DPO, "sft": SFT}

__all__ = ["METHODS", "Method", "PairwiseMethod"]
