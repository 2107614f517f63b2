"""The commands about users: what they chose becomes numbers that a model can be told; does it please them then?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffpo.commands.shared import Fresh, quiet, say
from diffpo.commands.tables import Columns, FreshTable, Limit, Split, Target, find_source

if TYPE_CHECKING:
    from diffpo.curate.embedding import Embedding


def embed_users(
    target: Target,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    embedder: Annotated[
        str | None,
        typer.Option(help="clip,path=MODEL; profile,path=MODEL (a vision-language model, as in PPD); column,of=MODEL."),
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="Or embed as another folder of users was: its embedder and directions.")
    ] = None,
    by_scorer: Annotated[
        list[str] | None, typer.Option(help="Synthetic users who prefer what a scorer gives more; a user each.")
    ] = None,
    mixture: Annotated[
        list[str] | None, typer.Option(help="With --by-scorer: another user, of several: pickscore:0.5,aesthetic:0.5.")
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
    from diffpo.curate.embedding import Workers
    from diffpo.curate.users import UserOptions
    from diffpo.curate.users import embed_users as run
    from diffpo.generation.processes import make_state

    given = {"pairs": pairs, "draws": draws, "support": support, "unseen": unseen, "directions": directions}
    options = make(UserOptions, given | {"seed": seed}, "users")
    embedding = open_embedding(like) if like is not None else make_embedding(str(embedder))
    if mixture and not by_scorer:
        raise UserError("--mixture goes with --by-scorer.")
    if by_scorer:
        target = _label(target, by_scorer, mixture or (), out, split, limit, columns, fresh=fresh)
        columns = None
    source = dataclasses.replace(find_source(target, split, unseen_split, limit, columns), ties="drop")
    state = make_state()
    workers = Workers(state.process_index, state.num_processes, state.wait_for_everyone)
    done = run(source, embedding, out, options, workers=workers, fresh=fresh)
    state.wait_for_everyone()
    config = "configs/users-ppd.yaml" if target.startswith("users:") else "configs/sd15-ppd.yaml"
    say(f"wrote {out}: {done}", f"diffpo train {config} data.path={out}/pairs data.users={out}")


def _label(
    target: str,
    scorers: Sequence[str],
    mixtures: Sequence[str],
    out: Path,
    split: str | None,
    limit: int | None,
    columns: str | None,
    *,
    fresh: bool,
) -> str:
    """Label a table by synthetic users; returns where the new one stands."""
    from diffpo.config.options import make_scorer
    from diffpo.curate.scorer_users import label_by_scorers
    from diffpo.generation.users import normalised, parse_blend

    made = [make_scorer(spec) for spec in scorers]
    shares = [normalised(parse_blend(text))[0] for text in mixtures]
    out = out if out.name else out.absolute()  # "." has no name
    folder = out.parent / f"{out.name}-labelled"
    names = label_by_scorers(
        find_source(target, split, limit=limit, columns=columns), made, shares, folder, fresh=fresh
    )
    print(f"wrote {folder}: pairs as {', '.join(names)} see them")
    return str(folder)


def personal(
    model: Annotated[str, typer.Argument(help="A diffusers folder, a Hub id, or shapes:base.", show_default=False)],
    tuned: Annotated[str, typer.Option(help="A run of diffpo train with a user adapter, or its final/.")],
    prompts: Annotated[str, typer.Option(help="A file of prompts, or a named set such as shapes:heldout.")],
    judge: Annotated[
        str, typer.Option(help="users-world, or chat,path=MODEL: a vision-language model that is shown choices.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    users: Annotated[Path | None, typer.Option(help="The folder of diffpo data users; the run's by default.")] = None,
    each: Annotated[int, typer.Option(help="Prompts of each user.", min=1)] = 12,
    most: Annotated[int, typer.Option(help="Users of each group, seen and unseen: the first ones.", min=2)] = 10,
    pairs: Annotated[
        str | None, typer.Option(help="The table of the users' own pairs, which a chat judge is shown.")
    ] = None,
    rival: Annotated[
        list[str] | None, typer.Option(help="Another model: NAME=RUN, such as plain DPO on everybody's pairs.")
    ] = None,
    strength: Annotated[float, typer.Option(help="What the user's part is multiplied with.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 50,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 7.5,
    batch: Annotated[int | None, typer.Option(help="Images at a time.")] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH in pixels; the model's own by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise, and of who the others are.", min=0)] = 0,
    fresh: Fresh = False,
) -> None:
    """Judge whether a model that is told its users pleases them: against the base, and told the wrong user."""
    from diffpo.captioners import JUDGES
    from diffpo.config.blocks import make
    from diffpo.config.options import from_spec, parse_size
    from diffpo.errors import UserError

    made = from_spec(judge, JUDGES, "judge")
    quiet()
    from diffpo.commands.personal import Personal, run_personal
    from diffpo.generation.settings import GenerateOptions
    from diffpo.media.prompts import load_prompts

    given = {"model": model, "steps": steps, "guidance": guidance, "batch": batch, "size": parse_size(size)}
    given |= {"seeds": (seed,)}
    rivals = {}
    for one in rival or ():
        name, sign, run = one.partition("=")
        if not (name and sign and run) or name in rivals or name in ("base", "own", "others"):
            raise UserError(f"--rival is {one!r}; write NAME=RUN, with a name of its own: dpo=runs/dpo.")
        rivals[name] = make(GenerateOptions, given | {"tuned": run}, "personal")
    options = make(GenerateOptions, given | {"tuned": tuned, "strength": strength}, "personal")
    asked = Personal(
        options=options,
        users=users or users_of(tuned),
        judge=made,
        prompts=load_prompts(prompts),
        each=each,
        most=most,
        pairs=None if pairs is None else find_source(pairs),
        rivals=rivals,
        seed=seed,
    )
    for line in told(run_personal(asked, out, fresh=fresh)):
        print(line)
    say(f"wrote {out}/report.html, {out}/personal.json", f"open {out}/report.html in a browser")


def told(found: Mapping[str, Any]) -> list[str]:
    """What a personal evaluation found, in lines."""
    lines = []
    for result in found["results"]:
        for group, rate in result["groups"].items():
            macro = rate["macro"]
            lines.append(
                f"{group} users, {result['first']} against {result['second']}: {macro['estimate']:.3f} "
                f"[{macro['ci_low']:.3f}, {macro['ci_high']:.3f}]"
            )
    return lines


def make_embedding(spec: str) -> Embedding:
    """Make an embedder of `name,key=value,...`."""
    from diffpo.captioners import EMBEDDERS
    from diffpo.config.options import from_spec
    from diffpo.curate.embedding import Embedding

    return Embedding(from_spec(spec, EMBEDDERS, "embedder"))


def open_embedding(folder: Path) -> Embedding:
    """Open what a folder of users was embedded with."""
    from diffpo.captioners import EMBEDDERS
    from diffpo.config.blocks import make
    from diffpo.curate.embedding import Embedding, read_embedder
    from diffpo.errors import UserError
    from diffpo.media.users import EMBEDDER

    said, directions = read_embedder(folder / EMBEDDER)
    if said["name"] not in EMBEDDERS:
        raise UserError(
            f"{folder} was embedded by {said['name']!r}, which this diffpo does not know; there are "
            f"{', '.join(EMBEDDERS)}."
        )
    return Embedding(make(EMBEDDERS[said["name"]], said["options"], "embedder"), directions)


def whom(
    tuned: str | None, user: str | None, blend: str | None, users: Path | None, user_pairs: str | None
) -> dict[str, Any]:
    """What `generate` is told of whom images are for: the folder that knows them, and their shares.

    People who are new are embedded first, in the way in which those of the folder were.
    """
    from diffpo.errors import UserError
    from diffpo.generation.users import normalised, parse_blend

    if (user is None) == (blend is None):
        raise UserError("say whom the images are for: either --user NAME or --blend NAME:SHARE,NAME:SHARE.")
    shares, changed = normalised({user: 1.0} if user is not None else parse_blend(str(blend)))
    if changed:
        print("the shares do not sum to one; they count as", ", ".join(f"{n}:{s:.3g}" for n, s in shares.items()))
    if user_pairs is not None:
        folder = _embed_new(user_pairs, users or _embedder_of(tuned), list(shares))
    else:
        folder = users or users_of(tuned)
    return {"users": str(folder), "blend": shares}


def users_of(tuned: str | None) -> Path:
    """The folder of users that a run was trained with."""
    from diffpo.errors import UserError

    if (folder := _known_users(tuned)) is not None:
        return folder
    raise UserError(
        "the folder of users that the model was trained with is not known, or not where it was: give it as --users."
    )


def _known_users(tuned: str | None) -> Path | None:
    """That folder, where the run says which it is and it is still there."""
    from diffpo.disk.plain import read_file

    for run in () if tuned is None else (Path(tuned).expanduser(), Path(tuned).expanduser().parent):
        if (run / "config.yaml").is_file():
            said = read_file(run / "config.yaml")
            place = said.get("data", {}).get("users") if isinstance(said, dict) else None
            if place is not None and Path(place).expanduser().is_dir():
                return Path(place).expanduser()
    return None


def _embedder_of(tuned: str | None) -> Path:
    """The folder that says how the people of a run were embedded: that of its users, or the export."""
    from diffpo.media.users import EMBEDDER

    known = _known_users(tuned)
    exported = () if tuned is None else (Path(tuned).expanduser() / "final", Path(tuned).expanduser())
    return known or next((folder for folder in exported if (folder / EMBEDDER).is_file()), None) or users_of(tuned)


def _embed_new(table: str, like: Path, names: list[str]) -> Path:
    """Embed people by all of their pairs in a table; a table without `user_id` is that of the one who is asked for."""
    quiet()
    from diffpo.curate.users import embed_new

    return embed_new(find_source(table), open_embedding(like), names)
