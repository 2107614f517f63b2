"""Which known name is meant: spelling, and the words that other programs use for the same thing."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from diffpo.disk.plain import read_file

SYNONYMS: dict[str, list[str]] = read_file(Path(__file__).with_name("synonyms.yaml"))
"""Our name -> what other programs, and people in a hurry, call it."""


def synonym(name: str, known: Iterable[str]) -> str | None:
    """The known name that others call so, or that is written so but for hyphens and capitals; None: there is none."""
    plain = name.lower().replace("-", "_").replace(" ", "_")
    return next((ours for ours in known if plain == ours or plain in SYNONYMS.get(ours, ())), None)


def close_match(name: str, known: Iterable[str]) -> str:
    """A question for the end of a message: which known name is meant."""
    allowed = list(known)
    found = synonym(name, allowed) or next(iter(difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)), None)
    return f" Did you mean {found}?" if found else ""
