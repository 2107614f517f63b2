"""Numbers that are numbers: every field states its range, and nothing outside it gets to work."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import pytest
from runs import World

from diffpo.benchmarks.geneval.detectors import Mask2Former
from diffpo.benchmarks.sets.features import ClipFeatures, Inception
from diffpo.captioners import CAPTIONERS, PERTURBERS
from diffpo.config.blocks import Builder
from diffpo.config.evaluation import Comparing, Evaluation, JudgedModel
from diffpo.config.run import Sample, Train, build
from diffpo.core.block import Range, hints_of
from diffpo.core.inversion import Inversion
from diffpo.core.process import Time
from diffpo.curate.agreement import Counting
from diffpo.curate.labels import Labelling
from diffpo.curate.pairing import Pairing
from diffpo.curate.weights import WEIGHTINGS
from diffpo.data import SOURCES
from diffpo.errors import UserError
from diffpo.generation.settings import GenerateOptions
from diffpo.methods import METHODS
from diffpo.models.tunings import MODELS
from diffpo.scorers import SCORERS

TABLES = (MODELS, METHODS, SOURCES, SCORERS, CAPTIONERS, PERTURBERS, WEIGHTINGS)
BLOCKS = [
    *(cls for table in TABLES for cls in table.values()),
    *(Train, Sample, Evaluation, Comparing, JudgedModel, GenerateOptions, Time, Inversion),
    *(Counting, Labelling, Pairing, Mask2Former, ClipFeatures, Inception),
]
ODD = (math.nan, math.inf, -math.inf, -1, 0, 2**64, 1e308, 0.5)


def numbers(hint: Any, limit: Range | None = None) -> Iterator[tuple[type, Range | None]]:
    """Yield the numeric types inside a field's type, each with its range."""
    if get_origin(hint) is Annotated:
        limit = next((note for note in get_args(hint)[1:] if isinstance(note, Range)), limit)
        yield from numbers(get_args(hint)[0], limit)
    elif hint in (int, float):
        yield hint, limit
    else:
        for part in get_args(hint):
            yield from numbers(part)


def fields() -> list[Any]:
    found = []
    for cls in dict.fromkeys(BLOCKS):
        hints = hints_of(cls)
        for field in dataclasses.fields(cls):
            for kind, limit in numbers(hints[field.name]):
                found.append(pytest.param(cls, field.name, kind, limit, id=f"{cls.__name__}.{field.name}"))
    return found


def test_there_are_fields_to_check():
    assert len(fields()) > 100


@pytest.mark.parametrize(("cls", "name", "kind", "limit"), fields())
def test_every_number_states_its_range_and_keeps_it(cls, name, kind, limit):
    assert limit is not None, f"say beside {cls.__name__}.{name} which numbers it allows"
    for odd in ODD:
        builder = Builder()
        given = [odd, odd] if name in ("size", "quantiles") else odd
        value = builder.value(hints_of(cls)[name], given, f"block.{name}")
        if builder.mistakes:
            assert all(told.startswith(f"block.{name}") for told in builder.mistakes)
        else:
            values = value if isinstance(value, tuple) else (value,)
            assert all(math.isfinite(one) and limit.refuses(one) is None and type(one) is kind for one in values)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("ranges"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.learning_rate", math.inf),
        ("train.weight_decay", math.inf),
        ("train.max_grad_norm", math.nan),
        ("train.adam_beta1", 1.0),
        ("train.adam_beta2", -0.1),
        ("train.adam_epsilon", 0.0),
        ("train.seed", 2**64),
        ("train.warmup_steps", 4),
        ("model.alpha", math.inf),
        ("model.rank", 0),
        ("method.beta", math.nan),
        ("sample.guidance", math.inf),
        ("sample.steps", 2**64),
        ("data.resolution", 2**64),
    ],
)
def test_a_run_with_such_a_number_does_not_begin(world, key, value):
    with pytest.raises(UserError) as caught:
        build(world.tree("never", {key: value}))
    assert key.rpartition(".")[2] in str(caught.value)
    assert not (world.folder / "never").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"train.seed": 2**63 - 1, "sample.prompts": ["a"], "train.sample_every": 1, "sample.seeds": [2**63 - 1]},
        {"train.learning_rate": 0, "train.weight_decay": 0, "train.adam_beta1": 0, "train.adam_beta2": 0},
        {"train.learning_rate": 10, "train.weight_decay": 10, "train.adam_epsilon": 1, "train.max_grad_norm": 1e-300},
        {"model.rank": 4096, "model.alpha": 1e-30},
        {"method.beta": 1e-30, "method.sft_weight": 1e30},
        {"train.warmup_steps": 1, "train.keep_last": 2**31 - 1, "train.eval_pairs": 2**31 - 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_ends_of_the_ranges_work(world, changes, tmp_path):
    """A run at the ends of the ranges is trained, or stopped with a message of ours; it never breaks."""
    try:
        folder = world.train(tmp_path.name, {"train.steps": 1} | changes)
    except UserError as error:
        assert "loss" in str(error) or "finite" in str(error)
    else:
        assert (folder / "final").is_dir()
