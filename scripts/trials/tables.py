"""Pair tables with random faults. The images say which row they belong to, so a wrong pairing is seen."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from trials import worlds
from trials.forks import Draw, Trial

ODD: tuple[Any, ...] = (
    *(None, "", " ", float("nan"), 0.5, 2, -1, 10**30, True, [], {}, ["a"], {"bytes": None, "path": None}, "0", "nan"),
    *("=cmd()", "../../etc/passwd", "/dev/zero", "images", "nothing.png", "\ud800", "a\0b", "﻿x", 'un"closed', "a\nb"),
)


def trial(draw: Draw) -> Trial:
    """A table of 3 to 9 rows with up to four faults, looked at, and read as training reads it."""
    rng, folder = draw.rng, draw.folder
    rows = []
    for i in range(rng.randint(3, 9)):
        chosen = worlds.numbered(folder / "images" / f"{i}-c.png", i)
        rejected = worlds.numbered(folder / "images" / f"{i}-r.png", i, 1)
        rows.append({"prompt": f"row {i}", "chosen": f"images/{chosen.name}", "rejected": f"images/{rejected.name}"})
    suffix = rng.choice((".jsonl", ".csv", ".json", ".jsonl", ".csv"))
    personal = rng.random() < 0.4 and suffix != ".csv"  # whose cells hold no vectors
    if personal:
        rows = [row | {"user_id": f"user {i % 2}", "emb": [float(i), 1.0]} for i, row in enumerate(rows)]
    told = [rng.choice(CHANGES)(rng, rows) for _ in range(rng.randint(0, 3))]
    text = _text(rows, suffix)
    if rng.random() < 0.5:
        text, how = _spoil(rng, text)
        told.append(how)
    name = rng.choice(("pairs", "pa*rs", "[pairs]", "pairs?", "pairs é"))
    table = folder / f"{name}{suffix}"
    table.write_bytes(text)
    (folder / ".pairs.jsonl").write_text(
        '{"prompt": "hidden", "chosen": "images/0-c.png", "rejected": "images/0-r.png"}'
    )
    told_all, group = f"{suffix}: {'; '.join(told)}", f"users in {suffix}" if personal else suffix
    commands = [["data", "inspect", str(table)]]
    if personal:
        how = ["--embedder", "column,of=trials", "--pairs", "1", "--out", str(folder / "users")]
        commands.append(["data", "users", str(table), *how])
    check = partial(_wrong_people if personal else _mispaired, table)
    return Trial(told_all, group, commands, check=check, seconds=30)


def _wrong_people(table: Path) -> list[str]:
    """Look at the states of users: each is the mean of the vectors of its own user's pairs, and finite."""
    from diffpo.data import Pairs, load_splits
    from diffpo.data.checks import user_name
    from diffpo.media.users import Users

    place = table.parent / "users"
    if not place.exists():
        return _mispaired(table)
    users, rows = Users.open(place), load_splits(Pairs(path=str(table))).train.rows
    faults = ["mis-paired"] * any(name.lower() in ("", "nan", "none", "null") for name in users.draws)
    own: dict[str | None, set[str]] = {}
    for row in rows:
        own.setdefault(user_name(row["user_id"]), set()).add(row["prompt"])
    for name, draws in users.draws.items():
        strange = not {prompt for row in draws for prompt in users.prompts[row]} <= own.get(name, set())
        faults += ["mis-paired"] * (strange or not all(bool(users.states(row).isfinite().all()) for row in draws))
    return faults + _mispaired(table)


def _mispaired(table: Path) -> list[str]:
    """Read the table as training does; a row whose images are another row's is a fault."""
    from diffpo.data import Pairs, load_splits
    from diffpo.errors import UserError
    from diffpo.media.frames import decode

    try:
        found = load_splits(Pairs(path=str(table))).train
    except UserError:
        return []
    faults = []
    for row in found.rows:
        for place, side in enumerate(("chosen", "rejected")):
            path = row[side]["path"] if isinstance(row[side], dict) else row[side]
            if isinstance(path, str) and Path(path).is_dir():
                continue  # a folder is a clip, whose frames are pictures of all rows here
            try:
                image = decode(row[side])
            except UserError:
                continue
            number = worlds.number_of(image)
            if row["prompt"].startswith("row ") and row["prompt"][4:].isdigit():
                told = int(row["prompt"][4:])
                labelled = row.get("preference") is not None  # the order may be turned round with its label
                if number[0] != told or (number[1] != place and not labelled):
                    faults.append("mis-paired")
    return faults


def _odd(rng: random.Random, rows: list[dict[str, Any]]) -> str:
    row, key = rng.randrange(len(rows)), rng.choice(("prompt", "chosen", "rejected"))
    value = rng.choice(ODD)
    rows[row][key] = value
    return f"{key} is {value!r}"


def _label(rng: random.Random, rows: list[dict[str, Any]]) -> str:
    key = rng.choice(
        ("preference", "chosen_score", "segments", "user_id", "chosen_seed", "chosen_prompt", "emb", "weight")
    )
    for row in rows:
        row[key] = rng.choice((*ODD, 1, 1.0, 0.9, [1, -1], [[1]]))
    return f"{key} of all kinds"


def _drop(rng: random.Random, rows: list[dict[str, Any]]) -> str:
    rows[rng.randrange(len(rows))].pop(rng.choice(("prompt", "chosen", "rejected")), None)
    return "a row without a key"


def _extra(rng: random.Random, rows: list[dict[str, Any]]) -> str:
    rows[rng.randrange(len(rows))][rng.choice(("", "extra", "Prompt", "chosen "))] = rng.choice(ODD)
    return "another key"


CHANGES: tuple[Callable[[random.Random, list[dict[str, Any]]], str], ...] = (_odd, _odd, _label, _drop, _extra)


def _text(rows: list[dict[str, Any]], suffix: str) -> bytes:
    if suffix == ".csv":
        file = io.StringIO()
        keys = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        writer.writerows(rows)
        return file.getvalue().encode("utf-8", "surrogatepass")
    lines = [json.dumps(row) for row in rows]
    return ("[" + ",\n".join(lines) + "]" if suffix == ".json" else "\n".join(lines)).encode("utf-8", "surrogatepass")


def _spoil(rng: random.Random, text: bytes) -> tuple[bytes, str]:
    """Change the text itself; returns it, and what was done."""
    at, kind = rng.randrange(len(text)), rng.randrange(8)
    if kind == 0:
        return text[:at], "cut off"
    if kind == 1:
        return text[:at] + b'"' + text[at:], "a quote more"
    if kind == 2:
        return text.decode(errors="replace").encode("utf-16"), "UTF-16"
    if kind == 3:
        return b"\xef\xbb\xbf" + text, "a byte order mark"
    if kind == 4:
        return text[:at] + b"\xe9" + text[at:], "Latin-1"
    if kind == 5:
        return text.replace(b"\n", b"\r\n") + b"\r\n\r\n", "other ends of lines"
    if kind == 6:
        lines = text.splitlines(keepends=True)
        lines.insert(rng.randrange(len(lines) + 1), rng.choice((b"\n", b"garbage\n", b"{}\n", b",,,,\n", lines[0])))
        return b"".join(lines), "a line more"
    return bytes(rng.randrange(256) for _ in range(200)), "noise"
