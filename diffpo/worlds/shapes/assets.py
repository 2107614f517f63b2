"""Finds the files of the shapes world: in the source tree first, then in the installed package.

pipeline/   a complete StableDiffusionPipeline      pairs/     train.parquet, validation.parquet (Pick-a-Pic's columns)
pickscore/  a CLIP in PickScore's format            prompts/   train.txt, validation.txt, heldout.txt
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[2]


def candidates() -> tuple[Path, Path]:
    """Where the assets may be, in the order in which they are looked for."""
    return _PACKAGE.parent / "assets" / "shapes", _PACKAGE / "assets" / "shapes"


def asset_path(name: str) -> Path:
    """The path of one asset, for example "pipeline", "pairs/train.parquet", "prompts/heldout.txt".

    Raises:
        FileNotFoundError: If neither the source tree nor the package has it.
    """
    places = [folder / name for folder in candidates()]
    for place in places:
        if place.exists():
            return place
    looked = " nor ".join(map(str, places))
    raise FileNotFoundError(f"the shapes world has neither {looked}; make it: python scripts/build_shapes.py")
