"""The command `diffpo data encode`, which writes the encodings of a config's pairs in shards."""

from __future__ import annotations

from typing import Annotated

import typer

from diffpo.commands.pairs import FreshTable
from diffpo.commands.shared import Config, quiet, say


def encode_pairs(
    config: Config,
    out: Annotated[str, typer.Option(help="A folder, or an address of an object store such as s3://bucket/pairs.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Such as data.flip=true.", show_default=False)] = None,
    shard_rows: Annotated[
        int | None, typer.Option(help="Pairs in a shard; about 128 MiB of them unless given.", min=1)
    ] = None,
    fresh: FreshTable = False,
) -> None:
    """Encode a config's pairs into shards, for tables whose encodings no disk holds; it continues after a kill."""
    from diffpo.config.run import load_config

    loaded = load_config(config, overrides or [])
    quiet()
    from diffpo.generation.processes import make_state
    from diffpo.training.stream import write_stream

    index = write_stream(loaded, out, make_state(), shard_rows=shard_rows, fresh=fresh)
    split = index.splits["train"]
    pairs = sum(shard.rows for shard in split.shards)
    more = " ".join(["", *(overrides or [])])
    say(
        f"wrote {pairs:,} pairs in {len(split.shards):,} shards to {out}",
        f"diffpo train {config}{more} data.encoded={out}",
    )
