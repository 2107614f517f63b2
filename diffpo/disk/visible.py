"""Which files of a folder count: what editors, systems and archivers leave behind is no data."""

from __future__ import annotations

from pathlib import Path, PurePath


def is_hidden(path: str | PurePath) -> bool:
    """Tell whether a path within a folder or an archive is hidden: a part of it begins with "." or is `__MACOSX`."""
    parts = (part for part in PurePath(path).parts if part not in (".", ".."))
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def visible_files(folder: Path) -> list[Path]:
    """All files below a folder that are not hidden, in the order of their names."""
    found = (path for path in folder.rglob("*") if not is_hidden(path.relative_to(folder)))
    return sorted(path for path in found if not path.is_dir())
