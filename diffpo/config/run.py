"""The configuration of a training run: `model`, `method`, `data`, `train`, `sample`.

Precedence: the code's defaults < YAML < overrides. All mistakes of all blocks are reported at once, each with its key
and close matches, before anything heavy loads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from diffpo.config import blocks
from diffpo.config.blocks import Named, to_plain
from diffpo.config.overrides import override
from diffpo.config.reading import read_tree
from diffpo.config.settings import Sample, Train
from diffpo.core.block import Block
from diffpo.data import SOURCES
from diffpo.data.records import Source
from diffpo.methods import METHODS, Method
from diffpo.models.tuning import MODELS, Tuning


@dataclass(frozen=True, kw_only=True)
class Config(Block):
    """One run."""

    model: Annotated[Tuning, Named(MODELS, "model", keeps=True)]
    """The base model, and how it is tuned."""
    method: Annotated[Method, Named(METHODS, "method")]
    """What is learned from the pairs."""
    data: Annotated[Source, Named(SOURCES, "source", keeps=True)]
    """The pairs."""
    train: Train
    """How the loop runs."""
    sample: Sample = field(default_factory=Sample)
    """What is drawn for the eye while training."""

    @property
    def method_name(self) -> str:
        """The method's name in `METHODS`."""
        return next(name for name, cls in METHODS.items() if cls is type(self.method))

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved tree, blocks with their names, as YAML would hold it."""
        return to_plain(self)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `a.b=c` overrides, and validate all of it.

    Args:
        path: A YAML file, or the name of a packaged one, such as `configs/shapes-dpo.yaml`.
        overrides: Such as `method.beta=2000` (a field), `method=sft` (another block), `data.cache=false`.

    Raises:
        ConfigError: The file is missing, or values are wrong; the message lists every mistake.
    """
    file, tree = read_tree(path, "model, method, data, train")
    override(tree, overrides, Config)
    train = tree.setdefault("train", {})
    if isinstance(train, dict) and train.get("output") is None:
        train["output"] = f"runs/{file.stem}"
    return build(tree, str(path))


def build(tree: Mapping[str, Any], origin: str = "the configuration") -> Config:
    """Validate a tree of plain values.

    Raises:
        ConfigError: Lists every mistake of every block.
    """
    return blocks.build(Config, tree, origin, _clashes)


def _clashes(config: Config) -> list[str]:
    """Find values that are right alone and wrong together."""
    model, method, data, train = config.model, config.method, config.data, config.train
    half = {"fp16": "float16", "bf16": "bfloat16"}.get(train.mixed_precision)
    clashes = []
    if model.dtype in ("float16", "bfloat16") and model.dtype != half:
        clashes.append(
            f"model.dtype: {model.dtype} weights beside {train.dtype} ones need the same train.mixed_precision"
            f" ({'fp16' if model.dtype == 'float16' else 'bf16'}; it is {train.mixed_precision})"
        )
    if train.dtype == "float64" and (half or model.dtype not in (None, "float64")):
        clashes.append("train.dtype: float64 goes with mixed_precision=no and model.dtype left out")
    if train.sample_every and not config.sample.prompts:
        clashes.append("train.sample_every: nothing would be drawn; give sample.prompts, or sample_every=0")
    if train.eval_every and not any((data.validation_path, data.validation_split, data.validation_fraction)):
        clashes.append(
            "train.eval_every: there are no held-out pairs; give data.validation_path, validation_split or "
            "validation_fraction, or eval_every=0"
        )
    if method.cached_inversion is not None and not data.cache:
        clashes.append("method.inversion.cache: lies beside the encodings, so it needs data.cache=true")
    if method.needs_reference and getattr(model, "dropout", 0.0) > 0:
        clashes.append("model.dropout: must be 0 for a method with a reference, which would see another network")
    return clashes
