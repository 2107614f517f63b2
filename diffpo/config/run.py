"""The configuration of a training run: `model`, `method`, `data`, `train`, `sample`."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from diffpo.config.blocks import Named
from diffpo.config.loading import Document
from diffpo.config.selecting import Select
from diffpo.core.block import Block, Count, Place, Positive, Range, SamplingSteps, Seed, Sharing, Whole
from diffpo.data import SOURCES
from diffpo.data.records import Source
from diffpo.errors import ConfigError
from diffpo.generation.settings import Sampler
from diffpo.methods import METHODS, Method
from diffpo.models.compiling import Compile
from diffpo.models.tuning import Tuning
from diffpo.models.tunings import MODELS


@dataclass(frozen=True, kw_only=True)
class Train(Block):
    """How the loop runs."""

    steps: Count
    """Updates of the optimizer."""
    output: Place | None = None
    """Run folder. Default: `runs/<name of the config file>`."""
    seed: Seed = 0
    """Seed of every draw: order, noise, times, dropout, the adapter's start."""
    batch: Count = 1
    """Pairs per forward, per process."""
    accumulate: Count = 1
    """Forwards per update, per process; pairs per update = batch x accumulate x processes."""
    learning_rate: Annotated[float, Range(least=0, most=10)] = 1e-5
    """What the optimizer uses: nothing multiplies it."""
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"] = (
        "constant_with_warmup"
    )
    """diffusers' learning-rate schedules."""
    warmup_steps: Whole = 0
    """Updates of linear warm-up."""
    optimizer: Literal["adamw", "adamw8bit", "adafactor"] = "adamw"
    """AdamW (fused), 8-bit AdamW (bitsandbytes, extra `bnb`), or Adafactor without its own schedule."""
    adam_beta1: Sharing = 0.9
    """Decay of the first moment."""
    adam_beta2: Sharing = 0.999
    """Decay of the second moment."""
    adam_epsilon: Annotated[float, Range(above=0, most=1)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Range(least=0, most=10)] = 0.01
    """Decoupled weight decay."""
    max_grad_norm: Positive | None = 1.0
    """Clip the gradient's norm to this; null leaves it."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Autocast of the forward; trained weights keep `dtype`."""
    tf32: bool | None = None
    """Let a GPU round the factors of products and convolutions in float32 to ten bits, as float16 has (TF32). Default:
    in half precision, for what autocast leaves in float32; never where everything is asked for in float32."""
    dtype: Literal["float32", "float64"] = "float32"
    """Dtype of trained weights and of the step's arithmetic."""
    ema: Sharing = 0.0
    """Decay of an average of the weights, which is then sampled and exported; 0 keeps none."""
    compile: Compile | None = None
    """Compile with torch.compile: the network's repeated blocks, each kind once (`regional`), or the network in one
    piece (`whole`: for more minutes of compiling). What cannot be compiled is named in the log."""
    channels_last: bool | None = None
    """Let images and weights lie in memory with their channels last, in a network of convolutions. Default: where its
    parts are fused."""
    fused: bool | None = None
    """Let kernels of ours do what stands between the products of a Stable Diffusion UNet, and let the LoRA of any
    network add to its layers' products: the same arithmetic in fewer passes over memory. Default: on a GPU (for a
    Stable Diffusion UNet with Triton), in half precision, where nothing is compiled."""
    split_forward: bool = False
    """One forward per side of the pairs, for models of which only one row fits."""
    checkpoint_every: Count = 100
    """Updates between checkpoints; the last update always makes one."""
    checkpoint_minutes: Positive | None = None
    """Minutes after which a checkpoint is written although `checkpoint_every` does not ask for one yet; null: never."""
    keep_last: Count = 2
    """Checkpoints to keep."""
    async_checkpoints: bool | None = None
    """Write checkpoints in the background while updates go on, from a copy in host memory. Default: on a GPU, which
    would wait for the disk; on a CPU writing takes the cores that train."""
    eval_every: Whole = 0
    """Updates between held-out losses (fixed times and noises); 0 makes none."""
    eval_pairs: Count = 64
    """Held-out pairs to judge, at most."""
    sample_every: Whole = 0
    """Updates between sample grids of `sample.prompts`; 0 makes none."""
    select: Select | None = None
    """Export the update whose images a scorer prefers, instead of the last one, and perhaps stop early; null: the last
    one."""
    log_every: Count = 1
    """Updates between lines of `metrics.jsonl`."""
    trackers: tuple[Literal["trackio", "wandb", "tensorboard"], ...] = ()
    """Where to send metrics besides `metrics.jsonl`."""
    project: Place = "diffpo"
    """Project name in the trackers."""

    def __post_init__(self) -> None:
        """Check the ranges, and that the warm-up ends."""
        super().__post_init__()
        if self.warmup_steps > self.steps:
            raise ConfigError(
                f"warmup_steps is {self.warmup_steps}, more than the {self.steps} steps of the run: the learning rate "
                "would never be reached"
            )


