"""The configuration of a training run: `model`, `method`, `data`, `train`, `sample`."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from diffpo.config.blocks import Named
from diffpo.config.loading import Document
from diffpo.config.settings import Sample, Train
from diffpo.data import SOURCES
from diffpo.data.records import Source
from diffpo.methods import METHODS, Method
from diffpo.models.tuning import MODELS, Tuning


@dataclass(frozen=True, kw_only=True)
class Config(Document):
    """One run."""

    output_in: ClassVar[str | None] = "train"

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

    def clashes(self) -> list[str]:
        model, method, data, train = self.model, self.method, self.data, self.train
        half = {"fp16": "float16", "bf16": "bfloat16"}.get(train.mixed_precision)
        clashes = []
        if model.dtype in ("float16", "bfloat16") and model.dtype != half:
            clashes.append(
                f"model.dtype: {model.dtype} weights beside {train.dtype} ones need the same train.mixed_precision"
                f" ({'fp16' if model.dtype == 'float16' else 'bf16'}; it is {train.mixed_precision})"
            )
        if train.dtype == "float64" and (half or model.dtype not in (None, "float64")):
            clashes.append("train.dtype: float64 goes with mixed_precision=no and model.dtype left out")
        if train.sample_every and not self.sample.prompts:
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


load_config, build = Config.load, Config.build
