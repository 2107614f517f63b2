"""The directions in which people differ: linear discriminant analysis of their embeddings.

    S_w    mean over people of the covariance of their own embeddings      luck: which pairs they happened to see
    S_b    covariance of the people's means                                taste
    V      the k largest solutions of  S_b v = lambda (S_w + ridge diag(S_w)) v

Most of what differs between a chosen and a rejected image is not taste, and of a few pairs most is luck. What is kept
tells people apart better than luck does (Fisher 1936).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diffpo.errors import UserError

RIDGE = 0.1
"""The share by which variances are raised: of few people covariances are poorly known."""


def find_directions(embeddings: NDArray[np.floating], owners: Sequence[str], count: int) -> NDArray[np.float64]:
    """Find the directions in which people differ most, beside how much they differ from themselves.

    Args:
        embeddings: `[n d]`, several of each person.
        owners: `[n]` whose each one is.
        count: How many directions.

    Returns:
        `[d count]`, each of a length that makes the luck along it 1.

    Raises:
        UserError: There are too few people, or nobody has two embeddings.
    """
    from scipy.linalg import eigh

    names, owner = np.unique(list(owners), return_inverse=True)
    sizes = np.bincount(owner)
    if len(names) <= count or sizes.max() < 2:
        raise UserError(
            f"{count} directions cannot be found of {len(embeddings)} embeddings of {len(names)} people: that takes "
            "more people than directions, and two draws of each at least. Give --draws 8, or leave --directions out."
        )
    x = np.asarray(embeddings, np.float64)
    means = np.stack([np.bincount(owner, column) for column in x.T], axis=1) / sizes[:, None]
    own = x - means[owner]
    within = own.T @ own / max(1, len(x) - len(names))
    between = np.cov(means.T)
    floor = 1e-12 * np.trace(within)  # what is the same for all is no direction
    _, vectors = eigh(between, within + np.diag(RIDGE * np.diag(within) + floor))
    return vectors[:, ::-1][:, :count].copy()


def along(states: NDArray[np.floating], directions: NDArray[np.floating] | None) -> NDArray[np.float32]:
    """Bring vectors `[... d]` into the form in which an adapter takes them: along some directions, of unit length.

    A few choices give a longer or a shorter vector by luck, so length says nothing.
    """
    kept = np.asarray(states, np.float64) if directions is None else states @ directions
    length = np.linalg.norm(kept, axis=-1, keepdims=True)
    return (kept / np.maximum(length, np.finfo(np.float64).tiny)).astype(np.float32)
