"""Sets of images side by side: distances to a reference, diversity within a prompt, and how looks drift.

    diversity   mean over prompts of the mean over pairs of images of 1 - cos of their features
    drift       mean over prompts of model - baseline, each the mean over seeds; interval by cluster bootstrap

A drift is marked where its interval excludes 0, and is an alarm where even its near end is more than `limit` of the
baseline: a reward is often won with colour, contrast and detail, and always by giving up diversity.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffpo.benchmarks.sets.distances import KernelDistance, frechet_distance, kernel_distance
from diffpo.benchmarks.sets.features import LOOKS, Features, Looks, folder_features
from diffpo.compare.stats import Estimate, Resampling, mean_difference, per_prompt_means
from diffpo.errors import UserError
from diffpo.media.folder import MANIFEST, Media, read_media
from diffpo.media.frames import SUFFIXES, find_pictures, name_others

LIMIT = 0.1
ENOUGH = 10_000
"""Images from which on FID's bias hardly shows."""
Flag = Literal["", "drift", "alarm"]


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far a set lies from another one."""

    features: str
    fid: float
    kid: KernelDistance | None
    """None for fewer than four images on a side, or a single prompt."""
    images: tuple[int, int]
    """Of the set, and of what it is compared with."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What a set's images are like, beside the baseline's."""

    what: str
    """`diversity`, or one of `LOOKS`."""
    mean: float
    """Over prompts."""
    change: Estimate | None = None
    """Model - baseline; None of the baseline itself."""
    flag: Flag = ""


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """One set of images."""

    model: str
    images: int
    prompts: int
    distances: tuple[Distance, ...]
    drifts: tuple[Drift, ...]


@dataclass(frozen=True, kw_only=True)
class SetReport:
    """All sets; the first is the baseline."""

    target: str
    """What distances are to: the reference folder, or the baseline."""
    limit: float
    sets: tuple[ImageSet, ...]
    provenance: dict[str, Any]
    """By name of the features."""
    notes: tuple[str, ...]

    @property
    def alarms(self) -> list[str]:
        """What should be looked at: model and what."""
        return [f"{item.model}: {drift.what}" for item in self.sets for drift in item.drifts if drift.flag == "alarm"]


@dataclass(frozen=True)
class _Loaded:
    label: str
    media: list[Media]
    """Of a folder without prompts each image is its own."""
    features: dict[str, NDArray[np.float32]]

    @property
    def prompts(self) -> list[str]:
        return [item.prompt for item in self.media]


def compare_sets(
    folders: Sequence[str | Path],
    makers: Sequence[Features],
    *,
    reference: str | Path | None = None,
    limit: float = LIMIT,
    seed: int = 0,
) -> SetReport:
    """Compare sets of images.

    Args:
        folders: Media folders with the same prompts, the baseline first.
        makers: Features of different names; the first ones tell diversity.
        reference: A folder of images, such as real ones; None: distances are to the baseline.
        limit: Share of the baseline's mean beyond which a drift is an alarm.
        seed: Of the resampling.

    Raises:
        UserError: If folders cannot be read, share a label or have other prompts, or two makers have one name.
    """
    if len({maker.name for maker in makers}) < len(makers) or not makers:
        raise UserError("name at least one kind of features, each once.")
    paths = [Path(folder) for folder in folders]
    loaded = [_load(path, [*makers, Looks()]) for path in paths]
    _check(loaded)
    baseline = loaded[0]
    target = baseline if reference is None else _load_reference(Path(reference), makers)
    looks = [_by_prompt(item, makers[0].name) for item in loaded]
    sets = []
    for item, values in zip(loaded, looks, strict=True):
        distances = [_distance(maker.name, item, target, seed) for maker in makers if target is not item]
        others = {} if item is baseline else looks[0]
        drifts = [_drift(what, of_prompt, others.get(what), limit, seed) for what, of_prompt in values.items()]
        counts = {"images": len(item.media), "prompts": len(set(item.prompts))}
        sets.append(ImageSet(model=item.label, **counts, distances=tuple(distances), drifts=tuple(drifts)))
    said = {"provenance": {maker.name: maker.provenance for maker in (*makers, Looks())}, "notes": tuple(_notes(sets))}
    return SetReport(target=target.label, limit=limit, sets=tuple(sets), **said)


def mean_pair_distance(features: NDArray[Any]) -> float:
    """Mean over pairs of 1 - cos of `[n d]`, n at least 2: with unit vectors u, 1 - (|sum u|^2 - n) / (n^2 - n)."""
    features = np.asarray(features, dtype=np.float64)
    units = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    n, total = len(units), units.sum(axis=0)
    return float(1 - (total @ total - n) / (n * (n - 1)))


