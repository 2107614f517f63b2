"""VideoReward (Liu et al., arXiv:2501.13918): a Qwen2-VL 2B that watches a clip and rates it in three aspects.

    score = sum over VQ, MQ, TA of (head(last state at <|.._reward|>) - mean) / spread

VQ is the quality of frames, MQ that of motion, TA the fit to the text; the prompt stands behind the marks of the
first two, which therefore do not see it. Means and spreads are those of model_config.json. The checkpoint holds the
whole network with its LoRA beside the weights; here the LoRA is added to them. About 2 frames per second are taken, 4
at least, in pairs, of 100,352 to 200,704 pixels. The authors' program resizes frames with torchvision and runs in
bfloat16; here PIL resizes them. Positions and rotary speeds are as in `hpsv3`, whose program comes from this one.

Checked on small random weights: the published ones were not at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffpo.core.block import Count
from diffpo.disk.weights import Weights
from diffpo.errors import UserError
from diffpo.media.frames import FPS
from diffpo.scorers.base import ClipScorer, WithNetwork, plain, versions
from diffpo.scorers.hpsv3 import conversation, empty_qwen2_vl, split_state
from diffpo.scorers.loading import Kind, check_kind, describe, load_part, load_state, read_state
from diffpo.scorers.parts import PROCESSOR_CONFIG, find_folder, pick_file, read_json

if TYPE_CHECKING:
    from torch import Tensor

    from diffpo.media.frames import Clip

HUB_MODEL, HUB_BASE = "KwaiVGI/VideoReward", "Qwen/Qwen2-VL-2B-Instruct"
FILE, CONFIG = "checkpoint-11352/model.pth", "model_config.json"
ASPECTS = ("VQ", "MQ", "TA")
MARKS = tuple(f"<|{aspect}_reward|>" for aspect in ASPECTS)
"""The tokens where ratings are read, once each in the instruction; they are added to Qwen2-VL's vocabulary."""
RATE, FEWEST = 2.0, 4
_PIXELS = {"shortest_edge": 128 * 28 * 28, "longest_edge": 256 * 28 * 28}
_WHAT = "a VideoReward"
_BASE = "Qwen2-VL's configuration, tokenizer and image processor"


