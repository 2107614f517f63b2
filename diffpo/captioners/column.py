"""A person by vectors that the table brings along, such as the `emb` of published few-shot sets: their mean over pairs.

A cell is a list of d numbers, or a list of such lists: states of several layers, `[n d]`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffpo.captioners.base import Choice, Portrait, UserEmbedder
from diffpo.core.block import Place
from diffpo.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ColumnEmbedder(UserEmbedder):
    """The mean of the vectors in the column `emb`."""

    name = "column"
    is_vector = True
    reads_vectors = True

    of: Place = "the table"
    """What made the vectors, such as a model's id: an adapter takes states of the same name only."""

    @property
    def provenance(self) -> dict[str, Any]:
        return {"embedder": self.name, "of": self.of}

    def embed(self, choices: Sequence[Choice]) -> Portrait:
        vectors = [choice.vector for choice in choices]
        shapes = {None if vector is None else vector.shape for vector in vectors}
        shape = next(iter(shapes))
        if len(shapes) != 1 or shape is None or not 1 <= len(shape) <= 2 or 0 in shape:
            raise UserError(
                f"the column `emb` of the pairs for {choices[0].prompt!r} holds values of the shapes "
                f"{', '.join(sorted(map(str, shapes)))}: every pair needs a list of d numbers, or n such lists. If the "
                "vectors are in a column of another name, give --columns emb=NAME."
            )
        mean = np.mean(vectors, axis=0, dtype=np.float64).astype(np.float32)
        if not np.isfinite(mean).all():
            raise UserError(f"the column `emb` of the pairs for {choices[0].prompt!r} holds what is no finite number.")
        return Portrait(np.atleast_2d(mean))
