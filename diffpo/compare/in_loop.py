"""Which scorers had a hand in making a model: a gain on such a scorer is no independent evidence.

    media folder  settings.json           `tuned` or `denoiser`: where the model came from
    run folder    config.yaml             `data.path`: the pair table it learned from; `model.denoiser`: an earlier run;
                                          `train.select.scorer`: who chose the update
    table         SPLIT.provenance.json   `recipe.scorer`: who labelled the pairs; `source`: what it was made of

Whatever is missing on that way is not known, and is not guessed: a user adds it by name (`--used-in-training`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from diffpo.disk.plain import read_file
from diffpo.disk.tables import read_json
from diffpo.errors import UserError

LABELLED_BY = {"shapes:pairs": "shapes-utility"}
"""Tables that come with the package: their annotators are simulated."""
LABELLED, SELECTED = "labelled the training pairs", "selected the update"
"""What a scorer did."""
_LEVELS = 3  # a run's `final/unet` lies two below it


def in_loop(settings: Iterable[Mapping[str, Any]], labels: Sequence[str], declared: Sequence[str]) -> dict[str, str]:
    """What a reader of a scorer's result must know, by scorer, where it had a hand in making one of the models.

    `settings` are the media folders'; `declared` are scorers that a user says were used in training or selection.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for known in settings:
        if known.get("label") in labels:
            runs = (_of_run(known.get(key), seen=set()) for key in ("tuned", "denoiser", "lora"))
            for hand in dict.fromkeys(chain.from_iterable(runs)):
                found.setdefault(hand, []).append(known["label"])
    said = {name: f"{name} was used in training or selection" for name in declared}
    told: dict[str, list[str]] = {}
    for (name, did), (*most, last) in found.items():
        models = f"{', '.join(most)} and {last}" if most else last
        told.setdefault(name, []).append(f"{did} of {models}")
    said |= {name: f"{name} {' and '.join(parts)}" for name, parts in told.items()}
    return {name: f"{text}: a gain on it is no independent evidence." for name, text in said.items()}


def runs_not_found(settings: Iterable[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, str]:
    """Models whose run folder is not where their media folder says: label -> where that was."""
    tuned = {known["label"]: known.get("tuned") for known in settings if known.get("label") in labels}
    return {label: place for label, place in tuned.items() if place and _run_folder(place) is None}


def _of_run(place: str | None, seen: set[Path]) -> Iterator[tuple[str, str]]:
    """Scorers of the run that `place` is or lies in, and of the runs that it started from; each with what it did."""
    folder = _run_folder(place)
    if folder is None or folder in seen:
        return
    seen.add(folder)
    config = _mapping(folder / "config.yaml", read_file)
    data, model, train = (_part(config, key) for key in ("data", "model", "train"))
    if data.get("path"):
        for name in _of_table(data["path"], data.get("split") or "train"):
            yield name, LABELLED
    for name in _names(_part(train, "select").get("scorer"), "name"):
        yield name, SELECTED
    for key in ("denoiser", "lora"):
        yield from _of_run(model.get(key), seen)


def _part(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = tree.get(key)
    return value if isinstance(value, Mapping) else {}


def _names(scorer: Any, key: str) -> Iterator[str]:
    """The name of a scorer, and of those that it is made of; `key` is what its block calls the name."""
    if isinstance(scorer, Mapping):
        if isinstance(name := scorer.get(key), str):
            yield name
        for part in scorer.values():
            yield from _names(part, key)


def _run_folder(place: str | None) -> Path | None:
    if not place:
        return None
    path = Path(place).expanduser().resolve()
    return next((p for p in (path, *path.parents[:_LEVELS]) if (p / "config.yaml").is_file()), None)


def _of_table(path: str, split: str) -> Iterator[str]:
    if path in LABELLED_BY:
        yield LABELLED_BY[path]
        return
    record = Path(path).expanduser() / f"{split}.provenance.json"
    if record.is_file():
        yield from _of_provenance(_mapping(record, read_json))


def _of_provenance(record: Mapping[str, Any]) -> Iterator[str]:
    """The scorer of a table's recipe, and those of the tables that it was made of."""
    recipe, source = _part(record, "recipe"), _part(record, "source")
    yield from _names(recipe.get("scorer"), "scorer")
    if isinstance(source.get("provenance"), Mapping):
        yield from _of_provenance(source["provenance"])
    elif source.get("path") in LABELLED_BY:
        yield LABELLED_BY[source["path"]]


def _mapping(path: Path, read: Callable[[Path], Any]) -> Mapping[str, Any]:
    try:
        value = read(path)
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return value if isinstance(value, Mapping) else {}