@dataclass(frozen=True, kw_only=True)
class VideoReward(ClipScorer, WithNetwork):
    """VideoReward, from its published folder or one laid out alike."""

    name = "videoreward"
    origin = f"Hub {HUB_MODEL}, {FILE}; {HUB_BASE} without its weights"
    about = "A vision-language model trained to rate clips as people do: quality, motion and alignment together."
    scale = "sum of three ratings, each in standard deviations"
    reads_rate = True

    path: str = HUB_MODEL
    """Hub id or local folder with the checkpoint and model_config.json."""
    base: str = HUB_BASE
    """Where Qwen2-VL's configuration, tokenizer and image processor are; its weights are not needed."""
    instruction: str | None = None
    """A text file with what the network was trained to read, `{text_prompt}` and the three marks in it: the template
    `detailed_special` of the authors' prompt_template.py. It is not shipped here."""
    aspect: Literal["overall", "VQ", "MQ", "TA"] = "overall"
    """One of the three ratings, or their sum."""
    batch: Count = 1
    """Clips are judged one by one, since they differ in length: this changes nothing."""

    @cached_property
    def _folder(self) -> Weights:
        return find_folder(self.path, what=_WHAT, files=(FILE, CONFIG), probe=FILE)

    @cached_property
    def _weights(self) -> Weights:
        return Weights(pick_file(self._folder.path, [FILE], _WHAT), self._folder.known)

    @cached_property
    def _base(self) -> Weights:
        return find_folder(self.base, what=_BASE, probe=PROCESSOR_CONFIG)

    @cached_property
    def _config(self) -> dict[str, Any]:
        return read_json(self._folder.path / CONFIG)

    @cached_property
    def _text(self) -> str:
        if self.instruction is None:
            raise UserError(
                f"{self.name} needs what it was trained to read: instruction=FILE with the template `detailed_special` "
                "of prompt_template.py in the authors' repository (KwaiVGI/VideoAlign)."
            )
        try:
            text = Path(self.instruction).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"{self.instruction} cannot be read as a text: {error}.") from error
        if wrong := [mark for mark in ("{text_prompt}", *MARKS) if text.count(mark) != 1]:
            raise UserError(f"{self.instruction} should hold once each: {', '.join(wrong)}.")
        return text

    @property
    def _found(self) -> dict[str, Any]:
        return {
            "weights": self._weights.identity,
            "base": self._base.identity,
            "instruction": self._text,
            "norms": self._config.get("inference_config"),
            "aspect": self.aspect,
            "preprocessing": f"PIL, {RATE} frames per second, at most {_PIXELS['longest_edge']} pixels",
            "library": versions("transformers", "pillow"),
        }

    def _judge_clip(self, clip: Clip, prompt: str) -> float:
        norms, ratings = self._config.get("inference_config"), self.ratings(clip, prompt)
        if norms:
            ratings = {x: (value - norms[f"{x}_mean"]) / norms[f"{x}_std"] for x, value in ratings.items()}
        return sum(ratings.values()) if self.aspect == "overall" else ratings[self.aspect]

    def ratings(self, clip: Clip, prompt: str) -> dict[str, float]:
        """What the head says in each aspect, not normalised."""
        import torch

        network, head, tokenizer, processor = self._loaded
        frames = [clip.frames[i] for i in sampled(len(clip.frames), clip.fps or FPS)]
        try:
            seen = processor([plain(frame) for frame in frames], size=_PIXELS, return_tensors="pt")
        except ValueError as error:
            raise UserError(f"{self.name} cannot judge one of these clips: {error}.") from error
        pixels = paired(seen.pixel_values.view(len(frames), -1, seen.pixel_values.shape[-1]), processor.patch_size)
        grid = seen.image_grid_thw[:1] * torch.tensor([len(frames) // 2, 1, 1])
        room = int(grid.prod()) // processor.merge_size**2
        text = conversation(prompt, room, tokenizer, instruction=self._text, pad="<|video_pad|>")
        tokens = tokenizer(text, return_tensors="pt").input_ids.to(network.device)
        seen = network.visual(pixels.to(network.device, network.dtype), grid_thw=grid.to(network.device)).pooler_output
        embedded = network.get_input_embeddings()(tokens)
        place = (tokens == network.config.video_token_id)[..., None].expand_as(embedded)
        embedded = embedded.masked_scatter(place, seen.to(embedded.dtype))
        states = network.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state[0]
        at = [tokens[0].tolist().index(number) for number in tokenizer.convert_tokens_to_ids(list(MARKS))]
        return dict(zip(ASPECTS, head(states[at].float())[:, 0].tolist(), strict=True))

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Any, Any]:
        """The network in its dtype, the head in float32, the tokenizer and the image processor."""
        import torch
        from torch import nn

        folder, path = self._base.path, self._weights.path
        check_kind(folder, Kind("AutoModel", "qwen2_vl"), _BASE)
        tokenizer = load_part(folder, "AutoTokenizer", "Qwen2-VL's tokenizer")
        tokenizer.add_tokens(list(MARKS), special_tokens=True)
        state = read_state(path)
        if "rm_head.weight" not in (state := merged(state, self._config.get("peft_lora_config") or {})):
            raise UserError(f"{path} holds {describe(state)}, not a whole VideoReward (a Qwen2-VL with rm_head).")
        own, rating = split_state(state)
        how = {"path": path, "what": _WHAT, "dtype": None, "device": self.device}
        dtype = getattr(torch, self.dtype)
        network = load_state(
            empty_qwen2_vl(folder, len(tokenizer)), {name: x.to(dtype) for name, x in own.items()}, **how
        )
        head = nn.Linear(network.config.text_config.hidden_size, len(rating["weight"]), bias=False)
        head = load_state(head, {name: x.float() for name, x in rating.items()}, **how)
        return network, head, tokenizer, load_part(folder, "AutoImageProcessor", "Qwen2-VL's image processor")


def sampled(count: int, fps: float) -> list[int]:
    """Which of a clip's frames are looked at: an even number, about 2 a second, from the first to the last."""
    wanted = max(FEWEST, count / fps * RATE)
    wanted = max(2, min(2 * round(wanted / 2), count // 2 * 2))
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]


def paired(patches: Tensor, side: int) -> Tensor:
    """Bring frames together by twos: `[frames, n, d]`, each frame shown twice in d, to `[frames / 2 * n, d]`."""
    import torch

    once = patches.unflatten(-1, (-1, 2, side * side))[:, :, :, 0]  # a processor of images repeats the frame
    return torch.stack([once[::2], once[1::2]], dim=3).flatten(2).flatten(0, 1)


def merged(state: dict[str, Tensor], lora: dict[str, Any]) -> dict[str, Tensor]:
    """Add a LoRA to the weights that it stands beside, by peft's names; without one, these are as they are."""
    plain_names = {name.removeprefix("base_model.model."): value for name, value in state.items()}
    found = {}
    for name, value in plain_names.items():
        if ".lora_" in name or ".original_module." in name:
            continue
        layer, _, kind = name.rpartition(".")
        owner = layer.removesuffix(".base_layer").replace(".modules_to_save.default", "")
        down = plain_names.get(f"{owner}.lora_A.default.weight")
        if kind == "weight" and down is not None:
            rank = lora.get("lora_r", len(down))
            scale = lora.get("lora_alpha", rank) / (rank**0.5 if lora.get("use_rslora") else rank)
            up = plain_names[f"{owner}.lora_B.default.weight"]
            value = (value.float() + scale * up.float() @ down.float()).to(value.dtype)
        found[f"{owner}.{kind}"] = value
    return found
