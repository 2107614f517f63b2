"""A user adapter: attention to the user, with keys and values of its own, beside a network's attention to the text.

It is for PPD; the form is IP-Adapter's (arXiv:2308.06721):

    Z = softmax(Q K^T / sqrt d) V  +  strength softmax(Q K'^T / sqrt d) V'         K' = W_K u, V' = W_V u

where Q is the text attention's own query and u are tokens that a linear layer and a layer norm make of the user's
states. Nothing has a bias: zeros, the null user, add nothing. W_V starts at zero, so a fresh adapter adds nothing, too.
W_K starts as the text's.

The adapter knows no family: it listens to the query as it leaves its projection, and adds its part to what goes into
the output projection, whatever computes the attention between the two. So it does with any attention backend, with
regional compilation, with blocks that are sharded, and with a LoRA on the same layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from diffpo.core.types import Embedding
from diffpo.errors import UserError

ADAPTER, ATTENTION = "user_adapter", "user"
"""Names of the adapter in its network, and of its part in each attention."""
Guidance = Literal["conditional", "both"]
"""Where the user is told under classifier-free guidance."""


@dataclass(frozen=True)
class TextAttention:
    """Where a family's network attends to the text."""

    modules: str
    """Names of those attentions, a regular expression."""
    keys: str = "to_k"
    """The attention's projection of the text, from which the user's keys start."""
    key_norm: str | None = "norm_k"
    """What normalises keys, where the attention has it."""
    through: str | None = None
    """A linear layer that the text passes before, by its name in the network: `{block}` is the attention's parent."""
    adds: Literal["before_output", "after_block"] = "before_output"
    """Where the user's part is added: before the attention's output projection, or to what its block returns."""
    halves: Literal["last", "first", "apart"] = "last"
    """Which rows of a pipeline's guided call are conditional; `apart`: each half is a call of its own."""
    ip_numbers: tuple[int, int] = (0, 1)
    """How a file numbers the attentions: the first one, and the step."""
    ip_biases: bool = False
    """Whether diffusers reads biases of keys and values, which are zeros."""


@dataclass
class Told:
    """What an adapter has been told of the user, for the call of the network that goes on."""

    states: Tensor | None = None
    """`[b n d]`; None: the adapter is off."""
    strength: float = 1.0
    tokens: Tensor | None = None
    """`[b k w]` what became of the states."""
    guidance: Guidance = "conditional"
    half: str = "cond"
    """Which of two calls of a guided pipeline this is, where they are apart: the pipeline's own word for it."""


