"""Distances between two sets of features.

    FID   |m - n|^2 + tr(A + B - 2 (A B)^(1/2))          m, n means; A, B covariances     Heusel et al., 1706.08500
    KID   MMD^2 of k(x, y) = (x.y / d + 1)^3, unbiased   mean over random subsets         Binkowski et al., 1801.01401

FID is too large for few images, by an amount that depends on their number (below 10,000 it shows): compare only FIDs of
equally many. KID is unbiased; it may be below 0. That holds for independent images, which images of one prompt are not,
least of all a model's and its baseline's of one seed: pairs of images of one prompt are left out of all three means.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffpo.compare.stats import numbered

SUBSETS = 100
SUBSET_SIZE = 1000


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """A KID."""

    mean: float
    std: float
    """Over the subsets."""
    subset: int
    """Images of each side in a subset."""


def frechet_distance(first: ArrayLike, second: ArrayLike) -> float:
    """Distance of the normal distributions with the sets' means and covariances; `[n d]` and `[m d]`, two at least."""
    x, y = _checked(first, second)
    mean = x.mean(axis=0) - y.mean(axis=0)
    x, y = ((values - values.mean(axis=0)) / np.sqrt(len(values) - 1) for values in (x, y))  # A = x'x, B = y'y
    # The roots of the eigenvalues of A B are the singular values of x y'; QR makes that small, and exact where n < d.
    first_root, second_root = (np.linalg.qr(values, mode="r") for values in (x, y))
    shared = np.linalg.svd(first_root @ second_root.T, compute_uv=False).sum()
    return max(0.0, float(mean @ mean + (x**2).sum() + (y**2).sum() - 2 * shared))  # rounding may end below 0


def kernel_distance(
    first: ArrayLike,
    second: ArrayLike,
    prompts: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
    *,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 0,
) -> KernelDistance:
    """Mean over drawn subsets of the squared maximum mean discrepancy of `[n d]` and `[m d]`, four at least.

    `prompts`, `[n]` and `[m]`, at least two different ones on each side, say which images belong together; None: none
    do. A subset has at most half of the images of the smaller side, so that subsets differ.
    """
    x, y = _checked(first, second)
    size = min(subset_size, len(x) // 2, len(y) // 2)
    if size < 2:
        raise ValueError(f"need at least four images on each side, got {len(x)} and {len(y)}")
    ids = numbered(chain(*prompts) if prompts else range(len(x) + len(y)))
    p, q = ids[: len(x)], ids[len(x) :]
    generator, found = np.random.default_rng([seed, 4]), []
    for _ in range(subsets):
        i, j = (generator.choice(len(side), size, replace=False) for side in (x, y))
        found.append(mmd(x[i], y[j], p[i], q[j]))
    if np.isnan(found).all():
        raise ValueError("need images of two different prompts at least")
    return KernelDistance(mean=float(np.nanmean(found)), std=float(np.nanstd(found)), subset=size)


def mmd(x: NDArray[np.float64], y: NDArray[np.float64], p: NDArray[np.intp], q: NDArray[np.intp]) -> float:
    """Unbiased squared maximum mean discrepancy of `[n d]` and `[m d]`, by the cubic kernel.

    Pairs of one prompt are left out; `p`, `[n]`, and `q`, `[m]`, number the prompts. NaN where nothing is left.
    """

    def mean(a: NDArray[np.float64], b: NDArray[np.float64], apart: NDArray[np.bool_]) -> float:
        return float(((a @ b.T / a.shape[1] + 1) ** 3)[apart].mean()) if apart.any() else math.nan

    return mean(x, x, p[:, None] != p) + mean(y, y, q[:, None] != q) - 2 * mean(x, y, p[:, None] != q)


def _checked(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"need two sets [n d] of at least two features, got {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features must be finite numbers")
    return x, y
