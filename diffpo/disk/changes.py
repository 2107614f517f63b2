"""What differs between two records of how something was made: what is said before anything is replaced."""

from collections.abc import Iterator, Mapping
from typing import Any

LISTED, LONGEST = 5, 60
"""So many differences are named, and so many characters of a value."""


def name_changes(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name what differs, by dotted keys.

    A setting that the earlier record does not have was not known to the version that wrote it.
    """
    told = list(_changes(earlier, now, ""))
    return "; ".join(told[:LISTED]) + (f"; and {len(told) - LISTED} more" if len(told) > LISTED else "")


def _changes(earlier: Mapping[str, Any], now: Mapping[str, Any], home: str) -> Iterator[str]:
    for key in sorted({*earlier, *now}):
        name, before, after = home + key, earlier.get(key), now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _changes(before, after, f"{name}.")
        elif key not in earlier:
            yield f"{name} is now {_short(after)}, and an earlier version of diffpo did not note it"
        elif key not in now:
            yield f"{name} was {_short(before)}, and this version does not note it"
        elif before != after:
            yield f"{name} was {_short(before)}, is now {_short(after)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