class UserAttention(nn.Module):
    """The user's keys and values beside one attention to the text."""

    def __init__(self, attention: Any, keys: Tensor, norms: tuple[nn.Module | None, nn.Module | None], told: Told):
        """Start from the text's keys.

        Args:
            attention: Has `to_q`, `to_out` and `heads`.
            keys: `[inner w]` weight of the text's key projection.
            norms: What the attention applies to queries and keys.
            told: Shared by all of the network.
        """
        super().__init__()
        inner, width = keys.shape
        self.to_k, self.to_v = (nn.Linear(width, inner, bias=False, device=keys.device) for _ in range(2))
        with torch.no_grad():
            self.to_k.weight.copy_(keys)
            self.to_v.weight.zero_()
        self.heads, self.told, self._part = attention.heads, told, None
        self._norms = norms  # in a tuple, they stay the attention's
        attention.to_q.register_forward_hook(self._listen)

    def forward(self, query: Tensor) -> Tensor:
        """What `[b s inner]` queries find among the user's tokens, `[b s inner]`."""
        assert self.told.tokens is not None
        key, value = (layer(self.told.tokens).to(query.dtype) for layer in (self.to_k, self.to_v))
        query, key = (self._split(x, norm) for x, norm in zip((query, key), self._norms, strict=True))
        return scaled_dot_product_attention(query, key, self._split(value)).transpose(1, 2).flatten(2)

    def _split(self, x: Tensor, norm: Any = None) -> Tensor:
        """`[b s inner]` as `[b heads s d]`, normalised over all heads or in each, as the norm is wide."""
        heads = (self.heads, -1)
        if norm is None:
            return x.unflatten(-1, heads).transpose(1, 2)
        whole = norm.weight.shape[0] == x.shape[-1]
        normed = norm(x).unflatten(-1, heads) if whole else norm(x.unflatten(-1, heads))
        return normed.transpose(1, 2).to(x.dtype)

    def _listen(self, module: nn.Module, args: tuple[Any, ...], query: Tensor) -> None:
        self._part = None if self.told.tokens is None else self.told.strength * self(query)

    def add_to(self, x: Tensor) -> Tensor:
        """Add the user's part of the attention that goes on, once."""
        part, self._part = self._part, None
        return x if part is None else x + part

    def before_output(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Hook: add to what goes into the output projection."""
        return (self.add_to(args[0]), *args[1:])

    def after_block(self, module: nn.Module, args: tuple[Any, ...], output: tuple[Any, ...]) -> tuple[Any, ...]:
        """Hook: add to what the block returns last, the states of the image."""
        return (*output[:-1], self.add_to(output[-1]))


class UserAdapter(nn.Module):
    """Makes tokens of users' states, and tells them to the attentions of its network."""

    def __init__(self, network: Any, embedding: Embedding, tokens: int, width: int, place: TextAttention, told: Told):
        """Prepare for states of one kind.

        Args:
            network: What the adapter is for.
            embedding: What states are.
            tokens: Tokens that become of each state.
            width: Numbers in a token.
            place: Where the attentions are.
            told: Shared with them.
        """
        super().__init__()
        self.embedding, self.tokens, self.place, self.told = embedding, tokens, place, told
        self.proj = nn.Linear(embedding.width, tokens * width, bias=False)
        self.norm = nn.LayerNorm(width, bias=False)
        network.register_forward_pre_hook(self._prepare, with_kwargs=True)

    def forward(self, states: Tensor) -> Tensor:
        """Make `[b n d]` states `[b n*tokens w]` tokens; zeros stay zeros."""
        made = self.proj(states.to(self.proj.weight.dtype))
        return self.norm(made.unflatten(-1, (self.tokens, -1)).flatten(1, 2))

    def check(self, embedding: Embedding) -> None:
        """Refuse states that the adapter was not trained on; see `check_states`."""
        check_states(embedding, self.embedding)

    @contextmanager
    def speaking(
        self, states: Tensor | None, strength: float = 1.0, guidance: Guidance = "conditional"
    ) -> Iterator[None]:
        """Tell the network of users while it is called, in training as well as inside a pipeline.

        Args:
            states: `[b n d]`, a user for each row (in a pipeline: each image that it is asked for); None: nobody.
            strength: What the user's part is multiplied with; 0 is the base exactly.
            guidance: Where the user is told in a pipeline that guides: to the conditional half, or to both.
        """
        states = None if strength == 0 else states
        with self.again(Told(states, strength, guidance=guidance)):
            yield

    @contextmanager
    def again(self, told: Told) -> Iterator[None]:
        """Tell what was told before, for a while."""
        before = dict(vars(self.told))
        vars(self.told).update(vars(told))
        try:
            yield
        finally:
            vars(self.told).update(before)

    def _prepare(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the network is called: make the tokens of this call's rows."""
        if self.told.states is None:
            return
        rows = len(args[0] if args else next(x for x in kwargs.values() if isinstance(x, Tensor)))
        states = self._for_rows(self.told.states, rows)
        self.told.tokens = self(states.to(self.proj.weight.device))

    def _for_rows(self, states: Tensor, rows: int) -> Tensor:
        """The states of each row of a call: a guided pipeline asks for each image twice, or in two calls."""
        if self.told.half == "uncond" and self.told.guidance == "conditional":
            return torch.zeros_like(states)
        if rows == len(states):
            return states
        assert rows == 2 * len(states), f"states of {len(states)} users for {rows} rows"
        other = states if self.told.guidance == "both" else torch.zeros_like(states)
        return torch.cat([states, other] if self.place.halves == "first" else [other, states])


def check_states(given: Embedding, trained: Embedding) -> None:
    """Refuse states that an adapter was not trained on.

    Raises:
        UserError: They are of another embedder, or of another width.
    """
    if given != trained:
        raise UserError(
            f"these users' states are {given.width} numbers of {given.embedder}, but the adapter was trained on "
            f"{trained.width} numbers of {trained.embedder}: make them with that embedder (`diffpo data users --like "
            "FOLDER`, the folder of users that it was trained with)"
        )


def add_user_adapter(network: Any, place: TextAttention, embedding: Embedding, tokens: int) -> UserAdapter:
    """Add a fresh adapter to a network, in place; what it is made of has the dtype float32.

    Args:
        network: The bare one. A LoRA must be on it before.
        place: Where its family attends to the text.
        embedding: What states are.
        tokens: Tokens that become of each state.
    """
    told, width = Told(), 0
    found = {name: module for name, module in network.named_modules() if re.fullmatch(place.modules, name)}
    for name, attention in found.items():
        block = name.rpartition(".")[0]
        keys = attention.get_submodule(place.keys).weight.detach().float()
        if place.through is not None:
            keys = keys @ network.get_submodule(place.through.format(block=block)).weight.detach().float()
        key_norm = None if place.key_norm is None else getattr(attention, place.key_norm)
        part = UserAttention(attention, keys, (attention.norm_q, key_norm), told)
        if place.adds == "before_output":
            attention.to_out[0].register_forward_pre_hook(part.before_output)
        else:
            network.get_submodule(block).register_forward_hook(part.after_block)
        attention.add_module(ATTENTION, part)
        width = keys.shape[1]
    assert found, f"no attention of a {type(network).__name__} is called {place.modules}"
    if place.halves == "apart":
        _note_halves(network, told)
    adapter = UserAdapter(network, embedding, tokens, width, place, told)
    network.add_module(ADAPTER, adapter)
    return adapter


def _note_halves(network: Any, told: Told) -> None:
    """Listen to a pipeline that says, for caches, which half of a guided prediction its next call is."""
    say = network.cache_context

    @contextmanager
    def noted(name: str, **more: Any) -> Iterator[None]:
        before, told.half = told.half, name
        try:
            with say(name, **more):
                yield
        finally:
            told.half = before

    network.cache_context = noted


def user_adapter(network: nn.Module) -> UserAdapter | None:
    """The adapter of a bare network, if it has one."""
    return dict(network.named_children()).get(ADAPTER)  # pyright: ignore[reportReturnType]


def is_adapters(name: str) -> bool:
    """Whether a parameter of a network with an adapter is the adapter's, by its name."""
    return name.startswith(f"{ADAPTER}.") or f".{ATTENTION}.to_" in name


def user_attentions(network: nn.Module) -> dict[str, UserAttention]:
    """The adapter's parts in a network's attentions by their names, in the network's order."""
    return {name: module for name, module in network.named_modules() if isinstance(module, UserAttention)}


def still_told(network: nn.Module) -> AbstractContextManager[None]:
    """Tell a network's adapter later what it is told now: by then another call may have told it of other users."""
    adapter = user_adapter(network)
    return nullcontext() if adapter is None else adapter.again(Told(**vars(adapter.told)))
