"""The command that tells what a run will take, before anything is downloaded or launched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffpo.commands.shared import Config, listed, quiet, say

if TYPE_CHECKING:
    from diffpo.training.planning import Cut, Plan

SHOWN = 6
"""Ways to cut the update that are listed."""


def plan(
    config: Config,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Such as train.batch=4, or model=lora.", show_default=False)
    ] = None,
    card: Annotated[
        str | None, typer.Option(help="A card, such as h100, a100, l40s, rtx4090, or cpu; what is here by default.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time the most promising ways on what is here, with random weights.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where --measure writes the settings of the fastest way.")] = Path(
        "plan.yaml"
    ),
) -> None:
    """Tell memory, pace and disk of a run before anything is downloaded, and how its update is best cut."""
    from diffpo.config.run import load_config

    loaded = load_config(config, overrides or [])
    quiet()
    from diffpo.disk.files import check_output
    from diffpo.training.cards import find_card
    from diffpo.training.planning import check_card
    from diffpo.training.planning import plan as make

    there = find_card(card)
    check_card(loaded, there)
    if measure:
        check_output(out)  # before minutes of measuring
    made = make(loaded, there)
    for line in describe(made):
        print(line)
    words = " ".join(overrides or [])
    again = f"diffpo train {config} {words}".rstrip()
    best = made.cuts()[0]
    if measure:
        from diffpo.training.measuring import measure_cuts

        found = measure_cuts(made, out, print)
        say(f"wrote {listed(out)}", f"{again} {as_words(found)}")
    elif best.fits:
        say("wrote nothing", f"{again} {as_words(best)}")
    else:
        say("wrote nothing: no way to cut the update fits this card", f"diffpo plan {config} {words} model=lora")


def describe(made: Plan) -> list[str]:
    """All that is told, as lines."""
    config, own, weights = made.config, made.own, made.weights
    train, sides = config.train, len(config.method.sides)
    kept, peak = made.activations(own.batch, own.checkpointing, own.kernels != "plain")
    images, caption = made.cache_bytes
    hours = made.seconds(own) / 3600
    card = f"{made.card.name}, {made.card.gib:.1f} GiB"
    lines = [
        f"model    {config.model.path}: {weights.trained:,} of {weights.parameters:,} parameters are trained",
        f"sizes    {made.drawn.told}; latents {'x'.join(map(str, made.drawn.latent))}",
        f"card     {card}, {made.card.half:.3g} TFLOP/s in half precision and {made.card.single:.3g} in float32",
        f"memory   {name_of(own)}, {train.optimizer}, mixed precision {train.mixed_precision}",
        *(f"         {gib(size)}  {name}" for name, size in parts_of(made, kept).items()),
        f"         {gib(weights.resting + peak)}  at the peak, in the backward: "
        f"{'fits' if own.fits else 'DOES NOT FIT'}",
        f"host     {gib(made.copied).strip()} for the copy of a checkpoint that is being written",
        f"work     {made.flops / 1e12:.3g} TFLOP per pair, {sides} images",
        f"pace     about {own.pace:.3g} pairs/s: {train.steps:,} updates of {made.effective:,} pairs take "
        f"{hours:.3g} hours on one card",
    ]
    per = f"{images / 1e6:.2f} MB per pair and {caption / 1e6:.2f} MB per caption"
    if made.pairs is None or made.captions is None:
        lines.append(
            f"cache    {per}: {(images + caption) / 1e6:.3g} GB per 1,000 pairs (the table is not on this disk)"
        )
    else:
        total = (made.pairs * images + made.captions * caption) / 1e9
        lines.append(f"cache    {per}: at most {total:.3g} GB for {made.pairs:,} pairs, {made.captions:,} captions")
    lines.append("choice   the fastest ways with the same pairs per update, by this forecast")
    return [*lines, *(f"         {gib(c.bytes)}  {c.pace:8.3g} pairs/s  {as_words(c)}" for c in shown(made))]


def parts_of(made: Plan, kept: float) -> dict[str, float]:
    """What lies in memory, by name."""
    weights = made.weights
    return {
        "weights of the network": weights.policy,
        "weights of the reference": weights.reference,
        "optimizer state": weights.optimizer,
        "gradients, when all are there": weights.gradients,
        "activations, when the forward has ended": kept,
    }


def shown(made: Plan) -> list[Cut]:
    """The fastest ways; where none fits, those that need the least."""
    cuts = made.cuts()
    fitting = [cut for cut in cuts if cut.fits]
    return fitting[:SHOWN] or sorted(cuts, key=lambda cut: cut.bytes)[:2]


def gib(size: float) -> str:
    """Bytes in GiB, aligned."""
    return f"{size / 2**30:7.2f} GiB"


def name_of(cut: Cut) -> str:
    """A way to cut the update, in words."""
    kernels = {"plain": "torch's kernels", "fused": "fused kernels"}.get(cut.kernels, f"compiled ({cut.kernels})")
    again = "with" if cut.checkpointing else "without"
    return f"batch {cut.batch}, {again} gradient checkpointing, {kernels}"


def as_words(cut: Cut) -> str:
    """Its settings as a command line has them."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in cut.overrides.items()).replace('"', "")
