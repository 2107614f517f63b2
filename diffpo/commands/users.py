"""The command `diffpo data users`: what people chose becomes numbers that a model can be told."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffpo.commands.pairs import Columns, FreshTable, Limit, Split, Target, find_source
from diffpo.commands.shared import quiet, say

if TYPE_CHECKING:
    from diffpo.curate.users import Embedding


def embed_users(
    target: Target,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    embedder: Annotated[
        str | None,
        typer.Option(help="clip,path=MODEL; profile,path=MODEL (a vision-language model, as in PPD); column,name=emb."),
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="Or embed as another folder of users was: its embedder and directions.")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Support pairs of a draw.", min=1)] = 4,
    draws: Annotated[int, typer.Option(help="Draws of each person.", min=1)] = 1,
    support: Annotated[
        int | None, typer.Option(help="Pairs of each person that draws are made of; pairs x draws by default.", min=1)
    ] = None,
    unseen: Annotated[float, typer.Option(help="Share of the people whom no training row is of.")] = 0.0,
    unseen_split: Annotated[str | None, typer.Option(help="Or the split whose people are not seen.")] = None,
    directions: Annotated[
        int, typer.Option(help="Keep so many directions, those in which the seen people differ; 0: all.", min=0)
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the choice of support pairs.", min=0)] = 0,
    split: Split = None,
    limit: Limit = None,
    columns: Columns = None,
    fresh: FreshTable = False,
) -> None:
    """Embed people by a few of their pairs (PPD); the same command continues after a kill."""
    from diffpo.config.blocks import make
    from diffpo.errors import UserError

    if (embedder is None) == (like is None):
        raise UserError("say what embeds people: either --embedder SPEC or --like FOLDER.")
    if like is not None and directions:
        raise UserError(f"--directions are found anew, and --like takes those of {like}: leave one of both out.")
    quiet()
    from diffpo.curate.users import UserOptions, Workers
    from diffpo.curate.users import embed_users as run
    from diffpo.generation.processes import make_state

    given = {"pairs": pairs, "draws": draws, "support": support, "unseen": unseen, "directions": directions}
    options = make(UserOptions, given | {"seed": seed}, "users")
    embedding = open_embedding(like) if like is not None else make_embedding(str(embedder))
    source = dataclasses.replace(find_source(target, split, unseen_split, limit, columns), ties="drop")
    state = make_state()
    workers = Workers(state.process_index, state.num_processes, state.wait_for_everyone)
    done = run(source, embedding, out, options, workers=workers, fresh=fresh)
    state.wait_for_everyone()
    config = "configs/users-ppd.yaml" if target.startswith("users:") else "configs/sd15-ppd.yaml"
    say(f"wrote {out}: {done}", f"diffpo train {config} data.path={out}/pairs data.users={out}")


def make_embedding(spec: str) -> Embedding:
    """Make an embedder of `name,key=value,...`."""
    from diffpo.captioners import EMBEDDERS
    from diffpo.config.options import from_spec
    from diffpo.curate.users import Embedding

    return Embedding(from_spec(spec, EMBEDDERS, "embedder"))


def open_embedding(folder: Path) -> Embedding:
    """Open what a folder of users was embedded with."""
    from diffpo.captioners import EMBEDDERS
    from diffpo.config.blocks import make
    from diffpo.curate.users import EMBEDDER, Embedding, read_embedder
    from diffpo.errors import UserError

    said, directions = read_embedder(folder / EMBEDDER)
    if said["name"] not in EMBEDDERS:
        raise UserError(
            f"{folder} was embedded by {said['name']!r}, which this diffpo does not know; there are "
            f"{', '.join(EMBEDDERS)}."
        )
    return Embedding(make(EMBEDDERS[said["name"]], said["options"], "embedder"), directions)
