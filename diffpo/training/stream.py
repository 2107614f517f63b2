"""Encoded pairs in shards: written for a config once, by any number of processes, and read by its runs.

It is for tables whose encodings no disk holds: nothing is kept but the shards, which may lie in an object store.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from diffpo.config.run import Config
from diffpo.data.records import Table
from diffpo.data.segments import SegmentLabels
from diffpo.data.sharding import Sharding, recipe_of, table_of
from diffpo.data.shards import INDEX, Index
from diffpo.data.splits import check_requires, load_splits
from diffpo.data.storage import Storage
from diffpo.data.stream_plan import StreamSchedule
from diffpo.data.streamed import StreamLoader, check_columns, check_recipe
from diffpo.disk.lock import sole_writer
from diffpo.errors import UserError
from diffpo.models.encoders import Encoders

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

TRAIN, VALIDATION = "train", "validation"


def write_stream(
    config: Config, address: str, state: PartialState, *, shard_rows: int | None = None, fresh: bool = False
) -> Index:
    """Encode a config's pairs into shards; after a kill, the same call goes on.

    Args:
        config: Whose table, model and settings.
        address: A folder, or one in an object store.
        state: Which process this is; they share the shards.
        shard_rows: Pairs in a shard; None: as many as take about 128 MiB.
        fresh: Whether shards of another table, or that were made with other settings, may be replaced.

    Raises:
        UserError: Whatever the user can mend; finished shards stay.
    """
    storage, splits = Storage(address), load_splits(config.data)
    tables = {TRAIN: splits.train} | ({} if splits.validation is None else {VALIDATION: splits.validation})
    encoders = Encoders(config.model, state.device)
    recipe, lock = _recipe(config, encoders), nullcontext()
    if storage.folder is not None and state.is_main_process:
        lock = sole_writer(storage.folder, "diffpo data encode")
    with lock:
        written = {}
        for split, table in tables.items():
            check_requires(config.method.columns, table, config.method_name)
            written[split] = Sharding(
                table,
                config.data,
                encoders,
                storage,
                split,
                config.train.seed,
                recipe,
                labels=_labels(config, encoders, table) if config.method.reads_segments else None,
                shard_rows=shard_rows,
                shown=state.is_main_process,
            )
        made = {"recipe": recipe, "table": table_of(config.data)}
        take_place(storage, made, list(written.values()), state, fresh=fresh)
        for sharding in written.values():
            sharding.write(rank=state.process_index, world=state.num_processes)
        state.wait_for_everyone()
        columns = tuple(splits.train.rows.column_names)
        found = {split: sharding.finish() for split, sharding in written.items()}
        index = Index(recipe, columns, found, made["table"])
        if state.is_main_process:
            index.write(storage)
        state.wait_for_everyone()
    return index


def take_place(
    storage: Storage, made: dict[str, Any], shardings: list[Sharding], state: PartialState, *, fresh: bool
) -> None:
    """Check, before anything is written, that nothing of others is at the place; with `fresh`, remove other shards.

    The index goes first: nobody may read shards that others replace by and by. `made` is what it will say of recipe and
    table.

    Raises:
        UserError: There is something else.
    """
    index = storage.read_json(INDEX)
    if index is not None and not (isinstance(index, dict) and {"format", "recipe"} <= index.keys()):
        raise UserError(f"{storage.address} holds an {INDEX} that names no encoded pairs: choose another place.")
    if not fresh:
        plain = json.loads(json.dumps(made))  # as the index holds it
        if index is not None and any(index.get(name, value) != value for name, value in plain.items()):
            raise UserError(
                f"{storage.address} holds other encodings ({INDEX} says of what, and how they were made): choose "
                "another place, or give --fresh to replace them."
            )
        for sharding in shardings:
            sharding.check_place()
    state.wait_for_everyone()
    if fresh and state.is_main_process:
        storage.remove(INDEX)
        for sharding in shardings:
            sharding.clear()
    state.wait_for_everyone()


def open_stream(
    config: Config, accelerator: Accelerator, encoders: Encoders
) -> tuple[StreamSchedule, list[StreamLoader]]:
    """Open the shards of `data.encoded`: the plan of the run, and the loaders of the splits that it reads.

    Raises:
        UserError: They are not there, or were made with other settings, or lack what the method needs.
    """
    address, method, train = str(config.data.encoded), config.method, config.train
    storage = Storage(address)
    index = Index.read(storage)
    check_recipe(index, _recipe(config, encoders), table_of(config.data), address)
    loaders, splits = [], [TRAIN, VALIDATION] if train.eval_every else [TRAIN]
    if missing := [split for split in splits if split not in index.splits]:
        raise UserError(
            f"{address} holds no {missing[0]} pairs. Encode them, with data.validation_path, validation_split or "
            "validation_fraction in the config, to another place; or set train.eval_every=0"
        )
    for split in splits:
        check_columns(index, split, method.columns, address, refuses_opposite=method.needs_order)
        dropout = config.data.caption_dropout if split == TRAIN else 0.0
        how: dict[str, Any] = {"seed": train.seed, "caption_dropout": dropout, "sides": method.sides}
        how |= {"reads_segments": method.reads_segments, "rank": accelerator.process_index}
        loaders.append(StreamLoader(storage, index, split, config.data, **how))
    return loaders[0].schedule(accelerator.num_processes, train.accumulate, train.batch), loaders


def _labels(config: Config, encoders: Encoders, table: Table) -> Any:
    held, rule = encoders.latent_frames, encoders.rule
    return lambda frames, fps: SegmentLabels(table, frames, config.data, rule, held, fps)


def _recipe(config: Config, encoders: Encoders) -> dict[str, Any]:
    """What decides the encodings, and the labels of latent frames where the method reads any."""
    recipe, data = recipe_of(config.data, encoders, config.train.seed), config.data
    if config.method.reads_segments:
        recipe["segments"] = [data.segment_seconds, data.segment_rule, data.unequal]
    return recipe