@dataclass(frozen=True, kw_only=True)
class Sample(Sampler):
    """What is drawn for the eye while training."""

    prompts: tuple[str, ...] | str = ()
    """Prompts, a file of prompts, or a named set such as `shapes:validation:4`."""
    seeds: tuple[Seed, ...] = (0,)
    """One image per prompt and seed, the same for base and tuned model."""
    steps: SamplingSteps = 30
    """Sampling steps."""

    def __post_init__(self) -> None:
        """Check the ranges, and that there is a seed."""
        super().__post_init__()
        if not self.seeds:
            raise ConfigError("seeds is empty; give one at least, such as [0]")


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
        if model.recomputed_share < 1 and not model.gradient_checkpointing:
            clashes.append(
                "model.recomputed_share: is the share that gradient checkpointing computes again; set "
                "model.gradient_checkpointing=true, or leave it out"
            )
        if train.fused and train.compile:
            clashes.append(f"train.fused: the kernels take the place of train.compile={train.compile}; set one of them")
        if train.sample_every and not self.sample.prompts:
            clashes.append("train.sample_every: nothing would be drawn; give sample.prompts, or sample_every=0")
        if train.eval_every and not any((data.validation_path, data.validation_split, data.validation_fraction)):
            clashes.append(
                "train.eval_every: there are no held-out pairs; give data.validation_path, validation_split or "
                "validation_fraction, or eval_every=0"
            )
        if method.cached_inversion is not None and not data.cache:
            clashes.append("method.inversion.cache: lies beside the encodings, so it needs data.cache=true")
        if data.encoded is not None:
            kept = {"method.inversion.cache": method.cached_inversion, "data.reference_draws": data.reference_draws}
            clashes += [
                f"{name}: lies beside the encodings of the cache; leave data.encoded out, or this"
                for name, value in (kept | {"data.users": data.users}).items()
                if value is not None
            ]
        if data.reference_draws is not None:
            if method.asks_reference_for is not None:
                clashes.append(
                    f"data.reference_draws: the reference's errors cannot be kept for {self.method_name}, because "
                    f"{method.asks_reference_for}. Without data.reference_draws it works"
                )
            if not data.cache:
                clashes.append("data.reference_draws: lie beside the encodings, so they need data.cache=true")
        if model.expert == "high" and getattr(method, "inversion", None) is not None:
            clashes.append(
                "method.inversion: walks through all noise levels up to a time, of which the expert for high noise "
                "knows the last ones only; set method.inversion=null, or model.expert=low"
            )
        if model.tells_users != (data.users is not None):
            clashes.append(
                "data.users: is missing, and model=user is told users: give a folder of `diffpo data users`"
                if model.tells_users
                else "data.users: only model=user is told users; choose it, or leave data.users out"
            )
        if train.select is not None and not model.changes_the_untold:
            clashes.append(
                "train.select: judges images that are made for nobody, and a user adapter alone leaves those as they "
                "are; leave train.select out, or give model.rank"
            )
        if "user_id" in method.requires and not model.tells_users:
            clashes.append(f"method={self.method_name}: tells the model its users, so it needs model=user")
        if method.needs_reference and getattr(model, "dropout", 0.0) > 0:
            clashes.append("model.dropout: must be 0 for a method with a reference, which would see another network")
        return clashes


load_config, build = Config.load, Config.build
