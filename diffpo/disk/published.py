"""What is published (reports, comparisons, model cards) names no place of this machine, and so no user."""

import os
import re
from pathlib import Path
from typing import Any

_START = r"(?:~?/|~?[A-Za-z]:[\\/])"
_PATHS = re.compile(
    rf"""(?P<before>["'])(?P<quoted>{_START}[^"'\n]*)(?=["'])"""  # JSON, and what YAML quotes
    rf"""|(?P<key>^\s*(?:-\s+)?[\w.]+:\s+|^\s*-\s+)(?P<value>{_START}[^"'\n]*?)(?=\s*$)"""  # YAML
    rf"""|(?<![^\s,;=(\[{{])(?P<word>{_START}[^\s,;"')\]}}/\\]+[/\\][^\s,;"')\]}}]*)""",  # in a sentence
    re.MULTILINE,
)


def published(value: Any) -> Any:
    """Shorten every absolute path in a text, or in the texts of nested values.

    A path below the working folder becomes relative to it; another one keeps its last name: `.../NAME`. Relative paths
    and names of the Hub stay.
    """
    if isinstance(value, dict):
        return {key: published(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [published(item) for item in value]
    if not isinstance(value, str):
        return value
    if re.match(_START, value) and "\n" not in value:
        return _name(value)
    return _PATHS.sub(
        lambda found: (
            (found["before"] or found["key"] or "") + _name(found["quoted"] or found["value"] or found["word"])
        ),
        value,
    )


def _name(text: str) -> str:
    path = Path(os.path.normpath(Path(text.replace("\\", "/"))))
    here, home = Path.cwd(), Path.home()
    if path.is_relative_to(here) and (here == home or not home.is_relative_to(here)):
        return str(path.relative_to(here))
    inside = path.parts[1:] and path.name not in ("", "~", home.name) and path.parent != home.parent
    return f".../{path.name}" if inside else "..."
