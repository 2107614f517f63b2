"""Finds the files of the worlds: in the source tree first, then in the installed package.

shapes/    pipeline/   a complete StableDiffusionPipeline      pairs/     train.parquet, validation.parquet
           pickscore/  a CLIP in PickScore's format            prompts/   train.txt, validation.txt, heldout.txt
moving/    base/       a complete WanPipeline                  prompts/   train.txt, validation.txt, heldout.txt
users/     pairs/      train.parquet (people who are seen), test.parquet (people who are not)
subject/   references/ four pictures of the subject            prompts/   train.txt, templates with {} for the subject
"""

from pathlib import Path

WORLDS = ("shapes", "moving", "users", "subject")

_PACKAGE = Path(__file__).resolve().parents[1]


def candidates() -> tuple[Path, Path]:
    """Where the worlds' folders may be, in the order in which they are looked for."""
    return _PACKAGE.parent / "assets", _PACKAGE / "assets"


def asset_path(name: str) -> Path:
    """The path of one asset, for example "shapes/pipeline", "shapes/pairs/train.parquet", "moving/base".

    Raises:
        FileNotFoundError: If neither the source tree nor the package has it.
    """
    places = [folder / name for folder in candidates()]
    for place in places:
        if place.exists():
            return place
    world, looked = Path(name).parts[0], " nor ".join(map(str, places))
    raise FileNotFoundError(f"the {world} world has neither {looked}; make it: python scripts/build_{world}.py")
