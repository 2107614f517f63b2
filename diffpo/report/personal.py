"""The page of a personal evaluation: win rates over users, seen and unseen, each user, and grids."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffpo.compare.personal import GROUPS, PersonalResult
from diffpo.disk.files import check_output
from diffpo.disk.published import published
from diffpo.report.page import write_page

MEANING = {
    "own": "the model, told the user",
    "base": "the same model, told nobody",
    "others": "the same model, told another user",
}
"""What the kinds of images are; another name is another model."""


@dataclass(frozen=True, kw_only=True)
class PersonalPage:
    """What the page shows."""

    title: str
    results: Sequence[PersonalResult]
    """The claim first."""
    seen: Mapping[str, bool]
    """Whether the model was trained on a user."""
    found: Mapping[str, Any]
    """All that was found, as the JSON file has it."""
    pictures: Mapping[str, tuple[Path, str]]
    """Grids by their headings: the PNG, and what it shows."""


def write_personal(out: Path, page: PersonalPage) -> Path:
    """Write the page.

    Raises:
        UserError: `out` cannot be written.
    """
    check_output(out)
    names = sorted(page.results[0].users, key=lambda name: (page.seen[name], -page.results[0].users[name]))
    told = page.found["users told from their states"]
    return write_page(
        out,
        "personal.html.j2",
        title=published(page.title),
        groups=list(GROUPS),
        results=page.results,
        meaning=lambda kind: MEANING.get(kind, f"another model, {kind}"),
        names=names,
        seen=page.seen,
        told=told,
        agreement=page.found["agreement"],
        judge=page.found["judge"],
        pictures=[(name, _uri(file), about) for name, (file, about) in page.pictures.items()],
        record=json.dumps(published(dict(page.found)), indent=2, ensure_ascii=False),
    )


def _uri(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
