"""Make pairs of generated images: `diffpo data build`.

Several images of the same prompt, by several seeds or models, lie in media folders (`diffpo generate`). A scorer ranks
them, or people chose between them (`pairing`). Candidates stand in the order of the folders and their manifests, so the
same folders give the same table.

Pairs like those of the shapes world (there every two of three images meet, and one noisy annotator judges each pair):

    diffpo generate shapes:base --prompts shapes:train:100 --seeds 0-2 --steps 20 --guidance 4 --out media/base
    diffpo data build media/base --scorer shapes-utility --strategy all --margin 0.15 --out runs/pairs
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datasets import Features, Image, Value

from diffpo.curate.pairing import Candidate, Judged, Pairing, by_prompt, read_choices
from diffpo.curate.write import check_place, write_table
from diffpo.data.encode import BOTH
from diffpo.disk.files import hash_of
from diffpo.disk.lock import sole_writer
from diffpo.errors import UserError
from diffpo.media.folder import MANIFEST, SCORES, read_file, read_media
from diffpo.scorers.base import Scorer
from diffpo.scorers.scores import read_scores, score_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Built:
    """What came of the images."""

    folder: Path
    pairs: int
    """Pairs that were written, kept ties included."""
    prompts: int
    """Prompts of which there are pairs."""
    ties: int
    """Ties that were found, kept or not."""
    single: int
    """Prompts with one image only: no pair can be made of them."""

    def __str__(self) -> str:
        return (
            f"{self.pairs} pairs of {self.prompts} prompts to {self.folder}; {self.ties} ties, {self.single} prompts "
            "with one image only"
        )


@dataclass(frozen=True)
class Output:
    """Where the table goes, and what goes in."""

    folder: Path
    ties: Literal["drop", "keep"] = "drop"
    """Whether pairs of which neither is better are left out, or kept with preference 0.5."""
    fresh: bool = False
    """Whether a table that was made in another way may be replaced."""


def build_by_scores(
    folders: Sequence[Path], name: str, make_scorer: Callable[[], Scorer], pairing: Pairing, output: Output
) -> Built:
    """Make pairs of the images that a scorer ranks.

    Args:
        folders: Media folders.
        name: Scores of this name are taken from the folders' `scores.parquet` if every image of every folder has one
            and they may be compared; otherwise all folders are scored now, which is resumable.
        make_scorer: Makes the scorer, if it is needed.
        pairing: From scores to pairs.
        output: Where the table goes.

    Raises:
        UserError: A folder or image is not what it should be, the place is taken, or no pair comes out.
    """
    candidates = _candidates(folders)
    known = _known_scores(candidates, name)
    scorer = None if known else make_scorer()
    provenance = known[1] if scorer is None else scorer.provenance
    recipe = _recipe(folders, output) | {"name": name, "scorer": provenance} | dataclasses.asdict(pairing)
    with sole_writer(output.folder, "diffpo data build"):
        check_place(output.folder, recipe, fresh=output.fresh)
        if scorer is None:
            scores = known[0]
        else:
            tables = {folder: score_folder(folder, [scorer]) for folder in folders}
            rows = [(folder, row, table.called(scorer.name)) for folder, table in tables.items() for row in table.rows]
            scores = {(folder, row.file): row.score for folder, row, name in rows if row.scorer == name}
        places = [(candidate.folder, candidate.media.file) for candidate in candidates]
        scored = [
            dataclasses.replace(candidate, score=scores[place])
            for candidate, place in zip(candidates, places, strict=True)
            if place in scores  # an image that cannot be decoded has no score
        ]
        return _write(pairing.pair(scored), scored, recipe, output)


def build_by_choices(folders: Sequence[Path], choices: Path, output: Output) -> Built:
    """Make pairs of the images that people chose between: see `pairing.read_choices` and `build_by_scores`."""
    candidates = _candidates(folders)
    judged = read_choices(choices, candidates)
    recipe = _recipe(folders, output) | {"choices": str(choices), "choices hash": hash_of(choices.read_bytes())}
    with sole_writer(output.folder, "diffpo data build"):
        check_place(output.folder, recipe, fresh=output.fresh)
        return _write(judged, candidates, recipe, output)


def _candidates(folders: Sequence[Path]) -> list[Candidate]:
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(f"a folder is given twice: {', '.join(map(str, folders))}.")
    return [Candidate(folder, media) for folder in folders for media in read_media(folder)]


def _recipe(folders: Sequence[Path], output: Output) -> dict[str, Any]:
    """Name all that decides the table, besides which image is better."""
    read = [{"path": str(folder), "manifest": hash_of((folder / MANIFEST).read_bytes())} for folder in folders]
    return {"made by": "diffpo data build", "folders": read, "ties": output.ties}


def _known_scores(candidates: Sequence[Candidate], name: str) -> tuple[dict[tuple[Path, str], float], Any] | None:
    """Read the scores of the folders, and their provenance; None unless they are whole, current and comparable."""
    folders = dict.fromkeys(candidate.folder for candidate in candidates)
    if not all((folder / SCORES).is_file() for folder in folders):
        return None
    tables = {folder: read_scores(folder) for folder in folders}
    names = {folder: table.called(name) for folder, table in tables.items()}
    rows = {(folder, r.file): r for folder, table in tables.items() for r in table.rows if r.scorer == names[folder]}
    for candidate in candidates:
        row = rows.get((candidate.folder, candidate.media.file))
        if row is None or row.prompt != candidate.media.prompt:
            return None
        if row.digest not in ("", hash_of(read_file(candidate.folder, candidate.media))):
            return None
    first, *others = (table.provenance.get(names[folder]) for folder, table in tables.items())
    if any(other != first for other in others):
        return None
    return {place: row.score for place, row in rows.items()}, first


def _write(
    judged: Sequence[Judged], candidates: Sequence[Candidate], recipe: Mapping[str, Any], output: Output
) -> Built:
    used = [two for two in judged if output.ties == "keep" or not two.tie]
    built = Built(
        folder=output.folder,
        pairs=len(used),
        prompts=len({two.chosen.media.prompt for two in used}),
        ties=sum(two.tie for two in judged),
        single=sum(len(group) == 1 for group in by_prompt(candidates).values()),
    )
    if not used:
        raise UserError(
            f"no pair comes of {len(candidates)} images: {built.ties} pairs are ties and {built.single} prompts have "
            "one image only. Generate more seeds, lower the margin, or keep the ties with --ties keep."
        )
    if built.single:
        log.warning(f"{built.single} prompts have one image only: no pair can be made of them.")
    record = {"recipe": recipe, "rows": len(used), "prompts": built.prompts, "ties": built.ties, "single": built.single}
    write_table(output.folder, _features(used, output), _rows(used), len(used), record)
    return built


def _features(used: Sequence[Judged], output: Output) -> Features:
    """Choose the columns: scores where a scorer ranked, users where one is named, a preference where ties are kept."""
    string, number = Value("string"), Value("float64")
    columns: dict[str, Any] = {"prompt": string, "chosen": Image(), "rejected": Image()}
    columns |= {f"{side}_seed": Value("int64") for side in BOTH} | {f"{side}_model": string for side in BOTH}
    if used[0].chosen.score is not None:
        columns |= {f"{side}_score": number for side in BOTH}
    if any(two.user_id is not None for two in used):
        columns["user_id"] = string
    if output.ties == "keep":
        columns["preference"] = number
    return Features(columns)


def _rows(used: Sequence[Judged]) -> Iterator[dict[str, Any]]:
    for two in used:
        row: dict[str, Any] = {"prompt": two.chosen.media.prompt}
        row |= {"user_id": two.user_id, "preference": 0.5 if two.tie else 1.0}
        for side, candidate in zip(BOTH, (two.chosen, two.rejected), strict=True):
            folder, media = candidate.folder, candidate.media
            row[side] = {"bytes": read_file(folder, media), "path": f"{folder.resolve().name}/{media.file}"}
            row |= {f"{side}_seed": media.seed, f"{side}_model": media.model, f"{side}_score": candidate.score}
        yield row
