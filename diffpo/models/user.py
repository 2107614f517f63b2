"""What is trained where a model is to be told the user: a user adapter, alone or with a LoRA beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from diffpo.core.block import Range
from diffpo.core.types import Embedding
from diffpo.errors import ConfigError, UserError
from diffpo.models.base import Denoiser
from diffpo.models.bases import BaseModel
from diffpo.models.lora import LoRA
from diffpo.models.tuning import Tuning
from diffpo.models.user_adapter import add_user_adapter, is_adapters
from diffpo.models.user_files import IP_TOKENS, save_user_adapter


@dataclass(frozen=True, kw_only=True)
class User(LoRA):
    """Train keys and values for the user beside the text's; the reference is the same network with them off."""

    tells_users: ClassVar[bool] = True

    tokens: Annotated[int, Range(least=1, most=IP_TOKENS)] = IP_TOKENS
    """Tokens that become of each of a user's states: 1, 2 or 4. (Files have four, as diffusers reads them.)"""
    rank: Annotated[int, Range(least=1, most=4096)] | None = None
    """Rank of a LoRA that is trained beside the adapter. Default: none is, or what the file `lora` has."""

    @property
    def changes_the_untold(self) -> bool:
        """Only the LoRA does: without it the null user is the base, exactly."""
        return self.rank is not None or self.lora is not None

    def __post_init__(self) -> None:
        Tuning.__post_init__(self)
        if IP_TOKENS % self.tokens:
            raise ConfigError(f"tokens is {self.tokens}; it must be 1, 2 or 4")

    def check(self, base: BaseModel) -> None:
        super().check(base)
        if base.family.text_attention is None or base.family.experts:
            from diffpo.models import FAMILIES

            known = [name for name, kind in FAMILIES.items() if kind.text_attention is not None and not kind.experts]
            raise UserError(
                f"model=user trains no adapter for a {base.pipeline} like {self.path}; it does for {', '.join(known)}"
            )

    def prepare(
        self, network: Any, family: type[Denoiser], dtype: torch.dtype, embedding: Embedding | None = None
    ) -> None:
        """Add a fresh adapter for users' states, and the LoRA where there is one; both get `dtype`."""
        assert embedding is not None and family.text_attention is not None, "the config and `check` have seen to it"
        if not self.changes_the_untold:
            network.requires_grad_(False)
        else:
            super().prepare(network, family, dtype)
        add_user_adapter(network, family.text_attention, embedding, self.tokens)
        for name, parameter in network.named_parameters():
            if is_adapters(name):
                parameter.data = parameter.data.to(dtype)
                parameter.requires_grad_(True)

    def save(self, folder: Path, base: BaseModel, network: Any, weights: dict[str, Tensor]) -> None:
        """Write the adapter's file, which diffusers reads as an IP-Adapter where it knows the family, and the LoRA."""
        if self.changes_the_untold:
            super().save(folder, base, network, weights)
        save_user_adapter(folder, base, network, weights)
