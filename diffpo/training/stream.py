"""Encoded pairs in shards: written for a config once, by any number of processes, and read by its runs.

It is for tables whose encodings no disk holds: nothing is kept but the shards, which may lie in an object store.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from diffpo.config.run import Config
from diffpo.data.records import Table
from diffpo.data.segments import SegmentLabels
from diffpo.data.sharding import Sharding, recipe_of
from diffpo.data.shards import Index
from diffpo.data.splits import check_requires, load_splits
from diffpo.data.storage import Storage
from diffpo.data.stream_plan import StreamSchedule
from diffpo.data.streamed import StreamLoader, check_columns, check_recipe
from diffpo.disk.lock import sole_writer
from diffpo.models.encoders import Encoders

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

TRAIN, VALIDATION = "train", "validation"


def write_stream(config: Config, address: str, state: PartialState, *, shard_rows: int | None = None) -> Index:
    """Encode a config's pairs into shards; after a kill, the same call goes on.

    Args:
        config: Whose table, model and settings.
        address: A folder, or one in an object store.
        state: Which process this is; they share the shards.
        shard_rows: Pairs in a shard; None: as many as take about 128 MiB.

    Raises:
        UserError: Whatever the user can mend; finished shards stay.
    """
    storage, splits = Storage(address), load_splits(config.data)
    tables = {TRAIN: splits.train} | ({} if splits.validation is None else {VALIDATION: splits.validation})
    encoders = Encoders(config.model, state.device)
    lock = nullcontext()
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
                labels=_labels(config, encoders, table) if config.method.reads_segments else None,
                shard_rows=shard_rows,
                shown=state.is_main_process,
            )
            written[split].write(rank=state.process_index, world=state.num_processes)
        state.wait_for_everyone()
        columns = tuple(splits.train.rows.column_names)
        found = {split: sharding.finish() for split, sharding in written.items()}
        index = Index(_recipe(config, encoders), columns, found)
        if state.is_main_process:
            index.write(storage)
        state.wait_for_everyone()
    return index


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
    check_recipe(index, _recipe(config, encoders), address)
    loaders = []
    for split in [TRAIN, VALIDATION] if train.eval_every and VALIDATION in index.splits else [TRAIN]:
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
