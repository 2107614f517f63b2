"""The measurements behind the numbers in the card of the users world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from shapes_builder.make_pairs import from_jpeg

from diffpo.worlds.shapes.verify import see
from diffpo.worlds.users.people import place, utility


def measure_pairs(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How often choices agree with their person's utility, and how much the two pictures of a pair differ, by kind."""
    found: dict[str, Any] = {"rows": len(rows), "people": len({row["user_id"] for row in rows})}
    found["kinds"] = Counter(row["kind"] for row in rows)
    for kind in sorted(found["kinds"]):
        agree, apart = [], []
        for row in (row for row in rows if row["kind"] == kind):
            sides = [from_jpeg(row[side]["bytes"]) for side in ("chosen", "rejected")]
            better, worse = (utility(side, row["prompt"], row["user_id"]) for side in sides)
            agree.append(float(better > worse))
            places = [place(see(side)) for side in sides]
            if None not in places:
                apart.append(np.subtract(*places))
        found[kind] = {
            "agreement": round(float(np.mean(agree)), 4),
            "difference of coverage and saturation": np.std(apart, axis=0).round(3).tolist(),
        }
    return found
