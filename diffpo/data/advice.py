"""Which command makes which columns of a pair table: what a user is told whose table lacks some."""

from collections.abc import Collection

_COMMANDS = {
    "run `diffpo data score {path} --scorer pickscore --out FOLDER`": {"preference", "chosen_score", "rejected_score"},
    "run `diffpo data caption {path} --captioner transformers,path=MODEL --out FOLDER`": {
        "chosen_prompt",
        "rejected_prompt",
    },
    "run `diffpo data segments {path} --labeller chat,path=MODEL --out FOLDER` (docs/video.md), or add `segments` "
    "yourself: a list of -1, 0 and 1 per row, one label per second of its clips": {"segments"},
    "run `diffpo data subject MODEL PHOTOGRAPHS --class CLASS --token TOKEN --out FOLDER` (docs/subjects.md)": {
        "preference",
        "chosen_prompt",
        "rejected_prompt",
    },
}
"""Advice, and the columns that come of it; what makes fewer of them comes first."""


def how_to_get(missing: Collection[str], needed: Collection[str], path: str) -> str:
    """Say how a table comes by columns: by one command that makes all that is needed, else by one for each.

    Args:
        missing: The columns that the table at `path` lacks, of those that are needed.
        needed: All columns that are needed beside prompt, chosen and rejected.
        path: The table, as the user gives it to a command.
    """
    whole = [advice for advice, made in _COMMANDS.items() if made >= set(needed)][:1]
    each = (
        next((advice for advice, made in _COMMANDS.items() if name in made), f"add `{name}` to the table")
        for name in missing
    )
    text = " and ".join(whole or dict.fromkeys(each)).format(path=path)
    return text[0].upper() + text[1:]
