"""What `diffpo evaluate` is told: models, prompts, scorers. Read and checked as training configurations are.

    models:
      base: owner/model                     a pipeline: folder, Hub id or shapes:base
      mine: {path: owner/model, tuned: runs/mine}
      dpo: {train: configs/sd15-dpo.yaml}   the run of that configuration, trained first if it is not there
    prompts: partiprompts
    scorers: [hpsv2.1, {name: pickscore, scale: percent}]

Only `models`, `prompts` and `scorers` have to be there.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from diffpo.compare.compare import Judging
from diffpo.compare.pairing import Mode
from diffpo.compare.stats import Resampling
from diffpo.config.blocks import Named, Short
from diffpo.config.loading import Document
from diffpo.config.names import close_match
from diffpo.core.block import Block, Count, Place, Range, Seed
from diffpo.errors import UserError
from diffpo.generation.settings import GenerateOptions, Sampling
from diffpo.scorers import SCORERS, Scorer

LABEL = re.compile(r"[\w.+-]+")
SHORT = "a model is a pipeline (folder or Hub id), or a block of keys"


@dataclass(frozen=True, kw_only=True)
class JudgedModel(Block):
    """One model: a pipeline and what was tuned of it, or the run of a training configuration."""

    path: Place | None = None
    """Folder of a diffusers pipeline, Hub id, or `shapes:base`; with `train` it is the configuration's."""
    lora: Place | None = None
    """LoRA on top: folder, file or Hub id."""
    denoiser: Place | None = None
    """Fully tuned UNet or transformer in place of the pipeline's: folder or Hub id."""
    tuned: Place | None = None
    """Run folder of `diffpo train`, or its `final/`."""
    train: Place | None = None
    """A configuration of `diffpo train`. Its run is judged; where that is not finished, it is trained first."""
    overrides: tuple[str, ...] = ()
    """Of that configuration, as on the command line: `method.beta=2000`."""

    def __post_init__(self) -> None:
        """Check that it is clear which model is meant."""
        super().__post_init__()
        if (self.path is None) == (self.train is None):
            raise ValueError(
                "say either path (a pipeline) or train (a training configuration); "
                + ("both are given" if self.path else "neither is given")
            )
        if self.train and (self.lora or self.denoiser or self.tuned):
            raise ValueError("lora, denoiser and tuned go with path; the run of a training configuration is known")
        if self.overrides and not self.train:
            raise ValueError("overrides are of a training configuration: they need train")


@dataclass(frozen=True, kw_only=True)
class Comparing(Block):
    """How models are compared; see `diffpo compare`."""

    mode: Mode = "same-seed"
    """Which images meet."""
    chosen_by: str | None = None
    """Scorer that chooses the median or the best image."""
    used_in_training: tuple[str, ...] = ()
    """Scorers that had a hand in training or selection, beside those that runs tell."""
    level: Annotated[float, Range(above=0, below=1)] = 0.95
    """Of the intervals."""
    resamples: Count = 10_000
    """Of the bootstrap and the permutation test."""

    def __post_init__(self) -> None:
        """Check that the values go together."""
        super().__post_init__()
        _ = self.judging

    @property
    def judging(self) -> Judging:
        """What `compare` is told."""
        return Judging(
            mode=self.mode,
            chosen_by=self.chosen_by,
            used_in_training=self.used_in_training,
            resampling=Resampling(level=self.level, resamples=self.resamples),
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation(Document):
    """All that an evaluation is told."""

    models: Mapping[str, Annotated[JudgedModel, Short("path", SHORT)]]
    """By label, the baseline first unless `baseline` names it."""
    prompts: Place
    """A file of prompts, or a named set such as `partiprompts` or `shapes:heldout:100`."""
    scorers: tuple[Annotated[Scorer, Named(SCORERS, "scorer")], ...]
    """Each a block `{name: pickscore, scale: cosine}`, or as for `--scorer`: `pickscore,scale=cosine`. The first one
    makes the headline."""
    seeds: tuple[Seed, ...] = (0,)
    """One image per prompt and seed."""
    sampling: Sampling = field(default_factory=Sampling)
    """How images are made."""
    compare: Comparing = field(default_factory=Comparing)
    """How models are compared."""
    baseline: str | None = None
    """Label of the model that the others are compared with; the first by default."""
    title: str | None = None
    """Heading of the report."""
    output: Place
    """Folder of all that is written. Default: `runs/<name of the config file>`."""

    def options(self, path: str, **tuned: str | None) -> GenerateOptions:
        """What `generate` is told of one model: its pipeline, and what was tuned (`lora`, `denoiser`, `tuned`)."""
        return GenerateOptions(model=path, seeds=self.seeds, **tuned, **dataclasses.asdict(self.sampling))

    def clashes(self) -> list[str]:
        labels, names = list(self.models), [scorer.name for scorer in self.scorers]
        clashes = [
            f"models.{label}: a label names a folder: letters, digits and ._+- only"
            for label in labels
            if not LABEL.fullmatch(label)
        ]
        if len(labels) < 2:
            clashes.append(f"models: a comparison needs two models at least, got {', '.join(labels) or 'none'}")
        if not names:
            clashes.append("scorers: give a list of scorers, such as [hpsv2.1, 'pickscore,scale=percent']")
        repeated = sorted({name for name in names if names.count(name) > 1})
        clashes += [f"scorers: {name} stands there twice; each can be asked once" for name in repeated]
        if self.baseline is not None and self.baseline not in labels:
            hint = close_match(self.baseline, labels)
            clashes.append(f"baseline: there is no model {self.baseline}.{hint} There are {', '.join(labels)}")
        try:
            self.options("any")
        except UserError as error:
            clashes.append(f"sampling: {error}")
        chosen_by = self.compare.chosen_by
        if chosen_by is not None and chosen_by not in names:
            clashes.append(f"compare.chosen_by: {chosen_by} is not among the scorers {', '.join(names)}")
        return clashes


load_evaluation = Evaluation.load
