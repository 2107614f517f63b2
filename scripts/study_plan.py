"""What the study of the shapes world runs: variants, their trials, and what a pair costs in network rows.

A trial is a choice of learning rate and one more number (beta, or what the method has in its place): four per
variant, in this file and in the study's table. They are judged on validation prompts only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diffpo.config.run import load_config

UPDATES = 40
"""Of `PAIRS` pairs: what every variant gets at equal pairs."""
PAIRS = 32
SEEDS = (0, 1, 2)
VALIDATION = "shapes:validation:100"
HELD_OUT = "shapes:heldout:200"
SCORED, CAPTIONED = "runs/shapes-scored", "runs/shapes-captioned"
"""Tables with soft labels and with dual captions, as the configs name them."""
TABLES = {
    SCORED: "data score configs/shapes-dpo.yaml --scorer pickscore,path=shapes:pickscore,scale=cosine --order scorer",
    CAPTIONED: "data caption configs/shapes-dpo.yaml --captioner shapes",
}
"""The commands that make them, but for `--out`."""


@dataclass(frozen=True)
class Variant:
    """A method with fixed options, and the values to choose among."""

    name: str
    config: str
    options: tuple[str, ...] = ()
    grid: dict[str, tuple[float, ...]] = field(
        default_factory=lambda: {"method.beta": (500, 2000), "train.learning_rate": (2e-5, 5e-5)}
    )

    @property
    def trials(self) -> list[tuple[str, ...]]:
        """Every combination of the grid's values, as overrides."""
        combinations: list[tuple[str, ...]] = [()]
        for key, values in self.grid.items():
            combinations = [(*done, f"{key}={value:g}") for done in combinations for value in values]
        return combinations

    @property
    def rows(self) -> float:
        """Network rows per pair; see `network_rows`."""
        return network_rows(load_config(self.config, list(self.options)).method)


def network_rows(method: Any) -> float:
    """Images that go through a network for one pair, on average over uniform times; a backward counts as two.

    The policy takes its sides forward and backward, the reference both forward, and an inversion N grid steps for t
    at the end of the range and (N + 1) / 2 on average, each asking 1 + renoise times.
    """
    policy, reference = 3 * len(method.sides), 2 * method.needs_reference
    inversion = getattr(method, "inversion", None)
    return policy + reference + (0.0 if inversion is None else inversion.rows)


def _named(name: str, *options: str, **grid: tuple[float, ...]) -> Variant:
    return Variant(name, f"configs/shapes-{name}.yaml", options, **({"grid": _keys(grid)} if grid else {}))


def _keys(grid: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    """`learning_rate` belongs to the loop, everything else to the method."""
    return {f"{'train' if key == 'learning_rate' else 'method'}.{key}": values for key, values in grid.items()}


VARIANTS = {
    variant.name: variant
    for variant in (
        _named("sft", learning_rate=(1e-5, 2e-5, 5e-5, 1e-4)),
        _named("dpo", "method.guard=null"),
        Variant("dpo+guard", "configs/shapes-dpo.yaml", ("method.guard=0.9",)),
        _named("smpo"),
        _named("inpo"),
        _named("dcpo"),
        _named("mapo", weight=(0.1, 1.0), learning_rate=(2e-5, 5e-5)),
        _named("kto"),
        _named("ipo", beta=(20, 100), learning_rate=(2e-5, 5e-5)),  # margins are near 0.01, to reach: 1 / (2 beta)
        _named("hinge"),
        _named("cdpo"),
        _named("rdpo"),
        _named("dspo", beta=(0.01, 10.0), learning_rate=(2e-5, 5e-5)),
        _named("dmpo"),
    )
}
