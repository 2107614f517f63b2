"""VisionReward-Video (Xu et al., arXiv:2412.21059): a CogVLM2-Video that answers a list of questions about a clip.

    score = mean over the questions of weight * (1 if the answer begins with "yes" else -1)

Some questions hold the prompt. One frame per second is seen, 24 at most. The authors' program scales frames as here and
runs in bfloat16. It reads the whole clip again for each question; here the clip is read once. DenseDPO
(arXiv:2506.03517) found that it preferred the still clip in 68 to 71 of 100 pairs: read it beside a measure of motion.

Checked on small random weights: the published ones were not at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpo.core.block import Count
from diffpo.disk.rows import digest
from diffpo.disk.weights import Weights
from diffpo.errors import UserError
from diffpo.media.frames import FPS
from diffpo.scorers.base import ClipScorer, WithNetwork, plain, versions
from diffpo.scorers.hpsv3 import without_marks
from diffpo.scorers.loading import describe, load_part, load_state, read_state
from diffpo.scorers.parts import find_model, read_json

if TYPE_CHECKING:
    from torch import Tensor

    from diffpo.media.frames import Clip

HUB_MODEL = "THUDM/VisionReward-Video"
QUESTIONS, WEIGHTS = "VisionReward_video_qa_select.txt", "weight.json"
PROMPT = "[[prompt]]"
MOST = 24
_WHAT = "a VisionReward-Video"
_TAKEN = ("vision_config", "num_multi_query_heads", "hidden_size", "intermediate_size")


@dataclass(frozen=True, kw_only=True)
class VisionReward(ClipScorer, WithNetwork):
    """VisionReward-Video, from its published folder or one laid out alike."""

    name = "visionreward"
    origin = f"Hub {HUB_MODEL}"
    about = (
        "A vision-language model that answers 29 questions about a clip: fit to the text, quality, stability, motion."
    )
    scale = "mean of weighted answers"
    reads_rate = True

    path: str = HUB_MODEL
    """Hub id or local folder of the model, with its tokenizer."""
    questions: str | None = None
    """The folder with VisionReward_video_qa_select.txt and weight.json: `VisionReward_Video` of the authors' repository
    (THUDM/VisionReward). It is not shipped here."""
    batch: Count = 1
    """Clips are judged one by one, since they differ in length: this changes nothing."""

    @cached_property
    def _weights(self) -> Weights:
        return find_model(self.path, what=_WHAT)

    @cached_property
    def _asked(self) -> list[tuple[str, float]]:
        """Questions, their ends of lines included, as the network was trained to read them, and their weights."""
        if self.questions is None:
            raise UserError(
                f"{self.name} needs its questions: questions=FOLDER with {QUESTIONS} and {WEIGHTS}, which is "
                "VisionReward_Video in the authors' repository (THUDM/VisionReward)."
            )
        folder = Path(self.questions).expanduser()
        try:
            lines = (folder / QUESTIONS).read_text(encoding="utf-8").splitlines(keepends=True)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / QUESTIONS} cannot be read as a text: {error}.") from error
        weights = read_numbers(folder / WEIGHTS)
        if len(lines) != len(weights):
            raise UserError(f"{folder} has {len(lines)} questions and {len(weights)} weights; give one for each.")
        return list(zip(lines, weights, strict=True))

    @property
    def _found(self) -> dict[str, Any]:
        return {
            "weights": self._weights.identity,
            "questions": f"{len(self._asked)}, blake2b:{digest(str(self._asked)).hex()}",
            "preprocessing": f"bilinear, short side, centre; one frame per second, at most {MOST}",
            "library": versions("transformers"),
        }

    def _judge_clip(self, clip: Clip, prompt: str) -> float:
        tokenizer, answers = self._loaded[2], self.logits(clip, prompt).argmax(dim=1).tolist()
        said = [tokenizer.decode([token]) == "yes" for token in answers]
        weights = [weight for _, weight in self._asked]
        return sum(weight if yes else -weight for yes, weight in zip(said, weights, strict=True)) / len(weights)

    def logits(self, clip: Clip, prompt: str) -> Tensor:
        """How likely each token is to begin the answer to each question, `[questions vocabulary]`."""
        import numpy as np
        import torch

        from diffpo.scorers.cogvlm2_video import as_pixels, read_clip

        network, tower, tokenizer, side = self._loaded
        frames = [np.asarray(plain(clip.frames[i])) for i in seconds_of(len(clip.frames), clip.fps or FPS)]
        seen = tower(as_pixels(torch.from_numpy(np.stack(frames)), side).to(network.device, network.dtype))
        embed, numbers = network.get_input_embeddings(), [self._tokens(str(i)) for i in range(len(frames))]
        told, places = read_clip(seen, numbers, tokenizer.bos_token_id, embed)
        kept = self._read(told, places, None).past_key_values
        found = []
        for question, _ in self._asked:
            text = question.replace(PROMPT, without_marks(prompt, tokenizer))
            tokens = self._tokens(f"Question: {text} Answer:")
            states = embed(torch.tensor([tokens], device=told.device))
            after = range(places[-1] + 1, places[-1] + 1 + len(tokens))
            found.append(self._read(states, [*after], kept).logits[0, -1].float())
            kept.crop(-len(tokens))
        return torch.stack(found)

    def _tokens(self, text: str) -> list[int]:
        return self._loaded[2].encode(text, add_special_tokens=False)

    def _read(self, states: Tensor, places: list[int], kept: Any) -> Any:
        """Read on behind what is `kept`; every token sees all that stands before it, though positions repeat."""
        import torch

        before = 0 if kept is None else kept.get_seq_length()
        return self._loaded[0](
            inputs_embeds=states,
            position_ids=torch.tensor([places], device=states.device),
            attention_mask=torch.ones(1, before + len(places), dtype=torch.long, device=states.device),
            past_key_values=kept,
            use_cache=True,
            logits_to_keep=1,
        )

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Any, int]:
        """The text part, the tower, the tokenizer, and the side of what the tower sees."""
        import torch

        from diffpo.scorers.cogvlm2_video import Tower, empty_text_part, split_state

        folder = self._weights.path
        config = read_json(folder / "config.json")
        if missing := [name for name in _TAKEN if name not in config]:
            raise UserError(f"{folder} is not {_WHAT}: its config.json has no {missing[0]}.")
        files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
        state = {name: value for file in files for name, value in read_state(file).items()}
        text, seen = split_state(state, config)
        if not text or not seen:
            raise UserError(f"{folder} holds {describe(state)}, not {_WHAT} (a CogVLM2-Video).")
        how = {"path": folder, "what": _WHAT, "dtype": self.dtype, "device": self.device}
        with torch.device("meta"):
            tower = Tower(config)
        tower, network = load_state(tower, seen, **how), load_state(empty_text_part(config), text, **how)
        return (
            network,
            tower,
            load_part(folder, "AutoTokenizer", "its tokenizer"),
            config["vision_config"]["image_size"],
        )


def seconds_of(count: int, fps: float) -> list[int]:
    """Which of a clip's frames are seen: of each second the nearest one, the last second rounded."""
    times = [i / fps for i in range(count)]
    wanted = range(round(times[-1]) + 1)[:MOST]
    return [min(range(count), key=lambda i, second=second: abs(times[i] - second)) for second in wanted]


def read_numbers(path: Path) -> list[float]:
    """Read a JSON list of numbers."""
    import json

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [float(number) for number in found]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no readable JSON list of numbers: {error}.") from error
