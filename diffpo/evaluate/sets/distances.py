"""Distances between two sets of features.

    FID   |m - n|^2 + tr(A + B - 2 (A B)^(1/2))          m, n means; A, B covariances     Heusel et al., 1706.08500
    KID   MMD^2 of k(x, y) = (x.y / d + 1)^3, unbiased   mean over random subsets         Binkowski et al., 1801.01401

FID is too large for few images, by an amount that depends on their number (below 10,000 it shows): compare only FIDs of
equally many. KID is unbiased; it may be below 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
    """Distance of the normal distributions with the sets' means and covariances.

    Args:
        first: `[n d]`, at least two.
        second: `[m d]`, at least two.
    """
    x, y = _checked(first, second)
    mean = x.mean(axis=0) - y.mean(axis=0)
    x, y = ((values - values.mean(axis=0)) / np.sqrt(len(values) - 1) for values in (x, y))  # A = x'x, B = y'y
    # The roots of the eigenvalues of A B are the singular values of x y'; QR makes that small, and exact where n < d.
    first_root, second_root = (np.linalg.qr(values, mode="r") for values in (x, y))
    shared = np.linalg.svd(first_root @ second_root.T, compute_uv=False).sum()
    return float(mean @ mean + (x**2).sum() + (y**2).sum() - 2 * shared)


def kernel_distance(
    first: ArrayLike, second: ArrayLike, *, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = 0
) -> KernelDistance:
    """Mean over subsets of the squared maximum mean discrepancy.

    Args:
        first: `[n d]`, at least four.
        second: `[m d]`, at least four.
        subsets: How many.
        subset_size: Images of each side in a subset; at most half of the smaller side, so that subsets differ.
        seed: Of the drawing.
    """
    x, y = _checked(first, second)
    size = min(subset_size, len(x) // 2, len(y) // 2)
    if size < 2:
        raise ValueError(f"need at least four images on each side, got {len(x)} and {len(y)}")
    generator = np.random.default_rng([seed, 4])
    found = [
        mmd(x[generator.choice(len(x), size, replace=False)], y[generator.choice(len(y), size, replace=False)])
        for _ in range(subsets)
    ]
    return KernelDistance(mean=float(np.mean(found)), std=float(np.std(found)), subset=size)


def mmd(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Unbiased squared maximum mean discrepancy of `[n d]` and `[m d]`, by the cubic kernel."""
    n, m, d = len(x), len(y), x.shape[1]
    xx, yy, xy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def _checked(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"need two sets [n d] of at least two features, got {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features must be finite numbers")
    return x, y
