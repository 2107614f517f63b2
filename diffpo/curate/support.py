"""Which people there are, who of them is seen, and which of their pairs are support pairs.

Pairs are set aside by prompt: the prompts of a person are put into an order that depends on the seed and their id, and
the first ones, until they have enough pairs, are those of the support. Draws take pairs of the support in turn, each
time in another order, so that the first draws share none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from diffpo.data.checks import user_name
from diffpo.data.records import Table
from diffpo.data.splits import normalise
from diffpo.disk.rows import digest
from diffpo.errors import UserError

NAMED = 5
"""People whom a message names."""


@dataclass(frozen=True)
class Person:
    """Somebody whose choices stand in a table."""

    name: str
    seen: bool
    """Whether a model may be trained on their pairs."""
    table: Table
    rows: dict[str, list[int]]
    """Their rows by prompt, normalised."""
    draws: list[list[int]] = field(default_factory=list)
    """Rows of the support pairs of each draw."""
    support: frozenset[str] = frozenset()
    """The prompts of the support."""

    @property
    def count(self) -> int:
        """How many pairs they have."""
        return sum(map(len, self.rows.values()))

    @property
    def left(self) -> list[int]:
        """Rows that share no prompt with the support."""
        return sorted(row for prompt, rows in self.rows.items() if prompt not in self.support for row in rows)


def split_people(tables: Sequence[Table], unseen: float, seed: int) -> list[Person]:
    """Find the people of one table, a share of whom is unseen by a hash of their ids, or of two: seen, then unseen.

    Raises:
        UserError: A table names no people, or somebody stands in both.
    """
    if len(tables) > 1 and unseen:
        raise UserError(
            "--unseen chooses people who are not seen, and --unseen-split names a split of them: give one of both."
        )
    found = [_people(table) for table in tables]
    if both := sorted(found[0].keys() & found[-1].keys()) if len(found) > 1 else []:
        raise UserError(
            f"{len(both)} people stand in both splits of {tables[0].path}, for example {', '.join(both[:NAMED])}: "
            "somebody is either seen or not. Give one split, and --unseen 0.25 for a share of its people."
        )
    people = []
    for number, (table, rows_of) in enumerate(zip(tables, found, strict=True)):
        for name, rows in rows_of.items():
            share = int.from_bytes(digest(str(seed), name)[:8], "big") / 2**64
            people.append(Person(name, number == 0 and share >= unseen, table, rows))
    return people


def _people(table: Table) -> dict[str, dict[str, list[int]]]:
    """Rows by person and prompt; rows that name nobody are nobody's."""
    if "user_id" not in table.rows.column_names:
        raise UserError(
            f"{table.path} has no column `user_id`, which says who chose; it has {', '.join(table.rows.column_names)}. "
            "If it has one of another name, give --columns user_id=NAME."
        )
    found: dict[str, dict[str, list[int]]] = {}
    for row, (name, prompt) in enumerate(zip(table.column("user_id"), table.column("prompt"), strict=True)):
        if (name := user_name(name)) is not None:
            found.setdefault(name, {}).setdefault(normalise(prompt), []).append(row)
    if not found:
        raise UserError(f"every `user_id` of {table.path} is missing or empty: nobody is known to have chosen.")
    return found


def choose_support(
    people: Sequence[Person], support: int, pairs: int, draws: int, seed: int
) -> tuple[list[Person], dict[str, int]]:
    """Choose everybody's draws.

    Args:
        people: Everybody.
        support: Pairs that are set aside for draws, of those who have so many and one more; of others fewer.
        pairs: Of a draw.
        draws: Of a person.
        seed: What the choice depends on, beside the id.

    Returns:
        Those who have enough pairs, and how many pairs the others have.

    Raises:
        UserError: Nobody has enough.
    """
    if support < pairs:
        raise UserError(f"a draw of {pairs} pairs cannot be made of a support of {support}: give at least as many.")
    chosen, left_out = [], {}
    for person in people:
        draw = _choose(person, support, pairs, draws, seed)
        if draw is None:
            left_out[person.name] = person.count
        else:
            chosen.append(draw)
    if not chosen:
        possible = max(len(_pool(person, seed)[0]) for person in people)
        fewer = f"Give --pairs {possible}, or more pairs" if possible else "Give pairs of two prompts at least"
        raise UserError(
            f"nobody has enough pairs: {pairs} support pairs and another one, of another prompt, are needed; the most "
            f"that can be support pairs of a person are {possible}. {fewer} of each person."
        )
    return chosen, left_out


def _pool(person: Person, seed: int, support: int | None = None) -> tuple[list[int], list[str], np.random.Generator]:
    """The rows that draws are made of, the prompts that are set aside for them, and what draws are drawn with."""
    generator = np.random.default_rng(list(digest(str(seed), person.name)))
    prompts = [list(person.rows)[i] for i in generator.permutation(len(person.rows))]
    pool, used = [], []
    for prompt in prompts[:-1]:  # one prompt is left: a person of whom nothing is learned or judged is of no use
        if support is not None and len(pool) >= support:
            break
        pool += person.rows[prompt]
        used.append(prompt)
    return pool[:support], used, generator


def _choose(person: Person, support: int, pairs: int, draws: int, seed: int) -> Person | None:
    pool, used, generator = _pool(person, seed, support)
    if len(pool) < pairs:
        return None
    found: list[list[int]] = []
    order: list[int] = []
    while len(found) < draws:
        if len(order) < pairs:
            order = generator.permutation(len(pool)).tolist()
        found.append([pool[i] for i in order[:pairs]])
        order = order[pairs:]
    return Person(person.name, person.seen, person.table, person.rows, found, frozenset(used))