def _load(folder: Path, makers: Sequence[Features]) -> _Loaded:
    media = read_media(folder)
    labels = {item.model for item in media}
    if not folder.is_dir() or len(labels) > 1:
        raise UserError(
            f"{folder} must be a folder of one model's images; it has those of {', '.join(sorted(labels))}."
        )
    return _Loaded(media[0].model, media, folder_features(folder, media, makers))


def _load_reference(folder: Path, makers: Sequence[Features]) -> _Loaded:
    """Images with or without prompts."""
    if (folder / MANIFEST).is_file():
        media = read_media(folder)
    else:
        name_others(folder)
        files = [str(path.relative_to(folder)) for path in find_pictures(folder)]
        media = [Media(file=file, prompt=file, prompt_id=i, seed=None, model="") for i, file in enumerate(files)]
    if len(media) < 2:
        raise UserError(f"{folder} is no reference: it needs at least two images ({', '.join(SUFFIXES)}).")
    return _Loaded(str(folder), media, folder_features(folder, media, makers))


def _check(loaded: Sequence[_Loaded]) -> None:
    """Each has a label of its own, the same prompts as the others, and two images at least."""
    labels = [item.label for item in loaded]
    if len(set(labels)) < len(labels):
        raise UserError(f"each folder needs a label of its own, got {', '.join(labels)}: `diffpo generate --label`.")
    first = set(loaded[0].prompts)
    for item in loaded:
        other = set(item.prompts)
        if other != first:
            raise UserError(
                f"{loaded[0].label} and {item.label} need the same prompts: {len(first & other)} are common, "
                f"{len(first - other)} only of the one, {len(other - first)} only of the other."
            )
        if len(item.media) < 2:
            raise UserError(f"{item.label} has one image only: a set needs more.")


def _distance(name: str, item: _Loaded, target: _Loaded, seed: int) -> Distance:
    features, others = item.features[name], target.features[name]
    images = len(features), len(others)
    enough = min(images) >= 4 and min(len(set(side.prompts)) for side in (item, target)) > 1
    kid = kernel_distance(features, others, (item.prompts, target.prompts), seed=seed) if enough else None
    return Distance(features=name, fid=frechet_distance(features, others), kid=kid, images=images)


def _by_prompt(item: _Loaded, name: str) -> dict[str, dict[str, float]]:
    """What is measured -> prompt -> its value; no diversity where no prompt has two images."""
    order = sorted(range(len(item.media)), key=item.prompts.__getitem__)
    prompts = [item.prompts[i] for i in order]
    rows: dict[str, list[int]] = {}
    for i, prompt in zip(order, prompts, strict=True):
        rows.setdefault(prompt, []).append(i)
    features, looks = item.features[name], item.features[Looks.name][order]
    diversity = {prompt: mean_pair_distance(features[found]) for prompt, found in rows.items() if len(found) > 1}
    means = {what: per_prompt_means(looks[:, k], prompts).tolist() for k, what in enumerate(LOOKS)}
    found = {what: dict(zip(rows, values, strict=True)) for what, values in means.items()}
    return {"diversity": diversity, **found} if diversity else found


def _drift(what: str, values: dict[str, float], baseline: dict[str, float] | None, limit: float, seed: int) -> Drift:
    mean = float(np.mean(list(values.values())))
    prompts = [prompt for prompt in values if prompt in (baseline or ())]
    if not baseline or not prompts:
        return Drift(what=what, mean=mean)
    a, b = (np.array([side[prompt] for prompt in prompts]) for side in (values, baseline))
    change, above, below = (
        mean_difference(a, factor * b, prompts, resampling=Resampling(seed=seed))
        for factor in (1, 1 + limit, 1 - limit)
    )
    alarm = above.ci_low > 0 or below.ci_high < 0
    drifts = change.ci_low > 0 or change.ci_high < 0
    return Drift(what=what, mean=mean, change=change, flag="alarm" if alarm else "drift" if drifts else "")


def _notes(sets: Sequence[ImageSet]) -> list[str]:
    notes = []
    fewest = min((min(d.images) for item in sets for d in item.distances), default=ENOUGH)
    if fewest < ENOUGH:
        notes.append(
            f"FID is biased for few images (here {fewest}): compare it with FIDs of equally many only; KID is unbiased."
        )
    if any(item.drifts[0].what != "diversity" for item in sets):
        notes.append("Diversity needs several images of a prompt: generate with --seeds 0-3.")
    return notes
