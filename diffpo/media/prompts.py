"""Prompt sets: a file, or a set known by name. Their hash is stored with every result.

What a set says of a prompt beside its text (category, style, GenEval's requirements) is kept with it and travels as
`prompts.jsonl` in the media folder, one line per prompt.

A named set is one line in `SETS`; benchmarks are one entry in `prompt_sets.yaml`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from diffpo.disk.files import hash_of, write_file
from diffpo.errors import UserError
from diffpo.media.prompt_files import READERS, PromptRecord, read_prompt_file
from diffpo.media.prompt_sets import BENCHMARKS, benchmark_records, did_you_mean, local_copy
from diffpo.worlds.assets import WORLDS

PROMPTS = "prompts.jsonl"
CATEGORY_COLUMNS = ("category", "Category", "style", "tag", "split")
"""Where a prompt's category is looked for, in this order: PartiPrompts, HPDv2, GenEval, Pick-a-Pic."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts in a fixed order, each once. A prompt that came twice would count twice in every interval."""

    name: str
    prompts: tuple[str, ...]
    details: tuple[Mapping[str, Any], ...] = ()
    """What the set says of each prompt beside its text; empty: nothing of any."""

    def __post_init__(self):
        """Check that details, if there are any, are one per prompt."""
        assert len(self.details) in (0, len(self.prompts))

    @staticmethod
    def of(prompts: Iterable[str | PromptRecord], name: str = "given") -> PromptSet:
        """Drop repeated prompts, keep the order and what the first of each says."""
        records = [PromptRecord(item, {}) if isinstance(item, str) else item for item in prompts]
        first: dict[str, Mapping[str, Any]] = {}
        for record in records:
            first.setdefault(record.prompt, record.detail)
        return PromptSet(name, tuple(first), tuple(first.values()) if any(first.values()) else ())

    @property
    def hash(self) -> str:
        """Identity of the prompts and their order; the name and the details do not matter."""
        return hash_of(json.dumps(self.prompts))

    @property
    def categories(self) -> tuple[str, ...]:
        """The category of each prompt, empty where the set names none."""
        return tuple(category_of(detail) for detail in self.details) or ("",) * len(self.prompts)

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.prompts)


def category_of(detail: Mapping[str, Any]) -> str:
    """The category in a prompt's details, empty if there is none."""
    return next((str(detail[name]) for name in CATEGORY_COLUMNS if detail.get(name)), "")


def write_prompts(folder: str | Path, prompts: PromptSet) -> None:
    """Write what the set says of each prompt into a media folder, atomically; nothing where it says nothing."""
    said = zip(prompts.prompts, prompts.details, strict=bool(prompts.details))
    lines = [{"prompt_id": number, "prompt": prompt, **detail} for number, (prompt, detail) in enumerate(said)]
    if lines:
        text = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
        write_file(Path(folder) / PROMPTS, text)


def read_prompts(folder: str | Path) -> dict[str, dict[str, Any]]:
    """What is known of the prompts of a media folder, by prompt; empty if nothing."""
    path = Path(folder) / PROMPTS
    records = read_prompt_file(path) if path.is_file() else []
    return {record.prompt: dict(record.detail) for record in records}


def load_prompts(spec: str | Path) -> PromptSet:
    """Load a prompt set.

    Args:
        spec: A file (`.txt` with one prompt a line; `.json`, `.jsonl`, `.csv`, `.tsv` or `.parquet` with a column
            `prompt`, `caption` or `text`, whose other columns are kept; a JSON list of strings), or a name:
            `shapes:heldout`, `shapes:heldout:200` (the first 200), `moving:heldout`, or a benchmark of `prompt_sets`:
            `partiprompts`, `hpdv2:anime`, `geneval:PATH`, `drawbench:50`.

    Raises:
        UserError: If there is no such file or set, it holds no prompt, or it is not here and cannot be fetched.
    """
    name = str(spec)
    family, _, rest = name.partition(":")
    is_file = Path(name).is_file() or (Path(name).suffix.lower() in READERS and family not in SETS)
    if is_file:
        records = read_prompt_file(Path(name).expanduser())
    elif family in SETS:
        records = SETS[family](rest)
    else:
        hint = did_you_mean(family, SETS, f"{{}}:{rest}" if rest else "{}")
        known = "; ".join(
            [*(f"{world}:..." for world in WORLDS), *BENCHMARKS, f"a file ending in {', '.join(READERS)}"]
        )
        raise UserError(f"unknown prompt set {name!r}.{hint} There are {known}.")
    records = [record for record in records if record.prompt.strip()]
    if not records:
        raise UserError(f"{name} holds no prompt.")
    if family in BENCHMARKS and local_copy(family, rest):
        name = family  # the place of a local copy says nothing to a reader of the results
    return PromptSet.of(records, Path(name).name if is_file else name)


def _captions(world: str, rest: str) -> Sequence[PromptRecord]:
    """`SPLIT` or `SPLIT:N` of an embedded world."""
    scenes = import_module(f"diffpo.worlds.{world}.scenes")
    split, _, count = rest.partition(":")
    if split not in scenes.SPLITS:
        there = ", ".join(f"{world}:{known}" for known in scenes.SPLITS)
        hint = did_you_mean(split, scenes.SPLITS, f"{world}:{{}}")
        raise UserError(f"unknown prompt set '{world}:{rest}'.{hint} There are {there}.")
    captions = scenes.split_captions(split)
    if count and (not count.isdecimal() or not 1 <= int(count) <= len(captions)):
        raise UserError(f"'{world}:{rest}': the count must be a number from 1 to {len(captions)}, got {count!r}.")
    chosen = scenes.sample_prompts(split, int(count)) if count else captions
    return [PromptRecord(caption, {}) for caption in chosen]


SETS: dict[str, Callable[[str], Sequence[PromptRecord]]] = {
    **{world: partial(_captions, world) for world in WORLDS},
    **{name: partial(benchmark_records, name) for name in BENCHMARKS},
}
"""A named set: a function from the part behind the colon to its prompts."""
