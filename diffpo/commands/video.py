"""The commands `diffpo data ...` that make pairs of clips, and label their segments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffpo.commands.shared import Fresh, quiet, say
from diffpo.commands.tables import (
    Columns,
    FreshTable,
    Limit,
    Out,
    Split,
    Target,
    ValidationSplit,
    find_source,
    say_table,
)


def video_pairs(
    model: Annotated[str, typer.Argument(help="A diffusers folder, a Hub id, or moving:base.", show_default=False)],
    clips: Annotated[
        Path,
        typer.Argument(help="Real clips with captions: a folder, or a table of paths and prompts.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="The folder of the clips and their table.")],
    eta: Annotated[
        str, typer.Option(help="Noise level that both clips of a pair begin at: LOW..HIGH, or 1 for independent ones.")
    ] = "0.65..0.8",
    seeds: Annotated[str, typer.Option(help="The seeds of the two clips.")] = "0,1",
    sampling: Annotated[
        str | None,
        typer.Option(help="How to sample: steps=40,guidance=8,frames=81,size=[480, 832], or a YAML file of such keys."),
    ] = None,
    tuned: Annotated[str | None, typer.Option(help="A run of diffpo train, or its final/.")] = None,
    fresh: Fresh = False,
) -> None:
    """Make two clips of each real clip, from one noise level by two seeds; the same command continues after a kill."""
    from diffpo.config.blocks import make
    from diffpo.config.options import parse_range, parse_seeds, read_block

    quiet()
    from diffpo.curate.video_pairs import ADDED, TABLE, write_video_pairs
    from diffpo.generation.processes import make_state
    from diffpo.generation.video_pairs import VideoPairOptions, make_video_pairs

    given = {"model": model, "tuned": tuned, "seeds": parse_seeds(seeds), "eta": parse_range(eta, "eta")}
    options = make(VideoPairOptions, given | read_block(sampling, given, VideoPairOptions, "sampling"), "video-pairs")
    done = make_video_pairs(options, clips, out, added=ADDED, fresh=fresh)
    if make_state().is_main_process:
        recipe = {"settings": done.work.settings, "left out": done.left_out}
        write_video_pairs(out, [pair.row for pair in done.pairs], recipe)
    left = f"; {len(done.left_out)} real clips are left out" if done.left_out else ""
    say(
        f"wrote {len(done.pairs)} pairs to {out}/{TABLE} ({done.work.reused} clips were there){left}",
        f"diffpo data segments {out} --labeller chat,path=MODEL --out {out}-labelled",
    )


def label_segments(
    target: Target,
    out: Out,
    labeller: Annotated[
        str | None,
        typer.Option(
            help="A vision-language model: chat,path=MODEL, or endpoint,url=http://localhost:8000/v1,model=NAME."
        ),
    ] = None,
    scorer: Annotated[
        str | None, typer.Option("--scorer", "-s", help="Or a scorer: the clip whose frames score higher is better.")
    ] = None,
    margin: Annotated[float, typer.Option(help="With --scorer: scores that differ by no more are a tie.")] = 0.0,
    labels: Annotated[
        Path | None, typer.Option(help="Or labels by hand: JSONL or CSV with chosen, rejected (or pair), segments.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Length of a segment.")] = 1.0,
    unequal: Annotated[str, typer.Option(help="Clips that last unequally long: refuse, drop or trim.")] = "refuse",
    split: Split = None,
    validation_split: ValidationSplit = None,
    limit: Limit = None,
    columns: Columns = None,
    fresh: FreshTable = False,
) -> None:
    """Label each segment of pairs of clips; what was answered is written beside the table, and may be corrected."""
    import dataclasses

    from diffpo.captioners import LABELLERS
    from diffpo.captioners.labellers import ScorerLabeller
    from diffpo.config.blocks import make
    from diffpo.config.options import from_spec, make_scorer
    from diffpo.errors import UserError

    if sum(one is not None for one in (labeller, scorer, labels)) != 1:
        raise UserError("say who labels the segments: one of --labeller SPEC, --scorer SPEC and --labels FILE.")
    if scorer is None and margin:
        raise UserError("--margin goes with --scorer.")
    quiet()
    from diffpo.curate.segments import label_by_hand
    from diffpo.curate.segments import label_segments as run

    found = find_source(target, split, validation_split, limit, columns)
    given = dataclasses.asdict(found) | {"segment_seconds": seconds, "unequal": unequal}
    source = make(type(found), given, "segments")
    if labels is not None:
        done = label_by_hand(source, labels, out, fresh=fresh)
    else:
        made = make(ScorerLabeller, {"scorer": make_scorer(scorer), "margin": margin}, "segments") if scorer else None
        done = run(source, made or from_spec(labeller, LABELLERS, "labeller"), out, fresh=fresh)
    more = "" if seconds == 1 else f"\nsegments last {seconds:g} seconds: train with data.segment_seconds={seconds:g}"
    say_table(done.files, f": {done}", target, "configs/wan21-densedpo.yaml", out, more)
